//! A file that one process at a time holds, with its pid in it for messages.
//!
//! The kernel lets go of it when the process ends, however it ends. The pid means nothing unless the
//! lock is held, so a stale one is harmless.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// How long the lock of a dead process may still be held. A child that it was starting as it was
/// killed has its files until it executes its program.
const DEAD_LIMIT: Duration = Duration::from_secs(5);
/// The same for one that this very process has let go of.
const OWN_LIMIT: Duration = Duration::from_millis(500);

/// Why the file is not ours.
#[derive(Debug)]
pub enum LockFailure {
    /// Another process holds it; its pid, if the file tells.
    Held(Option<u32>),
    /// A call on the file failed.
    Io(&'static str, io::Error),
}

/// Opens and locks a file, which is made if needed. It is held as long as the file is open.
///
/// # Errors
/// [`LockFailure::Held`] at once if the process named in it is another one that lives.
pub fn take(path: &Path) -> Result<File, LockFailure> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(|source| LockFailure::Io("open", source))?;
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(fs::TryLockError::Error(source)) => return Err(LockFailure::Io("lock", source)),
            Err(fs::TryLockError::WouldBlock) => {
                let holder = holder(&mut file);
                if began.elapsed() >= patience(holder) {
                    return Err(LockFailure::Held(holder));
                }
                thread::sleep(Duration::from_millis(2));
            }
        }
    }
    // On a full disk the pid is missing; the lock holds all the same.
    let _ = file.set_len(0).and_then(|()| file.rewind());
    let _ = writeln!(file, "{}", std::process::id());
    Ok(file)
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    let read = file
        .rewind()
        .and_then(|()| file.take(16).read_to_string(&mut text));
    read.ok().and_then(|_| text.trim().parse().ok())
}

/// How long a lock with this pid in its file is waited for.
fn patience(holder: Option<u32>) -> Duration {
    match holder {
        Some(pid) if pid == std::process::id() => OWN_LIMIT,
        Some(pid) if lives(pid) => Duration::ZERO,
        Some(_) | None => DEAD_LIMIT,
    }
}

/// Whether the process is there and not only waiting to be reaped.
fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        !matches!(state, Some('Z' | 'X'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_holder_is_named_at_once() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("lock");
        let held = take(&path).expect("free");
        let own = Some(std::process::id());
        assert!(matches!(take(&path), Err(LockFailure::Held(pid)) if pid == own));
        // PID 1 lives.
        fs::write(&path, "1").expect("write");
        assert_eq!(patience(Some(1)), Duration::ZERO);
        assert!(matches!(take(&path), Err(LockFailure::Held(Some(1)))));
        drop(held);
        take(&path).expect("free again");
    }

    #[test]
    fn what_a_dead_holder_left_to_a_child_is_waited_for() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("lock");
        let held = take(&path).expect("free");
        // No process has this number: the limit of the kernel is lower.
        fs::write(&path, "2147483646").expect("write");
        let letting_go = thread::spawn(move || drop(held));
        take(&path).expect("the child lets go");
        letting_go.join().expect("no panic");
    }
}

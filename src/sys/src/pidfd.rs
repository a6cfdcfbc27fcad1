//! Processes by descriptor: a pidfd never means another process, however numbers are reused.

use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use libc::c_long;

use crate::error::{Errno, Error, Result, check, check_retry};
use crate::fd::{owned, raw};
use crate::path;

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitStatus {
    /// It returned or called exit with this code (0 to 255).
    Exited(i32),
    /// This signal ended it.
    Signaled {
        /// Number of the signal.
        signo: i32,
        /// Whether a core was dumped.
        core: bool,
    },
}

impl WaitStatus {
    /// The code a shell would show: the exit code, or 128 plus the signal.
    #[must_use]
    pub const fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled { signo, .. } => 128 + signo,
        }
    }

    /// The signal that ended it, if one did.
    #[must_use]
    pub const fn signal(self) -> Option<i32> {
        match self {
            Self::Exited(_) => None,
            Self::Signaled { signo, .. } => Some(signo),
        }
    }
}

/// [`pidfd_open(2)`](https://man7.org/linux/man-pages/man2/pidfd_open.2.html).
///
/// # Errors
/// Those of the call; `ESRCH` without such a process.
pub fn open(pid: i32) -> Result<OwnedFd> {
    // SAFETY: plain integers.
    let value = unsafe { libc::syscall(libc::SYS_pidfd_open, c_long::from(pid), 0 as c_long) };
    check("pidfd_open", value, || pid.to_string()).map(owned)
}

/// [`pidfd_send_signal(2)`](https://man7.org/linux/man-pages/man2/pidfd_send_signal.2.html).
/// Signal 0 only asks whether it can be signalled.
///
/// # Errors
/// Those of the call; `ESRCH` once it was reaped.
pub fn send_signal(pidfd: BorrowedFd<'_>, signo: i32) -> Result<()> {
    // SAFETY: a null siginfo makes the kernel fill one in as kill(2) does.
    let value = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            raw(pidfd),
            c_long::from(signo),
            std::ptr::null::<libc::siginfo_t>(),
            0 as c_long,
        )
    };
    check("pidfd_send_signal", value, || {
        format!("{}, {signo}", pidfd.as_raw_fd())
    })
    .map(drop)
}

/// Waits until the child ended, and reaps it.
///
/// # Errors
/// Those of waitid(2); `ECHILD` if it is not our child or was reaped.
pub fn wait(pidfd: BorrowedFd<'_>) -> Result<WaitStatus> {
    let id = pidfd.as_raw_fd().unsigned_abs();
    let ended = waitid(libc::P_PIDFD, id, 0)?;
    ended
        .map(|(_, status)| status)
        .ok_or_else(|| Error::new("waitid", format!("P_PIDFD, {id}"), Errno::EAGAIN))
}

/// Reaps the child if it ended; `None` while it runs.
///
/// # Errors
/// Those of waitid(2); `ECHILD` if it is not our child or was reaped.
pub fn try_wait(pidfd: BorrowedFd<'_>) -> Result<Option<WaitStatus>> {
    let ended = waitid(
        libc::P_PIDFD,
        pidfd.as_raw_fd().unsigned_abs(),
        libc::WNOHANG,
    )?;
    Ok(ended.map(|(_, status)| status))
}

/// Reaps any one child that ended: (its pid, how). `None` if all run.
///
/// # Errors
/// `ECHILD` without children.
pub fn try_wait_any() -> Result<Option<(i32, WaitStatus)>> {
    waitid(libc::P_ALL, 0, libc::WNOHANG)
}

/// The pid of any one child that ended, leaving it to be reaped. `None` if all run.
///
/// # Errors
/// `ECHILD` without children.
pub fn peek_any() -> Result<Option<i32>> {
    let ended = waitid(libc::P_ALL, 0, libc::WNOHANG | libc::WNOWAIT)?;
    Ok(ended.map(|(pid, _)| pid))
}

fn waitid(kind: libc::idtype_t, id: libc::id_t, flags: i32) -> Result<Option<(i32, WaitStatus)>> {
    // SAFETY: all-zero is a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    check_retry(
        "waitid",
        // SAFETY: `info` is a siginfo_t that outlives the call.
        || unsafe { c_long::from(libc::waitid(kind, id, &raw mut info, flags | libc::WEXITED)) },
        || format!("{kind}, {id}, {flags:#x}"),
    )?;
    // SAFETY: waitid fills in the SIGCHLD fields, or leaves the zeroes when nothing ended.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let status = match info.si_code {
        libc::CLD_EXITED => WaitStatus::Exited(status),
        code => WaitStatus::Signaled {
            signo: status,
            core: code == libc::CLD_DUMPED,
        },
    };
    Ok(Some((pid, status)))
}

/// The inode of a pidfd: unique for the process as long as the machine runs, on kernels with
/// pidfs (6.9); before that all pidfds share one.
///
/// # Errors
/// Those of fstat(2).
pub fn inode(pidfd: BorrowedFd<'_>) -> Result<u64> {
    path::fstat(pidfd).map(|stat| stat.ino)
}

/// When a process started, in clock ticks since boot: field 22 of /proc/pid/stat. Together with
/// the pid this names one process.
///
/// # Errors
/// Those of reading the file: `ENOENT` or `ESRCH` without such a process; `EBADMSG` if it cannot
/// be understood.
pub fn start_time(pid: i32) -> Result<u64> {
    use std::os::fd::AsFd;
    let mut name = [0; 32];
    let file = path::openat(crate::fd::CWD, stat_path(pid, &mut name), libc::O_RDONLY, 0)?;
    let mut buffer = [0; 1024];
    let count = crate::fd::read_full(file.as_fd(), &mut buffer)?;
    parse_start_time(&buffer[..count])
        .ok_or_else(|| Error::new("start_time", pid.to_string(), Errno::EBADMSG))
}

/// `/proc/<pid>/stat`, without allocating.
fn stat_path(pid: i32, buffer: &mut [u8; 32]) -> &[u8] {
    use std::io::Write;
    let mut rest = &mut buffer[..];
    write!(rest, "/proc/{pid}/stat").expect("23 bytes at most");
    let left = rest.len();
    &buffer[..32 - left]
}

fn parse_start_time(stat: &[u8]) -> Option<u64> {
    // The second field is the command in parentheses and may hold anything, so count from its end.
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let field = stat.get(end + 2..)?.split(|byte| *byte == b' ').nth(19)?;
    std::str::from_utf8(field).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Command;

    use super::*;

    #[test]
    fn signals_and_waits_by_descriptor() {
        #[expect(clippy::zombie_processes, reason = "reaped through the pidfd below")]
        let child = Command::new("sleep").arg("1000").spawn().expect("spawn");
        let pid = i32::try_from(child.id()).expect("pid");
        let pidfd = open(pid).expect("pidfd");
        assert_eq!(try_wait(pidfd.as_fd()).expect("wait"), None);
        assert!(start_time(pid).expect("start time") > 0);
        send_signal(pidfd.as_fd(), libc::SIGKILL).expect("kill");
        let status = wait(pidfd.as_fd()).expect("wait");
        assert_eq!(
            status,
            WaitStatus::Signaled {
                signo: 9,
                core: false
            }
        );
        assert_eq!((status.code(), status.signal()), (137, Some(9)));
        assert_eq!(
            send_signal(pidfd.as_fd(), 0).unwrap_err().errno(),
            Errno::ESRCH
        );
        assert_eq!(wait(pidfd.as_fd()).unwrap_err().errno(), Errno::ECHILD);
    }

    #[test]
    fn start_time_survives_a_hostile_command_name() {
        let line = b"7 (a) b ) 1 2 3) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(parse_start_time(line), Some(4242));
        assert_eq!(parse_start_time(b"7 (a"), None);
        assert_eq!(parse_start_time(b"7 (a)"), None);
    }
}

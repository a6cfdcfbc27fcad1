//! Making children that share nothing with their parent but its memory image.

use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use libc::c_long;

use crate::error::{Errno, Error, Result, check};
use crate::fd::{owned, raw};

/// Proof that the process has one thread. While it exists only this thread can start others, so a
/// child made now finds no lock held and no memory half written. Bound to its thread.
#[derive(Debug)]
pub struct SingleThreaded(PhantomData<*const ()>);

impl SingleThreaded {
    /// Counts the entries of /proc/self/task.
    ///
    /// # Errors
    /// `EBUSY` if there are more threads than this one; those of reading the directory.
    pub fn check() -> Result<Self> {
        let failed = |error: std::io::Error| {
            let errno = Errno(error.raw_os_error().unwrap_or(libc::EIO));
            Error::new("readdir", "\"/proc/self/task\"", errno)
        };
        let mut threads = 0;
        for entry in std::fs::read_dir("/proc/self/task").map_err(failed)? {
            entry.map_err(failed)?;
            threads += 1;
        }
        if threads == 1 {
            return Ok(Self(PhantomData));
        }
        Err(Error::new(
            "single_threaded",
            format!("{threads} threads"),
            Errno::EBUSY,
        ))
    }

    /// Ends the life of this process in `work`, whose value is the exit code: as in a child, no
    /// exit handler runs and nothing is dropped, which is why `work` may close what others own. A
    /// panic in it aborts the process.
    pub fn last_act(self, work: impl FnOnce(&InChild) -> i32) -> ! {
        let bomb = AbortOnUnwind;
        let code = work(&InChild(()));
        let _defused = std::mem::ManuallyDrop::new(bomb);
        // SAFETY: ends this process only.
        unsafe { libc::_exit(code) }
    }
}

/// How [`clone3`] makes the child.
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneArgs<'a> {
    /// Namespaces to make (`CLONE_NEW*`), perhaps `CLONE_PARENT`. Anything that would share
    /// memory or the descriptor table is refused.
    pub flags: u64,
    /// Directory of the cgroup v2 group to be born in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// A child just made. Dropping it neither ends nor reaps the child.
#[derive(Debug)]
pub struct Child {
    /// Its number in our PID namespace.
    pub pid: i32,
    /// Its descriptor.
    pub pidfd: OwnedFd,
}

const ALLOWED: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_PARENT
    | crate::ns::CLONE_NEWTIME) as u64;

#[repr(C)]
#[derive(Default)]
struct KernelArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Proof of being in a child that [`clone3`] made, or in the last act of a process: on the way to
/// exec or exit, with no other thread.
#[derive(Debug)]
pub struct InChild(());

impl InChild {
    /// The same proof for making a child of one's own.
    #[must_use]
    pub const fn single_threaded(&self) -> SingleThreaded {
        SingleThreaded(PhantomData)
    }

    /// Closes every descriptor above 2 but those of `keep`, so that nothing of the parent's stays
    /// open while the child waits to be started. What else owned one of them must not be used
    /// any more: it would find `EBADF`.
    ///
    /// # Errors
    /// Those of close_range(2); `EINVAL` for more than 8 descriptors.
    pub fn close_all_but(&self, keep: &[BorrowedFd<'_>]) -> Result<()> {
        const ROOM: usize = 8;
        let shown = || format!("all but {keep:?}");
        if keep.len() > ROOM {
            return Err(Error::new("close_range", shown(), Errno::EINVAL));
        }
        let mut numbers = [u32::MAX; ROOM];
        for (slot, fd) in numbers.iter_mut().zip(keep) {
            *slot = fd.as_raw_fd().unsigned_abs();
        }
        numbers.sort_unstable();
        let mut first = 3;
        for number in numbers {
            if number > first {
                let last = if number == u32::MAX {
                    number
                } else {
                    number - 1
                };
                // SAFETY: plain integers. Descriptors that Rust values own are closed under
                // them, which the kernel answers with EBADF and never with a foreign file,
                // because the child opens nothing that such a value could then mean: it is
                // copied memory, and `InChild` proves that the only way on is exec or exit.
                let value = unsafe {
                    libc::syscall(
                        libc::SYS_close_range,
                        c_long::from(first),
                        c_long::from(last),
                        0 as c_long,
                    )
                };
                check("close_range", value, shown)?;
            }
            first = number.saturating_add(1).max(first);
        }
        Ok(())
    }
}

/// [`clone3(2)`](https://man7.org/linux/man-pages/man2/clone3.2.html) like fork(2): `child` runs
/// in the child, and what it returns is the child's exit code. No exit handler runs there and
/// nothing of the parent's is dropped; a panic in it aborts the child.
///
/// # Errors
/// `EINVAL` for flags that share memory or descriptors; those of the call: `EBADF` if `cgroup` is
/// not of cgroup v2, `EBUSY` for a cgroup that cannot hold processes.
pub fn clone3(
    _token: &SingleThreaded,
    args: &CloneArgs<'_>,
    child: impl FnOnce(&InChild) -> i32,
) -> Result<Child> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let shown = || format!("{:#x}, cgroup={:?}", args.flags, args.cgroup);
    if args.flags & !ALLOWED != 0 {
        return Err(Error::new("clone3", shown(), Errno::EINVAL));
    }
    let mut pidfd: RawFd = -1;
    let siblings = args.flags & libc::CLONE_PARENT as u64 != 0;
    let mut kernel = KernelArgs {
        flags: args.flags | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        // With CLONE_PARENT the kernel takes our own exit signal and wants 0 here.
        exit_signal: if siblings { 0 } else { libc::SIGCHLD as u64 },
        ..KernelArgs::default()
    };
    if let Some(cgroup) = args.cgroup {
        kernel.flags |= CLONE_INTO_CGROUP;
        kernel.cgroup = raw(cgroup).cast_unsigned();
    }
    // SAFETY: the structure is struct clone_args of 88 bytes and outlives the call. The flags
    // share neither memory nor descriptors nor signal handlers (checked above), so the child is a
    // copy of this process with its own stack at the same address, as after fork(2). The token
    // proves that no other thread held a lock or was changing memory, so all of the child's
    // state is consistent and any code may run in it.
    let value =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut kernel, size_of::<KernelArgs>()) };
    if value == 0 {
        // A panic must not unwind into the parent's frames: there would be two of them.
        let bomb = AbortOnUnwind;
        let code = child(&InChild(()));
        let _defused = std::mem::ManuallyDrop::new(bomb);
        // SAFETY: ends this process only.
        unsafe { libc::_exit(code) };
    }
    let pid = check("clone3", value, shown)?;
    let pid = i32::try_from(pid).expect("pids fit an int");
    Ok(Child {
        pid,
        pidfd: owned(c_long::from(pidfd)),
    })
}

/// Makes a sibling: a child of our parent's, as fork(2) makes one of our own. Returns twice: in the
/// sibling, which goes on as this process would have, it is `None`. Made by the older call: filters
/// that cannot look into the structure of clone3 forbid that.
///
/// # Errors
/// Those of clone(2).
pub fn split(_proof: &InChild) -> Result<Option<Child>> {
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_PARENT | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: neither memory nor descriptors nor signal handlers are shared, so the sibling is a
    // copy of this process with its own stack at the same address, as after fork(2). `InChild`
    // proves that there is no other thread and that both can only execute a program or exit. With
    // CLONE_PIDFD the third argument is where the descriptor is written; it outlives the call. No
    // new stack and no thread-local storage are asked for.
    let value = unsafe {
        libc::syscall(
            libc::SYS_clone,
            c_long::from(flags),
            0 as c_long,
            &raw mut pidfd,
            0 as c_long,
            0 as c_long,
        )
    };
    if value == 0 {
        return Ok(None);
    }
    let pid = check("clone", value, || format!("{flags:#x}"))?;
    let pid = i32::try_from(pid).expect("pids fit an int");
    Ok(Some(Child {
        pid,
        pidfd: owned(c_long::from(pidfd)),
    }))
}

struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_threads_are_noticed() {
        // The test harness itself runs this on a thread of its own.
        let running = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| running.wait());
            assert_eq!(SingleThreaded::check().unwrap_err().errno(), Errno::EBUSY);
            running.wait();
        });
    }
}

//! What a process may do to itself on the way to another program.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_char, c_int, c_long, c_ulong};

use crate::arg::Arg;
use crate::error::{Errno, Error, Result, check};
use crate::fd::raw;

/// A NULL-terminated array of strings for exec, made before the clone so that the child need not
/// allocate.
#[derive(Debug)]
pub struct StringArray {
    strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl StringArray {
    /// Takes the strings.
    ///
    /// # Errors
    /// `EINVAL` for one with a NUL inside.
    pub fn new<S: AsRef<[u8]>>(strings: &[S]) -> Result<Self> {
        let strings = strings
            .iter()
            .map(|string| {
                CString::new(string.as_ref()).map_err(|_| {
                    let shown = String::from_utf8_lossy(string.as_ref()).into_owned();
                    Error::new("execve", format!("{shown:?}"), Errno::EINVAL)
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let mut pointers: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Ok(Self { strings, pointers })
    }

    /// The strings.
    #[must_use]
    pub fn strings(&self) -> &[CString] {
        &self.strings
    }
}

/// [`execve(2)`](https://man7.org/linux/man-pages/man2/execve.2.html); returns only if it failed.
#[must_use]
pub fn execve(path: &CStr, args: &StringArray, env: &StringArray) -> Error {
    // SAFETY: the path is NUL-terminated; both arrays end with NULL and point at NUL-terminated
    // strings that the StringArrays own.
    let value =
        unsafe { libc::execve(path.as_ptr(), args.pointers.as_ptr(), env.pointers.as_ptr()) };
    failed_exec("execve", c_long::from(value), || path.show())
}

/// [`execveat(2)`](https://man7.org/linux/man-pages/man2/execveat.2.html); with an empty path and
/// `AT_EMPTY_PATH` the open file `dir` itself. Returns only if it failed.
#[must_use]
pub fn execveat(
    dir: BorrowedFd<'_>,
    path: &CStr,
    args: &StringArray,
    env: &StringArray,
    flags: i32,
) -> Error {
    // SAFETY: as for execve.
    let value = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            raw(dir),
            path.as_ptr(),
            args.pointers.as_ptr(),
            env.pointers.as_ptr(),
            c_long::from(flags),
        )
    };
    failed_exec("execveat", value, || {
        format!("{}, {}", dir.as_raw_fd(), path.show())
    })
}

fn failed_exec(call: &'static str, value: c_long, args: impl Fn() -> String) -> Error {
    check(call, value, &args)
        .err()
        .unwrap_or_else(|| Error::new(call, args(), Errno(0)))
}

fn prctl(name: &'static str, option: c_int, argument: c_ulong) -> Result<()> {
    let zero: c_ulong = 0;
    // SAFETY: the options used below take one integer.
    let value = unsafe { libc::prctl(option, argument, zero, zero, zero) };
    check("prctl", c_long::from(value), || {
        format!("{name}, {argument}")
    })
    .map(drop)
}

/// The signal this process gets when the thread that made it ends. Meant for single-threaded
/// parents: with others it fires at the death of whichever thread spawned.
///
/// # Errors
/// Those of prctl(2).
pub fn set_pdeathsig(signo: i32) -> Result<()> {
    prctl(
        "PR_SET_PDEATHSIG",
        libc::PR_SET_PDEATHSIG,
        c_ulong::from(signo.unsigned_abs()),
    )
}

/// Makes this process adopt orphaned descendants.
///
/// # Errors
/// Those of prctl(2).
pub fn set_subreaper(on: bool) -> Result<()> {
    prctl(
        "PR_SET_CHILD_SUBREAPER",
        libc::PR_SET_CHILD_SUBREAPER,
        c_ulong::from(on),
    )
}

/// The name that ps shows for this thread (at most 15 bytes are kept).
///
/// # Errors
/// Those of prctl(2).
pub fn set_name(name: &CStr) -> Result<()> {
    // SAFETY: PR_SET_NAME reads a NUL-terminated string of which it keeps 15 bytes.
    let value = unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    check("prctl", c_long::from(value), || {
        format!("PR_SET_NAME, {name:?}")
    })
    .map(drop)
}

/// One resource limit, numbered as in the kernel (`RLIMIT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// Which resource.
    pub resource: u32,
    /// In force.
    pub soft: u64,
    /// Ceiling.
    pub hard: u64,
}

/// Sets a limit of this process.
///
/// # Errors
/// Those of prlimit(2): `EPERM` for raising a ceiling without `CAP_SYS_RESOURCE`.
pub fn setrlimit(limit: &Rlimit) -> Result<()> {
    let pair = [limit.soft, limit.hard];
    // SAFETY: struct rlimit64 is two u64; a null fourth argument asks for no old value.
    let value = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0 as c_long,
            c_long::from(limit.resource),
            pair.as_ptr(),
            std::ptr::null_mut::<u64>(),
        )
    };
    check("prlimit64", value, || format!("{limit:?}")).map(drop)
}

/// Reads a limit of this process: (soft, hard).
///
/// # Errors
/// Those of prlimit(2).
pub fn getrlimit(resource: u32) -> Result<(u64, u64)> {
    let mut pair = [0_u64; 2];
    // SAFETY: struct rlimit64 is two u64; a null third argument changes nothing.
    let value = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0 as c_long,
            c_long::from(resource),
            std::ptr::null::<u64>(),
            pair.as_mut_ptr(),
        )
    };
    check("prlimit64", value, || resource.to_string())?;
    Ok((pair[0], pair[1]))
}

/// [`umask(2)`](https://man7.org/linux/man-pages/man2/umask.2.html); returns the old one.
pub fn umask(mask: u32) -> u32 {
    // SAFETY: plain integer, cannot fail.
    unsafe { libc::umask(mask) }
}

/// [`setsid(2)`](https://man7.org/linux/man-pages/man2/setsid.2.html).
///
/// # Errors
/// `EPERM` for a process group leader.
pub fn setsid() -> Result<()> {
    // SAFETY: no arguments.
    let value = unsafe { libc::setsid() };
    check("setsid", c_long::from(value), String::new).map(drop)
}

/// [`fchdir(2)`](https://man7.org/linux/man-pages/man2/chdir.2.html).
///
/// # Errors
/// Those of the call.
pub fn fchdir(dir: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: plain integer.
    let value = unsafe { libc::fchdir(dir.as_raw_fd()) };
    check("fchdir", c_long::from(value), || {
        dir.as_raw_fd().to_string()
    })
    .map(drop)
}

/// [`chdir(2)`](https://man7.org/linux/man-pages/man2/chdir.2.html).
///
/// # Errors
/// Those of the call.
pub fn chdir<P: Arg + ?Sized>(path: &P) -> Result<()> {
    path.with_c_str("chdir", |c_path| {
        // SAFETY: the path is NUL-terminated and outlives the call.
        let value = unsafe { libc::chdir(c_path.as_ptr()) };
        check("chdir", c_long::from(value), || path.show()).map(drop)
    })
}

/// The working directory as the kernel names it, which is not absolute (`(unreachable)/...`) when
/// it lies outside this process's root.
///
/// # Errors
/// Those of getcwd(2).
pub fn getcwd(buffer: &mut [u8]) -> Result<&[u8]> {
    // SAFETY: pointer and length describe `buffer`.
    let value = unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) };
    let count = check("getcwd", value, String::new)?;
    let count = usize::try_from(count).expect("getcwd returns a positive count");
    // The count includes the NUL.
    Ok(&buffer[..count.saturating_sub(1)])
}

/// [`chroot(2)`](https://man7.org/linux/man-pages/man2/chroot.2.html).
///
/// # Errors
/// Those of the call.
pub fn chroot<P: Arg + ?Sized>(path: &P) -> Result<()> {
    path.with_c_str("chroot", |c_path| {
        // SAFETY: the path is NUL-terminated and outlives the call.
        let value = unsafe { libc::chroot(c_path.as_ptr()) };
        check("chroot", c_long::from(value), || path.show()).map(drop)
    })
}

/// [`personality(2)`](https://man7.org/linux/man-pages/man2/personality.2.html).
///
/// # Errors
/// Those of the call.
pub fn personality(persona: u32) -> Result<()> {
    // SAFETY: plain integer.
    let value = unsafe { libc::syscall(libc::SYS_personality, c_long::from(persona)) };
    check("personality", value, || format!("{persona:#x}")).map(drop)
}

/// Blocks no signal and gives every signal its default action, as a program expects to start:
/// what we ignore or block ourselves would be inherited through exec.
///
/// # Errors
/// Those of sigprocmask(2).
pub fn reset_signals() -> Result<()> {
    // struct sigaction of the kernel: handler, flags, restorer, mask. The C library's function
    // would refuse the two signals it keeps for itself, which may be ignored all the same.
    let default = [0_u64; 4];
    for signo in 1..=64 {
        // SAFETY: the handler is SIG_DFL, so nothing is installed; the size of the mask is the
        // last argument. SIGKILL and SIGSTOP refuse; they need no reset.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                c_long::from(signo),
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            )
        };
    }
    set_signal_mask(0)
}

/// Sets the mask of blocked signals; bit n-1 is signal n.
///
/// # Errors
/// Those of rt_sigprocmask(2).
pub fn set_signal_mask(mask: u64) -> Result<()> {
    // SAFETY: the kernel's sigset is one u64, whose size is the last argument; no old mask is
    // asked for.
    let value = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            c_long::from(libc::SIG_SETMASK),
            &raw const mask,
            std::ptr::null_mut::<u64>(),
            size_of::<u64>(),
        )
    };
    check("rt_sigprocmask", value, || {
        format!("SIG_SETMASK, {mask:#x}")
    })
    .map(drop)
}

/// `ioprio_set(2)` of this process: class (1 realtime, 2 best effort, 3 idle) and level.
///
/// # Errors
/// Those of the call.
pub fn set_io_priority(class: u32, level: u32) -> Result<()> {
    const IOPRIO_WHO_PROCESS: c_long = 1;
    let value = c_long::from(class << 13 | level);
    // SAFETY: plain integers.
    let returned =
        unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0 as c_long, value) };
    check("ioprio_set", returned, || format!("{class}, {level}")).map(drop)
}

/// Parameters of [`sched_setattr`], as in the kernel's `struct sched_attr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedAttr {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For the normal policies.
    pub nice: i32,
    /// For the realtime policies.
    pub priority: u32,
    /// For `SCHED_DEADLINE`, nanoseconds.
    pub runtime: u64,
    /// For `SCHED_DEADLINE`, nanoseconds.
    pub deadline: u64,
    /// For `SCHED_DEADLINE`, nanoseconds.
    pub period: u64,
}

/// [`sched_setattr(2)`](https://man7.org/linux/man-pages/man2/sched_setattr.2.html) of this
/// process.
///
/// # Errors
/// Those of the call.
pub fn sched_setattr(attr: &SchedAttr) -> Result<()> {
    #[repr(C)]
    struct Kernel {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let kernel = Kernel {
        size: 48,
        policy: attr.policy,
        flags: attr.flags,
        nice: attr.nice,
        priority: attr.priority,
        runtime: attr.runtime,
        deadline: attr.deadline,
        period: attr.period,
    };
    // SAFETY: the structure is the first version of struct sched_attr, 48 bytes, as it says.
    let value = unsafe {
        libc::syscall(
            libc::SYS_sched_setattr,
            0 as c_long,
            &raw const kernel,
            0 as c_long,
        )
    };
    check("sched_setattr", value, || format!("{attr:?}")).map(drop)
}

/// Joins a fresh anonymous session keyring, so that none of the creator's keys is reachable.
///
/// # Errors
/// Those of keyctl(2): `ENOSYS` without key support, `EDQUOT` at the user's limit.
pub fn join_session_keyring() -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let value = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<c_char>(),
        )
    };
    check("keyctl", value, || "JOIN_SESSION_KEYRING".into()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_arrays_refuse_nul() {
        assert_eq!(
            StringArray::new(&["a", "b"]).expect("fine").strings().len(),
            2
        );
        assert_eq!(
            StringArray::new(&["a\0b"]).unwrap_err().errno(),
            Errno::EINVAL
        );
    }

    #[test]
    fn limits_can_be_read_and_lowered() {
        let (soft, hard) = getrlimit(libc::RLIMIT_CORE).expect("get");
        setrlimit(&Rlimit {
            resource: libc::RLIMIT_CORE,
            soft: 0,
            hard,
        })
        .expect("set");
        assert_eq!(getrlimit(libc::RLIMIT_CORE).expect("get"), (0, hard));
        setrlimit(&Rlimit {
            resource: libc::RLIMIT_CORE,
            soft,
            hard,
        })
        .expect("set");
    }

    #[test]
    fn failed_exec_says_why() {
        let none = StringArray::new::<&str>(&[]).expect("empty");
        let error = execve(c"/nonexistent", &none, &none);
        assert_eq!(error.to_string(), "execve(\"/nonexistent\") = ENOENT");
    }

    #[test]
    fn working_directory_is_absolute() {
        let mut buffer = [0; 4096];
        assert_eq!(getcwd(&mut buffer).expect("getcwd")[0], b'/');
    }
}

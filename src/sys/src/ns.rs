//! Namespaces of the calling thread.

use std::os::fd::{AsRawFd, BorrowedFd};

use libc::c_long;

use crate::error::{Result, check};

/// `CLONE_NEWTIME`, which libc has for some targets only.
pub const CLONE_NEWTIME: i32 = 0x80;

/// [`setns(2)`](https://man7.org/linux/man-pages/man2/setns.2.html): joins namespaces. `fd` is a
/// namespace file (`kinds` says which kind it must be, 0 for any) or a pidfd (`kinds` says which
/// of the process's namespaces are joined). Moves the calling thread only; a PID or time
/// namespace is entered by its next children.
///
/// # Errors
/// Those of the call.
pub fn setns(fd: BorrowedFd<'_>, kinds: i32) -> Result<()> {
    // SAFETY: plain integers.
    let value = unsafe { libc::setns(fd.as_raw_fd(), kinds) };
    check("setns", c_long::from(value), || {
        format!("{}, {kinds:#x}", fd.as_raw_fd())
    })
    .map(drop)
}

/// [`unshare(2)`](https://man7.org/linux/man-pages/man2/unshare.2.html).
///
/// # Errors
/// Those of the call.
pub fn unshare(kinds: i32) -> Result<()> {
    // SAFETY: plain integer.
    let value = unsafe { libc::unshare(kinds) };
    check("unshare", c_long::from(value), || format!("{kinds:#x}")).map(drop)
}

/// [`sethostname(2)`](https://man7.org/linux/man-pages/man2/sethostname.2.html) of the current
/// UTS namespace.
///
/// # Errors
/// Those of the call; `EINVAL` above 64 bytes.
pub fn sethostname(name: &[u8]) -> Result<()> {
    // SAFETY: pointer and length describe `name`.
    let value = unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) };
    check("sethostname", c_long::from(value), || {
        String::from_utf8_lossy(name).into_owned()
    })
    .map(drop)
}

/// [`setdomainname(2)`](https://man7.org/linux/man-pages/man2/setdomainname.2.html).
///
/// # Errors
/// Those of the call; `EINVAL` above 64 bytes.
pub fn setdomainname(name: &[u8]) -> Result<()> {
    // SAFETY: pointer and length describe `name`.
    let value = unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) };
    check("setdomainname", c_long::from(value), || {
        String::from_utf8_lossy(name).into_owned()
    })
    .map(drop)
}

//! Making written bytes durable.

use std::os::fd::{AsRawFd, BorrowedFd};

use libc::c_long;

use crate::error::{Result, check_retry};

/// [`fsync(2)`](https://man7.org/linux/man-pages/man2/fsync.2.html).
///
/// # Errors
/// Those of the call.
pub fn fsync(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: plain integer.
    let again = || c_long::from(unsafe { libc::fsync(fd.as_raw_fd()) });
    check_retry("fsync", again, || fd.as_raw_fd().to_string()).map(drop)
}

/// [`fdatasync(2)`](https://man7.org/linux/man-pages/man2/fsync.2.html).
///
/// # Errors
/// Those of the call.
pub fn fdatasync(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: plain integer.
    let again = || c_long::from(unsafe { libc::fdatasync(fd.as_raw_fd()) });
    check_retry("fdatasync", again, || fd.as_raw_fd().to_string()).map(drop)
}

/// [`syncfs(2)`](https://man7.org/linux/man-pages/man2/syncfs.2.html): everything dirty on the
/// filesystem that holds `fd`.
///
/// # Errors
/// Those of the call.
pub fn syncfs(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: plain integer.
    let again = || c_long::from(unsafe { libc::syncfs(fd.as_raw_fd()) });
    check_retry("syncfs", again, || fd.as_raw_fd().to_string()).map(drop)
}

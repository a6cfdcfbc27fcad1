//! Pseudo terminals.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use libc::c_long;

use crate::error::{Result, check};
use crate::fd::{owned, raw};

const TIOCSCTTY: u64 = 0x540e;
const TIOCGWINSZ: u64 = 0x5413;
const TIOCSWINSZ: u64 = 0x5414;

fn ioctl_int(fd: BorrowedFd<'_>, name: &'static str, request: u64, value: i32) -> Result<c_long> {
    // SAFETY: callers use requests that take an int by value, or ignore the argument.
    let returned = unsafe { libc::syscall(libc::SYS_ioctl, raw(fd), request, c_long::from(value)) };
    check("ioctl", returned, || {
        format!("{}, {name}, {value}", fd.as_raw_fd())
    })
}

/// Opens the terminal side of a pseudo terminal from its master, whatever is mounted where: no
/// path that somebody could replace is involved.
///
/// # Errors
/// Those of ioctl(2) `TIOCGPTPEER`.
pub fn peer(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    const TIOCGPTPEER: u64 = 0x5441;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    ioctl_int(master, "TIOCGPTPEER", TIOCGPTPEER, flags).map(owned)
}

/// Unlocks the terminal side (unlockpt).
///
/// # Errors
/// Those of ioctl(2) `TIOCSPTLCK`.
pub fn unlock(master: BorrowedFd<'_>) -> Result<()> {
    const TIOCSPTLCK: u64 = 0x4004_5431;
    let locked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int through the pointer.
    let returned =
        unsafe { libc::syscall(libc::SYS_ioctl, raw(master), TIOCSPTLCK, &raw const locked) };
    check("ioctl", returned, || {
        format!("{}, TIOCSPTLCK, 0", master.as_raw_fd())
    })
    .map(drop)
}

/// The number of a pseudo terminal (its name below /dev/pts).
///
/// # Errors
/// Those of ioctl(2) `TIOCGPTN`; `ENOTTY` if it is no master.
pub fn number(master: BorrowedFd<'_>) -> Result<u32> {
    const TIOCGPTN: u64 = 0x8004_5430;
    let mut number: libc::c_uint = 0;
    // SAFETY: TIOCGPTN writes one unsigned int through the pointer.
    let returned =
        unsafe { libc::syscall(libc::SYS_ioctl, raw(master), TIOCGPTN, &raw mut number) };
    check("ioctl", returned, || {
        format!("{}, TIOCGPTN", master.as_raw_fd())
    })?;
    Ok(number)
}

/// Makes the terminal the controlling one of this session (whose leader must call).
///
/// # Errors
/// Those of ioctl(2) `TIOCSCTTY`.
pub fn set_controlling(terminal: BorrowedFd<'_>) -> Result<()> {
    ioctl_int(terminal, "TIOCSCTTY", TIOCSCTTY, 0).map(drop)
}

/// Sets the size in characters; the foreground process group gets SIGWINCH if it changed.
///
/// # Errors
/// Those of ioctl(2) `TIOCSWINSZ`.
pub fn set_size(terminal: BorrowedFd<'_>, width: u16, height: u16) -> Result<()> {
    let size = libc::winsize {
        ws_row: height,
        ws_col: width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one struct winsize through the pointer.
    let returned =
        unsafe { libc::syscall(libc::SYS_ioctl, raw(terminal), TIOCSWINSZ, &raw const size) };
    check("ioctl", returned, || {
        format!("{}, TIOCSWINSZ, {width}x{height}", terminal.as_raw_fd())
    })
    .map(drop)
}

/// The size in characters: (width, height).
///
/// # Errors
/// Those of ioctl(2) `TIOCGWINSZ`.
pub fn size(terminal: BorrowedFd<'_>) -> Result<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes one struct winsize through the pointer.
    let returned =
        unsafe { libc::syscall(libc::SYS_ioctl, raw(terminal), TIOCGWINSZ, &raw mut size) };
    check("ioctl", returned, || {
        format!("{}, TIOCGWINSZ", terminal.as_raw_fd())
    })?;
    Ok((size.ws_col, size.ws_row))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn master_finds_its_peer_and_size() {
        let flags = libc::O_RDWR | libc::O_NOCTTY;
        let master = crate::path::openat(crate::fd::CWD, "/dev/ptmx", flags, 0).expect("ptmx");
        unlock(master.as_fd()).expect("unlock");
        let terminal = peer(master.as_fd()).expect("peer");
        set_size(master.as_fd(), 132, 43).expect("set size");
        assert_eq!(size(terminal.as_fd()).expect("size"), (132, 43));
        number(master.as_fd()).expect("a number");
        let null = crate::path::openat(crate::fd::CWD, "/dev/null", flags, 0).expect("null");
        assert_eq!(
            number(null.as_fd()).unwrap_err().errno(),
            crate::Errno::ENOTTY
        );
    }
}

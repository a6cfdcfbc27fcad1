//! Descriptors: making, copying, reading, writing, closing.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::c_long;

use crate::arg::Arg;
use crate::error::{Errno, Error, Result, check, check_retry};

/// The working directory, where a call takes a directory descriptor (`AT_FDCWD`).
// SAFETY: AT_FDCWD is not -1 and is never closed, since it is not a descriptor; every *at call of
// this crate hands it to the kernel unchanged.
pub const CWD: BorrowedFd<'static> = unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) };

/// Takes ownership of the descriptor a call has just returned.
pub(crate) fn owned(value: c_long) -> OwnedFd {
    let raw = RawFd::try_from(value).expect("the kernel returns descriptors as non-negative int");
    // SAFETY: callers pass the successful result of a call that creates a descriptor, so it is
    // open, not -1, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

pub(crate) fn raw(fd: BorrowedFd<'_>) -> c_long {
    c_long::from(fd.as_raw_fd())
}

/// Takes over the inherited standard stream `fd` (0, 1 or 2) as an owned descriptor: a
/// close-on-exec copy is made and /dev/null is put in its place, so that std's own handles stay
/// valid.
///
/// # Errors
/// `EBADF` if it is not open or not a standard stream; those of open(2) on /dev/null.
pub fn take_stdio(fd: RawFd) -> Result<OwnedFd> {
    if !(0..=2).contains(&fd) {
        return Err(Error::new("dup", fd.to_string(), Errno::EBADF));
    }
    // SAFETY: the standard streams are never owned by anything in std, only borrowed; if it is
    // closed the kernel answers EBADF.
    let stream = unsafe { BorrowedFd::borrow_raw(fd) };
    let copy = dup(stream)?;
    let null = crate::path::openat(CWD, c"/dev/null", libc::O_RDWR, 0)?;
    dup_to_stdio(std::os::fd::AsFd::as_fd(&null), fd)?;
    Ok(copy)
}

/// [`dup(2)`](https://man7.org/linux/man-pages/man2/dup.2.html), close-on-exec.
///
/// # Errors
/// Those of fcntl(2) `F_DUPFD_CLOEXEC`.
pub fn dup(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    dup_above(fd, 0)
}

/// A close-on-exec copy with a number of at least `lowest`.
///
/// # Errors
/// Those of fcntl(2) `F_DUPFD_CLOEXEC`.
pub fn dup_above(fd: BorrowedFd<'_>, lowest: RawFd) -> Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes an int.
    let value = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest) };
    let args = || format!("{}, F_DUPFD_CLOEXEC, {lowest}", fd.as_raw_fd());
    check("fcntl", c_long::from(value), args).map(owned)
}

/// Makes `fd` the standard stream `stdio` (0, 1 or 2), inherited by the next exec.
///
/// # Errors
/// `EBADF` for another number; those of dup3(2).
pub fn dup_to_stdio(fd: BorrowedFd<'_>, stdio: RawFd) -> Result<()> {
    let args = || format!("{}, {stdio}", fd.as_raw_fd());
    if !(0..=2).contains(&stdio) {
        return Err(Error::new("dup2", args(), Errno::EBADF));
    }
    if fd.as_raw_fd() == stdio {
        return set_cloexec(fd, false);
    }
    // SAFETY: plain integers; the target is a standard stream, which nothing in Rust owns.
    let value = unsafe { libc::dup2(fd.as_raw_fd(), stdio) };
    check("dup2", c_long::from(value), args).map(drop)
}

/// Sets or clears close-on-exec.
///
/// # Errors
/// Those of fcntl(2) `F_SETFD`.
pub fn set_cloexec(fd: BorrowedFd<'_>, on: bool) -> Result<()> {
    let flag = if on { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: F_SETFD takes an int.
    let value = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, flag) };
    check("fcntl", c_long::from(value), || {
        format!("{}, F_SETFD, {flag}", fd.as_raw_fd())
    })
    .map(drop)
}

/// Sets or clears `O_NONBLOCK` on the open file description.
///
/// # Errors
/// Those of fcntl(2) `F_GETFL` and `F_SETFL`.
pub fn set_nonblocking(fd: BorrowedFd<'_>, on: bool) -> Result<()> {
    // SAFETY: F_GETFL takes no argument.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    check("fcntl", c_long::from(flags), || {
        format!("{}, F_GETFL", fd.as_raw_fd())
    })?;
    let flags = if on {
        flags | libc::O_NONBLOCK
    } else {
        flags & !libc::O_NONBLOCK
    };
    // SAFETY: F_SETFL takes an int.
    let value = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) };
    check("fcntl", c_long::from(value), || {
        format!("{}, F_SETFL, {flags:#x}", fd.as_raw_fd())
    })
    .map(drop)
}

/// [`pipe2(2)`](https://man7.org/linux/man-pages/man2/pipe.2.html): (read end, write end).
/// `flags` may add `O_NONBLOCK`, `O_DIRECT`.
///
/// # Errors
/// Those of the call.
pub fn pipe2(flags: i32) -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: `ends` is an array of two ints that outlives the call.
    let value = unsafe { libc::pipe2(ends.as_mut_ptr(), flags | libc::O_CLOEXEC) };
    check("pipe2", c_long::from(value), || format!("{flags:#x}"))?;
    Ok((owned(c_long::from(ends[0])), owned(c_long::from(ends[1]))))
}

/// A pipe without further flags: (read end, write end).
///
/// # Errors
/// Those of pipe2(2).
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe2(0)
}

/// Sets how many bytes a pipe holds at most; memory is taken only for what is in it.
///
/// # Errors
/// Those of fcntl(2) `F_SETPIPE_SZ`: `EPERM` above `/proc/sys/fs/pipe-max-size` without the
/// privilege for it.
pub fn set_pipe_size(pipe: BorrowedFd<'_>, bytes: i32) -> Result<()> {
    // SAFETY: F_SETPIPE_SZ takes an int.
    let value = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) };
    check("fcntl", c_long::from(value), || {
        format!("{}, F_SETPIPE_SZ, {bytes}", pipe.as_raw_fd())
    })
    .map(drop)
}

/// [`read(2)`](https://man7.org/linux/man-pages/man2/read.2.html), repeated when interrupted.
///
/// # Errors
/// Those of the call.
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    let length = buffer.len();
    let value = check_retry(
        "read",
        // SAFETY: pointer and length describe `buffer`, which is exclusively borrowed.
        || unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), length) as c_long },
        || format!("{}, {length}", fd.as_raw_fd()),
    )?;
    Ok(usize::try_from(value).expect("read returns a non-negative count"))
}

/// [`write(2)`](https://man7.org/linux/man-pages/man2/write.2.html), repeated when interrupted.
/// May write less than asked.
///
/// # Errors
/// Those of the call.
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize> {
    let value = check_retry(
        "write",
        // SAFETY: pointer and length describe `bytes`, which is borrowed.
        || unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) as c_long },
        || format!("{}, {}", fd.as_raw_fd(), bytes.len()),
    )?;
    Ok(usize::try_from(value).expect("write returns a non-negative count"))
}

/// Writes all of `bytes`.
///
/// # Errors
/// Those of write(2); `EIO` if the kernel takes nothing.
pub fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let count = write(fd, bytes)?;
        if count == 0 {
            return Err(Error::new("write", fd.as_raw_fd().to_string(), Errno::EIO));
        }
        bytes = &bytes[count..];
    }
    Ok(())
}

/// Reads until the buffer is full or the end of the file; returns what was read.
///
/// # Errors
/// Those of read(2).
pub fn read_full(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match read(fd, &mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// [`memfd_create(2)`](https://man7.org/linux/man-pages/man2/memfd_create.2.html), sealable.
///
/// # Errors
/// Those of the call.
pub fn memfd_create<P: Arg + ?Sized>(name: &P) -> Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    name.with_c_str("memfd_create", |c_name| {
        // SAFETY: `c_name` is NUL-terminated and outlives the call.
        let value = unsafe { libc::memfd_create(c_name.as_ptr(), flags) };
        check("memfd_create", c_long::from(value), || name.show()).map(owned)
    })
}

/// Seals a memfd against any change of content or size, and against further seals.
///
/// # Errors
/// Those of fcntl(2) `F_ADD_SEALS`.
pub fn seal(fd: BorrowedFd<'_>) -> Result<()> {
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: F_ADD_SEALS takes an int.
    let value = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    check("fcntl", c_long::from(value), || {
        format!("{}, F_ADD_SEALS", fd.as_raw_fd())
    })
    .map(drop)
}

/// Whether a descriptor is a memfd that nobody can change any more: what a receiver must check
/// before it trusts the size or maps the content.
#[must_use]
pub fn is_sealed(fd: BorrowedFd<'_>) -> bool {
    let wanted = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: F_GET_SEALS takes no argument.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    seals >= 0 && seals & wanted == wanted
}

/// A sealed memfd holding `content`, its offset at the start.
///
/// # Errors
/// Those of memfd_create(2), write(2) and sealing.
pub fn sealed_memfd<P: Arg + ?Sized>(name: &P, content: &[u8]) -> Result<OwnedFd> {
    use std::os::fd::AsFd;
    let fd = memfd_create(name)?;
    write_all(fd.as_fd(), content)?;
    seal(fd.as_fd())?;
    // SAFETY: plain integers.
    let value = unsafe { libc::lseek(fd.as_raw_fd(), 0, libc::SEEK_SET) };
    check("lseek", value, || format!("{}, 0", fd.as_raw_fd()))?;
    Ok(fd)
}

/// [`close_range(2)`](https://man7.org/linux/man-pages/man2/close_range.2.html) with
/// `CLOSE_RANGE_CLOEXEC`: everything from `first` on closes at the next exec. Owned descriptors
/// stay usable until then, which is why the closing variant is not offered.
///
/// # Errors
/// Those of the call; `EINVAL` below kernel 5.11.
pub fn close_range_cloexec(first: u32) -> Result<()> {
    const CLOSE_RANGE_CLOEXEC: c_long = 1 << 2;
    // SAFETY: plain integers.
    let value = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            c_long::from(first),
            c_long::from(u32::MAX),
            CLOSE_RANGE_CLOEXEC,
        )
    };
    check("close_range", value, || {
        format!("{first}, ~0, CLOSE_RANGE_CLOEXEC")
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn sealed_memfd_keeps_content_and_refuses_writes() {
        let fd = sealed_memfd("crisp-test", b"plan").expect("memfd");
        assert!(is_sealed(fd.as_fd()));
        assert_eq!(write(fd.as_fd(), b"x").unwrap_err().errno(), Errno::EPERM);
        let mut buffer = [0; 8];
        assert_eq!(read_full(fd.as_fd(), &mut buffer).expect("read"), 4);
        assert_eq!(&buffer[..4], b"plan");
        let open = memfd_create("crisp-test").expect("memfd");
        assert!(!is_sealed(open.as_fd()));
    }

    #[test]
    fn pipe_ends_are_cloexec_and_connected() {
        let (reader, writer) = pipe().expect("pipe");
        // SAFETY: F_GETFD takes no pointer.
        let flags = unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        write_all(writer.as_fd(), b"abc").expect("write");
        drop(writer);
        let mut buffer = [0; 8];
        assert_eq!(read_full(reader.as_fd(), &mut buffer).expect("read"), 3);
    }

    #[test]
    fn only_standard_streams_can_be_replaced() {
        let (reader, _writer) = pipe().expect("pipe");
        assert_eq!(
            dup_to_stdio(reader.as_fd(), 3).unwrap_err().errno(),
            Errno::EBADF
        );
    }
}

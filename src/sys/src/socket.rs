//! Unix sockets that carry messages and descriptors.

use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::c_long;

use crate::error::{Errno, Error, Result, check, check_retry};
use crate::fd::owned;

/// Most descriptors one message carries here; the kernel's own limit is 253 (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

/// Who is at the other end of a connected socket, as of its connect or socketpair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCred {
    /// Process id in our PID namespace, 0 if it is not visible from there.
    pub pid: i32,
    /// User id in our user namespace.
    pub uid: u32,
    /// Group id in our user namespace.
    pub gid: u32,
}

/// A connected pair of `SOCK_SEQPACKET` sockets.
///
/// # Errors
/// Those of socketpair(2).
pub fn seqpacket_pair() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `ends` is an array of two ints that outlives the call.
    let value = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) };
    check("socketpair", c_long::from(value), || {
        "AF_UNIX, SOCK_SEQPACKET".into()
    })?;
    Ok((owned(c_long::from(ends[0])), owned(c_long::from(ends[1]))))
}

fn seqpacket() -> Result<OwnedFd> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: plain integers.
    let value = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    check("socket", c_long::from(value), || {
        "AF_UNIX, SOCK_SEQPACKET".into()
    })
    .map(owned)
}

/// The address `/proc/self/fd/<dir>/<name>`, which fits `sun_path` however long the directory's
/// own path is.
fn address(
    call: &'static str,
    dir: BorrowedFd<'_>,
    name: &str,
) -> Result<(libc::sockaddr_un, libc::socklen_t)> {
    let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
    // SAFETY: all-zero is a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).expect("it is 1");
    let fits = path.len() < address.sun_path.len();
    if !fits || name.is_empty() || name.contains('/') || path.contains('\0') {
        return Err(Error::new(call, format!("{path:?}"), Errno::EINVAL));
    }
    for (slot, byte) in address.sun_path.iter_mut().zip(path.bytes()) {
        *slot = byte.cast_signed();
    }
    let length = mem::offset_of!(libc::sockaddr_un, sun_path) + path.len() + 1;
    let length = libc::socklen_t::try_from(length).expect("at most 110");
    Ok((address, length))
}

/// A listening `SOCK_SEQPACKET` socket at `name` in the directory `dir`, made with mode 0600 under
/// the process's umask being 0077 or stricter; the caller sees to the directory's own mode. An
/// existing entry is not replaced (`EADDRINUSE`).
///
/// # Errors
/// Those of bind(2) and listen(2); `EINVAL` for a name that is empty, holds `/` or is too long.
pub fn seqpacket_listener(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let (address, length) = address("bind", dir, name)?;
    let socket = seqpacket()?;
    // The mode of the inode that bind makes is taken from the socket's own.
    // SAFETY: plain integers.
    let value = unsafe { libc::fchmod(socket.as_raw_fd(), 0o600) };
    check("fchmod", c_long::from(value), || {
        format!("{}, 0600", socket.as_raw_fd())
    })?;
    // SAFETY: `address` holds `length` initialised bytes.
    let value = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    check("bind", c_long::from(value), || {
        format!("{}, {name:?}", dir.as_raw_fd())
    })?;
    // SAFETY: plain integers.
    let value = unsafe { libc::listen(socket.as_raw_fd(), 64) };
    check("listen", c_long::from(value), || {
        socket.as_raw_fd().to_string()
    })?;
    Ok(socket)
}

/// Connects to the listener at `name` in the directory `dir`.
///
/// # Errors
/// Those of connect(2): `ENOENT` without a socket file, `ECONNREFUSED` without a listener.
pub fn seqpacket_connect(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let (address, length) = address("connect", dir, name)?;
    let socket = seqpacket()?;
    check_retry(
        "connect",
        // SAFETY: `address` holds `length` initialised bytes.
        || unsafe {
            c_long::from(libc::connect(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                length,
            ))
        },
        || format!("{}, {name:?}", dir.as_raw_fd()),
    )?;
    Ok(socket)
}

/// [`accept4(2)`](https://man7.org/linux/man-pages/man2/accept.2.html).
///
/// # Errors
/// Those of the call.
pub fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd> {
    check_retry(
        "accept4",
        // SAFETY: the kernel accepts null for both address and length.
        || unsafe {
            c_long::from(libc::accept4(
                listener.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC,
            ))
        },
        || listener.as_raw_fd().to_string(),
    )
    .map(owned)
}

/// Room for the control message of [`MAX_FDS`] descriptors, aligned as cmsghdr needs it.
#[repr(C, align(8))]
struct Control([u8; 16 + MAX_FDS * 4 + 4]);

/// Sends one message with descriptors. Never raises SIGPIPE.
///
/// # Errors
/// `EINVAL` for more than [`MAX_FDS`] descriptors or descriptors without a byte; those of
/// sendmsg(2).
pub fn send_with_fds(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<usize> {
    let args = || {
        format!(
            "{}, {} bytes, {} descriptors",
            socket.as_raw_fd(),
            bytes.len(),
            fds.len()
        )
    };
    if fds.len() > MAX_FDS || (!fds.is_empty() && bytes.is_empty()) {
        return Err(Error::new("sendmsg", args(), Errno::EINVAL));
    }
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut control = Control([0; 16 + MAX_FDS * 4 + 4]);
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        let payload = u32::try_from(fds.len() * 4).expect("at most 253 descriptors");
        message.msg_control = (&raw mut control).cast();
        // SAFETY: CMSG_SPACE only computes.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(payload) } as _;
        // SAFETY: msg_control points at a zeroed, aligned buffer of at least msg_controllen
        // bytes, so the first header lies inside it and its data has room for `payload` bytes.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(payload) as _;
            let mut slot = libc::CMSG_DATA(header).cast::<RawFd>();
            for fd in fds {
                slot.write_unaligned(fd.as_raw_fd());
                slot = slot.add(1);
            }
        }
    }
    let value = check_retry(
        "sendmsg",
        // SAFETY: `message` points at `iov` and `control`, which outlive the call; sendmsg does
        // not write through iov_base.
        || unsafe {
            libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) as c_long
        },
        args,
    )?;
    Ok(usize::try_from(value).expect("sendmsg returns a non-negative count"))
}

/// Receives one message with at most `max_fds` descriptors (close-on-exec). A message or a
/// descriptor list that did not fit is an error, and what came of it is closed. A count of 0
/// means the peer is gone.
///
/// # Errors
/// `EMSGSIZE` for a truncated message or too many descriptors; those of recvmsg(2).
pub fn recv_with_fds(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    max_fds: usize,
) -> Result<(usize, Vec<OwnedFd>)> {
    let length = buffer.len();
    let args = || {
        format!(
            "{}, {length} bytes, {max_fds} descriptors",
            socket.as_raw_fd()
        )
    };
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: length,
    };
    let mut control = Control([0; 16 + MAX_FDS * 4 + 4]);
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    let value = check_retry(
        "recvmsg",
        // SAFETY: `message` points at `iov` (over the exclusively borrowed buffer) and `control`,
        // which outlive the call. An interrupted call has not touched the lengths.
        || unsafe {
            libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) as c_long
        },
        args,
    )?;
    let fds = received(&message);
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 || fds.len() > max_fds {
        return Err(Error::new("recvmsg", args(), Errno::EMSGSIZE));
    }
    Ok((
        usize::try_from(value).expect("recvmsg returns a non-negative count"),
        fds,
    ))
}

/// Takes ownership of every descriptor of a received message.
fn received(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: recvmsg filled msg_control and set msg_controllen to what it wrote, so the headers
    // CMSG_FIRSTHDR and CMSG_NXTHDR walk lie inside it, each followed by cmsg_len minus header
    // bytes of data; for SCM_RIGHTS these are descriptors the kernel installed for us alone.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let mut slot = libc::CMSG_DATA(header).cast::<RawFd>();
                for _ in 0..bytes / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(slot.read_unaligned()));
                    slot = slot.add(1);
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    fds
}

/// Who connected, by `SO_PEERCRED`.
///
/// # Errors
/// Those of getsockopt(2).
pub fn peer_cred(socket: BorrowedFd<'_>) -> Result<PeerCred> {
    const UCRED: libc::socklen_t = 12;
    let mut cred = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = UCRED;
    // SAFETY: `cred` has `length` bytes, both outlive the call.
    let value = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut length,
        )
    };
    check("getsockopt", c_long::from(value), || {
        format!("{}, SO_PEERCRED", socket.as_raw_fd())
    })?;
    Ok(PeerCred {
        pid: cred.pid,
        uid: cred.uid,
        gid: cred.gid,
    })
}

/// Sets the send and receive buffer sizes in bytes (the kernel doubles and caps them).
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_buffers(socket: BorrowedFd<'_>, bytes: i32) -> Result<()> {
    const INT: libc::socklen_t = 4;
    for option in [libc::SO_SNDBUF, libc::SO_RCVBUF] {
        // SAFETY: the option is an int, and that is what pointer and length describe.
        let value = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const bytes).cast(),
                INT,
            )
        };
        check("setsockopt", c_long::from(value), || {
            format!("{}, {option}, {bytes}", socket.as_raw_fd())
        })?;
    }
    Ok(())
}

/// Ends a connection in both directions
/// ([`shutdown(2)`](https://man7.org/linux/man-pages/man2/shutdown.2.html)); the descriptor stays.
///
/// # Errors
/// `ENOTCONN` if it is not connected.
pub fn shutdown(socket: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: plain integers.
    let value = unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
    check("shutdown", c_long::from(value), || {
        format!("{}, SHUT_RDWR", socket.as_raw_fd())
    })
    .map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn descriptors_travel_and_too_many_are_refused_and_closed() {
        let (a, b) = seqpacket_pair().expect("pair");
        let (reader, writer) = crate::fd::pipe().expect("pipe");
        send_with_fds(a.as_fd(), b"two", &[reader.as_fd(), writer.as_fd()]).expect("send");
        let mut buffer = [0; 16];
        let (count, fds) = recv_with_fds(b.as_fd(), &mut buffer, 2).expect("recv");
        assert_eq!((&buffer[..count], fds.len()), (&b"two"[..], 2));

        send_with_fds(a.as_fd(), b"two", &[reader.as_fd(), writer.as_fd()]).expect("send");
        let error = recv_with_fds(b.as_fd(), &mut buffer, 1).unwrap_err();
        assert_eq!(error.errno(), Errno::EMSGSIZE);
        drop((fds, writer));
        // Only if the refused copies of the write end were closed does the pipe end.
        assert_eq!(
            crate::fd::read(reader.as_fd(), &mut buffer).expect("read"),
            0
        );
    }

    #[test]
    fn truncated_message_is_an_error_and_end_is_zero() {
        let (a, b) = seqpacket_pair().expect("pair");
        send_with_fds(a.as_fd(), b"long message", &[]).expect("send");
        let mut buffer = [0; 4];
        let error = recv_with_fds(b.as_fd(), &mut buffer, 0).unwrap_err();
        assert_eq!(error.errno(), Errno::EMSGSIZE);
        drop(a);
        assert_eq!(recv_with_fds(b.as_fd(), &mut buffer, 0).expect("end").0, 0);
        assert_eq!(
            send_with_fds(b.as_fd(), b"x", &[]).unwrap_err().errno(),
            Errno::EPIPE
        );
    }

    #[test]
    fn most_descriptors_the_kernel_allows_fit() {
        let (a, b) = seqpacket_pair().expect("pair");
        let (reader, _writer) = crate::fd::pipe().expect("pipe");
        let many = vec![reader.as_fd(); MAX_FDS];
        send_with_fds(a.as_fd(), b"x", &many).expect("send");
        let (_, fds) = recv_with_fds(b.as_fd(), &mut [0; 4], MAX_FDS).expect("recv");
        assert_eq!(fds.len(), MAX_FDS);
    }

    #[test]
    fn listener_works_below_a_path_longer_than_sun_path() {
        let top = tempfile::tempdir().expect("tempdir");
        let deep = top.path().join("d".repeat(120)).join("e".repeat(120));
        std::fs::create_dir_all(&deep).expect("mkdir");
        let dir = File::open(&deep).expect("open");
        let missing = seqpacket_connect(dir.as_fd(), "s.sock").unwrap_err();
        assert_eq!(missing.errno(), Errno::ENOENT);
        let listener = seqpacket_listener(dir.as_fd(), "s.sock").expect("listen");
        let mode = std::fs::metadata(deep.join("s.sock"))
            .expect("stat")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let client = seqpacket_connect(dir.as_fd(), "s.sock").expect("connect");
        let server = accept(listener.as_fd()).expect("accept");
        let cred = peer_cred(server.as_fd()).expect("cred");
        assert_eq!(u32::try_from(cred.pid).expect("pid"), std::process::id());
        drop((listener, client));
        let refused = seqpacket_connect(dir.as_fd(), "s.sock").unwrap_err();
        assert_eq!(refused.errno(), Errno::ECONNREFUSED);
        let bad = seqpacket_connect(dir.as_fd(), "../s.sock").unwrap_err();
        assert_eq!(bad.errno(), Errno::EINVAL);
    }
}

//! Network interfaces of the namespace the caller is in.

use std::os::fd::AsRawFd;

use libc::c_long;

use crate::error::{Result, check};
use crate::fd::owned;

/// `IFF_UP | IFF_RUNNING`, as the request's 16-bit field has them.
const UP_AND_RUNNING: libc::c_short = 0x41;

/// Sets the loopback interface up
/// ([`netdevice(7)`](https://man7.org/linux/man-pages/man7/netdevice.7.html)); the kernel then gives
/// it 127.0.0.1/8 and ::1/128 by itself.
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN in the namespace.
pub fn loopback_up() -> Result<()> {
    // SAFETY: plain integers.
    let value = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    let socket = owned(check("socket", c_long::from(value), || {
        "AF_INET, SOCK_DGRAM".to_owned()
    })?);
    // SAFETY: all-zero bytes are a valid ifreq: an empty name and a zero union.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *slot = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = UP_AND_RUNNING;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which outlives the call; the name is terminated.
    let value = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    check("ioctl", c_long::from(value), || {
        "SIOCSIFFLAGS, lo, IFF_UP".to_owned()
    })
    .map(|_| ())
}

//! The client's TCP connection, seen from beside what reads and writes it.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{setsockopt, sockopt},
};
use tokio::net::TcpStream;

/// After how much silence the kernel asks whether a client is still there, and how often, before it
/// gives up: a machine that vanished sends no end.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_COUNT: u32 = 4;

/// A second descriptor of a client's socket. It is dropped with the connection, which it would keep
/// open.
#[derive(Debug, Clone)]
pub struct Peer {
    socket: Arc<OwnedFd>,
}

impl Peer {
    /// Of an accepted connection; sets it up for streams.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn of(stream: &TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let socket = stream.as_fd().try_clone_to_owned()?;
        setsockopt(&socket, sockopt::KeepAlive, &true)?;
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        setsockopt(&socket, sockopt::TcpKeepIdle, &seconds(KEEPALIVE))?;
        setsockopt(
            &socket,
            sockopt::TcpKeepInterval,
            &seconds(KEEPALIVE_INTERVAL),
        )?;
        setsockopt(&socket, sockopt::TcpKeepCount, &KEEPALIVE_COUNT)?;
        Ok(Self {
            socket: Arc::new(socket),
        })
    }

    /// Whether the client has ended the connection, even if there is more to read.
    #[must_use]
    pub fn has_hung_up(&self) -> bool {
        // nix has no name for this one; hang-ups and errors are reported unasked.
        let ends = PollFlags::from_bits_retain(libc::POLLRDHUP);
        let mut descriptors = [PollFd::new(self.socket.as_fd(), ends)];
        matches!(poll(&mut descriptors, PollTimeout::ZERO), Ok(1..))
    }
}

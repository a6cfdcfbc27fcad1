//! Moves bytes between a client's streams and a process' pipes or terminal.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use bytes::Bytes;
use crisp_sys::Errno;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
    time::Instant,
};

use super::mux::{CHUNK, Incoming, Lost, Reader, Writer};

/// How long what a process has left behind may still print after its end. What the process itself has
/// printed lies in the pipe by then.
pub const PIPE_GRACE: Duration = Duration::from_millis(250);
/// The same for a terminal, whose end the kernel tells when everything printed can be read.
pub const TERMINAL_GRACE: Duration = Duration::from_secs(2);
/// Most bytes a pipe can hold.
const MAX_PIPE: usize = 1024 * 1024;

/// One end of a pipe, or the master of a terminal. Non-blocking.
#[derive(Debug)]
pub struct Descriptor(AsyncFd<OwnedFd>);

impl Descriptor {
    /// Takes over a non-blocking descriptor. Must be called inside the tokio runtime.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        #[expect(
            deprecated,
            reason = "its successor is unsafe, and this value owns its descriptor for as long as it lives"
        )]
        AsyncFd::new(descriptor).map(Self)
    }

    /// The descriptor itself, not watched any more.
    #[must_use]
    pub fn into_inner(self) -> OwnedFd {
        self.0.into_inner()
    }

    /// Sets the size of the terminal it is the master of.
    ///
    /// # Errors
    /// When it is none.
    pub fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        crisp_sys::tty::set_size(self.0.get_ref().as_fd(), width, height).map_err(io::Error::from)
    }

    async fn read(&self, room: &mut [u8]) -> io::Result<usize> {
        self.0
            .async_io(Interest::READABLE, |descriptor| read(descriptor, room))
            .await
    }

    /// What is there now, asked of the kernel: the runtime may not have noticed it yet. None:
    /// nothing. No bytes: the end.
    fn read_now(&self, room: &mut [u8]) -> io::Result<Option<usize>> {
        match read(self.0.get_ref(), room) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            other => other.map(Some),
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.0.async_io(Interest::WRITABLE, |descriptor| {
                crisp_sys::fd::write(descriptor.as_fd(), bytes).map_err(io::Error::from)
            });
            bytes = &bytes[written.await?..];
        }
        Ok(())
    }
}

fn read(descriptor: &OwnedFd, room: &mut [u8]) -> io::Result<usize> {
    match crisp_sys::fd::read(descriptor.as_fd(), room) {
        // How a terminal ends whose other side is closed.
        Err(error) if error.errno() == Errno::EIO => Ok(0),
        other => other.map_err(io::Error::from),
    }
}

/// How a process' output came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Nobody can write to it any more.
    Ended,
    /// Somebody can, but the process that was run is over.
    LeftOpen,
}

/// Sends what comes from a process to the client, or nowhere, until the end. `ended` tells when the
/// process was over: then what it printed is sent, and little more is waited for.
///
/// # Errors
/// When the client is gone.
pub async fn drain(
    from: &Descriptor,
    to: Option<&Writer>,
    grace: Duration,
    mut ended: watch::Receiver<Option<Instant>>,
) -> Result<Drained, Lost> {
    let mut room = vec![0_u8; CHUNK];
    let end = loop {
        let count = tokio::select! {
            count = from.read(&mut room) => count,
            end = ended.wait_for(Option::is_some) => {
                break end.ok().and_then(|end| *end).unwrap_or_else(Instant::now);
            }
        };
        match count {
            Ok(count @ 1..) => forward(&room[..count], to).await?,
            Ok(0) | Err(_) => return Ok(Drained::Ended),
        }
    };
    let deadline = end + grace;
    let mut left = MAX_PIPE;
    loop {
        let count = match from.read_now(&mut room) {
            Ok(Some(count)) => Ok(count),
            Ok(None) => match tokio::time::timeout_at(deadline, from.read(&mut room)).await {
                Ok(count) => count,
                Err(_) => return Ok(Drained::LeftOpen),
            },
            Err(error) => Err(error),
        };
        match count {
            Ok(count @ 1..) => {
                forward(&room[..count], to).await?;
                left = left.saturating_sub(count);
            }
            Ok(0) | Err(_) => return Ok(Drained::Ended),
        }
        // Somebody who prints for ever.
        if left == 0 && deadline < Instant::now() {
            return Ok(Drained::LeftOpen);
        }
    }
}

async fn forward(bytes: &[u8], to: Option<&Writer>) -> Result<(), Lost> {
    match to {
        Some(writer) => writer.send(Bytes::copy_from_slice(bytes)).await,
        None => Ok(()),
    }
}

/// Why no more goes into a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fed {
    /// The client has ended its input.
    ClientDone,
    /// The process takes no more.
    ProcessDone,
}

/// Gives the client's bytes to a process. Never ends when the client is gone: that is told to
/// everybody at once, elsewhere.
pub async fn feed(from: &mut Reader, to: &Descriptor) -> Fed {
    loop {
        match from.next().await {
            Incoming::Data(bytes) => {
                if to.write_all(&bytes).await.is_err() {
                    return Fed::ProcessDone;
                }
            }
            Incoming::End | Incoming::Reset => return Fed::ClientDone,
            Incoming::Lost => std::future::pending().await,
        }
    }
}

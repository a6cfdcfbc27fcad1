//! The one socket between a parent and the child it is making.
//!
//! Child to parent: `I` with the init that a first child made, `C` with the terminal's master, `H` when
//! the root is built and hooks are to run, `R` when all but exec is done, `E` with a failure; the end of
//! the stream means exec succeeded (the socket is close-on-exec) or the child died. Parent to child: one
//! byte says that hooks have run, or opens the gate; the end of the stream means nobody will.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crisp_sys::clone::Child;
use crisp_sys::{Errno, Error, event, socket};

use super::error::{ChildFailure, Failure, Stage};

const POLLIN: i16 = 1;
/// Longest failure text.
const TEXT: usize = 1024;

/// What a child says.
#[derive(Debug)]
pub(super) enum Message {
    /// The init, made by the child that was.
    Init(Child),
    Console(OwnedFd),
    Built,
    Ready,
    Failed(ChildFailure),
    /// It executed the program, or died.
    Ended,
}

/// The child's end.
#[derive(Debug)]
pub(super) struct ChildEnd(pub(super) OwnedFd);

/// The parent's end.
#[derive(Debug)]
pub(super) struct ParentEnd(OwnedFd);

pub(super) fn pair() -> crisp_sys::Result<(ParentEnd, ChildEnd)> {
    let (parent, child) = socket::seqpacket_pair()?;
    Ok((ParentEnd(parent), ChildEnd(child)))
}

impl ChildEnd {
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(super) fn console(&self, master: BorrowedFd<'_>) -> crisp_sys::Result<()> {
        socket::send_with_fds(self.as_fd(), b"C", &[master]).map(drop)
    }

    pub(super) fn init(&self, init: &Child) -> crisp_sys::Result<()> {
        let [a, b, c, d] = init.pid.to_le_bytes();
        socket::send_with_fds(self.as_fd(), &[b'I', a, b, c, d], &[init.pidfd.as_fd()]).map(drop)
    }

    pub(super) fn built(&self) -> crisp_sys::Result<()> {
        socket::send_with_fds(self.as_fd(), b"H", &[]).map(drop)
    }

    pub(super) fn ready(&self) -> crisp_sys::Result<()> {
        socket::send_with_fds(self.as_fd(), b"R", &[]).map(drop)
    }

    /// Waits for the parent's byte. False if it is gone.
    pub(super) fn wait(&self) -> crisp_sys::Result<bool> {
        let mut byte = [0];
        crisp_sys::fd::read(self.as_fd(), &mut byte).map(|count| count == 1)
    }

    /// Best effort: a parent that is gone, or a filter that forbids it, needs no failure.
    pub(super) fn fail(&self, failure: &Failure) {
        let mut bytes = Vec::with_capacity(6 + failure.message.len());
        bytes.extend_from_slice(&[b'E', failure.stage as u8]);
        bytes.extend_from_slice(&failure.errno.0.to_le_bytes());
        let text = failure.message.as_bytes();
        bytes.extend_from_slice(&text[..text.len().min(TEXT)]);
        let _ = socket::send_with_fds(self.as_fd(), &bytes, &[]);
    }
}

impl ParentEnd {
    /// Lets the child go on.
    pub(super) fn open(&self) -> crisp_sys::Result<()> {
        socket::send_with_fds(self.0.as_fd(), b"G", &[]).map(drop)
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Waits until the child has closed its end, by executing its program or by dying. What it said
    /// before can still be received. False if the deadline came first.
    pub(super) fn hung_up(&self, deadline: Instant) -> crisp_sys::Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Asked for nothing, poll tells of a hang-up alone: on a busy machine every look at a
            // message would be a turn that somebody else has to give up.
            if event::poll(self.0.as_fd(), 0, Some(left))? {
                return Ok(true);
            }
            if left.is_zero() {
                return Ok(false);
            }
        }
    }

    /// The next message; `ETIMEDOUT` when the deadline passes first.
    pub(super) fn receive(&self, deadline: Option<Instant>) -> crisp_sys::Result<Message> {
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if event::poll(self.0.as_fd(), POLLIN, left)? {
                break;
            }
            if left == Some(Duration::ZERO) {
                return Err(Error::new("poll", "the child's channel", Errno::ETIMEDOUT));
            }
        }
        let mut buffer = [0; 6 + TEXT];
        let (count, fds) = match socket::recv_with_fds(self.0.as_fd(), &mut buffer, 1) {
            // The child died with something of ours unread.
            Err(error) if error.errno == Errno::ECONNRESET => return Ok(Message::Ended),
            other => other?,
        };
        parse(&buffer[..count], fds)
            .ok_or_else(|| Error::new("recvmsg", "the child's channel", Errno::EBADMSG))
    }
}

fn parse(bytes: &[u8], fds: Vec<OwnedFd>) -> Option<Message> {
    match bytes {
        [] => Some(Message::Ended),
        [b'I', a, b, c, d] => fds.into_iter().next().map(|pidfd| {
            let pid = i32::from_le_bytes([*a, *b, *c, *d]);
            Message::Init(Child { pid, pidfd })
        }),
        [b'C'] => fds.into_iter().next().map(Message::Console),
        [b'H'] => Some(Message::Built),
        [b'R'] => Some(Message::Ready),
        [b'E', stage, a, b, c, d, text @ ..] => Some(Message::Failed(ChildFailure {
            stage: Stage::from_number(*stage)?,
            errno: Errno(i32::from_le_bytes([*a, *b, *c, *d])),
            message: String::from_utf8_lossy(text).into_owned(),
        })),
        _ => None,
    }
}

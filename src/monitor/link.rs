//! The socket to one monitor: requests with their replies, and the events that come unasked.
//!
//! One task reads. It completes the waiting request by its sequence number, the waiting exec by its
//! number, and hands everything else to the driver of the container. When the socket ends, every
//! waiter learns it at once.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use conmon_rs::protocol::{DecodeError, Event, Frame, MAX_FRAME, Reply, Request};
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot},
};

use super::MonitorError;

/// How an exec'd process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecExit {
    /// 0 to 255; 128 + n for a death by signal n.
    pub code: i32,
    /// The signal, or 0.
    pub signal: i32,
}

/// What a monitor says unasked.
#[derive(Debug)]
pub enum Notice {
    /// An event of the protocol other than the end of an exec.
    Event(Event),
    /// The socket ended: the monitor closed it or is gone.
    Closed,
}

/// A reply.
pub(super) struct Answer {
    pub(super) reply: Reply,
    /// For an `ExecStarted`: where its end will be told.
    pub(super) exec_end: Option<oneshot::Receiver<ExecExit>>,
    /// What came with it.
    pub(super) descriptors: Vec<OwnedFd>,
}

/// The socket to a monitor. Cloning shares it.
#[derive(Clone)]
pub(super) struct Link {
    shared: Arc<Shared>,
}

struct Shared {
    socket: AsyncFd<OwnedFd>,
    // Held for map operations only.
    waiting: Mutex<Waiting>,
    // One frame at a time, so that a request and its descriptors stay together.
    sending: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Waiting {
    next_seq: u64,
    replies: HashMap<u64, oneshot::Sender<Answer>>,
    execs: HashMap<u64, oneshot::Sender<ExecExit>>,
    closed: bool,
}

impl Link {
    /// Takes over a connected sequenced-packet socket and starts to read it, until it ends or
    /// [`Link::close`] ends it. Must be called inside the tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be watched.
    pub(super) fn start(
        socket: OwnedFd,
        notices: mpsc::UnboundedSender<Notice>,
    ) -> io::Result<Self> {
        crisp_sys::fd::set_nonblocking(socket.as_fd(), true).map_err(io::Error::from)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe, and this value owns its descriptor for as long as it lives"
        )]
        let shared = Arc::new(Shared {
            socket: AsyncFd::new(socket)?,
            waiting: Mutex::default(),
            sending: tokio::sync::Mutex::new(()),
        });
        let reading = Arc::clone(&shared);
        tokio::spawn(async move { reading.read_all(&notices).await });
        Ok(Self { shared })
    }

    /// Sends a request and waits for its reply, without a time limit: the caller has one.
    pub(super) async fn call(
        &self,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Answer, MonitorError> {
        let (sender, receiver) = oneshot::channel();
        let seq = {
            let mut waiting = self.shared.lock();
            if waiting.closed {
                return Err(MonitorError::Gone);
            }
            waiting.next_seq += 1;
            let seq = waiting.next_seq;
            waiting.replies.insert(seq, sender);
            seq
        };
        let forget = ForgetReply {
            shared: &self.shared,
            seq,
        };
        let frame = Frame::Request { seq, request }.encode();
        self.shared
            .send(&frame, descriptors)
            .await
            .map_err(MonitorError::Send)?;
        let answer = receiver.await.map_err(|_| MonitorError::Gone)?;
        drop(forget);
        Ok(answer)
    }

    /// Ends the connection; the monitor and its container go on.
    pub(super) fn close(&self) {
        crisp_sys::socket::shutdown(self.shared.socket.get_ref().as_fd()).ok();
    }
}

/// Forgets a request whose caller gave up, so that its slot does not stay.
struct ForgetReply<'a> {
    shared: &'a Shared,
    seq: u64,
}

impl Drop for ForgetReply<'_> {
    fn drop(&mut self) {
        self.shared.lock().replies.remove(&self.seq);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, frame: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let _turn = self.sending.lock().await;
        loop {
            let mut ready = self.socket.writable().await?;
            let sent = ready.try_io(|socket| {
                crisp_sys::socket::send_with_fds(socket.get_ref().as_fd(), frame, descriptors)
                    .map_err(io::Error::from)
            });
            match sent {
                Ok(result) => return result.map(|_| ()),
                Err(_would_block) => {}
            }
        }
    }

    async fn read_all(&self, notices: &mpsc::UnboundedSender<Notice>) {
        let mut buffer = vec![0_u8; MAX_FRAME];
        loop {
            match self.read_one(&mut buffer).await {
                Ok(Some((frame, descriptors))) => self.dispatch(frame, descriptors, notices),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "monitor socket failed");
                    break;
                }
            }
        }
        let (replies, execs) = {
            let mut waiting = self.lock();
            waiting.closed = true;
            (
                std::mem::take(&mut waiting.replies),
                std::mem::take(&mut waiting.execs),
            )
        };
        // Dropping the senders wakes every waiter with "gone".
        drop((replies, execs));
        notices.send(Notice::Closed).ok();
    }

    async fn read_one(&self, buffer: &mut [u8]) -> io::Result<Option<(Frame, Vec<OwnedFd>)>> {
        loop {
            let mut ready = self.socket.readable().await?;
            let received = ready.try_io(|socket| {
                crisp_sys::socket::recv_with_fds(socket.get_ref().as_fd(), buffer, 16)
                    .map_err(io::Error::from)
            });
            match received {
                Ok(Ok((0, _))) => return Ok(None),
                Ok(Ok((length, descriptors))) => match Frame::decode(&buffer[..length]) {
                    Ok(frame) => return Ok(Some((frame, descriptors))),
                    // An event of a later release means nothing to us.
                    Err(DecodeError::Unknown { seq: 0, .. }) => {}
                    Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
                },
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Ok(None);
                }
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }

    fn dispatch(
        &self,
        frame: Frame,
        descriptors: Vec<OwnedFd>,
        notices: &mpsc::UnboundedSender<Notice>,
    ) {
        match frame {
            Frame::Reply { seq, reply } => {
                let mut waiting = self.lock();
                // The slot for the end of an exec is made here, before the next frame is read: the
                // process may end before the caller has looked at the reply.
                let exec_end = if let Reply::ExecStarted { exec, .. } = &reply {
                    let (sender, receiver) = oneshot::channel();
                    waiting.execs.insert(*exec, sender);
                    Some(receiver)
                } else {
                    None
                };
                if let Some(waiter) = waiting.replies.remove(&seq) {
                    let answer = Answer {
                        reply,
                        exec_end,
                        descriptors,
                    };
                    waiter.send(answer).ok();
                }
            }
            Frame::Event(Event::ExecExited {
                exec, code, signal, ..
            }) => {
                if let Some(waiter) = self.lock().execs.remove(&exec) {
                    waiter.send(ExecExit { code, signal }).ok();
                }
            }
            Frame::Event(event) => {
                notices.send(Notice::Event(event)).ok();
            }
            Frame::Request { .. } => tracing::warn!("monitor sent a request, ignored"),
        }
    }
}

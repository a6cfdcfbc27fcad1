//! One connection with many byte streams on it. A [`Protocol`] says how they look on the wire, this
//! moves the bytes: one future owns the socket and all streams of a connection.
//!
//! What waits is bounded everywhere. Towards the client: senders wait while [`OUT_LIMIT`] bytes have
//! not gone out. From the client: reading stops while a stream, or all together, have more waiting
//! than the limits allow; TCP then holds the client back. While reading is stopped, the end of the
//! client would not be seen, so the socket is looked at now and then.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{Notify, mpsc},
    time::Instant,
};

use super::{
    peer::Peer,
    spdy::{
        codec::{DecodeError, ResetReason},
        headers::Headers,
    },
    websocket::codec::WebSocketError,
};

/// Largest piece that is sent at once: streams take turns.
pub const CHUNK: usize = 32 * 1024;
/// Bytes that may wait for the client to take them.
const OUT_LIMIT: usize = 256 * 1024;
/// Pieces that may wait behind those.
const COMMANDS: usize = 8;
/// Room for what is read at once.
const INPUT: usize = 64 * 1024;
/// What a waiting piece costs beyond its bytes.
const OVERHEAD: usize = 64;
/// How often a client is looked at that is not being read.
const LOOK: Duration = Duration::from_millis(500);
/// How long a client may take nothing at all of what ends its session.
pub const STALL_LIMIT: Duration = Duration::from_secs(60);
/// How long a client may take to hang up after the end.
const LINGER_LIMIT: Duration = Duration::from_secs(5);

/// What bounds one connection.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of one stream that may wait for us.
    pub per_stream: usize,
    /// Bytes of all streams that may.
    pub together: usize,
    /// Streams at one time.
    pub streams: usize,
    /// How long nothing may come or go.
    pub idle: Duration,
}

/// Something the client said.
#[derive(Debug)]
pub enum Event {
    /// It opens a stream.
    Opened {
        /// The stream.
        id: u32,
        /// What it is for.
        headers: Headers,
        /// Nothing will come on it.
        last: bool,
    },
    /// Bytes on a stream.
    Data {
        /// The stream.
        id: u32,
        /// They.
        bytes: Bytes,
        /// No more will come.
        last: bool,
    },
    /// It gives a stream up.
    Reset {
        /// The stream.
        id: u32,
    },
    /// It says goodbye.
    Closed,
    /// Nothing that streams are about.
    Nothing,
}

/// Something to say to the client.
#[derive(Debug)]
pub enum Message {
    /// The stream is taken.
    Accept {
        /// The stream.
        id: u32,
    },
    /// Bytes on a stream.
    Data {
        /// The stream.
        id: u32,
        /// They.
        bytes: Bytes,
    },
    /// No more will come on a stream.
    Finish {
        /// The stream.
        id: u32,
    },
    /// A stream is given up.
    Reset {
        /// The stream.
        id: u32,
        /// Why.
        reason: ResetReason,
    },
}

/// How streams look on the wire.
pub trait Protocol: Send {
    /// Takes what comes next off the front of `input`; what must be answered goes to `out`. Nothing
    /// if more is needed.
    ///
    /// # Errors
    /// When the client breaks the protocol: the connection ends.
    fn read(
        &mut self,
        input: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<Option<Event>, ProtocolError>;
    /// Puts a message on the wire.
    fn write(&mut self, message: &Message, out: &mut BytesMut);
    /// Says goodbye.
    fn goodbye(&mut self, out: &mut BytesMut);
    /// Says why the connection ends.
    fn complain(&mut self, _: &ProtocolError, out: &mut BytesMut) {
        self.goodbye(out);
    }
}

impl<P: Protocol + ?Sized> Protocol for Box<P> {
    fn read(
        &mut self,
        input: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<Option<Event>, ProtocolError> {
        (**self).read(input, out)
    }
    fn write(&mut self, message: &Message, out: &mut BytesMut) {
        (**self).write(message, out);
    }
    fn goodbye(&mut self, out: &mut BytesMut) {
        (**self).goodbye(out);
    }
    fn complain(&mut self, error: &ProtocolError, out: &mut BytesMut) {
        (**self).complain(error, out);
    }
}

/// What a client did wrong.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// Not SPDY.
    #[error("the client breaks SPDY")]
    Spdy(#[from] DecodeError),
    /// Not WebSocket.
    #[error("the client breaks WebSocket")]
    WebSocket(#[from] WebSocketError),
}

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// After everything was said.
    #[error("done")]
    Done,
    /// The client hung up.
    #[error("the client is gone")]
    Gone,
    /// Nothing came or went for too long.
    #[error("nothing came or went for {0:?}")]
    Idle(Duration),
    /// It took nothing of what ends the session.
    #[error("the client took nothing for {STALL_LIMIT:?}")]
    Stalled,
    /// It broke the protocol.
    #[error("connection refused")]
    Broken(#[source] ProtocolError),
}

/// A stream that the client has opened.
#[derive(Debug)]
pub struct Opened {
    /// Its number.
    pub id: u32,
    /// What it is for.
    pub headers: Headers,
    /// From the client.
    pub reader: Reader,
    /// To the client.
    pub writer: Writer,
}

/// The session's side of a connection. Dropping it, and every [`Writer`], ends the connection as
/// [`Streams::close`] does.
pub struct Streams {
    opened: mpsc::Receiver<Opened>,
    commands: mpsc::Sender<Command>,
    progress: Arc<AtomicU64>,
}

impl Streams {
    /// The next stream that the client opens; none when it is gone.
    pub async fn opened(&mut self) -> Option<Opened> {
        self.opened.recv().await
    }

    /// Ends the connection when everything sent before is out.
    pub async fn close(&self) {
        self.commands.send(Command::Close).await.ok();
    }

    /// Bytes that the client has taken so far.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }
}

/// What comes on a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Bytes.
    Data(Bytes),
    /// The client has finished it.
    End,
    /// The client has given it up.
    Reset,
    /// The client is gone.
    Lost,
}

/// A stream's bytes from the client.
#[derive(Debug)]
pub struct Reader {
    queue: mpsc::UnboundedReceiver<Incoming>,
    waiting: Arc<AtomicUsize>,
    inbound: Arc<Inbound>,
}

impl Reader {
    /// What comes next. After anything but data, [`Incoming::Lost`].
    pub async fn next(&mut self) -> Incoming {
        let next = self.queue.recv().await.unwrap_or(Incoming::Lost);
        self.release(&next);
        next
    }

    /// Throws away what is waiting and what will come.
    pub fn discard(&mut self) {
        self.queue.close();
        while let Ok(unread) = self.queue.try_recv() {
            self.release(&unread);
        }
    }

    fn release(&self, taken: &Incoming) {
        if let Incoming::Data(bytes) = taken {
            let cost = bytes.len() + OVERHEAD;
            self.waiting.fetch_sub(cost, Ordering::Relaxed);
            self.inbound.together.fetch_sub(cost, Ordering::Relaxed);
            self.inbound.freed.notify_one();
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.discard();
    }
}

/// A stream's bytes to the client.
#[derive(Debug, Clone)]
pub struct Writer {
    id: u32,
    commands: mpsc::Sender<Command>,
}

/// The client is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client is gone")]
pub struct Lost;

impl Writer {
    /// Sends bytes, at most [`CHUNK`] of them, and waits while too much is on its way.
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn send(&self, bytes: Bytes) -> Result<(), Lost> {
        self.say(Message::Data { id: self.id, bytes }).await
    }

    /// Ends our direction.
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn finish(&self) -> Result<(), Lost> {
        self.say(Message::Finish { id: self.id }).await
    }

    /// Gives the stream up.
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn reset(&self, reason: ResetReason) -> Result<(), Lost> {
        let id = self.id;
        self.say(Message::Reset { id, reason }).await
    }

    async fn say(&self, message: Message) -> Result<(), Lost> {
        let sent = self.commands.send(Command::Say(message)).await;
        sent.map_err(|_| Lost)
    }
}

#[derive(Debug)]
enum Command {
    Say(Message),
    Close,
}

/// What all streams of a connection together have waiting.
#[derive(Debug, Default)]
struct Inbound {
    together: AtomicUsize,
    freed: Notify,
}

/// A stream as the connection knows it.
struct Entry {
    queue: mpsc::UnboundedSender<Incoming>,
    waiting: Arc<AtomicUsize>,
    client_done: bool,
    we_done: bool,
}

/// The socket and everything on it.
pub struct Connection<T, P> {
    read: ReadHalf<T>,
    write: WriteHalf<T>,
    peer: Peer,
    protocol: P,
    limits: Limits,
    input: BytesMut,
    out: BytesMut,
    entries: HashMap<u32, Entry>,
    inbound: Arc<Inbound>,
    /// The stream with too much waiting, if there is one.
    full: Option<Arc<AtomicUsize>>,
    offers: mpsc::Sender<Opened>,
    commands: mpsc::Receiver<Command>,
    /// For the writers of new streams.
    to_self: mpsc::WeakSender<Command>,
    progress: Arc<AtomicU64>,
    last_activity: Instant,
    /// When the client last took something.
    last_taken: Instant,
    /// Something was written that may still wait inside the socket's encryption.
    is_unflushed: bool,
    is_closing: bool,
}

/// A connection to drive and the streams on it.
pub fn connect<T, P>(io: T, peer: Peer, protocol: P, limits: Limits) -> (Connection<T, P>, Streams)
where
    T: AsyncRead + AsyncWrite,
    P: Protocol,
{
    let (read, write) = tokio::io::split(io);
    let (commands, receiver) = mpsc::channel(COMMANDS);
    let (offers, opened) = mpsc::channel(limits.streams);
    let progress = Arc::new(AtomicU64::new(0));
    let connection = Connection {
        read,
        write,
        peer,
        protocol,
        limits,
        input: BytesMut::with_capacity(INPUT),
        out: BytesMut::with_capacity(INPUT),
        entries: HashMap::new(),
        inbound: Arc::default(),
        full: None,
        offers,
        commands: receiver,
        to_self: commands.downgrade(),
        progress: Arc::clone(&progress),
        last_activity: Instant::now(),
        last_taken: Instant::now(),
        is_unflushed: false,
        is_closing: false,
    };
    let streams = Streams {
        opened,
        commands,
        progress,
    };
    (connection, streams)
}

/// Writes some of `out`; if there is nothing, sees to it that what was written goes out.
async fn send<T: AsyncWrite>(to: &mut WriteHalf<T>, out: &mut BytesMut) -> io::Result<usize> {
    if out.is_empty() {
        to.flush().await.map(|()| 0)
    } else {
        to.write_buf(out).await
    }
}

impl<T: AsyncRead + AsyncWrite, P: Protocol> Connection<T, P> {
    /// Moves bytes until the session has closed the connection or the client is gone. Dropping the
    /// future drops the socket.
    pub async fn run(mut self) -> End {
        let end = match self.transfer().await {
            Ok(()) => self.part().await,
            Err(End::Broken(error)) => {
                self.protocol.complain(&error, &mut self.out);
                let said = async {
                    self.write.write_all_buf(&mut self.out).await?;
                    self.write.flush().await
                };
                if let Ok(Ok(())) = tokio::time::timeout(LINGER_LIMIT, said).await {
                    self.part().await;
                }
                End::Broken(error)
            }
            Err(end) => end,
        };
        tracing::debug!(%end, "stream connection ended");
        end
    }

    async fn transfer(&mut self) -> Result<(), End> {
        let idle = tokio::time::sleep(self.limits.idle);
        tokio::pin!(idle);
        loop {
            self.parse()?;
            if self.is_closing && !self.has_output() {
                return Ok(());
            }
            let reads = self.may_read();
            let stalled = self.last_taken + STALL_LIMIT;
            tokio::select! {
                count = self.read.read_buf(&mut self.input), if reads => match count {
                    Ok(1..) => self.last_activity = Instant::now(),
                    Ok(0) | Err(_) => return Err(End::Gone),
                },
                count = send(&mut self.write, &mut self.out), if self.has_output() => match count {
                    Ok(count) => {
                        self.is_unflushed = count > 0;
                        self.progress.fetch_add(count as u64, Ordering::Relaxed);
                        self.last_activity = Instant::now();
                        self.last_taken = self.last_activity;
                    }
                    Err(_) => return Err(End::Gone),
                },
                command = self.commands.recv(), if self.takes_commands() => self.obey_all(command),
                () = self.inbound.freed.notified(), if !reads => {}
                () = tokio::time::sleep(LOOK), if !reads => {
                    if self.peer.has_hung_up() {
                        return Err(End::Gone);
                    }
                }
                () = tokio::time::sleep_until(stalled), if self.is_closing => {
                    return Err(End::Stalled);
                }
                () = &mut idle => {
                    let deadline = self.last_activity + self.limits.idle;
                    if deadline <= Instant::now() {
                        return Err(End::Idle(self.limits.idle));
                    }
                    idle.as_mut().reset(deadline);
                }
            }
        }
    }

    /// Tells the client that everything was said, and waits for it to hang up: a close with unread
    /// input would reset the connection, and destroy what is still on its way to the client.
    async fn part(&mut self) -> End {
        let lingering = async {
            self.write.shutdown().await?;
            loop {
                self.input.clear();
                self.input.reserve(INPUT);
                if self.read.read_buf(&mut self.input).await? == 0 {
                    return Ok::<_, io::Error>(());
                }
            }
        };
        tokio::time::timeout(LINGER_LIMIT, lingering).await.ok();
        End::Done
    }

    /// Whether there is room for more from the client.
    fn may_read(&self) -> bool {
        let stream = self.full.as_ref().map_or(0, |w| w.load(Ordering::Relaxed));
        stream < self.limits.per_stream
            && self.inbound.together.load(Ordering::Relaxed) < self.limits.together
            // Answers that the client asks for and does not take.
            && self.out.len() < 2 * OUT_LIMIT
    }

    /// Whether something has not gone out.
    fn has_output(&self) -> bool {
        self.is_unflushed || !self.out.is_empty()
    }

    fn takes_commands(&self) -> bool {
        !self.is_closing && self.out.len() < OUT_LIMIT
    }

    fn parse(&mut self) -> Result<(), End> {
        while self.may_read() {
            self.full = None;
            let event = self.protocol.read(&mut self.input, &mut self.out);
            let Some(event) = event.map_err(End::Broken)? else {
                self.input.reserve(INPUT / 4);
                break;
            };
            // What comes after the end is nobody's.
            if self.is_closing {
                continue;
            }
            match event {
                Event::Opened { id, headers, last } => self.open(id, headers, last),
                Event::Data { id, bytes, last } => self.deliver(id, bytes, last),
                Event::Reset { id } => {
                    if let Some(entry) = self.entries.remove(&id) {
                        entry.queue.send(Incoming::Reset).ok();
                    }
                }
                Event::Closed => return Err(End::Gone),
                Event::Nothing => {}
            }
        }
        Ok(())
    }

    fn open(&mut self, id: u32, headers: Headers, last: bool) {
        let (queue, receiver) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let offered = self.to_self.upgrade().is_some_and(|commands| {
            let opened = Opened {
                id,
                headers,
                reader: Reader {
                    queue: receiver,
                    waiting: Arc::clone(&waiting),
                    inbound: Arc::clone(&self.inbound),
                },
                writer: Writer { id, commands },
            };
            self.entries.len() < self.limits.streams && self.offers.try_send(opened).is_ok()
        });
        let message = if offered {
            Message::Accept { id }
        } else {
            Message::Reset {
                id,
                reason: ResetReason::Refused,
            }
        };
        self.protocol.write(&message, &mut self.out);
        if offered {
            if last {
                queue.send(Incoming::End).ok();
            }
            let entry = Entry {
                queue,
                waiting,
                client_done: last,
                we_done: false,
            };
            self.entries.insert(id, entry);
        }
    }

    fn deliver(&mut self, id: u32, bytes: Bytes, last: bool) {
        // Data for a stream that was given up is on its way for a while.
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| !entry.client_done) else {
            return;
        };
        if !bytes.is_empty() {
            let cost = bytes.len() + OVERHEAD;
            let waiting = entry.waiting.fetch_add(cost, Ordering::Relaxed) + cost;
            self.inbound.together.fetch_add(cost, Ordering::Relaxed);
            if entry.queue.send(Incoming::Data(bytes)).is_err() {
                // Its reader is gone, and with it what it had to release.
                entry.waiting.fetch_sub(cost, Ordering::Relaxed);
                self.inbound.together.fetch_sub(cost, Ordering::Relaxed);
            } else if waiting >= self.limits.per_stream {
                self.full = Some(Arc::clone(&entry.waiting));
            }
        }
        if last {
            entry.client_done = true;
            entry.queue.send(Incoming::End).ok();
            if entry.we_done {
                self.entries.remove(&id);
            }
        }
    }

    /// Does what is asked, and what is asked beyond that already.
    fn obey_all(&mut self, first: Option<Command>) {
        self.obey(first);
        while self.takes_commands() {
            let Ok(command) = self.commands.try_recv() else {
                return;
            };
            self.obey(Some(command));
        }
    }

    fn obey(&mut self, command: Option<Command>) {
        let Some(Command::Say(message)) = command else {
            self.protocol.goodbye(&mut self.out);
            self.is_closing = true;
            self.last_taken = Instant::now();
            return;
        };
        match &message {
            Message::Finish { id } => {
                let Some(entry) = self.entries.get_mut(id).filter(|entry| !entry.we_done) else {
                    return;
                };
                entry.we_done = true;
                if entry.client_done {
                    self.entries.remove(id);
                }
            }
            Message::Data { id, .. } => {
                if self.entries.get(id).is_none_or(|entry| entry.we_done) {
                    return;
                }
            }
            Message::Reset { id, .. } => {
                if self.entries.remove(id).is_none() {
                    return;
                }
            }
            Message::Accept { .. } => {}
        }
        self.protocol.write(&message, &mut self.out);
    }
}

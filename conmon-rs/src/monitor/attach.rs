//! Clients that are attached to the container's streams.
//!
//! What waits for them waits in kernel pipes, which the daemon has made large: nothing of it is kept
//! here, whatever the number of clients. Input goes through in pieces that a pipe takes whole; while
//! the container does not read, nothing is taken from any client.
//!
//! The container is not held up by who does not read: each client has a [`Credit`], and all have one
//! together. Whose pipe is full when one of them is used up is dropped.

use crate::report;
use crate::requests::Refusal;
use conmon_rs::log::Stream;
use conmon_rs::protocol::AttachRequest;
use crisp_sys::event::{self, EPOLLIN, Epoll};
use crisp_sys::{Errno, fd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Clients at one time.
const MAX_CLIENTS: usize = 128;
/// Bytes of input taken at once: what a pipe that is writable takes whole (`PIPE_BUF`).
const PIECE: usize = 4096;
/// Pieces taken from one client before others have their turn.
const ROUNDS: usize = 16;
/// The epoll tokens of clients: below those of connections, three for each.
const TOKENS: std::ops::Range<u64> = 1 << 31..1 << 32;
const TOKENS_EACH: u64 = 3;
/// Which of a client's tokens is that of its input; the outputs follow.
const INPUT: u64 = 0;

/// How long the container may be held up: so long at once, and a share of the time in the long run.
/// That lets a terminal that is slower than a burst of output see all of it.
struct Credit {
    left: Duration,
    at: Instant,
    most: Duration,
    share: u32,
}

impl Credit {
    /// For one client: half a second, an eighth of the time.
    fn of_one() -> Credit {
        Credit::new(Duration::from_millis(500), 8)
    }

    /// For all together: two seconds, a quarter of the time.
    fn of_all() -> Credit {
        Credit::new(Duration::from_secs(2), 4)
    }

    fn new(most: Duration, share: u32) -> Credit {
        Credit {
            left: most,
            at: Instant::now(),
            most,
            share,
        }
    }

    fn left(&self, now: Instant) -> Duration {
        self.most.min(self.left + (now - self.at) / self.share)
    }

    fn spend(&mut self, from: Instant, to: Instant) {
        self.left = self.left(from).saturating_sub(to - from);
        self.at = to;
    }
}

/// Waits until a full pipe takes more. False: no credit is left.
fn wait(pipe: BorrowedFd<'_>, credits: [&mut Credit; 2]) -> bool {
    let from = Instant::now();
    let left = credits[0].left(from).min(credits[1].left(from));
    let ready = event::poll(pipe, libc::POLLOUT, Some(left));
    let to = Instant::now();
    for credit in credits {
        credit.spend(from, to);
    }
    matches!(ready, Ok(true))
}

struct Client {
    id: u64,
    input: Option<OwnedFd>,
    /// One for each [`Stream`].
    outputs: [Option<OwnedFd>; 2],
    credit: Credit,
}

/// How a client took what was printed.
#[derive(PartialEq, Eq)]
enum Fate {
    Kept,
    /// It closed its pipe.
    Gone,
    /// It does not read.
    Slow,
}

/// What became of a client's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The container has what there was.
    Taken,
    /// The container takes no more for now.
    Held,
    /// The client's input has ended.
    Ended,
    /// The container has closed its stdin.
    Broken,
}

/// All clients.
pub struct Clients {
    list: Vec<Client>,
    next: u64,
    credit: Credit,
    dropped: u64,
    told: u64,
    /// Input that was taken from a client and not by the container: at most a [`PIECE`].
    rest: Vec<u8>,
    held: bool,
}

impl Default for Clients {
    fn default() -> Clients {
        Clients {
            list: Vec::new(),
            next: 0,
            credit: Credit::of_all(),
            dropped: 0,
            told: 0,
            rest: Vec::new(),
            held: false,
        }
    }
}

impl Clients {
    /// Takes a client with its pipes. `open_input`: the container's stdin is open; where it is not,
    /// the client's input is closed at once.
    pub fn add(
        &mut self,
        epoll: &Epoll,
        request: AttachRequest,
        fds: Vec<OwnedFd>,
        open_input: bool,
    ) -> Result<(), Refusal> {
        let wanted = [request.stdin, request.stdout, request.stderr];
        if fds.is_empty() || fds.len() != wanted.iter().filter(|wanted| **wanted).count() {
            let text = "an attach takes one pipe for each stream, and one stream at least";
            return Err(Refusal::new("attach", Errno::EINVAL, text));
        }
        if self.list.len() >= MAX_CLIENTS {
            let text = "too many clients are attached to the container";
            return Err(Refusal::new("attach", Errno::EAGAIN, text));
        }
        let mut fds = fds.into_iter();
        let [input, stdout, stderr] = wanted.map(|wanted| wanted.then(|| fds.next()).flatten());
        let client = Client {
            id: self.next,
            input: input.filter(|_| open_input),
            outputs: [stdout, stderr],
            credit: Credit::of_one(),
        };
        self.next = (self.next + 1) % ((TOKENS.end - TOKENS.start) / TOKENS_EACH);
        // What fails half-way is closed by being dropped, which takes it out of epoll.
        client
            .watch(epoll, self.held)
            .map_err(|error| Refusal::sys("attach", &error))?;
        self.list.push(client);
        Ok(())
    }

    /// The client of an epoll token, and whether it is about its input.
    pub fn of_token(token: u64) -> Option<(u64, bool)> {
        let number = TOKENS.contains(&token).then(|| token - TOKENS.start)?;
        Some((number / TOKENS_EACH, number % TOKENS_EACH == INPUT))
    }

    /// Hands on what the container printed.
    pub fn offer(&mut self, stream: Stream, bytes: &[u8]) {
        let credit = &mut self.credit;
        let before = self.list.len();
        let mut gone = 0;
        self.list
            .retain_mut(|client| match client.offer(stream, bytes, credit) {
                Fate::Kept => true,
                Fate::Gone => {
                    gone += 1;
                    false
                }
                Fate::Slow => false,
            });
        self.dropped += (before - self.list.len() - gone) as u64;
    }

    /// Takes input of a client for the container, whose stdin is `target`.
    pub fn take_input(&mut self, id: u64, target: BorrowedFd<'_>, buffer: &mut [u8]) -> Input {
        let input = self.list.iter().find(|client| client.id == id);
        let Some(input) = input.and_then(|client| client.input.as_ref()) else {
            return Input::Taken;
        };
        let piece = &mut buffer[..PIECE];
        for _ in 0..ROUNDS {
            if !matches!(
                event::poll(target, libc::POLLOUT, Some(Duration::ZERO)),
                Ok(true)
            ) {
                return Input::Held;
            }
            let count = match fd::read(input.as_fd(), piece) {
                Ok(0) => return Input::Ended,
                Ok(count) => count,
                Err(error) if error.errno() == Errno::EAGAIN => return Input::Taken,
                Err(_) => return Input::Ended,
            };
            match fd::write(target, &piece[..count]) {
                Ok(written) if written == count => {}
                Ok(written) => {
                    self.rest.extend_from_slice(&piece[written..count]);
                    return Input::Held;
                }
                Err(error) if error.errno() == Errno::EAGAIN => {
                    self.rest.extend_from_slice(&piece[..count]);
                    return Input::Held;
                }
                Err(_) => return Input::Broken,
            }
        }
        Input::Taken
    }

    /// Takes nothing from clients until [`Clients::resume`].
    pub fn hold(&mut self, epoll: &Epoll) {
        if std::mem::replace(&mut self.held, true) {
            return;
        }
        for input in self.list.iter().filter_map(|client| client.input.as_ref()) {
            // It is in there.
            let _ = epoll.delete(input.as_fd());
        }
    }

    /// The container takes input again. True: what was kept is written and clients are heard again.
    pub fn resume(&mut self, epoll: &Epoll, target: BorrowedFd<'_>) -> bool {
        if !self.rest.is_empty() {
            // A failure shows again at the next piece.
            let written = fd::write(target, &self.rest).unwrap_or(0);
            self.rest.drain(..written);
            if !self.rest.is_empty() {
                return false;
            }
            self.rest = Vec::new();
        }
        self.held = false;
        let open = |client: &Client| {
            let input = client.input.as_ref()?;
            epoll
                .add(input.as_fd(), EPOLLIN, client.token(INPUT))
                .err()
                .map(|_| client.id)
        };
        let failed: Vec<u64> = self.list.iter().filter_map(open).collect();
        self.list.retain(|client| !failed.contains(&client.id));
        true
    }

    /// Whether clients are not heard because the container does not read.
    pub fn are_held(&self) -> bool {
        self.held
    }

    /// A client's input is over. One that reads nothing either has nothing left to do.
    pub fn end_input(&mut self, id: u64) {
        if let Some(client) = self.list.iter_mut().find(|client| client.id == id) {
            client.input = None;
        }
        self.list.retain(Client::is_open);
    }

    /// The container's stdin is closed: nobody's input goes anywhere.
    pub fn end_inputs(&mut self) {
        for client in &mut self.list {
            client.input = None;
        }
        self.list.retain(Client::is_open);
        self.rest = Vec::new();
        self.held = false;
    }

    /// A client closed one of its outputs: it has gone.
    pub fn remove(&mut self, id: u64) {
        self.list.retain(|client| client.id != id);
    }

    /// Closes all pipes: the container has ended.
    pub fn close(&mut self) {
        self.list = Vec::new();
    }

    /// Clients that were dropped because they did not read.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The same, if it has grown since it was asked.
    pub fn newly_dropped(&mut self) -> Option<u64> {
        if self.dropped == self.told {
            return None;
        }
        self.told = self.dropped;
        Some(self.dropped)
    }
}

impl Client {
    fn token(&self, which: u64) -> u64 {
        TOKENS.start + self.id * TOKENS_EACH + which
    }

    fn is_open(&self) -> bool {
        self.input.is_some() || self.outputs.iter().any(Option::is_some)
    }

    /// Asks for reports of input, and of outputs whose other end is closed, which come unasked.
    fn watch(&self, epoll: &Epoll, held: bool) -> crisp_sys::Result<()> {
        if let Some(input) = &self.input {
            fd::set_nonblocking(input.as_fd(), true)?;
            if !held {
                epoll.add(input.as_fd(), EPOLLIN, self.token(INPUT))?;
            }
        }
        for (output, which) in self.outputs.iter().zip(INPUT + 1..) {
            if let Some(output) = output {
                fd::set_nonblocking(output.as_fd(), true)?;
                epoll.add(output.as_fd(), 0, self.token(which))?;
            }
        }
        Ok(())
    }

    fn offer(&mut self, stream: Stream, mut bytes: &[u8], all: &mut Credit) -> Fate {
        let Some(pipe) = &self.outputs[stream as usize] else {
            return Fate::Kept;
        };
        while !bytes.is_empty() {
            match fd::write(pipe.as_fd(), bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.errno() == Errno::EAGAIN => {
                    if !wait(pipe.as_fd(), [&mut self.credit, all]) {
                        report::say("conmon-rs: dropped an attached client that does not read");
                        return Fate::Slow;
                    }
                }
                Err(_) => return Fate::Gone,
            }
        }
        Fate::Kept
    }
}

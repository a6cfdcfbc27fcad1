//! The container's streams: pipes or a terminal, read into the log and for attached clients.

use crate::attach::{Clients, Input};
use crate::event_loop::token;
use crate::requests::Refusal;
use conmon_rs::log::{Log, Stream};
use conmon_rs::protocol::AttachRequest;
use crisp_oci::apply::{IoPlan, Stdio};
use crisp_sys::event::{EPOLLIN, EPOLLOUT, Epoll};
use crisp_sys::{Errno, fd, path, tty};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes read at once: what a pipe holds.
pub const READ_SIZE: usize = 64 * 1024;

/// Our ends.
#[derive(Default)]
pub struct Streams {
    /// Output, one for each [`Stream`]. A terminal is the first.
    sources: [Option<OwnedFd>; 2],
    /// The write end of stdin, while it is held open.
    stdin: Option<OwnedFd>,
    /// The other side of the terminal, kept open so that the container may close and reopen its
    /// own without our side reporting an end again and again. Given up when init has ended.
    terminal: Option<OwnedFd>,
    /// Who else sees the output and gives input.
    clients: Clients,
    /// What the container was made with.
    wanted: Wanted,
}

/// What a container was made to do with input.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// Clients may give it some.
    pub stdin: bool,
    /// The end of the first client's input is the end of its own. Means nothing for a terminal.
    pub once: bool,
}

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// So many bytes; they are in the log.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// The end: the stream is closed.
    End,
}

/// Pipes for a container without terminal: our ends and the container's. Without `stdin` it reads
/// from /dev/null.
pub fn pipes(wanted: Wanted) -> crisp_sys::Result<(Streams, IoPlan)> {
    let (out_read, out_write) = fd::pipe()?;
    let (err_read, err_write) = fd::pipe()?;
    for ours in [&out_read, &err_read] {
        fd::set_nonblocking(ours.as_fd(), true)?;
    }
    let (theirs, ours) = if wanted.stdin {
        let (read, write) = fd::pipe()?;
        fd::set_nonblocking(write.as_fd(), true)?;
        (read, Some(write))
    } else {
        (
            path::openat(fd::CWD, c"/dev/null", libc::O_RDONLY, 0)?,
            None,
        )
    };
    let streams = Streams {
        sources: [Some(out_read), Some(err_read)],
        stdin: ours,
        wanted,
        ..Streams::default()
    };
    let stdio = Stdio {
        stdin: theirs,
        stdout: out_write,
        stderr: err_write,
    };
    Ok((streams, IoPlan::Stdio(stdio)))
}

impl Streams {
    /// The streams of a container with a terminal, from its master.
    pub fn terminal(master: OwnedFd, wanted: Wanted) -> crisp_sys::Result<Streams> {
        fd::set_nonblocking(master.as_fd(), true)?;
        let peer = tty::peer(master.as_fd())?;
        Ok(Streams {
            sources: [Some(master), None],
            terminal: Some(peer),
            wanted,
            ..Streams::default()
        })
    }

    /// Asks for reports of output: `first_token` for stdout, the next for stderr.
    pub fn watch(&self, epoll: &Epoll, first_token: u64) -> crisp_sys::Result<()> {
        for (source, token) in self.sources.iter().zip(first_token..) {
            if let Some(source) = source {
                epoll.add(source.as_fd(), EPOLLIN, token)?;
            }
        }
        Ok(())
    }

    /// The terminal, if there is one.
    pub fn console(&self) -> Option<BorrowedFd<'_>> {
        self.terminal.as_ref().map(AsFd::as_fd)
    }

    /// Whether stdin is held open.
    pub fn has_stdin(&self) -> bool {
        self.stdin.is_some()
    }

    /// Closes stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
        self.clients.end_inputs();
    }

    /// Connects a client.
    pub fn attach(
        &mut self,
        epoll: &Epoll,
        request: AttachRequest,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        if request.stderr && self.terminal.is_some() {
            let text = "a terminal has no stderr of its own";
            return Err(Refusal::new("attach", Errno::EINVAL, text));
        }
        if request.stdin && !self.wanted.stdin {
            let text = "the container was made without stdin";
            return Err(Refusal::new("attach", Errno::EINVAL, text));
        }
        let open_input = self.input().is_some();
        self.clients.add(epoll, request, fds, open_input)
    }

    /// Where input goes, and the token that waits for it to take more.
    fn input(&self) -> Option<(BorrowedFd<'_>, u64)> {
        match (&self.stdin, &self.terminal, &self.sources[0]) {
            (Some(stdin), ..) => Some((stdin.as_fd(), token::STDIN)),
            (None, Some(_), Some(master)) => Some((master.as_fd(), token::STDOUT)),
            _ => None,
        }
    }

    /// Something happened at a client's pipe.
    pub fn client_ready(&mut self, epoll: &Epoll, token: u64, buffer: &mut [u8]) {
        let Some((id, is_input)) = Clients::of_token(token) else {
            return;
        };
        if !is_input {
            return self.clients.remove(id);
        }
        // Reported together with what made the others wait.
        if self.clients.are_held() {
            return;
        }
        let target = self.stdin.as_ref().or(match &self.terminal {
            Some(_) => self.sources[0].as_ref(),
            None => None,
        });
        let Some(target) = target else {
            return self.clients.end_inputs();
        };
        match self.clients.take_input(id, target.as_fd(), buffer) {
            Input::Taken => {}
            Input::Held => self.hold_input(epoll),
            Input::Ended if self.wanted.once && self.terminal.is_none() => self.close_stdin(),
            Input::Ended => self.clients.end_input(id),
            Input::Broken => self.close_stdin(),
        }
    }

    /// Waits for the container to read before more input is taken.
    fn hold_input(&mut self, epoll: &Epoll) {
        let watched = match self.input() {
            Some((target, token::STDIN)) => epoll.add(target, EPOLLOUT, token::STDIN),
            Some((target, token)) => epoll.modify(target, EPOLLIN | EPOLLOUT, token),
            None => Ok(()),
        };
        match watched {
            Ok(()) => self.clients.hold(epoll),
            // Without a report of it nobody would ever be heard again.
            Err(_) => self.close_stdin(),
        }
    }

    /// The container may take input again.
    pub fn input_wanted(&mut self, epoll: &Epoll) {
        if !self.clients.are_held() {
            return;
        }
        let target = self.stdin.as_ref().or(self.sources[0].as_ref());
        let Some(target) = target else { return };
        if !self.clients.resume(epoll, target.as_fd()) {
            return;
        }
        // It is in there; and if not, there is nothing to stop.
        let _ = match &self.stdin {
            Some(stdin) => epoll.delete(stdin.as_fd()),
            None => epoll.modify(target.as_fd(), EPOLLIN, token::STDOUT),
        };
    }

    /// Clients that were dropped because they did not read.
    pub fn dropped_clients(&self) -> u64 {
        self.clients.dropped()
    }

    /// The same, if it has grown since it was asked.
    pub fn newly_dropped_clients(&mut self) -> Option<u64> {
        self.clients.newly_dropped()
    }

    /// Whether no more output can come.
    pub fn are_closed(&self) -> bool {
        self.sources.iter().all(Option::is_none)
    }

    /// Init has ended: what it wrote to its terminal will end too.
    pub fn init_ended(&mut self) {
        self.terminal = None;
        self.close_stdin();
    }

    /// Closes everything.
    pub fn close(&mut self) {
        self.sources = [None, None];
        self.terminal = None;
        self.stdin = None;
        self.clients.close();
    }

    /// Reads once from a stream into the log and for the clients.
    pub fn read(&mut self, stream: Stream, buffer: &mut [u8], log: Option<&mut Log>) -> Found {
        let source = &mut self.sources[stream as usize];
        let Some(open) = source else {
            return Found::Nothing;
        };
        match fd::read(open.as_fd(), &mut buffer[..READ_SIZE]) {
            Ok(count) if count > 0 => {
                if let Some(log) = log {
                    log.feed(stream, &buffer[..count]);
                }
                self.clients.offer(stream, &buffer[..count]);
                Found::Bytes(count)
            }
            Err(error) if error.errno() == Errno::EAGAIN => Found::Nothing,
            // EIO is how a terminal says that its other side is closed.
            Ok(_) | Err(_) => {
                // Closing takes it out of epoll.
                *source = None;
                Found::End
            }
        }
    }

    /// Reads what is there now, at most `limit` bytes.
    pub fn drain(&mut self, buffer: &mut [u8], mut log: Option<&mut Log>, limit: usize) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut left = limit;
            while left > 0
                && let Found::Bytes(count) = self.read(stream, buffer, log.as_deref_mut())
            {
                left = left.saturating_sub(count);
            }
        }
    }
}

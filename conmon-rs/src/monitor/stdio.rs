//! The container's streams: pipes or a terminal, read into the log.

use conmon_rs::log::{Log, Stream};
use crisp_oci::apply::{IoPlan, Stdio};
use crisp_sys::event::{EPOLLIN, Epoll};
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
pub fn pipes(stdin: bool) -> crisp_sys::Result<(Streams, IoPlan)> {
    let (out_read, out_write) = fd::pipe()?;
    let (err_read, err_write) = fd::pipe()?;
    for ours in [&out_read, &err_read] {
        fd::set_nonblocking(ours.as_fd(), true)?;
    }
    let (theirs, ours) = if stdin {
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
        terminal: None,
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
    pub fn terminal(master: OwnedFd) -> crisp_sys::Result<Streams> {
        fd::set_nonblocking(master.as_fd(), true)?;
        let peer = tty::peer(master.as_fd())?;
        Ok(Streams {
            sources: [Some(master), None],
            stdin: None,
            terminal: Some(peer),
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
    }

    /// Whether no more output can come.
    pub fn are_closed(&self) -> bool {
        self.sources.iter().all(Option::is_none)
    }

    /// Init has ended: what it wrote to its terminal will end too.
    pub fn init_ended(&mut self) {
        self.terminal = None;
        self.stdin = None;
    }

    /// Closes everything.
    pub fn close(&mut self) {
        *self = Streams::default();
    }

    /// Reads once from a stream into the log; without a log the output is discarded.
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

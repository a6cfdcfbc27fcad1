//! Runs a command in a container and captures what it prints.
//!
//! The pipes are made here and their far ends travel to the monitor, which puts them straight into
//! the new process: the monitor sees no byte of the data.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use conmon_rs::protocol::{ExecRequest, Reply, Request};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    sync::{Semaphore, oneshot},
    time::Instant,
};

use super::{ExecExit, KILL_LIMIT, Monitor, MonitorError, REQUEST_LIMIT};

/// Captured bytes of both streams together: one gRPC message to kubelet may hold 16 MiB.
pub const OUTPUT_LIMIT: usize = 16 * 1024 * 1024 - 64 * 1024;

/// What to run.
#[derive(Debug)]
pub struct ExecCommand {
    /// The process, as `crisp_oci::wire` encodes it.
    pub process: Vec<u8>,
    /// `None`: as long as it takes.
    pub limit: Option<Duration>,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Captured {
    /// Its standard output, cut at the limit.
    pub stdout: Vec<u8>,
    /// Its standard error, cut at the limit.
    pub stderr: Vec<u8>,
    /// 0 to 255; 128 + n for a death by signal n.
    pub code: i32,
    /// Bytes read and thrown away because of the limit.
    pub cut: u64,
}

/// A command that runs.
pub(super) struct Started {
    /// Its number.
    pub(super) exec: u64,
    /// Where its end will be told.
    pub(super) ended: oneshot::Receiver<ExecExit>,
    /// The master of its terminal, if it has one.
    pub(super) console: Option<OwnedFd>,
}

/// How many pipes that a command left open to its children are kept from breaking, and how long.
const LEFT_OPEN: usize = 64;
const LEFT_OPEN_LIMIT: Duration = Duration::from_secs(3600);
static LEFT_OPEN_SLOTS: Semaphore = Semaphore::const_new(LEFT_OPEN);

/// Outputs that were cut at the limit since the daemon started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Commands that printed more than there was room for.
    pub commands: u64,
    /// What was thrown away of it.
    pub bytes: u64,
}

static CUT_COMMANDS: AtomicU64 = AtomicU64::new(0);
static CUT_BYTES: AtomicU64 = AtomicU64::new(0);

/// What was cut so far.
#[must_use]
pub fn cut_outputs() -> Cut {
    Cut {
        commands: CUT_COMMANDS.load(Ordering::Relaxed),
        bytes: CUT_BYTES.load(Ordering::Relaxed),
    }
}

/// How long the end of a command is waited for before its pipes are watched. Most probes are over
/// by then: what they printed lies in the pipes, and watching would have been half the work.
const SOON: Duration = Duration::from_millis(4);

/// Both streams as read so far.
struct Capture {
    stdout: Stream,
    stderr: Stream,
    room: Room,
}

/// What may still be kept of both streams together.
struct Room {
    left: usize,
    cut: u64,
}

struct Stream {
    source: Source,
    scratch: Box<[u8]>,
    bytes: Vec<u8>,
}

/// Our end of a stream.
enum Source {
    Unwatched(OwnedFd),
    Watched(pipe::Receiver),
    Ended,
}

impl Monitor {
    /// Runs a command in the container and waits for its end.
    ///
    /// A child that the command leaves behind and that still holds its output does not delay the
    /// answer: what is in the pipes at the end of the command is read, no more.
    ///
    /// # Errors
    /// [`MonitorError::Refused`] when it cannot be executed, [`MonitorError::ExecTimeout`] when its
    /// limit passed: then its process group was killed and is gone.
    pub async fn exec_capture(&self, command: ExecCommand) -> Result<Captured, MonitorError> {
        let (mut capture, theirs) = Capture::open().map_err(MonitorError::Pipes)?;
        let limit = command.limit;
        let started = self.exec_start(command.process, Some(&theirs)).await?;
        let Started { exec, ended, .. } = started;
        // Our copies of the far ends must go, or the pipes would never end.
        drop(theirs);
        let guard = KillIfDropped {
            monitor: Some(self.clone()),
            exec,
        };
        let deadline = limit.map(|limit| Instant::now() + limit);
        let exit = capture.until_end(ended, deadline).await;
        match exit {
            Some(Ok(exit)) => {
                guard.disarm();
                capture.drain();
                Ok(capture.finish(exit))
            }
            Some(Err(error)) => Err(error),
            None => {
                self.exec_kill(exec).await;
                let limit = limit.unwrap_or_default();
                capture.discard_until_end(KILL_LIMIT).await;
                guard.disarm();
                Err(MonitorError::ExecTimeout(limit))
            }
        }
    }

    /// Has the monitor execute a process, with these streams or with a terminal.
    pub(super) async fn exec_start(
        &self,
        process: Vec<u8>,
        theirs: Option<&[OwnedFd; 3]>,
    ) -> Result<Started, MonitorError> {
        let (request, too_large) = ExecRequest::inline_or_memfd(process, theirs.is_none());
        let payload = too_large
            .map(|bytes| crisp_sys::fd::sealed_memfd("process", &bytes))
            .transpose()
            .map_err(|error| MonitorError::Pipes(error.into()))?;
        let streams = theirs.into_iter().flatten();
        let descriptors: Vec<BorrowedFd<'_>> =
            payload.iter().chain(streams).map(AsFd::as_fd).collect();
        let call = self.link.call(Request::Exec(request), &descriptors);
        let answer = tokio::time::timeout(REQUEST_LIMIT, call)
            .await
            .map_err(|_| MonitorError::Late {
                request: "exec",
                limit: REQUEST_LIMIT,
            })??;
        match (answer.reply, answer.exec_end) {
            (Reply::ExecStarted { exec, .. }, Some(ended)) => Ok(Started {
                exec,
                ended,
                console: answer.descriptors.into_iter().next(),
            }),
            (other, _) => Err(MonitorError::refused(other)),
        }
    }

    async fn exec_kill(&self, exec: u64) {
        self.exec_signal(exec, libc::SIGKILL).await;
    }

    /// Signals the process group of a command; SIGKILL reaches whatever else it has started.
    pub(super) async fn exec_signal(&self, exec: u64, signo: i32) {
        let request = Request::ExecSignal {
            exec,
            signo,
            group: true,
        };
        if let Err(error) = self.ask("signal to a command", request).await {
            tracing::debug!(exec, signo, %error, "command could not be signalled");
        }
    }
}

impl Capture {
    fn open() -> std::io::Result<(Self, [OwnedFd; 3])> {
        let (out_read, out_write) = crisp_sys::fd::pipe()?;
        let (err_read, err_write) = crisp_sys::fd::pipe()?;
        let stdin = OwnedFd::from(File::open("/dev/null")?);
        let capture = Self {
            stdout: Stream::open(out_read)?,
            stderr: Stream::open(err_read)?,
            room: Room {
                left: OUTPUT_LIMIT,
                cut: 0,
            },
        };
        Ok((capture, [stdin, out_write, err_write]))
    }

    /// Reads both streams until the command ends. `None`: the deadline came first.
    async fn until_end(
        &mut self,
        mut ended: oneshot::Receiver<ExecExit>,
        deadline: Option<Instant>,
    ) -> Option<Result<ExecExit, MonitorError>> {
        let late = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(late);
        let soon = deadline.map_or(SOON, |at| {
            at.saturating_duration_since(Instant::now()).min(SOON)
        });
        if let Ok(exit) = tokio::time::timeout(soon, &mut ended).await {
            return Some(exit.map_err(|_| MonitorError::Gone));
        }
        if let Err(error) = self.stdout.watch().and_then(|()| self.stderr.watch()) {
            return Some(Err(MonitorError::Pipes(error)));
        }
        loop {
            tokio::select! {
                exit = &mut ended => return Some(exit.map_err(|_| MonitorError::Gone)),
                () = &mut late => return None,
                count = self.stdout.fill() => self.stdout.keep(count, &mut self.room),
                count = self.stderr.fill() => self.stderr.keep(count, &mut self.room),
            }
        }
    }

    /// After the end: what is in the pipes now.
    fn drain(&mut self) {
        self.stdout.drain(&mut self.room);
        self.stderr.drain(&mut self.room);
    }

    /// After a kill: throws away what comes until both streams end.
    async fn discard_until_end(&mut self, limit: Duration) {
        self.room.left = 0;
        let both = async {
            while self.stdout.is_open() || self.stderr.is_open() {
                tokio::select! {
                    count = self.stdout.fill() => self.stdout.keep(count, &mut self.room),
                    count = self.stderr.fill() => self.stderr.keep(count, &mut self.room),
                }
            }
        };
        tokio::time::timeout(limit, both).await.ok();
    }

    fn finish(self, exit: ExecExit) -> Captured {
        if self.room.cut > 0 {
            CUT_COMMANDS.fetch_add(1, Ordering::Relaxed);
            CUT_BYTES.fetch_add(self.room.cut, Ordering::Relaxed);
        }
        for source in [self.stdout.source, self.stderr.source] {
            if let Some(pipe) = source.watched() {
                keep_from_breaking(pipe);
            }
        }
        Captured {
            stdout: self.stdout.bytes,
            stderr: self.stderr.bytes,
            code: exit.code,
            cut: self.room.cut,
        }
    }
}

/// A child in the background may still write: it must not die of a broken pipe because the command
/// that started it is done. Its output is thrown away, for a while.
pub(super) fn keep_from_breaking(mut pipe: pipe::Receiver) {
    let Ok(slot) = LEFT_OPEN_SLOTS.try_acquire() else {
        return;
    };
    tokio::spawn(async move {
        let mut scratch = vec![0_u8; 4096];
        let discard = async { while matches!(pipe.read(&mut scratch).await, Ok(1..)) {} };
        tokio::time::timeout(LEFT_OPEN_LIMIT, discard).await.ok();
        drop(slot);
    });
}

impl Source {
    /// The pipe, from now on watched by the runtime. None if it has ended or cannot be watched.
    fn watched(self) -> Option<pipe::Receiver> {
        match self {
            Self::Unwatched(end) => pipe::Receiver::from_owned_fd(end).ok(),
            Self::Watched(pipe) => Some(pipe),
            Self::Ended => None,
        }
    }
}

impl Stream {
    fn open(end: OwnedFd) -> std::io::Result<Self> {
        crisp_sys::fd::set_nonblocking(end.as_fd(), true)?;
        Ok(Self {
            source: Source::Unwatched(end),
            scratch: vec![0; 16 * 1024].into(),
            bytes: Vec::new(),
        })
    }

    fn is_open(&self) -> bool {
        !matches!(self.source, Source::Ended)
    }

    fn watch(&mut self) -> std::io::Result<()> {
        let source = std::mem::replace(&mut self.source, Source::Ended);
        self.source = match source {
            Source::Unwatched(end) => Source::Watched(pipe::Receiver::from_owned_fd(end)?),
            other => other,
        };
        Ok(())
    }

    /// One read into the scratch space; never ends once the stream has.
    async fn fill(&mut self) -> usize {
        match &mut self.source {
            Source::Watched(pipe) => pipe.read(&mut self.scratch).await.unwrap_or(0),
            Source::Unwatched(_) | Source::Ended => std::future::pending().await,
        }
    }

    /// Keeps what was read as far as there is room; nothing read is the end of the stream.
    fn keep(&mut self, count: usize, room: &mut Room) {
        if count == 0 {
            self.source = Source::Ended;
        }
        let kept = count.min(room.left);
        self.bytes.extend_from_slice(&self.scratch[..kept]);
        room.left -= kept;
        room.cut += (count - kept) as u64;
    }

    /// Reads what is there without waiting. Straight from the descriptor: the runtime may not have
    /// noticed yet that the pipe is readable.
    fn drain(&mut self, room: &mut Room) {
        // Bounded: a child left behind may keep on writing for ever.
        for _ in 0..2048 {
            let end = match &self.source {
                Source::Unwatched(end) => end.as_fd(),
                Source::Watched(pipe) => pipe.as_fd(),
                Source::Ended => return,
            };
            match nix::unistd::read(end, &mut self.scratch) {
                Ok(count) => self.keep(count, room),
                Err(_) => return,
            }
        }
    }
}

/// Kills the command when its caller gives up.
struct KillIfDropped {
    monitor: Option<Monitor>,
    exec: u64,
}

impl KillIfDropped {
    fn disarm(mut self) {
        self.monitor = None;
    }
}

impl Drop for KillIfDropped {
    fn drop(&mut self) {
        if let Some(monitor) = self.monitor.take() {
            let exec = self.exec;
            tokio::spawn(async move { monitor.exec_kill(exec).await });
        }
    }
}

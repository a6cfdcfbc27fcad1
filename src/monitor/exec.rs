//! Runs a command in a container and captures what it prints.
//!
//! The pipes are made here and their far ends travel to the monitor, which puts them straight into
//! the new process: the monitor sees no byte of the data.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
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

/// How many pipes that a command left open to its children are kept from breaking, and how long.
const LEFT_OPEN: usize = 64;
const LEFT_OPEN_LIMIT: Duration = Duration::from_secs(3600);
static LEFT_OPEN_SLOTS: Semaphore = Semaphore::const_new(LEFT_OPEN);

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
    pipe: Option<pipe::Receiver>,
    scratch: Box<[u8]>,
    bytes: Vec<u8>,
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
        let (exec, ended) = self.exec_start(command.process, &theirs).await?;
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

    async fn exec_start(
        &self,
        process: Vec<u8>,
        theirs: &[OwnedFd; 3],
    ) -> Result<(u64, oneshot::Receiver<ExecExit>), MonitorError> {
        let (request, too_large) = ExecRequest::inline_or_memfd(process, false);
        let payload = too_large
            .map(|bytes| crisp_sys::fd::sealed_memfd("process", &bytes))
            .transpose()
            .map_err(|error| MonitorError::Pipes(error.into()))?;
        let descriptors: Vec<BorrowedFd<'_>> =
            payload.iter().chain(theirs).map(AsFd::as_fd).collect();
        let call = self.link.call(Request::Exec(request), &descriptors);
        let answer = tokio::time::timeout(REQUEST_LIMIT, call)
            .await
            .map_err(|_| MonitorError::Late {
                request: "exec",
                limit: REQUEST_LIMIT,
            })??;
        match (answer.reply, answer.exec_end) {
            (Reply::ExecStarted { exec, .. }, Some(end)) => Ok((exec, end)),
            (other, _) => Err(MonitorError::refused(other)),
        }
    }

    async fn exec_kill(&self, exec: u64) {
        let request = Request::ExecSignal {
            exec,
            signo: libc::SIGKILL,
            group: true,
        };
        if let Err(error) = self.ask("kill of a command", request).await {
            tracing::debug!(exec, %error, "command could not be killed");
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
            while self.stdout.pipe.is_some() || self.stderr.pipe.is_some() {
                tokio::select! {
                    count = self.stdout.fill() => self.stdout.keep(count, &mut self.room),
                    count = self.stderr.fill() => self.stderr.keep(count, &mut self.room),
                }
            }
        };
        tokio::time::timeout(limit, both).await.ok();
    }

    fn finish(self, exit: ExecExit) -> Captured {
        for pipe in [self.stdout.pipe, self.stderr.pipe].into_iter().flatten() {
            keep_from_breaking(pipe);
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
fn keep_from_breaking(mut pipe: pipe::Receiver) {
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

impl Stream {
    fn open(end: OwnedFd) -> std::io::Result<Self> {
        crisp_sys::fd::set_nonblocking(end.as_fd(), true)?;
        let pipe = Some(pipe::Receiver::from_owned_fd(end)?);
        Ok(Self {
            pipe,
            scratch: vec![0; 16 * 1024].into(),
            bytes: Vec::new(),
        })
    }

    /// One read into the scratch space; never ends once the stream has.
    async fn fill(&mut self) -> usize {
        match &mut self.pipe {
            Some(pipe) => pipe.read(&mut self.scratch).await.unwrap_or(0),
            None => std::future::pending().await,
        }
    }

    /// Keeps what was read as far as there is room; nothing read is the end of the stream.
    fn keep(&mut self, count: usize, room: &mut Room) {
        if count == 0 {
            self.pipe = None;
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
            let Some(pipe) = &self.pipe else { return };
            match nix::unistd::read(pipe, &mut self.scratch) {
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

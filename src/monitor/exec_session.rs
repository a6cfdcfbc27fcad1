//! Runs a command in the container and hands out its streams. The monitor sees no byte of them.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use tokio::{net::unix::pipe, sync::oneshot};

use super::{
    ExecExit, Monitor, MonitorError,
    exec::{Started, keep_from_breaking},
};

/// Between SIGHUP and SIGKILL for a command that nobody wants any more.
const HANGUP_GRACE: Duration = Duration::from_secs(5);

/// What a command is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecIo {
    /// A terminal.
    Terminal,
    /// Pipes, and /dev/null for what is not wanted.
    Pipes {
        /// Whether its input is given.
        stdin: bool,
        /// Whether its output is wanted.
        stdout: bool,
        /// Whether its errors are wanted.
        stderr: bool,
    },
}

/// Our ends of a command's streams, all non-blocking.
#[derive(Debug, Default)]
pub struct ExecStreams {
    /// Write end: closing it is the end of its input.
    pub stdin: Option<OwnedFd>,
    /// Read end of its output.
    pub stdout: Option<OwnedFd>,
    /// Read end of its errors.
    pub stderr: Option<OwnedFd>,
    /// The master of its terminal: closing it hangs up. Then the others are none.
    pub terminal: Option<OwnedFd>,
}

/// A command that runs. Dropping it lets the command go on.
pub struct ExecSession {
    /// Its streams.
    pub streams: ExecStreams,
    process: ExecProcess,
}

/// The process of a command.
pub struct ExecProcess {
    monitor: Monitor,
    exec: u64,
    ended: oneshot::Receiver<ExecExit>,
}

impl ExecSession {
    /// Its streams and its process, which have different owners from here.
    #[must_use]
    pub fn split(self) -> (ExecStreams, ExecProcess) {
        (self.streams, self.process)
    }
}

impl ExecProcess {
    /// Waits for its end. To be called until it has answered once.
    ///
    /// # Errors
    /// When the monitor is gone, and with it the container.
    pub async fn ended(&mut self) -> Result<ExecExit, MonitorError> {
        (&mut self.ended).await.map_err(|_| MonitorError::Gone)
    }

    /// Ends it because nobody wants it any more: SIGHUP, SIGKILL when that was not enough.
    pub async fn hang_up(mut self) {
        self.monitor.exec_signal(self.exec, libc::SIGHUP).await;
        if tokio::time::timeout(HANGUP_GRACE, &mut self.ended)
            .await
            .is_err()
        {
            self.monitor.exec_signal(self.exec, libc::SIGKILL).await;
        }
    }
}

impl Monitor {
    /// Runs a command in the container.
    ///
    /// # Errors
    /// [`MonitorError::Refused`] when it cannot be executed.
    pub async fn exec_session(
        &self,
        process: Vec<u8>,
        io: ExecIo,
    ) -> Result<ExecSession, MonitorError> {
        let (mut streams, theirs) = match io {
            ExecIo::Terminal => (ExecStreams::default(), None),
            ExecIo::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                let made = pipes(stdin, stdout, stderr).map_err(MonitorError::Pipes)?;
                (made.0, Some(made.1))
            }
        };
        let started = self.exec_start(process, theirs.as_ref()).await?;
        let Started {
            exec,
            ended,
            console,
        } = started;
        if io == ExecIo::Terminal {
            let console = console.ok_or(MonitorError::Confused)?;
            let set = crisp_sys::fd::set_nonblocking(console.as_fd(), true);
            set.map_err(|error| MonitorError::Pipes(error.into()))?;
            streams.terminal = Some(console);
        }
        let process = ExecProcess {
            monitor: self.clone(),
            exec,
            ended,
        };
        Ok(ExecSession { streams, process })
    }
}

/// Reads on what a command's children may still write to a pipe, so that they do not die of it.
pub fn leave_open(pipe: OwnedFd) {
    if let Ok(pipe) = pipe::Receiver::from_owned_fd(pipe) {
        keep_from_breaking(pipe);
    }
}

fn pipes(stdin: bool, stdout: bool, stderr: bool) -> std::io::Result<(ExecStreams, [OwnedFd; 3])> {
    let null = || File::options().read(true).write(true).open("/dev/null");
    let mut streams = ExecStreams::default();
    let their_stdin = if stdin {
        let (read, write) = crisp_sys::fd::pipe()?;
        crisp_sys::fd::set_nonblocking(write.as_fd(), true)?;
        streams.stdin = Some(write);
        read
    } else {
        null()?.into()
    };
    let output = |wanted: bool, ours: &mut Option<OwnedFd>| -> std::io::Result<OwnedFd> {
        if !wanted {
            return Ok(null()?.into());
        }
        let (read, write) = crisp_sys::fd::pipe()?;
        crisp_sys::fd::set_nonblocking(read.as_fd(), true)?;
        *ours = Some(read);
        Ok(write)
    };
    let their_stdout = output(stdout, &mut streams.stdout)?;
    let their_stderr = output(stderr, &mut streams.stderr)?;
    Ok((streams, [their_stdin, their_stdout, their_stderr]))
}

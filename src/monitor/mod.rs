//! Client of the per-container monitor (conmon-rs): launch, requests, notices, reconnect.
//!
//! A monitor outlives the daemon. What is known about its container is asked from it, never
//! remembered: after a restart [`connect`] says hello and gets a snapshot. When a monitor dies, its
//! container is ended by the container's driver; the exit record on disk, if it got that far, wins.

mod attach;
mod connect;
mod exec;
mod exec_session;
mod launch;
mod link;

use std::time::Duration;

use conmon_rs::protocol::{Reply, Request};
use tokio::sync::mpsc;

pub use attach::AttachPipes;
pub use connect::{Connected, connect};
pub use exec::{Captured, ExecCommand, OUTPUT_LIMIT};
pub use exec::{Cut, cut_outputs};
pub use exec_session::{ExecIo, ExecProcess, ExecSession, ExecStreams, leave_open};
pub use launch::{Launch, launch};
pub use link::{ExecExit, Notice};

use crate::{
    error::{Classify, ErrorKind},
    process::Process,
};

/// How long a SIGKILL may take to show.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// How long a monitor may take for a request that does no waiting of its own.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// How long a start may take: hooks of devices run before and after it.
const START_LIMIT: Duration = Duration::from_secs(120);

/// A monitor that answers.
#[derive(Clone)]
pub struct Monitor {
    link: link::Link,
    process: Process,
}

/// The container's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Init {
    /// In the daemon's PID namespace.
    pub pid: i32,
    /// Clock ticks since boot.
    pub start_time: u64,
}

/// A monitor that has just created its container.
pub struct Launched {
    /// The monitor.
    pub monitor: Monitor,
    /// The container's first process, at the start gate.
    pub init: Init,
    /// What the monitor says unasked.
    pub notices: mpsc::UnboundedReceiver<Notice>,
}

/// What went wrong between the daemon and a monitor.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The monitor process or its socket could not be made.
    #[error("cannot start the monitor")]
    Spawn(#[source] std::io::Error),
    /// The monitor's socket could not be reached.
    #[error("cannot reach the monitor")]
    Connect(#[source] std::io::Error),
    /// The request could not be sent.
    #[error("cannot send to the monitor")]
    Send(#[source] std::io::Error),
    /// The monitor ended or hung up before it answered.
    #[error("the monitor is gone")]
    Gone,
    /// The monitor did not answer in time.
    #[error("the monitor did not answer a {request} within {limit:?}")]
    Late {
        /// What was asked.
        request: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// The monitor tried and failed.
    #[error("{stage}: {message}")]
    Refused {
        /// The step that failed.
        stage: String,
        /// The kernel's error number, or 0.
        errno: i32,
        /// What happened, for people.
        message: String,
    },
    /// The monitor was started by an earlier release, which had no such request.
    #[error("the container's monitor is of an earlier release, which cannot do that")]
    TooOld,
    /// The monitor answered something that does not fit the request.
    #[error("the monitor answered a request with something else")]
    Confused,
    /// Pipes or files for a process could not be made.
    #[error("cannot make the pipes of a process")]
    Pipes(#[source] std::io::Error),
    /// A command ran into its time limit and was killed.
    #[error("command timed out after {0:?} and was killed")]
    ExecTimeout(Duration),
}

impl Classify for MonitorError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::ExecTimeout(_) => ErrorKind::ExecTimeout,
            Self::Late { .. } => ErrorKind::Deadline,
            Self::TooOld => ErrorKind::Unsupported,
            Self::Refused { errno, .. } => match *errno {
                libc::ENOSPC | libc::ENOMEM | libc::EAGAIN | libc::EMFILE | libc::ENFILE => {
                    ErrorKind::Exhausted
                }
                libc::EINVAL | libc::ENOENT | libc::EACCES | libc::ENOTDIR | libc::ENOEXEC => {
                    ErrorKind::InvalidArgument
                }
                _ => ErrorKind::Internal,
            },
            Self::Spawn(_)
            | Self::Connect(_)
            | Self::Send(_)
            | Self::Gone
            | Self::Confused
            | Self::Pipes(_) => ErrorKind::Internal,
        }
    }
}

impl MonitorError {
    fn refused(reply: Reply) -> Self {
        match reply {
            Reply::Error {
                stage,
                errno,
                message,
            } => Self::Refused {
                stage,
                errno,
                message,
            },
            _ => Self::Confused,
        }
    }
}

impl Monitor {
    /// The monitor's own process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Opens the start gate. Returns when the program was executed, with its start time in
    /// nanoseconds since the epoch.
    ///
    /// # Errors
    /// [`MonitorError::Refused`] when the program could not be executed.
    pub async fn start(&self) -> Result<(), MonitorError> {
        let answer = self.timed("start", Request::Start, START_LIMIT).await?;
        done(answer)
    }

    /// Sends a signal to the container's first process.
    ///
    /// # Errors
    /// When it has ended or the monitor is gone.
    pub async fn signal(&self, signo: i32) -> Result<(), MonitorError> {
        self.ask("signal", Request::Signal { signo }).await
    }

    /// Kills every process of the container.
    ///
    /// # Errors
    /// When the monitor is gone or the kernel refuses.
    pub async fn kill_all(&self) -> Result<(), MonitorError> {
        self.ask("kill", Request::KillAll).await
    }

    /// Opens the log path anew. After the answer nothing is written to the old file.
    ///
    /// # Errors
    /// When the new file cannot be opened: the old one stays in use.
    pub async fn reopen_log(&self) -> Result<(), MonitorError> {
        self.ask("reopen of the log", Request::ReopenLog).await
    }

    /// Tells the monitor that its container's exit is known: it may end.
    ///
    /// # Errors
    /// When it is already gone.
    pub async fn acknowledge_exit(&self) -> Result<(), MonitorError> {
        self.ask("acknowledgement", Request::AckExit).await
    }

    /// Has the monitor kill its container and end.
    ///
    /// # Errors
    /// When it is already gone.
    pub async fn quit(&self) -> Result<(), MonitorError> {
        self.ask("quit", Request::Quit).await
    }

    /// Ends the connection; the monitor goes on.
    pub fn disconnect(&self) {
        self.link.close();
    }

    async fn ask(&self, name: &'static str, request: Request) -> Result<(), MonitorError> {
        done(self.timed(name, request, REQUEST_LIMIT).await?)
    }

    async fn timed(
        &self,
        name: &'static str,
        request: Request,
        limit: Duration,
    ) -> Result<link::Answer, MonitorError> {
        tokio::time::timeout(limit, self.link.call(request, &[]))
            .await
            .map_err(|_| MonitorError::Late {
                request: name,
                limit,
            })?
    }
}

fn done(answer: link::Answer) -> Result<(), MonitorError> {
    match answer.reply {
        Reply::Ok => Ok(()),
        other => Err(MonitorError::refused(other)),
    }
}

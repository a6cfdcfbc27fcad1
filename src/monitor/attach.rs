//! Connects a client to the streams of a running container.
//!
//! The pipes are made here and their far ends travel to the monitor, which keeps them beside the
//! log. The container never waits for a client: the monitor drops one that does not read.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use conmon_rs::protocol::{AttachRequest, Reply, Request, STAGE_UNKNOWN};

use super::{Monitor, MonitorError, REQUEST_LIMIT};

/// Bytes of output that wait for a client before it counts as one that does not read.
const OUTPUT_ROOM: i32 = 1 << 20;

/// Our ends of a client's pipes, all non-blocking.
#[derive(Debug)]
pub struct AttachPipes {
    /// Write end: closing it ends the client's input.
    pub stdin: Option<OwnedFd>,
    /// Read end of standard output, or of everything a terminal shows.
    pub stdout: Option<OwnedFd>,
    /// Read end of standard error.
    pub stderr: Option<OwnedFd>,
}

/// A pipe's ends: ours, and the one that travels.
type Ends = (OwnedFd, OwnedFd);

impl Monitor {
    /// Connects a client that wants these streams.
    ///
    /// # Errors
    /// [`MonitorError::TooOld`] when the monitor is of a release that cannot, otherwise
    /// [`MonitorError::Refused`] when it will not.
    pub async fn attach(&self, wanted: AttachRequest) -> Result<AttachPipes, MonitorError> {
        let stdin = wanted.stdin.then(input).transpose();
        let stdin = stdin.map_err(|error| MonitorError::Pipes(error.into()))?;
        let stdout = wanted.stdout.then(output).transpose();
        let stdout = stdout.map_err(|error| MonitorError::Pipes(error.into()))?;
        let stderr = wanted.stderr.then(output).transpose();
        let stderr = stderr.map_err(|error| MonitorError::Pipes(error.into()))?;
        let pipes = [&stdin, &stdout, &stderr];
        let theirs: Vec<BorrowedFd<'_>> = pipes
            .into_iter()
            .flatten()
            .map(|(_, theirs)| theirs.as_fd())
            .collect();
        let call = self.link.call(Request::Attach(wanted), &theirs);
        let answer = tokio::time::timeout(REQUEST_LIMIT, call)
            .await
            .map_err(|_| MonitorError::Late {
                request: "attach",
                limit: REQUEST_LIMIT,
            })??;
        match answer.reply {
            Reply::Ok => Ok(AttachPipes {
                stdin: stdin.map(|(ours, _)| ours),
                stdout: stdout.map(|(ours, _)| ours),
                stderr: stderr.map(|(ours, _)| ours),
            }),
            Reply::Error { stage, .. } if stage == STAGE_UNKNOWN => Err(MonitorError::TooOld),
            other => Err(MonitorError::refused(other)),
        }
    }

    /// Sets the size of the container's terminal.
    ///
    /// # Errors
    /// When it has none, a side is 0, or the monitor is gone.
    pub async fn resize(&self, width: u16, height: u16) -> Result<(), MonitorError> {
        let request = Request::Resize {
            exec: 0,
            width,
            height,
        };
        self.ask("resize", request).await
    }
}

fn input() -> crisp_sys::Result<Ends> {
    let (read, write) = crisp_sys::fd::pipe()?;
    crisp_sys::fd::set_nonblocking(write.as_fd(), true)?;
    Ok((write, read))
}

fn output() -> crisp_sys::Result<Ends> {
    let (read, write) = crisp_sys::fd::pipe()?;
    crisp_sys::fd::set_nonblocking(read.as_fd(), true)?;
    // Without the privilege it is an ordinary pipe: less patience with a slow client.
    crisp_sys::fd::set_pipe_size(write.as_fd(), OUTPUT_ROOM).ok();
    Ok((read, write))
}

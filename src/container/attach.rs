//! Connects a client to the streams of a running container.

use std::os::fd::OwnedFd;

use conmon_rs::protocol::AttachRequest;

use super::{Container, driver::ContainerError, state::State};

/// Which streams a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachSpec {
    /// To give input. The end of it closes the container's stdin only if that was made with
    /// `stdin_once` and is no terminal.
    pub stdin: bool,
    /// To see standard output, or everything a terminal shows.
    pub stdout: bool,
    /// To see standard error; a terminal has none of its own, so nothing comes there.
    pub stderr: bool,
}

/// Our ends of the client's pipes, all non-blocking. Dropping them ends the session.
#[derive(Debug)]
pub struct AttachSession {
    /// Write end: closing it is the end of the client's input.
    pub stdin: Option<OwnedFd>,
    /// Read end. Its end means that the container has ended, or that this client did not read and
    /// was dropped, which the daemon's log tells.
    pub stdout: Option<OwnedFd>,
    /// Read end, as `stdout`. None for a terminal.
    pub stderr: Option<OwnedFd>,
}

impl Container {
    /// Connects a client. It gets what is printed from now on.
    ///
    /// # Errors
    /// When the container does not run, or input is wanted and it was made without; when its
    /// monitor is of a release that cannot.
    pub async fn attach(&self, spec: AttachSpec) -> Result<AttachSession, ContainerError> {
        self.must_run("attach to")?;
        if spec.stdin && !self.spec.stdin {
            return Err(ContainerError::NoStdin);
        }
        let wanted = AttachRequest {
            stdin: spec.stdin,
            stdout: spec.stdout,
            stderr: spec.stderr && !self.spec.tty,
        };
        let monitor = self.monitor()?;
        let pipes = monitor
            .attach(wanted)
            .await
            .map_err(ContainerError::Attach)?;
        Ok(AttachSession {
            stdin: pipes.stdin,
            stdout: pipes.stdout,
            stderr: pipes.stderr,
        })
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// When it does not run or has no terminal, or a side is 0.
    pub async fn resize(&self, width: u16, height: u16) -> Result<(), ContainerError> {
        self.must_run("resize the terminal of")?;
        if !self.spec.tty {
            return Err(ContainerError::NoTerminal);
        }
        let monitor = self.monitor()?;
        monitor
            .resize(width, height)
            .await
            .map_err(ContainerError::Attach)
    }

    fn must_run(&self, verb: &'static str) -> Result<(), ContainerError> {
        let state = self.state();
        match *state {
            State::Running { .. } => Ok(()),
            _ => Err(ContainerError::WrongState {
                verb,
                state: state.word(),
            }),
        }
    }
}

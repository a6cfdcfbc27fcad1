//! Requests and their answers.

use crate::container::{Container, empty_snapshot};
use crate::create::plainly;
use crate::event_loop::Monitor;
use crate::exec::Asked;
use crate::report;
use conmon_rs::log::Log;
use conmon_rs::protocol::{
    AttachRequest, DecodeError, Frame, Phase, Reply, Request, STAGE_PHASE, STAGE_UNKNOWN,
};
use crisp_sys::{Errno, fd, pidfd, tty};
use std::os::fd::{AsFd, OwnedFd};

/// Longest message of a refusal, in bytes.
const MAX_MESSAGE: usize = 8192;
/// Packets taken from one connection before others have their turn.
const BURST: usize = 16;

/// Why a request was not done.
#[derive(Debug)]
pub struct Refusal {
    stage: &'static str,
    errno: Errno,
    message: String,
}

impl Refusal {
    /// A refusal in its parts.
    pub fn new(stage: &'static str, errno: Errno, message: impl Into<String>) -> Refusal {
        Refusal {
            stage,
            errno,
            message: message.into(),
        }
    }

    /// A refusal because of a failed system call.
    pub fn sys(stage: &'static str, error: &crisp_sys::Error) -> Refusal {
        Refusal::new(stage, error.errno(), error.to_string())
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Reply {
        let Refusal {
            stage,
            errno,
            mut message,
        } = refusal;
        // A path from a plan may be in it, as long as it likes.
        if message.len() > MAX_MESSAGE {
            let end = (0..=MAX_MESSAGE)
                .rev()
                .find(|at| message.is_char_boundary(*at));
            message.truncate(end.unwrap_or(0));
        }
        Reply::Error {
            stage: stage.to_string(),
            errno: errno.0,
            message,
        }
    }
}

type Answer = Result<(Reply, Vec<OwnedFd>), Refusal>;

fn done() -> Answer {
    Ok((Reply::Ok, Vec::new()))
}

impl Monitor {
    /// Takes what a connection says. A packet that is no frame ends the connection, nothing else.
    pub fn serve(&mut self, id: u64) {
        for _ in 0..BURST {
            let mut buffer = std::mem::take(&mut self.buffer);
            let received = self.connections.receive(id, &mut buffer);
            let decoded = received
                .map(|packet| packet.map(|(length, fds)| (Frame::decode(&buffer[..length]), fds)));
            self.buffer = buffer;
            match decoded {
                Ok(None) => return,
                Ok(Some((Ok(Frame::Request { seq, request }), fds))) => {
                    self.answer(id, seq, request, fds);
                }
                Ok(Some((Err(DecodeError::Unknown { seq, kind }), _))) if kind < 100 => {
                    let text = format!("this monitor knows no request {kind}");
                    let refusal = Refusal::new(STAGE_UNKNOWN, Errno::ENOSYS, text);
                    self.connections
                        .reply(&self.epoll, id, seq, refusal.into(), Vec::new());
                }
                Ok(Some((Ok(_), _))) => return self.drop_connection(id, "it sent no request"),
                Ok(Some((Err(error), _))) => {
                    return self.drop_connection(id, &error.to_string());
                }
                Err(_) => return self.lost(id),
            }
        }
    }

    fn drop_connection(&mut self, id: u64, why: &str) {
        report::say(&format!("conmon-rs: closed a connection: {why}"));
        self.lost(id);
    }

    /// A connection is gone. Before there is a container, the first one is all there is to live for.
    fn lost(&mut self, id: u64) {
        self.connections.close(id);
        if self.container.is_none() {
            self.finished = true;
        }
    }

    fn answer(&mut self, id: u64, seq: u64, request: Request, fds: Vec<OwnedFd>) {
        let answer = match request {
            Request::Create(create) if self.container.is_none() => {
                let answer = self.create(create, fds);
                // Without a container there is nothing to watch over.
                self.finished = answer.is_err();
                answer
            }
            Request::Create(_) => Err(Refusal::new(
                STAGE_PHASE,
                Errno::EEXIST,
                "the container is made already",
            )),
            Request::Hello { .. } => {
                self.connections.subscribe(id);
                self.hello()
            }
            Request::Quit => return self.quit(id, seq),
            Request::Exec(exec) => {
                let asked = Asked {
                    connection: id,
                    seq,
                };
                return self.exec(asked, exec, fds);
            }
            Request::AckExit => self.acknowledge_exit(),
            Request::KillAll => self.kill_all(),
            Request::Attach(attach) => self.attach(attach, fds),
            request => self.with_container(request),
        };
        let (reply, fds) = answer.unwrap_or_else(|refusal| (refusal.into(), Vec::new()));
        self.connections.reply(&self.epoll, id, seq, reply, fds);
    }

    fn hello(&self) -> Answer {
        let Some(container) = &self.container else {
            return Ok((Reply::Snapshot(empty_snapshot()), Vec::new()));
        };
        let mut fds = Vec::new();
        if container.is_alive() {
            fds.push(fd::dup(container.pidfd.as_fd()).map_err(|e| Refusal::sys("hello", &e))?);
        }
        Ok((Reply::Snapshot(container.snapshot()), fds))
    }

    fn kill_all(&mut self) -> Answer {
        let Some(container) = &mut self.container else {
            return done();
        };
        container.kill_all()?;
        done()
    }

    fn attach(&mut self, request: AttachRequest, fds: Vec<OwnedFd>) -> Answer {
        let container = self.container.as_mut().filter(|c| c.is_alive());
        let Some(container) = container else {
            let text = "there is no container to attach to, or it has ended";
            return Err(Refusal::new(STAGE_PHASE, Errno::ESRCH, text));
        };
        container.streams.attach(&self.epoll, request, fds)?;
        done()
    }

    fn with_container(&mut self, request: Request) -> Answer {
        let Some(container) = &mut self.container else {
            return Err(Refusal::new(
                STAGE_PHASE,
                Errno::ESRCH,
                "there is no container yet",
            ));
        };
        match request {
            Request::Start => container.start(&self.token)?,
            Request::Signal { signo } => container.signal(signo)?,
            Request::ReopenLog => container.reopen_log()?,
            Request::ExecSignal { exec, signo, group } => {
                container.signal_exec(exec, signo, group)?;
            }
            Request::Resize {
                exec,
                width,
                height,
            } => container.resize(exec, width, height)?,
            Request::CloseStdin => container.close_stdin()?,
            Request::Create(_)
            | Request::Hello { .. }
            | Request::KillAll
            | Request::AckExit
            | Request::Attach(_)
            | Request::Exec(_)
            | Request::Quit => {
                return Err(Refusal::new(
                    STAGE_UNKNOWN,
                    Errno::EINVAL,
                    "answered elsewhere",
                ));
            }
        }
        done()
    }
}

impl Container {
    fn signal(&self, signo: i32) -> Result<(), Refusal> {
        if !self.is_alive() {
            return Err(Refusal::new(
                STAGE_PHASE,
                Errno::ESRCH,
                "the container has ended",
            ));
        }
        pidfd::send_signal(self.pidfd.as_fd(), signo).map_err(|e| Refusal::sys("signal", &e))
    }

    /// Kills init, execs, and whatever else is in the group.
    pub fn kill_all(&mut self) -> Result<(), Refusal> {
        if self.is_alive() {
            // A zombie takes the signal without complaint, and more cannot go wrong.
            let _ = pidfd::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        }
        self.execs.kill();
        self.cgroup
            .kill()
            .map_err(|error| Refusal::new("kill", Errno(0), report::chain(&error)))
    }

    fn reopen_log(&mut self) -> Result<(), Refusal> {
        if self.phase == Phase::Exited {
            return Err(Refusal::new(
                STAGE_PHASE,
                Errno::ESRCH,
                "the container has ended",
            ));
        }
        self.log
            .as_mut()
            .map_or(Ok(()), Log::reopen)
            .map_err(|error| {
                let errno = Errno(error.raw_os_error().unwrap_or(libc::EINVAL));
                Refusal::new("log", errno, plainly(&error))
            })
    }

    fn resize(&self, exec: u64, width: u16, height: u16) -> Result<(), Refusal> {
        if exec != 0 {
            let text = "the terminal of an exec is in the hands of who asked for it";
            return Err(Refusal::new("resize", Errno::EOPNOTSUPP, text));
        }
        if width == 0 || height == 0 {
            return Err(Refusal::new(
                "resize",
                Errno::EINVAL,
                "a terminal has at least one cell",
            ));
        }
        let Some(console) = self.streams.console() else {
            return Err(Refusal::new(
                "resize",
                Errno::ENOTTY,
                "the container has no terminal",
            ));
        };
        tty::set_size(console, width, height).map_err(|error| Refusal::sys("resize", &error))
    }

    fn close_stdin(&mut self) -> Result<(), Refusal> {
        if !self.streams.has_stdin() {
            return Err(Refusal::new("stdin", Errno::EBADF, "no stdin is held open"));
        }
        self.streams.close_stdin();
        Ok(())
    }
}

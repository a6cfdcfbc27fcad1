//! Making the container.

use crate::container::Container;
use crate::event_loop::{Monitor, token};
use crate::exec::Execs;
use crate::oom::Oom;
use crate::report;
use crate::requests::Refusal;
use crate::stdio::{self, Streams};
use conmon_rs::log::Log;
use conmon_rs::protocol::{CreateRequest, MAX_PAYLOAD, Phase, Reply, SOCKET_NAME};
use crisp_oci::apply::{self, Created, IoPlan, JoinedNamespaces};
use crisp_oci::plan::Plan;
use crisp_oci::wire;
use crisp_sys::event::EPOLLIN;
use crisp_sys::{Errno, fd, heap, path, socket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// Longest id. It names things for readers only.
const MAX_ID: usize = 256;

impl Monitor {
    /// Makes the container that the request and its descriptors describe. Whatever was made by an
    /// attempt that failed is gone when this returns.
    pub fn create(
        &mut self,
        request: CreateRequest,
        mut fds: Vec<OwnedFd>,
    ) -> Result<(Reply, Vec<OwnedFd>), Refusal> {
        if fds.len() < 2 {
            return Err(Refusal::new(
                "create",
                Errno::EINVAL,
                "plan and state directory are missing",
            ));
        }
        if request.id.is_empty() || request.id.len() > MAX_ID {
            return Err(Refusal::new(
                "create",
                Errno::EINVAL,
                "container id is empty or too long",
            ));
        }
        let plan_fds = fds.split_off(2);
        let state_dir = fds.pop().expect("two descriptors are left");
        let payload = fds.pop().expect("one descriptor is left");
        let mut plan = read_plan(payload)?;
        if plan.process.terminal != request.terminal {
            return Err(Refusal::new(
                "create",
                Errno::EINVAL,
                "plan and request disagree on a terminal",
            ));
        }
        plan.process.oom_score_adj = plan.process.oom_score_adj.or(self.oom_score_adj);
        let log = request
            .log_path
            .as_deref()
            .map(|path| open_log(path, request.max_log_line));
        let log = log.transpose()?;
        let listener = self.listen(state_dir.as_fd())?;
        let (container, reply, pidfd) = match self.make(&request, &plan, &plan_fds, state_dir, log)
        {
            Ok(made) => made,
            Err((refusal, state_dir)) => {
                unlink_socket(state_dir.as_fd());
                return Err(refusal);
            }
        };
        self.listener = Some(listener);
        self.container = Some(container);
        drop((plan, plan_fds));
        heap::trim();
        Ok((reply, vec![pidfd]))
    }

    /// Listens for later daemons in the state directory. What lies there under the name is stale:
    /// a container has one monitor in its life.
    fn listen(&self, state_dir: BorrowedFd<'_>) -> Result<OwnedFd, Refusal> {
        unlink_socket(state_dir);
        let listener = || {
            let listener = socket::seqpacket_listener(state_dir, SOCKET_NAME)?;
            fd::set_nonblocking(listener.as_fd(), true)?;
            self.epoll.add(listener.as_fd(), EPOLLIN, token::LISTENER)?;
            Ok(listener)
        };
        listener().map_err(|error| Refusal::sys("socket", &error))
    }

    fn make(
        &mut self,
        request: &CreateRequest,
        plan: &Plan,
        plan_fds: &[OwnedFd],
        state_dir: OwnedFd,
        log: Option<Log>,
    ) -> Result<(Container, Reply, OwnedFd), (Refusal, OwnedFd)> {
        let wanted = stdio::Wanted {
            stdin: request.stdin,
            once: request.stdin_once,
        };
        let pipes = match request.terminal {
            true => Ok((Streams::default(), IoPlan::Terminal)),
            false => stdio::pipes(wanted),
        };
        let (streams, io) = match pipes {
            Ok(pipes) => pipes,
            Err(error) => return Err((Refusal::sys("stdio", &error), state_dir)),
        };
        let created = match apply::create(&self.token, plan, plan_fds, io) {
            Ok(created) => created,
            Err(error) => {
                let refusal =
                    Refusal::new(error.stage().name(), error.errno(), report::chain(&error));
                return Err((refusal, state_dir));
            }
        };
        let Created {
            pid,
            pidfd,
            start_time,
            gate,
            console,
            cgroup,
            hooks,
        } = created;
        let watched = match console {
            Some(master) => Streams::terminal(master, wanted),
            None => Ok(streams),
        }
        .and_then(|streams| {
            streams.watch(&self.epoll, token::STDOUT)?;
            self.epoll.add(pidfd.as_fd(), EPOLLIN, token::INIT)?;
            Ok((streams, fd::dup(pidfd.as_fd())?))
        });
        let (streams, handed_over) = match watched {
            Ok(watched) => watched,
            Err(error) => {
                drop(gate);
                let _ = crisp_sys::pidfd::send_signal(pidfd.as_fd(), libc::SIGKILL);
                let _ = crisp_sys::pidfd::wait(pidfd.as_fd());
                let _ = cgroup.kill().and_then(|()| cgroup.remove());
                return Err((Refusal::sys("stdio", &error), state_dir));
            }
        };
        let oom = Oom::watch(&self.epoll, &cgroup);
        let container = Container {
            id: request.id.clone(),
            state_dir,
            phase: Phase::Created,
            pid,
            pidfd,
            start_time,
            started_at_ns: 0,
            gate: Some(gate),
            start_failure: None,
            cgroup,
            hooks,
            hierarchy: plan.cgroup.hierarchy.clone(),
            joined: JoinedNamespaces::of(plan),
            oom_score_adj: plan.process.oom_score_adj,
            streams,
            log,
            execs: Execs::new(),
            oom,
            ending: None,
            linger: Duration::from_millis(request.linger_ms),
        };
        Ok((container, Reply::Created { pid, start_time }, handed_over))
    }
}

/// Reads and decodes the plan.
fn read_plan(payload: OwnedFd) -> Result<Plan, Refusal> {
    let bytes = read_payload(payload)?;
    wire::decode(&bytes).map_err(|e| Refusal::new("plan", Errno::EINVAL, report::chain(&e)))
}

/// Reads a payload: a memfd that nobody can change any more, of a bounded size.
pub fn read_payload(payload: OwnedFd) -> Result<Vec<u8>, Refusal> {
    if !fd::is_sealed(payload.as_fd()) {
        return Err(Refusal::new(
            "payload",
            Errno::EINVAL,
            "the payload is not a sealed memfd",
        ));
    }
    let file = std::fs::File::from(payload);
    let failed = |e: std::io::Error| {
        Refusal::new(
            "payload",
            Errno(e.raw_os_error().unwrap_or(libc::EIO)),
            e.to_string(),
        )
    };
    let size = usize::try_from(file.metadata().map_err(failed)?.len()).unwrap_or(usize::MAX);
    if size > MAX_PAYLOAD {
        return Err(Refusal::new(
            "payload",
            Errno::E2BIG,
            format!("payload of {size} bytes"),
        ));
    }
    let mut bytes = vec![0; size];
    // From the beginning, wherever the sender left the offset.
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).map_err(failed)?;
    Ok(bytes)
}

fn open_log(path: &str, max_line: u32) -> Result<Log, Refusal> {
    Log::open(Path::new(path), max_line).map_err(|error| {
        let errno = Errno(error.raw_os_error().unwrap_or(libc::EINVAL));
        Refusal::new("log", errno, format!("open {path}: {}", plainly(&error)))
    })
}

/// Why a log cannot be opened. What the kernel says of a FIFO that nobody reads, and of a link, tells
/// a reader nothing.
pub fn plainly(error: &std::io::Error) -> String {
    let meant = match error.raw_os_error() {
        Some(libc::ENXIO) => "a FIFO or a socket lies there, no file",
        Some(libc::ELOOP) => "a link lies there, which is not followed",
        _ => return error.to_string(),
    };
    format!("{meant}: {error}")
}

/// Removes our socket, so that nobody tries to connect to a monitor that is gone.
pub fn unlink_socket(state_dir: BorrowedFd<'_>) {
    // Absent is as good as removed; anything else shows when it is bound.
    let _ = path::unlinkat(state_dir, SOCKET_NAME, 0);
}

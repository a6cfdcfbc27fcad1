//! The parent's side of making a container.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crisp_sys::clone::{self, Child, CloneArgs, SingleThreaded};
use crisp_sys::fd::CWD;
use crisp_sys::{Errno, ns, path, pidfd};

use super::channel::{self, Message, ParentEnd};
use super::error::{ChildFailure, CreateError, Stage};
use super::hooks::Hooks;
use super::init::{self, Init};
use super::prepare::{Prepared, open_rootfs};
use super::sources::open_sources;
use super::{Created, IoPlan, StartGate};
use crate::cgroup::Cgroup;
use crate::plan::{NamespaceKind, Plan};

/// How long a process may take to get ready. It waits for filesystems of the host's (a hung
/// network volume), and what is not there by then will not be wanted any more.
pub(super) const LIMIT: Duration = Duration::from_secs(120);

const SIGKILL: i32 = 9;

/// Makes a container whose init has done everything but execute its program. `fds` is the table
/// the plan's [`crate::plan::FdIndex`] values point into; it may be closed afterwards. On failure
/// everything the attempt made is gone.
///
/// # Errors
/// See [`CreateError`].
pub fn create(
    token: &SingleThreaded,
    plan: &Plan,
    fds: &[OwnedFd],
    io: IoPlan,
) -> Result<Created, CreateError> {
    let prepared = Prepared::new(plan, fds, matches!(io, IoPlan::Terminal))?;
    let rootfs = open_rootfs(plan, fds)?;
    let group = &plan.cgroup;
    let cgroup = Cgroup::create(
        &group.hierarchy,
        &group.path,
        &group.resources,
        &group.device_rules,
    )
    .map_err(|source| CreateError::Cgroup {
        path: group.path.clone(),
        source,
    })?;
    let relays = prepared.relays();
    let hooks = Hooks::of(plan);
    let mut met = false;
    let launched = delegate(&cgroup, group.owner)
        .and_then(|()| launch(token, &prepared, fds, &cgroup, &rootfs, &io))
        .and_then(|launched| {
            await_ready(launched, io, relays, |pid| {
                met = true;
                match &hooks {
                    Some(hooks) => hooks.on_create(token, pid).map_err(CreateError::Hook),
                    None => Ok(()),
                }
            })
        });
    match launched {
        Ok(ready) => Ok(Created {
            pid: ready.pid,
            pidfd: ready.pidfd,
            start_time: ready.start_time,
            gate: StartGate {
                channel: ready.channel,
            },
            console: ready.console,
            cgroup,
            hooks,
        }),
        Err(error) => {
            let error = undo(error, &cgroup, plan);
            // Who has seen a container begin shall see it end.
            for failed in hooks
                .iter()
                .filter(|_| met)
                .flat_map(|h| h.after_stop(token))
            {
                let failed = super::error::hook_failure(&failed).message;
                // A reader that is gone wanted nothing.
                let _ = writeln!(std::io::stderr(), "{failed}");
            }
            Err(error)
        }
    }
}

fn delegate(cgroup: &Cgroup, owner: Option<(u32, u32)>) -> Result<(), CreateError> {
    let Some((uid, gid)) = owner else {
        return Ok(());
    };
    cgroup
        .delegate(uid, gid)
        .map_err(|source| CreateError::Cgroup {
            path: cgroup.path().to_owned(),
            source,
        })
}

fn undo(error: CreateError, cgroup: &Cgroup, plan: &Plan) -> CreateError {
    match cgroup.kill().and_then(|()| cgroup.remove()) {
        Ok(()) => error,
        Err(undo) => CreateError::Undo {
            error: Box::new(error),
            path: plan.cgroup.path.clone(),
            undo,
        },
    }
}

/// A child that is killed and reaped unless it is kept.
#[derive(Debug)]
pub(super) struct Guarded(Option<Child>);

impl Drop for Guarded {
    fn drop(&mut self) {
        if self.0.is_some() {
            // It is our child, so there is nothing to learn from a failure.
            let _ = self.end();
        }
    }
}

impl Guarded {
    pub(super) const fn new(child: Child) -> Self {
        Self(Some(child))
    }

    /// Reaps it; it is killed first in case it lives.
    pub(super) fn end(&mut self) -> crisp_sys::Result<pidfd::WaitStatus> {
        let child = self.0.take().expect("ended or kept once");
        // A zombie cannot be killed but takes the signal without complaint.
        pidfd::send_signal(child.pidfd.as_fd(), SIGKILL)?;
        pidfd::wait(child.pidfd.as_fd())
    }

    /// Reaps it after it closed its channel without having been told to go: it is exiting.
    pub(super) fn reap(&mut self) -> crisp_sys::Result<pidfd::WaitStatus> {
        let child = self.0.take().expect("ended or kept once");
        pidfd::wait(child.pidfd.as_fd())
    }

    /// Lets it live.
    pub(super) fn keep(mut self) -> Child {
        self.0.take().expect("ended or kept once")
    }

    /// Kills it and does not wait.
    pub(super) fn kill(&self) {
        if let Some(child) = &self.0 {
            // A zombie takes the signal without complaint.
            let _ = pidfd::send_signal(child.pidfd.as_fd(), SIGKILL);
        }
    }

    pub(super) fn pid(&self) -> i32 {
        self.0.as_ref().map_or(0, |child| child.pid)
    }
}

/// A child on its way, and the channel to it.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) child: Guarded,
    pub(super) channel: ParentEnd,
}

struct Ready {
    pid: i32,
    pidfd: OwnedFd,
    start_time: u64,
    channel: ParentEnd,
    console: Option<OwnedFd>,
}

fn launch(
    token: &SingleThreaded,
    prepared: &Prepared<'_>,
    fds: &[OwnedFd],
    cgroup: &Cgroup,
    rootfs: &OwnedFd,
    io: &IoPlan,
) -> Result<Launched, CreateError> {
    let at = |stage| move |source| CreateError::Parent { stage, source };
    let (parent_end, child_end) = channel::pair().map_err(at(Stage::Channel))?;
    let sources = open_sources(prepared.plan, fds, prepared.users.is_some())?;
    let args = CloneArgs {
        flags: prepared.clone_flags,
        cgroup: cgroup.clone_fd().or_else(|| cgroup.unified_fd()),
    };
    let init = Init {
        token,
        prepared,
        cgroup,
        rootfs,
        sources: &sources,
        io,
        channel: &child_end,
    };
    let make =
        || clone::clone3(token, &args, |in_child| init::run(&init, in_child)).map(Guarded::new);
    let child = match &prepared.pid_join {
        Some(join) => in_pid_namespace(join.as_fd(), NamespaceKind::Pid.flag(), make),
        None => make(),
    };
    let child = child.map_err(at(Stage::Clone))?;
    // The child's end is closed here, so that the stream ends when the child does.
    drop(child_end);
    Ok(Launched {
        child,
        channel: parent_end,
    })
}

/// Runs `make` so that children are born in another PID namespace.
pub(super) fn in_pid_namespace<T>(
    namespace: std::os::fd::BorrowedFd<'_>,
    kinds: i32,
    make: impl FnOnce() -> crisp_sys::Result<T>,
) -> crisp_sys::Result<T> {
    let own = path::openat(CWD, c"/proc/self/ns/pid", 0, 0)?;
    ns::setns(namespace, kinds)?;
    let made = make();
    // Ours again for later children; it is always allowed, so a failure would be a kernel bug,
    // and then what was made is dropped, which ends it.
    ns::setns(own.as_fd(), kinds)?;
    made
}

/// Waits until the init has done everything but exec; `hooks` is called with its number when its root
/// is built, if it says so. With `relays` a first child makes it.
fn await_ready(
    mut launched: Launched,
    io: IoPlan,
    relays: bool,
    mut hooks: impl FnMut(i32) -> Result<(), CreateError>,
) -> Result<Ready, CreateError> {
    // Our copies of the program's streams would keep pipes open behind its back.
    drop(io);
    let mut deadline = Instant::now() + LIMIT;
    let at = |source| CreateError::Parent {
        stage: Stage::Channel,
        source,
    };
    let mut heard = Heard {
        init: !relays,
        ..Heard::default()
    };
    while !(heard.init && heard.ready) {
        if heard.init && std::mem::take(&mut heard.built) {
            hooks(launched.child.pid())?;
            launched.channel.open().map_err(at)?;
            // Hooks have limits of their own.
            deadline = Instant::now() + LIMIT;
        }
        match launched.channel.receive(Some(deadline)) {
            Ok(Message::Init(init)) => {
                launched.child.reap().map_err(at)?;
                launched.child = Guarded::new(init);
                heard.init = true;
            }
            Ok(Message::Console(master)) => heard.console = Some(master),
            Ok(Message::Built) => heard.built = true,
            Ok(Message::Ready) => heard.ready = true,
            Ok(Message::Failed(failure)) => heard.failed = Some(failure),
            Ok(Message::Ended) => {
                if let Some(failure) = heard.failed {
                    return Err(failure.into());
                }
                return Err(CreateError::Ended(launched.child.reap().map_err(at)?));
            }
            Err(error) if error.errno == Errno::ETIMEDOUT => {
                return Err(CreateError::Late(LIMIT.as_secs()));
            }
            Err(source) => return Err(at(source)),
        }
        if let Some(failure) = heard.final_failure() {
            return Err(failure.into());
        }
    }
    let start_time =
        pidfd::start_time(launched.child.pid()).map_err(|source| CreateError::Parent {
            stage: Stage::Clone,
            source,
        })?;
    let Child { pid, pidfd } = launched.child.keep();
    Ok(Ready {
        pid,
        pidfd,
        start_time,
        channel: launched.channel,
        console: heard.console,
    })
}

/// What the child and the init it made have said. Each may speak before the other.
#[derive(Default)]
struct Heard {
    /// The init is known.
    init: bool,
    built: bool,
    ready: bool,
    console: Option<OwnedFd>,
    failed: Option<ChildFailure>,
}

impl Heard {
    /// The failure, once the process it is about is known and can be ended. It is kept until then.
    fn final_failure(&mut self) -> Option<ChildFailure> {
        self.failed.take_if(|_| self.init)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_heard_before_the_init_is_known_is_kept() {
        let failure = ChildFailure {
            stage: Stage::Sysctl,
            errno: Errno::ENOENT,
            message: "why".to_owned(),
        };
        let mut heard = Heard {
            failed: Some(failure.clone()),
            ..Heard::default()
        };
        assert_eq!(heard.final_failure(), None);
        heard.init = true;
        assert_eq!(heard.final_failure(), Some(failure));
        assert_eq!(heard.final_failure(), None);
    }
}

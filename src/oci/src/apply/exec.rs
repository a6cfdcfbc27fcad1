//! A further process in a running container.
//!
//! Whoever sees its PID namespace sees it from its birth on, while it still is a copy of the monitor,
//! on the host's file system. That is safe against all who have no more than a container has: it
//! cannot be looked into. CAP_SYS_PTRACE looks into everything; where somebody in the pod has it, a
//! first child, which nobody there sees, becomes all that the process is to be, and then makes it
//! ([`relay`]).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crisp_sys::clone::{self, Child, CloneArgs, InChild, SingleThreaded};
use crisp_sys::fd::{self, CWD};
use crisp_sys::path::{self, RESOLVE_NO_SYMLINKS};
use crisp_sys::pidfd::WaitStatus;
use crisp_sys::{Errno, cred, ns, process, tty};

use super::channel::{self, ChildEnd, Message};
use super::create::{Guarded, LIMIT, Launched, in_pid_namespace};
use super::error::{At, ChildFailure, ExecError, Failure, Stage, join_failure};
use super::identity;
use super::prepare::{Strings, invalid_process, join_resctrl, open_resctrl};
use super::procfs::Procfs;
use super::stdio::Terminal;
use super::users::{self, Users};
use super::{Exec, ExecRequest, IoPlan, JoinedNamespaces};
use crate::capability;
use crate::cgroup::Cgroup;
use crate::plan::{NamespaceKind, ProcessPlan};

const O_PATH: i32 = 0o10_000_000;
const O_DIRECTORY: i32 = 0o200_000;

/// What the child works from.
struct Joiner<'a> {
    init: BorrowedFd<'a>,
    /// `CLONE_NEW*` of what the child joins itself.
    kinds: i32,
    cgroup: &'a Cgroup,
    resctrl: Option<&'a OwnedFd>,
    process: &'a ProcessPlan,
    strings: &'a Strings,
    /// Of the user namespace it joins, if any.
    users: Option<Users>,
    io: &'a IoPlan,
    channel: &'a ChildEnd,
    /// The first child makes another, see above.
    relays: bool,
}

/// Starts a process in the container whose init is `init`, and waits until it executes its
/// program. The container is not touched if that fails.
///
/// # Errors
/// See [`ExecError`].
pub fn exec(
    token: &SingleThreaded,
    init: BorrowedFd<'_>,
    joined: &JoinedNamespaces,
    cgroup: &Cgroup,
    request: ExecRequest<'_>,
) -> Result<Exec, ExecError> {
    let begun = begin(token, init, joined, cgroup, request)?;
    match begun.wait(LIMIT)? {
        true => begun.finish(None),
        false => Err(begun.late()),
    }
}

/// The first half of [`exec`], for who has other things to do than to wait: a frozen group or a
/// file system that hangs may keep the process from its program for long.
///
/// # Errors
/// See [`ExecError`].
pub fn begin(
    token: &SingleThreaded,
    init: BorrowedFd<'_>,
    joined: &JoinedNamespaces,
    cgroup: &Cgroup,
    request: ExecRequest<'_>,
) -> Result<Begun, ExecError> {
    let ExecRequest { process, io } = request;
    if let Some(reason) = invalid_process(process, matches!(io, IoPlan::Terminal)) {
        return Err(ExecError::Invalid(reason));
    }
    let at = |stage| move |source| ExecError::Parent { stage, source };
    let strings = Strings::new(process).map_err(at(Stage::Plan))?;
    let joins_users = joined.flags() & NamespaceKind::User.flag() != 0;
    let users = joins_users.then(|| Users::of_process(init)).transpose();
    let users = users.map_err(at(Stage::Namespaces))?;
    if let Some(reason) = users.as_ref().and_then(|users| users.unmapped(process)) {
        return Err(ExecError::Invalid(reason));
    }
    let resctrl = open_resctrl(process).map_err(at(Stage::Resctrl))?;
    let (parent_end, child_end) = channel::pair().map_err(at(Stage::Channel))?;
    let pid_kind = NamespaceKind::Pid.flag();
    let joins_pid = joined.flags() & pid_kind != 0;
    let may_be_traced =
        process.guarded || process.capabilities.bounding & capability::SYS_PTRACE != 0;
    // Who may trace inside a user namespace may not trace us, who are of the host's.
    let relays = joins_pid && users.is_none() && may_be_traced;
    let joiner = Joiner {
        init,
        kinds: joined.flags() & !pid_kind,
        cgroup,
        resctrl: resctrl.as_ref(),
        process,
        strings: &strings,
        users,
        io: &io,
        channel: &child_end,
        relays,
    };
    let args = CloneArgs {
        flags: 0,
        cgroup: cgroup.clone_fd().or_else(|| cgroup.unified_fd()),
    };
    let make = || clone::clone3(token, &args, |child| run(&joiner, child)).map(Guarded::new);
    let child = if joins_pid && !relays {
        in_pid_namespace(init, pid_kind, make)
    } else {
        make()
    };
    let child = child.map_err(at(Stage::Clone))?;
    drop((child_end, io));
    let launched = Launched {
        child,
        channel: parent_end,
    };
    Ok(Begun {
        launched,
        relays,
        relay: None,
        heard: Heard::default(),
    })
}

/// A process on its way to its program. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Begun {
    launched: Launched,
    /// What was made first makes another and ends.
    relays: bool,
    /// What was made first, once the other is known.
    relay: Option<Guarded>,
    heard: Heard,
}

/// What was said.
#[derive(Debug, Default)]
struct Heard {
    console: Option<OwnedFd>,
    ready: bool,
    failed: Option<ChildFailure>,
    ended: bool,
}

impl AsFd for Begun {
    /// Hangs up when the process has executed its program or died.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.launched.channel.as_fd()
    }
}

impl Begun {
    /// How long a process may take; whoever waits decides what to do then.
    pub const LIMIT: Duration = LIMIT;

    /// Its number in our PID namespace.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.launched.child.pid()
    }

    /// Takes note of the process that another has made, if there is news of it: to be called when
    /// any process has ended, before it is asked which.
    pub fn meet(&mut self) {
        if self.relays && self.relay.is_none() {
            // A channel that is broken shows at the end.
            let _ = self.hear();
        }
    }

    /// Takes what was said so far.
    fn hear(&mut self) -> crisp_sys::Result<()> {
        let now = Instant::now();
        while !self.heard.ended {
            match self.launched.channel.receive(Some(now)) {
                Ok(Message::Console(master)) => self.heard.console = Some(master),
                // An exec has no hooks.
                Ok(Message::Built) => {}
                Ok(Message::Ready) => self.heard.ready = true,
                Ok(Message::Failed(failure)) => self.heard.failed = Some(failure),
                Ok(Message::Init(child)) => {
                    let made = Guarded::new(child);
                    self.relay = Some(std::mem::replace(&mut self.launched.child, made));
                }
                Ok(Message::Ended) => self.heard.ended = true,
                Err(error) if error.errno == Errno::ETIMEDOUT => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits for the hang-up, at most so long. True if it has come.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn wait(&self, limit: Duration) -> Result<bool, ExecError> {
        let hung_up = self.launched.channel.hung_up(Instant::now() + limit);
        hung_up.map_err(|source| ExecError::Parent {
            stage: Stage::Channel,
            source,
        })
    }

    /// How it went, after the hang-up. `reaped`: how the process ended, if somebody has seen that
    /// already.
    ///
    /// # Errors
    /// See [`ExecError`].
    pub fn finish(mut self, reaped: Option<WaitStatus>) -> Result<Exec, ExecError> {
        let at = |source| ExecError::Parent {
            stage: Stage::Channel,
            source,
        };
        // Everything it had to say is there.
        self.hear().map_err(at)?;
        if let Some(failure) = self.heard.failed {
            return Err(failure.into());
        }
        if !self.heard.ended {
            return Err(ExecError::Late(LIMIT.as_secs()));
        }
        // The end of the stream after this is the exec, or a death that a waiter will see.
        if self.heard.ready {
            let Child { pid, pidfd } = self.launched.child.keep();
            return Ok(Exec {
                pid,
                pidfd,
                console: self.heard.console,
            });
        }
        let status = match reaped {
            Some(status) => status,
            None => self.launched.child.reap().map_err(at)?,
        };
        Err(ExecError::Ended(status))
    }

    /// Kills it without waiting for its death, which may not come before it is thawed.
    pub fn kill(&mut self) {
        self.meet();
        for child in self.relay.iter().chain([&self.launched.child]) {
            child.kill();
        }
    }

    /// Lets go of it, alive or not: whoever collects children sees its end.
    #[must_use]
    pub fn late(mut self) -> ExecError {
        self.kill();
        for child in self.relay.into_iter().chain([self.launched.child]) {
            drop(child.keep());
        }
        ExecError::Late(LIMIT.as_secs())
    }
}

fn run(joiner: &Joiner<'_>, in_child: &InChild) -> i32 {
    let failure = match enter(joiner) {
        Err(failure) => Some(failure),
        Ok(()) => {
            let go_on = || {
                let goes_on = !joiner.relays || relay(joiner, in_child)?;
                if goes_on {
                    joiner.channel.ready().at(Stage::Channel, "")?;
                }
                Ok(goes_on)
            };
            identity::run(
                in_child,
                joiner.channel,
                joiner.process,
                joiner.strings,
                go_on,
            )
        }
    };
    if let Some(failure) = failure {
        joiner.channel.fail(&failure);
    }
    1
}

/// Makes the process that is to execute the program, and tells of it. True in that process.
///
/// It is born as what it is to be: its user, its capabilities, on its file system, and with no
/// descriptor but its streams and the channel. Only a filter that needs no privilege is still to
/// come. It waits until the parent can know of it, so that its end cannot come before it is known.
fn relay(joiner: &Joiner<'_>, in_child: &InChild) -> Result<bool, Failure> {
    let (told, tell) = fd::pipe().at(Stage::Clone, "")?;
    if let Some(made) = clone::split(in_child).at(Stage::Clone, "")? {
        joiner.channel.init(&made).at(Stage::Channel, "")?;
        fd::write_all(tell.as_fd(), &[1]).at(Stage::Channel, "")?;
        return Ok(false);
    }
    drop(tell);
    if fd::read(told.as_fd(), &mut [0]).at(Stage::Channel, "")? != 1 {
        let message = "whoever made this process is gone";
        return Err(Failure::new(Stage::Channel, Errno::EPIPE, message));
    }
    process::setsid().at(Stage::Stdio, "")?;
    if matches!(joiner.io, IoPlan::Terminal) {
        let terminal = std::io::stdin();
        tty::set_controlling(terminal.as_fd()).at(Stage::Console, "")?;
    }
    Ok(true)
}

/// Joins what the init is in, and gives back a procfs if one is needed.
fn enter_namespaces(joiner: &Joiner<'_>) -> Result<Option<Procfs>, Failure> {
    let process = joiner.process;
    let needs_procfs = identity::needs_procfs(process);
    let join = || ns::setns(joiner.init, joiner.kinds).at(Stage::Namespaces, "");
    if let Some(users) = &joiner.users {
        let procfs = users::leave_host(users, process, joiner.io, needs_procfs)?;
        join()?;
        users::become_root()?;
        return Ok(procfs);
    }
    let procfs = match needs_procfs {
        true => Some(Procfs::of_host().at(Stage::Mount, "host procfs")?),
        false => None,
    };
    join()?;
    identity::settle_oom_score(process, procfs.as_ref())?;
    Ok(procfs)
}

fn enter(joiner: &Joiner<'_>) -> Result<(), Failure> {
    // Before anything of the container's can see this copy of the monitor.
    cred::set_dumpable(false).at(Stage::Identity, "")?;
    process::reset_signals().at(Stage::Identity, "")?;
    process::umask(0);
    joiner.cgroup.join_self_v1().map_err(join_failure)?;
    join_resctrl(joiner.resctrl)?;
    let procfs = enter_namespaces(joiner)?;
    if joiner.relays {
        // Where the next child is born.
        let pid = NamespaceKind::Pid.flag();
        ns::setns(joiner.init, pid).at(Stage::Namespaces, "pid")?;
    } else {
        process::setsid().at(Stage::Stdio, "")?;
    }
    match joiner.io {
        IoPlan::Stdio(stdio) => stdio.install(joiner.process.uid).at(Stage::Stdio, "")?,
        IoPlan::Terminal => {
            let open = || {
                let flags = O_PATH | O_DIRECTORY;
                let root = path::openat2(CWD, c"/", flags, 0, RESOLVE_NO_SYMLINKS)?;
                let terminal = Terminal::open(root.as_fd())?;
                let (uid, size) = (joiner.process.uid, joiner.process.console_size);
                match joiner.relays {
                    true => terminal.install_for_another(uid, size)?,
                    false => terminal.install(uid, size)?,
                }
                joiner.channel.console(terminal.master.as_fd())
            };
            open().at(Stage::Console, "")?;
        }
    }
    identity::prepare(joiner.process, procfs.as_ref())
}

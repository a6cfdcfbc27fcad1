//! A further process in a running container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crisp_sys::clone::{self, Child, CloneArgs, InChild, SingleThreaded};
use crisp_sys::fd::CWD;
use crisp_sys::path::{self, RESOLVE_NO_SYMLINKS};
use crisp_sys::pidfd::WaitStatus;
use crisp_sys::{Errno, cred, ns, process};

use super::channel::{self, ChildEnd, Message};
use super::create::{Guarded, LIMIT, Launched, in_pid_namespace};
use super::error::{At, ExecError, Failure, Stage, join_failure};
use super::identity;
use super::prepare::{Strings, invalid_process, join_resctrl, open_resctrl};
use super::procfs::Procfs;
use super::stdio::Terminal;
use super::users::{self, Users};
use super::{Exec, ExecRequest, IoPlan, JoinedNamespaces};
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
    };
    let args = CloneArgs {
        flags: 0,
        cgroup: cgroup.clone_fd().or_else(|| cgroup.unified_fd()),
    };
    let make = || clone::clone3(token, &args, |child| run(&joiner, child)).map(Guarded::new);
    let child = if joined.flags() & pid_kind != 0 {
        in_pid_namespace(init, pid_kind, make)
    } else {
        make()
    };
    let child = child.map_err(at(Stage::Clone))?;
    drop((child_end, io));
    Ok(Begun(Launched {
        child,
        channel: parent_end,
    }))
}

/// A process on its way to its program. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Begun(Launched);

impl AsFd for Begun {
    /// Hangs up when the process has executed its program or died.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.channel.as_fd()
    }
}

impl Begun {
    /// How long a process may take; whoever waits decides what to do then.
    pub const LIMIT: Duration = LIMIT;

    /// Its number in our PID namespace.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.0.child.pid()
    }

    /// Waits for the hang-up, at most so long. True if it has come.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn wait(&self, limit: Duration) -> Result<bool, ExecError> {
        let hung_up = self.0.channel.hung_up(Instant::now() + limit);
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
    pub fn finish(self, reaped: Option<WaitStatus>) -> Result<Exec, ExecError> {
        await_exec(self.0, reaped)
    }

    /// Kills it without waiting for its death, which may not come before it is thawed.
    pub fn kill(&self) {
        self.0.child.kill();
    }

    /// Lets go of it, alive or not: whoever collects children sees its end.
    #[must_use]
    pub fn late(self) -> ExecError {
        self.0.child.kill();
        drop(self.0.child.keep());
        ExecError::Late(LIMIT.as_secs())
    }
}

fn await_exec(mut launched: Launched, reaped: Option<WaitStatus>) -> Result<Exec, ExecError> {
    let at = |source| ExecError::Parent {
        stage: Stage::Channel,
        source,
    };
    // Everything it had to say is there.
    let deadline = Instant::now();
    let mut console = None;
    let mut ready = false;
    loop {
        match launched.channel.receive(Some(deadline)) {
            Ok(Message::Console(master)) => console = Some(master),
            // An exec has no hooks.
            Ok(Message::Built) => {}
            Ok(Message::Ready) => ready = true,
            // The end of the stream after this is the exec, or a death that a waiter will see.
            Ok(Message::Ended) if ready => {
                let Child { pid, pidfd } = launched.child.keep();
                return Ok(Exec {
                    pid,
                    pidfd,
                    console,
                });
            }
            Ok(Message::Ended) => {
                let status = match reaped {
                    Some(status) => status,
                    None => launched.child.reap().map_err(at)?,
                };
                return Err(ExecError::Ended(status));
            }
            Ok(Message::Failed(failure)) => return Err(failure.into()),
            // Nobody makes another here.
            Ok(Message::Init(_)) => {}
            Err(error) if error.errno == Errno::ETIMEDOUT => {
                return Err(ExecError::Late(LIMIT.as_secs()));
            }
            Err(source) => return Err(at(source)),
        }
    }
}

fn run(joiner: &Joiner<'_>, in_child: &InChild) -> i32 {
    let failure = match enter(joiner) {
        Err(failure) => Some(failure),
        Ok(()) => {
            let go_on = || joiner.channel.ready().at(Stage::Channel, "").map(|()| true);
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
    process::setsid().at(Stage::Stdio, "")?;
    match joiner.io {
        IoPlan::Stdio(stdio) => stdio.install(joiner.process.uid).at(Stage::Stdio, "")?,
        IoPlan::Terminal => {
            let open = || {
                let flags = O_PATH | O_DIRECTORY;
                let root = path::openat2(CWD, c"/", flags, 0, RESOLVE_NO_SYMLINKS)?;
                let terminal = Terminal::open(root.as_fd())?;
                terminal.install(joiner.process.uid, joiner.process.console_size)?;
                joiner.channel.console(terminal.master.as_fd())
            };
            open().at(Stage::Console, "")?;
        }
    }
    identity::prepare(joiner.process, procfs.as_ref())
}

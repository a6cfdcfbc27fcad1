//! The kernel half: makes a container from a plan, and further processes in it.
//!
//! ```text
//! parent (monitor, one thread)                     child (the container's init)
//! create: check plan, make cgroup, open sources
//!         clone3 ------------------------------->  not dumpable, join cgroup and namespaces
//!                                                  attach root, steps, names
//! hooks                   <-- H (if any) -------  wait
//!         one byte ----------------------------->  createContainer hooks
//!                                                  pivot
//!                         <-- C (terminal) ------  open terminal
//!                                                  limits, labels, user, capabilities
//!                                                  working directory, program found
//!         Created         <-- R -----------------  close all but 0, 1, 2 and the channel; wait
//! open:   one byte ----------------------------->  filter, exec
//!         started         <-- end of stream -----
//! ```
//! In a user namespace the first child may only be the way to the init: it enters, makes the init as
//! its sibling, sends `I` with it, and ends.
//!
//! A failure anywhere in the child travels over the channel with its stage; whatever the parent
//! made is undone before `create` returns. The child does not allocate unless it fails, and waits
//! with nothing of the parent's open, so that a monitor's death is seen at once.
//!
//! All targets below the root are reached through one descriptor of it (see [`crisp_sys::path`]);
//! all sources are descriptors the parent opened before the child existed.

mod channel;
mod create;
mod error;
mod exec;
mod hooks;
mod identity;
mod init;
mod prepare;
mod procfs;
mod program;
mod sources;
mod stdio;
mod steps;
mod users;

use std::os::fd::OwnedFd;

use crate::cgroup::Cgroup;
use crate::plan::{Plan, ProcessPlan};

pub use create::create;
pub use error::{ChildFailure, CreateError, ExecError, Stage, StartError};
pub use exec::{Begun, begin, exec};
pub use hooks::{HookError, HookFailure, Hooks, Within};

/// The three standard streams of a process.
#[derive(Debug)]
pub struct Stdio {
    /// Descriptor 0.
    pub stdin: OwnedFd,
    /// Descriptor 1.
    pub stdout: OwnedFd,
    /// Descriptor 2.
    pub stderr: OwnedFd,
}

/// Where the standard streams come from. Must agree with the plan's `terminal`.
#[derive(Debug)]
pub enum IoPlan {
    /// Given descriptors.
    Stdio(Stdio),
    /// A terminal from the container's own devpts; its master comes back.
    Terminal,
}

/// A created container: everything is done but the exec of its program.
#[derive(Debug)]
pub struct Created {
    /// Its init's number in our PID namespace.
    pub pid: i32,
    /// Its init.
    pub pidfd: OwnedFd,
    /// When its init started: field 22 of /proc/pid/stat.
    pub start_time: u64,
    /// What starts it.
    pub gate: StartGate,
    /// The terminal's master.
    pub console: Option<OwnedFd>,
    /// Its group.
    pub cgroup: Cgroup,
    /// What others want to run later in its life. Whoever starts it runs
    /// [`Hooks::before_start`] before the gate opens.
    pub hooks: Option<Box<Hooks>>,
}

/// Starts a created container. Dropping it makes the init exit.
#[derive(Debug)]
pub struct StartGate {
    channel: channel::ParentEnd,
}

impl StartGate {
    /// Lets the init execute the program and waits until it did.
    ///
    /// # Errors
    /// [`StartError::Child`] with the reason exec failed; [`StartError::Gone`] if the init had
    /// ended before.
    pub fn open(self) -> Result<(), StartError> {
        self.channel.open().map_err(StartError::Gone)?;
        match self.channel.receive(None).map_err(StartError::Gone)? {
            channel::Message::Ended => Ok(()),
            channel::Message::Failed(failure) => Err(failure.into()),
            channel::Message::Ready
            | channel::Message::Built
            | channel::Message::Console(_)
            | channel::Message::Init(_) => {
                let args = "unexpected message";
                let error = crisp_sys::Error::new("start", args, crisp_sys::Errno::EBADMSG);
                Err(StartError::Gone(error))
            }
        }
    }
}

/// The kinds of namespaces that a container does not share with the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinedNamespaces {
    flags: i32,
}

impl JoinedNamespaces {
    /// Those of a plan.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        let flags = plan
            .namespaces
            .iter()
            .fold(0, |flags, entry| flags | entry.kind.flag());
        Self { flags }
    }

    /// From `CLONE_NEW*` bits, for a monitor that kept no plan.
    #[must_use]
    pub const fn from_flags(flags: i32) -> Self {
        Self { flags }
    }

    /// The `CLONE_NEW*` bits.
    #[must_use]
    pub const fn flags(self) -> i32 {
        self.flags
    }
}

/// A further process in a container.
#[derive(Debug)]
pub struct ExecRequest<'a> {
    /// The program and what it may do.
    pub process: &'a ProcessPlan,
    /// Its standard streams.
    pub io: IoPlan,
}

/// A process that [`exec`] started.
#[derive(Debug)]
pub struct Exec {
    /// Its number in our PID namespace.
    pub pid: i32,
    /// Its descriptor.
    pub pidfd: OwnedFd,
    /// The terminal's master.
    pub console: Option<OwnedFd>,
}

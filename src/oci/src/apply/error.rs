//! What can go wrong while a container or a process in it is made.

use std::fmt;

use crisp_sys::Errno;
use crisp_sys::pidfd::WaitStatus;

use super::hooks::HookError;
use crate::cgroup::{CgroupError, JoinError};

macro_rules! stages {
    ($($(#[$doc:meta])* $name:ident = $number:literal $text:literal,)*) => {
        /// Where in the making of a process it went wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Stage {
            $($(#[$doc])* $name = $number,)*
        }

        impl Stage {
            /// The stage as messages and metrics name it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            pub(super) const fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

stages! {
    /// Checking the plan.
    Plan = 1 "plan",
    /// Opening what the plan names on the host.
    Open = 2 "open",
    /// Making or joining the cgroup.
    Cgroup = 3 "cgroup",
    /// Making the process.
    Clone = 4 "clone",
    /// Joining or making namespaces.
    Namespaces = 5 "namespaces",
    /// Host and domain name.
    Hostname = 6 "hostname",
    /// Kernel parameters.
    Sysctl = 7 "sysctl",
    /// Attaching the root filesystem.
    Rootfs = 8 "rootfs",
    /// A mount.
    Mount = 9 "mount",
    /// A device node or link.
    Device = 10 "device",
    /// A masked path.
    Mask = 11 "mask",
    /// A read-only path.
    ReadOnly = 12 "readonly",
    /// The terminal.
    Console = 13 "console",
    /// Changing the root.
    Pivot = 14 "pivot",
    /// Resource limits, priorities, OOM score.
    Limits = 15 "limits",
    /// Users, groups, capabilities.
    Identity = 16 "identity",
    /// AppArmor or SELinux.
    Label = 17 "label",
    /// The filter of system calls.
    Seccomp = 18 "seccomp",
    /// The working directory.
    Cwd = 19 "cwd",
    /// Standard streams.
    Stdio = 20 "stdio",
    /// Finding or starting the program.
    Exec = 21 "exec",
    /// Talking to the process that is being made.
    Channel = 22 "channel",
    /// A hook.
    Hook = 23 "hook",
    /// Joining the group of cache and memory bandwidth.
    Resctrl = 24 "resctrl",
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a child said before it gave up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{stage}: {message}")]
pub struct ChildFailure {
    /// Where.
    pub stage: Stage,
    /// The error number, 0 if none applies.
    pub errno: Errno,
    /// What and why, for humans.
    pub message: String,
}

/// Why a container could not be created. Everything the attempt made is gone again, except what
/// [`CreateError::Undo`] names.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The plan contradicts itself.
    #[error("plan: {0}")]
    Invalid(String),
    /// The plan asks for something this release cannot do.
    #[error("unsupported: {0}")]
    Unsupported(&'static str),
    /// Something on the host that the plan names cannot be opened.
    #[error("open {path}")]
    Open {
        /// What.
        path: String,
        /// Why.
        #[source]
        source: crisp_sys::Error,
    },
    /// A volume's owners cannot be translated.
    #[error("idmapped mount of {path}: its file system, {filesystem}, cannot be idmapped")]
    Idmap {
        /// The volume.
        path: String,
        /// Type of the filesystem it lies on.
        filesystem: String,
        /// Why.
        #[source]
        source: crisp_sys::Error,
    },
    /// The cgroup cannot be made.
    #[error("cgroup {path}")]
    Cgroup {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: CgroupError,
    },
    /// A step in this process failed.
    #[error("{stage}")]
    Parent {
        /// Which.
        stage: Stage,
        /// Why.
        #[source]
        source: crisp_sys::Error,
    },
    /// The container's init gave up.
    #[error(transparent)]
    Child(#[from] ChildFailure),
    /// The container's init ended without a word.
    #[error("the container's init ended early: {0:?}")]
    Ended(WaitStatus),
    /// The container's init is stuck and was killed.
    #[error("the container's init was not ready within {0} seconds")]
    Late(u64),
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The attempt failed, and so did clearing up after it.
    #[error("{error} (and the cgroup {path} could not be removed: {undo})")]
    Undo {
        /// Why the attempt failed.
        error: Box<CreateError>,
        /// The group that is left over.
        path: String,
        /// Why it is left over.
        undo: CgroupError,
    },
}

impl CreateError {
    /// Where it went wrong.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        match self {
            Self::Invalid(_) | Self::Unsupported(_) => Stage::Plan,
            Self::Open { .. } | Self::Idmap { .. } => Stage::Open,
            Self::Cgroup { .. } => Stage::Cgroup,
            Self::Parent { stage, .. } => *stage,
            Self::Child(failure) => failure.stage,
            Self::Ended(_) | Self::Late(_) => Stage::Channel,
            Self::Hook(_) => Stage::Hook,
            Self::Undo { error, .. } => error.stage(),
        }
    }

    /// The error number, 0 if none applies.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Open { source, .. }
            | Self::Idmap { source, .. }
            | Self::Parent { source, .. } => source.errno,
            Self::Child(failure) => failure.errno,
            Self::Undo { error, .. } => error.errno(),
            Self::Unsupported(_) => Errno::EOPNOTSUPP,
            Self::Invalid(_) => Errno::EINVAL,
            Self::Late(_) => Errno::ETIMEDOUT,
            Self::Cgroup { .. } | Self::Ended(_) | Self::Hook(_) => Errno(0),
        }
    }
}

/// Why a created container did not start. Its init is ending or has ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The init said why.
    #[error(transparent)]
    Child(#[from] ChildFailure),
    /// The init is gone.
    #[error("the container's init is gone")]
    Gone(#[source] crisp_sys::Error),
}

impl StartError {
    /// The error number.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Child(failure) => failure.errno,
            Self::Gone(source) => source.errno,
        }
    }

    /// The exit code a container gets that failed this way, as shells and other runtimes have it.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self.errno() {
            Errno::ENOENT => 127,
            Errno::EACCES | Errno::ENOEXEC => 126,
            _ => 128,
        }
    }
}

/// Why a process could not be started in a container. It is gone; the container is as before.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The request contradicts itself.
    #[error("exec: {0}")]
    Invalid(String),
    /// A step in this process failed.
    #[error("{stage}")]
    Parent {
        /// Which.
        stage: Stage,
        /// Why.
        #[source]
        source: crisp_sys::Error,
    },
    /// The process gave up.
    #[error(transparent)]
    Child(#[from] ChildFailure),
    /// The process ended without a word.
    #[error("the process ended early: {0:?}")]
    Ended(WaitStatus),
    /// The process is stuck and was killed.
    #[error("the process did not start within {0} seconds")]
    Late(u64),
}

impl ExecError {
    /// Where it went wrong.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        match self {
            Self::Invalid(_) => Stage::Plan,
            Self::Parent { stage, .. } => *stage,
            Self::Child(failure) => failure.stage,
            Self::Ended(_) | Self::Late(_) => Stage::Channel,
        }
    }

    /// The error number, 0 if none applies.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Parent { source, .. } => source.errno,
            Self::Child(failure) => failure.errno,
            Self::Invalid(_) => Errno::EINVAL,
            Self::Late(_) => Errno::ETIMEDOUT,
            Self::Ended(_) => Errno(0),
        }
    }
}

/// What a child carries up to where it tells the parent.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) stage: Stage,
    pub(super) errno: Errno,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(stage: Stage, errno: Errno, message: impl Into<String>) -> Self {
        Self {
            stage,
            errno,
            message: message.into(),
        }
    }
}

/// Says where an error of a child happened and about what.
pub(super) trait At<T> {
    fn at(self, stage: Stage, subject: &str) -> Result<T, Failure>;
}

impl<T> At<T> for crisp_sys::Result<T> {
    fn at(self, stage: Stage, subject: &str) -> Result<T, Failure> {
        self.map_err(|error| {
            let message = if subject.is_empty() {
                error.to_string()
            } else {
                format!("{subject}: {error}")
            };
            Failure {
                stage,
                errno: error.errno,
                message,
            }
        })
    }
}

pub(super) fn hook_failure(error: &HookError) -> Failure {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    Failure::new(Stage::Hook, Errno(0), text)
}

pub(super) fn join_failure(error: JoinError) -> Failure {
    let errno = match error {
        JoinError::NotPrepared => Errno::EINVAL,
        JoinError::Refused { errno, .. } => Errno(errno),
    };
    Failure::new(Stage::Cgroup, errno, error.to_string())
}

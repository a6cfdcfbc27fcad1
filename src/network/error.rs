//! Why a network operation failed.

use std::{io, path::PathBuf, time::Duration};

use super::{result::ResultError, watch::NotReady};
use crate::error::{Classify, ErrorKind};

/// How one run of a plugin failed.
#[derive(Debug, thiserror::Error)]
pub enum PluginFailure {
    /// No directory has the binary.
    #[error("no executable {kind:?} in {}", list(dirs))]
    Missing {
        /// The plugin's type.
        kind: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// It could not be executed.
    #[error("cannot execute {}", path.display())]
    Spawn {
        /// The binary.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Talking to it over its pipes failed.
    #[error("lost the pipes")]
    Pipes(#[source] io::Error),
    /// It was still running at its deadline; its process group was killed.
    #[error("did not end within {:.1} s and was killed{}", after.as_secs_f64(), said(stderr))]
    Deadline {
        /// The time it was given.
        after: Duration,
        /// The end of what it wrote to its error stream, cleaned.
        stderr: String,
    },
    /// It wrote more than a result can be; it was killed.
    #[error("wrote more than {limit} bytes to its output and was killed")]
    TooMuchOutput {
        /// The limit.
        limit: usize,
    },
    /// It reported an error as the specification says.
    #[error("error {code}: {message}")]
    Reported {
        /// The specification's code; 100 and above are the plugin's own.
        code: u64,
        /// Message and details, cleaned and shortened.
        message: String,
    },
    /// It failed without a usable error object.
    #[error("ended with {status}{}", said(stderr))]
    Ended {
        /// Exit code or signal, in words.
        status: String,
        /// The end of its error stream (or of its output), cleaned.
        stderr: String,
    },
    /// It succeeded with a result that cannot be used.
    #[error("gave an unusable result")]
    Result(#[source] ResultError),
}

impl PluginFailure {
    /// The plugin asks to be tried again later (code 11), or was merely too slow.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Reported {
                code: 11 | 50 | 51,
                ..
            } | Self::Deadline { .. }
        )
    }
}

fn list(dirs: &[PathBuf]) -> String {
    let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    dirs.join(", ")
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() {
        String::new()
    } else {
        format!(", saying: {stderr}")
    }
}

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No usable configuration right now.
    #[error("the pod network is not ready")]
    NotReady(#[source] NotReady),
    /// A value of the request cannot be given to plugins.
    #[error("{field}: {problem}")]
    Request {
        /// Which value.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A plugin failed.
    #[error("network {network:?}: {verb} of plugin {plugin:?}")]
    Plugin {
        /// The network's name.
        network: String,
        /// ADD, DEL, CHECK, GC.
        verb: &'static str,
        /// The plugin's type.
        plugin: String,
        /// How.
        #[source]
        failure: PluginFailure,
    },
    /// Adding failed and so did taking back what had been added: `detach` has to be repeated.
    #[error("{first}; undoing it failed too, and is still to be done: {undo}")]
    Undo {
        /// Why adding failed, with its sources.
        first: String,
        /// Why undoing failed, with its sources.
        undo: String,
    },
    /// The chain succeeded but gave the pod no address.
    #[error("network {network:?}: the plugins gave interface {ifname:?} no address")]
    NoAddress {
        /// The network's name.
        network: String,
        /// The interface in the pod.
        ifname: String,
    },
    /// The record of attachments.
    #[error("attachment record {}: {action}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The record of an attachment is damaged; it was moved aside to this path.
    #[error("the attachment record of sandbox {sandbox} is damaged and was kept as {}: {problem}", kept.display())]
    Damaged {
        /// The sandbox.
        sandbox: String,
        /// Where the damaged file is now.
        kept: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Pinning or unpinning a namespace.
    #[error("network namespace {}: {action}", path.display())]
    Namespace {
        /// The pin.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl Classify for NetworkError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotReady(_) => ErrorKind::NotReady,
            Self::Request { .. } => ErrorKind::InvalidArgument,
            Self::Plugin {
                failure: PluginFailure::Deadline { .. },
                ..
            } => ErrorKind::Deadline,
            Self::Plugin { failure, .. } if failure.is_transient() => ErrorKind::NotReady,
            Self::Plugin { .. }
            | Self::Undo { .. }
            | Self::NoAddress { .. }
            | Self::Record { .. }
            | Self::Damaged { .. }
            | Self::Namespace { .. } => ErrorKind::Internal,
        }
    }
}

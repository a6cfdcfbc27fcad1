//! What every error of the domain can say about itself: how the caller should react.
//!
//! Each capability has its own enum, a variant per operation; this small closed set is all that the
//! gRPC edge looks at. `cri/status.rs` holds the one table from kind to gRPC code.

use std::fmt;

/// How a caller should react to an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No such thing. kubelet tolerates exactly this on status, stop and remove.
    NotFound,
    /// The request can never succeed as it is written.
    InvalidArgument,
    /// The name is taken by another live object; the message names its id.
    AlreadyExists,
    /// Right request, wrong moment: start of an exited container, exec in a created one.
    WrongState,
    /// A command ran into its own time limit: the code that makes a probe fail instead of error.
    ExecTimeout,
    /// An operation of ours ran into a deadline.
    Deadline,
    /// Not now: starting, recovering, draining, network not ready.
    NotReady,
    /// This build, kernel or configuration has no such feature.
    Unsupported,
    /// Disk, processes or memory ran out.
    Exhausted,
    /// A pull failed for a reason that kubelet recognises by the first word of the message. It must
    /// travel as gRPC UNKNOWN, because only then does kubelet's client hand the bare message on.
    PullReason,
    /// The caller gave up first.
    Cancelled,
    /// A bug of ours or a fault of the host.
    Internal,
}

/// An error that knows its kind.
pub trait Classify: std::error::Error {
    /// How the caller should react.
    fn kind(&self) -> ErrorKind;
}

/// Prints an error with all its sources, `a: b: c`. No error of this project repeats its source.
pub struct Chain<'a>(pub &'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(source) = next {
            write!(f, ": {source}")?;
            next = source.source();
        }
        Ok(())
    }
}

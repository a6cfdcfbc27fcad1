//! The one table from the kind of an error to its gRPC code, and the making of a gRPC status.

use tonic::{Code, Status};

use crate::error::{Chain, Classify, ErrorKind};

/// The gRPC code of a kind.
///
/// The rows kubelet depends on: NOT_FOUND is tolerated on status, stop and remove; DEADLINE_EXCEEDED
/// on an exec makes a probe fail instead of error; UNAVAILABLE makes its log follower assume that the
/// container still runs; UNIMPLEMENTED makes clients fall back to the unary lists; and a known reason
/// of a failed pull must travel as UNKNOWN, because only then does kubelet's client hand on the bare
/// message whose first word kubelet looks at.
#[must_use]
pub fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::WrongState => Code::FailedPrecondition,
        ErrorKind::ExecTimeout | ErrorKind::Deadline => Code::DeadlineExceeded,
        ErrorKind::NotReady => Code::Unavailable,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::Exhausted => Code::ResourceExhausted,
        ErrorKind::PullReason => Code::Unknown,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Internal => Code::Internal,
    }
}

/// Longest message sent. It travels in an HTTP/2 header, percent-encoded; clients refuse header lists
/// over 16 KiB, and would then see a protocol error instead of ours.
const MAX_MESSAGE: usize = 4 * 1024;

/// An error of the domain as the client sees it: the code of its kind, its whole chain as message.
#[must_use]
pub fn status<E: Classify + 'static>(error: &E) -> Status {
    let mut message = Chain(error).to_string();
    if message.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE)
            .rev()
            .find(|end| message.is_char_boundary(*end));
        message.truncate(end.unwrap_or(0));
        message.push_str(" ...");
    }
    Status::new(code(error.kind()), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_row() {
        for (kind, expected) in [
            (ErrorKind::NotFound, Code::NotFound),
            (ErrorKind::InvalidArgument, Code::InvalidArgument),
            (ErrorKind::AlreadyExists, Code::AlreadyExists),
            (ErrorKind::WrongState, Code::FailedPrecondition),
            (ErrorKind::ExecTimeout, Code::DeadlineExceeded),
            (ErrorKind::Deadline, Code::DeadlineExceeded),
            (ErrorKind::NotReady, Code::Unavailable),
            (ErrorKind::Unsupported, Code::Unimplemented),
            (ErrorKind::Exhausted, Code::ResourceExhausted),
            (ErrorKind::PullReason, Code::Unknown),
            (ErrorKind::Cancelled, Code::Cancelled),
            (ErrorKind::Internal, Code::Internal),
        ] {
            assert_eq!(code(kind), expected, "{kind:?}");
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("stop container {id}")]
    struct Outer {
        id: &'static str,
        #[source]
        source: std::io::Error,
    }

    impl Classify for Outer {
        fn kind(&self) -> ErrorKind {
            ErrorKind::Internal
        }
    }

    #[test]
    fn the_message_is_the_whole_chain() {
        let error = Outer {
            id: "abc",
            source: std::io::Error::other("no such cgroup"),
        };
        let status = status(&error);
        assert_eq!(status.message(), "stop container abc: no such cgroup");
        assert_eq!(status.code(), Code::Internal);
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let error = Outer {
            id: "x",
            source: std::io::Error::other("ü".repeat(10_000)),
        };
        let message = status(&error).message().to_owned();
        assert!(message.len() <= MAX_MESSAGE + 4 && message.ends_with(" ..."));
    }
}

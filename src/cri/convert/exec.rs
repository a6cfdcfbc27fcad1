//! Requests about a running container: exec and stop.

use std::time::Duration;

use super::{
    container::{MAX_TOGETHER, arguments},
    field::{Field, Result},
};
use crate::cri::proto;

/// Longest time anybody waits, a hundred years in seconds: adding it to a clock does not overflow.
const LONGEST: u64 = 100 * 365 * 24 * 60 * 60;

/// A validated `ExecSyncRequest`, without the container it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecSyncSpec {
    /// Command line, never empty.
    pub command: Vec<String>,
    /// Time after which the process group is killed; `None` is no limit.
    pub timeout: Option<Duration>,
}

/// Validates an exec that is waited for.
///
/// # Errors
/// The command is empty or the timeout negative.
pub fn exec_sync(request: &proto::ExecSyncRequest) -> Result<ExecSyncSpec> {
    let command = command(&request.cmd)?;
    Ok(ExecSyncSpec {
        command,
        timeout: seconds(request.timeout)?,
    })
}

/// The grace period of a stop; zero kills at once.
///
/// # Errors
/// It is negative.
pub fn stop_timeout(request: &proto::StopContainerRequest) -> Result<Duration> {
    seconds(request.timeout).map(Option::unwrap_or_default)
}

pub(super) fn command(words: &[String]) -> Result<Vec<String>> {
    let field = Field::root("cmd");
    if words.first().is_none_or(String::is_empty) {
        return Err(field.invalid("must name a program"));
    }
    let length: usize = words.iter().map(String::len).sum();
    if length > MAX_TOGETHER {
        let problem = format!("must be at most {MAX_TOGETHER} bytes together, is {length}");
        return Err(field.invalid(problem));
    }
    arguments(&field, words)
}

fn seconds(timeout: i64) -> Result<Option<Duration>> {
    let seconds = Field::root("timeout").not_negative(timeout)?;
    Ok((seconds != 0).then(|| Duration::from_secs(seconds.min(LONGEST))))
}

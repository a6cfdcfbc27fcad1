//! What sandboxes and containers use, read when it is asked for.
//!
//! The daemon reads control groups, the network counters of pods and writable layers itself: no
//! monitor is asked, so that none that hangs can hold up a list. A list is read on one blocking
//! thread, one object after the other, each with the time of its own reading. What vanishes meanwhile
//! is left out and fails nobody.
//!
//! - [`container`], [`pod`]: what is asked for every second.
//! - [`metrics`]: everything there is, under the names that cAdvisor gave it.
//! - [`layer`]: writable layers, measured beside the requests.
//! - [`rate`]: CPU time per time, from successive readings.

pub mod container;
pub mod layer;
pub mod metrics;
pub mod pod;
pub mod processes;
pub mod rate;
mod subject;

pub use crisp_oci::cgroup::{Pressure, Share, Stats as GroupUsage};

use crate::error::{Classify, ErrorKind};

/// Why there is nothing to tell of an object.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// It is over: nothing of it uses anything.
    #[error("{kind} {id} is not running")]
    NotRunning {
        /// "sandbox" or "container".
        kind: &'static str,
        /// Which.
        id: String,
    },
    /// Its control group cannot be read.
    #[error("cannot read the usage of {kind} {id}")]
    Read {
        /// "sandbox" or "container".
        kind: &'static str,
        /// Which.
        id: String,
        /// Why.
        #[source]
        source: crisp_oci::cgroup::CgroupError,
    },
    /// The daemon is ending.
    #[error("the daemon is shutting down")]
    Draining,
}

impl Classify for StatsError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotRunning { .. } => ErrorKind::WrongState,
            Self::Read { .. } => ErrorKind::Internal,
            Self::Draining => ErrorKind::NotReady,
        }
    }
}

/// Runs the reading of a list on a thread that may block.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StatsError> {
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|_| StatsError::Draining)
}

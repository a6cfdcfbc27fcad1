//! What is kept of a sandbox on disk: the journal of its making and undoing.

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::spec::SandboxSpec;
use crate::id::SandboxId;

/// How far a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Being made: after a crash it is undone.
    Making,
    /// Made and served.
    Ready,
    /// Being stopped: after a crash the stop is finished. Listed as not ready.
    Stopping,
    /// Stopped, or its pause died. Still listed.
    NotReady,
    /// Being undone or removed: after a crash the undoing is finished.
    Removing,
}

/// A pause as a record names it: the number alone may be recycled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseRecord {
    /// In the daemon's PID namespace.
    pub pid: i32,
    /// Clock ticks since boot.
    pub start_time: u64,
}

/// A sandbox on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Its id.
    pub id: SandboxId,
    /// Counts up with every write: of two copies the higher one is newer.
    pub generation: u64,
    /// How far it is.
    pub phase: Phase,
    /// What was asked for.
    pub spec: SandboxSpec,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// The cgroup below which pause and containers lie.
    pub cgroup_parent: String,
    /// Whether that cgroup is ours to remove: crisp made it, for this sandbox or an earlier one.
    pub cgroup_parent_ours: bool,
    /// Pause, once it was started.
    pub pause: Option<PauseRecord>,
    /// Path where the network namespace is pinned; none with host network.
    pub netns: Option<PathBuf>,
    /// True from before the first plugin runs until all have undone their work.
    pub network_attached: bool,
    /// Addresses of the pod.
    pub ips: Vec<IpAddr>,
    /// What the pod may use since an update; what `spec` says before.
    #[serde(default)]
    pub resources: Option<super::update::PodResources>,
}

//! What is kept of a container on disk: the journal of its making and undoing.

use serde::{Deserialize, Serialize};

use super::{Fixed, spec::ContainerSpec, state::State};
use crate::{
    id::{ContainerId, SandboxId},
    sandbox::spec::Resources,
};

/// How far a container is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Being made: after a crash it is undone.
    Making,
    /// Made and served. After a crash the kernel and the monitor are asked first.
    Live(State),
    /// Being undone or removed: after a crash the undoing is finished.
    Removing,
}

/// A container on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its id.
    pub id: ContainerId,
    /// Counts up with every write: of two copies the higher one is newer.
    pub generation: u64,
    /// How far it is.
    pub phase: Phase,
    /// Whose it is.
    pub sandbox: SandboxId,
    /// What was asked for.
    pub spec: ContainerSpec,
    /// What was found out when it was made.
    pub fixed: Fixed,
    /// The limits in force since an update; those of `spec` before.
    #[serde(default)]
    pub resources: Option<Resources>,
}

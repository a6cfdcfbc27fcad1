//! What a container uses.

use std::{sync::Arc, time::Instant};

use crisp_oci::cgroup::Cgroup;

use super::{
    GroupUsage, StatsError, blocking,
    layer::{Layer, LayerUsage},
    rate::Rate,
};
use crate::{
    clock,
    container::{Container, state::State},
    node::Node,
};

/// What must be remembered of a container between two readings.
#[derive(Debug, Default)]
pub struct Memory {
    rate: Rate,
    layer: Arc<Layer>,
}

/// What a container used at a moment.
#[derive(Clone)]
pub struct ContainerUsage {
    /// Whose.
    pub container: Arc<Container>,
    /// When, nanoseconds since the epoch.
    pub at: i64,
    /// Of its control group.
    pub group: GroupUsage,
    /// Billionths of a core at present; nothing before the second reading.
    pub nano_cores: Option<u64>,
    /// Of its writable layer, as last measured.
    pub layer: Option<LayerUsage>,
}

/// Of one container.
///
/// # Errors
/// When it has exited, or its control group cannot be read.
pub async fn one(
    node: &Arc<Node>,
    container: Arc<Container>,
) -> Result<ContainerUsage, StatsError> {
    let node = Arc::clone(node);
    blocking(move || read(&node, &container)).await?
}

/// Of those that run. One that ends meanwhile is left out.
///
/// # Errors
/// Only when the daemon is ending.
pub async fn list(
    node: &Arc<Node>,
    containers: Vec<Arc<Container>>,
) -> Result<Vec<ContainerUsage>, StatsError> {
    let node = Arc::clone(node);
    blocking(move || read_all(&node, &containers)).await
}

pub(super) fn read_all(node: &Node, containers: &[Arc<Container>]) -> Vec<ContainerUsage> {
    let read = |container| match read(node, container) {
        Ok(usage) => Some(usage),
        Err(error) => {
            tracing::debug!(error = %crate::error::Chain(&error), "left out of a list");
            None
        }
    };
    let running = containers.iter().filter(|container| runs(container));
    running.filter_map(read).collect()
}

/// Whether it has processes.
#[must_use]
pub fn runs(container: &Container) -> bool {
    matches!(*container.state(), State::Created | State::Running { .. })
}

fn read(node: &Node, container: &Arc<Container>) -> Result<ContainerUsage, StatsError> {
    let id = || container.id.to_string();
    if !runs(container) {
        return Err(StatsError::NotRunning {
            kind: "container",
            id: id(),
        });
    }
    let (at, now) = (clock::now_ns(), Instant::now());
    let group = Cgroup::observe(&node.facts.cgroup, &container.fixed.cgroup)
        .and_then(|group| group.stats())
        .map_err(|source| StatsError::Read {
            kind: "container",
            id: id(),
            source,
        })?;
    Ok(ContainerUsage {
        at,
        nano_cores: group
            .cpu_usage_ns
            .and_then(|counter| container.usage.rate.note(now, counter)),
        group,
        layer: layer(node, container),
        container: Arc::clone(container),
    })
}

/// What its writable layer takes, as last measured. It has one until it is removed.
#[must_use]
pub fn layer(node: &Node, container: &Container) -> Option<LayerUsage> {
    let upper = node.paths.container_root(&container.id).join("upper");
    container.usage.layer.usage(&upper, &node.surveyor)
}

/// What the writable layers of all containers take together, those that have exited among them.
///
/// # Errors
/// Only when the daemon is ending.
pub async fn layers(node: &Arc<Node>) -> Result<LayerUsage, StatsError> {
    let node = Arc::clone(node);
    blocking(move || {
        let mut sum = LayerUsage {
            at: clock::now_ns(),
            ..LayerUsage::default()
        };
        for usage in node
            .containers
            .all()
            .iter()
            .filter_map(|container| layer(&node, container))
        {
            // A sum is as old as its oldest part.
            sum.at = sum.at.min(usage.at);
            sum.bytes += usage.bytes;
            sum.inodes += usage.inodes;
        }
        sum
    })
    .await
}

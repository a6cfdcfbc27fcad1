//! Answers about usage and metrics, for the lists and their streams alike.

use std::sync::Arc;

use tonic::Status;

use super::{
    convert::{
        filter::{ContainerFilter, SandboxFilter},
        stats as render,
    },
    proto,
    status::status,
    views,
};
use crate::{
    container::Container,
    node::Node,
    sandbox::Sandbox,
    stats::{container, metrics, pod},
};

/// Of one container.
///
/// # Errors
/// When it does not run.
pub async fn container(
    node: &Arc<Node>,
    of: Arc<Container>,
) -> Result<proto::ContainerStats, Status> {
    let usage = container::one(node, of).await.map_err(|e| status(&e))?;
    Ok(render::container(&usage, node.paths.root()))
}

/// Of the running containers that pass a filter.
///
/// # Errors
/// Only when the daemon is ending.
pub async fn containers(
    node: &Arc<Node>,
    filter: Option<&proto::ContainerStatsFilter>,
) -> Result<Vec<proto::ContainerStats>, Status> {
    let filter = ContainerFilter::from_stats(filter);
    let mut wanted = node.containers.all();
    wanted.retain(|container| filter.matches(&views::container(container)));
    let usage = container::list(node, wanted)
        .await
        .map_err(|e| status(&e))?;
    let stats = usage.iter();
    Ok(stats
        .map(|usage| render::container(usage, node.paths.root()))
        .collect())
}

/// Of one pod.
///
/// # Errors
/// When it is not ready.
pub async fn pod(node: &Arc<Node>, of: Arc<Sandbox>) -> Result<proto::PodSandboxStats, Status> {
    let usage = pod::one(node, of).await.map_err(|e| status(&e))?;
    Ok(render::pod(&usage, node.paths.root()))
}

/// Of the ready pods that pass a filter.
///
/// # Errors
/// Only when the daemon is ending.
pub async fn pods(
    node: &Arc<Node>,
    filter: Option<&proto::PodSandboxStatsFilter>,
) -> Result<Vec<proto::PodSandboxStats>, Status> {
    let filter = SandboxFilter::from_stats(filter);
    let mut wanted = node.sandboxes.all();
    wanted.retain(|sandbox| filter.matches(&views::sandbox(sandbox)));
    let usage = pod::list(node, wanted).await.map_err(|e| status(&e))?;
    let stats = usage.iter();
    Ok(stats
        .map(|usage| render::pod(usage, node.paths.root()))
        .collect())
}

/// What metrics there are.
#[must_use]
pub fn descriptors(node: &Node) -> Vec<proto::MetricDescriptor> {
    metrics::descriptors(node).map(render::descriptor).collect()
}

/// The metrics of all ready pods.
///
/// # Errors
/// Only when the daemon is ending.
pub async fn pod_metrics(node: &Arc<Node>) -> Result<Vec<proto::PodSandboxMetrics>, Status> {
    let all = node.sandboxes.all();
    let told = metrics::list(node, all).await.map_err(|e| status(&e))?;
    Ok(told.iter().map(render::metrics).collect())
}

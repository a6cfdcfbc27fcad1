//! Domain objects as the plain views that answers are rendered from.

use std::sync::Arc;

use super::convert::render::{ContainerPhase, ContainerView, SandboxView};
use crate::{
    bundle::ResolvedUser,
    container::{Container, state::State},
    sandbox::{Published, Sandbox, spec::Resources},
};

/// A sandbox as of now.
#[must_use]
pub fn sandbox(sandbox: &Sandbox) -> SandboxView {
    sandbox_as(sandbox, &sandbox.published())
}

/// A sandbox as it was when this was known of it.
#[must_use]
pub fn sandbox_as(sandbox: &Sandbox, published: &Published) -> SandboxView {
    SandboxView {
        id: sandbox.id.clone(),
        spec: Arc::clone(&sandbox.spec),
        ready: published.ready,
        created_at_ns: sandbox.created_at,
        ips: published.ips.clone(),
    }
}

/// A container as of now.
#[must_use]
pub fn container(container: &Container) -> ContainerView {
    container_as(container, &container.state(), &container.resources())
}

/// A container as it was in this state, under these limits.
#[must_use]
pub fn container_as(container: &Container, state: &State, resources: &Resources) -> ContainerView {
    let (phase, exit) = match state {
        State::Created => (ContainerPhase::Created, None),
        State::Running { .. } => (ContainerPhase::Running, None),
        State::Exited(exit) => (ContainerPhase::Exited, Some(exit)),
    };
    let started_at_ns = match state {
        State::Created => 0,
        State::Running { started_at } => *started_at,
        State::Exited(exit) => exit.started_at,
    };
    let fixed = &container.fixed;
    ContainerView {
        id: container.id.clone(),
        sandbox_id: container.sandbox.clone(),
        spec: Arc::clone(&container.spec),
        phase,
        created_at_ns: fixed.created_at,
        started_at_ns,
        finished_at_ns: exit.map_or(0, |exit| exit.finished_at),
        exit_code: exit.map_or(0, |exit| exit.code),
        reason: exit.map_or_else(String::new, |exit| exit.reason.clone()),
        message: exit.map_or_else(String::new, |exit| exit.message.clone()),
        image: container.spec.image.image.clone(),
        image_ref: fixed.image_ref.clone(),
        image_id: fixed.image_id.clone(),
        log_path: fixed.log_path.to_string_lossy().into_owned(),
        image_volumes: fixed.image_volumes.clone(),
        resources: resources.clone(),
        user: ResolvedUser {
            uid: fixed.uid,
            gid: fixed.gid,
            additional_gids: fixed.groups.clone(),
            home: None,
        },
        stop_signal: fixed.stop_signal,
    }
}

//! Filters of list requests, as pure functions on views. All conditions of a filter must hold.

use std::collections::{BTreeMap, HashMap};

use super::{
    field::{Field, Result},
    render::{ContainerPhase, ContainerView, SandboxView},
};
use crate::cri::proto;

/// Which sandboxes a request wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxFilter {
    /// Id or prefix of one; empty matches all.
    pub id: String,
    /// READY or not; `None` matches both.
    pub ready: Option<bool>,
    /// Labels that must be there with these values.
    pub labels: BTreeMap<String, String>,
}

/// Which containers a request wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerFilter {
    /// Id or prefix of one; empty matches all.
    pub id: String,
    /// State; `None` matches all.
    pub phase: Option<ContainerPhase>,
    /// Id of the sandbox or prefix of one; empty matches all.
    pub sandbox_id: String,
    /// Labels that must be there with these values.
    pub labels: BTreeMap<String, String>,
}

impl SandboxFilter {
    /// From a list request; no filter matches everything.
    ///
    /// # Errors
    /// The state is no value of its enum.
    pub fn from_proto(filter: Option<&proto::PodSandboxFilter>) -> Result<Self> {
        let Some(filter) = filter else {
            return Ok(Self::default());
        };
        let state = Field::root("filter")
            .child("state")
            .enumerated_option(filter.state.as_ref().map(|state| state.state))?;
        Ok(Self {
            id: filter.id.clone(),
            ready: state
                .map(|state: proto::PodSandboxState| state == proto::PodSandboxState::SandboxReady),
            labels: ordered(&filter.label_selector),
        })
    }

    /// From a request for statistics.
    #[must_use]
    pub fn from_stats(filter: Option<&proto::PodSandboxStatsFilter>) -> Self {
        let Some(filter) = filter else {
            return Self::default();
        };
        Self {
            id: filter.id.clone(),
            ready: None,
            labels: ordered(&filter.label_selector),
        }
    }

    /// Whether a sandbox is wanted.
    #[must_use]
    pub fn matches(&self, view: &SandboxView) -> bool {
        view.id.as_str().starts_with(&self.id)
            && self.ready.is_none_or(|ready| ready == view.ready)
            && selects(&self.labels, &view.spec.labels)
    }
}

impl ContainerFilter {
    /// From a list request; no filter matches everything.
    ///
    /// # Errors
    /// The state is no value of its enum.
    pub fn from_proto(filter: Option<&proto::ContainerFilter>) -> Result<Self> {
        let Some(filter) = filter else {
            return Ok(Self::default());
        };
        let state = Field::root("filter")
            .child("state")
            .enumerated_option(filter.state.as_ref().map(|state| state.state))?;
        Ok(Self {
            id: filter.id.clone(),
            phase: state.map(phase),
            sandbox_id: filter.pod_sandbox_id.clone(),
            labels: ordered(&filter.label_selector),
        })
    }

    /// From a request for statistics.
    #[must_use]
    pub fn from_stats(filter: Option<&proto::ContainerStatsFilter>) -> Self {
        let Some(filter) = filter else {
            return Self::default();
        };
        Self {
            id: filter.id.clone(),
            phase: None,
            sandbox_id: filter.pod_sandbox_id.clone(),
            labels: ordered(&filter.label_selector),
        }
    }

    /// Whether a container is wanted.
    #[must_use]
    pub fn matches(&self, view: &ContainerView) -> bool {
        view.id.as_str().starts_with(&self.id)
            && view.sandbox_id.as_str().starts_with(&self.sandbox_id)
            && self.phase.is_none_or(|phase| phase == view.phase)
            && selects(&self.labels, &view.spec.labels)
    }
}

fn phase(state: proto::ContainerState) -> ContainerPhase {
    match state {
        proto::ContainerState::ContainerCreated => ContainerPhase::Created,
        proto::ContainerState::ContainerRunning => ContainerPhase::Running,
        proto::ContainerState::ContainerExited => ContainerPhase::Exited,
        proto::ContainerState::ContainerUnknown => ContainerPhase::Unknown,
    }
}

fn ordered(map: &HashMap<String, String>) -> BTreeMap<String, String> {
    map.iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

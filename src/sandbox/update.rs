//! Takes note of what a pod as a whole may use, and limits the pod's group by it where that group is
//! ours. kubelet has resized its own groups before it tells us.

use std::sync::Arc;

use crisp_oci::cgroup::{Cgroup, CgroupError};
use serde::{Deserialize, Serialize};

use super::{
    record::SandboxRecord,
    spec::{HugepageLimit, Resources},
};
use crate::{
    bundle::{self, BundleError},
    container::update::group_kind,
    error::{Chain, Classify, ErrorKind},
    node::Node,
    store::record_file::RecordFileError,
};

/// What a pod may use.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PodResources {
    /// Beside its containers.
    pub overhead: Option<Resources>,
    /// Its containers together.
    pub resources: Option<Resources>,
}

/// Why resources of a pod were not taken.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The sandbox is stopped.
    #[error("cannot update a sandbox that is not ready")]
    NotReady,
    /// This host has no such limits.
    #[error(transparent)]
    Bundle(BundleError),
    /// They cannot be expressed.
    #[error(transparent)]
    Plan(crisp_oci::spec::PlanError),
    /// The kernel refused; nothing is changed.
    #[error("cannot change the limits of the pod, nothing is changed")]
    Group(#[source] CgroupError),
    /// The change could not be recorded, and is taken back.
    #[error("cannot record the limits of the pod, nothing is changed")]
    Record(#[source] RecordFileError),
    /// The daemon is ending.
    #[error("the daemon is shutting down")]
    Draining,
}

impl Classify for UpdateError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotReady => ErrorKind::WrongState,
            Self::Bundle(_) | Self::Plan(_) => ErrorKind::InvalidArgument,
            Self::Group(error) => group_kind(error),
            Self::Record(error) => error.kind(),
            Self::Draining => ErrorKind::NotReady,
        }
    }
}

impl PodResources {
    /// Of a sandbox: as last updated, else as asked for when it was made.
    #[must_use]
    pub fn of(record: &SandboxRecord) -> Self {
        record.resources.clone().unwrap_or_else(|| Self {
            overhead: record.spec.overhead.clone(),
            resources: record.spec.resources.clone(),
        })
    }

    /// With what an update names in the place of what was there.
    #[must_use]
    pub fn updated(&self, asked: &Self) -> Self {
        let one = |old: &Option<Resources>, new: &Option<Resources>| match (old, new) {
            (Some(old), Some(new)) => Some(old.updated(new)),
            (old, new) => new.clone().or_else(|| old.clone()),
        };
        Self {
            overhead: one(&self.overhead, &asked.overhead),
            resources: one(&self.resources, &asked.resources),
        }
    }

    /// The limits of the pod's group: those of the containers and what the pod costs beside them. A
    /// limit that the containers do not have, the pod has not either.
    #[must_use]
    pub fn total(&self) -> Resources {
        let mut total = self.resources.clone().unwrap_or_default();
        let extra = self.overhead.clone().unwrap_or_default();
        let more = |limit: Option<u64>, extra: Option<u64>| {
            limit.map(|limit| limit.saturating_add(extra.unwrap_or(0)))
        };
        total.memory_limit = more(total.memory_limit, extra.memory_limit);
        total.cpu_shares = more(total.cpu_shares, extra.cpu_shares);
        // Quotas add up when they are of the same period.
        if let (Some(quota), Some(extra_quota)) = (total.cpu_quota, extra.cpu_quota)
            && quota > 0
            && extra_quota > 0
            && (extra.cpu_period.is_none() || extra.cpu_period == total.cpu_period)
        {
            total.cpu_quota = Some(quota.saturating_add(extra_quota));
        }
        for HugepageLimit { page_size, limit } in extra.hugepage_limits {
            let same = total
                .hugepage_limits
                .iter_mut()
                .find(|known| known.page_size == page_size);
            if let Some(known) = same {
                known.limit = known.limit.saturating_add(limit);
            }
        }
        // A sum with swap is kept by each container; that of a pod is not asked for.
        total.memory_swap_limit = total.memory_swap_limit.filter(|sum| *sum < 0);
        total
    }
}

/// Takes the resources. Called by the sandbox's driver, which publishes them.
pub(super) async fn apply(
    node: &Arc<Node>,
    record: &mut SandboxRecord,
    asked: &PodResources,
) -> Result<(), UpdateError> {
    let after = PodResources::of(record).updated(asked);
    let done = match record.cgroup_parent_ours {
        false => None,
        true => {
            let spec =
                bundle::linux_resources(&after.total(), &node.host).map_err(UpdateError::Bundle)?;
            let mut limits = crisp_oci::spec::resources(Some(&spec)).map_err(UpdateError::Plan)?;
            limits.memory_check_before_update = true;
            let group = Cgroup::observe(&node.facts.cgroup, &record.cgroup_parent)
                .map_err(UpdateError::Group)?;
            let updated = tokio::task::spawn_blocking(move || group.update(&limits)).await;
            let updated = updated.map_err(|_| UpdateError::Draining)?;
            Some(updated.map_err(UpdateError::Group)?)
        }
    };
    let recorded = record.resources.replace(after);
    if let Err(error) = node.write_sandbox(record).await {
        record.resources = recorded;
        let undo = move || done.map_or(Ok(()), crisp_oci::cgroup::Updated::undo);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(undo).await {
            tracing::error!(id = %record.id, error = %Chain(&error), "cannot take back limits");
        }
        return Err(UpdateError::Record(error));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_may_use_what_its_containers_may_and_what_it_costs() {
        let resources = Resources {
            cpu_period: Some(100_000),
            cpu_quota: Some(50_000),
            cpu_shares: Some(512),
            memory_limit: Some(1000),
            ..Resources::default()
        };
        let overhead = Resources {
            cpu_quota: Some(1_000),
            memory_limit: Some(24),
            ..Resources::default()
        };
        let pod = PodResources {
            overhead: Some(overhead.clone()),
            resources: Some(resources),
        };
        let total = pod.total();
        assert_eq!(
            (total.memory_limit, total.cpu_quota, total.cpu_shares),
            (Some(1024), Some(51_000), Some(512))
        );
        let unlimited = PodResources {
            overhead: Some(overhead),
            resources: None,
        };
        assert_eq!(unlimited.total(), Resources::default());
    }

    #[test]
    fn an_update_keeps_what_it_does_not_name() {
        let shares = |shares| Resources {
            cpu_shares: Some(shares),
            ..Resources::default()
        };
        let before = PodResources {
            overhead: Some(shares(2)),
            resources: Some(shares(10)),
        };
        let asked = PodResources {
            overhead: None,
            resources: Some(Resources {
                memory_limit: Some(5),
                ..Resources::default()
            }),
        };
        let after = before.updated(&asked);
        assert_eq!(after.overhead, before.overhead);
        let resources = after.resources.unwrap();
        assert_eq!(
            (resources.cpu_shares, resources.memory_limit),
            (Some(10), Some(5))
        );
    }
}

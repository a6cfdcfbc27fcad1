//! What a pod uses: its control group, its network, its containers.

use std::{collections::HashMap, sync::Arc, time::Instant};

use crisp_oci::cgroup::{Cgroup, CgroupError};

use super::{
    GroupUsage, StatsError, blocking,
    container::{self, ContainerUsage},
    rate::Rate,
};
use crate::{
    clock,
    container::Container,
    id::SandboxId,
    network::counters::{Counters, Interface},
    node::Node,
    sandbox::{Sandbox, pause},
};

/// The interface that Kubernetes means by a pod's network.
const DEFAULT_INTERFACE: &str = "eth0";

/// What must be remembered of a sandbox between two readings.
#[derive(Debug, Default)]
pub struct Memory {
    rate: Rate,
    counters: Counters,
}

impl Memory {
    /// Lets go of what would keep the pod's network namespace alive.
    pub fn close_network(&self) {
        self.counters.close();
    }
}

/// What a pod used at a moment.
#[derive(Clone)]
pub struct PodUsage {
    /// Whose.
    pub sandbox: Arc<Sandbox>,
    /// When, nanoseconds since the epoch.
    pub at: i64,
    /// Of its control group, or, where pods share one, of its pause and its containers.
    pub group: GroupUsage,
    /// Billionths of a core at present; nothing before the second reading.
    pub nano_cores: Option<u64>,
    /// Of its network; nothing for a pod of the host's.
    pub network: Option<NetworkUsage>,
    /// Of its containers that run.
    pub containers: Vec<ContainerUsage>,
}

/// What went through the interfaces of a pod.
#[derive(Debug, Clone, Default)]
pub struct NetworkUsage {
    /// When it was read, nanoseconds since the epoch.
    pub at: i64,
    /// The one that Kubernetes means.
    pub default: Option<Interface>,
    /// The others, loopback left out.
    pub others: Vec<Interface>,
}

impl NetworkUsage {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Interface> {
        self.default.iter().chain(&self.others)
    }
}

/// Sandboxes and containers as they are when a list begins.
pub(super) struct Census {
    containers: HashMap<SandboxId, Vec<Arc<Container>>>,
    /// How many sandboxes lie below each parent group.
    parents: HashMap<String, usize>,
}

impl Census {
    pub(super) fn take(node: &Node) -> Self {
        let mut containers = HashMap::<_, Vec<_>>::new();
        for container in node.containers.all() {
            let of = containers.entry(container.sandbox.clone()).or_default();
            of.push(container);
        }
        let mut parents = HashMap::new();
        for sandbox in node.sandboxes.all() {
            if sandbox.published().ready {
                *parents.entry(sandbox.cgroup_parent.clone()).or_default() += 1;
            }
        }
        Self {
            containers,
            parents,
        }
    }

    pub(super) fn containers(&self, sandbox: &SandboxId) -> &[Arc<Container>] {
        self.containers.get(sandbox).map_or(&[], Vec::as_slice)
    }

    /// Whether the parent group holds this pod and nothing else, as kubelet makes them.
    pub(super) fn has_own_group(&self, sandbox: &Sandbox) -> bool {
        self.parents
            .get(&sandbox.cgroup_parent)
            .is_none_or(|count| *count < 2)
    }
}

/// Of one pod.
///
/// # Errors
/// When it is not ready, or its control group cannot be read.
pub async fn one(node: &Arc<Node>, sandbox: Arc<Sandbox>) -> Result<PodUsage, StatsError> {
    let node = Arc::clone(node);
    blocking(move || read(&node, &Census::take(&node), &sandbox)).await?
}

/// Of those that are ready. One that is stopped meanwhile is left out.
///
/// # Errors
/// Only when the daemon is ending.
pub async fn list(
    node: &Arc<Node>,
    sandboxes: Vec<Arc<Sandbox>>,
) -> Result<Vec<PodUsage>, StatsError> {
    let node = Arc::clone(node);
    blocking(move || {
        let census = Census::take(&node);
        read_all(&node, &census, &sandboxes)
    })
    .await
}

pub(super) fn read_all(node: &Node, census: &Census, sandboxes: &[Arc<Sandbox>]) -> Vec<PodUsage> {
    let read = |sandbox| match read(node, census, sandbox) {
        Ok(usage) => Some(usage),
        Err(error) => {
            tracing::debug!(error = %crate::error::Chain(&error), "left out of a list");
            None
        }
    };
    let ready = sandboxes.iter().filter(|sandbox| sandbox.published().ready);
    ready.filter_map(read).collect()
}

fn read(node: &Node, census: &Census, sandbox: &Arc<Sandbox>) -> Result<PodUsage, StatsError> {
    if !sandbox.published().ready {
        return Err(StatsError::NotRunning {
            kind: "sandbox",
            id: sandbox.id.to_string(),
        });
    }
    let (at, now) = (clock::now_ns(), Instant::now());
    let mine = census.containers(&sandbox.id);
    let containers = container::read_all(node, mine);
    let group = match census.has_own_group(sandbox) {
        true => observe(node, &sandbox.cgroup_parent).and_then(|group| group.stats()),
        false => observe(node, &pause::cgroup_of(&sandbox.cgroup_parent, &sandbox.id))
            .and_then(|group| group.stats())
            .map(|pause| sum(pause, &containers)),
    };
    let group = group.map_err(|source| StatsError::Read {
        kind: "sandbox",
        id: sandbox.id.to_string(),
        source,
    })?;
    Ok(PodUsage {
        at,
        nano_cores: group
            .cpu_usage_ns
            .and_then(|counter| sandbox.usage.rate.note(now, counter)),
        group,
        network: network(sandbox),
        containers,
        sandbox: Arc::clone(sandbox),
    })
}

pub(super) fn observe(node: &Node, path: &str) -> Result<Cgroup, CgroupError> {
    Cgroup::observe(&node.facts.cgroup, path)
}

/// What pause and containers use together. Limits and pressure have no sum.
fn sum(pause: GroupUsage, containers: &[ContainerUsage]) -> GroupUsage {
    let none = GroupUsage {
        memory_limit: None,
        swap_limit: None,
        pids_limit: None,
        cpu_pressure: None,
        memory_pressure: None,
        io_pressure: None,
        ..pause
    };
    let add = |a: Option<u64>, b: Option<u64>| match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    };
    containers.iter().fold(none, |sum, container| {
        let one = &container.group;
        GroupUsage {
            cpu_usage_ns: add(sum.cpu_usage_ns, one.cpu_usage_ns),
            memory_usage: add(sum.memory_usage, one.memory_usage),
            memory_working_set: add(sum.memory_working_set, one.memory_working_set),
            memory_rss: add(sum.memory_rss, one.memory_rss),
            page_faults: add(sum.page_faults, one.page_faults),
            major_page_faults: add(sum.major_page_faults, one.major_page_faults),
            swap_usage: add(sum.swap_usage, one.swap_usage),
            pids: add(sum.pids, one.pids),
            ..sum
        }
    })
}

fn network(sandbox: &Sandbox) -> Option<NetworkUsage> {
    let published = sandbox.published();
    let netns = published.netns.as_ref()?;
    let at = clock::now_ns();
    match sandbox.usage.counters.read(netns) {
        Ok(mut others) => {
            let default = others
                .iter()
                .position(|interface| interface.name == DEFAULT_INTERFACE)
                .map(|at| others.remove(at));
            Some(NetworkUsage {
                at,
                default,
                others,
            })
        }
        Err(error) => {
            tracing::debug!(id = %sandbox.id, error = %crate::error::Chain(&error), "no network counters");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_has_no_limits_and_adds_what_is_known() {
        let pause = GroupUsage {
            cpu_usage_ns: Some(5),
            memory_usage: Some(7),
            memory_limit: Some(9),
            cpu_pressure: Some(super::super::Pressure::default()),
            ..GroupUsage::default()
        };
        let alone = sum(pause, &[]);
        assert_eq!((alone.cpu_usage_ns, alone.memory_limit), (Some(5), None));
        assert_eq!((alone.cpu_pressure, alone.pids), (None, None));
    }
}

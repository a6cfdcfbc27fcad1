//! What a client asked of a pod sandbox: owned, validated, free of protobuf.
//!
//! Built by `cri::convert` and trusted ever after; stored in the sandbox's record file (the record's
//! envelope carries the version, so a field is only ever added, with `#[serde(default)]`). Maps are
//! ordered so that a spec has one serialised form. Types that a container's spec shares live here,
//! since every container has a sandbox.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// A validated `PodSandboxConfig` with the handler it asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Who the sandbox is, in kubelet's words.
    pub metadata: SandboxMetadata,
    /// Host name asked for; `None` lets the runtime choose (the node's own with host network).
    pub hostname: Option<String>,
    /// Absolute, normalised directory below which containers' log paths lie.
    pub log_directory: Option<PathBuf>,
    /// DNS of the pod; `None` means the node's own resolv.conf.
    pub dns: Option<DnsConfig>,
    /// Ports to publish on the host and ports merely declared.
    pub port_mappings: Vec<PortMapping>,
    /// Labels, reported and selected on, never interpreted.
    pub labels: BTreeMap<String, String>,
    /// Annotations, reported; only those that CNI names are ever interpreted.
    pub annotations: BTreeMap<String, String>,
    /// Parent cgroup as asked (`/kubepods/burstable/podX` or a systemd slice); `None`: the default.
    pub cgroup_parent: Option<String>,
    /// Namespaces, identity and confinement of the sandbox.
    pub security: SandboxSecurity,
    /// Namespaced kernel parameters, dots as separators. Checked against the namespaces asked for.
    pub sysctls: BTreeMap<String, String>,
    /// What the pod costs beside its containers (RuntimeClass overhead).
    pub overhead: Option<Resources>,
    /// Sum of the containers' resources, as kubelet computed it.
    pub resources: Option<Resources>,
    /// Name of the runtime handler; empty is the default one.
    pub runtime_handler: String,
}

impl SandboxSpec {
    /// The directory of a pod's logs joined with a container's relative log path.
    #[must_use]
    pub fn log_file(&self, relative: Option<&str>) -> Option<PathBuf> {
        Some(self.log_directory.as_ref()?.join(relative?))
    }

    /// Whether the pod uses the host's network namespace.
    #[must_use]
    pub fn host_network(&self) -> bool {
        self.security.namespaces.network == NetworkMode::Node
    }
}

/// The four words that identify an attempt at a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SandboxMetadata {
    /// Name of the pod.
    pub name: String,
    /// UID of the pod.
    pub uid: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// How often kubelet tried before.
    pub attempt: u32,
}

/// DNS settings of a pod; each text is free of white space and control characters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsConfig {
    /// Name servers: IP addresses, IPv6 ones perhaps with a zone.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options such as `ndots:5`.
    pub options: Vec<String>,
}

/// Transport of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The lower-case name that CNI's `portMappings` uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A port of the pod, published on the host if `host_port` is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport.
    pub protocol: Protocol,
    /// Port inside the pod, 1 to 65535.
    pub container_port: u16,
    /// Port on the host, 1 to 65535; `None` when the port is only declared.
    pub host_port: Option<u16>,
    /// Host address to listen on; `None` is every address.
    pub host_ip: Option<IpAddr>,
}

/// Network namespace of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// One of its own for the pod.
    #[default]
    Pod,
    /// The host's.
    Node,
}

/// IPC namespace of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpcMode {
    /// One of its own for the pod.
    #[default]
    Pod,
    /// The host's.
    Node,
}

/// PID namespace of a sandbox or container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PidMode {
    /// Shared by the pod; pause is PID 1 in it.
    #[default]
    Pod,
    /// Each container has its own.
    Container,
    /// The host's.
    Node,
    /// That of another container of the pod, named by id or unique prefix (containers only).
    Target(String),
}

/// One range of a user namespace's map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id outside.
    pub host_id: u32,
    /// First id inside.
    pub container_id: u32,
    /// Number of ids, at least 1; neither range reaches 2^32 - 1.
    pub length: u32,
}

/// User namespace of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UserNamespace {
    /// The host's.
    #[default]
    Node,
    /// One of its own, with one range for users and one for groups (kubelet's rule).
    Pod {
        /// Users.
        uids: IdMapping,
        /// Groups.
        gids: IdMapping,
    },
}

/// The namespaces asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NamespaceOptions {
    /// Network.
    pub network: NetworkMode,
    /// Processes.
    pub pid: PidMode,
    /// System V IPC, POSIX queues, /dev/shm.
    pub ipc: IpcMode,
    /// Users.
    pub user: UserNamespace,
}

/// SELinux context asked for; absent parts are filled by the policy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SelinuxOptions {
    /// User part.
    pub user: Option<String>,
    /// Role part.
    pub role: Option<String>,
    /// Type part.
    pub kind: Option<String>,
    /// Level part (MCS categories).
    pub level: Option<String>,
}

/// A seccomp or AppArmor profile asked for. Not asking at all is an `Option::None` around it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecurityProfile {
    /// The runtime's default.
    RuntimeDefault,
    /// No confinement.
    Unconfined,
    /// For seccomp an absolute path of a profile on the host, for AppArmor a loaded profile's name.
    Localhost(String),
}

/// Whether groups of the image's /etc/group count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SupplementalGroupsPolicy {
    /// Groups asked for and those the image's /etc/group gives the user.
    #[default]
    Merge,
    /// Only the groups asked for (and the primary one).
    Strict,
}

/// Identity and confinement of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SandboxSecurity {
    /// Namespaces.
    pub namespaces: NamespaceOptions,
    /// SELinux context.
    pub selinux: Option<SelinuxOptions>,
    /// User id of the sandbox's own process.
    pub run_as_user: Option<u32>,
    /// Group id; never without a user.
    pub run_as_group: Option<u32>,
    /// Further groups.
    pub supplemental_groups: Vec<u32>,
    /// How further groups are made.
    pub supplemental_groups_policy: SupplementalGroupsPolicy,
    /// Whether the sandbox's own root is read-only (it has none here; kept for reports).
    pub readonly_rootfs: bool,
    /// Whether privileged containers may run in the pod.
    pub privileged: bool,
    /// Seccomp profile of the sandbox's own process.
    pub seccomp: Option<SecurityProfile>,
    /// AppArmor profile of the sandbox's own process.
    pub apparmor: Option<SecurityProfile>,
}

/// A hugepage limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugepageLimit {
    /// Page size as the kernel names it: `2MB`, `1GB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// Linux resources of a container, pod overhead or pod. `None` and empty mean: not asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resources {
    /// CFS period in microseconds.
    pub cpu_period: Option<u64>,
    /// CFS quota in microseconds; -1 is unlimited.
    pub cpu_quota: Option<i64>,
    /// Relative weight, v1 scale.
    pub cpu_shares: Option<u64>,
    /// Memory limit in bytes.
    pub memory_limit: Option<u64>,
    /// Memory plus swap in bytes; -1 is unlimited.
    pub memory_swap_limit: Option<i64>,
    /// OOM score adjustment, -1000 to 1000. CRI cannot say "absent", so 0 is what nobody asked for.
    pub oom_score_adj: i32,
    /// CPUs as a list such as `0-3,7`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes as a list.
    pub cpuset_mems: Option<String>,
    /// Hugepage limits, one per page size.
    pub hugepage_limits: Vec<HugepageLimit>,
    /// Raw cgroup v2 files to write (`memory.high` and the like).
    pub unified: BTreeMap<String, String>,
}

impl Resources {
    /// These resources after an update: what the update names replaces what was there, the rest
    /// stays. An `oom_score_adj` of 0 is what an update says that does not speak of it.
    #[must_use]
    pub fn updated(&self, update: &Self) -> Self {
        let mut hugepage_limits = self.hugepage_limits.clone();
        for limit in &update.hugepage_limits {
            hugepage_limits.retain(|known| known.page_size != limit.page_size);
            hugepage_limits.push(limit.clone());
        }
        let mut unified = self.unified.clone();
        unified.extend(update.unified.clone());
        let or_old = |new: &Option<String>, old: &Option<String>| new.clone().or(old.clone());
        Self {
            cpu_period: update.cpu_period.or(self.cpu_period),
            cpu_quota: update.cpu_quota.or(self.cpu_quota),
            cpu_shares: update.cpu_shares.or(self.cpu_shares),
            memory_limit: update.memory_limit.or(self.memory_limit),
            memory_swap_limit: update.memory_swap_limit.or(self.memory_swap_limit),
            oom_score_adj: match update.oom_score_adj {
                0 => self.oom_score_adj,
                asked => asked,
            },
            cpuset_cpus: or_old(&update.cpuset_cpus, &self.cpuset_cpus),
            cpuset_mems: or_old(&update.cpuset_mems, &self.cpuset_mems),
            hugepage_limits,
            unified,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_changes_what_it_names_and_nothing_else() {
        let hugepage = |page_size: &str, limit| HugepageLimit {
            page_size: page_size.into(),
            limit,
        };
        let before = Resources {
            cpu_shares: Some(2),
            memory_limit: Some(100),
            oom_score_adj: 900,
            cpuset_cpus: Some("0".into()),
            hugepage_limits: vec![hugepage("1GB", 1), hugepage("2MB", 2)],
            unified: BTreeMap::from([("memory.high".into(), "1".into())]),
            ..Resources::default()
        };
        assert_eq!(before.updated(&Resources::default()), before);
        let update = Resources {
            memory_limit: Some(200),
            cpu_quota: Some(-1),
            hugepage_limits: vec![hugepage("1GB", 3)],
            unified: BTreeMap::from([("memory.min".into(), "2".into())]),
            ..Resources::default()
        };
        let after = before.updated(&update);
        assert_eq!((after.memory_limit, after.cpu_quota), (Some(200), Some(-1)));
        assert_eq!((after.cpu_shares, after.oom_score_adj), (Some(2), 900));
        assert_eq!(
            after.hugepage_limits,
            [hugepage("2MB", 2), hugepage("1GB", 3)]
        );
        assert_eq!(after.unified.len(), 2);
    }
}

//! Domain state to protobuf answers. Services fill a view; the shapes of the protocol are made here.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::container::signal_from_proto;
use crate::{
    bundle::ResolvedUser,
    container::spec::{ContainerSpec, MountSpec, Propagation, Signal},
    cri::proto,
    id::{ContainerId, SandboxId},
    sandbox::spec::{
        IdMapping, IpcMode, NamespaceOptions, NetworkMode, PidMode, Resources, SandboxMetadata,
        SandboxSpec, UserNamespace,
    },
};

/// A sandbox as lists and statuses show it.
#[derive(Debug, Clone)]
pub struct SandboxView {
    /// Id.
    pub id: SandboxId,
    /// What was asked.
    pub spec: Arc<SandboxSpec>,
    /// Whether it is ready; everything else is NOTREADY.
    pub ready: bool,
    /// When it was made, nanoseconds since 1970; never 0.
    pub created_at_ns: i64,
    /// Addresses, the primary one first; empty with host network.
    pub ips: Vec<IpAddr>,
}

/// State of a container as the protocol names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerPhase {
    /// Made, not started.
    Created,
    /// Its init runs.
    Running,
    /// Its init has ended.
    Exited,
    /// Nothing certain is known.
    Unknown,
}

/// A container as lists and statuses show it.
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// Id.
    pub id: ContainerId,
    /// Id of its sandbox.
    pub sandbox_id: SandboxId,
    /// What was asked.
    pub spec: Arc<ContainerSpec>,
    /// State.
    pub phase: ContainerPhase,
    /// When it was made, nanoseconds since 1970; never 0.
    pub created_at_ns: i64,
    /// When it was started; 0 before.
    pub started_at_ns: i64,
    /// When it ended; 0 before.
    pub finished_at_ns: i64,
    /// Exit code, 128 + n for signal n; 0 before it ended.
    pub exit_code: i32,
    /// One word: `Completed`, `Error`, `OOMKilled`; empty before it ended.
    pub reason: String,
    /// A sentence for humans, mostly empty.
    pub message: String,
    /// Name to show for the image: a tag of it, else what was asked.
    pub image: String,
    /// A digest reference of the image, else its id; never empty.
    pub image_ref: String,
    /// Id of the image.
    pub image_id: String,
    /// Absolute path of the log; never empty, also when the client gave none.
    pub log_path: String,
    /// Ids of the images that are volumes, by the place of the mount.
    pub image_volumes: BTreeMap<usize, String>,
    /// Limits in force now.
    pub resources: Resources,
    /// Identity of its process.
    pub user: ResolvedUser,
    /// Signal that stops it.
    pub stop_signal: Signal,
}

/// Adds what `PodSandboxStatus` says beside lists.
#[must_use]
pub fn sandbox_status(view: &SandboxView) -> proto::PodSandboxStatus {
    let namespaces = proto::Namespace {
        options: Some(namespace_options(&view.spec.security.namespaces)),
    };
    proto::PodSandboxStatus {
        id: view.id.to_string(),
        metadata: Some(sandbox_metadata(&view.spec.metadata)),
        state: sandbox_state(view.ready).into(),
        created_at: view.created_at_ns,
        network: Some(network(&view.ips)),
        linux: Some(proto::LinuxPodSandboxStatus {
            namespaces: Some(namespaces),
        }),
        labels: map(&view.spec.labels),
        annotations: map(&view.spec.annotations),
        runtime_handler: view.spec.runtime_handler.clone(),
    }
}

/// A row of a list of sandboxes.
#[must_use]
pub fn sandbox_item(view: &SandboxView) -> proto::PodSandbox {
    proto::PodSandbox {
        id: view.id.to_string(),
        metadata: Some(sandbox_metadata(&view.spec.metadata)),
        state: sandbox_state(view.ready).into(),
        created_at: view.created_at_ns,
        labels: map(&view.spec.labels),
        annotations: map(&view.spec.annotations),
        runtime_handler: view.spec.runtime_handler.clone(),
    }
}

/// Adds what `ContainerStatus` says beside lists.
#[must_use]
pub fn container_status(view: &ContainerView) -> proto::ContainerStatus {
    proto::ContainerStatus {
        id: view.id.to_string(),
        metadata: Some(container_metadata(view)),
        state: container_state(view.phase).into(),
        created_at: view.created_at_ns,
        started_at: view.started_at_ns,
        finished_at: view.finished_at_ns,
        exit_code: view.exit_code,
        image: Some(image_spec(view)),
        image_ref: view.image_ref.clone(),
        reason: view.reason.clone(),
        message: view.message.clone(),
        labels: map(&view.spec.labels),
        annotations: map(&view.spec.annotations),
        mounts: mounts(view),
        log_path: view.log_path.clone(),
        resources: Some(proto::ContainerResources {
            linux: Some(linux_resources(&view.resources)),
            windows: None,
        }),
        image_id: view.image_id.clone(),
        user: Some(proto::ContainerUser {
            linux: Some(user(&view.user)),
        }),
        stop_signal: signal_to_proto(view.stop_signal).into(),
    }
}

/// A row of a list of containers.
#[must_use]
pub fn container_item(view: &ContainerView) -> proto::Container {
    proto::Container {
        id: view.id.to_string(),
        pod_sandbox_id: view.sandbox_id.to_string(),
        metadata: Some(container_metadata(view)),
        image: Some(image_spec(view)),
        image_ref: view.image_ref.clone(),
        state: container_state(view.phase).into(),
        created_at: view.created_at_ns,
        labels: map(&view.spec.labels),
        annotations: map(&view.spec.annotations),
        image_id: view.image_id.clone(),
    }
}

/// Resources as the protocol says them; what was not asked for is 0 or empty.
#[must_use]
pub fn linux_resources(resources: &Resources) -> proto::LinuxContainerResources {
    let signed = |value: Option<u64>| i64::try_from(value.unwrap_or(0)).unwrap_or(i64::MAX);
    proto::LinuxContainerResources {
        cpu_period: signed(resources.cpu_period),
        cpu_quota: resources.cpu_quota.unwrap_or(0),
        cpu_shares: signed(resources.cpu_shares),
        memory_limit_in_bytes: signed(resources.memory_limit),
        oom_score_adj: resources.oom_score_adj.into(),
        cpuset_cpus: resources.cpuset_cpus.clone().unwrap_or_default(),
        cpuset_mems: resources.cpuset_mems.clone().unwrap_or_default(),
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|h| proto::HugepageLimit {
                page_size: h.page_size.clone(),
                limit: h.limit,
            })
            .collect(),
        unified: map(&resources.unified),
        memory_swap_limit_in_bytes: resources.memory_swap_limit.unwrap_or(0),
    }
}

/// Signal of the protocol's enum. Where two names share a number, the enum's first one is taken.
#[must_use]
pub fn signal_to_proto(signal: Signal) -> proto::Signal {
    (1..)
        .map_while(|number| proto::Signal::try_from(number).ok())
        .find(|candidate| signal_from_proto(*candidate) == Some(signal))
        .unwrap_or(proto::Signal::RuntimeDefault)
}

/// The state of a sandbox.
#[must_use]
pub fn sandbox_state(ready: bool) -> proto::PodSandboxState {
    if ready {
        proto::PodSandboxState::SandboxReady
    } else {
        proto::PodSandboxState::SandboxNotready
    }
}

/// The state of a container.
#[must_use]
pub fn container_state(phase: ContainerPhase) -> proto::ContainerState {
    match phase {
        ContainerPhase::Created => proto::ContainerState::ContainerCreated,
        ContainerPhase::Running => proto::ContainerState::ContainerRunning,
        ContainerPhase::Exited => proto::ContainerState::ContainerExited,
        ContainerPhase::Unknown => proto::ContainerState::ContainerUnknown,
    }
}

pub(super) fn map(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

pub(super) fn sandbox_metadata(metadata: &SandboxMetadata) -> proto::PodSandboxMetadata {
    proto::PodSandboxMetadata {
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        namespace: metadata.namespace.clone(),
        attempt: metadata.attempt,
    }
}

fn container_metadata(view: &ContainerView) -> proto::ContainerMetadata {
    let metadata = &view.spec.metadata;
    proto::ContainerMetadata {
        name: metadata.name.clone(),
        attempt: metadata.attempt,
    }
}

fn image_spec(view: &ContainerView) -> proto::ImageSpec {
    let asked = &view.spec.image;
    proto::ImageSpec {
        image: view.image.clone(),
        annotations: map(&asked.annotations),
        user_specified_image: asked.user_specified_image.clone(),
        runtime_handler: asked.runtime_handler.clone(),
        image_ref: String::new(),
    }
}

fn network(ips: &[IpAddr]) -> proto::PodSandboxNetworkStatus {
    let mut ips = ips.iter().map(ToString::to_string);
    proto::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| proto::PodIp { ip }).collect(),
    }
}

fn namespace_options(options: &NamespaceOptions) -> proto::NamespaceOption {
    let (pid, target_id) = match &options.pid {
        PidMode::Pod => (proto::NamespaceMode::Pod, String::new()),
        PidMode::Container => (proto::NamespaceMode::Container, String::new()),
        PidMode::Node => (proto::NamespaceMode::Node, String::new()),
        PidMode::Target(id) => (proto::NamespaceMode::Target, id.clone()),
    };
    let network = match options.network {
        NetworkMode::Pod => proto::NamespaceMode::Pod,
        NetworkMode::Node => proto::NamespaceMode::Node,
    };
    let ipc = match options.ipc {
        IpcMode::Pod => proto::NamespaceMode::Pod,
        IpcMode::Node => proto::NamespaceMode::Node,
    };
    let user = match options.user {
        UserNamespace::Node => proto::UserNamespace {
            mode: proto::NamespaceMode::Node.into(),
            ..proto::UserNamespace::default()
        },
        UserNamespace::Pod { uids, gids } => proto::UserNamespace {
            mode: proto::NamespaceMode::Pod.into(),
            uids: vec![id_mapping(uids)],
            gids: vec![id_mapping(gids)],
        },
    };
    proto::NamespaceOption {
        network: network.into(),
        pid: pid.into(),
        ipc: ipc.into(),
        target_id,
        userns_options: Some(user),
    }
}

fn id_mapping(mapping: IdMapping) -> proto::IdMapping {
    proto::IdMapping {
        host_id: mapping.host_id,
        container_id: mapping.container_id,
        length: mapping.length,
    }
}

fn mounts(view: &ContainerView) -> Vec<proto::Mount> {
    let numbered = view.spec.mounts.iter().enumerate();
    numbered
        .map(|(index, asked)| mount(asked, view.image_volumes.get(&index)))
        .collect()
}

/// `image_id` is the id of the image that was mounted, which is what a pull of it answers.
fn mount(mount: &MountSpec, image_id: Option<&String>) -> proto::Mount {
    let propagation = match mount.propagation {
        Propagation::Private => proto::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => proto::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => proto::MountPropagation::PropagationBidirectional,
    };
    proto::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        readonly: mount.readonly,
        selinux_relabel: mount.selinux_relabel,
        propagation: propagation.into(),
        uid_mappings: mount.uid_mappings.iter().copied().map(id_mapping).collect(),
        gid_mappings: mount.gid_mappings.iter().copied().map(id_mapping).collect(),
        recursive_read_only: mount.recursive_read_only,
        image: mount.image.as_ref().map(|volume| proto::ImageSpec {
            image: volume.image.image.clone(),
            annotations: map(&volume.image.annotations),
            user_specified_image: volume.image.user_specified_image.clone(),
            runtime_handler: volume.image.runtime_handler.clone(),
            image_ref: image_id.cloned().unwrap_or_default(),
        }),
        image_sub_path: mount
            .image
            .as_ref()
            .map_or_else(String::new, |volume| volume.sub_path.clone()),
        mount_options: mount
            .options
            .iter()
            .map(|option| option.as_str().to_owned())
            .collect(),
    }
}

/// The user with all groups of the process, the primary one among them.
fn user(user: &ResolvedUser) -> proto::LinuxContainerUser {
    let mut groups: Vec<i64> = user
        .additional_gids
        .iter()
        .copied()
        .map(i64::from)
        .collect();
    groups.push(user.gid.into());
    groups.sort_unstable();
    groups.dedup();
    proto::LinuxContainerUser {
        uid: user.uid.into(),
        gid: user.gid.into(),
        supplemental_groups: groups,
    }
}

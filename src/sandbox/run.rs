//! RunPodSandbox: reserve, namespaces, network, commit.

use std::{
    io,
    os::{fd::AsFd, unix::fs::chown},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tracing::Instrument;

use super::{
    Sandbox,
    driver::Driver,
    files,
    pause::{self, Pause, PauseError, PauseHandle, PauseRequest},
    record::{PauseRecord, Phase, SandboxRecord},
    shm,
    spec::{IpcMode, Protocol, SandboxSpec},
    undo,
};
use crate::{
    clock,
    error::{Classify, ErrorKind},
    events::EventKind,
    failpoint,
    handler::HandlerError,
    id::SandboxId,
    names::NameError,
    network::{self, AttachRequest, NetworkError, NotReady, netns},
    node::Node,
    process::Process,
    store::record_file::RecordFileError,
    userns::IdMaps,
};

/// How long the making of namespaces may take.
const NAMESPACES_LIMIT: Duration = Duration::from_secs(20);

/// Why a sandbox was not made.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The handler asked for is not configured.
    #[error("config.runtime_handler")]
    Handler(#[source] HandlerError),
    /// The pod is to have a user namespace, and this host can make none for pods.
    #[error(
        "config.linux.security_context.namespace_options.userns_options: this host cannot run pods \
         with user namespaces of their own: {0}"
    )]
    UserNamespace(String),
    /// The pod needs a network and there is none yet.
    #[error("network is not ready")]
    NetworkNotReady(#[source] NotReady),
    /// The same pod, attempt and all, exists.
    #[error("sandbox {name} exists with id {id}")]
    Exists {
        /// Namespace, name, uid and attempt.
        name: String,
        /// Who has the name.
        id: SandboxId,
    },
    /// A directory or file of the sandbox could not be made.
    #[error("cannot make {}", path.display())]
    Files {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The record could not be written.
    #[error("cannot record the sandbox")]
    Record(#[source] RecordFileError),
    /// The namespaces could not be made.
    #[error("cannot make the namespaces of the pod")]
    Namespaces(#[source] PauseError),
    /// A plugin failed.
    #[error("cannot attach the pod to the network")]
    Network(#[source] NetworkError),
    /// The daemon is ending.
    #[error("the daemon is shutting down")]
    Draining,
}

impl Classify for RunError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Handler(error) => error.kind(),
            Self::UserNamespace(_) => ErrorKind::Unsupported,
            Self::NetworkNotReady(_) | Self::Draining => ErrorKind::NotReady,
            Self::Exists { .. } => ErrorKind::AlreadyExists,
            Self::Record(error) => error.kind(),
            Self::Namespaces(error) => error.kind(),
            Self::Network(error) => error.kind(),
            Self::Files { source, .. } => match source.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT | libc::ENOMEM) => ErrorKind::Exhausted,
                _ => ErrorKind::Internal,
            },
        }
    }
}

/// Makes a sandbox, or joins the making of the same one. Returns when it is Ready.
///
/// # Errors
/// Any [`RunError`]; then nothing of it is left, or what is left is being undone.
pub async fn run(node: &Arc<Node>, spec: SandboxSpec) -> Result<SandboxId, Arc<RunError>> {
    let name = Sandbox::name_of(&spec);
    let spec = Arc::new(spec);
    let (making, wanted) = (Arc::clone(node), Arc::clone(&spec));
    let claim = node.sandbox_names.claim(
        name.clone(),
        spec,
        SandboxId::random,
        move |id| async move { make(&making, id, wanted).await },
    );
    match claim.await {
        Ok(id) => Ok(id),
        Err(NameError::Taken(id)) => Err(Arc::new(RunError::Exists { name, id })),
        Err(NameError::Failed(error)) => Err(error),
        Err(NameError::Lost) => Err(Arc::new(RunError::Draining)),
    }
}

/// What exists while a sandbox is being made.
struct Draft {
    record: SandboxRecord,
    pause: Option<Process>,
}

async fn make(node: &Arc<Node>, id: SandboxId, spec: Arc<SandboxSpec>) -> Result<(), RunError> {
    let mut draft = reserve(node, &id, &spec)
        .instrument(tracing::info_span!("sandbox.reserve", %id))
        .await?;
    let made = async {
        namespaces(node, &mut draft)
            .instrument(tracing::info_span!("sandbox.namespaces", %id))
            .await?;
        attach(node, &mut draft)
            .instrument(tracing::info_span!("sandbox.network", %id))
            .await?;
        commit(node, &mut draft)
            .instrument(tracing::info_span!("sandbox.commit", %id))
            .await
    }
    .await;
    match made {
        Ok(()) => {
            Driver::publish(node, draft.record, draft.pause);
            if let Ok(sandbox) = node.sandboxes.find(id.as_str()) {
                node.tell_sandbox(EventKind::Created, &sandbox);
                node.tell_sandbox(EventKind::Started, &sandbox);
            }
            Ok(())
        }
        Err(error) => {
            tracing::info!(%id, error = %crate::error::Chain(&error), "sandbox is undone");
            undo::finish_in_background(Arc::clone(node), draft.record).await;
            Err(error)
        }
    }
}

/// Checks what can be checked first, then takes the journal: from here on a crash is undone.
async fn reserve(
    node: &Arc<Node>,
    id: &SandboxId,
    spec: &Arc<SandboxSpec>,
) -> Result<Draft, RunError> {
    node.handlers
        .find(&spec.runtime_handler)
        .map_err(RunError::Handler)?;
    if let (Some(_), Some(reason)) = (maps_of(spec), &node.host.no_user_namespaces) {
        return Err(RunError::UserNamespace(reason.clone()));
    }
    if !spec.host_network() {
        node.network.ready().map_err(RunError::NetworkNotReady)?;
    }
    let asked = spec.cgroup_parent.clone();
    let cgroup_parent = asked.unwrap_or_else(|| node.default_cgroup_parent(id));
    let exists = || pause::group_exists(&node.facts.cgroup, &cgroup_parent);
    let cgroup_parent_ours = node.cgroup_parents.claim(&cgroup_parent, exists);
    let record = SandboxRecord {
        id: id.clone(),
        generation: 0,
        phase: Phase::Making,
        spec: spec.as_ref().clone(),
        created_at: clock::now_ns(),
        cgroup_parent_ours,
        cgroup_parent,
        pause: None,
        netns: (!spec.host_network()).then(|| netns::pin_path(id)),
        network_attached: false,
        ips: Vec::new(),
        resources: None,
    };
    let mut draft = Draft {
        record,
        pause: None,
    };
    let made = match node.journal_sandbox(&mut draft.record).await {
        Ok(()) => {
            failpoint::reach(format_args!("sandbox.reserve.journalled"));
            let (paths, of) = (node.paths.clone(), draft.record.clone());
            let made = tokio::task::spawn_blocking(move || make_files(&paths, &of)).await;
            made.map_err(|_| RunError::Draining).and_then(|made| made)
        }
        Err(error) => Err(RunError::Record(error)),
    };
    match made {
        Ok(()) => Ok(draft),
        Err(error) => {
            undo::finish_in_background(Arc::clone(node), draft.record).await;
            Err(error)
        }
    }
}

/// The ids of the pod's user namespace, if it has one.
fn maps_of(spec: &SandboxSpec) -> Option<IdMaps> {
    IdMaps::of_pod(&spec.security.namespaces.user)
}

/// Who is root in the pod.
fn root_of(spec: &SandboxSpec) -> (u32, u32) {
    maps_of(spec).map_or((0, 0), |maps| maps.root())
}

fn make_files(paths: &crate::node::Paths, record: &SandboxRecord) -> Result<(), RunError> {
    let make_dir = |path: &Path| {
        crate::node::private_dir(path).map_err(|source| RunError::Files {
            path: path.to_owned(),
            source,
        })
    };
    let state = paths.sandbox_state(&record.id);
    make_dir(&state)?;
    if let Some(logs) = &record.spec.log_directory {
        std::fs::create_dir_all(logs).map_err(|source| RunError::Files {
            path: logs.clone(),
            source,
        })?;
    }
    for (name, content) in files::render(&record.spec, &record.id) {
        let path = state.join(name);
        let (uid, gid) = root_of(&record.spec);
        std::fs::write(&path, content)
            .and_then(|()| chown(&path, Some(uid), Some(gid)))
            .map_err(|source| RunError::Files { path, source })?;
    }
    Ok(())
}

/// Starts pause, which makes the namespaces and holds them, and pins the network namespace.
async fn namespaces(node: &Arc<Node>, draft: &mut Draft) -> Result<(), RunError> {
    let request = PauseRequest::for_sandbox(&draft.record, &node.facts.cgroup);
    let program = Arc::clone(&node.programs.pause);
    let spawn = tokio::task::spawn_blocking(move || Pause::spawn(&program, &request));
    let PauseHandle {
        pid,
        start_time,
        pidfd,
        netns,
    } = tokio::time::timeout(NAMESPACES_LIMIT, spawn)
        .await
        .map_err(|_| RunError::Namespaces(PauseError::Late(NAMESPACES_LIMIT)))?
        .map_err(|_| RunError::Draining)?
        .map_err(RunError::Namespaces)?;
    failpoint::reach(format_args!("sandbox.namespaces.held"));
    draft.record.pause = Some(PauseRecord { pid, start_time });
    // The next step attaches the network; saying so now saves a write.
    draft.record.network_attached = draft.record.netns.is_some();
    node.write_sandbox(&mut draft.record)
        .await
        .map_err(RunError::Record)?;
    let watched = Process::watch(pid, start_time, pidfd).map_err(PauseError::Spawn);
    draft.pause = Some(watched.map_err(RunError::Namespaces)?);
    let shm = node.paths.sandbox_state(&draft.record.id).join("shm");
    let own_shm = draft.record.spec.security.namespaces.ipc == IpcMode::Pod;
    let root = root_of(&draft.record.spec);
    let (id, pinned) = (draft.record.id.clone(), draft.record.netns.is_some());
    tokio::task::spawn_blocking(move || {
        if own_shm {
            shm::mount_at(&shm, root).map_err(|source| RunError::Files { path: shm, source })?;
        }
        failpoint::reach(format_args!("sandbox.namespaces.shm"));
        match netns {
            Some(namespace) if pinned => netns::pin(namespace.as_fd(), &netns::name_of(&id))
                .map(drop)
                .map_err(RunError::Network),
            _ => Ok(()),
        }
    })
    .await
    .map_err(|_| RunError::Draining)?
}

/// Has the plugins attach the pod. The record has said so already: a half-done ADD is undone by DEL.
async fn attach(node: &Arc<Node>, draft: &mut Draft) -> Result<(), RunError> {
    failpoint::reach(format_args!("sandbox.network.begin"));
    let Some(path) = draft.record.netns.clone() else {
        return Ok(());
    };
    let request = attach_request(&draft.record, path);
    let attachment = node
        .network
        .attach(&request)
        .await
        .map_err(RunError::Network)?;
    draft.record.ips = attachment.ips;
    failpoint::reach(format_args!("sandbox.network.end"));
    Ok(())
}

/// From here on the sandbox is Ready, also after a restart.
async fn commit(node: &Arc<Node>, draft: &mut Draft) -> Result<(), RunError> {
    draft.record.phase = Phase::Ready;
    node.write_sandbox(&mut draft.record)
        .await
        .map_err(RunError::Record)
}

fn attach_request(record: &SandboxRecord, netns: PathBuf) -> AttachRequest {
    let spec = &record.spec;
    let published = spec.port_mappings.iter().filter_map(|mapping| {
        Some(network::PortMapping {
            protocol: match mapping.protocol {
                Protocol::Tcp => network::Protocol::Tcp,
                Protocol::Udp => network::Protocol::Udp,
                Protocol::Sctp => network::Protocol::Sctp,
            },
            container_port: mapping.container_port,
            host_port: mapping.host_port?,
            host_ip: mapping.host_ip,
        })
    });
    AttachRequest {
        sandbox: record.id.clone(),
        netns,
        ifname: "eth0".to_owned(),
        pod: network::PodIdentity {
            namespace: spec.metadata.namespace.clone(),
            name: spec.metadata.name.clone(),
            uid: spec.metadata.uid.clone(),
        },
        port_mappings: published.collect(),
        annotations: spec.annotations.clone(),
        dns: spec.dns.as_ref().map(|dns| network::DnsConfig {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        }),
        cgroup_path: Some(record.cgroup_parent.clone()),
        mac: None,
        ips: Vec::new(),
    }
}

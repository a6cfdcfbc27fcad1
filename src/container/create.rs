//! CreateContainer: reserve, rootfs, bundle, plan, monitor, commit.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use conmon_rs::protocol::CreateRequest;
use crisp_oci::{
    plan::{FdIndex, NamespaceKind, Plan, ProcessPlan},
    spec::SpecInput,
};
use oci_spec::runtime::Spec;
use tracing::Instrument;

use super::{
    Container, Fixed,
    classes::{self, ClassError},
    devices,
    driver::{Attached, Driver, Start},
    record::{ContainerRecord, Phase},
    relabel::{self, RelabelError},
    sources::{self, Missing, SourceError},
    spec::{ContainerSpec, Signal},
    state::State,
    undo,
    users::PodUsers,
    volumes::{self, Volume, VolumeError},
};
use crate::{
    bundle::{
        self, BundleError, BundleInput, BundlePaths, ImageDefaults, ResolvedUser,
        devices::DeviceError,
        user::{Accounts, UserError},
    },
    cdi::CdiError,
    clock,
    error::{Chain, Classify, ErrorKind},
    events::EventKind,
    failpoint,
    id::{ContainerId, SandboxId},
    image::{Image, ImageError},
    monitor::{self, Launch, Launched, MonitorError},
    names::NameError,
    node::{Node, private_dir},
    registry::LookupError,
    sandbox::{self, Sandbox, pause::Pause, spec::PidMode},
    seccomp::{Compiled, SeccompError},
    snapshot::{
        layers::Pin as LayerPin,
        overlay::{self, OverlayError},
    },
    store::record_file::RecordFileError,
    userns::UsersError,
};

/// Why a container was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The sandbox is stopped, or being stopped.
    #[error("sandbox {0} is not ready")]
    SandboxNotReady(SandboxId),
    /// The same container, attempt and all, exists.
    #[error("container {name} exists with id {id}")]
    Exists {
        /// Sandbox, name and attempt.
        name: String,
        /// Who has the name.
        id: ContainerId,
    },
    /// The image is not here.
    #[error("config.image")]
    Image(#[source] ImageError),
    /// The image is not here.
    #[error("config.image.image: no image {0:?} on this node, pull it first")]
    NoImage(String),
    /// The container whose processes are to be shared cannot be.
    #[error("config.linux.security_context.namespace_options.target_id")]
    Target(#[source] LookupError),
    /// The container whose processes are to be shared is in another sandbox or does not run.
    #[error(
        "config.linux.security_context.namespace_options.target_id: {0} must be a running \
         container of the same sandbox"
    )]
    TargetState(ContainerId),
    /// The container whose processes are to be shared has just ended.
    #[error("config.linux.security_context.namespace_options.target_id: process {0} has ended")]
    TargetGone(i32),
    /// A directory or file of the container could not be made.
    #[error("cannot make {}", path.display())]
    Files {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The record could not be written.
    #[error("cannot record the container")]
    Record(#[source] RecordFileError),
    /// The pod's user namespace, or one that a volume asks for, cannot be had.
    #[error("cannot translate owners")]
    Users(#[source] UsersError),
    /// The root file system could not be put together.
    #[error("cannot make the root file system")]
    Rootfs(#[source] OverlayError),
    /// Who the process is to be cannot be told.
    #[error("cannot tell the user")]
    User(#[source] UserError),
    /// A mount has no source.
    #[error(transparent)]
    Source(SourceError),
    /// A volume cannot get the container's SELinux label.
    #[error(transparent)]
    Relabel(RelabelError),
    /// An image cannot be a volume.
    #[error(transparent)]
    Volume(VolumeError),
    /// A device is not there.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A CDI device is not there.
    #[error(transparent)]
    Cdi(#[from] CdiError),
    /// A class is not there.
    #[error(transparent)]
    Class(ClassError),
    /// The seccomp profile cannot be used.
    #[error("config.linux.security_context.seccomp")]
    Seccomp(#[source] SeccompError),
    /// The request and the image together make no container.
    #[error(transparent)]
    Bundle(BundleError),
    /// The runtime spec cannot be carried out.
    #[error("cannot plan the container")]
    Plan(#[source] crisp_oci::spec::PlanError),
    /// The monitor failed.
    #[error("cannot create the container")]
    Monitor(#[source] MonitorError),
    /// The daemon is ending.
    #[error("the daemon is shutting down")]
    Draining,
}

impl Classify for CreateError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::SandboxNotReady(_) | Self::TargetState(_) | Self::TargetGone(_) => {
                ErrorKind::WrongState
            }
            Self::Exists { .. } => ErrorKind::AlreadyExists,
            Self::Image(error) => error.kind(),
            Self::NoImage(_) => ErrorKind::NotFound,
            Self::Target(_) | Self::Plan(_) => ErrorKind::InvalidArgument,
            Self::Record(error) => error.kind(),
            Self::Rootfs(_) => ErrorKind::Internal,
            Self::User(error) => error.kind(),
            Self::Users(error) => error.kind(),
            Self::Source(error) => error.kind(),
            Self::Relabel(error) => error.kind(),
            Self::Volume(error) => error.kind(),
            Self::Device(error) => error.kind(),
            Self::Cdi(error) => error.kind(),
            Self::Class(error) => error.kind(),
            Self::Seccomp(error) => error.kind(),
            Self::Bundle(error) => error.kind(),
            Self::Monitor(error) => error.kind(),
            Self::Draining => ErrorKind::NotReady,
            Self::Files { source, .. } => match source.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT | libc::ENOMEM) => ErrorKind::Exhausted,
                _ => ErrorKind::Internal,
            },
        }
    }
}

/// Makes a container, or joins the making of the same one. Returns when its process waits at the
/// start gate.
///
/// # Errors
/// Any [`CreateError`]; then nothing of it is left, or what is left is being undone.
pub async fn create(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    spec: ContainerSpec,
) -> Result<ContainerId, Arc<CreateError>> {
    let name = Container::name_of(&sandbox.id, &spec);
    let spec = Arc::new(spec);
    let (making, within, wanted) = (Arc::clone(node), Arc::clone(sandbox), Arc::clone(&spec));
    let claim = node.container_names.claim(
        name.clone(),
        spec,
        ContainerId::random,
        move |id| async move { make(&making, &within, id, &wanted).await },
    );
    match claim.await {
        Ok(id) => Ok(id),
        Err(NameError::Taken(id)) => Err(Arc::new(CreateError::Exists { name, id })),
        Err(NameError::Failed(error)) => Err(error),
        Err(NameError::Lost) => Err(Arc::new(CreateError::Draining)),
    }
}

async fn make(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    id: ContainerId,
    spec: &Arc<ContainerSpec>,
) -> Result<(), CreateError> {
    // Held to the end: a stop of the sandbox waits for this container, then sees it.
    let entered = sandbox.enter().await;
    let _inside = entered.ok_or_else(|| CreateError::SandboxNotReady(sandbox.id.clone()))?;
    let mut draft = reserve(node, sandbox, &id, spec)
        .instrument(tracing::info_span!("container.reserve", %id))
        .await?;
    match build(node, sandbox, &mut draft).await {
        Ok((launched, process)) => {
            let Draft { record, pin, .. } = draft;
            let Launched {
                monitor, notices, ..
            } = launched;
            let attached = Some(Attached { monitor, notices });
            let start = Start {
                record,
                state: State::Created,
                attached,
                pin: Some(pin),
                process: Some(process),
                output: Default::default(),
            };
            Driver::publish(node, start);
            if let Ok(container) = node.containers.find(id.as_str()) {
                node.tell_container(EventKind::Created, &container);
            }
            Ok(())
        }
        Err(error) => {
            tracing::info!(%id, error = %Chain(&error), "container is undone");
            undo::finish_in_background(Arc::clone(node), draft.record, Some(draft.pin)).await;
            Err(error)
        }
    }
}

/// What exists while a container is being made.
struct Draft {
    record: ContainerRecord,
    image: Arc<Image>,
    volumes: Vec<Volume>,
    pin: LayerPin,
    target: Option<Target>,
}

/// The container whose PID namespace is shared.
#[derive(Clone, Copy)]
struct Target {
    pid: i32,
    start_time: u64,
}

async fn build(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    draft: &mut Draft,
) -> Result<(Launched, Arc<ProcessPlan>), CreateError> {
    let id = draft.record.id.clone();
    let span = tracing::Span::current();
    let input = Input {
        node: Arc::clone(node),
        sandbox: Arc::clone(sandbox),
        record: draft.record.clone(),
        image: Arc::clone(&draft.image),
        lowers: node.images.lowers(&draft.image),
        volumes: draft.volumes.clone(),
        target: draft.target,
    };
    let prepared = tokio::task::spawn_blocking(move || span.in_scope(|| prepare(&input)))
        .await
        .map_err(|_| CreateError::Draining)??;
    draft.record.fixed.uid = prepared.user.uid;
    draft.record.fixed.gid = prepared.user.gid;
    draft.record.fixed.groups = Fixed::groups_of(&prepared.user);
    let process = Arc::new(prepared.plan.process.clone());
    let launched = launch(node, &draft.record, prepared)
        .instrument(tracing::info_span!("container.monitor", %id))
        .await?;
    failpoint::reach(format_args!("container.monitor.created"));
    draft.record.fixed.pid = launched.init.pid;
    draft.record.fixed.start_time = launched.init.start_time;
    draft.record.phase = Phase::Live(State::Created);
    node.write_container(&mut draft.record)
        .instrument(tracing::info_span!("container.commit", %id))
        .await
        .map_err(CreateError::Record)?;
    Ok((launched, process))
}

/// Checks what can be checked first, then takes the journal: from here on a crash is undone.
async fn reserve(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    id: &ContainerId,
    spec: &Arc<ContainerSpec>,
) -> Result<Draft, CreateError> {
    let no_image = || CreateError::NoImage(spec.image.image.clone());
    let image = node
        .images
        .resolve(&spec.image.image)
        .map_err(CreateError::Image)?;
    let image = image.ok_or_else(no_image)?;
    let target = target(node, sandbox, spec)?;
    let volumes = volumes::resolve(&node.images, &spec.mounts).map_err(CreateError::Volume)?;
    let mut layers = image.layers().to_vec();
    layers.extend(
        volumes
            .iter()
            .flat_map(|volume| volume.image.layers().to_vec()),
    );
    let pin = node.images.pin_layers(&layers).ok_or_else(no_image)?;
    let mut fixed = fixed(node, sandbox, id, spec, &image);
    fixed.layers = layers;
    fixed.image_volumes = volumes
        .iter()
        .map(|volume| (volume.index, volume.image.id.clone()))
        .collect();
    let record = ContainerRecord {
        id: id.clone(),
        generation: 0,
        phase: Phase::Making,
        sandbox: sandbox.id.clone(),
        spec: spec.as_ref().clone(),
        fixed,
        resources: None,
    };
    let mut draft = Draft {
        record,
        image,
        volumes,
        pin,
        target,
    };
    let made = match node.journal_container(&mut draft.record).await {
        Ok(()) => {
            failpoint::reach(format_args!("container.reserve.journalled"));
            let (paths, of) = (node.paths.clone(), draft.record.clone());
            let made = tokio::task::spawn_blocking(move || make_files(&paths, &of)).await;
            made.map_err(|_| CreateError::Draining)
                .and_then(|made| made)
        }
        Err(error) => Err(CreateError::Record(error)),
    };
    match made {
        Ok(()) => Ok(draft),
        Err(error) => {
            undo::finish_in_background(Arc::clone(node), draft.record, Some(draft.pin)).await;
            Err(error)
        }
    }
}

fn fixed(
    node: &Node,
    sandbox: &Sandbox,
    id: &ContainerId,
    spec: &ContainerSpec,
    image: &Image,
) -> Fixed {
    // Without a place for the log the client gets one of ours: an empty log path in a status makes
    // kubelet delete files of the host.
    let log_path = sandbox
        .spec
        .log_file(spec.log_path.as_deref())
        .unwrap_or_else(|| node.paths.container_root(id).join("log"));
    let stop_signal = spec
        .stop_signal
        .or_else(|| Signal::parse(&image.config.stop_signal))
        .unwrap_or(Signal::TERM);
    Fixed {
        created_at: clock::now_ns(),
        image_id: image.id.to_string(),
        image_ref: image
            .digests
            .first()
            .cloned()
            .unwrap_or_else(|| image.id.to_string()),
        log_path,
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        stop_signal,
        cgroup: format!("{}/{id}", sandbox.cgroup_parent),
        pid: 0,
        start_time: 0,
        layers: Vec::new(),
        image_volumes: BTreeMap::new(),
    }
}

fn target(
    node: &Node,
    sandbox: &Sandbox,
    spec: &ContainerSpec,
) -> Result<Option<Target>, CreateError> {
    let PidMode::Target(id) = &spec.security.namespaces.pid else {
        return Ok(None);
    };
    let target = node.containers.find(id).map_err(CreateError::Target)?;
    let runs = matches!(*target.state(), State::Running { .. } | State::Created);
    if target.sandbox != sandbox.id || !runs {
        return Err(CreateError::TargetState(target.id.clone()));
    }
    Ok(Some(Target {
        pid: target.fixed.pid,
        start_time: target.fixed.start_time,
    }))
}

fn make_files(paths: &crate::node::Paths, record: &ContainerRecord) -> Result<(), CreateError> {
    let files = |path: &Path| {
        let path = path.to_owned();
        move |source| CreateError::Files { path, source }
    };
    let (root, state) = (
        paths.container_root(&record.id),
        paths.container_state(&record.id),
    );
    private_dir(&root).map_err(files(&root))?;
    private_dir(&state.join("rootfs")).map_err(files(&state))?;
    if let Some(logs) = record.fixed.log_path.parent() {
        fs::create_dir_all(logs).map_err(files(logs))?;
    }
    Ok(())
}

struct Input {
    node: Arc<Node>,
    sandbox: Arc<Sandbox>,
    record: ContainerRecord,
    image: Arc<Image>,
    lowers: Vec<PathBuf>,
    volumes: Vec<Volume>,
    target: Option<Target>,
}

struct Prepared {
    user: ResolvedUser,
    plan: Plan,
    descriptors: Vec<OwnedFd>,
}

/// The steps that are plain work of this machine, one after the other on a thread that may block.
fn prepare(input: &Input) -> Result<Prepared, CreateError> {
    let id = &input.record.id;
    let users = PodUsers::of(&input.sandbox)?;
    let rootfs = tracing::info_span!("container.rootfs", %id).in_scope(|| rootfs(input, &users))?;
    let bundled =
        tracing::info_span!("container.bundle", %id).in_scope(|| bundle(input, &rootfs))?;
    tracing::info_span!("container.plan", %id).in_scope(|| plan(input, &users, rootfs, bundled))
}

fn rootfs(input: &Input, users: &PodUsers) -> Result<OwnedFd, CreateError> {
    let root = input.node.paths.container_root(&input.record.id);
    let (upper, work) = (root.join("upper"), root.join("work"));
    let attributes = input.node.images.root_attributes(&input.image);
    let attributes = users.owned(attributes);
    overlay::make_upper(&upper, &work, attributes).map_err(CreateError::Rootfs)?;
    failpoint::reach(format_args!("container.rootfs.upper"));
    let upper = overlay::Upper {
        upper: &upper,
        work: &work,
        volatile: true,
    };
    overlay::mount_translated(&input.lowers, Some(upper), users.namespace())
        .map_err(CreateError::Rootfs)
}

struct Bundled {
    spec: Spec,
    user: ResolvedUser,
    environment: Vec<Vec<u8>>,
    filter: Option<Compiled>,
}

/// Finds out what the generator must know, generates the runtime spec, and lays it on disk.
fn bundle(input: &Input, rootfs: &OwnedFd) -> Result<Bundled, CreateError> {
    let Input {
        node,
        sandbox,
        record,
        image,
        ..
    } = input;
    let image_defaults = image_defaults(image);
    let accounts = Accounts::read(rootfs.as_fd()).map_err(CreateError::User)?;
    let mut user = bundle::user::resolve(&record.spec, &image_defaults, &accounts)
        .map_err(CreateError::User)?;
    let missing = Missing::of(node.config.runtime.create_mount_sources);
    let volumes = node.paths.container_volumes(&record.id);
    let mount_sources =
        sources::resolve(&record.spec.mounts, &volumes, missing).map_err(CreateError::Source)?;
    let (devices, edits) = devices::resolve(&node.cdi, &record.spec, &mut user)?;
    let classes = classes::resolve(
        &record.spec,
        &sandbox.spec,
        Path::new(classes::RESCTRL),
        &node.config.runtime.blockio_config,
    )
    .map_err(CreateError::Class)?;
    let filter = node
        .filters
        .wanted(&record.spec, &node.host)
        .map_err(CreateError::Seccomp)?;
    let paths = paths_of(input);
    let hostname = sandbox::files::host_name(&sandbox.spec, &sandbox.id);
    let bundle_input = BundleInput {
        id: &record.id,
        sandbox_id: &sandbox.id,
        container: &record.spec,
        sandbox: &sandbox.spec,
        image_id: &record.fixed.image_id,
        image: &image_defaults,
        user: &user,
        mount_sources: &mount_sources,
        devices: &devices,
        edits: &edits,
        classes: &classes,
        seccomp: filter.as_ref().map(|filter| filter.spec.clone()),
        host: &node.host,
        paths: &paths,
        hostname: &hostname,
    };
    let spec = bundle::generate(&bundle_input).map_err(CreateError::Bundle)?;
    let label = spec
        .linux()
        .as_ref()
        .and_then(|l| l.mount_label().as_deref());
    relabel::volumes(&record.spec.mounts, &mount_sources, label).map_err(CreateError::Relabel)?;
    let environment = bundle::environment(&bundle_input);
    let json = bundle::to_json(&spec).map_err(CreateError::Bundle)?;
    let path = node.paths.container_state(&record.id).join("config.json");
    fs::write(&path, json).map_err(|source| CreateError::Files { path, source })?;
    failpoint::reach(format_args!("container.bundle.written"));
    Ok(Bundled {
        spec,
        user,
        environment,
        filter,
    })
}

fn image_defaults(image: &Image) -> ImageDefaults {
    let config = &image.config;
    ImageDefaults {
        user: config.user.clone(),
        env: config.env.clone(),
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        working_dir: config.working_dir.clone(),
        volumes: config.volumes.clone(),
        stop_signal: Some(config.stop_signal.clone()).filter(|signal| !signal.is_empty()),
    }
}

fn paths_of(input: &Input) -> BundlePaths {
    let Input {
        node,
        sandbox,
        record,
        ..
    } = input;
    let state = node.paths.sandbox_state(&sandbox.id);
    let published = sandbox.published();
    BundlePaths {
        rootfs: node.paths.container_state(&record.id).join("rootfs"),
        hosts: Some(state.join("hosts")),
        resolv_conf: Some(state.join("resolv.conf")),
        hostname: Some(state.join("hostname")),
        shm: sandbox::pause::shm_path(&sandbox.spec, &state),
        netns: published.netns.clone(),
        pause_pid: published.pause.map_or(0, |pause| pause.pid),
        target_pid: input.target.map(|target| target.pid),
        cgroups_path: record.fixed.cgroup.clone(),
    }
}

/// Turns the runtime spec into steps for the monitor.
fn plan(
    input: &Input,
    users: &PodUsers,
    rootfs: OwnedFd,
    bundled: Bundled,
) -> Result<Prepared, CreateError> {
    let Bundled {
        spec,
        user,
        environment,
        filter,
    } = bundled;
    let bundle = input.node.paths.container_state(&input.record.id);
    let mut descriptors = vec![rootfs];
    let joins = joins(input, &mut descriptors)?;
    let idmaps = users.idmaps(&input.node, &input.record.spec.mounts, &mut descriptors)?;
    let images = &input.node.images;
    let detached = volumes::mount(
        images,
        &input.volumes,
        users.namespace(),
        &input.node.paths.container_volumes(&input.record.id),
        &mut descriptors,
    )
    .map_err(CreateError::Volume)?;
    let from = SpecInput {
        spec: &spec,
        id: input.record.id.as_str(),
        bundle: &bundle.to_string_lossy(),
        host: &input.node.facts,
        rootfs: Some(FdIndex(0)),
        joins: &joins,
        idmaps: &idmaps,
        seccomp: filter.map(|filter| filter.plan()),
        detached: &detached,
    };
    let mut plan = crisp_oci::spec::plan(&from).map_err(CreateError::Plan)?;
    // The exact bytes: JSON cannot hold every value.
    plan.process.env = environment;
    let path = bundle.join(super::exec::PROCESS_FILE);
    fs::write(&path, crisp_oci::wire::encode_process(&plan.process))
        .map_err(|source| CreateError::Files { path, source })?;
    Ok(Prepared {
        user,
        plan,
        descriptors,
    })
}

/// The processes whose namespaces are joined, as descriptors: a number could come to mean another.
fn joins(
    input: &Input,
    descriptors: &mut Vec<OwnedFd>,
) -> Result<Vec<(NamespaceKind, FdIndex)>, CreateError> {
    let mut add = |descriptor: OwnedFd| {
        descriptors.push(descriptor);
        FdIndex(u16::try_from(descriptors.len() - 1).expect("a handful of descriptors"))
    };
    let not_ready = || CreateError::SandboxNotReady(input.sandbox.id.clone());
    let pause = input.sandbox.published().pause.ok_or_else(not_ready)?;
    let pause = Pause::adopt(pause.pid, pause.start_time).ok_or_else(not_ready)?;
    let pause = add(pause);
    let processes = match input.target {
        None => pause,
        Some(target) => {
            let gone = || CreateError::TargetGone(target.pid);
            add(Pause::adopt(target.pid, target.start_time).ok_or_else(gone)?)
        }
    };
    Ok(vec![
        (NamespaceKind::User, pause),
        (NamespaceKind::Net, pause),
        (NamespaceKind::Ipc, pause),
        (NamespaceKind::Uts, pause),
        (NamespaceKind::Pid, processes),
    ])
}

async fn launch(
    node: &Arc<Node>,
    record: &ContainerRecord,
    prepared: Prepared,
) -> Result<Launched, CreateError> {
    let state = node.paths.container_state(&record.id);
    let files = |path: &Path| {
        let path = path.to_owned();
        move |source| CreateError::Files { path, source }
    };
    let messages = state.join("monitor.log");
    let launch = Launch {
        program: Arc::clone(&node.programs.monitor),
        id: record.id.clone(),
        directory: fs::File::open(&state).map_err(files(&state))?.into(),
        messages: fs::File::create(&messages).map_err(files(&messages))?,
        plan: crisp_oci::wire::encode(&prepared.plan),
        descriptors: prepared.descriptors,
        request: CreateRequest {
            id: record.id.to_string(),
            log_path: record.fixed.log_path.to_str().map(str::to_owned),
            terminal: record.spec.tty,
            stdin: record.spec.stdin,
            stdin_once: record.spec.stdin_once,
            ..CreateRequest::default()
        },
    };
    monitor::launch(launch).await.map_err(CreateError::Monitor)
}

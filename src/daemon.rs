//! Composition root: builds the parts, recovers, serves, drains.

use std::{
    collections::BTreeSet,
    fs, io,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::Stream;
use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
};
use tonic::transport::Server;

use crate::{
    apparmor,
    boot::Boot,
    bundle,
    config::{
        Config,
        lock::{self, LockError},
    },
    container,
    cri::{
        edge::EdgeLayer,
        image::ImageEdge,
        proto::{
            image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer,
        },
        runtime::Runtime,
    },
    error::Chain,
    id::{ContainerId, SandboxId},
    image::{ImageError, ImageSettings, Images},
    network::{Network, NetworkConfig, NetworkError},
    node::{Node, Parts, Programs, Records, private_dir},
    observe::notify::Notifier,
    sandbox,
    snapshot::removal,
    store::{Store, StoreError},
    stream::{self, Endpoint, StreamError},
    userns,
};

/// Largest message taken or sent. kubelet itself takes 16 MiB.
const MESSAGE_LIMIT: usize = 64 * 1024 * 1024;
/// How long accepting rests after an error.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// How long requests under way may go on after SIGTERM.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);

/// Why the daemon cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Another daemon has the directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A directory, file or socket cannot be made.
    #[error("cannot {action} {}", path.display())]
    Prepare {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program that must lie beside ours does not.
    #[error("cannot open {}, which must lie beside the crisp executable", path.display())]
    Program {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: crisp_sys::Error,
    },
    /// The store cannot be opened.
    #[error("cannot open the store")]
    Store(#[from] StoreError),
    /// Images cannot be served.
    #[error("cannot open the images")]
    Images(#[from] ImageError),
    /// The network cannot be served.
    #[error("cannot start the network")]
    Network(#[from] NetworkError),
    /// Streams cannot be served.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The host lacks something.
    #[error("cannot judge the host")]
    Host(#[from] crisp_oci::host::HostError),
    /// The host could not be tried out; a bug of ours.
    #[error("cannot try out the host")]
    TryOut,
    /// The server failed.
    #[error("the server failed")]
    Serve(#[from] tonic::transport::Error),
}

/// Runs the daemon until SIGTERM or SIGINT. Containers go on without it.
///
/// # Errors
/// Any [`DaemonError`].
pub async fn serve(config: Config) -> Result<(), DaemonError> {
    let _root = lock::acquire(&config.root)?;
    let _state = lock::acquire(&config.state)?;
    let boot = Boot::begin(&config.root).map_err(|source| DaemonError::Prepare {
        action: "note the boot in",
        path: config.root.clone(),
        source,
    })?;
    let boot = Arc::new(boot);
    let (node, images) = build(config).await?;
    recover(&node).await;
    let (collecting, suspicious) = (images.clone(), Arc::clone(&boot));
    drop(tokio::task::spawn_blocking(move || {
        collecting.start_collecting();
        verify(&collecting, &suspicious);
    }));
    empty_trash(&node);
    collect_attachments(&node);
    let streams = stream::start(&node).await?;
    let listener = listen(&node.config.listen)?;
    tracing::info!(listen = %node.config.listen.display(), root = %node.config.root.display(), "serving");
    let manager = Notifier::from_environment();
    tell(manager.ready());
    let served = serve_until_signal(listener, Arc::clone(&node), streams).await;
    tell(manager.stopping());
    fs::remove_file(&node.config.listen).ok();
    boot.end();
    tracing::info!("ended, containers go on");
    served
}

/// Opens images in `root` without a daemon, for an import.
///
/// # Errors
/// As for the daemon's own start.
pub fn open_images(
    root: &Path,
    hosts_dir: Option<&Path>,
    store: &Store,
    rebuild: bool,
) -> Result<Images, DaemonError> {
    let settings = ImageSettings::new(root, hosts_dir).map_err(|source| DaemonError::Prepare {
        action: "find the executable for",
        path: root.to_owned(),
        source,
    })?;
    Ok(Images::open(settings, store, rebuild)?)
}

async fn build(config: Config) -> Result<(Arc<Node>, Images), DaemonError> {
    for directory in [&config.root, &config.state] {
        for name in ["sandboxes", "containers"] {
            let path = directory.join(name);
            private_dir(&path).map_err(|source| DaemonError::Prepare {
                action: "make",
                path,
                source,
            })?;
        }
    }
    let programs = Programs {
        monitor: program("conmon-rs")?,
        pause: program("crisp-pause")?,
    };
    let facts = crisp_oci::host::HostFacts::probe()?;
    let mut host = bundle::HostFacts::probe();
    host.devices = bundle::devices::all().unwrap_or_default();
    // Tried while the store and the images are opened.
    let (pause, root) = (Arc::clone(&programs.pause), config.root.clone());
    let trying = tokio::task::spawn_blocking(move || try_out(host, &pause, &root));
    let directory = config.root.join("store");
    let (store, report) = tokio::task::block_in_place(|| Store::open(directory))?;
    if let Some(reason) = &report.reason {
        tracing::error!(reason, quarantined = ?report.quarantined, "store was unusable and is rebuilt from files");
    }
    if report.stuck_thread {
        tracing::error!(
            "the store's engine hung, its thread is lost: the runtime is not ready until crisp is restarted"
        );
    }
    // Blocks, and waits for the store's writer if records are rebuilt.
    let images = tokio::task::block_in_place(|| {
        open_images(
            &config.root,
            Some(&config.image.hosts_dir),
            &store,
            report.must_rebuild(),
        )
    })?;
    let network_config = NetworkConfig {
        conf_dir: config.network.conf_dir.clone(),
        plugin_dirs: config.network.plugin_dirs.clone(),
        ..NetworkConfig::default()
    };
    let network = Network::start(network_config, &config.root.join("network/results"))?;
    let records = tokio::task::block_in_place(|| Records::open(&store))?;
    let host = trying.await.map_err(|_| DaemonError::TryOut)?;
    let node = Node::new(Parts {
        config,
        programs,
        host,
        facts,
        images: images.clone(),
        network,
        records,
    });
    if report.must_rebuild() {
        node.refill_store().await?;
        tokio::task::block_in_place(|| store.rebuild_finished())?;
    }
    Ok((Arc::new(node), images))
}

/// Finds out what of the host shows only when it is tried.
fn try_out(mut host: bundle::HostFacts, pause: &OwnedFd, root: &Path) -> bundle::HostFacts {
    if host.apparmor {
        match apparmor::load_default() {
            Ok(()) => host.apparmor_default = Some(apparmor::DEFAULT.to_owned()),
            Err(error) => {
                let reason = Chain(&error).to_string();
                tracing::warn!(reason, "there is no default AppArmor profile");
            }
        }
    }
    if let Err(error) = userns::probe(pause, root) {
        let reason = Chain(&error).to_string();
        tracing::warn!(reason, "pods can have no user namespaces of their own");
        host.no_user_namespaces = Some(reason);
    }
    host
}

/// Opens a program that lies beside our own, so that nothing in a container can write to it.
fn program(name: &str) -> Result<Arc<OwnedFd>, DaemonError> {
    let own = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/bin/crisp"));
    let path = own.with_file_name(name);
    match crisp_sys::exe::unwritable(&path) {
        Ok(program) => Ok(Arc::new(program)),
        Err(source) => Err(DaemonError::Program { path, source }),
    }
}

/// Sandboxes first, since containers are undone inside them; all of one kind at once.
async fn recover(node: &Arc<Node>) {
    let sandboxes = node.recorded_sandboxes();
    let containers = node.recorded_containers();
    let known = (sandboxes.len(), containers.len());
    let recorded: BTreeSet<String> = sandboxes
        .iter()
        .map(|record| record.id.to_string())
        .chain(containers.iter().map(|record| record.id.to_string()))
        .collect();
    let strays = strays(node, &recorded);
    let each = sandboxes
        .into_iter()
        .map(|record| sandbox::recover::recover(node, record));
    let half_stopped = futures_util::future::join_all(each).await;
    let each = containers
        .into_iter()
        .map(|record| container::recover::recover(node, record));
    futures_util::future::join_all(each).await;
    for sandbox in half_stopped.into_iter().flatten() {
        tokio::spawn(sandbox::recover::finish_stop(sandbox));
    }
    for stray in strays {
        match stray {
            Stray::Container(id) => container::undo::sweep(Arc::clone(node), id).await,
            // Not waited for: a plugin that hangs must not keep the daemon from serving.
            Stray::Sandbox(id) => drop(tokio::spawn(sandbox::undo::sweep(Arc::clone(node), id))),
        }
    }
    if known != (0, 0) {
        tracing::info!(sandboxes = known.0, containers = known.1, "recovered");
    }
}

/// Something with a directory or an attachment and without a record.
enum Stray {
    Container(ContainerId),
    Sandbox(SandboxId),
}

/// Containers first: they live in sandboxes.
fn strays(node: &Node, recorded: &BTreeSet<String>) -> Vec<Stray> {
    let names = |directories: [PathBuf; 2]| {
        let mut names = BTreeSet::new();
        for directory in directories {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            names.extend(entries.filter_map(|entry| entry.file_name().into_string().ok()));
        }
        names.retain(|name| !recorded.contains(name));
        names
    };
    let (root, state) = (node.paths.root(), node.paths.state());
    let containers = names([root.join("containers"), state.join("containers")]);
    let mut sandboxes = names([root.join("sandboxes"), state.join("sandboxes")]);
    match node.network.attachments() {
        Ok(attached) => sandboxes.extend(attached.into_iter().filter(|id| !recorded.contains(id))),
        Err(error) => tracing::error!(%error, "cannot list the network's attachments"),
    }
    let containers = containers.iter().filter_map(|name| name.parse().ok());
    let sandboxes = sandboxes.iter().filter_map(|name| name.parse().ok());
    containers
        .map(Stray::Container)
        .chain(sandboxes.map(Stray::Sandbox))
        .collect()
}

/// Compares the layers with what is known of them, if the machine went down under the last daemon.
fn verify(images: &Images, boot: &Boot) {
    if !boot.is_suspect() {
        return;
    }
    tracing::info!("the machine went down under the last daemon, layers are verified");
    match images.verify() {
        Ok(0) => tracing::info!("layers are whole"),
        Ok(damaged) => tracing::error!(damaged, "layers were damaged and are to be pulled again"),
        Err(error) => {
            return tracing::error!(error = %Chain(&error), "cannot verify the layers");
        }
    }
    if let Err(error) = boot.verified() {
        tracing::warn!(%error, "layers will be verified again after the next start");
    }
}

/// Has the network's plugins remove what belongs to no pod, in the background.
fn collect_attachments(node: &Arc<Node>) {
    let network = node.network.clone();
    tokio::spawn(async move {
        if let Err(error) = network.gc().await {
            tracing::warn!(error = %Chain(&error), "the network's garbage collection failed");
        }
    });
}

/// Deletes what an earlier daemon had no time for.
fn empty_trash(node: &Arc<Node>) {
    let trash = node.paths.trash();
    drop(tokio::task::spawn_blocking(move || {
        for entry in fs::read_dir(&trash).into_iter().flatten().flatten() {
            if let Err(error) = removal::remove_tree(&entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "cannot delete");
            }
        }
    }));
}

/// The socket, for root only. One that is left from before is replaced: the lock on the state
/// directory says that nobody serves it.
fn listen(path: &Path) -> Result<UnixListener, DaemonError> {
    let failed = |action| {
        let path = path.to_owned();
        move |source| DaemonError::Prepare {
            action,
            path,
            source,
        }
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed("make the directory of"))?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("replace")(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed("protect"))?;
    Ok(listener)
}

/// Whoever connects. The server would try again at once after an error, and again: when descriptors
/// have run out that helps nobody and takes a processor.
fn connections(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    futures_util::stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => return Some((Ok(connection), listener)),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    })
}

async fn serve_until_signal(
    listener: UnixListener,
    node: Arc<Node>,
    streams: Arc<Endpoint>,
) -> Result<(), DaemonError> {
    let runtime = RuntimeServiceServer::new(Runtime::new(Arc::clone(&node), streams))
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT);
    let image = ImageServiceServer::new(ImageEdge::new(Arc::clone(&node)))
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT);
    let (told, tell) = tokio::sync::oneshot::channel::<()>();
    let server = Server::builder()
        .layer(EdgeLayer)
        .max_concurrent_streams(1000)
        .add_service(runtime)
        .add_service(image)
        .serve_with_incoming_shutdown(connections(listener), async {
            tell.await.ok();
        });
    tokio::pin!(server);
    tokio::select! {
        served = &mut server => return Ok(served?),
        () = signalled() => {}
    }
    told.send(()).ok();
    // Whoever listens would keep the server waiting.
    node.events.close();
    // What is under way is journalled: a request that is cut off is undone or finished next time.
    match tokio::time::timeout(DRAIN_LIMIT, server).await {
        Ok(served) => Ok(served?),
        Err(_) => Ok(()),
    }
}

async fn signalled() {
    let (Ok(mut term), Ok(mut int)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// A service manager that cannot be told is no reason to stop.
fn tell(told: io::Result<()>) {
    if let Err(error) = told {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}

//! What the verbs on sandboxes and containers work with: the parts of the daemon in one place.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    bundle,
    cdi::Cdi,
    config::Config,
    container::{Container, create::CreateError, record::ContainerRecord, spec::ContainerSpec},
    events::Events,
    handler::Handlers,
    id::{ContainerId, SandboxId},
    image::Images,
    names::Names,
    network::Network,
    registry::Registry,
    sandbox::{Sandbox, parents::Parents, record::SandboxRecord, run::RunError, spec::SandboxSpec},
    seccomp::Filters,
    stats::layer::Surveyor,
    store::{
        Record, Store, StoreError, Table,
        record_file::{self, RecordFileError},
    },
};

/// The file beside a sandbox or container that holds its record.
const RECORD: &str = "record";
/// The cgroup below which pods lie that ask for no parent.
const DEFAULT_CGROUP_PARENT: &str = "/crisp";

/// Where things lie on disk.
#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
    state: PathBuf,
}

impl Paths {
    /// Below the configured directories.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            root: config.root.clone(),
            state: config.state.clone(),
        }
    }

    /// What must survive a reboot.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What need not.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Records of sandboxes.
    #[must_use]
    pub fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    /// Records and writable layers of containers.
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// The record of a sandbox lies in here.
    #[must_use]
    pub fn sandbox_root(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes().join(id.as_str())
    }

    /// hosts, resolv.conf and hostname of a sandbox lie in here.
    #[must_use]
    pub fn sandbox_state(&self, id: &SandboxId) -> PathBuf {
        self.state.join("sandboxes").join(id.as_str())
    }

    /// Record and writable layer of a container lie in here.
    #[must_use]
    pub fn container_root(&self, id: &ContainerId) -> PathBuf {
        self.containers().join(id.as_str())
    }

    /// The bundle of a container, its monitor's socket and its exit record.
    #[must_use]
    pub fn container_state(&self, id: &ContainerId) -> PathBuf {
        self.state.join("containers").join(id.as_str())
    }

    /// Where the images among a container's volumes would lie, were they anywhere: paths below it
    /// stand for them in the runtime spec.
    #[must_use]
    pub fn container_volumes(&self, id: &ContainerId) -> PathBuf {
        self.container_state(id).join("volumes")
    }

    /// What is to be deleted when there is time.
    #[must_use]
    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }
}

/// The programs that the daemon executes, opened so that nothing in a container can write to them.
pub struct Programs {
    /// conmon-rs.
    pub monitor: Arc<OwnedFd>,
    /// crisp-pause.
    pub pause: Arc<OwnedFd>,
}

/// The parts of the daemon.
pub struct Node {
    /// As validated.
    pub config: Config,
    /// Where things lie.
    pub paths: Paths,
    /// Programs to execute.
    pub programs: Programs,
    /// What the bundle generator must know of the host.
    pub host: bundle::HostFacts,
    /// What the planner must know of the host, its cgroups among it.
    pub facts: crisp_oci::host::HostFacts,
    /// OCI runtimes by name.
    pub handlers: Handlers,
    /// Compiled seccomp filters.
    pub filters: Filters,
    /// Images.
    pub images: Images,
    /// Devices that vendors describe.
    pub cdi: Cdi,
    /// Pod networks.
    pub network: Network,
    /// What happened.
    pub events: Events,
    /// Measures writable layers.
    pub surveyor: Surveyor,
    /// Live sandboxes.
    pub sandboxes: Registry<Sandbox>,
    /// Live containers.
    pub containers: Registry<Container>,
    /// Cgroups that crisp made for pods to lie in.
    pub cgroup_parents: Parents,
    /// Who has which sandbox name.
    pub sandbox_names: Arc<Names<SandboxSpec, SandboxId, RunError>>,
    /// Who has which container name.
    pub container_names: Arc<Names<ContainerSpec, ContainerId, CreateError>>,
    records: Records,
}

/// Where records are kept, each twice: in the store, and in a file beside what it describes.
pub struct Records {
    store: Store,
    sandboxes: Table<SandboxRecord>,
    containers: Table<ContainerRecord>,
}

impl Record for SandboxRecord {
    const TABLE: &'static str = "sandboxes";
    const SCHEMA: u16 = 1;
}

impl Record for ContainerRecord {
    const TABLE: &'static str = "containers";
    const SCHEMA: u16 = 1;
}

impl Records {
    /// Tables of `store`.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub fn open(store: &Store) -> Result<Self, StoreError> {
        Ok(Self {
            store: store.clone(),
            sandboxes: store.table()?,
            containers: store.table()?,
        })
    }
}

/// The parts that [`Node::new`] is made of.
pub struct Parts {
    /// As validated.
    pub config: Config,
    /// Programs to execute.
    pub programs: Programs,
    /// What the bundle generator must know of the host.
    pub host: bundle::HostFacts,
    /// What the planner must know of the host.
    pub facts: crisp_oci::host::HostFacts,
    /// Images.
    pub images: Images,
    /// Pod networks.
    pub network: Network,
    /// Records.
    pub records: Records,
}

impl Node {
    /// Puts the parts together; nothing runs yet but the watch of CDI specs. Must be called inside a
    /// tokio runtime.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts {
            config,
            programs,
            host,
            facts,
            images,
            network,
            records,
        } = parts;
        Self {
            paths: Paths::new(&config),
            handlers: Handlers::new(&config.runtime),
            cdi: Cdi::start(config.runtime.cdi_dirs.clone()),
            config,
            programs,
            host,
            facts,
            filters: Filters::default(),
            images,
            network,
            events: Events::default(),
            surveyor: Surveyor::default(),
            sandboxes: Registry::new("sandbox"),
            containers: Registry::new("container"),
            cgroup_parents: Parents::default(),
            sandbox_names: Arc::default(),
            container_names: Arc::default(),
            records,
        }
    }

    /// The cgroup for a pod that asks for none.
    #[must_use]
    pub fn default_cgroup_parent(&self, id: &SandboxId) -> String {
        format!("{DEFAULT_CGROUP_PARENT}/{id}")
    }

    /// Why nothing should be started on this node, if so.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.records.store.is_stuck().then(|| {
            "the store's engine hung and one of its threads is lost: restart crisp (containers go on)"
                .to_owned()
        })
    }

    /// The containers of a sandbox.
    #[must_use]
    pub fn containers_of(&self, sandbox: &SandboxId) -> Vec<Arc<Container>> {
        let mut all = self.containers.all();
        all.retain(|container| container.sandbox == *sandbox);
        all
    }

    /// Takes a removed container out of the maps.
    pub fn forget_container(&self, container: &Container) {
        self.containers.remove(container.id.as_str());
        let name = Container::name_of(&container.sandbox, &container.spec);
        self.container_names.release(&name, &container.id);
    }

    /// Writes a sandbox's record. It is in its file when this returns, and on its way to the store.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn write_sandbox(&self, record: &mut SandboxRecord) -> Result<(), RecordFileError> {
        record.generation += 1;
        let path = self.paths.sandbox_root(&record.id).join(RECORD);
        // Under way; the file is what counts until it is there, and for a record too large for it.
        drop(
            self.records
                .sandboxes
                .put(record.id.as_str(), record.clone()),
        );
        write_file(path, record.clone()).await
    }

    /// Makes a sandbox's directory with its first record in it: what exists before its record does
    /// would be found by nobody after a crash.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn journal_sandbox(&self, record: &mut SandboxRecord) -> Result<(), RecordFileError> {
        make_directory(self.paths.sandbox_root(&record.id)).await?;
        self.write_sandbox(record).await
    }

    /// Makes a container's directory with its first record in it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn journal_container(
        &self,
        record: &mut ContainerRecord,
    ) -> Result<(), RecordFileError> {
        make_directory(self.paths.container_root(&record.id)).await?;
        self.write_container(record).await
    }

    /// Writes a container's record, as [`Node::write_sandbox`] does.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn write_container(
        &self,
        record: &mut ContainerRecord,
    ) -> Result<(), RecordFileError> {
        record.generation += 1;
        let path = self.paths.container_root(&record.id).join(RECORD);
        drop(
            self.records
                .containers
                .put(record.id.as_str(), record.clone()),
        );
        write_file(path, record.clone()).await
    }

    /// Removes a sandbox's record from the store; its file goes with its directory.
    ///
    /// # Errors
    /// When the store cannot.
    pub async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), StoreError> {
        self.records.sandboxes.remove(id.as_str()).await
    }

    /// Removes a container's record from the store; its file goes with its directory.
    ///
    /// # Errors
    /// When the store cannot.
    pub async fn remove_container(&self, id: &ContainerId) -> Result<(), StoreError> {
        self.records.containers.remove(id.as_str()).await
    }

    /// Puts every record that a file holds into a store that came up without them.
    ///
    /// # Errors
    /// When the store cannot.
    pub async fn refill_store(&self) -> Result<(), StoreError> {
        for record in self.recorded_sandboxes() {
            self.records
                .sandboxes
                .put(record.id.clone().as_str(), record)
                .await?;
        }
        for record in self.recorded_containers() {
            self.records
                .containers
                .put(record.id.clone().as_str(), record)
                .await?;
        }
        Ok(())
    }

    /// All sandboxes on record: of store and file the newer one each.
    #[must_use]
    pub fn recorded_sandboxes(&self) -> Vec<SandboxRecord> {
        merge(&self.records.sandboxes, &self.paths.sandboxes(), |r| {
            (r.id.as_str(), r.generation)
        })
    }

    /// All containers on record: of store and file the newer one each.
    #[must_use]
    pub fn recorded_containers(&self) -> Vec<ContainerRecord> {
        merge(&self.records.containers, &self.paths.containers(), |r| {
            (r.id.as_str(), r.generation)
        })
    }
}

async fn make_directory(path: PathBuf) -> Result<(), RecordFileError> {
    let made = tokio::task::spawn_blocking({
        let path = path.clone();
        move || private_dir(&path)
    });
    let made = made
        .await
        .unwrap_or_else(|_| Err(io::Error::other("the daemon is ending")));
    made.map_err(|source| RecordFileError::Io {
        call: "make the directory of",
        path,
        source,
    })
}

async fn write_file<T: Record>(path: PathBuf, record: T) -> Result<(), RecordFileError> {
    tokio::task::spawn_blocking(move || record_file::write(&path, &record))
        .await
        .unwrap_or_else(|_| {
            Err(RecordFileError::Missing {
                path: PathBuf::new(),
            })
        })
}

fn merge<T: Record>(table: &Table<T>, directory: &Path, key: impl Fn(&T) -> (&str, u64)) -> Vec<T> {
    let mut newest = std::collections::BTreeMap::<String, T>::new();
    let mut take = |record: T| {
        let (id, generation) = key(&record);
        let older = newest
            .get(id)
            .is_some_and(|known| key(known).1 >= generation);
        if !older {
            newest.insert(id.to_owned(), record);
        }
    };
    for (_, record) in table.scan("") {
        take(record.as_ref().clone());
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path().join(RECORD);
        match record_file::read::<T>(&path) {
            Ok(record) => take(record),
            Err(RecordFileError::Missing { .. }) => {}
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "record file is unusable");
            }
        }
    }
    newest.into_values().collect()
}

/// Makes a directory that only root may enter, with its parents; one that is there is fine.
///
/// # Errors
/// When it cannot be made.
pub fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Removes a small tree of our own making; none is fine.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

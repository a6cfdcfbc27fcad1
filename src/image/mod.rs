//! Images: references, registries, pulls, records, removal.
//!
//! [`Images`] is the capability: it pulls, lists, resolves, removes and imports, and hands the
//! layers of an image to whoever makes containers. By verb:
//!
//! - [`pull`](Images::pull): resolve, fetch and apply (layers in parallel), commit
//! - [`import`](Images::import): the same from an archive on disk
//! - [`resolve`](Images::resolve): what a text means: an id, a name, the beginning of an id
//! - [`remove`](Images::remove): all names of an image at once
//!
//! Manifests and configurations lie as files in `content/`, with a small file per image beside
//! them, so that the records in the store can be rebuilt from disk.

mod archive;
mod content;
pub mod error;
pub mod hosts;
pub mod manifest;
mod pull;
mod record;
pub mod reference;
pub mod registry;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Semaphore;

pub use error::{ImageError, PullError};
pub use manifest::{ImageConfig, Platform};
pub use pull::PullRequest;
pub use reference::{Digest, IdPrefix, ImageId, Reference};
pub use registry::{Credentials, Policy};

use crate::{
    snapshot::{
        applier::ApplierCommand,
        apply::{Limits, RootAttributes},
        layers::{Layers, Pin},
    },
    store::Store,
};
use content::ContentDir;
use record::{ImageRecord, Records};

/// Keeps the layers of an image while a container uses them. Its keys belong into the container's
/// record, to pin again after a restart.
pub type LayerPin = Pin;

/// What [`Images::open`] needs to know.
#[derive(Debug, Clone)]
pub struct ImageSettings {
    /// The daemon's root directory; `layers`, `staging`, `quarantine` and `content` lie in it.
    pub root: PathBuf,
    /// Directory with a `hosts.toml` per registry.
    pub hosts_dir: Option<PathBuf>,
    /// How the applier is executed.
    pub applier: ApplierCommand,
    /// What a layer may be at most.
    pub limits: Limits,
    /// Times and tries of the transport.
    pub policy: Policy,
    /// Layers fetched and applied at once, over all pulls.
    pub parallel_layers: usize,
    /// What runs here.
    pub platform: Platform,
}

impl ImageSettings {
    /// The settings of the daemon.
    ///
    /// # Errors
    /// The system's, if our own executable cannot be named.
    pub fn new(root: &Path, hosts_dir: Option<&Path>) -> io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Ok(Self {
            root: root.to_owned(),
            hosts_dir: hosts_dir.map(Path::to_owned),
            applier: ApplierCommand::of_daemon()?,
            limits: Limits::default(),
            policy: Policy::default(),
            parallel_layers: (cores + 1).clamp(3, 8),
            platform: Platform::host(),
        })
    }
}

/// An image that can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `sha256:` and the digest of the configuration: the one id over all APIs.
    pub id: String,
    /// `registry/repository:tag`, sorted.
    pub tags: Vec<String>,
    /// `registry/repository@digest`, sorted. The digest is that of the index, if there is one.
    pub digests: Vec<String>,
    /// Bytes of manifest, configuration and compressed layers.
    pub size: u64,
    /// What the image asks of its containers.
    pub config: ImageConfig,
    /// Digests of the uncompressed layers, base first.
    pub diff_ids: Vec<Digest>,
    /// Never to be removed by kubelet's collection.
    pub pinned: bool,
    /// Keys of the layers, base first.
    layers: Vec<String>,
}

impl Image {
    /// Keys of the layers in the store, base first.
    #[must_use]
    pub fn layers(&self) -> &[String] {
        &self.layers
    }

    /// Digest of the whole stack of layers, if there is one.
    #[must_use]
    pub fn chain_id(&self) -> Option<Digest> {
        manifest::chain_ids(&self.diff_ids).pop()
    }
}

/// What the image file system holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUsage {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes used.
    pub bytes: u64,
    /// Inodes used.
    pub inodes: u64,
}

struct Entry {
    image: Arc<Image>,
    _pin: Pin,
}

struct Inner {
    settings: ImageSettings,
    layers: Layers,
    content: ContentDir,
    records: Records,
    images: Mutex<BTreeMap<String, Entry>>,
    /// One change of the set of images at a time.
    changes: tokio::sync::Mutex<()>,
    pulls: Mutex<HashMap<pull::Key, pull::Joined>>,
    permits: Arc<Semaphore>,
}

/// The images of a node; cloning shares them.
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

impl Images {
    /// Opens the images below the root directory. `rebuild`: the store lost its records, take them
    /// from the files. Blocks.
    ///
    /// # Errors
    /// [`ImageError`] if the directories or the store cannot be used. A single damaged image is
    /// logged and left out.
    pub fn open(settings: ImageSettings, store: &Store, rebuild: bool) -> Result<Self, ImageError> {
        let failed = |action: &str| {
            let action = action.to_owned();
            move |source| ImageError::Storage { action, source }
        };
        let root = &settings.root;
        let layers = Layers::open(root, settings.applier.clone(), settings.limits.clone())
            .map_err(|error| failed("open the layer store")(io::Error::other(error)))?;
        let content = ContentDir::open(&root.join("content")).map_err(failed("open content"))?;
        let records = Records::open(store, &root.join("content"), rebuild)?;
        let images = Self {
            inner: Arc::new(Inner {
                permits: Arc::new(Semaphore::new(settings.parallel_layers.max(1))),
                settings,
                layers,
                content,
                records,
                images: Mutex::default(),
                changes: tokio::sync::Mutex::default(),
                pulls: Mutex::default(),
            }),
        };
        for record in images.inner.records.all() {
            match images.load(&record) {
                Ok(entry) => drop(images.images().insert(record.id.clone(), entry)),
                Err(error) => {
                    tracing::error!(image = record.id, %error, "image left out until it is pulled");
                }
            }
        }
        Ok(images)
    }

    fn images(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.inner
            .images
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an image of its record: the configuration is read and checked again.
    fn load(&self, record: &ImageRecord) -> io::Result<Entry> {
        let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let id = ImageId::parse(&record.id).ok_or_else(|| wrong("its id is malformed".into()))?;
        let bytes = self.inner.content.read(id.digest())?;
        let document = manifest::read_config(&bytes, record.layers, &self.inner.settings.platform)
            .map_err(|error| wrong(error.to_string()))?;
        let chain = manifest::chain_ids(&document.diff_ids);
        let keys: Option<Vec<String>> = document
            .diff_ids
            .iter()
            .zip(&chain)
            .map(|(diff_id, chain_id)| self.inner.layers.find(diff_id, chain_id))
            .collect();
        let keys = keys.ok_or_else(|| wrong("a layer is missing".into()))?;
        let pin = self
            .inner
            .layers
            .pin(&keys)
            .ok_or_else(|| wrong("a layer is missing".into()))?;
        Ok(self.entry(record, document, pin))
    }

    fn entry(&self, record: &ImageRecord, document: manifest::ConfigDocument, pin: Pin) -> Entry {
        let image = Image {
            id: record.id.clone(),
            tags: record.tags.iter().cloned().collect(),
            digests: record.digests.iter().cloned().collect(),
            size: record.size,
            config: document.config,
            diff_ids: document.diff_ids,
            pinned: record.pinned,
            layers: pin.keys().to_vec(),
        };
        Entry {
            image: Arc::new(image),
            _pin: pin,
        }
    }

    /// All images, by id.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.images()
            .values()
            .map(|entry| Arc::clone(&entry.image))
            .collect()
    }

    /// What a text means: a full id, a name with tag or digest, or the beginning of an id. None if
    /// it is well-formed and not there.
    ///
    /// # Errors
    /// [`ImageError::Reference`] for a malformed text, [`ImageError::Ambiguous`] for a beginning of
    /// several ids.
    pub fn resolve(&self, text: &str) -> Result<Option<Arc<Image>>, ImageError> {
        let images = self.images();
        if let Some(id) = ImageId::parse(text) {
            return Ok(images
                .get(id.as_str())
                .map(|entry| Arc::clone(&entry.image)));
        }
        let reference = Reference::parse(text);
        if let Ok(reference) = &reference {
            let tag = reference.repo_tag();
            let digest = reference
                .digest()
                .map(|digest| reference.repo_digest(digest));
            let named = images.values().find(|entry| {
                tag.as_ref()
                    .is_some_and(|tag| entry.image.tags.contains(tag))
                    || digest
                        .as_ref()
                        .is_some_and(|digest| entry.image.digests.contains(digest))
            });
            if let Some(entry) = named {
                return Ok(Some(Arc::clone(&entry.image)));
            }
        }
        if let Some(prefix) = IdPrefix::parse(text) {
            let mut fitting = images
                .values()
                .filter(|entry| prefix.matches(&entry.image.id));
            return match (fitting.next(), fitting.next()) {
                (Some(_), Some(_)) => Err(ImageError::Ambiguous(text.to_owned())),
                (found, _) => Ok(found.map(|entry| Arc::clone(&entry.image))),
            };
        }
        reference.map(|_| None).map_err(ImageError::Reference)
    }

    /// [`Images::resolve`] for callers that treat malformed like absent.
    #[must_use]
    pub fn status(&self, text: &str) -> Option<Arc<Image>> {
        self.resolve(text).ok().flatten()
    }

    /// Removes an image with all its names, by any of them or by id. What is not there is fine.
    /// Layers that neither an image nor a container uses are deleted in the background.
    ///
    /// # Errors
    /// [`ImageError`] if the text is malformed or the record cannot be removed.
    pub async fn remove(&self, text: &str) -> Result<(), ImageError> {
        let _change = self.inner.changes.lock().await;
        let Some(image) = self.resolve(text)? else {
            return Ok(());
        };
        self.inner.records.remove(&image.id).await?;
        drop(self.images().remove(&image.id));
        tracing::info!(image = image.id, tags = ?image.tags, "image removed");
        self.collect();
        Ok(())
    }

    /// Deletes what nobody uses, in the background.
    fn collect(&self) {
        let images = self.clone();
        drop(tokio::task::spawn_blocking(move || {
            images.inner.layers.sweep()
        }));
    }

    /// From now on unused layers are deleted. To be called once the containers that lived through a
    /// restart have pinned theirs ([`Images::pin_layers`]). Blocks shortly.
    pub fn start_collecting(&self) {
        self.inner.layers.allow_sweeping();
        self.inner.layers.sweep();
        let mut known = HashSet::new();
        for record in self.inner.records.all() {
            known.extend(record.content.iter().map(Digest::file_name));
            known.extend(ImageId::parse(&record.id).map(|id| id.digest().file_name()));
        }
        self.inner.content.retain(&known);
    }

    /// Keeps the layers of an image while a container uses them.
    #[must_use]
    pub fn pin(&self, id: &str) -> Option<LayerPin> {
        let keys = self
            .images()
            .get(id)
            .map(|entry| entry.image.layers.clone())?;
        self.inner.layers.pin(&keys)
    }

    /// Pins again what a container's record names. None if a layer is gone.
    #[must_use]
    pub fn pin_layers(&self, keys: &[String]) -> Option<LayerPin> {
        self.inner.layers.pin(keys)
    }

    /// The directories to mount for an image, top first, at least one.
    #[must_use]
    pub fn lowers(&self, image: &Image) -> Vec<PathBuf> {
        let mut seen = HashSet::new();
        let mut lowers = Vec::new();
        for key in image.layers.iter().rev() {
            // The kernel refuses a directory that is there twice; the upper one decides anyway.
            if seen.insert(key) {
                lowers.push(self.inner.layers.tree(key));
            }
            if self
                .inner
                .layers
                .info(key)
                .is_some_and(|info| info.opaque_root)
            {
                break;
            }
        }
        // An overlay without a writable half has at least two layers, and only an overlay hides
        // what a layer's whiteouts are made of.
        if lowers.len() < 2 {
            lowers.push(self.inner.layers.empty());
        }
        lowers
    }

    /// Owner and mode of the image's root directory, for the upper directory of a container.
    #[must_use]
    pub fn root_attributes(&self, image: &Image) -> Option<RootAttributes> {
        let layers = &self.inner.layers;
        image
            .layers
            .iter()
            .rev()
            .find_map(|key| layers.info(key).and_then(|info| info.root))
    }

    /// Usage of the image file system, from the records: no walk.
    #[must_use]
    pub fn fs_usage(&self) -> FsUsage {
        let (bytes, inodes) = self.inner.layers.usage();
        let (more, files) = self.inner.content.usage();
        FsUsage {
            path: self.inner.settings.root.clone(),
            bytes: bytes + more,
            inodes: inodes + files,
        }
    }

    /// The image's configuration as the registry has it, and the chain id: for `crictl inspecti`.
    ///
    /// # Errors
    /// [`ImageError::Storage`] if the configuration cannot be read.
    pub fn verbose(&self, image: &Image) -> Result<serde_json::Value, ImageError> {
        let failed = |source| ImageError::Storage {
            action: format!("read the configuration of {}", image.id),
            source,
        };
        let id = ImageId::parse(&image.id).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let bytes = self.inner.content.read(id.digest()).map_err(failed)?;
        let spec: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))?;
        Ok(serde_json::json!({
            "chainID": image.chain_id().map(|id| id.to_string()).unwrap_or_default(),
            "imageSpec": spec,
            "layers": image.layers,
        }))
    }

    /// Compares every layer with its record, for the first start after a power cut. Damaged layers
    /// are quarantined, their images left out until they are pulled again. Returns how many layers
    /// were damaged. Blocks for a walk over all layers.
    ///
    /// # Errors
    /// [`ImageError::Storage`] if a damaged layer cannot be moved aside.
    pub fn verify(&self) -> Result<usize, ImageError> {
        let mut damaged = HashSet::new();
        for key in self.inner.layers.keys() {
            let whole = self
                .inner
                .layers
                .verify(&key)
                .map_err(|error| ImageError::Storage {
                    action: format!("verify layer {key}"),
                    source: io::Error::other(error),
                })?;
            if !whole {
                damaged.insert(key);
            }
        }
        self.images().retain(|id, entry| {
            let whole = !entry.image.layers.iter().any(|key| damaged.contains(key));
            if !whole {
                tracing::error!(image = id, "image left out until it is pulled again");
            }
            whole
        });
        Ok(damaged.len())
    }
}

//! The store of layers: `staging/<random>` while a layer is applied, `layers/<key>` ever after.
//!
//! A layer directory holds `fs` (what overlayfs reads) and `layer.json` (what was computed about
//! it). It gets its place by rename after one syncfs for the whole pull, so what is in `layers` is
//! complete and durable; there is no other record of it, and the index in memory is read from the
//! directory. The key is the diff id where the layer means the same on every base (no directory was
//! implied), else the chain id (marked as such). Both are digests of bytes we read, never of what
//! somebody claims.
//!
//! Users are counted: image records, containers ([`Pin`]) and pulls under way. Nothing is deleted
//! because a count fell to zero, only by [`Layers::sweep`], and that does nothing until
//! [`Layers::allow_sweeping`] was called, after a restarted daemon knows its containers again.

mod check;
mod info;
mod verify;

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rand::RngCore;

use check::BlobCheck;
pub use info::LayerInfo;
use info::{INFO_FILE, INFO_VERSION, read_info, tally};

use super::{
    applier::{ApplierCommand, ApplierError, Applying},
    apply::{Applied, Failure, FailureKind, Limits},
    digest::Digest,
    inherit::{self, Lower},
    removal,
};

/// What a source of bytes failed with.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// The compressed bytes of a layer.
pub trait Source: Send {
    /// The next part, or None at the end.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>>;
}

/// A layer could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Its bytes could not be fetched.
    #[error("the layer could not be fetched")]
    Source(#[source] SourceError),
    /// The compressed bytes are not the ones asked for.
    #[error("the blob's digest is {found}, {expected} was asked for")]
    BlobDigest {
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// The compressed bytes are more or fewer than the manifest says.
    #[error("the blob has {found} bytes, the manifest says {expected}")]
    BlobSize {
        /// What the manifest says.
        expected: u64,
        /// What came; counting stops one above.
        found: u64,
    },
    /// The uncompressed bytes are not the ones the image configuration names.
    #[error("the layer unpacks to {found}, the image configuration says {expected}")]
    DiffId {
        /// What the configuration says.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// The applier refused it or failed.
    #[error("the layer was not applied")]
    Applier(#[source] ApplierError),
    /// The directories of the store failed us.
    #[error("{action}")]
    Storage {
        /// What was tried.
        action: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl LayerError {
    fn failure(&self) -> Option<FailureKind> {
        match self {
            Self::Applier(ApplierError::Failed(Failure { kind, .. })) => Some(*kind),
            _ => None,
        }
    }

    /// Whether disk space ran out.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.failure() == Some(FailureKind::NoSpace)
    }

    /// Whether the host or we failed, not the image.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        match self {
            Self::Applier(ApplierError::Failed(_)) => self.failure() == Some(FailureKind::System),
            Self::Applier(_) | Self::Storage { .. } => true,
            _ => false,
        }
    }

    /// Whether other bytes from another place might do: the content was not what was asked for.
    #[must_use]
    pub fn is_wrong_content(&self) -> bool {
        matches!(self, Self::BlobDigest { .. } | Self::BlobSize { .. })
    }
}

fn storage(action: impl Into<String>) -> impl FnOnce(io::Error) -> LayerError {
    let action = action.into();
    move |source| LayerError::Storage { action, source }
}

/// Which layer is wanted.
#[derive(Debug, Clone)]
pub struct Want {
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// Digest of the stack up to and with it.
    pub chain_id: Digest,
    /// Digest and size of the compressed bytes; an archive of docker's kind knows neither.
    pub blob: Option<(Digest, u64)>,
}

/// A layer that was applied and has no place yet. The last owner that drops it uncommitted deletes
/// it.
pub struct Staged {
    dir: PathBuf,
    applied: Applied,
    want: Want,
    /// Guards completion and rename; true once renamed.
    committed: Mutex<bool>,
    trash: mpsc::Sender<PathBuf>,
}

impl Staged {
    fn key(&self) -> String {
        if self.applied.implied.is_empty() {
            shared_key(&self.want.diff_id)
        } else {
            chain_key(&self.want.chain_id)
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !*self
            .committed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
        {
            // If the thread is gone the daemon stops, and the next start clears staging.
            let _ = self.trash.send(self.dir.clone());
        }
    }
}

/// A layer as a pull holds it.
#[derive(Clone)]
pub enum Layer {
    /// In its place.
    Ready(Arc<Pin>),
    /// Applied, to be committed.
    Staged(Arc<Staged>),
}

/// Keeps layers from being swept. Dropping it deletes nothing.
pub struct Pin {
    layers: Layers,
    keys: Vec<String>,
}

impl Pin {
    /// The keys of the pinned layers, base first: what a container's record keeps, to pin again
    /// after a restart ([`Layers::pin`]).
    #[must_use]
    pub fn keys(&self) -> &[String] {
        &self.keys
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.layers.state();
        for key in &self.keys {
            if let Some(users) = state.users.get_mut(key) {
                *users -= 1;
                if *users == 0 {
                    state.users.remove(key);
                }
            }
        }
    }
}

#[derive(Default)]
struct State {
    index: HashMap<String, LayerInfo>,
    users: HashMap<String, usize>,
}

type Slot = Arc<tokio::sync::Mutex<Weak<Staged>>>;

struct Inner {
    root: PathBuf,
    applier: ApplierCommand,
    limits: Limits,
    state: Mutex<State>,
    slots: Mutex<HashMap<Digest, Slot>>,
    sweeping: AtomicBool,
    trash: mpsc::Sender<PathBuf>,
}

/// The store; cloning shares it.
#[derive(Clone)]
pub struct Layers {
    inner: Arc<Inner>,
}

/// The key of a layer that means the same on every base.
fn shared_key(diff_id: &Digest) -> String {
    diff_id.hex().to_owned()
}

/// The key of a layer that was completed on one base. Not just the digits: the chain id of a base
/// layer is its diff id, and yet what it was completed with may not be shared.
fn chain_key(chain_id: &Digest) -> String {
    format!("chain-{}", chain_id.hex())
}

impl Layers {
    /// Opens the store below `root`: clears interrupted work, reads what is complete, moves damaged
    /// layers aside. Blocks.
    ///
    /// # Errors
    /// [`LayerError::Storage`] if the directories cannot be made or read.
    pub fn open(root: &Path, applier: ApplierCommand, limits: Limits) -> Result<Self, LayerError> {
        for name in ["layers", "staging", "quarantine"] {
            let dir = root.join(name);
            make_private(&dir).map_err(storage(format!("make {}", dir.display())))?;
        }
        let empty = root.join("layers/.empty");
        make_private(&empty).map_err(storage("make the empty layer"))?;
        let (trash, rubbish) = mpsc::channel::<PathBuf>();
        thread::Builder::new()
            .name("layer-removal".into())
            .spawn(move || {
                for path in rubbish {
                    // A killed applier may finish one more call: then the second try does it.
                    let tried = (0..5).find_map(|round| {
                        thread::sleep(std::time::Duration::from_millis(50 * round));
                        removal::remove_tree(&path)
                            .err()
                            .map_or(Some(Ok(())), |error| (round == 4).then_some(Err(error)))
                    });
                    if let Some(Err(error)) = tried {
                        tracing::warn!(path = %path.display(), %error, "cannot delete");
                    }
                }
            })
            .map_err(storage("start the removal thread"))?;
        let layers = Self {
            inner: Arc::new(Inner {
                root: root.to_owned(),
                applier,
                limits,
                state: Mutex::default(),
                slots: Mutex::default(),
                sweeping: AtomicBool::new(false),
                trash,
            }),
        };
        for entry in list(&root.join("staging"))? {
            let _ = layers.inner.trash.send(entry);
        }
        for path in list(&root.join("layers"))? {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if name.starts_with('.') {
                continue;
            }
            match read_info(&path) {
                Ok(info) => {
                    let name = name.to_owned();
                    layers.state().index.insert(name, info);
                }
                Err(error) => {
                    tracing::error!(layer = name, %error, "damaged layer moved aside");
                    layers.move_aside(name)?;
                }
            }
        }
        Ok(layers)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn dir(&self, key: &str) -> PathBuf {
        self.inner.root.join("layers").join(key)
    }

    /// The directory that overlayfs reads for a layer.
    #[must_use]
    pub fn tree(&self, key: &str) -> PathBuf {
        self.dir(key).join("fs")
    }

    /// An empty directory, for images without layers.
    #[must_use]
    pub fn empty(&self) -> PathBuf {
        self.inner.root.join("layers/.empty")
    }

    /// What is known about a layer.
    #[must_use]
    pub fn info(&self, key: &str) -> Option<LayerInfo> {
        self.state().index.get(key).cloned()
    }

    /// The key under which a layer of an image lies, if it does.
    #[must_use]
    pub fn find(&self, diff_id: &Digest, chain_id: &Digest) -> Option<String> {
        let state = self.state();
        [shared_key(diff_id), chain_key(chain_id)]
            .into_iter()
            .find(|key| {
                state
                    .index
                    .get(key)
                    .is_some_and(|info| info.diff_id == *diff_id)
            })
    }

    /// Pins layers by key. None if one of them is not there.
    #[must_use]
    pub fn pin(&self, keys: &[String]) -> Option<Pin> {
        let mut state = self.state();
        if !keys.iter().all(|key| state.index.contains_key(key)) {
            return None;
        }
        for key in keys {
            *state.users.entry(key.clone()).or_default() += 1;
        }
        Some(Pin {
            layers: self.clone(),
            keys: keys.to_vec(),
        })
    }

    /// Bytes on disk and number of inodes of all layers.
    #[must_use]
    pub fn usage(&self) -> (u64, u64) {
        let state = self.state();
        state.index.values().fold((0, 0), |(bytes, inodes), info| {
            (bytes + info.disk_bytes, inodes + info.entries + 3)
        })
    }

    fn ready(&self, want: &Want) -> Option<Layer> {
        let key = self.find(&want.diff_id, &want.chain_id)?;
        self.pin(&[key]).map(|pin| Layer::Ready(Arc::new(pin)))
    }

    /// Gets a layer: the one in its place, the one another pull just applied, or a new one whose
    /// bytes `open` gives. Of several callers for one diff id, one works and the others wait; if it
    /// fails, the next one tries.
    ///
    /// # Errors
    /// [`LayerError`].
    pub async fn acquire<F>(&self, want: &Want, open: F) -> Result<Layer, LayerError>
    where
        F: AsyncFnOnce() -> Result<Box<dyn Source>, SourceError>,
    {
        if let Some(ready) = self.ready(want) {
            return Ok(ready);
        }
        let slot = {
            let mut slots = self
                .inner
                .slots
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            // Slots nobody waits for and whose layer is gone are only memory.
            slots.retain(|_, slot| {
                Arc::strong_count(slot) > 1
                    || slot.try_lock().map_or(true, |weak| weak.strong_count() > 0)
            });
            Arc::clone(slots.entry(want.diff_id.clone()).or_default())
        };
        let mut current = slot.lock().await;
        if let Some(ready) = self.ready(want) {
            return Ok(ready);
        }
        if let Some(staged) = current.upgrade()
            && (staged.applied.implied.is_empty() || staged.want.chain_id == want.chain_id)
        {
            return Ok(Layer::Staged(staged));
        }
        let source = open().await.map_err(LayerError::Source)?;
        let staged = Arc::new(self.apply(want, source).await?);
        *current = Arc::downgrade(&staged);
        Ok(Layer::Staged(staged))
    }

    async fn apply(&self, want: &Want, mut source: Box<dyn Source>) -> Result<Staged, LayerError> {
        let dir = self.inner.root.join("staging").join(random_name());
        let tree = dir.join("fs");
        make_private(&dir)
            .and_then(|()| make_private(&tree))
            .map_err(storage("make a staging directory"))?;
        // From here on the directory goes away with this value unless it is committed.
        let mut staged = Staged {
            dir,
            applied: Applied::default(),
            want: want.clone(),
            committed: Mutex::new(false),
            trash: self.inner.trash.clone(),
        };
        let mut child = Applying::start(&self.inner.applier, &tree, &self.inner.limits)
            .await
            .map_err(LayerError::Applier)?;
        let mut check = BlobCheck::new(want.blob.clone());
        while let Some(part) = source.next().await.map_err(LayerError::Source)? {
            check.update(&part)?;
            if !child.feed(&part).await.map_err(LayerError::Applier)? {
                break; // the report says why
            }
        }
        // Only complete and right bytes end the child's input; else it is killed. A child that
        // stopped reading has a failure to report, which finish() returns.
        let checked = check.finish();
        if !child.stopped() {
            checked?;
        }
        let applied = child.finish().await.map_err(LayerError::Applier)?;
        let found = Digest::parse(&format!("sha256:{}", applied.sha256)).map_err(|error| {
            storage("read the applier's report")(io::Error::new(io::ErrorKind::InvalidData, error))
        })?;
        if found != want.diff_id {
            return Err(LayerError::DiffId {
                expected: want.diff_id.clone(),
                found,
            });
        }
        let opaque = applied.opaque.clone();
        blocking("mark opaque directories", move || {
            let tree = File::open(&tree)?;
            inherit::mark_opaque(tree.as_fd(), &opaque)
        })
        .await?;
        staged.applied = applied;
        Ok(staged)
    }

    /// Gives the layers of one image (base first) their places and pins them. Blocks: a syncfs is
    /// in it.
    ///
    /// # Errors
    /// [`LayerError::Storage`]; layers that already have their place keep it.
    pub fn commit(&self, stack: &[Layer]) -> Result<Pin, LayerError> {
        let mut keys: Vec<String> = Vec::new();
        let mut below: Vec<(File, bool)> = Vec::new(); // top first
        let mut fresh: Vec<(Arc<Staged>, LayerInfo)> = Vec::new();
        for layer in stack {
            let (key, tree, opaque_root) = match layer {
                Layer::Ready(pin) => {
                    let key = pin.keys[0].clone();
                    let opaque = self.info(&key).is_some_and(|info| info.opaque_root);
                    (key.clone(), self.tree(&key), opaque)
                }
                Layer::Staged(staged) => {
                    let info = self.complete(staged, &below)?;
                    let committed = info.is_none();
                    let tree = if committed {
                        self.tree(&staged.key())
                    } else {
                        staged.dir.join("fs")
                    };
                    if let Some(info) = info {
                        fresh.push((Arc::clone(staged), info));
                    }
                    (staged.key(), tree, staged.applied.opaque_root)
                }
            };
            keys.push(key);
            // A layer that another pull commits right now may have moved.
            let dir = File::open(&tree)
                .or_else(|_| File::open(self.tree(keys.last().expect("just pushed"))))
                .map_err(storage(format!("open {}", tree.display())))?;
            below.insert(0, (dir, opaque_root));
        }
        if !fresh.is_empty() {
            let root = File::open(&self.inner.root).map_err(storage("open the image directory"))?;
            nix::unistd::syncfs(&root)
                .map_err(|errno| storage("sync the image file system")(errno.into()))?;
        }
        let mut pins = Vec::new();
        for (staged, info) in &fresh {
            pins.push(self.place(staged, info)?);
        }
        if !fresh.is_empty() {
            File::open(self.inner.root.join("layers"))
                .and_then(|dir| dir.sync_all())
                .map_err(storage("sync the layer directory"))?;
        }
        self.pin(&keys).ok_or_else(|| {
            storage("pin the layers")(io::Error::new(io::ErrorKind::NotFound, "a layer is gone"))
        })
    }

    /// Finishes a staged layer on its base and writes its record. None: it has its place already.
    fn complete(
        &self,
        staged: &Staged,
        below: &[(File, bool)],
    ) -> Result<Option<LayerInfo>, LayerError> {
        let committed = staged
            .committed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *committed {
            return Ok(None);
        }
        let path = staged.dir.join("fs");
        let tree = File::open(&path).map_err(storage("open a staged layer"))?;
        let lowers: Vec<Lower<'_>> = below
            .iter()
            .map(|(dir, opaque_root)| Lower {
                dir: dir.as_fd(),
                opaque_root: *opaque_root,
            })
            .collect();
        let applied = &staged.applied;
        if !applied.implied.is_empty() {
            inherit::complete(tree.as_fd(), &applied.implied, &lowers)
                .map_err(storage("inherit directories from the layers below"))?;
        }
        let (entries, bytes) = tally(&path).map_err(storage("count a layer"))?;
        let info = LayerInfo {
            version: INFO_VERSION,
            diff_id: staged.want.diff_id.clone(),
            entries,
            bytes,
            disk_bytes: applied.disk_bytes,
            opaque_root: applied.opaque_root,
            root: applied.root,
        };
        let text = serde_json::to_vec(&info).map_err(|e| storage("encode")(io::Error::other(e)))?;
        fs::write(staged.dir.join(INFO_FILE), text).map_err(storage("write a layer's record"))?;
        Ok(Some(info))
    }

    /// Renames a synced layer into its place, unless an equal one is there.
    fn place(&self, staged: &Staged, info: &LayerInfo) -> Result<Pin, LayerError> {
        let key = staged.key();
        let mut committed = staged
            .committed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state();
        if !state.index.contains_key(&key) {
            let target = self.dir(&key);
            fs::rename(&staged.dir, &target)
                .map_err(storage(format!("place layer {}", target.display())))?;
            state.index.insert(key.clone(), info.clone());
            *committed = true;
        }
        *state.users.entry(key.clone()).or_default() += 1;
        drop(state);
        Ok(Pin {
            layers: self.clone(),
            keys: vec![key],
        })
    }

    /// From now on [`Layers::sweep`] deletes.
    pub fn allow_sweeping(&self) {
        self.inner.sweeping.store(true, Ordering::Release);
    }

    /// Takes every layer without users out of its place; the deletion goes on in the background.
    /// Returns how many. Blocks shortly.
    pub fn sweep(&self) -> usize {
        if !self.inner.sweeping.load(Ordering::Acquire) {
            return 0;
        }
        let mut state = self.state();
        let unused: Vec<String> = state
            .index
            .keys()
            .filter(|key| !state.users.contains_key(*key))
            .cloned()
            .collect();
        for key in &unused {
            let aside = self.inner.root.join("staging").join(random_name());
            match fs::rename(self.dir(key), &aside) {
                Ok(()) => {
                    state.index.remove(key);
                    let _ = self.inner.trash.send(aside);
                }
                Err(error) => tracing::warn!(layer = key, %error, "cannot move layer aside"),
            }
        }
        if let Ok(damaged) = list(&self.inner.root.join("quarantine")) {
            for path in damaged {
                let name = path
                    .file_name()
                    .and_then(|name| name.to_str())
                    .unwrap_or_default();
                let key = name.split('.').next().unwrap_or_default();
                if !state.users.contains_key(key) {
                    let _ = self.inner.trash.send(path);
                }
            }
        }
        unused.len()
    }

    fn move_aside(&self, key: &str) -> Result<(), LayerError> {
        let name = format!("{key}.{}", random_name());
        fs::rename(self.dir(key), self.inner.root.join("quarantine").join(name))
            .map_err(storage(format!("quarantine layer {key}")))
    }

    /// The keys of all layers in their places.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.state().index.keys().cloned().collect()
    }
}

/// Runs file system work off the async threads.
async fn blocking<T: Send + 'static>(
    action: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, LayerError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(storage(action)),
        Err(error) => Err(storage(action)(io::Error::other(error))),
    }
}

fn make_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, LayerError> {
    fs::read_dir(dir)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect()
        })
        .map_err(storage(format!("list {}", dir.display())))
}

fn random_name() -> String {
    format!("{:016x}", rand::rng().next_u64())
}

//! Persistence over sled: the only module that knows the engine.
//!
//! Records are small (at most [`MAX_VALUE`]), typed ([`Record`]) and kept whole in memory, so reads
//! never touch the disk. All writes go through one writer thread that commits whatever is waiting as
//! one atomic batch (group commit). Two grades of promise:
//!
//! | call | survives | cost (measured) |
//! |---|---|---|
//! | [`Table::put`] | the death of the daemon (`flush`: the bytes are in the page cache) | 0.1 ms |
//! | [`Table::put_durable`] | a power cut as well (`flush` and fdatasync of the database file) | 0.3 ms |
//!
//! The engine is not trusted, because measurements say so: it panics on a flipped byte, opens empty
//! without a word when its file was cut, and can spin for ever in `open`. So [`Store::open`] runs it
//! on a helper thread under a time limit, catches panics, and compares what came up with two
//! witnesses of what must be there: a canary record written with every batch (count of records,
//! generation) and a file beside the database that holds the last acknowledged generation. A store
//! that fails the comparison is moved aside to `<dir>.quarantined-<n>` and a fresh one takes its
//! place; [`OpenReport::must_rebuild`] then tells the caller to fill it from the files, processes and
//! monitors that are the truth. That stays so over crashes until [`Store::rebuild_finished`].
//!
//! A full disk is noticed before the engine sees it; removals go on from a reserve. A write error at
//! run time closes the engine, if it lets itself be closed; the database is then reopened, or written
//! anew from memory, and the batch is tried once more before its writers get an error.
//!
//! Files: `<dir>/{db,conf,snap.*,blobs/}` are the engine's, `<dir>/witness` is ours, beside it lie
//! `<dir>.lock`, `<dir>.reserve` (room for the engine on a full disk) and, while a rebuild is due,
//! `<dir>.rebuild`.

mod engine;
mod envelope;
mod error;
mod host;
mod open;
pub mod record_file;
mod space;
mod table;
mod witness;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    any::{Any, TypeId},
    collections::{BTreeMap, HashMap},
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};

pub use self::error::{CommitError, Fault, MigrateError, StoreError};
pub use self::table::{Commit, Table, WriteBatch};

/// Largest encoded record in bytes; more belongs into a file (see [`record_file`]). Larger values
/// would leave the engine's log for files that no commit of ours makes durable.
pub const MAX_VALUE: usize = 64 * 1024;
/// Longest key in bytes.
pub const MAX_KEY: usize = 512;

/// What can be stored: an explicit struct per kind of record, never the domain type itself.
pub trait Record: Clone + Send + Sync + Serialize + DeserializeOwned + 'static {
    /// Name of the table: lower-case letters, digits, `_` and `-`.
    const TABLE: &'static str;
    /// Version of the record's shape. Raise it with every incompatible change.
    const SCHEMA: u16;

    /// Turns a body of schema `from` into one of schema `from + 1`. Called once per step.
    ///
    /// # Errors
    /// The record cannot be brought forward. The default knows no older schema.
    fn migrate(from: u16, body: serde_json::Value) -> Result<serde_json::Value, MigrateError> {
        let _ = body;
        Err(MigrateError {
            from,
            reason: "no migration from this schema is known".to_owned(),
        })
    }
}

/// How to open a store.
#[derive(Debug, Clone)]
pub struct OpenSettings {
    /// How long the engine may take to open and read everything before it counts as hung.
    pub time_limit: Duration,
    /// How long one commit may take before the engine counts as hung. A disk under load can keep a
    /// sync waiting for many seconds, which is no fault.
    pub commit_limit: Duration,
    /// How many quarantined stores are kept; the oldest ones go first.
    pub keep_quarantined: usize,
}

impl Default for OpenSettings {
    fn default() -> Self {
        Self {
            time_limit: Duration::from_secs(5),
            commit_limit: Duration::from_secs(60),
            keep_quarantined: 3,
        }
    }
}

/// What [`Store::open`] found.
#[derive(Debug, Default)]
pub struct OpenReport {
    /// There was no database and a new one was made: the first start, or somebody deleted it.
    pub created: bool,
    /// The database was unusable (now, or at an earlier start whose rebuild did not finish) and this
    /// is a fresh one.
    pub rebuilt: bool,
    /// Where this open moved the unusable database.
    pub quarantined: Option<PathBuf>,
    /// What was wrong with it.
    pub reason: Option<String>,
    /// The engine hung in `open` and its thread still burns a processor. It cannot be stopped: the
    /// daemon should execute itself anew once it may.
    pub stuck_thread: bool,
}

impl OpenReport {
    /// The store lacks records that files, monitors or the kernel may still know. Fill it, then call
    /// [`Store::rebuild_finished`].
    #[must_use]
    pub fn must_rebuild(&self) -> bool {
        self.created || self.rebuilt
    }
}

/// The store. Clones share it; the last one to go waits for the writer thread to end.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    shared: Arc<Shared>,
    /// `None` only while dropping.
    requests: Option<mpsc::Sender<writer::Request>>,
    writer: Option<JoinHandle<()>>,
    /// Held until the writer has closed the engine.
    _lock: File,
}

/// What the writer needs to rewrite a lost database: every record, typed or still raw.
#[derive(Default)]
struct Shared {
    /// Short sections only: taken when a table is first asked for and when the writer heals.
    tables: Mutex<HashMap<&'static str, Registered>>,
    /// Records of tables nobody asked for yet: table, key, envelope.
    raw: Mutex<BTreeMap<String, BTreeMap<String, Vec<u8>>>>,
    /// An engine's thread did not come back.
    stuck: AtomicBool,
}

struct Registered {
    of: TypeId,
    typed: Arc<dyn Any + Send + Sync>,
    erased: Arc<dyn table::Dump>,
}

impl Store {
    /// Opens the store below `dir` (made with mode 0700 if missing) with the default settings.
    ///
    /// # Errors
    /// Another process has it open, or not even a fresh database could be made there.
    pub fn open(dir: impl AsRef<Path>) -> Result<(Self, OpenReport), StoreError> {
        Self::open_with(dir, &OpenSettings::default())
    }

    /// [`Store::open`] with explicit settings.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(
        dir: impl AsRef<Path>,
        settings: &OpenSettings,
    ) -> Result<(Self, OpenReport), StoreError> {
        let dir = dir.as_ref().to_owned();
        let lock = open::lock(&dir)?;
        let opened = open::open(&dir, settings)?;
        let shared = Arc::new(Shared::default());
        shared
            .stuck
            .store(opened.report.stuck_thread, Ordering::Relaxed);
        let keys = opened.records.keys().cloned().collect();
        *guard(&shared.raw) = open::by_table(opened.records);
        let (requests, inbox) = mpsc::channel();
        let writer = writer::Writer {
            dir: dir.clone(),
            settings: settings.clone(),
            engine: Some(opened.engine),
            generation: opened.generation,
            keys,
            shared: Arc::clone(&shared),
            last_heal: None,
            space: space::Space::new(&dir),
        };
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(&inbox))
            .map_err(|source| StoreError::Prepare {
                path: dir.clone(),
                source,
            })?;
        let inner = Inner {
            dir,
            shared,
            requests: Some(requests),
            writer: Some(writer),
            _lock: lock,
        };
        Ok((
            Self {
                inner: Arc::new(inner),
            },
            opened.report,
        ))
    }

    /// The table of one kind of record. The first call decodes its records and migrates old ones.
    ///
    /// # Errors
    /// A record is of a newer schema than this build knows (a downgrade), or cannot be decoded; the
    /// store is left as it is. Or another type has claimed the table.
    pub fn table<T: Record>(&self) -> Result<Table<T>, StoreError> {
        let mut tables = guard(&self.inner.shared.tables);
        if let Some(known) = tables.get(T::TABLE) {
            return match Arc::clone(&known.typed).downcast::<table::Rows<T>>() {
                Ok(rows) if known.of == TypeId::of::<T>() => Ok(Table::new(self.clone(), rows)),
                _ => Err(StoreError::TableTaken { table: T::TABLE }),
            };
        }
        let mut raw = guard(&self.inner.shared.raw);
        let decoded = table::decode_all::<T>(raw.get(T::TABLE))?;
        let rows = Arc::new(table::Rows::new(decoded.rows));
        let registered = Registered {
            of: TypeId::of::<T>(),
            typed: Arc::clone(&rows) as Arc<dyn Any + Send + Sync>,
            erased: Arc::clone(&rows) as Arc<dyn table::Dump>,
        };
        tables.insert(T::TABLE, registered);
        raw.remove(T::TABLE);
        drop(raw);
        drop(tables);
        let table = Table::new(self.clone(), rows);
        if !decoded.migrated.is_empty() {
            let mut batch = self.batch();
            for (key, value) in decoded.migrated {
                batch = batch.put(&table, &key, value);
            }
            batch.commit_durable().wait()?;
        }
        Ok(table)
    }

    /// Starts a set of writes, over any tables, that is committed as a whole or not at all.
    #[must_use]
    pub fn batch(&self) -> WriteBatch {
        WriteBatch::new(self.clone())
    }

    /// Where the store lies.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// An engine hung and its thread is lost. The store may work on with another one, but the
    /// daemon should execute itself anew when it can.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.inner.shared.stuck.load(Ordering::Relaxed)
    }

    /// The caller has put back everything that [`OpenReport::must_rebuild`] asked for. Waits until
    /// all writes so far are durable, then forgets that a rebuild was due.
    ///
    /// # Errors
    /// The commit failed, or the mark could not be removed; the rebuild stays due.
    pub fn rebuild_finished(&self) -> Result<(), StoreError> {
        self.batch().commit_durable().wait()?;
        open::forget_rebuild(&self.inner.dir)
    }

    fn send(&self, request: writer::Request) {
        // A writer that is gone drops the request and with it the reply channel: the caller gets
        // `StoreError::Closed`.
        if let Some(requests) = &self.inner.requests {
            let _ = requests.send(request);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            // A panic of the writer was reported by the panic hook; there is nobody left to tell.
            let _ = writer.join();
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("dir", &self.inner.dir)
            .finish_non_exhaustive()
    }
}

/// Locks a mutex whose holders cannot leave it half-changed, so poisoning means nothing.
fn guard<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! What can go wrong in the store.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use crate::error::{Classify, ErrorKind};

/// An operation of the store failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error(transparent)]
pub struct CommitError(pub Arc<Fault>);

/// An operation of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process, or another handle of this one, has the store open.
    #[error("the store {} is in use by process {}", path.display(), pid.map_or_else(|| "?".to_owned(), |p| p.to_string()))]
    Locked {
        /// The store's directory.
        path: PathBuf,
        /// Who holds it, as far as its lock file says.
        pid: Option<u32>,
    },
    /// A directory or file around the database could not be made, read or removed.
    #[error("cannot prepare {}", path.display())]
    Prepare {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not even a fresh database could be opened.
    #[error("cannot open a fresh database in {}", path.display())]
    Open {
        /// The store's directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: Fault,
    },
    /// A later release wrote this record. Going back needs that release's export, not a guess.
    #[error("record {key:?} of table {table} has schema {found}, this build knows up to {known}")]
    Newer {
        /// The table.
        table: &'static str,
        /// The record's key.
        key: String,
        /// Its schema.
        found: u16,
        /// The newest one known here.
        known: u16,
    },
    /// A record's envelope is whole but its body is not what its schema says.
    #[error("record {key:?} of table {table} cannot be decoded")]
    Decode {
        /// The table.
        table: &'static str,
        /// The record's key.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// An old record cannot be brought to today's schema.
    #[error("record {key:?} of table {table} cannot be migrated")]
    Migrate {
        /// The table.
        table: &'static str,
        /// The record's key.
        key: String,
        /// Why.
        #[source]
        source: MigrateError,
    },
    /// A record does not serialise.
    #[error("record {key:?} of table {table} cannot be encoded")]
    Encode {
        /// The table.
        table: &'static str,
        /// The record's key.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A record is larger than [`super::MAX_VALUE`].
    #[error(
        "record {key:?} of table {table} has {size} bytes, at most {} are stored",
        super::MAX_VALUE
    )]
    TooLarge {
        /// The table.
        table: &'static str,
        /// The record's key.
        key: String,
        /// Its encoded size.
        size: usize,
    },
    /// A key is empty, too long or holds a NUL.
    #[error(
        "{key:?} is no key for table {table}: 1 to {} bytes without NUL",
        super::MAX_KEY
    )]
    Key {
        /// The table.
        table: &'static str,
        /// The key.
        key: String,
    },
    /// Two types claim one table: a bug.
    #[error("table {table} belongs to another type of record")]
    TableTaken {
        /// The table.
        table: &'static str,
    },
    /// The batch with this write was not committed. Nothing of it is visible.
    #[error("the write was not committed")]
    Commit {
        /// Why.
        #[source]
        source: CommitError,
    },
    /// The writer thread is gone.
    #[error("the store is closed")]
    Closed,
}

impl Classify for StoreError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Commit { source } if source.0.is_no_space() => ErrorKind::Exhausted,
            Self::Closed => ErrorKind::NotReady,
            _ => ErrorKind::Internal,
        }
    }
}

/// Why a record of an older schema cannot be brought forward.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("schema {from} to {}: {reason}", from + 1)]
pub struct MigrateError {
    /// The schema of the body that was to be migrated.
    pub from: u16,
    /// What is wrong with it.
    pub reason: String,
}

/// What is wrong with the engine or its files.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The engine reported an error.
    #[error("engine error")]
    Engine(#[source] sled::Error),
    /// A file of the database could not be handled.
    #[error("{call} {}", path.display())]
    File {
        /// What was tried.
        call: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The engine panicked.
    #[error("the engine panicked: {0}")]
    Panicked(String),
    /// The engine did not come back in time.
    #[error("the engine did not answer within {0:?}")]
    Hung(Duration),
    /// The database came up without its canary although records were acknowledged before.
    #[error("the database came up empty")]
    Empty,
    /// The database holds another number of records than its canary says.
    #[error("the database holds {found} records, {expected} were written")]
    Short {
        /// Records found.
        found: u64,
        /// Records that the canary counted.
        expected: u64,
    },
    /// Acknowledged batches are missing.
    #[error("the database ends at generation {found}, {expected} was acknowledged")]
    Stale {
        /// Generation in the canary.
        found: u64,
        /// Generation that was acknowledged.
        expected: u64,
    },
    /// A record or key is not what the store wrote.
    #[error("record {key:?} is damaged: {reason}")]
    Damaged {
        /// The raw key, lossily as text.
        key: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The disk is too full to let the engine write.
    #[error("no space left: {free} bytes are free, {floor} are needed")]
    NoSpace {
        /// Free bytes.
        free: u64,
        /// Bytes that must be free.
        floor: u64,
    },
    /// An earlier fault has closed the engine and it is too early to try again.
    #[error("the database is closed after an earlier fault: {0}")]
    Resting(String),
}

impl Fault {
    /// The engine could not lock its file.
    pub(super) fn is_engine_lock(&self) -> bool {
        matches!(self, Self::Engine(sled::Error::Io(e)) if e.to_string().contains("could not acquire lock"))
    }

    /// The disk or quota is full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        let full = |kind: io::ErrorKind| {
            matches!(
                kind,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        };
        match self {
            // The engine clones its errors by kind and loses the code; the text stays.
            Self::Engine(sled::Error::Io(e)) => {
                full(e.kind()) || e.to_string().contains("No space left")
            }
            Self::File { source, .. } => full(source.kind()),
            Self::NoSpace { .. } => true,
            Self::Resting(text) => text.contains("No space left"),
            _ => false,
        }
    }
}

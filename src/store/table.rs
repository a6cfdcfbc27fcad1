//! Typed tables over the writer.

use std::{
    collections::BTreeMap,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll},
};

use tokio::sync::oneshot;

use super::{
    MAX_KEY, MAX_VALUE, Record, Store, engine, envelope,
    error::StoreError,
    writer::{Request, Write},
};

/// The records of one table, in memory. The writer changes them once their batch is committed, so
/// memory and disk have the same order of events.
pub(super) struct Rows<T> {
    /// Held for a lookup, an insert or one copy of the pointers, never across I/O.
    rows: RwLock<BTreeMap<String, Arc<T>>>,
}

impl<T> Rows<T> {
    pub(super) fn new(rows: BTreeMap<String, Arc<T>>) -> Self {
        Self {
            rows: RwLock::new(rows),
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Arc<T>>> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, Arc<T>>> {
        self.rows.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the writer encode a table it does not know the type of.
pub(super) trait Dump: Send + Sync {
    /// Every record as raw key and envelope.
    fn dump(&self) -> Vec<(Vec<u8>, Vec<u8>)>;
}

impl<T: Record> Dump for Rows<T> {
    fn dump(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let encode = |value: &T| serde_json::to_vec(value).expect("it was encoded once already");
        self.read()
            .iter()
            .map(|(key, value)| {
                (
                    engine::raw_key(T::TABLE, key),
                    envelope::seal(T::SCHEMA, &encode(value)),
                )
            })
            .collect()
    }
}

/// A table of records of one kind. Cheap to clone.
pub struct Table<T> {
    store: Store,
    rows: Arc<Rows<T>>,
}

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            rows: Arc::clone(&self.rows),
        }
    }
}

impl<T: Record> Table<T> {
    pub(super) fn new(store: Store, rows: Arc<Rows<T>>) -> Self {
        Self { store, rows }
    }

    /// The record with this key. Never touches the disk.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Arc<T>> {
        self.rows.read().get(key).map(Arc::clone)
    }

    /// All records whose key starts with `prefix` (`""` for all), by key. Never touches the disk.
    #[must_use]
    pub fn scan(&self, prefix: &str) -> Vec<(String, Arc<T>)> {
        self.rows
            .read()
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.clone(), Arc::clone(value)))
            .collect()
    }

    /// Number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.read().len()
    }

    /// No record at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.read().is_empty()
    }

    /// Stores a record so that it survives the death of the daemon. The write is on its way when
    /// this returns, whether or not the [`Commit`] is awaited; it can be read once it is committed.
    pub fn put(&self, key: &str, value: T) -> Commit {
        self.store.batch().put(self, key, value).commit()
    }

    /// [`Table::put`] that survives a power cut too.
    pub fn put_durable(&self, key: &str, value: T) -> Commit {
        self.store.batch().put(self, key, value).commit_durable()
    }

    /// Removes a record; one that is not there is fine.
    pub fn remove(&self, key: &str) -> Commit {
        self.store.batch().remove(self, key).commit()
    }

    /// [`Table::remove`] that survives a power cut too.
    pub fn remove_durable(&self, key: &str) -> Commit {
        self.store.batch().remove(self, key).commit_durable()
    }
}

/// Writes over any tables that are committed as a whole or not at all.
pub struct WriteBatch {
    store: Store,
    writes: Vec<Write>,
    /// The first record that could not be taken.
    refused: Option<StoreError>,
}

impl WriteBatch {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            writes: Vec::new(),
            refused: None,
        }
    }

    /// Adds a record.
    #[must_use = "a batch does nothing until it is committed"]
    pub fn put<T: Record>(mut self, table: &Table<T>, key: &str, value: T) -> Self {
        match encode(key, &value) {
            Ok(bytes) => {
                let (rows, owned, value) =
                    (Arc::clone(&table.rows), key.to_owned(), Arc::new(value));
                self.writes.push(Write {
                    key: engine::raw_key(T::TABLE, key),
                    value: Some(bytes),
                    apply: Box::new(move || {
                        rows.write().insert(owned, value);
                    }),
                });
            }
            Err(error) => self.refuse(error),
        }
        self
    }

    /// Removes a record; one that is not there is fine.
    #[must_use = "a batch does nothing until it is committed"]
    pub fn remove<T: Record>(mut self, table: &Table<T>, key: &str) -> Self {
        if let Err(error) = check_key::<T>(key) {
            self.refuse(error);
            return self;
        }
        let (rows, owned) = (Arc::clone(&table.rows), key.to_owned());
        self.writes.push(Write {
            key: engine::raw_key(T::TABLE, key),
            value: None,
            apply: Box::new(move || {
                rows.write().remove(&owned);
            }),
        });
        self
    }

    /// Commits; survives the death of the daemon.
    pub fn commit(self) -> Commit {
        self.submit(false)
    }

    /// Commits; survives a power cut.
    pub fn commit_durable(self) -> Commit {
        self.submit(true)
    }

    fn refuse(&mut self, error: StoreError) {
        self.refused.get_or_insert(error);
    }

    fn submit(self, durable: bool) -> Commit {
        let (reply, result) = oneshot::channel();
        match self.refused {
            // The receiver is right here.
            Some(error) => drop(reply.send(Err(error))),
            None => self.store.send(Request {
                writes: self.writes,
                durable,
                reply,
            }),
        }
        Commit { result }
    }
}

/// A commit under way. It happens whether or not anybody waits for it.
#[must_use = "whether the write succeeded is known only by waiting"]
pub struct Commit {
    result: oneshot::Receiver<Result<(), StoreError>>,
}

impl Commit {
    /// Waits on a thread that may block (never on one that drives async tasks).
    ///
    /// # Errors
    /// The write was refused or not committed.
    pub fn wait(self) -> Result<(), StoreError> {
        self.result
            .blocking_recv()
            .unwrap_or(Err(StoreError::Closed))
    }
}

impl Future for Commit {
    type Output = Result<(), StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.result)
            .poll(context)
            .map(|received| received.unwrap_or(Err(StoreError::Closed)))
    }
}

fn check_key<T: Record>(key: &str) -> Result<(), StoreError> {
    if key.is_empty() || key.len() > MAX_KEY || key.contains('\0') {
        let key = key.chars().take(MAX_KEY).collect();
        return Err(StoreError::Key {
            table: T::TABLE,
            key,
        });
    }
    Ok(())
}

fn encode<T: Record>(key: &str, value: &T) -> Result<Vec<u8>, StoreError> {
    check_key::<T>(key)?;
    let fields = || (T::TABLE, key.to_owned());
    let body = serde_json::to_vec(value).map_err(|source| {
        let (table, key) = fields();
        StoreError::Encode { table, key, source }
    })?;
    let bytes = envelope::seal(T::SCHEMA, &body);
    if bytes.len() > MAX_VALUE {
        let (table, key) = fields();
        return Err(StoreError::TooLarge {
            table,
            key,
            size: bytes.len(),
        });
    }
    Ok(bytes)
}

/// A table as it was read: all records, and those that had to be migrated.
pub(super) struct Decoded<T> {
    pub rows: BTreeMap<String, Arc<T>>,
    pub migrated: Vec<(String, T)>,
    _table: PhantomData<T>,
}

/// Decodes the raw records of a table, bringing old ones forward.
pub(super) fn decode_all<T: Record>(
    raw: Option<&BTreeMap<String, Vec<u8>>>,
) -> Result<Decoded<T>, StoreError> {
    let mut decoded = Decoded {
        rows: BTreeMap::new(),
        migrated: Vec::new(),
        _table: PhantomData,
    };
    for (key, sealed) in raw.into_iter().flatten() {
        let (schema, body) =
            envelope::open(sealed).expect("every envelope was checked when it was read");
        let value = decode::<T>(key, schema, body)?;
        if schema != T::SCHEMA {
            decoded.migrated.push((key.clone(), value.clone()));
        }
        decoded.rows.insert(key.clone(), Arc::new(value));
    }
    Ok(decoded)
}

/// Decodes one body of any schema up to today's.
pub(super) fn decode<T: Record>(key: &str, schema: u16, body: &[u8]) -> Result<T, StoreError> {
    let bad = |source| StoreError::Decode {
        table: T::TABLE,
        key: key.to_owned(),
        source,
    };
    if schema == T::SCHEMA {
        return serde_json::from_slice(body).map_err(bad);
    }
    if schema > T::SCHEMA {
        let (table, key) = (T::TABLE, key.to_owned());
        return Err(StoreError::Newer {
            table,
            key,
            found: schema,
            known: T::SCHEMA,
        });
    }
    let mut value = serde_json::from_slice(body).map_err(bad)?;
    for from in schema..T::SCHEMA {
        value = T::migrate(from, value).map_err(|source| StoreError::Migrate {
            table: T::TABLE,
            key: key.to_owned(),
            source,
        })?;
    }
    serde_json::from_value(value).map_err(bad)
}

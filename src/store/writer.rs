//! The one thread that writes: whatever requests are waiting become one batch (group commit).
//!
//! If a commit fails, its requests fail, nothing of them becomes visible, and the engine is closed:
//! after an I/O error sled refuses everything until it is opened anew. The next batch first heals:
//! reopen, and if what comes up lacks acknowledged writes, write a fresh database from memory.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::PathBuf,
    sync::{Arc, atomic::Ordering, mpsc},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    OpenSettings, Shared,
    engine::{self, Batch},
    error::{CommitError, Fault, StoreError},
    guard,
    host::{self, Hosted},
    open,
    space::Space,
};

/// Requests that go into one commit at most; their answers wait for all of them.
const MAX_GROUP: usize = 256;
/// After a failed attempt to heal, requests fail at once for this long: each attempt costs tens of
/// milliseconds, and a full disk does not empty itself in that time.
const REST: Duration = Duration::from_millis(250);
/// The same after an engine that hung: each attempt costs a thread.
const REST_HUNG: Duration = Duration::from_secs(60);
/// How long closing an engine may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// One change of one record.
pub(super) struct Write {
    /// Raw key.
    pub key: Vec<u8>,
    /// Envelope, or `None` to remove.
    pub value: Option<Vec<u8>>,
    /// Makes the change visible to readers, after the commit.
    pub apply: Box<dyn FnOnce() + Send>,
}

/// Changes that belong together, and who wants to know.
pub(super) struct Request {
    pub writes: Vec<Write>,
    pub durable: bool,
    pub reply: oneshot::Sender<Result<(), StoreError>>,
}

impl Request {
    fn stores_something(&self) -> bool {
        self.writes.iter().any(|w| w.value.is_some())
    }
}

/// The state of the writer thread.
pub(super) struct Writer {
    pub dir: PathBuf,
    pub settings: OpenSettings,
    /// `None` after a fault, until healed.
    pub engine: Option<Hosted>,
    /// Last acknowledged generation.
    pub generation: u64,
    /// Raw keys of all records, to know their count.
    pub keys: HashSet<Vec<u8>>,
    pub shared: Arc<Shared>,
    /// Until when healing is not tried again, and why it failed.
    pub last_heal: Option<(Instant, String)>,
    pub space: Space,
}

/// Changes of a group without its callers: what a commit needs.
type Writes = Vec<(Vec<u8>, Option<Vec<u8>>)>;
/// Makes changes visible and tells who waits.
type Waiting = Vec<(
    Vec<Box<dyn FnOnce() + Send>>,
    oneshot::Sender<Result<(), StoreError>>,
)>;

impl Writer {
    /// Serves requests until the last handle of the store is gone.
    pub(super) fn run(mut self, inbox: &mpsc::Receiver<Request>) {
        while let Ok(first) = inbox.recv() {
            let mut group = vec![first];
            group.extend(inbox.try_iter().take(MAX_GROUP - 1));
            // On a full disk those that only remove must not fail with those that store.
            let (stores, removes) = group.into_iter().partition(Request::stores_something);
            for group in [stores, removes] {
                self.serve(group);
            }
        }
        self.close();
    }

    fn serve(&mut self, group: Vec<Request>) {
        if group.is_empty() {
            return;
        }
        let durable = group.iter().any(|r| r.durable);
        let stores_something = group.iter().any(Request::stores_something);
        let mut writes = Writes::new();
        let mut waiting = Waiting::new();
        for request in group {
            let mut applies = Vec::with_capacity(request.writes.len());
            for write in request.writes {
                writes.push((write.key, write.value));
                applies.push(write.apply);
            }
            waiting.push((applies, request.reply));
        }
        let outcome = self
            .space
            .check(stores_something)
            .and_then(|()| self.commit(writes, durable));
        match outcome {
            Ok(()) => {
                for (applies, reply) in waiting {
                    applies.into_iter().for_each(|apply| apply());
                    // A caller that went away does not want to know.
                    let _ = reply.send(Ok(()));
                }
            }
            Err(fault) => {
                let error = CommitError(Arc::new(fault));
                let text = crate::error::Chain(&error).to_string();
                tracing::error!(
                    error = text,
                    requests = waiting.len(),
                    "the store cannot commit"
                );
                for (_, reply) in waiting {
                    let _ = reply.send(Err(StoreError::Commit {
                        source: error.clone(),
                    }));
                }
            }
        }
    }

    /// Commits a group as one batch; after a fault once more on a healed engine.
    fn commit(&mut self, writes: Writes, durable: bool) -> Result<(), Fault> {
        let was_open = self.engine.is_some();
        if !was_open {
            self.heal()?;
        }
        let count = self.count_after(&writes);
        let generation = self.generation + 1;
        let mut batch = Arc::new(Batch {
            writes,
            count,
            generation,
            durable,
        });
        let mut outcome = self.try_commit(&batch);
        if let Err(fault) = &outcome
            && was_open
        {
            let text = crate::error::Chain(fault).to_string();
            tracing::warn!(error = text, "the store's engine failed and is opened anew");
            self.heal()?;
            // A rewrite from memory was a batch of its own.
            let generation = self.generation + 1;
            batch = match Arc::try_unwrap(batch) {
                Ok(batch) => Arc::new(Batch {
                    generation,
                    ..batch
                }),
                // A thread that never comes back still holds it.
                Err(held) => {
                    let writes = held.writes.clone();
                    Arc::new(Batch {
                        writes,
                        count,
                        generation,
                        durable,
                    })
                }
            };
            outcome = self.try_commit(&batch);
        }
        if outcome.is_ok() {
            for (key, value) in &batch.writes {
                match value {
                    Some(_) => self.keys.insert(key.clone()),
                    None => self.keys.remove(key),
                };
            }
        }
        outcome
    }

    /// How many records there are once these changes are made.
    fn count_after(&self, writes: &Writes) -> u64 {
        let last: HashMap<&[u8], bool> = writes
            .iter()
            .map(|(key, value)| (key.as_slice(), value.is_some()))
            .collect();
        let mut count = self.keys.len() as u64;
        for (key, stays) in last {
            match (self.keys.contains(key), stays) {
                (false, true) => count += 1,
                (true, false) => count -= 1,
                _ => {}
            }
        }
        count
    }

    fn try_commit(&mut self, batch: &Arc<Batch>) -> Result<(), Fault> {
        let engine = self.engine.as_ref().expect("the caller has healed it");
        let outcome = engine.commit(batch, self.settings.commit_limit);
        match outcome {
            Ok(()) => self.generation = batch.generation,
            Err(_) => self.close(),
        }
        outcome
    }

    /// Closes the engine, or leaves it behind if it does not let itself be closed.
    fn close(&mut self) {
        let Some(engine) = self.engine.take() else {
            return;
        };
        if !engine.close(CLOSE_LIMIT) {
            self.shared.stuck.store(true, Ordering::Relaxed);
            tracing::error!("the store's engine hangs; its thread stays until the daemon restarts");
        }
    }

    /// Gets an engine again whose database holds exactly what memory holds.
    fn heal(&mut self) -> Result<(), Fault> {
        if let Some((until, why)) = &self.last_heal
            && Instant::now() < *until
        {
            return Err(Fault::Resting(why.clone()));
        }
        let outcome = self.heal_now();
        self.last_heal = match &outcome {
            Ok(()) => None,
            Err(fault) => {
                let rest = if matches!(fault, Fault::Hung(_)) {
                    REST_HUNG
                } else {
                    REST
                };
                Some((
                    Instant::now() + rest,
                    crate::error::Chain(fault).to_string(),
                ))
            }
        };
        outcome
    }

    fn heal_now(&mut self) -> Result<(), Fault> {
        // The batch that failed may be there or not: then its answer would be a lie, so the
        // database must end exactly where the acknowledgements do.
        match open::attempt_twice(&self.dir, self.settings.time_limit) {
            Ok(checked) if checked.generation == self.generation => {
                self.engine = Some(checked.engine);
                return Ok(());
            }
            Ok(checked) => {
                tracing::warn!(
                    found = checked.generation,
                    acknowledged = self.generation,
                    "the reopened store is not where it was left; it is written anew from memory"
                );
                self.engine = Some(checked.engine);
                self.close();
            }
            Err(fault) => tracing::warn!(
                error = %crate::error::Chain(&fault),
                "the store cannot be reopened; it is written anew from memory"
            ),
        }
        self.rewrite()
    }

    /// Replaces the database by a fresh one with everything that is in memory. The old one comes
    /// back if that fails.
    fn rewrite(&mut self) -> Result<(), Fault> {
        let prepare = |e: StoreError| match e {
            StoreError::Prepare { path, source } => Fault::File {
                call: "prepare",
                path,
                source,
            },
            other => Fault::Panicked(other.to_string()),
        };
        // A rebuild that is due already stays due: memory lacks what it would bring.
        let due = open::rebuild_is_due(&self.dir);
        if !due {
            open::mark_rebuild(&self.dir, "the store was being written anew").map_err(prepare)?;
        }
        let outcome = self.replace();
        if !due {
            open::forget_rebuild(&self.dir).map_err(prepare)?;
        }
        outcome
    }

    fn replace(&mut self) -> Result<(), Fault> {
        let old = open::quarantine(&self.dir, self.settings.keep_quarantined).map_err(prepare)?;
        match open::make_dir(&self.dir)
            .map_err(prepare)
            .and_then(|()| self.fill())
        {
            Ok(engine) => {
                self.engine = Some(engine);
                tracing::info!(old = %old.display(), "the store was written anew");
                Ok(())
            }
            Err(fault) => {
                let back = fs::remove_dir_all(&self.dir).and_then(|()| fs::rename(&old, &self.dir));
                if let Err(error) = back {
                    tracing::warn!(%error, "the old store could not be put back");
                }
                Err(fault)
            }
        }
    }

    fn fill(&mut self) -> Result<Hosted, Fault> {
        let engine = host::open(&self.dir, self.settings.time_limit)?.engine;
        let writes: Writes = self
            .everything()
            .into_iter()
            .map(|(k, v)| (k, Some(v)))
            .collect();
        let keys: HashSet<Vec<u8>> = writes.iter().map(|(key, _)| key.clone()).collect();
        let count = keys.len() as u64;
        let generation = self.generation + 1;
        let batch = Arc::new(Batch {
            writes,
            count,
            generation,
            durable: true,
        });
        if let Err(fault) = engine.commit(&batch, self.settings.commit_limit) {
            if !engine.close(CLOSE_LIMIT) {
                self.shared.stuck.store(true, Ordering::Relaxed);
            }
            return Err(fault);
        }
        self.keys = keys;
        self.generation = generation;
        Ok(engine)
    }

    fn everything(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        // Same order of locks as `Store::table`.
        let tables = guard(&self.shared.tables);
        let raw = guard(&self.shared.raw);
        let mut all: Vec<_> = tables.values().flat_map(|t| t.erased.dump()).collect();
        for (table, rows) in raw.iter() {
            all.extend(
                rows.iter()
                    .map(|(k, v)| (engine::raw_key(table, k), v.clone())),
            );
        }
        all
    }
}

/// The errors around a database's files, seen from the writer.
fn prepare(error: StoreError) -> Fault {
    match error {
        StoreError::Prepare { path, source } => Fault::File {
            call: "prepare",
            path,
            source,
        },
        other => Fault::Panicked(other.to_string()),
    }
}

//! The thread an engine lives on. It may panic, and it may never come back: after a write error sled
//! can wait for ever, in `flush` and in `drop` alike. Whoever waits for it has a limit and goes on
//! without it; such a thread, its memory and its open files are lost until the daemon restarts.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use super::{
    engine::{Batch, Checked, Engine, Records},
    error::Fault,
};

/// A database that was opened and found whole.
pub(super) struct Opened {
    pub engine: Hosted,
    pub records: Records,
    pub generation: u64,
    /// It was empty and nothing had ever been acknowledged from it.
    pub created: bool,
}

/// An engine on its thread.
pub(super) struct Hosted {
    jobs: mpsc::Sender<Job>,
    /// Disconnected once the engine is closed.
    closed: mpsc::Receiver<()>,
}

struct Job {
    batch: Arc<Batch>,
    outcome: mpsc::SyncSender<Result<(), Fault>>,
}

/// Opens the database in `dir`.
pub(super) fn open(dir: &Path, limit: Duration) -> Result<Opened, Fault> {
    let (jobs, inbox) = mpsc::channel::<Job>();
    let (closing, closed) = mpsc::channel();
    let (answer, result) = mpsc::channel();
    let path = dir.to_owned();
    let life = move || {
        // Dropped when the thread ends, after everything else.
        let _closing: mpsc::Sender<()> = closing;
        crate::failpoint::reach(format_args!("store.open"));
        let mut engine = match guarded(|| open_when_unlocked(&path)) {
            Ok(Checked {
                engine,
                records,
                generation,
                created,
            }) => {
                // If nobody waits any more, the inbox is closed too and the engine with it.
                let _ = answer.send(Ok((records, generation, created)));
                engine
            }
            Err(fault) => return drop(answer.send(Err(fault))),
        };
        for job in inbox {
            let outcome = guarded(|| engine.commit(&job.batch));
            // One that gave up waiting does not want to know.
            let _ = job.outcome.send(outcome);
        }
        let _ = guarded(|| {
            drop(engine);
            Ok(())
        });
    };
    std::thread::Builder::new()
        .name("store-engine".to_owned())
        .spawn(life)
        .map_err(|source| Fault::File {
            call: "start a thread for",
            path: dir.to_owned(),
            source,
        })?;
    let (records, generation, created) = within(&result, limit)?;
    Ok(Opened {
        engine: Hosted { jobs, closed },
        records,
        generation,
        created,
    })
}

impl Hosted {
    /// Commits a batch.
    pub(super) fn commit(&self, batch: &Arc<Batch>, limit: Duration) -> Result<(), Fault> {
        let (outcome, result) = mpsc::sync_channel(1);
        // A thread that is gone drops the job, and the wait below ends.
        let _ = self.jobs.send(Job {
            batch: Arc::clone(batch),
            outcome,
        });
        within(&result, limit)
    }

    /// Closes the database; whether that happened within the limit.
    pub(super) fn close(self, limit: Duration) -> bool {
        drop(self.jobs);
        matches!(
            self.closed.recv_timeout(limit),
            Err(RecvTimeoutError::Disconnected)
        )
    }
}

fn within<T>(result: &mpsc::Receiver<Result<T, Fault>>, limit: Duration) -> Result<T, Fault> {
    match result.recv_timeout(limit) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Timeout) => Err(Fault::Hung(limit)),
        Err(RecvTimeoutError::Disconnected) => Err(Fault::Panicked(
            "its thread ended without a word".to_owned(),
        )),
    }
}

/// Our own lock is held, so a lock on the engine's file can only be one that a database closed a
/// moment ago in this process has not let go of yet (its worker threads keep the file a little).
fn open_when_unlocked(dir: &Path) -> Result<Checked, Fault> {
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        match Engine::open(dir) {
            Err(fault) if fault.is_engine_lock() && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            outcome => return outcome,
        }
    }
}

/// Runs code of the engine; a panic in it becomes a fault.
fn guarded<T>(work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        let text = payload
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_else(|| "without a message".to_owned());
        Err(Fault::Panicked(text))
    })
}

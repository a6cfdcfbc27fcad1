//! Takes apart what a container's record says may exist.
//!
//! Every step is idempotent and has a deadline of its own, so undoing can be cut off anywhere and
//! begun anew. Order: processes first (the monitor, then everything in the cgroup), then the cgroup,
//! the runtime files, the writable layer, and at last the record.

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use conmon_rs::{exit::ExitRecord, protocol};
use crisp_oci::cgroup::Cgroup;

use super::{
    driver::exit_of,
    record::{ContainerRecord, Phase},
    state::Exit,
};
use crate::{
    clock,
    error::{Chain, Classify, ErrorKind},
    id::ContainerId,
    monitor,
    node::Node,
    snapshot::layers::Pin as LayerPin,
    store::{StoreError, record_file::RecordFileError},
};

/// How long one step may take.
const STEP_LIMIT: Duration = Duration::from_secs(60);
/// How long killed processes may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Pauses between tries of what could not be undone.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// Why a step of the undoing failed.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// Processes, cgroup, files or layer do not go.
    #[error("cannot remove the {what} of the container")]
    Remains {
        /// Which of them.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The record does not go.
    #[error("cannot remove the record of the container")]
    Record(#[source] StoreError),
    /// The journal of the undoing cannot be written.
    #[error("cannot record the removal")]
    Journal(#[source] RecordFileError),
    /// A step took too long.
    #[error("removal of the {what} took longer than {STEP_LIMIT:?}")]
    Late {
        /// Which step.
        what: &'static str,
    },
}

impl Classify for UndoError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Record(_) | Self::Journal(_) => ErrorKind::Internal,
            Self::Late { .. } => ErrorKind::Deadline,
            Self::Remains { .. } => ErrorKind::Internal,
        }
    }
}

/// Removes every trace of a container whose process has ended or may be ended now. The log stays
/// where the client asked for it.
///
/// # Errors
/// The step that failed; calling again goes on from there.
pub async fn erase(
    node: &Arc<Node>,
    record: &mut ContainerRecord,
    pin: &mut Option<LayerPin>,
) -> Result<(), UndoError> {
    record.phase = Phase::Removing;
    node.write_container(record)
        .await
        .map_err(UndoError::Journal)?;
    end_processes(node, record).await?;
    let (state, root) = (
        node.paths.container_state(&record.id),
        node.paths.container_root(&record.id),
    );
    let trash = node
        .paths
        .trash()
        .join(format!("{}-{}", record.id, clock::now_ns()));
    blocking("runtime files", move || crate::node::remove_tree(&state)).await?;
    // The record's file goes with the directory: until the store has forgotten it, the phase in
    // there makes a restart finish the job.
    node.remove_container(&record.id)
        .await
        .map_err(UndoError::Record)?;
    blocking("directory", move || throw_away(&root, &trash)).await?;
    *pin = None;
    Ok(())
}

/// Undoes a container that nobody can see: tries once now, and goes on in the background until it
/// is done.
pub async fn finish_in_background(
    node: Arc<Node>,
    mut record: ContainerRecord,
    mut pin: Option<LayerPin>,
) {
    let first = erase(&node, &mut record, &mut pin).await;
    let Err(error) = first else { return };
    tracing::warn!(id = %record.id, error = %Chain(&error), "undoing fails, will retry");
    tokio::spawn(async move {
        let mut wait = FIRST_RETRY;
        loop {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LAST_RETRY);
            match erase(&node, &mut record, &mut pin).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(id = %record.id, error = %Chain(&error), "undoing fails, will retry");
                }
            }
        }
    });
}

/// Ends what a dead monitor left: its exit record counts if it got that far, else the container's
/// processes are killed and the code is 255, since nobody saw the end.
pub async fn end_orphan(node: &Arc<Node>, record: &ContainerRecord) -> Exit {
    let known = read_exit(&node.paths.container_state(&record.id));
    if let Err(error) = kill_cgroup(node, record).await {
        tracing::error!(id = %record.id, error = %Chain(&error), "processes of the container remain");
    }
    match known {
        Some(exit) => exit_of(&exit),
        None => Exit {
            code: 255,
            reason: "MonitorDied".to_owned(),
            message: "the container's monitor died, so the container was killed and its exit code is unknown"
                .to_owned(),
            started_at: 0,
            finished_at: clock::now_ns(),
        },
    }
}

/// Undoes a container of which only the id is known: its directory is there and its record is not.
/// Its monitor knows its cgroup.
pub async fn sweep(node: &Arc<Node>, id: &ContainerId) {
    tracing::warn!(%id, "container without a record is undone");
    end_monitor(&node.paths.container_state(id)).await;
    let (state, root) = (
        node.paths.container_state(id),
        node.paths.container_root(id),
    );
    let trash = node.paths.trash().join(format!("{id}-{}", clock::now_ns()));
    let swept = blocking("files", move || {
        crate::node::remove_tree(&state)?;
        throw_away(&root, &trash)
    });
    if let Err(error) = swept.await {
        tracing::warn!(%id, error = %Chain(&error), "cannot undo");
    }
}

/// The exit record that a monitor left in a container's runtime directory.
#[must_use]
pub fn read_exit(state: &Path) -> Option<ExitRecord> {
    let bytes = fs::read(state.join(protocol::EXIT_NAME)).ok()?;
    match ExitRecord::from_file(&bytes) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::warn!(path = %state.display(), %error, "exit record is unusable");
            None
        }
    }
}

async fn end_processes(node: &Arc<Node>, record: &ContainerRecord) -> Result<(), UndoError> {
    end_monitor(&node.paths.container_state(&record.id)).await;
    kill_cgroup(node, record).await?;
    let (hierarchy, path) = (node.facts.cgroup.clone(), record.fixed.cgroup.clone());
    blocking("cgroup", move || {
        let cgroup = Cgroup::observe(&hierarchy, &path).map_err(io::Error::other)?;
        cgroup.remove().map_err(io::Error::other)
    })
    .await
}

/// A monitor that still listens has not been told that its work is done.
async fn end_monitor(state: &Path) {
    if let Ok(connected) = monitor::connect(state).await {
        connected.monitor.quit().await.ok();
        connected.monitor.disconnect();
        connected.monitor.process().kill(KILL_LIMIT).await;
    }
}

async fn kill_cgroup(node: &Arc<Node>, record: &ContainerRecord) -> Result<(), UndoError> {
    let (hierarchy, path) = (node.facts.cgroup.clone(), record.fixed.cgroup.clone());
    blocking("processes", move || {
        let cgroup = Cgroup::observe(&hierarchy, &path).map_err(io::Error::other)?;
        kill_and_wait(&cgroup)
    })
    .await
}

/// Kills until nobody is left: what is being forked while the list is read is found the next time.
fn kill_and_wait(cgroup: &Cgroup) -> io::Result<()> {
    let deadline = std::time::Instant::now() + KILL_LIMIT;
    let mut wait = Duration::from_millis(1);
    while cgroup.populated().map_err(io::Error::other)? {
        cgroup.kill().map_err(io::Error::other)?;
        if std::time::Instant::now() > deadline {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
        std::thread::sleep(wait);
        wait = (wait * 2).min(Duration::from_millis(50));
    }
    Ok(())
}

/// Out of sight at once, deleted when there is time: a writable layer may hold a million files.
fn throw_away(root: &Path, trash: &Path) -> io::Result<()> {
    if let Some(parent) = trash.parent() {
        crate::node::private_dir(parent)?;
    }
    match fs::rename(root, trash) {
        Ok(()) => {
            let trash = trash.to_owned();
            drop(tokio::task::spawn_blocking(move || {
                if let Err(error) = crate::snapshot::removal::remove_tree(&trash) {
                    tracing::warn!(path = %trash.display(), %error, "cannot delete");
                }
            }));
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

async fn blocking(
    what: &'static str,
    step: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(), UndoError> {
    let step = tokio::task::spawn_blocking(step);
    match tokio::time::timeout(STEP_LIMIT, step).await {
        Ok(Ok(done)) => done.map_err(|source| UndoError::Remains { what, source }),
        Ok(Err(_)) | Err(_) => Err(UndoError::Late { what }),
    }
}

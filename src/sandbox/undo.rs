//! Takes apart what a sandbox's record says may exist.
//!
//! Every step is idempotent and has a deadline of its own, so undoing can be cut off anywhere (a
//! crash, a plugin that hangs) and begun anew. Order: the network first, while its namespace still
//! exists; then pause, which lets the namespaces go; then their pins, cgroups and files.

use std::{io, sync::Arc, time::Duration};

use crisp_oci::cgroup::Cgroup;

use super::{
    pause::Pause,
    record::{Phase, SandboxRecord},
    shm,
};
use crate::{
    error::{Chain, Classify, ErrorKind},
    id::SandboxId,
    network::{DetachRequest, NetworkError, netns},
    node::Node,
    store::{StoreError, record_file::RecordFileError},
};

/// How long one step may take.
const STEP_LIMIT: Duration = Duration::from_secs(60);
/// Pauses between tries of what could not be undone.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// Why a step of the undoing failed.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// A network plugin.
    #[error("cannot detach the pod from the network")]
    Network(#[source] NetworkError),
    /// Pause does not end.
    #[error("pause {pid} does not end")]
    Pause {
        /// Its process number.
        pid: i32,
    },
    /// The pin of the network namespace, a cgroup or a directory does not go.
    #[error("cannot remove the {what} of the sandbox")]
    Remains {
        /// Which of them.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The record does not go.
    #[error("cannot remove the record of the sandbox")]
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
            Self::Network(error) => error.kind(),
            Self::Record(_) | Self::Journal(_) => ErrorKind::Internal,
            Self::Late { .. } => ErrorKind::Deadline,
            Self::Pause { .. } | Self::Remains { .. } => ErrorKind::Internal,
        }
    }
}

/// Releases network, pause, namespaces and cgroups; the record keeps track of what is done. Files
/// and record stay: a stopped sandbox is still listed.
///
/// # Errors
/// The first step that failed; the later ones were tried all the same where they can be.
pub async fn release(node: &Arc<Node>, record: &mut SandboxRecord) -> Result<(), UndoError> {
    let mut first = None;
    if let Err(error) = detach(node, record).await {
        first.get_or_insert(error);
    }
    if let Err(error) = end_pause(record).await {
        first.get_or_insert(error);
    }
    if first.is_none() {
        // With the network attached the namespace is still needed for the next try of DEL.
        let name = netns::name_of(&record.id);
        let unpin = move || netns::unpin(&name).map_err(io::Error::other);
        keep_first(&mut first, blocking("network namespace", unpin).await);
    }
    let shm = node.paths.sandbox_state(&record.id).join("shm");
    keep_first(
        &mut first,
        blocking("shared memory", move || shm::unmount(&shm)).await,
    );
    keep_first(&mut first, remove_cgroups(node, record).await);
    first.map_or(Ok(()), Err)
}

/// Removes the files and at last the record of a released sandbox.
///
/// # Errors
/// The step that failed.
pub async fn erase(node: &Arc<Node>, record: &SandboxRecord) -> Result<(), UndoError> {
    let (state, root) = (
        node.paths.sandbox_state(&record.id),
        node.paths.sandbox_root(&record.id),
    );
    blocking("files", move || crate::node::remove_tree(&state)).await?;
    node.remove_sandbox(&record.id)
        .await
        .map_err(UndoError::Record)?;
    blocking("directory", move || crate::node::remove_tree(&root)).await
}

/// Undoes a sandbox that nobody can see: tries once now, and goes on in the background until it is
/// done.
pub async fn finish_in_background(node: Arc<Node>, mut record: SandboxRecord) {
    record.phase = Phase::Removing;
    if let Err(error) = node.write_sandbox(&mut record).await {
        tracing::error!(id = %record.id, error = %Chain(&error), "cannot record the undoing");
    }
    if undo_all(&node, &mut record).await.is_ok() {
        return;
    }
    tokio::spawn(async move {
        let mut wait = FIRST_RETRY;
        loop {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LAST_RETRY);
            match undo_all(&node, &mut record).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(id = %record.id, error = %Chain(&error), "undoing fails, will retry");
                }
            }
        }
    });
}

async fn undo_all(node: &Arc<Node>, record: &mut SandboxRecord) -> Result<(), UndoError> {
    release(node, record).await?;
    erase(node, record).await
}

async fn detach(node: &Arc<Node>, record: &mut SandboxRecord) -> Result<(), UndoError> {
    if !record.network_attached {
        return Ok(());
    }
    let request = DetachRequest {
        sandbox: record.id.clone(),
    };
    let detached = tokio::time::timeout(STEP_LIMIT, node.network.detach(&request)).await;
    match detached {
        Ok(Ok(())) => {
            record.network_attached = false;
            Ok(())
        }
        Ok(Err(error)) => Err(UndoError::Network(error)),
        Err(_) => Err(UndoError::Late { what: "network" }),
    }
}

async fn end_pause(record: &mut SandboxRecord) -> Result<(), UndoError> {
    let id = record.id.clone();
    let known = record.pause;
    let pid = known.map_or(0, |pause| pause.pid);
    // Without a recorded process one may still exist: the daemon may have died between the two.
    let ended = tokio::task::spawn_blocking(move || Pause::end(&id, known)).await;
    match ended {
        Ok(Ok(())) => {
            record.pause = None;
            Ok(())
        }
        Ok(Err(_)) | Err(_) => Err(UndoError::Pause { pid }),
    }
}

async fn remove_cgroups(node: &Arc<Node>, record: &SandboxRecord) -> Result<(), UndoError> {
    let hierarchy = node.facts.cgroup.clone();
    let leaf = super::pause::cgroup_of(&record.cgroup_parent, &record.id);
    let parent = record
        .cgroup_parent_ours
        .then(|| record.cgroup_parent.clone());
    blocking("cgroup", move || {
        let leaf = Cgroup::observe(&hierarchy, &leaf).map_err(io::Error::other)?;
        leaf.remove().map_err(io::Error::other)?;
        match parent {
            Some(parent) => super::pause::remove_parent_group(&hierarchy, &parent),
            None => Ok(()),
        }
    })
    .await
}

/// Undoes a sandbox of which only the id is known: its directory is there and its record is not.
pub async fn sweep(node: &Arc<Node>, id: &SandboxId) {
    tracing::warn!(%id, "sandbox without a record is undone");
    let (pause_of, of) = (id.clone(), id.clone());
    let request = DetachRequest {
        sandbox: id.clone(),
    };
    let (state, root) = (node.paths.sandbox_state(id), node.paths.sandbox_root(id));
    let detached = tokio::time::timeout(STEP_LIMIT, node.network.detach(&request)).await;
    let steps = [
        blocking("pause", move || Pause::end(&pause_of, None)).await,
        blocking("network namespace", move || {
            netns::unpin(&netns::name_of(&of)).map_err(io::Error::other)
        })
        .await,
        blocking("files", move || {
            shm::unmount(&state.join("shm"))?;
            crate::node::remove_tree(&state)?;
            crate::node::remove_tree(&root)
        })
        .await,
    ];
    for error in steps.into_iter().filter_map(Result::err) {
        tracing::warn!(%id, error = %Chain(&error), "cannot undo");
    }
    if !matches!(detached, Ok(Ok(()))) {
        tracing::warn!(%id, "cannot detach from the network");
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

fn keep_first(first: &mut Option<UndoError>, step: Result<(), UndoError>) {
    if let Err(error) = step {
        first.get_or_insert(error);
    }
}

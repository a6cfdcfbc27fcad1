//! Takes apart what a container's record says may exist.
//!
//! Order: processes first (the monitor, then everything in the cgroup), then the cgroup, the runtime
//! files, the record in the store, and at last the directory with the writable layer and the record's
//! file. Each is a step of a journalled undoing ([`crate::undo`]).

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
    failpoint,
    id::ContainerId,
    monitor,
    node::Node,
    snapshot::{layers::Pin as LayerPin, removal},
    undo::{self, Of, Undo, UndoError},
};

const OF: Of = Of::Container;
/// How long killed processes may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How long a removal waits for others to make room, and how often it looks.
const ROOM_LIMIT: Duration = Duration::from_secs(5);
const ROOM_CHECK: Duration = Duration::from_millis(20);

/// A container that nobody can see and that is to go.
struct Erasing {
    node: Arc<Node>,
    record: ContainerRecord,
    pin: Option<LayerPin>,
}

impl Undo for Erasing {
    fn id(&self) -> &str {
        self.record.id.as_str()
    }

    async fn attempt(&mut self) -> Result<(), UndoError> {
        erase(&self.node, &mut self.record, &mut self.pin).await
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
    let id = record.id.clone();
    let journalled = node.write_container(record);
    let journalled = async {
        match journalled.await {
            // A removal is what makes room. If it is cut off now, the container is there after the
            // restart, to be removed again. One that was refused as too large never had a record.
            Err(error) if error.is_no_space() || error.is_too_large() => {
                tracing::warn!(%id, error = %Chain(&error), "removal goes on unrecorded");
                Ok(())
            }
            other => other.map_err(|source| UndoError::Journal { of: OF, source }),
        }
    };
    OF.step("journal", journalled).await?;
    end_processes(node, record).await?;
    let (state, root) = (
        node.paths.container_state(&record.id),
        node.paths.container_root(&record.id),
    );
    let trash = node
        .paths
        .trash()
        .join(format!("{}-{}", record.id, clock::now_ns()));
    OF.blocking("runtime files", move || crate::node::remove_tree(&state))
        .await?;
    // The record's file goes with the directory: until the store has forgotten it, the phase in
    // there makes a restart finish the job.
    OF.step("record", forget(node, &record.id)).await?;
    OF.blocking("directory", move || throw_away(&root, &trash))
        .await?;
    *pin = None;
    Ok(())
}

/// Has the store forget a container. If there is no room even for that, its writable layer goes first:
/// it may be what fills the disk, and whoever comes to empty it has nothing else to remove.
async fn forget(node: &Arc<Node>, id: &ContainerId) -> Result<(), UndoError> {
    let full = match node.remove_container(id).await {
        Err(error) if error.kind() == ErrorKind::Exhausted => error,
        other => return other.map_err(|source| UndoError::Record { of: OF, source }),
    };
    tracing::warn!(%id, error = %Chain(&full), "writable layer goes first");
    let root = node.paths.container_root(id);
    OF.blocking("writable layer", move || {
        for half in ["upper", "work"] {
            match removal::remove_tree(&root.join(half)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    })
    .await?;
    // What fills the disk may be another one's that is going at the same time.
    let deadline = tokio::time::Instant::now() + ROOM_LIMIT;
    loop {
        match node.remove_container(id).await {
            Err(error)
                if error.kind() == ErrorKind::Exhausted
                    && tokio::time::Instant::now() < deadline => {}
            other => return other.map_err(|source| UndoError::Record { of: OF, source }),
        }
        tokio::time::sleep(ROOM_CHECK).await;
    }
}

/// Undoes a container that nobody can see: tries once now, and goes on in the background until it
/// is done.
pub async fn finish_in_background(node: Arc<Node>, record: ContainerRecord, pin: Option<LayerPin>) {
    undo::finish_in_background(Erasing { node, record, pin }).await;
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

/// A container of which only the id is known.
struct Stray {
    node: Arc<Node>,
    id: ContainerId,
}

impl Undo for Stray {
    fn id(&self) -> &str {
        self.id.as_str()
    }

    async fn attempt(&mut self) -> Result<(), UndoError> {
        let paths = &self.node.paths;
        let (state, root) = (
            paths.container_state(&self.id),
            paths.container_root(&self.id),
        );
        end_monitor(&state).await;
        let name = format!("{}-{}", self.id, clock::now_ns());
        let trash = paths.trash().join(name);
        let files = move || {
            crate::node::remove_tree(&state)?;
            throw_away(&root, &trash)
        };
        OF.blocking("files", files).await
    }
}

/// Undoes a container of which only the id is known: its directory is there and its record is not.
/// Its monitor knows its cgroup. Goes on in the background if that does not work at once.
pub async fn sweep(node: Arc<Node>, id: ContainerId) {
    tracing::warn!(%id, "container without a record is undone");
    undo::finish_in_background(Stray { node, id }).await;
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
    let state = node.paths.container_state(&record.id);
    let ended = async {
        end_monitor(&state).await;
        Ok(())
    };
    OF.step("monitor", ended).await?;
    kill_cgroup(node, record).await?;
    let (hierarchy, path) = (node.facts.cgroup.clone(), record.fixed.cgroup.clone());
    OF.blocking("cgroup", move || {
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
    OF.blocking("processes", move || {
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
        match crate::node::private_dir(parent) {
            // No room for one more name.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                return crate::node::remove_tree(root);
            }
            other => other?,
        }
    }
    match fs::rename(root, trash) {
        Ok(()) => {
            failpoint::reach(format_args!("container.undo.directory.renamed"));
            let trash = trash.to_owned();
            drop(tokio::task::spawn_blocking(move || {
                if let Err(error) = removal::remove_tree(&trash) {
                    tracing::warn!(path = %trash.display(), %error, "cannot delete");
                }
            }));
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

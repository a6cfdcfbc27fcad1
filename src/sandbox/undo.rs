//! Takes apart what a sandbox's record says may exist.
//!
//! Order: the network first, while its namespace still exists; then pause and what it was mounted for,
//! at once; then cgroups and files. Each is a step of a journalled undoing ([`crate::undo`]).

use std::{io, sync::Arc};

use super::{
    pause::{self, Pause},
    record::{Phase, SandboxRecord},
    shm,
};
use crate::{
    error::Chain,
    failpoint,
    id::SandboxId,
    network::{DetachRequest, netns},
    node::Node,
    undo::{self, Of, Undo, UndoError},
};

const OF: Of = Of::Sandbox;

/// Releases network, pause, namespaces and cgroups; the record keeps track of what is done. Files
/// and record stay: a stopped sandbox is still listed.
///
/// # Errors
/// The first step that failed; the later ones were tried all the same where they can be.
pub async fn release(node: &Arc<Node>, record: &mut SandboxRecord) -> Result<(), UndoError> {
    let mut first = None;
    keep_first(&mut first, detach(node, record).await);
    let (id, shm) = (
        record.id.clone(),
        node.paths.sandbox_state(&record.id).join("shm"),
    );
    // With the network attached the namespace is still needed for the next try of DEL.
    let detached = first.is_none();
    let unpin = async {
        if !detached {
            return Ok(());
        }
        let name = netns::name_of(&id);
        let unpin = move || netns::unpin(&name).map_err(io::Error::other);
        OF.blocking("network namespace", unpin).await
    };
    // Each of the three waits for grace periods of the kernel: so they wait together.
    let steps = tokio::join!(
        end_pause(record),
        unpin,
        OF.blocking("shared memory", move || shm::unmount(&shm))
    );
    for step in [steps.0, steps.1, steps.2] {
        keep_first(&mut first, step);
    }
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
    OF.blocking("files", move || crate::node::remove_tree(&state))
        .await?;
    let forgotten = node.remove_sandbox(&record.id);
    let forgotten =
        async { (forgotten.await).map_err(|source| UndoError::Record { of: OF, source }) };
    OF.step("record", forgotten).await?;
    OF.blocking("directory", move || crate::node::remove_tree(&root))
        .await?;
    if record.cgroup_parent_ours {
        node.cgroup_parents.release(&record.cgroup_parent);
    }
    Ok(())
}

/// A sandbox that nobody can see and that is to go.
struct Undoing {
    node: Arc<Node>,
    record: SandboxRecord,
}

impl Undo for Undoing {
    fn id(&self) -> &str {
        self.record.id.as_str()
    }

    async fn attempt(&mut self) -> Result<(), UndoError> {
        release(&self.node, &mut self.record).await?;
        erase(&self.node, &self.record).await
    }
}

/// Undoes a sandbox that nobody can see: tries once now, and goes on in the background until it is
/// done.
pub async fn finish_in_background(node: Arc<Node>, mut record: SandboxRecord) {
    record.phase = Phase::Removing;
    if let Err(error) = node.write_sandbox(&mut record).await {
        tracing::error!(id = %record.id, error = %Chain(&error), "cannot record the undoing");
    }
    undo::finish_in_background(Undoing { node, record }).await;
}

async fn detach(node: &Arc<Node>, record: &mut SandboxRecord) -> Result<(), UndoError> {
    if !record.network_attached {
        return Ok(());
    }
    let request = DetachRequest {
        sandbox: record.id.clone(),
    };
    let detached = async { (node.network.detach(&request).await).map_err(UndoError::Network) };
    OF.step("network", detached).await?;
    record.network_attached = false;
    Ok(())
}

async fn end_pause(record: &mut SandboxRecord) -> Result<(), UndoError> {
    let (id, known) = (record.id.clone(), record.pause);
    // Without a recorded process one may still exist: the daemon may have died between the two.
    OF.blocking("pause", move || Pause::end(&id, known)).await?;
    record.pause = None;
    Ok(())
}

async fn remove_cgroups(node: &Arc<Node>, record: &SandboxRecord) -> Result<(), UndoError> {
    let hierarchy = node.facts.cgroup.clone();
    let leaf = pause::cgroup_of(&record.cgroup_parent, &record.id);
    let parent = record
        .cgroup_parent_ours
        .then(|| record.cgroup_parent.clone());
    OF.blocking("cgroup", move || {
        pause::remove_group(&hierarchy, &leaf)?;
        failpoint::reach(format_args!("sandbox.undo.cgroup.leaf"));
        match parent {
            Some(parent) => pause::remove_parent_group(&hierarchy, &parent),
            None => Ok(()),
        }
    })
    .await
}

/// A sandbox of which only the id is known.
struct Stray {
    node: Arc<Node>,
    id: SandboxId,
}

impl Undo for Stray {
    fn id(&self) -> &str {
        self.id.as_str()
    }

    async fn attempt(&mut self) -> Result<(), UndoError> {
        sweep_once(&self.node, &self.id).await
    }
}

/// Undoes a sandbox of which only the id is known: something of it is there and its record is not.
/// Goes on in the background if that does not work at once.
pub async fn sweep(node: Arc<Node>, id: SandboxId) {
    tracing::warn!(%id, "sandbox without a record is undone");
    undo::finish_in_background(Stray { node, id }).await;
}

async fn sweep_once(node: &Arc<Node>, id: &SandboxId) -> Result<(), UndoError> {
    let request = DetachRequest {
        sandbox: id.clone(),
    };
    let mut first = None;
    let detached = async { (node.network.detach(&request).await).map_err(UndoError::Network) };
    keep_first(&mut first, OF.step("network", detached).await);
    let detached = first.is_none();
    let (of, hierarchy) = (id.clone(), node.facts.cgroup.clone());
    let parent = node.default_cgroup_parent(id);
    let ended = OF.blocking("pause", move || {
        Pause::end(&of, None)?;
        for leaf in pause::find_groups(&hierarchy, &of) {
            pause::remove_group(&hierarchy, &leaf)?;
        }
        pause::remove_parent_group(&hierarchy, &parent)
    });
    keep_first(&mut first, ended.await);
    if detached {
        let name = netns::name_of(id);
        let unpin = move || netns::unpin(&name).map_err(io::Error::other);
        keep_first(&mut first, OF.blocking("network namespace", unpin).await);
    }
    let (state, root) = (node.paths.sandbox_state(id), node.paths.sandbox_root(id));
    let files = move || {
        shm::unmount(&state.join("shm"))?;
        crate::node::remove_tree(&state)?;
        crate::node::remove_tree(&root)
    };
    keep_first(&mut first, OF.blocking("files", files).await);
    first.map_or(Ok(()), Err)
}

fn keep_first(first: &mut Option<UndoError>, step: Result<(), UndoError>) {
    if let Err(error) = step {
        first.get_or_insert(error);
    }
}

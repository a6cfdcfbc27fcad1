//! Sandboxes after a restart of the daemon: a pause that lives is adopted, one that does not makes
//! the sandbox NotReady, half-made or half-removed ones are undone, and begun stops are finished.

use std::sync::Arc;

use super::{
    Sandbox,
    driver::Driver,
    pause::Pause,
    record::{Phase, SandboxRecord},
    undo,
};
use crate::{node::Node, process::Process};

/// Serves or undoes the sandbox of a record. Returns one that was being stopped: its stop is to be
/// finished once its containers are served.
pub async fn recover(node: &Arc<Node>, mut record: SandboxRecord) -> Option<Arc<Sandbox>> {
    if record.cgroup_parent_ours {
        node.cgroup_parents.adopt(&record.cgroup_parent);
    }
    if matches!(record.phase, Phase::Making | Phase::Removing) {
        tracing::info!(id = %record.id, "half-made or half-removed sandbox is undone");
        // Not waited for: a plugin that hangs must not keep the daemon from serving.
        drop(tokio::spawn(undo::finish_in_background(
            Arc::clone(node),
            record,
        )));
        return None;
    }
    let pause = adopt(&record);
    if pause.is_none() {
        record.pause = None;
        if record.phase == Phase::Ready {
            tracing::warn!(id = %record.id, "pause is gone, sandbox is not ready");
            record.phase = Phase::NotReady;
            if let Err(error) = node.write_sandbox(&mut record).await {
                tracing::error!(id = %record.id, error = %crate::error::Chain(&error), "cannot record the sandbox");
            }
        }
    }
    let name = Sandbox::name_of(&record.spec);
    node.sandbox_names
        .adopt(name, Arc::new(record.spec.clone()), record.id.clone());
    let (id, unfinished) = (record.id.clone(), record.phase == Phase::Stopping);
    Driver::publish(node, record, pause);
    (node.sandboxes.find(id.as_str()).ok()).filter(|_| unfinished)
}

/// Finishes a stop that an earlier daemon began.
pub async fn finish_stop(sandbox: Arc<Sandbox>) {
    tracing::info!(id = %sandbox.id, "half-stopped sandbox is stopped");
    if let Err(error) = sandbox.stop().await {
        // Its driver goes on trying.
        tracing::warn!(id = %sandbox.id, error = %crate::error::Chain(&error), "cannot stop the sandbox");
    }
}

fn adopt(record: &SandboxRecord) -> Option<Process> {
    let known = record.pause?;
    let pidfd = Pause::adopt(known.pid, known.start_time)?;
    Process::watch(known.pid, known.start_time, pidfd).ok()
}

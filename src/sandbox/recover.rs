//! Sandboxes after a restart of the daemon: a pause that lives is adopted, one that does not makes
//! the sandbox NotReady, and half-made or half-removed ones are undone.

use std::sync::Arc;

use super::{
    Sandbox,
    driver::Driver,
    pause::Pause,
    record::{Phase, SandboxRecord},
    undo,
};
use crate::{node::Node, process::Process};

/// Serves or undoes the sandbox of a record.
pub async fn recover(node: &Arc<Node>, mut record: SandboxRecord) {
    if matches!(record.phase, Phase::Making | Phase::Removing) {
        tracing::info!(id = %record.id, "half-made or half-removed sandbox is undone");
        // Not waited for: a plugin that hangs must not keep the daemon from serving.
        drop(tokio::spawn(undo::finish_in_background(
            Arc::clone(node),
            record,
        )));
        return;
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
    Driver::publish(node, record, pause);
}

fn adopt(record: &SandboxRecord) -> Option<Process> {
    let known = record.pause?;
    let pidfd = Pause::adopt(known.pid, known.start_time)?;
    Process::watch(known.pid, known.start_time, pidfd).ok()
}

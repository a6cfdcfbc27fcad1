//! Containers after a restart of the daemon.
//!
//! The order of truth: the kernel and the monitor, then the exit record, then our own record. A
//! monitor that answers knows everything; without one an exit record tells the end; without that
//! the container is ended and its code is 255, since nobody saw it. Records of half-made or
//! half-removed containers are undone.

use std::{sync::Arc, time::Duration};

use conmon_rs::protocol;

use super::{
    Container,
    driver::{Attached, Driver, Start, exit_of},
    output::Output,
    record::{ContainerRecord, Phase},
    state::State,
    undo,
};
use crate::{clock, monitor, node::Node};

/// How long a monitor may take to answer before it counts as dead.
const HELLO_LIMIT: Duration = Duration::from_secs(10);

/// Serves or undoes the container of a record.
pub async fn recover(node: &Arc<Node>, record: ContainerRecord) {
    let Phase::Live(state) = record.phase.clone() else {
        tracing::info!(id = %record.id, "half-made or half-removed container is undone");
        undo::finish_in_background(Arc::clone(node), record, None).await;
        return;
    };
    let (state, attached, output) = match state {
        State::Exited(_) => (state, None, Output::default()),
        State::Created | State::Running { .. } => ask(node, &record, state).await,
    };
    let pin = node.images.pin_layers(&record.fixed.layers);
    if pin.is_none() {
        tracing::warn!(id = %record.id, "a layer of the container's image is gone");
    }
    let mut record = record;
    if record.phase != Phase::Live(state.clone()) {
        record.phase = Phase::Live(state.clone());
        if let Err(error) = node.write_container(&mut record).await {
            tracing::error!(id = %record.id, error = %crate::error::Chain(&error), "cannot record the state");
        }
    }
    let name = Container::name_of(&record.sandbox, &record.spec);
    node.container_names
        .adopt(name, Arc::new(record.spec.clone()), record.id.clone());
    Driver::publish(
        node,
        Start {
            record,
            state,
            attached,
            pin,
            process: None,
            output,
        },
    );
}

/// Where the container is now, by the best witness there is.
async fn ask(
    node: &Arc<Node>,
    record: &ContainerRecord,
    known: State,
) -> (State, Option<Attached>, Output) {
    let directory = node.paths.container_state(&record.id);
    let hello = tokio::time::timeout(HELLO_LIMIT, monitor::connect(&directory)).await;
    let Ok(Ok(connected)) = hello else {
        let exit = undo::end_orphan(node, record).await;
        tracing::info!(id = %record.id, code = exit.code, reason = exit.reason, "container ended without its monitor");
        let started_at = match known {
            State::Running { started_at } => started_at,
            State::Created | State::Exited(_) => exit.started_at,
        };
        return (
            State::Exited(super::state::Exit { started_at, ..exit }),
            None,
            Output::default(),
        );
    };
    let monitor::Connected {
        monitor,
        snapshot,
        notices,
    } = connected;
    let output = Output::of(&snapshot);
    let state = match snapshot.phase {
        protocol::Phase::Exited => match &snapshot.exit {
            Some(exit) => State::Exited(exit_of(exit)),
            None => known,
        },
        protocol::Phase::Running => {
            let started_at =
                i64::try_from(snapshot.started_at_ns).unwrap_or_else(|_| clock::now_ns());
            match known {
                State::Running { .. } => known,
                State::Created | State::Exited(_) => State::Running { started_at },
            }
        }
        protocol::Phase::Creating | protocol::Phase::Created => State::Created,
    };
    if matches!(state, State::Exited(_)) {
        monitor.acknowledge_exit().await.ok();
        monitor.disconnect();
        return (state, None, output);
    }
    (state, Some(Attached { monitor, notices }), output)
}

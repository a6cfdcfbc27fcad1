//! What happened to containers and sandboxes, for those who listen.

use std::sync::Arc;

use tokio::sync::broadcast;

use crate::{
    clock,
    container::Container,
    id::{ContainerId, SandboxId},
};

/// How many events a slow listener may be behind before it loses some and is told so.
const BACKLOG: usize = 4096;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It became visible.
    Created,
    /// Its program runs.
    Started,
    /// It ended.
    Stopped,
    /// It is gone.
    Deleted,
}

/// One thing that happened.
#[derive(Debug, Clone)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// To which container; `None` when it happened to the sandbox itself.
    pub container: Option<ContainerId>,
    /// In which sandbox.
    pub sandbox: SandboxId,
    /// Nanoseconds since the epoch.
    pub at: i64,
}

impl Event {
    /// An event of a sandbox.
    #[must_use]
    pub fn of_sandbox(kind: EventKind, id: &SandboxId) -> Self {
        Self {
            kind,
            container: None,
            sandbox: id.clone(),
            at: clock::now_ns(),
        }
    }

    /// An event of a container.
    #[must_use]
    pub fn of_container(kind: EventKind, container: &Arc<Container>) -> Self {
        Self {
            kind,
            container: Some(container.id.clone()),
            sandbox: container.sandbox.clone(),
            at: clock::now_ns(),
        }
    }
}

/// Where events are told. Telling never waits; without a listener nothing happens.
pub struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }
}

impl Events {
    /// Tells everybody who listens.
    pub fn send(&self, event: Event) {
        self.0.send(event).ok();
    }

    /// Listens from now on.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}

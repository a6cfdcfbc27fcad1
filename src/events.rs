//! What happened to containers and sandboxes, for those who listen.
//!
//! Events have one order, the same for every listener, and their times only grow. Each carries the
//! pod as it was when the event was told, so that a listener need not ask and nothing that it learns
//! is older than what it knew.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;

use crate::{
    clock,
    container::{Container, state::State},
    id::{ContainerId, SandboxId},
    node::Node,
    sandbox::{Published, Sandbox, spec::Resources},
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
#[derive(Clone)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// To which container; `None` when it happened to the sandbox itself.
    pub container: Option<ContainerId>,
    /// In which sandbox.
    pub sandbox: SandboxId,
    /// Nanoseconds since the epoch, later than that of the event before.
    pub at: i64,
    /// The pod right then; nothing if its sandbox was gone already.
    pub pod: Option<PodSnapshot>,
}

/// A pod at a moment.
#[derive(Clone)]
pub struct PodSnapshot {
    /// The sandbox.
    pub sandbox: Arc<Sandbox>,
    /// What was known of it.
    pub published: Arc<Published>,
    /// Its containers.
    pub containers: Vec<ContainerSnapshot>,
}

/// A container at a moment.
#[derive(Clone)]
pub struct ContainerSnapshot {
    /// Which.
    pub container: Arc<Container>,
    /// Where it was in its life.
    pub state: Arc<State>,
    /// The limits in force.
    pub resources: Arc<Resources>,
}

/// Where events are told. Telling never waits; without a listener it costs next to nothing.
pub struct Events {
    // Held while an event is told, so that all see the same order; never over an await.
    line: Mutex<Line>,
}

struct Line {
    /// Nothing once the daemon is ending.
    sender: Option<broadcast::Sender<Arc<Event>>>,
    last: i64,
}

impl Default for Events {
    fn default() -> Self {
        let line = Line {
            sender: Some(broadcast::Sender::new(BACKLOG)),
            last: 0,
        };
        Self {
            line: Mutex::new(line),
        }
    }
}

impl Events {
    /// Listens from now on; nothing if the daemon is ending.
    #[must_use]
    pub fn listen(&self) -> Option<broadcast::Receiver<Arc<Event>>> {
        let line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.sender.as_ref().map(broadcast::Sender::subscribe)
    }

    /// Ends every listener's stream, after what was told before.
    pub fn close(&self) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.sender = None;
    }

    /// Tells what `make` says at this place of the order.
    fn tell(&self, make: impl FnOnce(i64) -> Event) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let at = clock::now_ns().max(line.last + 1);
        let Some(sender) = line.sender.as_ref().filter(|s| s.receiver_count() > 0) else {
            return;
        };
        sender.send(Arc::new(make(at))).ok();
        line.last = at;
    }
}

impl Node {
    /// Tells what happened to a container, after it did.
    pub fn tell_container(&self, kind: EventKind, container: &Container) {
        self.events.tell(|at| Event {
            kind,
            container: Some(container.id.clone()),
            sandbox: container.sandbox.clone(),
            at,
            pod: self
                .sandboxes
                .find(container.sandbox.as_str())
                .ok()
                .map(|sandbox| self.snapshot(&sandbox)),
        });
    }

    /// Tells what happened to a sandbox, after it did.
    pub fn tell_sandbox(&self, kind: EventKind, sandbox: &Arc<Sandbox>) {
        self.events.tell(|at| Event {
            kind,
            container: None,
            sandbox: sandbox.id.clone(),
            at,
            pod: Some(self.snapshot(sandbox)),
        });
    }

    fn snapshot(&self, sandbox: &Arc<Sandbox>) -> PodSnapshot {
        let containers = self.containers_of(&sandbox.id).into_iter();
        PodSnapshot {
            sandbox: Arc::clone(sandbox),
            published: sandbox.published(),
            containers: containers
                .map(|container| ContainerSnapshot {
                    state: container.state(),
                    resources: container.resources(),
                    container,
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast::error::TryRecvError;

    use super::*;

    fn tell(events: &Events, kind: EventKind) {
        let sandbox = SandboxId::random();
        events.tell(|at| Event {
            kind,
            container: None,
            sandbox,
            at,
            pod: None,
        });
    }

    #[test]
    fn all_listeners_see_one_order_with_growing_times() {
        let events = Events::default();
        tell(&events, EventKind::Created);
        let (mut one, mut two) = (events.listen().unwrap(), events.listen().unwrap());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        tell(&events, EventKind::Started);
                    }
                });
            }
        });
        events.close();
        let mut last = 0;
        for _ in 0..400 {
            let event = one.try_recv().ok().unwrap();
            assert!(event.at > last && Arc::ptr_eq(&event, &two.try_recv().ok().unwrap()));
            last = event.at;
        }
        assert_eq!(one.try_recv().err(), Some(TryRecvError::Closed));
        assert!(events.listen().is_none());
    }

    #[test]
    fn a_listener_that_falls_behind_is_told_how_far() {
        let events = Events::default();
        let mut slow = events.listen().unwrap();
        for _ in 0..BACKLOG + 3 {
            tell(&events, EventKind::Stopped);
        }
        assert_eq!(slow.try_recv().err(), Some(TryRecvError::Lagged(3)));
    }
}

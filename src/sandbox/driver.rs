//! The task that owns a sandbox.

use std::sync::Arc;

use tokio::{
    sync::{RwLock, mpsc, oneshot},
    time::Instant,
};
use tracing::Instrument;

use super::{
    Gate, Published, Sandbox,
    record::{Phase, SandboxRecord},
    undo,
    update::{self, PodResources, UpdateError},
};
use crate::{
    container::driver::ContainerError,
    error::{Classify, ErrorKind},
    events::EventKind,
    id::ContainerId,
    node::Node,
    process::Process,
    undo::{Patience, UndoError},
};

/// Where a driver tells how a command went.
pub type Answer = oneshot::Sender<Result<(), Arc<SandboxError>>>;

/// What a sandbox can be told to do.
pub enum Command {
    /// End the containers, release network and namespaces.
    Stop(Answer),
    /// Stop, then remove every trace.
    Remove(Answer),
    /// Take note of what the pod may use.
    Update(Box<PodResources>, Answer),
}

/// Why a sandbox could not be stopped or removed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// One of its containers could not be ended or removed.
    #[error("container {id} of the sandbox")]
    Container {
        /// Which.
        id: ContainerId,
        /// Why.
        #[source]
        source: Arc<ContainerError>,
    },
    /// Its resources were not changed.
    #[error(transparent)]
    Update(UpdateError),
    /// A step of the undoing failed; it is retried in the background.
    #[error("cannot take the sandbox apart, still trying")]
    Undo(#[source] UndoError),
    /// It was stopped, or its pause died.
    #[error("the sandbox is not ready")]
    NotReady,
}

impl Classify for SandboxError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Container { source, .. } => source.kind(),
            Self::Update(error) => error.kind(),
            Self::Undo(error) => error.kind(),
            Self::NotReady => ErrorKind::WrongState,
        }
    }
}

/// The owner of one sandbox.
pub struct Driver {
    node: Arc<Node>,
    sandbox: Arc<Sandbox>,
    record: SandboxRecord,
    pause: Option<Process>,
    commands: mpsc::UnboundedReceiver<Command>,
    /// Whether a stop of this daemon has released everything.
    released: bool,
    /// Whether those who listen were told that it stopped.
    told: bool,
    /// What was begun and failed, to be tried again without being asked.
    unfinished: Option<Unfinished>,
}

/// A stop or removal that failed.
struct Unfinished {
    removal: bool,
    next: Instant,
    patience: Patience,
}

impl Driver {
    /// Makes a sandbox visible and starts the task that owns it.
    pub fn publish(node: &Arc<Node>, record: SandboxRecord, pause: Option<Process>) {
        let (sender, commands) = mpsc::unbounded_channel();
        let ready = record.phase == Phase::Ready;
        let sandbox = Arc::new(Sandbox {
            id: record.id.clone(),
            spec: Arc::new(record.spec.clone()),
            created_at: record.created_at,
            cgroup_parent: record.cgroup_parent.clone(),
            published: arc_swap::ArcSwap::from_pointee(published(&record, ready)),
            usage: crate::stats::pod::Memory::default(),
            commands: sender,
            gate: Arc::new(RwLock::new(if ready { Gate::Open } else { Gate::Closed })),
        });
        node.sandboxes
            .insert(record.id.as_str(), Arc::clone(&sandbox));
        let driver = Self {
            node: Arc::clone(node),
            sandbox,
            told: record.phase == Phase::NotReady,
            record,
            pause,
            commands,
            released: false,
            unfinished: None,
        };
        tokio::spawn(driver.drive());
    }

    async fn drive(mut self) {
        loop {
            let pause = self.pause.clone();
            let pause_died = async move {
                match pause {
                    Some(pause) => pause.ended().await,
                    None => std::future::pending().await,
                }
            };
            let next = self.unfinished.as_ref().map(|unfinished| unfinished.next);
            let again = async move {
                match next {
                    Some(next) => tokio::time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            let gone = tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return,
                },
                () = pause_died => {
                    self.lose_pause().await;
                    false
                }
                () = again => self.try_again().await,
            };
            if gone {
                return;
            }
        }
    }

    /// True when the sandbox is gone.
    async fn obey(&mut self, command: Command) -> bool {
        let (removal, answer) = match command {
            Command::Stop(answer) => (false, answer),
            Command::Remove(answer) => (true, answer),
            Command::Update(resources, answer) => {
                let updated = self.update(&resources).await;
                answer.send(updated.map_err(Arc::new)).ok();
                return false;
            }
        };
        let done = self.carry_out(removal).await;
        let gone = removal && done.is_ok();
        answer.send(done.map_err(Arc::new)).ok();
        gone
    }

    /// True when the sandbox is gone.
    async fn try_again(&mut self) -> bool {
        let removal = (self.unfinished.as_ref()).is_some_and(|unfinished| unfinished.removal);
        match self.carry_out(removal).await {
            Ok(()) => removal,
            Err(error) => {
                let (id, error) = (&self.record.id, crate::error::Chain(&error));
                tracing::warn!(%id, %error, removal, "undoing fails, will retry");
                false
            }
        }
    }

    /// Stops or removes; what fails is tried again later, the removal if one was ever asked for.
    async fn carry_out(&mut self, removal: bool) -> Result<(), SandboxError> {
        let done = if removal {
            self.remove().await
        } else {
            self.stop().await
        };
        let before = self.unfinished.take();
        let asked = removal || before.as_ref().is_some_and(|before| before.removal);
        if done.is_err() || (asked && !removal) {
            let mut patience = before.map(|before| before.patience).unwrap_or_default();
            self.unfinished = Some(Unfinished {
                removal: asked,
                next: Instant::now() + patience.pause(),
                patience,
            });
        }
        done
    }

    /// Pause died without being asked: its namespaces are going, so nothing new may start here.
    async fn lose_pause(&mut self) {
        tracing::warn!(id = %self.record.id, "pause died, sandbox is not ready");
        self.pause = None;
        self.record.pause = None;
        if self.record.phase == Phase::Ready {
            self.mark_not_ready(Phase::NotReady).await;
        }
    }

    async fn update(&mut self, asked: &PodResources) -> Result<(), SandboxError> {
        if self.record.phase != Phase::Ready {
            return Err(SandboxError::Update(UpdateError::NotReady));
        }
        update::apply(&self.node, &mut self.record, asked)
            .await
            .map_err(SandboxError::Update)?;
        self.sandbox
            .published
            .store(Arc::new(published(&self.record, true)));
        Ok(())
    }

    /// Nothing starts in it from now on, and everybody knows.
    async fn mark_not_ready(&mut self, phase: Phase) {
        *self.sandbox.gate.write().await = Gate::Closed;
        self.sandbox.usage.close_network();
        if self.record.phase != phase {
            self.record.phase = phase;
            self.write().await;
        }
        self.sandbox
            .published
            .store(Arc::new(published(&self.record, false)));
        if phase == Phase::NotReady && !std::mem::replace(&mut self.told, true) {
            self.node.tell_sandbox(EventKind::Stopped, &self.sandbox);
        }
    }

    async fn write(&mut self) {
        if let Err(error) = self.node.write_sandbox(&mut self.record).await {
            // The kernel is asked first after a restart; a stale record costs nothing but work.
            tracing::error!(id = %self.record.id, error = %crate::error::Chain(&error), "cannot record the sandbox");
        }
    }

    async fn stop(&mut self) -> Result<(), SandboxError> {
        if self.released {
            return Ok(());
        }
        let span = tracing::info_span!("sandbox.stop", id = %self.record.id);
        async {
            // Waits for containers that are being made, and lets no more in. On record before the
            // first step: a stop that was begun is finished, by whatever daemon.
            self.mark_not_ready(Phase::Stopping).await;
            self.end_containers().await?;
            // Before the namespace goes, which a socket in it would keep.
            self.sandbox.usage.close_network();
            let undone = undo::release(&self.node, &mut self.record).await;
            if self.record.pause.is_none() {
                self.pause = None;
            }
            undone.map_err(SandboxError::Undo)?;
            self.released = true;
            self.mark_not_ready(Phase::NotReady).await;
            Ok(())
        }
        .instrument(span)
        .await
    }

    async fn end_containers(&self) -> Result<(), SandboxError> {
        self.for_each_container(|container| async move { container.kill().await })
            .await
    }

    async fn remove(&mut self) -> Result<(), SandboxError> {
        self.stop().await?;
        self.for_each_container(|container| async move { container.remove().await })
            .await?;
        self.record.phase = Phase::Removing;
        self.write().await;
        undo::erase(&self.node, &self.record)
            .await
            .map_err(SandboxError::Undo)?;
        self.node.sandboxes.remove(self.record.id.as_str());
        self.node
            .sandbox_names
            .release(&Sandbox::name_of(&self.record.spec), &self.record.id);
        self.node.tell_sandbox(EventKind::Deleted, &self.sandbox);
        Ok(())
    }

    /// Runs `verb` on every container of the sandbox, all at once, and reports the first failure.
    async fn for_each_container<F>(
        &self,
        verb: impl Fn(Arc<crate::container::Container>) -> F,
    ) -> Result<(), SandboxError>
    where
        F: Future<Output = Result<(), Arc<ContainerError>>>,
    {
        let mine = self.node.containers_of(&self.record.id);
        let verbs = mine.into_iter().map(|container| {
            let id = container.id.clone();
            let done = verb(container);
            async move {
                done.await
                    .map_err(|source| SandboxError::Container { id, source })
            }
        });
        futures_util::future::join_all(verbs)
            .await
            .into_iter()
            .collect()
    }
}

fn published(record: &SandboxRecord, ready: bool) -> Published {
    Published {
        ready,
        ips: record.ips.clone(),
        pause: record.pause,
        netns: record.netns.clone(),
        resources: PodResources::of(record),
    }
}

//! CRI pod sandboxes: the namespaces, network and cgroup that the containers of a pod share.
//!
//! ```text
//! (making) -> Ready -> Stopping -> NotReady -> (removed)
//! ```
//! A sandbox is visible from Ready on. Making one that fails leaves nothing: what was made is undone
//! step by step, each step with a deadline of its own, and what cannot be undone now is retried in
//! the background until it is. The record on disk is the journal of that: it is written before the
//! first thing is made and goes last, so a daemon that dies in between finishes the undoing after
//! its restart. So it does with a stop that had begun.
//!
//! One driver task owns a sandbox. It stops it, removes it, and notices when its pause dies, which
//! makes the sandbox NotReady. List and Status read what the driver published last.
//!
//! - [`run`]: make a sandbox; steps `sandbox.reserve`, `.namespaces`, `.network`, `.commit`.
//! - [`driver`]: stop, remove, death of the pause.
//! - [`update`]: what the pod as a whole may use.
//! - [`undo`]: take apart what a record says may exist.
//! - [`recover`]: after a restart of the daemon.

pub mod driver;
pub mod files;
pub mod parents;
pub mod pause;
pub mod record;
pub mod recover;
pub mod run;
pub mod shm;
pub mod spec;
pub mod undo;
pub mod update;

use std::{net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use tokio::sync::{RwLock, mpsc, oneshot};

use crate::id::SandboxId;
use driver::{Command, SandboxError};
use spec::SandboxSpec;

/// A sandbox that exists.
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// What was asked for.
    pub spec: Arc<SandboxSpec>,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// The cgroup below which its containers lie.
    pub cgroup_parent: String,
    /// What is remembered between two readings of what it uses.
    pub usage: crate::stats::pod::Memory,
    published: ArcSwap<Published>,
    commands: mpsc::UnboundedSender<Command>,
    /// Held for reading while a container is being made in it, for writing from the moment it is
    /// being stopped: so a stop sees every container, and none comes after it.
    gate: Arc<RwLock<Gate>>,
}

/// Whether containers may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// They may.
    Open,
    /// The sandbox is being stopped or was.
    Closed,
}

/// What everybody may know of a sandbox at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Whether containers may run in it.
    pub ready: bool,
    /// Addresses of the pod; none with host network.
    pub ips: Vec<IpAddr>,
    /// Pause, while it lives.
    pub pause: Option<record::PauseRecord>,
    /// Path of the pinned network namespace; none with host network.
    pub netns: Option<std::path::PathBuf>,
    /// What the pod as a whole may use.
    pub resources: update::PodResources,
}

impl Sandbox {
    /// What the driver published last.
    #[must_use]
    pub fn published(&self) -> Arc<Published> {
        self.published.load_full()
    }

    /// The key that kubelet's retries share: only one live sandbox has it.
    #[must_use]
    pub fn name_of(spec: &SandboxSpec) -> String {
        let m = &spec.metadata;
        // No part can hold a slash, so no two keys run together.
        format!("{}/{}/{}/{}", m.namespace, m.name, m.uid, m.attempt)
    }

    /// Keeps the sandbox from being stopped while the guard lives, if it is not already.
    pub async fn enter(&self) -> Option<tokio::sync::OwnedRwLockReadGuard<Gate>> {
        let guard = Arc::clone(&self.gate).read_owned().await;
        (*guard == Gate::Open).then_some(guard)
    }

    /// Fails unless its ports can be connected to now.
    ///
    /// # Errors
    /// When it is not ready.
    pub fn accepts_connections(&self) -> Result<(), SandboxError> {
        match self.published().ready {
            true => Ok(()),
            false => Err(SandboxError::NotReady),
        }
    }

    /// Ends every container, releases the network and the namespaces. Stopping a stopped sandbox
    /// finishes what an earlier stop left.
    ///
    /// # Errors
    /// When a step failed; it is retried in the background.
    pub async fn stop(&self) -> Result<(), Arc<SandboxError>> {
        self.command(Command::Stop).await
    }

    /// Stops it and removes every trace of it and of its containers.
    ///
    /// # Errors
    /// When a step failed; the sandbox stays listed and the step is retried in the background.
    pub async fn remove(&self) -> Result<(), Arc<SandboxError>> {
        self.command(Command::Remove).await
    }

    /// Takes note of what the pod as a whole may use, and limits its group where that is ours.
    ///
    /// # Errors
    /// When it is not ready, or the kernel refuses a limit.
    pub async fn update(&self, resources: update::PodResources) -> Result<(), Arc<SandboxError>> {
        self.command(|answer| Command::Update(Box::new(resources), answer))
            .await
    }

    async fn command(
        &self,
        make: impl FnOnce(driver::Answer) -> Command,
    ) -> Result<(), Arc<SandboxError>> {
        let (answer, answered) = oneshot::channel();
        if self.commands.send(make(answer)).is_err() {
            // The driver ends only after a removal.
            return Ok(());
        }
        answered.await.unwrap_or(Ok(()))
    }
}

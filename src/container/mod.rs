//! CRI containers: spec, states, the driver task that owns each one, and the verbs on it.
//!
//! States are in [`state`]. A container becomes visible when its process waits at the start gate; from
//! then on its driver task owns it: start, stop, removal, the end of its process, the death of its
//! monitor. List and Status read what the driver published last and never wait for it. Commands run
//! with `ExecSync` go to the monitor directly, beside the driver.
//!
//! - [`create`]: steps `container.reserve`, `.rootfs`, `.bundle`, `.plan`, `.monitor`, `.commit`.
//! - [`driver`]: start, stop, remove, exits.
//! - [`attach`]: connect a client to its streams.
//! - [`exec`]: run a command and capture it, or hand out its streams.
//! - [`update`]: change its limits.
//! - [`undo`]: take apart what a record says may exist.
//! - [`recover`]: after a restart of the daemon.

pub mod attach;
pub mod capability;
pub mod classes;
pub mod create;
pub mod devices;
pub mod driver;
pub mod exec;
pub mod output;
pub mod record;
pub mod recover;
pub mod relabel;
pub mod sources;
pub mod spec;
pub mod state;
pub mod undo;
pub mod update;
mod users;
pub mod volumes;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption};
use crisp_oci::plan::ProcessPlan;
use tokio::sync::{OnceCell, mpsc, oneshot};

use crate::{
    bundle::ResolvedUser,
    id::{ContainerId, SandboxId},
    monitor::Monitor,
    sandbox::spec::Resources,
};
use driver::{Command, ContainerError};
use spec::{ContainerSpec, Signal};
use state::State;

/// A container that exists.
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    /// Whose it is.
    pub sandbox: SandboxId,
    /// What was asked for.
    pub spec: Arc<ContainerSpec>,
    /// What does not change over its life.
    pub fixed: Fixed,
    /// What is remembered between two readings of what it uses.
    pub usage: crate::stats::container::Memory,
    state: ArcSwap<State>,
    resources: ArcSwap<Resources>,
    monitor: ArcSwapOption<Monitor>,
    /// How its processes are made, for commands run in it; read back from the bundle after a
    /// restart of the daemon.
    process: OnceCell<Arc<ProcessPlan>>,
    /// What has become of its output.
    pub output: output::Output,
    commands: mpsc::UnboundedSender<Command>,
}

/// What was found out when the container was made.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Fixed {
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Id of its image.
    pub image_id: String,
    /// The image by digest where it has one, else its id.
    pub image_ref: String,
    /// Where its output is logged: always absolute, never empty.
    pub log_path: PathBuf,
    /// Who its process is.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// All its groups, the primary one among them.
    pub groups: Vec<u32>,
    /// What stops it.
    pub stop_signal: Signal,
    /// Its cgroup, below the mount of each hierarchy.
    pub cgroup: String,
    /// Its first process, as the daemon sees it.
    pub pid: i32,
    /// When that process started, in clock ticks since boot.
    pub start_time: u64,
    /// The layers of its image, and of the images that are its volumes, by their keys: kept while it
    /// exists.
    pub layers: Vec<String>,
    /// Ids of the images that are its volumes, by the place of the mount.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub image_volumes: BTreeMap<usize, String>,
}

impl Fixed {
    fn groups_of(user: &ResolvedUser) -> Vec<u32> {
        let mut groups = user.additional_gids.clone();
        groups.push(user.gid);
        groups.sort_unstable();
        groups.dedup();
        groups
    }
}

impl Container {
    /// What the driver published last.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// The limits in force.
    #[must_use]
    pub fn resources(&self) -> Arc<Resources> {
        self.resources.load_full()
    }

    /// The key that kubelet's retries share: only one live container has it.
    #[must_use]
    pub fn name_of(sandbox: &SandboxId, spec: &ContainerSpec) -> String {
        format!("{sandbox}/{}/{}", spec.metadata.name, spec.metadata.attempt)
    }

    /// Opens the start gate. Starting again what was started by a request whose answer got lost is
    /// fine.
    ///
    /// # Errors
    /// When it is not in the state for it, or its program cannot be executed: then it has exited.
    pub async fn start(&self) -> Result<(), Arc<ContainerError>> {
        self.command(Command::Start).await
    }

    /// Ends it: its stop signal, `grace` for it to react, then SIGKILL. Stopping what has exited is
    /// fine.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop(&self, grace: Duration) -> Result<(), Arc<ContainerError>> {
        self.command(|answer| Command::Stop { grace, answer }).await
    }

    /// Ends it now.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill(&self) -> Result<(), Arc<ContainerError>> {
        self.stop(Duration::ZERO).await
    }

    /// Ends it if it runs, then removes every trace of it but its log.
    ///
    /// # Errors
    /// When a step failed; it stays listed and a later removal goes on.
    pub async fn remove(&self) -> Result<(), Arc<ContainerError>> {
        self.command(Command::Remove).await
    }

    /// Changes the limits that are named, all of them or none.
    ///
    /// # Errors
    /// When it has exited, or the kernel refuses one.
    pub async fn update(&self, limits: Resources) -> Result<(), Arc<ContainerError>> {
        self.command(|answer| Command::Update { limits, answer })
            .await
    }

    /// Has the monitor open the log path anew.
    ///
    /// # Errors
    /// When it is not running or the new file cannot be opened.
    pub async fn reopen_log(&self) -> Result<(), ContainerError> {
        let state = self.state();
        if !matches!(*state, State::Running { .. }) {
            return Err(ContainerError::WrongState {
                verb: "reopen the log of",
                state: state.word(),
            });
        }
        let monitor = self.monitor()?;
        monitor
            .reopen_log()
            .await
            .map_err(ContainerError::ReopenLog)
    }

    fn monitor(&self) -> Result<Arc<Monitor>, ContainerError> {
        self.monitor.load_full().ok_or(ContainerError::MonitorGone)
    }

    async fn command(
        &self,
        make: impl FnOnce(driver::Answer) -> Command,
    ) -> Result<(), Arc<ContainerError>> {
        let (answer, answered) = oneshot::channel();
        if self.commands.send(make(answer)).is_err() {
            // The driver ends only after a removal.
            return Ok(());
        }
        answered.await.unwrap_or(Ok(()))
    }
}

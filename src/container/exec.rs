//! Runs a command in a container, and captures what it prints or hands out its streams.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crisp_oci::plan::ProcessPlan;

use super::{Container, driver::ContainerError, state::State, update};
use crate::{
    id::ContainerId,
    monitor::{Captured, ExecCommand, ExecIo, ExecSession, Monitor},
    node::Node,
};

/// A command whose streams are handed out.
#[derive(Debug)]
pub struct ExecSpec {
    /// Command line, never empty.
    pub command: Vec<String>,
    /// Its streams.
    pub io: ExecIo,
}

/// Why the description of a container's processes could not be read back from its bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleReadError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is damaged.
    #[error("{} is damaged", path.display())]
    Decode {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: crisp_oci::wire::DecodeError,
    },
    /// It is no runtime spec any more.
    #[error("{} is not a runtime spec", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// It cannot be carried out any more.
    #[error("cannot plan {} again", path.display())]
    Plan {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: crisp_oci::spec::PlanError,
    },
}

/// The file in a bundle that says how the container's processes are made, as `crisp_oci::wire`
/// encodes it: unlike config.json it can hold every value of the environment.
pub const PROCESS_FILE: &str = "process";

impl Container {
    /// Runs `command` as the container's own processes run, and waits for its end.
    ///
    /// # Errors
    /// When the container does not run, the command cannot be executed, or `limit` passed: then its
    /// process group is gone.
    pub async fn exec_sync(
        &self,
        node: &Arc<Node>,
        command: Vec<String>,
        limit: Option<Duration>,
    ) -> Result<Captured, ContainerError> {
        let (monitor, process) = self.prepare_exec(node, command, false).await?;
        let captured = monitor
            .exec_capture(ExecCommand { process, limit })
            .await
            .map_err(ContainerError::Exec)?;
        if captured.cut > 0 {
            tracing::warn!(id = %self.id, bytes = captured.cut, "output of a command was cut");
        }
        Ok(captured)
    }

    /// Runs a command as the container's own processes run, and hands out its streams.
    ///
    /// # Errors
    /// When the container does not run or the command cannot be executed.
    pub async fn exec_session(
        &self,
        node: &Arc<Node>,
        spec: ExecSpec,
    ) -> Result<ExecSession, ContainerError> {
        let ExecSpec { command, io } = spec;
        let terminal = matches!(io, ExecIo::Terminal);
        let (monitor, process) = self.prepare_exec(node, command, terminal).await?;
        let session = monitor.exec_session(process, io).await;
        session.map_err(ContainerError::Exec)
    }

    /// Fails unless it runs; `verb` is what was asked.
    ///
    /// # Errors
    /// When it does not run.
    pub fn check_running(&self, verb: &'static str) -> Result<(), ContainerError> {
        let state = self.state();
        match *state {
            State::Running { .. } => Ok(()),
            _ => Err(ContainerError::WrongState {
                verb,
                state: state.word(),
            }),
        }
    }

    /// The monitor, and the encoded process that it is to execute.
    async fn prepare_exec(
        &self,
        node: &Arc<Node>,
        command: Vec<String>,
        terminal: bool,
    ) -> Result<(Arc<Monitor>, Vec<u8>), ContainerError> {
        self.check_running("run a command in")?;
        let monitor = self.monitor()?;
        let template = self.process_template(node).await?;
        let mut process = ProcessPlan {
            args: command.into_iter().map(String::into_bytes).collect(),
            terminal,
            console_size: None,
            guarded: self.may_be_traced(node),
            ..template.as_ref().clone()
        };
        if terminal && !process.env.iter().any(|entry| entry.starts_with(b"TERM=")) {
            process.env.push(b"TERM=xterm".to_vec());
        }
        Ok((monitor, crisp_oci::wire::encode_process(&process)))
    }

    /// Whether a container of the pod may trace what it sees. One that is privileged needs no such
    /// way to the host.
    fn may_be_traced(&self, node: &Node) -> bool {
        let traces = |container: &Arc<Self>| {
            let bits = crate::bundle::capability_bits(&container.spec, &node.host);
            !container.spec.security.privileged && bits & crisp_oci::capability::SYS_PTRACE != 0
        };
        node.containers_of(&self.sandbox).iter().any(traces)
    }

    async fn process_template(&self, node: &Arc<Node>) -> Result<Arc<ProcessPlan>, ContainerError> {
        let read = self.process.get_or_try_init(|| async {
            let (node, id) = (Arc::clone(node), self.id.clone());
            let bundle = node.paths.container_state(&id);
            tokio::task::spawn_blocking(move || read_back(&node, &id, &bundle))
                .await
                .map_err(|_| ContainerError::MonitorGone)?
                .map_err(ContainerError::Bundle)
        });
        let template = read.await.cloned()?;
        Ok(update::with_score_in_force(self, node, template))
    }
}

fn read_back(
    node: &Node,
    id: &ContainerId,
    bundle: &Path,
) -> Result<Arc<ProcessPlan>, BundleReadError> {
    let path = bundle.join(PROCESS_FILE);
    match std::fs::read(&path) {
        Ok(bytes) => {
            return crisp_oci::wire::decode_process(&bytes)
                .map(Arc::new)
                .map_err(|source| BundleReadError::Decode { path, source });
        }
        // A container of a release that had no such file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(BundleReadError::Read { path, source }),
    }
    let path = bundle.join("config.json");
    let bytes = std::fs::read(&path).map_err(|source| BundleReadError::Read {
        path: path.clone(),
        source,
    })?;
    let mut spec: oci_spec::runtime::Spec =
        serde_json::from_slice(&bytes).map_err(|source| BundleReadError::Parse {
            path: path.clone(),
            source,
        })?;
    // Only the process is of interest, and volumes may name what was there when they were mounted.
    spec.set_mounts(None);
    let input = crisp_oci::spec::SpecInput {
        spec: &spec,
        id: id.as_str(),
        bundle: "/",
        host: &node.facts,
        rootfs: None,
        joins: &[],
        idmaps: &[],
        seccomp: None,
        detached: &[],
    };
    match crisp_oci::spec::plan(&input) {
        Ok(plan) => Ok(Arc::new(plan.process)),
        Err(source) => Err(BundleReadError::Plan { path, source }),
    }
}

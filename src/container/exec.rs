//! Runs a command in a container and captures what it prints.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crisp_oci::plan::ProcessPlan;

use super::{Container, driver::ContainerError, state::State, update};
use crate::{
    id::ContainerId,
    monitor::{Captured, ExecCommand},
    node::Node,
};

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

/// Outputs that were cut at the limit since the daemon started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Commands that printed more than there was room for.
    pub commands: u64,
    /// What was thrown away of it.
    pub bytes: u64,
}

static CUT_COMMANDS: AtomicU64 = AtomicU64::new(0);
static CUT_BYTES: AtomicU64 = AtomicU64::new(0);

/// What was cut so far.
#[must_use]
pub fn cut() -> Cut {
    Cut {
        commands: CUT_COMMANDS.load(Ordering::Relaxed),
        bytes: CUT_BYTES.load(Ordering::Relaxed),
    }
}

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
        let state = self.state();
        if !matches!(*state, State::Running { .. }) {
            return Err(ContainerError::WrongState {
                verb: "run a command in",
                state: state.word(),
            });
        }
        let monitor = self.monitor()?;
        let template = self.process_template(node).await?;
        let process = ProcessPlan {
            args: command.into_iter().map(String::into_bytes).collect(),
            terminal: false,
            ..template.as_ref().clone()
        };
        let process = crisp_oci::wire::encode_process(&process);
        let captured = monitor
            .exec_capture(ExecCommand { process, limit })
            .await
            .map_err(ContainerError::Exec)?;
        if captured.cut > 0 {
            CUT_COMMANDS.fetch_add(1, Ordering::Relaxed);
            CUT_BYTES.fetch_add(captured.cut, Ordering::Relaxed);
            tracing::warn!(id = %self.id, bytes = captured.cut, "output of a command was cut");
        }
        Ok(captured)
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

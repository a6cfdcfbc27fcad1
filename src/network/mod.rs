//! Pod networks: CNI configuration and plugins, network namespaces, cached results.
//!
//! ```text
//!  /etc/cni/net.d --watch--> conflist --VERSION, STATUS--> ready()        (never waited for)
//!  attach:  cache record (intent) -> ADD plugin 1 .. n -> cache record (result)
//!                                      | failure: DEL n .. 1, then the first error
//!  detach:  cache record -> DEL plugin n .. 1 -> record removed           (repeatable)
//! ```
//!
//! An attachment is on disk before the first plugin runs, with the configuration it is made from:
//! whatever ends the daemon in between, a later [`Network::detach`] undoes it, also after the
//! configuration was changed or the namespace is gone. The record leaves only when every DEL
//! succeeded, so a caller repeats `detach` until it does.
//!
//! Plugins are foreign programs: their output is capped, their time limited, their processes killed
//! as a group, their results validated, their error texts cleaned of control characters.
//! What is pure (parsing, environment, configuration given to a plugin) is in functions without
//! side effects: [`conflist::parse`], [`invocation`], [`result::parse`].

pub mod attach;
pub mod bandwidth;
pub mod cache;
pub mod conflist;
pub mod counters;
pub mod detach;
pub mod dial;
mod error;
pub mod exec;
pub mod invocation;
pub mod netns;
pub mod probe;
pub mod result;
pub mod watch;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use attach::{AttachRequest, Attachment, DnsConfig, PodIdentity, PortMapping, Protocol};
pub use detach::DetachRequest;
pub use error::{NetworkError, PluginFailure};
pub use watch::NotReady;

use cache::ResultCache;
use watch::Watch;

/// What the network module is told at the daemon's start.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Where configuration lists lie, `/etc/cni/net.d`.
    pub conf_dir: PathBuf,
    /// Where plugin binaries are looked for, in this order.
    pub plugin_dirs: Vec<PathBuf>,
    /// How long the whole ADD chain of a pod may take. kubelet gives a RunPodSandbox two to four
    /// minutes; a chain that needs longer than this is stuck.
    pub add_deadline: Duration,
    /// How long one DEL may take.
    pub del_deadline: Duration,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            conf_dir: PathBuf::from("/etc/cni/net.d"),
            plugin_dirs: vec![PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")],
            add_deadline: Duration::from_secs(90),
            del_deadline: Duration::from_secs(60),
        }
    }
}

/// The pod networks of this daemon. Clones share one state.
#[derive(Debug, Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: NetworkConfig,
    cache: ResultCache,
    watch: Watch,
    /// The pod subnets that kubelet announced (UpdateRuntimeConfig), for the `ipRanges` capability.
    pod_cidrs: arc_swap::ArcSwap<Vec<String>>,
    /// Held for reading over ADD and DEL, for writing over GC.
    changes: tokio::sync::RwLock<()>,
}

impl Network {
    /// Starts watching the configuration. Must be called inside a tokio runtime, because plugins
    /// are asked for their versions and status in the background. `result_dir` is made if needed.
    ///
    /// # Errors
    /// Only if the result directory cannot be made: a missing or broken configuration is a state
    /// that [`Network::ready`] reports, not an error.
    pub fn start(config: NetworkConfig, result_dir: &Path) -> Result<Self, NetworkError> {
        let cache = ResultCache::open(result_dir)?;
        let watch = Watch::start(&config);
        let pod_cidrs = arc_swap::ArcSwap::from_pointee(Vec::new());
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                cache,
                watch,
                pod_cidrs,
                changes: tokio::sync::RwLock::default(),
            }),
        })
    }

    /// Whether pods with a network of their own can be started right now. Never blocks.
    ///
    /// # Errors
    /// Why not, in words an operator can act on.
    pub fn ready(&self) -> Result<(), NotReady> {
        self.inner.watch.ready()
    }

    /// The pod subnets that kubelet announced; given to plugins that ask for `ipRanges`.
    pub fn set_pod_cidrs(&self, cidrs: Vec<String>) {
        self.inner.pod_cidrs.store(Arc::new(cidrs));
    }

    /// The configuration in force, with files that were refused beside it.
    #[must_use]
    pub fn loaded(&self) -> Arc<conflist::Loaded> {
        self.inner.watch.loaded()
    }

    /// Sandbox ids that have an attachment on record, finished or not: what recovery has to keep
    /// or to detach.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn attachments(&self) -> Result<Vec<String>, NetworkError> {
        self.inner.cache.ids()
    }
}

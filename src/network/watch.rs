//! Watches the configuration directory and keeps the answer to "is the network ready".
//!
//! One background task: it sets an inotify watch (on the nearest existing ancestor while the
//! directory is missing), loads, publishes, probes the plugins, and waits for the next event or
//! tick. The watch is set before the load, so that no change falls between the two. Readers only
//! load a pointer.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{task::JoinHandle, time::sleep};

use super::{
    NetworkConfig,
    conflist::{self, ConfList, Loaded},
    probe::{self, Probe},
};
use crate::watch::Changes;

/// Looks again without an event: for file systems without inotify, binaries that appear, STATUS.
const TICK: Duration = Duration::from_secs(10);
/// Writers often touch a file several times; a reload waits this long after the first event.
const SETTLE: Duration = Duration::from_millis(30);

/// Why pods with a network of their own cannot be started, for an operator to act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// The directory has no configuration.
    #[error("no CNI configuration (*.conflist, *.conf, *.json) in {}", dir.display())]
    NoConfig {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory cannot be read.
    #[error("cannot read {}: {problem}", dir.display())]
    Unreadable {
        /// The directory.
        dir: PathBuf,
        /// Why.
        problem: String,
    },
    /// There are files and none is valid.
    #[error("no valid CNI configuration: {} {problem}{}", file.display(), more(*others))]
    Invalid {
        /// The first file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// How many more are invalid.
        others: usize,
    },
    /// A plugin has no binary.
    #[error("{} names plugin {plugin:?}, which is in none of {}", file.display(), paths(dirs))]
    PluginMissing {
        /// The configuration.
        file: PathBuf,
        /// The plugin's type.
        plugin: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// A plugin does not speak the configuration's version.
    #[error("{} is of cniVersion {wanted}, plugin {} speaks {}", file.display(), plugin.display(), spoken.join(", "))]
    PluginVersion {
        /// The configuration.
        file: PathBuf,
        /// Its version.
        wanted: &'static str,
        /// The binary.
        plugin: PathBuf,
        /// What it speaks.
        spoken: Vec<String>,
    },
    /// A plugin's STATUS says no.
    #[error("network {network:?}: status of plugin {plugin:?}: {problem}")]
    Status {
        /// The network's name.
        network: String,
        /// The plugin's type.
        plugin: String,
        /// Its words.
        problem: String,
    },
    /// STATUS was not answered yet; the daemon started or the configuration changed just now.
    #[error("the plugins of the CNI configuration were not asked for their status yet")]
    Starting,
}

fn more(others: usize) -> String {
    if others == 0 {
        String::new()
    } else {
        format!(" (and {others} more invalid files)")
    }
}

fn paths(dirs: &[PathBuf]) -> String {
    let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    dirs.join(", ")
}

#[derive(Debug)]
struct State {
    loaded: Arc<Loaded>,
    verdict: Result<(), NotReady>,
}

/// The running watch; ends when dropped.
#[derive(Debug)]
pub struct Watch {
    state: Arc<ArcSwap<State>>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Loads once and starts the task. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(config: &NetworkConfig) -> Self {
        let loaded = Arc::new(conflist::load(&config.conf_dir));
        let verdict = first_verdict(&loaded, config);
        let state = Arc::new(ArcSwap::from_pointee(State { loaded, verdict }));
        let task = tokio::spawn(keep(config.clone(), Arc::clone(&state)));
        Self { state, task }
    }

    /// The answer of this moment.
    ///
    /// # Errors
    /// Why not.
    pub fn ready(&self) -> Result<(), NotReady> {
        self.state.load().verdict.clone()
    }

    /// The configuration of this moment.
    #[must_use]
    pub fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.state.load().loaded)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What can be said without executing anything. Versions are assumed to fit until asked, so that a
/// restarted daemon is ready at once; a STATUS must have been heard.
fn first_verdict(loaded: &Loaded, config: &NetworkConfig) -> Result<(), NotReady> {
    let list = choose(loaded, &config.conf_dir)?;
    probe::present(&list, &config.plugin_dirs)?;
    if list.version.has_gc_and_status() {
        Err(NotReady::Starting)
    } else {
        Ok(())
    }
}

fn choose(loaded: &Loaded, dir: &Path) -> Result<Arc<ConfList>, NotReady> {
    if let Some(list) = &loaded.list {
        return Ok(Arc::clone(list));
    }
    if let Some(problem) = &loaded.unreadable {
        return Err(NotReady::Unreadable {
            dir: dir.to_path_buf(),
            problem: problem.clone(),
        });
    }
    match loaded.refused.first() {
        Some((file, problem)) => Err(NotReady::Invalid {
            file: file.clone(),
            problem: problem.to_string(),
            others: loaded.refused.len() - 1,
        }),
        None => Err(NotReady::NoConfig {
            dir: dir.to_path_buf(),
        }),
    }
}

/// The background task.
async fn keep(config: NetworkConfig, state: Arc<ArcSwap<State>>) {
    let mut probe = Probe::default();
    loop {
        let events = Changes::of(&config.conf_dir);
        reload(&config, &state).await;
        let loaded = Arc::clone(&state.load().loaded);
        let round = async {
            if let Ok(list) = choose(&loaded, &config.conf_dir) {
                let verdict = probe.check(&list, &config.plugin_dirs).await;
                publish(&state, loaded, verdict);
            }
            sleep(TICK).await;
        };
        // An event ends a probe that hangs, too: the new configuration may name other plugins.
        tokio::select! {
            () = round => {}
            () = events.first() => sleep(SETTLE).await,
        }
    }
}

/// Loads again. The same content keeps its verdict; other content gets a first one.
async fn reload(config: &NetworkConfig, state: &ArcSwap<State>) {
    let dir = config.conf_dir.clone();
    let fresh = tokio::task::spawn_blocking(move || conflist::load(&dir)).await;
    let Ok(fresh) = fresh else { return };
    if *state.load().loaded != fresh {
        let loaded = Arc::new(fresh);
        let verdict = first_verdict(&loaded, config);
        publish(state, loaded, verdict);
    }
}

fn publish(state: &ArcSwap<State>, loaded: Arc<Loaded>, verdict: Result<(), NotReady>) {
    let before = state.load();
    if before.verdict != verdict || before.loaded != loaded {
        match &verdict {
            Ok(()) => {
                tracing::info!(network = ?loaded.list.as_ref().map(|list| &list.name), "pod network ready")
            }
            Err(reason) => tracing::warn!(%reason, "pod network not ready"),
        }
        for (file, problem) in &loaded.refused {
            tracing::warn!(file = %file.display(), %problem, "CNI configuration refused");
        }
    }
    state.store(Arc::new(State { loaded, verdict }));
}

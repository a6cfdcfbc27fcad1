//! Whether the configuration in force can work: binaries there, versions spoken, STATUS content.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::{
    conflist::{CniVersion, ConfList, PluginConf},
    error::PluginFailure,
    exec,
    invocation::{Verb, status_input},
    result::parse_versions,
    watch::NotReady,
};
use crate::error::Chain;

/// How long a plugin may take to say its versions or its status.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);

/// Asks the plugins. Keeps what does not change while a binary does not.
#[derive(Debug, Default)]
pub struct Probe {
    versions: HashMap<PathBuf, (Identity, Option<Vec<String>>)>,
}

/// A binary that was replaced has another of these.
type Identity = (Option<SystemTime>, u64);

impl Probe {
    /// Looks at every plugin of the list, in order.
    ///
    /// # Errors
    /// The first reason why ADD cannot work.
    pub async fn check(&mut self, list: &ConfList, dirs: &[PathBuf]) -> Result<(), NotReady> {
        present(list, dirs)?;
        for plugin in &list.plugins {
            self.speaks(list, plugin, dirs).await?;
        }
        if list.version.has_gc_and_status() {
            for plugin in &list.plugins {
                status(list, plugin, dirs).await?;
            }
        }
        Ok(())
    }

    /// A plugin that cannot say its versions is given the benefit of the doubt: ADD will tell.
    async fn speaks(
        &mut self,
        list: &ConfList,
        plugin: &PluginConf,
        dirs: &[PathBuf],
    ) -> Result<(), NotReady> {
        let Ok(path) = exec::find(&plugin.kind, dirs) else {
            return Ok(());
        };
        let identity = identity(&path);
        let known = self
            .versions
            .get(&path)
            .filter(|(known, _)| *known == identity);
        let versions = match known {
            Some((_, versions)) => versions.clone(),
            None => {
                let versions = ask_versions(plugin, list.version, dirs).await;
                self.versions
                    .insert(path.clone(), (identity, versions.clone()));
                versions
            }
        };
        match versions {
            Some(all) if !all.iter().any(|version| version == list.version.as_str()) => {
                Err(NotReady::PluginVersion {
                    file: list.source.clone(),
                    wanted: list.version.as_str(),
                    plugin: path,
                    spoken: all,
                })
            }
            _ => Ok(()),
        }
    }
}

/// Whether every plugin of the list has a binary. Cheap: done at every load, before anything is
/// executed.
///
/// # Errors
/// The first that has none.
pub fn present(list: &ConfList, dirs: &[PathBuf]) -> Result<(), NotReady> {
    for plugin in &list.plugins {
        if exec::find(&plugin.kind, dirs).is_err() {
            return Err(NotReady::PluginMissing {
                file: list.source.clone(),
                plugin: plugin.kind.clone(),
                dirs: dirs.to_vec(),
            });
        }
    }
    Ok(())
}

fn identity(path: &Path) -> Identity {
    fs::metadata(path).map_or((None, 0), |metadata| {
        (metadata.modified().ok(), metadata.len())
    })
}

async fn ask_versions(
    plugin: &PluginConf,
    version: CniVersion,
    dirs: &[PathBuf],
) -> Option<Vec<String>> {
    let input = serde_json::json!({ "cniVersion": version.as_str() })
        .to_string()
        .into_bytes();
    let run = exec::Run {
        kind: &plugin.kind,
        verb: Verb::Version,
        target: None,
        input,
        dirs,
        deadline: Instant::now() + PROBE_DEADLINE,
    };
    parse_versions(&exec::run(run).await.ok()?).filter(|all| !all.is_empty())
}

async fn status(list: &ConfList, plugin: &PluginConf, dirs: &[PathBuf]) -> Result<(), NotReady> {
    let run = exec::Run {
        kind: &plugin.kind,
        verb: Verb::Status,
        target: None,
        input: status_input(list, plugin),
        dirs,
        deadline: Instant::now() + PROBE_DEADLINE,
    };
    match exec::run(run).await {
        Ok(_) => Ok(()),
        // Code 4, invalid environment: how plugins built before the verb existed refuse it.
        Err(PluginFailure::Reported { code: 4, .. }) => Ok(()),
        Err(failure) => Err(NotReady::Status {
            network: list.name.clone(),
            plugin: plugin.kind.clone(),
            problem: Chain(&failure).to_string(),
        }),
    }
}

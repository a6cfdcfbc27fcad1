//! DEL, CHECK and GC: what is done with attachments on record.

use std::{path::PathBuf, time::Duration};

use tokio::time::Instant;

use super::{
    Network,
    cache::Record,
    conflist::PluginConf,
    error::NetworkError,
    exec,
    invocation::{CapabilityArgs, Target, Verb, gc_input, plugin_input},
    netns,
};
use crate::{error::Chain, failpoint, id::SandboxId};

/// How long a whole collection may take, since pods wait for it.
pub const GC_DEADLINE: Duration = Duration::from_secs(10);
/// Between looks for a moment without ADD and DEL.
const GC_RETRY: Duration = Duration::from_millis(50);

/// What [`Network::detach`] is asked.
#[derive(Debug, Clone)]
pub struct DetachRequest {
    /// The sandbox.
    pub sandbox: SandboxId,
}

impl Network {
    /// Runs DEL of all plugins in reverse, from the configuration and result on record. Nothing on
    /// record (never attached, or detached already) is success. The namespace may be gone.
    ///
    /// # Errors
    /// The first failed DEL. The others were run all the same, and the record is kept: repeat the
    /// call until it succeeds.
    pub async fn detach(&self, request: &DetachRequest) -> Result<(), NetworkError> {
        let _no_gc = self.inner.changes.read().await;
        self.delete_chain(request.sandbox.as_str()).await
    }

    /// [`Network::detach`] for who holds off the collection already.
    pub(super) async fn delete_chain(&self, sandbox: &str) -> Result<(), NetworkError> {
        let mut record = match self.read_record(sandbox) {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(()),
            Err(damage @ NetworkError::Damaged { .. }) => self.stand_in(sandbox, damage)?,
            Err(error) => return Err(error),
        };
        if !netns::is_namespace(&record.target.netns) {
            // The specification: an empty path means the namespace is gone; plugins then release
            // what they can. A path that is no namespace makes most of them fail for ever.
            record.target.netns = PathBuf::new();
        }
        let mut first = None;
        for plugin in record.list.plugins.iter().rev() {
            if let Err(error) = self.run_on(&record, plugin, Verb::Del).await {
                first.get_or_insert(error);
            }
            failpoint::reach(format_args!("network.del.{}", plugin.kind));
        }
        match first {
            Some(error) => Err(error),
            None => self.inner.cache.remove(sandbox),
        }
    }

    /// Runs CHECK of all plugins, if the attachment's configuration has it.
    ///
    /// # Errors
    /// The first plugin that is not content.
    pub async fn check(&self, sandbox: &SandboxId) -> Result<(), NetworkError> {
        let Some(record) = self.read_record(sandbox.as_str())? else {
            return Ok(());
        };
        let list = &record.list;
        if list.disable_check || !list.version.has_check() || record.result.is_none() {
            return Ok(());
        }
        for plugin in &list.plugins {
            self.run_on(&record, plugin, Verb::Check).await?;
        }
        Ok(())
    }

    /// Tells the plugins of the configuration in force which attachments there are, so that they
    /// remove all others. To be called once the daemon knows its sandboxes. Attachments whose DEL
    /// is still to be repeated count as valid.
    ///
    /// While it runs, nothing is attached or detached: the specification demands it, and a pod that
    /// came in between would be missing from the list. It waits for a moment when that is so anyway,
    /// and never makes an ADD wait for a DEL that hangs; then it takes [`GC_DEADLINE`] at most.
    ///
    /// # Errors
    /// The first plugin that failed; the others were run all the same.
    pub async fn gc(&self) -> Result<(), NetworkError> {
        let Some(list) = self.loaded().list.clone() else {
            return Ok(());
        };
        if list.disable_gc || !list.version.has_gc_and_status() {
            return Ok(());
        }
        let _alone = loop {
            match self.inner.changes.try_write() {
                Ok(alone) => break alone,
                Err(_) => tokio::time::sleep(GC_RETRY).await,
            }
        };
        let deadline = Instant::now() + GC_DEADLINE;
        let mut valid = Vec::new();
        for sandbox in self.attachments()? {
            if let Some(record) = self.read_record(&sandbox)? {
                valid.push((sandbox, record.target.ifname));
            }
        }
        let mut first = Ok(());
        for plugin in &list.plugins {
            let input = gc_input(&list, plugin, &valid);
            let done = self.run(&list.name, plugin, Verb::Gc, None, input, deadline);
            first = first.and(done.await);
        }
        first
    }

    async fn run_on(
        &self,
        record: &Record,
        plugin: &PluginConf,
        verb: Verb,
    ) -> Result<(), NetworkError> {
        // Before 0.4.0 DEL is given no result.
        let result = record
            .result
            .as_ref()
            .filter(|_| record.list.version.has_check());
        let input = plugin_input(&record.list, plugin, &record.capabilities, result);
        let deadline = Instant::now() + self.inner.config.del_deadline;
        let target = Some(&record.target);
        self.run(&record.list.name, plugin, verb, target, input, deadline)
            .await
    }

    async fn run(
        &self,
        network: &str,
        plugin: &PluginConf,
        verb: Verb,
        target: Option<&Target>,
        input: Vec<u8>,
        deadline: Instant,
    ) -> Result<(), NetworkError> {
        let run = exec::Run {
            kind: &plugin.kind,
            verb,
            target,
            input,
            dirs: &self.inner.config.plugin_dirs,
            deadline,
        };
        exec::run(run)
            .await
            .map(drop)
            .map_err(|failure| NetworkError::Plugin {
                network: network.to_owned(),
                verb: verb.as_str(),
                plugin: plugin.kind.clone(),
                failure,
            })
    }

    /// Reads inline, as records are written inline: they are small, go to the page cache, and a
    /// write that outlived its dropped caller on another thread could bring a removed record back.
    fn read_record(&self, sandbox: &str) -> Result<Option<Record>, NetworkError> {
        self.inner.cache.read(sandbox)
    }

    /// For an attachment whose record is damaged: what can be released is released by the
    /// configuration in force, which most likely made it.
    fn stand_in(&self, sandbox: &str, damage: NetworkError) -> Result<Record, NetworkError> {
        let Some(list) = self.loaded().list.clone() else {
            return Err(damage);
        };
        tracing::warn!(error = %Chain(&damage), network = %list.name, "detaching by the configuration in force");
        let record = Record {
            target: Target {
                container_id: sandbox.to_owned(),
                netns: PathBuf::new(),
                ifname: "eth0".to_owned(),
                args: "IgnoreUnknown=1".to_owned(),
            },
            list: (*list).clone(),
            capabilities: CapabilityArgs::default(),
            result: None,
        };
        // On record again, so that a failed DEL is repeated.
        self.inner.cache.write(&record)?;
        Ok(record)
    }
}

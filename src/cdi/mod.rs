//! The Container Device Interface: files of vendors say what a device needs in a container, and
//! containers ask for devices by qualified name.
//!
//! The directories are watched, so that what is wrong with a file is told when it is written. What
//! counts for a container is nevertheless looked up when it is made: a driver writes the file for a
//! device right before kubelet asks for it. Specs come from root's files only; names come from the
//! fields and annotations of a container's own request, never from an image.

mod edits;
mod load;
pub mod name;
pub mod spec;

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{task::JoinHandle, time::sleep};

pub use edits::{Edits, Owner};
pub use load::Known;

use crate::{
    error::{Classify, ErrorKind},
    watch::Changes,
};

/// Looks again without an event: for file systems without inotify.
const TICK: Duration = Duration::from_secs(60);
/// Writers often touch a file several times; a reload waits this long after the first event.
const SETTLE: Duration = Duration::from_millis(30);

/// A device that cannot be given to a container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("config.CDI_devices: {device}: {problem}")]
pub struct CdiError {
    /// Its qualified name.
    pub device: String,
    /// Why not.
    pub problem: String,
}

impl Classify for CdiError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

/// The devices of this node; the watch ends when dropped.
pub struct Cdi {
    specs: Arc<Specs>,
    task: JoinHandle<()>,
}

struct Specs {
    dirs: Vec<PathBuf>,
    known: ArcSwap<Known>,
    /// One reads the directories at a time. Held while files are read, never over an await.
    reading: std::sync::Mutex<()>,
}

impl Cdi {
    /// Reads the directories and begins to watch them. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(dirs: Vec<PathBuf>) -> Self {
        let specs = Arc::new(Specs {
            known: ArcSwap::from_pointee(Known::load(&dirs)),
            dirs,
            reading: std::sync::Mutex::new(()),
        });
        specs.tell();
        let task = tokio::spawn(keep(Arc::clone(&specs)));
        Self { specs, task }
    }

    /// The directories.
    #[must_use]
    pub fn dirs(&self) -> &[PathBuf] {
        &self.specs.dirs
    }

    /// What is known of this moment.
    #[must_use]
    pub fn known(&self) -> Arc<Known> {
        self.specs.known.load_full()
    }

    /// What the devices of these qualified names change in a container. Blocks.
    ///
    /// # Errors
    /// The first device that is not there, or whose needs cannot be met.
    pub fn edits(&self, names: &[String], owner: Owner) -> Result<Edits, CdiError> {
        let mut edits = Edits::default();
        if names.is_empty() {
            return Ok(edits);
        }
        self.specs.refresh();
        let known = self.known();
        let mut specs = Vec::new();
        for name in names {
            let failed = |problem: String| CdiError {
                device: name.clone(),
                problem,
            };
            let found = known.find(name).map_err(failed)?;
            let in_file = |problem: String| failed(format!("{}: {problem}", found.file.display()));
            if !specs.iter().any(|spec| Arc::ptr_eq(spec, found.spec)) {
                specs.push(Arc::clone(found.spec));
                let shared = edits.add(&found.spec.container_edits, owner);
                shared.map_err(in_file)?;
            }
            let own = edits.add(&found.device.container_edits, owner);
            own.map_err(in_file)?;
        }
        Ok(edits)
    }
}

impl Drop for Cdi {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Specs {
    /// Reads again if the directories look different.
    fn refresh(&self) {
        let reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.known.load().is_current(&self.dirs) {
            self.known.store(Arc::new(Known::load(&self.dirs)));
            drop(reading);
            self.tell();
        }
    }

    fn tell(&self) {
        let known = self.known.load();
        for (path, problem) in &known.problems {
            tracing::warn!(path = %path.display(), problem, "CDI spec cannot be used");
        }
    }
}

/// The background task.
async fn keep(specs: Arc<Specs>) {
    loop {
        let changes = Changes::in_any(&specs.dirs);
        let reader = Arc::clone(&specs);
        let read = tokio::task::spawn_blocking(move || reader.refresh());
        if read.await.is_err() {
            return;
        }
        tokio::select! {
            () = sleep(TICK) => {}
            () = changes.first() => sleep(SETTLE).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn spec(device: &str) -> String {
        format!(
            "{{\"cdiVersion\": \"0.6.0\", \"kind\": \"v.com/gpu\", \"containerEdits\": {{\"env\": \
             [\"ALL=1\"]}}, \"devices\": [{{\"name\": \"{device}\", \"containerEdits\": {{\"env\": \
             [\"ONE={device}\"]}}}}, {{\"name\": \"net\", \"containerEdits\": {{\"netDevices\": \
             [{{\"hostInterfaceName\": \"eth1\", \"name\": \"x\"}}]}}}}]}}"
        )
        .replace("0.6.0", "1.1.0")
    }

    #[tokio::test]
    async fn devices_are_found_when_they_are_asked_for_and_gone_when_their_file_is() {
        let dir = tempfile::tempdir().unwrap();
        let specs = dir.path().join("later/cdi");
        let cdi = Cdi::start(vec![specs.clone()]);
        let asked = |name: &str| cdi.edits(&[name.to_owned()], Owner::default());
        let error = asked("v.com/gpu=0").unwrap_err();
        assert_eq!(
            error.to_string(),
            "config.CDI_devices: v.com/gpu=0: no CDI spec describes it"
        );
        fs::create_dir_all(&specs).unwrap();
        let file = specs.join("gpu.json");
        fs::write(&file, spec("0")).unwrap();
        // At once, whatever the watch has seen.
        let names = ["v.com/gpu=0".to_owned(), "v.com/gpu=0".to_owned()];
        let edits = cdi.edits(&names, Owner::default()).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            edits.env,
            [pair("ALL", "1"), pair("ONE", "0"), pair("ONE", "0")]
        );
        let error = asked("v.com/gpu=net").unwrap_err();
        assert!(error.problem.contains("gpu.json: netDevices"), "{error}");
        fs::remove_file(&file).unwrap();
        asked("v.com/gpu=0").unwrap_err();
    }

    #[tokio::test]
    async fn the_watch_sees_what_nobody_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let cdi = Cdi::start(vec![dir.path().to_owned()]);
        fs::write(dir.path().join("a.json"), spec("0")).unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while cdi.known().names().is_empty() {
            assert!(tokio::time::Instant::now() < deadline, "never seen");
            tokio::task::yield_now().await;
        }
        assert_eq!(cdi.known().names(), ["v.com/gpu=0", "v.com/gpu=net"]);
    }
}

//! A place for images of its own, and the settings that make failures quick.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crisp::{
    image::{Image, ImageSettings, Images, Platform, Policy, PullError, PullRequest},
    snapshot::{applier::ApplierCommand, apply::Limits},
    store::Store,
};

/// This executable as the applier.
pub fn applier() -> ApplierCommand {
    ApplierCommand {
        program: "/proc/self/exe".into(),
        arguments: ["child_entry", "--exact", "--nocapture", "--test-threads=1"]
            .map(OsString::from)
            .to_vec(),
        environment: vec![("CRISP_TEST_CHILD".into(), "apply".into())],
    }
}

pub fn settings(root: &Path) -> ImageSettings {
    ImageSettings {
        root: root.to_owned(),
        hosts_dir: Some(root.join("hosts")),
        applier: applier(),
        limits: Limits {
            max_bytes: 64 << 20,
            max_seconds: 60,
            ..Limits::default()
        },
        policy: Policy {
            connect_timeout: Duration::from_secs(2),
            answer_timeout: Duration::from_millis(700),
            stall_window: Duration::from_millis(700),
            stall_bytes: 4096,
            attempts: 3,
            backoff: Duration::from_millis(20),
            max_backoff: Duration::from_millis(200),
        },
        parallel_layers: 3,
        platform: Platform::host(),
    }
}

pub struct Site {
    pub dir: tempfile::TempDir,
    pub images: Images,
    _store: Store,
}

impl Site {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, report) = Store::open(dir.path().join("store")).unwrap();
        let images = Images::open(settings(dir.path()), &store, report.must_rebuild()).unwrap();
        images.start_collecting();
        Self {
            dir,
            images,
            _store: store,
        }
    }

    pub async fn pull(&self, reference: &str) -> Result<Arc<Image>, PullError> {
        let request = PullRequest {
            reference: reference.to_owned(),
            ..PullRequest::default()
        };
        self.images.pull(request).await
    }

    pub fn hosts(&self, registry: &str, text: &str) {
        let dir = self.dir.path().join("hosts").join(registry);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("hosts.toml"), text).unwrap();
    }

    /// Files in a directory of the image store, hidden ones left out.
    pub fn list(&self, name: &str) -> Vec<PathBuf> {
        fs::read_dir(self.dir.path().join(name))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| !path.file_name().unwrap().to_str().unwrap().starts_with('.'))
            .collect()
    }

    /// Waits until nothing is left in `staging`.
    pub async fn staging_empties(&self) {
        for _ in 0..400 {
            if self.list("staging").is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("staging keeps {:?}", self.list("staging"));
    }

    /// A file of an image's topmost layer that has it.
    pub fn read(&self, image: &Image, path: &str) -> Vec<u8> {
        self.images
            .lowers(image)
            .iter()
            .find_map(|lower| fs::read(lower.join(path)).ok())
            .unwrap_or_else(|| panic!("{path} is in no layer"))
    }
}

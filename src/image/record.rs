//! What is remembered of an image: a record in the store, and the same as a file to rebuild it from.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    content::write_durably,
    error::ImageError,
    reference::{Digest, ImageId},
};
use crate::store::{Record, Store, Table};

const MAX_FILE: u64 = 1 << 20;

/// The record. Layers follow from the configuration, which is content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// `sha256:<digest of the configuration>`.
    pub id: String,
    /// `registry/repository:tag`.
    pub tags: BTreeSet<String>,
    /// `registry/repository@digest`.
    pub digests: BTreeSet<String>,
    /// Manifest and index in `content/`.
    pub content: BTreeSet<Digest>,
    /// Number of layers.
    pub layers: usize,
    /// Bytes as the registry has it.
    pub size: u64,
    /// Never to be removed by kubelet's collection.
    pub pinned: bool,
}

impl Record for ImageRecord {
    const TABLE: &'static str = "images";
    const SCHEMA: u16 = 1;
}

/// All records.
pub struct Records {
    table: Table<ImageRecord>,
    dir: PathBuf,
}

fn failed(action: String) -> impl FnOnce(std::io::Error) -> ImageError {
    move |source| ImageError::Storage { action, source }
}

impl Records {
    /// Opens the table; with `rebuild` it is filled from the files. Blocks.
    pub fn open(store: &Store, content: &Path, rebuild: bool) -> Result<Self, ImageError> {
        let dir = content.join("images");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(failed(format!("make {}", dir.display())))?;
        let records = Self {
            table: store.table().map_err(ImageError::Store)?,
            dir,
        };
        for record in records.files()? {
            if records.table.get(&record.id).is_some() {
                continue;
            }
            if rebuild {
                tracing::warn!(image = record.id, "record rebuilt from its file");
                let id = record.id.clone();
                records
                    .table
                    .put_durable(&id, record)
                    .wait()
                    .map_err(ImageError::Store)?;
            } else {
                // A removal that was interrupted after the record was gone.
                let _ = fs::remove_file(records.file(&record.id));
            }
        }
        Ok(records)
    }

    fn files(&self) -> Result<Vec<ImageRecord>, ImageError> {
        let list = || failed(format!("list {}", self.dir.display()));
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(list())? {
            let path = entry.map_err(list())?.path();
            let small =
                fs::symlink_metadata(&path).is_ok_and(|m| m.is_file() && m.len() < MAX_FILE);
            let read = || serde_json::from_slice::<ImageRecord>(&fs::read(&path).ok()?).ok();
            match small.then(read).flatten() {
                Some(record) if ImageId::parse(&record.id).is_some() => records.push(record),
                _ => {
                    tracing::warn!(path = %path.display(), "damaged image file removed");
                    let _ = fs::remove_file(&path);
                }
            }
        }
        Ok(records)
    }

    fn file(&self, id: &str) -> PathBuf {
        self.dir.join(id.replace(':', "-"))
    }

    pub fn all(&self) -> Vec<ImageRecord> {
        self.table
            .scan("")
            .into_iter()
            .map(|(_, record)| ImageRecord::clone(&record))
            .collect()
    }

    pub fn get(&self, id: &str) -> Option<ImageRecord> {
        self.table.get(id).map(|record| ImageRecord::clone(&record))
    }

    /// Makes a record survive a power cut.
    pub async fn put(&self, record: ImageRecord) -> Result<(), ImageError> {
        let (dir, name) = (self.dir.clone(), record.id.replace(':', "-"));
        let bytes = serde_json::to_vec(&record)
            .map_err(|error| failed("encode an image record".into())(error.into()))?;
        let written = tokio::task::spawn_blocking(move || {
            write_durably(&dir, &name, &bytes)?;
            fs::File::open(&dir)?.sync_all()
        });
        written
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .map_err(failed("write an image record".into()))?;
        let id = record.id.clone();
        self.table
            .put_durable(&id, record)
            .await
            .map_err(ImageError::Store)
    }

    /// Removes a record, first from the store.
    pub async fn remove(&self, id: &str) -> Result<(), ImageError> {
        self.table
            .remove_durable(id)
            .await
            .map_err(ImageError::Store)?;
        match fs::remove_file(self.file(id)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(failed(format!("remove the file of {id}"))(error))
            }
            _ => Ok(()),
        }
    }
}

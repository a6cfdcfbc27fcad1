//! Import: an OCI archive (a tar of an image layout) or one of docker's `save`.
//!
//! The archive is read in place: one pass notes where each file lies, then documents are read whole
//! (with the limits of a registry's) and layers streamed through the same applier as pulled ones.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::Deserialize;

use super::{
    Image, Images,
    error::PullError,
    manifest::{self, Content, Document, MAX_CONFIG, MAX_INDEX_DEPTH, MAX_MANIFEST},
    pull::{Described, permitted},
    reference::{Digest, Reference},
};
use crate::snapshot::layers::{Source, SourceError, Want};

const MAX_FILES: usize = 100_000;
const CHUNK: usize = 256 << 10;
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// A tar file and where its files lie.
struct Archive {
    path: PathBuf,
    file: Arc<File>,
    files: HashMap<String, (u64, u64)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Layout {
    manifests: Vec<LayoutEntry>,
}

#[derive(Deserialize)]
struct LayoutEntry {
    digest: Digest,
    size: u64,
    annotations: Option<HashMap<String, String>>,
}

impl Archive {
    fn open(path: &Path) -> Result<Self, PullError> {
        let failed = |error: io::Error| PullError::Archive {
            path: path.to_owned(),
            what: error.to_string(),
        };
        let file = File::open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(failed(io::Error::other("it is not a regular file")));
        }
        let mut tar = tar::Archive::new(&file);
        let mut files = HashMap::new();
        let mut links: Vec<(String, String)> = Vec::new();
        for entry in tar.entries_with_seek().map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = plain_name(&entry.path_bytes());
            if files.len() + links.len() > MAX_FILES {
                return Err(failed(io::Error::other("it holds too many files")));
            }
            match entry.header().entry_type() {
                tar::EntryType::Regular => {
                    files.insert(name, (entry.raw_file_position(), entry.size()));
                }
                // Older archives of docker share layers by links.
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    if let Some(target) = entry.link_name_bytes() {
                        links.push((name, String::from_utf8_lossy(&target).into_owned()));
                    }
                }
                _ => {}
            }
        }
        for (name, target) in links {
            let target = target.trim_start_matches("../").trim_start_matches("./");
            if let Some(place) = files.get(target).copied() {
                files.insert(name, place);
            }
        }
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
            files,
        })
    }

    fn wrong(&self, what: impl Into<String>) -> PullError {
        PullError::Archive {
            path: self.path.clone(),
            what: what.into(),
        }
    }

    fn read(&self, name: &str, limit: u64) -> Result<Bytes, PullError> {
        let (at, size) = *self
            .files
            .get(name)
            .ok_or_else(|| self.wrong(format!("{name} is missing")))?;
        if size > limit {
            return Err(self.wrong(format!("{name} has {size} bytes, at most {limit} are read")));
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        self.file
            .read_exact_at(&mut bytes, at)
            .map_err(|error| self.wrong(format!("{name}: {error}")))?;
        Ok(bytes.into())
    }

    fn blob(&self, content: &Content, limit: u64) -> Result<Bytes, PullError> {
        let name = blob_name(&content.digest);
        let bytes = self.read(&name, limit)?;
        if bytes.len() as u64 != content.size || Digest::of(&bytes) != content.digest {
            return Err(self.wrong(format!("{name} is not what its digest and size say")));
        }
        Ok(bytes)
    }

    fn source(&self, name: &str) -> Result<FileSource, PullError> {
        let (at, size) = *self
            .files
            .get(name)
            .ok_or_else(|| self.wrong(format!("{name} is missing")))?;
        Ok(FileSource {
            file: Arc::clone(&self.file),
            at,
            left: size,
        })
    }
}

fn plain_name(path: &[u8]) -> String {
    String::from_utf8_lossy(path)
        .trim_start_matches("./")
        .to_owned()
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}", digest.as_str().replace(':', "/"))
}

/// A part of a file as a layer's bytes.
struct FileSource {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Source for FileSource {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>> {
        Box::pin(async move {
            if self.left == 0 {
                return Ok(None);
            }
            let count = usize::try_from(self.left).unwrap_or(CHUNK).min(CHUNK);
            let (file, at) = (Arc::clone(&self.file), self.at);
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0; count];
                file.read_exact_at(&mut bytes, at).map(|()| bytes)
            });
            let bytes = read.await??;
            self.at += count as u64;
            self.left -= count as u64;
            Ok(Some(bytes.into()))
        })
    }
}

/// An image in an archive before its layers are applied.
struct Found {
    described: Described,
    layers: Vec<(Want, String)>,
}

impl Images {
    /// Imports the images of an archive. `name` is used for an image that brings no full name.
    ///
    /// # Errors
    /// [`PullError`].
    pub async fn import(
        &self,
        path: &Path,
        name: Option<&str>,
    ) -> Result<Vec<Arc<Image>>, PullError> {
        let name = name
            .map(Reference::parse)
            .transpose()
            .map_err(PullError::Reference)?;
        let (images, path) = (self.clone(), path.to_owned());
        let read = tokio::task::spawn_blocking(move || {
            let archive = Archive::open(&path)?;
            let found = if archive.files.contains_key("index.json") {
                images.read_layout(&archive, name.as_ref())?
            } else if archive.files.contains_key("manifest.json") {
                images.read_docker(&archive, name.as_ref())?
            } else {
                return Err(archive.wrong("it holds neither index.json nor manifest.json"));
            };
            Ok((archive, found))
        });
        let (archive, found) = read.await.map_err(|_| PullError::Interrupted)??;
        let mut imported = Vec::new();
        for image in found {
            let mut layers = Vec::new();
            for (index, (want, file)) in image.layers.iter().enumerate() {
                let source = archive.source(file)?;
                let permits = Arc::clone(&self.inner.permits);
                let open = async move || permitted(permits, Box::new(source)).await;
                let layer = self.inner.layers.acquire(want, open).await;
                let wrong = |error| PullError::layer(&image.described.name, index + 1, error);
                layers.push(layer.map_err(wrong)?);
            }
            imported.push(self.commit(image.described, layers).await?);
        }
        Ok(imported)
    }

    fn read_layout(
        &self,
        archive: &Archive,
        name: Option<&Reference>,
    ) -> Result<Vec<Found>, PullError> {
        let bytes = archive.read("index.json", MAX_MANIFEST)?;
        let layout: Layout = serde_json::from_slice(&bytes)
            .map_err(|error| archive.wrong(format!("index.json: {error}")))?;
        if layout.manifests.is_empty() {
            return Err(archive.wrong("index.json names no image"));
        }
        layout
            .manifests
            .iter()
            .map(|entry| self.read_entry(archive, entry, name))
            .collect()
    }

    fn read_entry(
        &self,
        archive: &Archive,
        entry: &LayoutEntry,
        name: Option<&Reference>,
    ) -> Result<Found, PullError> {
        let label = |key| {
            entry
                .annotations
                .as_ref()
                .and_then(|a| a.get(key))
                .map(String::as_str)
        };
        // A ref.name is often a bare tag; only what looks like a full name is taken for one.
        let own = label(CONTAINERD_NAME).or(label(REF_NAME).filter(|name| name.contains('/')));
        let reference = match (name, own) {
            (Some(name), _) => Some(name.clone()),
            (None, Some(own)) => Some(Reference::parse(own).map_err(PullError::Reference)?),
            (None, None) => None,
        };
        let shown = reference
            .as_ref()
            .map_or_else(|| entry.digest.to_string(), |r| r.to_string());
        let platform = &self.inner.settings.platform;
        let mut documents = Vec::new();
        let mut next = Content {
            digest: entry.digest.clone(),
            size: entry.size,
        };
        let manifest = loop {
            if documents.len() > MAX_INDEX_DEPTH {
                return Err(PullError::manifest(
                    &shown,
                    manifest::ManifestError::IndexDepth,
                ));
            }
            let bytes = archive.blob(&next, MAX_MANIFEST)?;
            let document = manifest::read_document(&bytes, None, platform)
                .map_err(|error| PullError::manifest(&shown, error))?;
            documents.push((next.digest.clone(), bytes));
            match document {
                Document::Manifest(manifest) => break manifest,
                Document::Index(content) => next = content,
            }
        };
        let config = archive.blob(&manifest.config, MAX_CONFIG)?;
        let document = manifest::read_config(&config, manifest.layers.len(), platform)
            .map_err(|error| PullError::manifest(&shown, error))?;
        let chain = manifest::chain_ids(&document.diff_ids);
        let layers = manifest
            .layers
            .iter()
            .zip(document.diff_ids.iter().zip(chain))
            .map(|(blob, (diff_id, chain_id))| {
                let want = Want {
                    diff_id: diff_id.clone(),
                    chain_id,
                    blob: Some((blob.digest.clone(), blob.size)),
                };
                (want, blob_name(&blob.digest))
            })
            .collect();
        let size = documents
            .iter()
            .map(|(_, bytes)| bytes.len() as u64)
            .sum::<u64>()
            + manifest.config.size
            + manifest.layers.iter().map(|layer| layer.size).sum::<u64>();
        documents.push((manifest.config.digest.clone(), config));
        let described = Described {
            tags: reference.iter().filter_map(Reference::repo_tag).collect(),
            digests: reference
                .iter()
                .map(|r| r.repo_digest(&entry.digest))
                .collect(),
            documents,
            config: manifest.config.digest.clone(),
            document,
            size,
            pinned: false,
            name: shown,
        };
        Ok(Found { described, layers })
    }

    fn read_docker(
        &self,
        archive: &Archive,
        name: Option<&Reference>,
    ) -> Result<Vec<Found>, PullError> {
        let bytes = archive.read("manifest.json", MAX_MANIFEST)?;
        let images: Vec<DockerImage> = serde_json::from_slice(&bytes)
            .map_err(|error| archive.wrong(format!("manifest.json: {error}")))?;
        let mut found = Vec::new();
        for image in images {
            let config = archive.read(&image.config, MAX_CONFIG)?;
            let digest = Digest::of(&config);
            let files = image.layers.unwrap_or_default();
            let shown = image.config.chars().take(100).collect::<String>();
            let platform = &self.inner.settings.platform;
            let document = manifest::read_config(&config, files.len(), platform)
                .map_err(|error| PullError::manifest(&shown, error))?;
            let mut names: Vec<Reference> = name.into_iter().cloned().collect();
            if names.is_empty() {
                for tag in image.repo_tags.iter().flatten() {
                    names.push(Reference::parse(tag).map_err(PullError::Reference)?);
                }
            }
            let chain = manifest::chain_ids(&document.diff_ids);
            let mut size = config.len() as u64;
            let mut layers = Vec::new();
            for (file, (diff_id, chain_id)) in
                files.into_iter().zip(document.diff_ids.iter().zip(chain))
            {
                size += archive.files.get(&file).map_or(0, |(_, size)| *size);
                layers.push((
                    Want {
                        diff_id: diff_id.clone(),
                        chain_id,
                        blob: None,
                    },
                    file,
                ));
            }
            let described = Described {
                tags: names.iter().filter_map(Reference::repo_tag).collect(),
                digests: Vec::new(), // such an archive holds no manifest to name
                documents: vec![(digest.clone(), config)],
                config: digest,
                document,
                size,
                pinned: false,
                name: shown,
            };
            found.push(Found { described, layers });
        }
        Ok(found)
    }
}

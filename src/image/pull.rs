//! Pull: resolve, fetch and apply, commit.
//!
//! A pull runs in a task of its own. Whoever asks for the same reference with the same credentials
//! joins it; a client that gives up changes nothing, and its retry finds the pull further on.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt, TryStreamExt,
    future::{BoxFuture, Shared},
    stream,
};
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument;

use super::{
    Image, Images,
    error::{ImageError, PullError},
    hosts,
    manifest::{self, ConfigDocument, Content, Document, MAX_CONFIG, MAX_INDEX_DEPTH, Manifest},
    record::ImageRecord,
    reference::{Digest, ImageId, Reference},
    registry::{Credentials, Session},
};
use crate::snapshot::layers::{Layer, LayerError, Source, SourceError, Want};

/// What to pull.
#[derive(Debug, Clone, Default)]
pub struct PullRequest {
    /// The image, as the user wrote it.
    pub reference: String,
    /// What to show to the registry.
    pub credentials: Option<Credentials>,
    /// Report the image as pinned.
    pub pinned: bool,
}

/// What makes two pulls the same.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    reference: Reference,
    credentials: Option<Credentials>,
    pinned: bool,
}

pub(super) type Joined = Shared<BoxFuture<'static, Result<Arc<Image>, PullError>>>;

/// Everything but the layers of an image that is about to be recorded.
pub(super) struct Described {
    /// For messages.
    pub name: String,
    pub tags: Vec<String>,
    pub digests: Vec<String>,
    /// Index, manifest and configuration.
    pub documents: Vec<(Digest, Bytes)>,
    pub config: Digest,
    pub document: ConfigDocument,
    pub size: u64,
    pub pinned: bool,
}

/// Takes a pull off the list, however it ends.
struct Listed {
    images: Images,
    key: Key,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut pulls = self
            .images
            .inner
            .pulls
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        pulls.remove(&self.key);
    }
}

impl Images {
    /// Pulls an image, or joins a pull of it that is under way.
    ///
    /// # Errors
    /// [`PullError`]; nothing of the image is visible then, and what was applied is reused by the
    /// next pull or collected.
    pub async fn pull(&self, request: PullRequest) -> Result<Arc<Image>, PullError> {
        let reference = Reference::parse(&request.reference).map_err(PullError::Reference)?;
        let credentials = request.credentials.filter(|found| !found.is_empty());
        let key = Key {
            reference,
            credentials,
            pinned: request.pinned,
        };
        let joined = {
            let mut pulls = self
                .inner
                .pulls
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            match pulls.get(&key) {
                Some(running) => running.clone(),
                None => {
                    let listed = Listed {
                        images: self.clone(),
                        key: key.clone(),
                    };
                    let span = tracing::info_span!("image.pull", reference = %key.reference);
                    let task = tokio::spawn(
                        async move { listed.images.pull_now(&listed.key).await }.instrument(span),
                    );
                    let joined = task
                        .map(|ended| ended.unwrap_or(Err(PullError::Interrupted)))
                        .boxed()
                        .shared();
                    pulls.insert(key, joined.clone());
                    joined
                }
            }
        };
        joined.await
    }

    async fn pull_now(&self, key: &Key) -> Result<Arc<Image>, PullError> {
        let reference = &key.reference;
        let name = reference.to_string();
        let settings = &self.inner.settings;
        let endpoints = hosts::endpoints(settings.hosts_dir.as_deref(), reference.registry())
            .map_err(|error| PullError::Hosts {
                registry: reference.registry().to_owned(),
                source: Arc::new(error),
            })?;
        let session = Session::new(
            reference.clone(),
            endpoints,
            key.credentials.clone(),
            settings.policy.clone(),
        )
        .map_err(|error| PullError::fetch(&name, error))?;
        let resolve = self.find_manifest(&session, &name);
        let (mut documents, manifest) = resolve
            .instrument(tracing::debug_span!("image.resolve"))
            .await?;
        let config = self.find_config(&session, &name, &manifest.config).await?;
        let document = manifest::read_config(&config, manifest.layers.len(), &settings.platform)
            .map_err(|error| PullError::manifest(&name, error))?;
        let fetch = self.fetch_layers(&session, &name, &manifest, &document);
        let layers = fetch
            .instrument(tracing::debug_span!("image.fetch"))
            .await?;
        let asked = &documents[0].0;
        let sizes = documents.iter().map(|(_, bytes)| bytes.len() as u64);
        let described = Described {
            tags: reference.repo_tag().into_iter().collect(),
            digests: vec![reference.repo_digest(asked)],
            config: manifest.config.digest.clone(),
            size: sizes.sum::<u64>()
                + manifest.config.size
                + manifest.layers.iter().map(|layer| layer.size).sum::<u64>(),
            documents: {
                documents.push((manifest.config.digest.clone(), config));
                documents
            },
            document,
            pinned: key.pinned,
            name,
        };
        let commit = self.commit(described, layers);
        commit
            .instrument(tracing::debug_span!("image.commit"))
            .await
    }

    /// Follows indexes to the manifest for this machine. The documents come in the order they were
    /// asked for.
    async fn find_manifest(
        &self,
        session: &Session,
        name: &str,
    ) -> Result<(Vec<(Digest, Bytes)>, Manifest), PullError> {
        let mut documents = Vec::new();
        let mut next: Option<Content> = None;
        for _ in 0..=MAX_INDEX_DEPTH {
            let fetched = session
                .manifest(next.as_ref())
                .await
                .map_err(|error| PullError::fetch(name, error))?;
            let platform = &self.inner.settings.platform;
            let document =
                manifest::read_document(&fetched.bytes, fetched.content_type.as_deref(), platform)
                    .map_err(|error| PullError::manifest(name, error))?;
            documents.push((fetched.digest, fetched.bytes));
            match document {
                Document::Manifest(manifest) => return Ok((documents, manifest)),
                Document::Index(content) => next = Some(content),
            }
        }
        Err(PullError::manifest(
            name,
            manifest::ManifestError::IndexDepth,
        ))
    }

    async fn find_config(
        &self,
        session: &Session,
        name: &str,
        want: &Content,
    ) -> Result<Bytes, PullError> {
        if let Ok(bytes) = self.inner.content.read(&want.digest)
            && bytes.len() as u64 == want.size
        {
            return Ok(bytes.into());
        }
        session
            .small_blob(want, MAX_CONFIG)
            .await
            .map_err(|error| PullError::fetch(name, error))
    }

    async fn fetch_layers(
        &self,
        session: &Session,
        name: &str,
        manifest: &Manifest,
        document: &ConfigDocument,
    ) -> Result<Vec<Layer>, PullError> {
        let chain = manifest::chain_ids(&document.diff_ids);
        let wants = manifest
            .layers
            .iter()
            .zip(&document.diff_ids)
            .zip(chain)
            .enumerate()
            .map(|(index, ((blob, diff_id), chain_id))| {
                let want = Want {
                    diff_id: diff_id.clone(),
                    chain_id,
                    blob: Some((blob.digest.clone(), blob.size)),
                };
                (index, blob.clone(), want)
            });
        let parallel = self.inner.settings.parallel_layers.max(1);
        stream::iter(wants.collect::<Vec<_>>())
            .map(|(index, blob, want)| async move {
                self.fetch_layer(session, &blob, &want)
                    .await
                    .map_err(|error| PullError::layer(name, index + 1, error))
            })
            .buffered(parallel)
            .try_collect()
            .await
    }

    /// Fetches one layer; wrong content from one endpoint sends us to the next.
    async fn fetch_layer(
        &self,
        session: &Session,
        blob: &Content,
        want: &Want,
    ) -> Result<Layer, LayerError> {
        loop {
            let stream = session.blob(blob);
            let served = stream.served_by();
            let permits = Arc::clone(&self.inner.permits);
            let acquired = self
                .inner
                .layers
                .acquire(want, async move || {
                    permitted(permits, Box::new(stream)).await
                })
                .await;
            match acquired {
                Err(error) if error.is_wrong_content() => {
                    tracing::warn!(digest = %blob.digest, %error, "an endpoint served wrong bytes");
                    let index = served.load(std::sync::atomic::Ordering::Relaxed);
                    if !session.distrust(index) {
                        return Err(error);
                    }
                }
                other => return other,
            }
        }
    }

    /// Gives the layers their places and records the image.
    pub(super) async fn commit(
        &self,
        described: Described,
        layers: Vec<Layer>,
    ) -> Result<Arc<Image>, PullError> {
        let store = self.inner.layers.clone();
        let name = described.name.clone();
        let pin = tokio::task::spawn_blocking(move || store.commit(&layers))
            .await
            .map_err(|_| PullError::Interrupted)?
            .map_err(|error| PullError::commit(&name, error))?;
        let _change = self.inner.changes.lock().await;
        let id = ImageId::new(described.config.clone()).to_string();
        let mut record = self.inner.records.get(&id).unwrap_or_else(|| ImageRecord {
            id: id.clone(),
            tags: Default::default(),
            digests: Default::default(),
            content: Default::default(),
            layers: described.document.diff_ids.len(),
            size: described.size,
            pinned: false,
        });
        record.tags.extend(described.tags.iter().cloned());
        record.digests.extend(described.digests.iter().cloned());
        record.pinned |= described.pinned;
        let config = &described.config;
        let documents = &described.documents;
        record.content.extend(
            documents
                .iter()
                .map(|d| d.0.clone())
                .filter(|d| d != config),
        );
        let (images, stored) = (self.clone(), documents.clone());
        tokio::task::spawn_blocking(move || {
            let content = stored
                .iter()
                .map(|(digest, bytes)| (digest, bytes.as_ref()));
            images.inner.content.store(content)
        })
        .await
        .map_err(|_| PullError::Interrupted)?
        .map_err(|error| PullError::storage("store manifest and configuration", error))?;
        self.take_tags(&id, &described.tags)
            .await
            .map_err(PullError::from)?;
        self.inner
            .records
            .put(record.clone())
            .await
            .map_err(PullError::from)?;
        let entry = self.entry(&record, described.document, pin);
        let image = Arc::clone(&entry.image);
        self.images().insert(id, entry);
        tracing::info!(image = image.id, reference = described.name, "image ready");
        Ok(image)
    }

    /// A tag belongs to one image: others lose it.
    async fn take_tags(&self, id: &str, tags: &[String]) -> Result<(), ImageError> {
        for mut record in self.inner.records.all() {
            let before = record.tags.len();
            record.tags.retain(|tag| !tags.contains(tag));
            if record.id == id || record.tags.len() == before {
                continue;
            }
            self.inner.records.put(record.clone()).await?;
            if let Some(entry) = self.images().get_mut(&record.id) {
                let mut image = Image::clone(&entry.image);
                image.tags = record.tags.into_iter().collect();
                entry.image = Arc::new(image);
            }
        }
        Ok(())
    }
}

/// A source that holds one of the places for layers under way.
struct Permitted {
    source: Box<dyn Source>,
    _permit: OwnedSemaphorePermit,
}

impl Source for Permitted {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>> {
        self.source.next()
    }
}

pub(super) async fn permitted(
    permits: Arc<tokio::sync::Semaphore>,
    source: Box<dyn Source>,
) -> Result<Box<dyn Source>, SourceError> {
    let permit = permits.acquire_owned().await?;
    Ok(Box::new(Permitted {
        source,
        _permit: permit,
    }))
}

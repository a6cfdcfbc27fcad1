//! What can go wrong with images, and how a caller should react.

use std::{io, path::PathBuf, sync::Arc};

use super::{
    hosts::HostsError, manifest::ManifestError, reference::ReferenceError, registry::FetchError,
};
use crate::{
    error::{Classify, ErrorKind},
    snapshot::layers::LayerError,
    store::StoreError,
};

/// A pull or an import failed. Cheap to clone: all that joined the pull get the same answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// The reference is malformed.
    #[error("image reference")]
    Reference(#[source] ReferenceError),
    /// The configuration of the registry's hosts is broken.
    #[error("registry hosts of {registry}")]
    Hosts {
        /// The registry asked for.
        registry: String,
        /// What is wrong.
        #[source]
        source: Arc<HostsError>,
    },
    /// No endpoint of the registry could be reached, or it failed by itself. The first word is one
    /// that kubelet knows.
    #[error("RegistryUnavailable: pulling {image} failed")]
    Unavailable {
        /// The image.
        image: String,
        /// What each endpoint said.
        #[source]
        source: Arc<FetchError>,
    },
    /// The registry has no such image.
    #[error("{image} was not found")]
    NotFound {
        /// The image.
        image: String,
        /// What each endpoint said.
        #[source]
        source: Arc<FetchError>,
    },
    /// The registry refused the credentials, or wants some.
    #[error("pull access denied for {image}: it does not exist or needs (other) credentials")]
    Denied {
        /// The image.
        image: String,
        /// What each endpoint said.
        #[source]
        source: Arc<FetchError>,
    },
    /// The registry answered with something that is not what was asked for.
    #[error("pulling {image} failed")]
    Fetch {
        /// The image.
        image: String,
        /// What happened.
        #[source]
        source: Arc<FetchError>,
    },
    /// A manifest, index or configuration is not one that can be run here.
    #[error("{image}")]
    Manifest {
        /// The image.
        image: String,
        /// What is wrong.
        #[source]
        source: Arc<ManifestError>,
    },
    /// A layer was refused or could not be stored.
    #[error("layer {number} of {image}")]
    Layer {
        /// The image.
        image: String,
        /// Its place, the base is 1.
        number: usize,
        /// What is wrong.
        #[source]
        source: Arc<LayerError>,
    },
    /// The layers could not be given their places.
    #[error("storing the layers of {image}")]
    Commit {
        /// The image.
        image: String,
        /// What is wrong.
        #[source]
        source: Arc<LayerError>,
    },
    /// An archive to import is malformed.
    #[error("image archive {path}: {what}", path = path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Our own storage failed.
    #[error("{action}")]
    Storage {
        /// What was tried.
        action: String,
        /// The system's answer.
        #[source]
        source: Arc<io::Error>,
    },
    /// The record could not be kept.
    #[error("the image could not be recorded")]
    Record(#[source] Arc<ImageError>),
    /// The task of the pull was ended, because the daemon stops.
    #[error("the pull was interrupted")]
    Interrupted,
}

impl PullError {
    pub(super) fn fetch(image: &str, source: FetchError) -> Self {
        let (image, source) = (image.to_owned(), Arc::new(source));
        if source.is_unavailable() {
            Self::Unavailable { image, source }
        } else if source.is_denied() {
            Self::Denied { image, source }
        } else if source.is_not_found() {
            Self::NotFound { image, source }
        } else {
            Self::Fetch { image, source }
        }
    }

    pub(super) fn manifest(image: &str, source: ManifestError) -> Self {
        Self::Manifest {
            image: image.to_owned(),
            source: Arc::new(source),
        }
    }

    pub(super) fn storage(action: impl Into<String>, source: io::Error) -> Self {
        Self::Storage {
            action: action.into(),
            source: Arc::new(source),
        }
    }

    pub(super) fn commit(image: &str, source: LayerError) -> Self {
        Self::Commit {
            image: image.to_owned(),
            source: Arc::new(source),
        }
    }

    pub(super) fn layer(image: &str, number: usize, source: LayerError) -> Self {
        match source {
            LayerError::Source(source) => match source.downcast::<FetchError>() {
                Ok(source) => Self::fetch(image, *source),
                Err(source) => {
                    let source = Arc::new(LayerError::Source(source));
                    Self::Layer {
                        image: image.to_owned(),
                        number,
                        source,
                    }
                }
            },
            source => Self::Layer {
                image: image.to_owned(),
                number,
                source: Arc::new(source),
            },
        }
    }
}

fn storage_kind(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory => {
            ErrorKind::Exhausted
        }
        _ => ErrorKind::Internal,
    }
}

impl Classify for PullError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Reference(_) | Self::Archive { .. } => ErrorKind::InvalidArgument,
            Self::Unavailable { .. } | Self::Denied { .. } | Self::Fetch { .. } => {
                ErrorKind::PullReason
            }
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Hosts { .. } => ErrorKind::Internal,
            Self::Manifest { source, .. } => source.kind(),
            Self::Layer { source, .. } | Self::Commit { source, .. } => match &**source {
                LayerError::Storage { source, .. } => storage_kind(source),
                other if other.is_exhausted() => ErrorKind::Exhausted,
                other if other.is_ours() => ErrorKind::Internal,
                _ => ErrorKind::InvalidArgument,
            },
            Self::Storage { source, .. } => storage_kind(source),
            Self::Record(source) => source.kind(),
            Self::Interrupted => ErrorKind::Cancelled,
        }
    }
}

impl From<ImageError> for PullError {
    fn from(error: ImageError) -> Self {
        Self::Record(Arc::new(error))
    }
}

/// Looking up or removing an image failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The reference is malformed.
    #[error("image reference")]
    Reference(#[source] ReferenceError),
    /// The beginning of an id fits several images.
    #[error("{0:?} begins the id of more than one image")]
    Ambiguous(String),
    /// The record store failed.
    #[error("image records")]
    Store(#[source] StoreError),
    /// Our own storage failed.
    #[error("{action}")]
    Storage {
        /// What was tried.
        action: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl Classify for ImageError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Reference(_) | Self::Ambiguous(_) => ErrorKind::InvalidArgument,
            Self::Store(source) => source.kind(),
            Self::Storage { source, .. } => storage_kind(source),
        }
    }
}

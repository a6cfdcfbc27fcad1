//! Talking to registries.
//!
//! A [`Session`] serves one pull: the endpoints of the reference's registry in their order, the
//! credentials and the tokens gained with them. Nothing of it is shared with other pulls, so no
//! credential can leak into one.
//!
//! Two transports: `oci-client` carries layers from registries that an operator configured
//! (`hosts.toml`) and that need nothing special; our own HTTP path ([`http`]) does everything else,
//! because a registry that merely an image's name mentions is hostile until proven otherwise, and
//! oci-client limits neither the size of what it reads into memory nor where redirects lead.

pub mod auth;
mod blob;
mod http;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::Mutex;

pub use auth::Credentials;
pub use blob::BlobStream;

use super::{
    hosts::Endpoint,
    manifest::{ACCEPT, Content, MAX_MANIFEST},
    reference::{Digest, Reference},
};

/// Times and counts of the transport.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Time for connecting, unless `hosts.toml` says another.
    pub connect_timeout: Duration,
    /// Time from a request to the head of its answer, and for a whole small body.
    pub answer_timeout: Duration,
    /// A blob that brings fewer than `stall_bytes` in this time has stalled.
    pub stall_window: Duration,
    /// See `stall_window`.
    pub stall_bytes: u64,
    /// Tries of one request on one endpoint.
    pub attempts: u32,
    /// First pause between tries; doubles.
    pub backoff: Duration,
    /// Longest pause, also if the registry asks for more.
    pub max_backoff: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(30),
            stall_window: Duration::from_secs(30),
            stall_bytes: 16 << 10,
            attempts: 5,
            backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(20),
        }
    }
}

/// What one endpoint answered, or why it did not.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// No connection, or it broke.
    #[error("{action}")]
    Transport {
        /// What was tried.
        action: String,
        /// Why it failed.
        #[source]
        source: reqwest::Error,
    },
    /// No answer in time.
    #[error("{action}: no answer within {seconds} s")]
    Timeout {
        /// What was tried.
        action: String,
        /// The limit.
        seconds: u64,
    },
    /// The blob came too slowly.
    #[error("the transfer stalled after {at} bytes")]
    Stalled {
        /// Bytes that had come.
        at: u64,
    },
    /// An error status.
    #[error("HTTP {status}{}{message}", if message.is_empty() { "" } else { ": " })]
    Status {
        /// The status.
        status: u16,
        /// What the body said, shortened.
        message: String,
    },
    /// The body is larger than allowed.
    #[error("the answer has more than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// A redirect that is not followed.
    #[error("redirect to {to:?} refused: {why}")]
    Redirect {
        /// Where to.
        to: String,
        /// Why not.
        why: &'static str,
    },
    /// The registry's demand for a token cannot be met.
    #[error("token: {0}")]
    Token(String),
    /// The content is not what was asked for.
    #[error("the content's digest is {found}, {expected} was asked for")]
    Digest {
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// The content has another size than the descriptor says.
    #[error("the content has {found} bytes, the descriptor says {expected}")]
    Size {
        /// What the descriptor says.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// An answer to a range that is not the range.
    #[error("the answer to a request for a range is unusable: {0}")]
    Range(String),
    /// Files of the TLS configuration cannot be used.
    #[error("TLS file {path}: {what}", path = path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl EndpointError {
    fn is_unavailable(&self) -> bool {
        match self {
            Self::Transport { .. } | Self::Timeout { .. } | Self::Stalled { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 429,
            _ => false,
        }
    }

    fn is_denied(&self) -> bool {
        matches!(
            self,
            Self::Status {
                status: 401 | 403,
                ..
            } | Self::Token(_)
        )
    }

    fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { status: 404, .. })
    }
}

/// What all endpoints said, in the order they were asked.
#[derive(Debug, Default)]
pub struct FetchError {
    tried: Vec<(String, EndpointError)>,
}

impl FetchError {
    /// Every endpoint was unreachable or failed by itself, or the last one was while others only
    /// lacked the image.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        self.tried
            .last()
            .is_some_and(|(_, error)| error.is_unavailable())
    }

    /// The registry wants other credentials.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        !self.is_unavailable() && self.tried.iter().any(|(_, error)| error.is_denied())
    }

    /// No endpoint has it.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.tried
            .last()
            .is_some_and(|(_, error)| error.is_not_found())
    }

    fn add(&mut self, endpoint: &Endpoint, error: EndpointError) {
        self.tried.push((endpoint.base.to_string(), error));
    }
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tried.is_empty() {
            return f.write_str("no endpoint is configured that may be asked");
        }
        for (index, (endpoint, error)) in self.tried.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{endpoint}: {}", crate::error::Chain(error))?;
        }
        Ok(())
    }
}

impl std::error::Error for FetchError {}

/// A verified document with what the registry called it.
pub struct Fetched {
    /// The bytes.
    pub bytes: Bytes,
    /// Their digest, computed here.
    pub digest: Digest,
    /// The Content-Type.
    pub content_type: Option<String>,
}

/// The registry of one pull.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    reference: Reference,
    hosts: Vec<Host>,
    policy: Policy,
}

/// An endpoint with what this pull learned about it.
struct Host {
    endpoint: Endpoint,
    client: reqwest::Client,
    auth: auth::Auth,
    oci: Mutex<Option<oci_client::Client>>,
    /// It served wrong content: it is asked for nothing more in this pull.
    distrusted: std::sync::atomic::AtomicBool,
}

impl Session {
    /// Prepares to fetch `reference` from `endpoints`.
    ///
    /// # Errors
    /// [`FetchError`] if an endpoint's TLS files cannot be used.
    pub fn new(
        reference: Reference,
        endpoints: Vec<Endpoint>,
        credentials: Option<Credentials>,
        policy: Policy,
    ) -> Result<Self, FetchError> {
        let mut hosts = Vec::new();
        for endpoint in endpoints {
            let client = match http::client(&endpoint, &policy) {
                Ok(client) => client,
                Err(error) => {
                    let mut failed = FetchError::default();
                    failed.add(&endpoint, error);
                    return Err(failed);
                }
            };
            let auth = auth::Auth::new(&endpoint, reference.repository(), credentials.clone());
            hosts.push(Host {
                endpoint,
                client,
                auth,
                oci: Mutex::new(None),
                distrusted: false.into(),
            });
        }
        Ok(Self {
            inner: Arc::new(Inner {
                reference,
                hosts,
                policy,
            }),
        })
    }

    fn usable(&self, resolve: bool) -> impl Iterator<Item = &Host> {
        self.inner.hosts.iter().filter(move |host| {
            (if resolve {
                host.endpoint.resolve
            } else {
                host.endpoint.pull
            }) && !host.distrusted.load(std::sync::atomic::Ordering::Relaxed)
        })
    }

    /// Fetches a manifest or index: by digest where one is given (and then verified), else the
    /// tag of the reference from endpoints that may resolve tags.
    ///
    /// # Errors
    /// [`FetchError`] with what every endpoint said.
    pub async fn manifest(&self, want: Option<&Content>) -> Result<Fetched, FetchError> {
        let digest = want
            .map(|want| &want.digest)
            .or(self.inner.reference.digest());
        let selector = digest.map_or(self.inner.reference.manifest_selector(), |digest| {
            digest.as_str()
        });
        let path = format!("{}/manifests/{selector}", self.inner.reference.repository());
        let size = want.map(|want| want.size);
        self.document(
            digest.is_none(),
            &path,
            Some(ACCEPT),
            MAX_MANIFEST,
            digest,
            size,
        )
        .await
    }

    /// Fetches a small blob, verified.
    ///
    /// # Errors
    /// [`FetchError`] with what every endpoint said.
    pub async fn small_blob(&self, want: &Content, limit: u64) -> Result<Bytes, FetchError> {
        let path = format!(
            "{}/blobs/{}",
            self.inner.reference.repository(),
            want.digest
        );
        let digest = Some(&want.digest);
        self.document(false, &path, None, limit, digest, Some(want.size))
            .await
            .map(|fetched| fetched.bytes)
    }

    async fn document(
        &self,
        resolve: bool,
        path: &str,
        accept: Option<&'static str>,
        limit: u64,
        digest: Option<&Digest>,
        size: Option<u64>,
    ) -> Result<Fetched, FetchError> {
        let mut failed = FetchError::default();
        for host in self.usable(resolve) {
            let fetched = http::small(host, &self.inner, path, accept, limit).await;
            match fetched.and_then(|fetched| verify(fetched, digest, size)) {
                Ok(fetched) => return Ok(fetched),
                Err(error) => {
                    if matches!(
                        error,
                        EndpointError::Digest { .. } | EndpointError::Size { .. }
                    ) {
                        host.distrusted
                            .store(true, std::sync::atomic::Ordering::Relaxed);
                    }
                    tracing::debug!(endpoint = %host.endpoint.base, %error, "endpoint failed");
                    failed.add(&host.endpoint, error);
                }
            }
        }
        Err(failed)
    }

    /// A stream of a layer's bytes, resumed where it breaks. Unverified: the layer store hashes.
    #[must_use]
    pub fn blob(&self, want: &Content) -> BlobStream {
        BlobStream::new(self.clone(), want.clone())
    }

    /// The endpoint that served a blob gave wrong content: ask it for nothing more. Returns
    /// whether another one is left.
    #[must_use]
    pub fn distrust(&self, index: usize) -> bool {
        if let Some(host) = self.inner.hosts.get(index) {
            host.distrusted
                .store(true, std::sync::atomic::Ordering::Relaxed);
        }
        self.usable(false).next().is_some()
    }
}

fn verify(
    fetched: Fetched,
    digest: Option<&Digest>,
    size: Option<u64>,
) -> Result<Fetched, EndpointError> {
    let found = fetched.bytes.len() as u64;
    if let Some(expected) = size.filter(|size| *size != found) {
        return Err(EndpointError::Size { expected, found });
    }
    let Some(expected) = digest else {
        return Ok(fetched);
    };
    let computed = if expected.is_sha512() {
        use sha2::Digest as _;
        Digest::from_sha512(&sha2::Sha512::digest(&fetched.bytes))
    } else {
        fetched.digest.clone()
    };
    if computed != *expected {
        return Err(EndpointError::Digest {
            expected: expected.clone(),
            found: computed,
        });
    }
    Ok(Fetched {
        digest: computed,
        ..fetched
    })
}

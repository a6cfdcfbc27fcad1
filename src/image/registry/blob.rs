//! A layer's bytes: a stream that survives broken connections and slow servers.
//!
//! It goes on where it broke, by a range request, on the same endpoint and then on the next ones;
//! the layer store's hash over everything decides whether the pieces fit. A window that brings
//! fewer bytes than it should counts as a break.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, future::BoxFuture};
use http::header;
use oci_client::{
    client::{BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    manifest::OciDescriptor,
};
use reqwest::{Response, StatusCode};
use tokio::time::Instant;

use super::{
    EndpointError, FetchError, Host, Session,
    auth::with_timeout,
    http::{Request, pause, transport},
};
use crate::{
    image::manifest::Content,
    snapshot::layers::{Source, SourceError},
};

type Parts = Pin<Box<dyn Stream<Item = Result<Bytes, EndpointError>> + Send>>;

/// The stream; see the module.
pub struct BlobStream {
    session: Session,
    want: Content,
    /// Bytes handed out.
    at: u64,
    /// The endpoint in use, an index into the session's.
    host: usize,
    served: Arc<AtomicUsize>,
    attempt: u32,
    /// oci-client failed here: our own path does the rest.
    own_path: bool,
    parts: Option<Parts>,
    /// Bytes of an answer that were handed out already, because the server ignored the range.
    skip: u64,
    window: (Instant, u64),
    failed: FetchError,
}

impl BlobStream {
    pub(super) fn new(session: Session, want: Content) -> Self {
        let mut stream = Self {
            session,
            want,
            at: 0,
            host: 0,
            served: Arc::default(),
            attempt: 0,
            own_path: false,
            parts: None,
            skip: 0,
            window: (Instant::now(), 0),
            failed: FetchError::default(),
        };
        stream.skip_unusable();
        stream
    }

    /// Tells, while the stream is read and afterwards, which endpoint served last.
    #[must_use]
    pub fn served_by(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.served)
    }

    async fn next_part(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            if self.host >= self.session.inner.hosts.len() {
                return Err(std::mem::take(&mut self.failed));
            }
            let error = match self.step().await {
                Ok(Some(part)) => {
                    self.at += part.len() as u64;
                    return Ok(Some(part));
                }
                Ok(None) if self.at < self.want.size => EndpointError::Size {
                    expected: self.want.size,
                    found: self.at,
                },
                Ok(None) => return Ok(None),
                Err(error) => error,
            };
            self.parts = None;
            self.recover(error).await;
        }
    }

    /// Waits for another try on the same endpoint or goes on to the next one.
    async fn recover(&mut self, error: EndpointError) {
        let inner = Arc::clone(&self.session.inner);
        let ended_early = matches!(error, EndpointError::Size { .. });
        let wait = if ended_early && self.attempt + 1 < inner.policy.attempts {
            Some(inner.policy.backoff)
        } else {
            pause(&error, self.attempt, &inner.policy)
        };
        if let Some(time) = wait {
            tracing::debug!(at = self.at, %error, ?time, "blob broke, again after");
            tokio::time::sleep(time).await;
            self.attempt += 1;
            return;
        }
        if let Some(host) = inner.hosts.get(self.host) {
            self.failed.add(&host.endpoint, error);
        }
        self.host += 1;
        (self.attempt, self.own_path) = (0, false);
        self.skip_unusable();
    }

    /// Goes to the first endpoint from here on that may be asked.
    fn skip_unusable(&mut self) {
        let hosts = &self.session.inner.hosts;
        let usable = |index: &usize| {
            let host = &hosts[*index];
            host.endpoint.pull && !host.distrusted.load(Ordering::Relaxed)
        };
        self.host = (self.host..hosts.len()).find(usable).unwrap_or(hosts.len());
    }

    async fn step(&mut self) -> Result<Option<Bytes>, EndpointError> {
        if self.parts.is_none() {
            self.parts = Some(self.open().await?);
            self.window = (Instant::now(), 0);
        }
        let policy = self.session.inner.policy.clone();
        loop {
            let Some(parts) = &mut self.parts else {
                return Ok(None);
            };
            let deadline = self.window.0 + policy.stall_window;
            let next = tokio::time::timeout_at(deadline, parts.next()).await;
            let part = match next {
                Err(_) if self.window.1 >= policy.stall_bytes => {
                    self.window = (Instant::now(), 0);
                    continue;
                }
                Err(_) => return Err(EndpointError::Stalled { at: self.at }),
                Ok(None) => return Ok(None),
                Ok(Some(part)) => part?,
            };
            self.window.1 += part.len() as u64;
            if self.window.1 >= policy.stall_bytes {
                self.window = (Instant::now(), 0);
                // Progress earns new tries.
                self.attempt = 0;
            }
            let skip = usize::try_from(self.skip)
                .unwrap_or(usize::MAX)
                .min(part.len());
            self.skip -= skip as u64;
            let part = part.slice(skip..);
            if !part.is_empty() {
                return Ok(Some(part));
            }
        }
    }

    async fn open(&mut self) -> Result<Parts, EndpointError> {
        let inner = Arc::clone(&self.session.inner);
        let index = self.host;
        self.served.store(index, Ordering::Relaxed);
        let host = &inner.hosts[index];
        self.skip = 0;
        if !self.own_path && fits_oci_client(host) {
            match self.open_with_oci_client(host).await {
                Ok(parts) => return Ok(parts),
                Err(error) => {
                    tracing::debug!(%error, "oci-client failed, own path takes over");
                    self.own_path = true;
                }
            }
        }
        let path = format!(
            "{}/blobs/{}",
            inner.reference.repository(),
            self.want.digest
        );
        let request = Request {
            path: &path,
            accept: None,
            offset: self.at,
        };
        let response = request.send(host, &inner).await?;
        self.skip = self.check_range(&response)?;
        let parts = response.bytes_stream();
        Ok(Box::pin(
            parts.map(|part| part.map_err(transport("read the blob"))),
        ))
    }

    /// How many bytes of the answer to leave out.
    fn check_range(&self, response: &Response) -> Result<u64, EndpointError> {
        if response.status() == StatusCode::OK {
            let length = response.content_length();
            if let Some(found) = length.filter(|length| *length != self.want.size) {
                return Err(EndpointError::Size {
                    expected: self.want.size,
                    found,
                });
            }
            return Ok(self.at);
        }
        let text = response
            .headers()
            .get(header::CONTENT_RANGE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let wanted = format!("bytes {}-{}/", self.at, self.want.size - 1);
        if self.at > 0 && text.starts_with(&wanted) {
            Ok(0)
        } else {
            let shown: String = text.chars().take(80).collect();
            Err(EndpointError::Range(format!(
                "{wanted}... was asked for, {shown:?} came"
            )))
        }
    }

    async fn open_with_oci_client(&mut self, host: &Host) -> Result<Parts, EndpointError> {
        let inner = Arc::clone(&self.session.inner);
        let client = oci_client(host, &inner.policy).await?;
        let registry = authority(host);
        let image = oci_client::Reference::with_digest(
            registry,
            inner.reference.repository().to_owned(),
            self.want.digest.to_string(),
        );
        let layer = OciDescriptor {
            digest: self.want.digest.to_string(),
            size: i64::try_from(self.want.size).unwrap_or(i64::MAX),
            ..OciDescriptor::default()
        };
        let limit = inner.policy.answer_timeout;
        let failed = |error: oci_client::errors::OciDistributionError| {
            EndpointError::Range(error.to_string().chars().take(200).collect())
        };
        let stream = if self.at == 0 {
            with_timeout(limit, "GET blob", client.pull_blob_stream(&image, &layer))
                .await?
                .map_err(failed)?
        } else {
            let partial = client.pull_blob_stream_partial(&image, &layer, self.at, None);
            match with_timeout(limit, "GET blob", partial)
                .await?
                .map_err(failed)?
            {
                BlobResponse::Full(stream) => {
                    self.skip = self.at;
                    stream
                }
                BlobResponse::Partial(stream) => stream,
            }
        };
        let parts = stream.stream.map(|part| {
            part.map_err(|error| {
                EndpointError::Range(error.to_string().chars().take(200).collect())
            })
        });
        Ok(Box::pin(parts))
    }
}

impl Source for BlobStream {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, SourceError>> {
        Box::pin(async move {
            self.next_part()
                .await
                .map_err(|error| Box::new(error) as SourceError)
        })
    }
}

/// Only where an operator vouches for the registry and nothing special is asked for: see the
/// module above.
fn fits_oci_client(host: &Host) -> bool {
    let endpoint = &host.endpoint;
    endpoint.configured
        && !endpoint.own_path
        && endpoint.headers.is_empty()
        && endpoint.tls.client.is_empty()
}

fn authority(host: &Host) -> String {
    let name = host.endpoint.base.host_str().unwrap_or_default();
    match host.endpoint.base.port() {
        Some(port) => format!("{name}:{port}"),
        None => name.to_owned(),
    }
}

/// One oci-client per endpoint and pull: it keeps the first credentials it sees.
async fn oci_client(
    host: &Host,
    policy: &super::Policy,
) -> Result<oci_client::Client, EndpointError> {
    let mut slot = host.oci.lock().await;
    if let Some(client) = &*slot {
        return Ok(client.clone());
    }
    let mut roots = Vec::new();
    for path in &host.endpoint.tls.ca {
        let data = std::fs::read(path).map_err(|error| EndpointError::Tls {
            path: path.clone(),
            what: error.to_string(),
        })?;
        roots.push(Certificate {
            encoding: CertificateEncoding::Pem,
            data,
        });
    }
    let plain = host.endpoint.base.scheme() == "http";
    let client = oci_client::Client::try_from(ClientConfig {
        protocol: if plain {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        },
        accept_invalid_certificates: host.endpoint.tls.skip_verify,
        extra_root_certificates: roots,
        read_timeout: Some(policy.stall_window),
        connect_timeout: Some(host.endpoint.dial_timeout.unwrap_or(policy.connect_timeout)),
        ..ClientConfig::default()
    })
    .map_err(|error| EndpointError::Token(error.to_string()))?;
    if let Some(auth) = host.auth.for_oci_client().await {
        client.store_auth_if_needed(&authority(host), &auth).await;
    }
    *slot = Some(client.clone());
    Ok(client)
}

//! Our own HTTP path: one request with redirects, authorization, retries and limits.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use oci_client::errors::OciEnvelope;
use reqwest::{Client, Response, StatusCode, Url, redirect};

use super::{EndpointError, Fetched, Host, Inner, Policy, auth::with_timeout};
use crate::image::{
    hosts::{Endpoint, is_loopback},
    reference::Digest,
};

const MAX_HOPS: usize = 5;
const MAX_ERROR_BODY: u64 = 64 << 10;
const MAX_TLS_FILE: u64 = 1 << 20;
const USER_AGENT: &str = concat!("crisp/", env!("CARGO_PKG_VERSION"));

/// A client for one endpoint; it follows no redirects by itself.
pub fn client(endpoint: &Endpoint, policy: &Policy) -> Result<Client, EndpointError> {
    let mut builder = Client::builder()
        .user_agent(USER_AGENT)
        .redirect(redirect::Policy::none())
        .connect_timeout(endpoint.dial_timeout.unwrap_or(policy.connect_timeout))
        .pool_idle_timeout(Duration::from_secs(10))
        .tls_danger_accept_invalid_certs(endpoint.tls.skip_verify);
    if is_loopback(&endpoint.base) {
        builder = builder.no_proxy();
    }
    let mut roots = Vec::new();
    for path in &endpoint.tls.ca {
        let pem = read_tls(path)?;
        let found = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| tls(path, &e))?;
        roots.extend(found);
    }
    builder = builder.tls_certs_merge(roots);
    for (certificate, key) in &endpoint.tls.client {
        let mut pem = read_tls(certificate)?;
        if let Some(key) = key {
            pem.push(b'\n');
            pem.extend(read_tls(key)?);
        }
        let identity = reqwest::Identity::from_pem(&pem).map_err(|e| tls(certificate, &e))?;
        builder = builder.identity(identity);
    }
    builder
        .build()
        .map_err(transport("prepare the HTTP client"))
}

fn tls(path: &Path, error: &dyn std::fmt::Display) -> EndpointError {
    EndpointError::Tls {
        path: path.to_owned(),
        what: error.to_string(),
    }
}

fn read_tls(path: &Path) -> Result<Vec<u8>, EndpointError> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() && meta.len() <= MAX_TLS_FILE => {
            fs::read(path).map_err(|error| tls(path, &error))
        }
        Ok(_) => Err(tls(path, &"not a file of at most 1 MiB")),
        Err(error) => Err(tls(path, &error)),
    }
}

pub fn transport(action: &str) -> impl FnOnce(reqwest::Error) -> EndpointError {
    let action = action.to_owned();
    move |source| EndpointError::Transport {
        action,
        source: source.without_url(),
    }
}

/// Whether a request that began at `from` may go on to `to`.
pub fn check_target(from: &Url, to: &Url) -> Result<(), &'static str> {
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") => return Err("it leads from https to http"),
        _ => return Err("it is neither http nor https"),
    }
    if !to.username().is_empty() || to.password().is_some() {
        return Err("it holds a user");
    }
    let host = to.host_str().unwrap_or_default();
    let address = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>();
    let link_local = match address {
        Ok(IpAddr::V4(address)) => is_link_local(address),
        Ok(IpAddr::V6(address)) => {
            (address.segments()[0] & 0xffc0) == 0xfe80
                || address.to_ipv4_mapped().is_some_and(is_link_local)
        }
        Err(_) => false,
    };
    if link_local {
        return Err("it leads to a link-local address");
    }
    if is_loopback(to) && !is_loopback(from) {
        return Err("it leads from the network to this machine itself");
    }
    Ok(())
}

fn is_link_local(address: Ipv4Addr) -> bool {
    address.is_link_local() || address.is_unspecified()
}

/// Reads a body of at most `limit` bytes.
pub async fn read_capped(mut response: Response, limit: u64) -> Result<Bytes, EndpointError> {
    let too_large = EndpointError::TooLarge { limit };
    if response
        .content_length()
        .is_some_and(|length| length > limit)
    {
        return Err(too_large);
    }
    let mut body = BytesMut::new();
    while let Some(part) = response
        .chunk()
        .await
        .map_err(transport("read the answer"))?
    {
        if (body.len() + part.len()) as u64 > limit {
            return Err(too_large);
        }
        body.extend_from_slice(&part);
    }
    Ok(body.freeze())
}

/// One request of the pull.
pub struct Request<'a> {
    /// Path below the endpoint's base.
    pub path: &'a str,
    /// The Accept header.
    pub accept: Option<&'static str>,
    /// First byte wanted, if not the first of all.
    pub offset: u64,
}

impl Request<'_> {
    fn url(&self, host: &Host, inner: &Inner) -> Result<Url, EndpointError> {
        let text = format!(
            "{}/{}",
            host.endpoint.base.as_str().trim_end_matches('/'),
            self.path
        );
        let mut url = Url::parse(&text).map_err(|_| EndpointError::Redirect {
            to: text.chars().take(200).collect(),
            why: "it is not a URL",
        })?;
        if host.endpoint.mirror {
            url.query_pairs_mut()
                .append_pair("ns", inner.reference.registry());
        }
        Ok(url)
    }

    /// Sends it once: redirects are followed, one 401 is answered. The result has status 200 or
    /// 206.
    pub async fn send(&self, host: &Host, inner: &Inner) -> Result<Response, EndpointError> {
        let mut ticket = host.auth.ticket().await;
        let mut renewed = false;
        loop {
            let response = self.follow(host, inner, ticket.header.as_ref()).await?;
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::UNAUTHORIZED if !renewed => {
                    renewed = true;
                    let demands = demands(response.headers());
                    let policy = &inner.policy;
                    if host
                        .auth
                        .renew(host, policy, &demands, ticket.generation)
                        .await?
                    {
                        ticket = host.auth.ticket().await;
                        continue;
                    }
                    return Err(status_error(response, &inner.policy).await);
                }
                _ => return Err(status_error(response, &inner.policy).await),
            }
        }
    }

    async fn follow(
        &self,
        host: &Host,
        inner: &Inner,
        authorization: Option<&http::HeaderValue>,
    ) -> Result<Response, EndpointError> {
        let start = self.url(host, inner)?;
        let mut url = start.clone();
        for _ in 0..=MAX_HOPS {
            let mut request = host
                .client
                .get(url.clone())
                .header("accept-encoding", "identity");
            if let Some(accept) = self.accept {
                request = request.header(header::ACCEPT, accept);
            }
            if self.offset > 0 {
                request = request.header(header::RANGE, format!("bytes={}-", self.offset));
            }
            // Credentials and configured headers go to the endpoint alone.
            if url.origin() == start.origin() {
                for (name, value) in &host.endpoint.headers {
                    request = request.header(name, value);
                }
                if let Some(value) = authorization {
                    request = request.header(header::AUTHORIZATION, value);
                }
            }
            let action = format!("GET {}", url.path());
            let response = with_timeout(inner.policy.answer_timeout, &action, request.send())
                .await?
                .map_err(transport(&action))?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let to = response
                .headers()
                .get(header::LOCATION)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned();
            let shown = || to.chars().take(200).collect::<String>();
            let next = url.join(&to).map_err(|_| EndpointError::Redirect {
                to: shown(),
                why: "it is not a URL",
            })?;
            check_target(&url, &next)
                .map_err(|why| EndpointError::Redirect { to: shown(), why })?;
            url = next;
        }
        Err(EndpointError::Redirect {
            to: url.as_str().chars().take(200).collect(),
            why: "there were five before it",
        })
    }
}

fn demands(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(header::WWW_AUTHENTICATE)
        .iter()
        .take(8)
        .filter_map(|value| value.to_str().ok().map(str::to_owned))
        .collect()
}

/// An error with the first message of the body, which registries send as JSON.
async fn status_error(response: Response, policy: &Policy) -> EndpointError {
    let status = response.status().as_u16();
    let retry_after = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
    let wait = Duration::from_secs(5).min(policy.answer_timeout);
    let body = tokio::time::timeout(wait, read_capped(response, MAX_ERROR_BODY)).await;
    let mut message = match body {
        Ok(Ok(body)) => match serde_json::from_slice::<OciEnvelope>(&body) {
            Ok(envelope) => envelope
                .errors
                .first()
                .map(|e| e.message.clone())
                .unwrap_or_default(),
            Err(_) => String::new(),
        },
        _ => String::new(),
    };
    message = message
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect();
    if let Some(seconds) = retry_after {
        message = format!("{message} (retry after {seconds} s)")
            .trim()
            .to_owned();
    }
    EndpointError::Status { status, message }
}

/// How long to wait before trying again, if that makes sense at all.
pub fn pause(error: &EndpointError, attempt: u32, policy: &Policy) -> Option<Duration> {
    let again = match error {
        EndpointError::Transport { source, .. } => !source.is_builder(),
        EndpointError::Timeout { .. } | EndpointError::Stalled { .. } => true,
        EndpointError::Range(_) => true,
        EndpointError::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
        _ => false,
    };
    // A refused connection will be refused again: one more try, then the next endpoint.
    let refused = matches!(error, EndpointError::Transport { source, .. } if source.is_connect());
    if !again || attempt + 1 >= policy.attempts || (refused && attempt > 0) {
        return None;
    }
    let asked = match error {
        EndpointError::Status { message, .. } => message
            .rsplit_once("(retry after ")
            .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
            .map(Duration::from_secs),
        _ => None,
    };
    let own = policy.backoff * 2_u32.saturating_pow(attempt.min(10));
    let jitter = rand::random_range(0.75..1.25);
    Some(asked.unwrap_or(own.mul_f64(jitter)).min(policy.max_backoff))
}

/// Fetches a small document with retries.
pub async fn small(
    host: &Host,
    inner: &Inner,
    path: &str,
    accept: Option<&'static str>,
    limit: u64,
) -> Result<Fetched, EndpointError> {
    let request = Request {
        path,
        accept,
        offset: 0,
    };
    let mut attempt = 0;
    loop {
        let once = async {
            let response = request.send(host, inner).await?;
            let content_type = response
                .headers()
                .get(header::CONTENT_TYPE)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned);
            let read = read_capped(response, limit);
            let bytes =
                with_timeout(inner.policy.answer_timeout, "read the answer", read).await??;
            let digest = Digest::of(&bytes);
            Ok(Fetched {
                bytes,
                digest,
                content_type,
            })
        };
        match once.await {
            Ok(fetched) => return Ok(fetched),
            Err(error) => match pause(&error, attempt, &inner.policy) {
                Some(time) => {
                    tracing::debug!(endpoint = %host.endpoint.base, %error, ?time, "again after");
                    tokio::time::sleep(time).await;
                    attempt += 1;
                }
                None => return Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirect_targets() {
        let url = |text: &str| Url::parse(text).expect("a URL");
        for (from, to, fine) in [
            ("https://a/x", "https://b/y", true),
            ("http://127.0.0.1:5/x", "http://127.0.0.1:6/y", true),
            ("http://a/x", "https://b/y", true),
            ("https://a/x", "http://b/y", false),
            ("https://a/x", "file:///etc/passwd", false),
            ("https://a/x", "unix:///run/x", false),
            ("https://a/x", "https://169.254.169.254/latest", false),
            ("http://a/x", "http://[fe80::1]/y", false),
            ("http://a/x", "http://[::ffff:169.254.169.254]/y", false),
            ("http://a/x", "http://0.0.0.0/y", false),
            ("http://a/x", "http://localhost:9/y", false),
            ("https://a/x", "https://u:p@b/y", false),
        ] {
            assert_eq!(
                check_target(&url(from), &url(to)).is_ok(),
                fine,
                "{from} -> {to}"
            );
        }
    }

    #[test]
    fn pauses_are_bounded() {
        let policy = Policy::default();
        let status = |status, message: &str| EndpointError::Status {
            status,
            message: message.into(),
        };
        let huge = status(429, "slow down (retry after 1000000000 s)");
        assert_eq!(pause(&huge, 0, &policy), Some(policy.max_backoff));
        let asked = status(503, "(retry after 2 s)");
        assert_eq!(pause(&asked, 0, &policy), Some(Duration::from_secs(2)));
        assert!(pause(&status(500, ""), 40, &policy).is_none());
        assert!(pause(&status(404, ""), 0, &policy).is_none());
        assert!(pause(&status(401, ""), 0, &policy).is_none());
    }
}

//! The HTTP server in front of streams: a connection, one request, and from then on bytes.
//!
//! Nobody who has not shown a token gets much: few connections at a time, a few seconds for the head
//! of a request, no body.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn, upgrade::Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::AbortHandle,
    time::timeout,
};
use tracing::Instrument;

use super::{
    Endpoint, Terms, attach, exec,
    grant::{Grant, StdioSpec},
    handshake::{self, ACCEPTED, Agreed, Refusal, Wire},
    mux::{self, Limits, Protocol, Streams},
    peer::Peer,
    portforward, remotecommand,
    spdy::Spdy,
    tls::Tls,
    websocket::{Channels, Ports, Tunnel},
};
use crate::node::Node;

/// Connections that have not shown a token, at one time. For a further one the oldest has to go, so
/// that whoever has something to say is not held up by those who have not.
const UNKNOWN: usize = 128;
/// How long a connection is left alone before it may have to go: on a busy machine even who speaks at
/// once is not heard at once.
const CHANCE: Duration = Duration::from_secs(1);
/// How often it is looked whether there is room again.
const ROOM_CHECK: Duration = Duration::from_millis(5);
/// Connections that have.
const SESSIONS: usize = 4096;
/// How long a TLS handshake may take, and the head of a request.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection may take until it shows a token.
const TOKEN_LIMIT: Duration = Duration::from_secs(30);
/// Most bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;
/// How long accepting rests after an error: descriptors may have run out.
const REST: Duration = Duration::from_millis(100);

/// What one command's or container's streams may have waiting.
const COMMAND_QUEUE: usize = 256 * 1024;
/// What one port's stream may: it holds up the others of its connection.
const PORT_QUEUE: usize = 1024 * 1024;
/// What all streams of a connection may.
const CONNECTION_QUEUE: usize = 8 * 1024 * 1024;
/// Streams of one connection at a time.
const STREAMS: usize = 512;

/// What connections share.
pub(super) struct Server {
    pub(super) node: Arc<Node>,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) terms: Terms,
    pub(super) tls: Option<Tls>,
    pub(super) sessions: Arc<Semaphore>,
}

/// What a request is answered with.
struct Answer {
    status: StatusCode,
    text: String,
    /// Named to a client that asked for none of them.
    served: &'static [&'static str],
}

/// Connections that have not shown a token yet, the oldest first.
#[derive(Default)]
struct Unknown(VecDeque<(Instant, AbortHandle)>);

impl Unknown {
    fn add(&mut self, connection: AbortHandle) {
        self.0.push_back((Instant::now(), connection));
    }

    /// Waits until there is room for one more, or the oldest has had its chance and goes.
    async fn make_room(&mut self) {
        while self.0.len() >= UNKNOWN {
            self.0.retain(|(_, connection)| !connection.is_finished());
            if self.0.len() < UNKNOWN {
                return;
            }
            let oldest = self.0.front().map(|(since, _)| since.elapsed());
            if oldest >= Some(CHANCE) {
                if let Some((_, oldest)) = self.0.pop_front() {
                    oldest.abort();
                }
                return;
            }
            tokio::time::sleep(ROOM_CHECK).await;
        }
    }
}

impl Server {
    pub(super) fn new(
        node: Arc<Node>,
        endpoint: Arc<Endpoint>,
        terms: Terms,
        tls: Option<Tls>,
    ) -> Self {
        Self {
            node,
            endpoint,
            terms,
            tls,
            sessions: Arc::new(Semaphore::new(SESSIONS)),
        }
    }

    /// Serves for ever.
    pub(super) async fn accept(self: Arc<Self>, listener: TcpListener) {
        let mut unknown = Unknown::default();
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    unknown.make_room().await;
                    let welcome = timeout(TOKEN_LIMIT, Arc::clone(&self).welcome(stream));
                    unknown.add(tokio::spawn(welcome).abort_handle());
                }
                Err(error) => {
                    tracing::warn!(%error, "streaming server cannot accept");
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }

    async fn welcome(self: Arc<Self>, stream: TcpStream) {
        let Ok(peer) = Peer::of(&stream) else { return };
        let Some(tls) = &self.tls else {
            return self.http(stream, peer).await;
        };
        match timeout(HEAD_LIMIT, tls.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => self.http(stream, peer).await,
            Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => tracing::debug!("TLS handshake took too long"),
        }
    }

    async fn http<T>(self: Arc<Self>, stream: T, peer: Peer)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(move |request| {
            let response = self.respond(request, peer.clone());
            async { Ok::<_, Infallible>(response) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "stream request failed");
        }
    }

    fn respond(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
        peer: Peer,
    ) -> Response<Full<Bytes>> {
        let (grant, agreed, permit) = match self.admit(&request) {
            Ok(admitted) => admitted,
            Err(answer) => return answer.response(),
        };
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.extend(agreed.headers.iter().cloned());
        let upgrade = hyper::upgrade::on(&mut request);
        let server = Arc::clone(self);
        tokio::spawn(async move {
            match upgrade.await {
                Ok(connection) => server.session(connection, peer, grant, agreed).await,
                Err(error) => tracing::debug!(%error, "stream connection was not upgraded"),
            }
            drop(permit);
        });
        response
    }

    /// What a request may have, if anything.
    fn admit(
        &self,
        request: &Request<Incoming>,
    ) -> Result<(Grant, Agreed, OwnedSemaphorePermit), Answer> {
        let unknown = || Answer::plain(StatusCode::NOT_FOUND, "no such stream");
        let now = Instant::now();
        let mut parts = request.uri().path().splitn(4, '/');
        let (Some(""), Some(verb), Some(token), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(unknown());
        };
        let grant = self
            .endpoint
            .grants
            .look(verb, token, now)
            .ok_or_else(unknown)?;
        if !matches!(*request.method(), Method::GET | Method::POST) {
            return Err(Answer::plain(StatusCode::METHOD_NOT_ALLOWED, "GET or POST"));
        }
        if request.version() != Version::HTTP_11 {
            return Err(Answer::plain(StatusCode::BAD_REQUEST, "HTTP/1.1 is needed"));
        }
        let ports = matches!(grant, Grant::PortForward { .. });
        let agreed = handshake::agree(request.headers(), ports)?;
        let permit = Arc::clone(&self.sessions).try_acquire_owned();
        let permit = permit.map_err(|_| {
            Answer::plain(StatusCode::SERVICE_UNAVAILABLE, "too many streams are open")
        })?;
        // The only one to take it gets the stream.
        if !self.endpoint.grants.take(token, now) {
            return Err(unknown());
        }
        Ok((grant, agreed, permit))
    }

    async fn session(&self, connection: Upgraded, peer: Peer, grant: Grant, agreed: Agreed) {
        let protocol = protocol(&grant, &agreed);
        let ports = matches!(grant, Grant::PortForward { .. });
        let limits = Limits {
            per_stream: if ports { PORT_QUEUE } else { COMMAND_QUEUE },
            together: CONNECTION_QUEUE,
            streams: STREAMS,
            idle: self.terms.idle_timeout,
        };
        let (connection, streams) = mux::connect(TokioIo::new(connection), peer, protocol, limits);
        let connection = connection.run();
        tokio::pin!(connection);
        let is_over = tokio::select! {
            _ = &mut connection => true,
            () = self.serve(streams, grant, &agreed) => false,
        };
        if !is_over {
            connection.await;
        }
    }

    async fn serve(&self, streams: Streams, grant: Grant, agreed: &Agreed) {
        let (node, terms) = (&self.node, self.terms);
        match grant {
            Grant::Exec {
                container,
                command,
                stdio,
            } => {
                let span = tracing::info_span!("exec.stream", id = %container);
                let command = exec::Command {
                    container,
                    command,
                    stdio,
                };
                exec::serve(node, terms, streams, command, agreed)
                    .instrument(span)
                    .await;
            }
            Grant::Attach { container, stdio } => {
                let span = tracing::info_span!("attach.stream", id = %container);
                let what = (container, stdio);
                attach::serve(node, terms, streams, what, agreed)
                    .instrument(span)
                    .await;
            }
            Grant::PortForward { sandbox, .. } => {
                let span = tracing::info_span!("portforward.stream", id = %sandbox);
                portforward::serve(node, terms, streams, &sandbox)
                    .instrument(span)
                    .await;
            }
        }
    }
}

fn protocol(grant: &Grant, agreed: &Agreed) -> Box<dyn Protocol> {
    let channels = |stdio: &StdioSpec, format| {
        Box::new(Channels::new(format, &remotecommand::roles(*stdio, true)))
    };
    match (agreed.wire, grant) {
        (Wire::Channels(format), Grant::Exec { stdio, .. } | Grant::Attach { stdio, .. }) => {
            channels(stdio, format)
        }
        (Wire::Ports, Grant::PortForward { ports, .. }) => Box::new(Ports::new(ports.clone())),
        (Wire::Tunnel, _) => Box::new(Tunnel::default()),
        // What was agreed on fits the grant, so this is plain SPDY.
        _ => Box::new(Spdy::default()),
    }
}

impl Answer {
    fn plain(status: StatusCode, text: &str) -> Self {
        Self {
            status,
            text: text.to_owned(),
            served: &[],
        }
    }

    fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(format!("{}\n", self.text)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        for name in self.served {
            headers.append(ACCEPTED, HeaderValue::from_static(name));
        }
        response
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        let served = match refusal {
            Refusal::UnknownProtocol { served } => served,
            _ => &[],
        };
        Self {
            status: refusal.status(),
            text: refusal.to_string(),
            served,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent() -> AbortHandle {
        tokio::spawn(std::future::pending::<()>()).abort_handle()
    }

    #[tokio::test]
    async fn who_came_just_now_does_not_have_to_go() {
        // As young as can be, for as long as this test takes.
        let young = Instant::now() + Duration::from_secs(3600);
        let crowd = (0..UNKNOWN).map(|_| (young, silent())).collect();
        let mut unknown = Unknown(crowd);
        let waited = timeout(ROOM_CHECK * 4, unknown.make_room()).await;
        assert!(waited.is_err(), "nobody is old enough to go");
        assert!(!unknown.0[0].1.is_finished());
        unknown.0[7].1.abort();
        unknown.make_room().await;
        assert_eq!(unknown.0.len(), UNKNOWN - 1, "one went by itself");
        let old = Instant::now().checked_sub(CHANCE).expect("up for a second");
        unknown.0.push_front((old, silent()));
        unknown.make_room().await;
        assert_eq!(unknown.0.len(), UNKNOWN - 1, "the oldest had its chance");
    }
}

//! The streaming server: exec, attach and port-forward, over SPDY/3.1 and WebSocket.
//!
//! A request of the CRI is answered with an address that is good once; what then connects is served
//! here. Every byte passes the daemon and never the monitor of an exec.
//!
//! ```text
//! server      a connection, a token, an upgrade            grant: tokens; handshake: what is agreed on
//!   mux       one connection, many streams                 spdy, websocket: how they look on the wire
//!     exec, attach, portforward                            remotecommand, pipes: what they share
//! ```
//! Clients are not trusted: whatever they can make wait is bounded, and so is their time.

mod attach;
mod exec;
pub mod grant;
mod handshake;
pub mod mux;
mod peer;
mod pipes;
mod portforward;
mod remotecommand;
mod server;
pub mod spdy;
mod tls;
pub mod websocket;

#[cfg(test)]
mod tests;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::net::TcpListener;

pub use grant::{Grant, StdioSpec, TooManyGrants};
pub use tls::TlsError;

use self::{grant::Grants, server::Server, tls::Tls};
use crate::{
    config::StreamConfig,
    error::{Classify, ErrorKind},
    node::Node,
};

/// Why there is no streaming server.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Its address cannot be listened on.
    #[error("cannot listen on {address} for streams")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its certificates cannot be used.
    #[error("cannot serve streams with TLS")]
    Tls(#[from] TlsError),
}

/// What sessions are bound to.
#[derive(Debug, Clone, Copy)]
struct Terms {
    kill_on_disconnect: bool,
    creation_timeout: Duration,
    idle_timeout: Duration,
}

/// Where clients are sent.
#[derive(Debug)]
pub struct Endpoint {
    base: String,
    grants: Grants,
}

impl Endpoint {
    /// The address for one client.
    ///
    /// # Errors
    /// When too many clients have not come yet.
    pub fn grant(&self, grant: Grant) -> Result<String, TooManyGrants> {
        let verb = grant.verb();
        let token = self.grants.give(grant, Instant::now())?;
        Ok(format!("{}/{verb}/{token}", self.base))
    }
}

impl Classify for TooManyGrants {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Exhausted
    }
}

/// Starts to serve, until the runtime ends.
///
/// # Errors
/// Any [`StreamError`].
pub async fn start(node: &Arc<Node>) -> Result<Arc<Endpoint>, StreamError> {
    let config = &node.config.stream;
    let tls = config.tls.clone().map(Tls::open).transpose()?;
    let address = SocketAddr::from((config.address, config.port));
    let failed = |source| StreamError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let endpoint = Arc::new(Endpoint {
        base: base(bound, tls.is_some()),
        grants: Grants::default(),
    });
    tracing::info!(address = %endpoint.base, "serving streams");
    let server = Server::new(Arc::clone(node), Arc::clone(&endpoint), terms(config), tls);
    tokio::spawn(Arc::new(server).accept(listener));
    Ok(endpoint)
}

fn terms(config: &StreamConfig) -> Terms {
    Terms {
        kill_on_disconnect: config.kill_on_disconnect,
        creation_timeout: config.creation_timeout,
        idle_timeout: config.idle_timeout,
    }
}

/// The address as a client on this node dials it.
fn base(bound: SocketAddr, is_tls: bool) -> String {
    let host = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let scheme = if is_tls { "https" } else { "http" };
    // Writes IPv6 in brackets.
    format!("{scheme}://{}", SocketAddr::new(host, bound.port()))
}

//! Connects to a port inside a pod.
//!
//! A socket stays in the namespace it was made in, so only its making has to happen there: on a
//! thread that lives for nothing else, because a thread that has entered a namespace must serve nobody
//! any more. Connecting and everything after happens where all else does.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::oneshot,
    time::{sleep, timeout},
};

use crate::error::{Classify, ErrorKind};

/// How long IPv4 is waited for before IPv6 is tried as well.
const HEAD_START: Duration = Duration::from_millis(50);
/// How long both may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Why a port inside a pod cannot be connected to.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The pod's network namespace cannot be entered.
    #[error("cannot enter the network namespace {}", path.display())]
    Namespace {
        /// Where it is pinned.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No socket can be made.
    #[error("cannot make a socket")]
    Socket(#[source] io::Error),
    /// Nobody listens.
    #[error("cannot connect to port {port}")]
    Connect {
        /// Which.
        port: u16,
        /// Why not over IPv4.
        #[source]
        source: io::Error,
    },
    /// Nobody answers.
    #[error("port {port} did not answer within {LIMIT:?}")]
    Late {
        /// Which.
        port: u16,
    },
}

impl Classify for DialError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Namespace { .. } | Self::Socket(_) => ErrorKind::Internal,
            Self::Connect { .. } => ErrorKind::NotReady,
            Self::Late { .. } => ErrorKind::Deadline,
        }
    }
}

/// Connects to `port` on the loopback of the namespace at `netns`, or of the host: IPv4, and IPv6
/// where that is refused or slow.
///
/// # Errors
/// Any [`DialError`]; of a refusal IPv4's.
pub async fn dial(netns: Option<&Path>, port: u16) -> Result<TcpStream, DialError> {
    let both = async {
        let v4 = connect(netns, SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        tokio::pin!(v4);
        let refused = tokio::select! {
            connected = &mut v4 => match connected {
                Err(error @ DialError::Connect { .. }) => Some(error),
                other => return other,
            },
            () = sleep(HEAD_START) => None,
        };
        let v6 = connect(netns, SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
        match refused {
            Some(refused) => v6.await.map_err(|_| refused),
            None => {
                tokio::pin!(v6);
                tokio::select! {
                    connected = &mut v4 => match connected {
                        Ok(stream) => Ok(stream),
                        Err(error) => v6.await.map_err(|_| error),
                    },
                    Ok(stream) = &mut v6 => Ok(stream),
                    else => v4.await,
                }
            }
        }
    };
    timeout(LIMIT, both)
        .await
        .unwrap_or(Err(DialError::Late { port }))
}

async fn connect(netns: Option<&Path>, address: SocketAddr) -> Result<TcpStream, DialError> {
    let socket = match netns {
        Some(path) => socket_inside(path, address.is_ipv4()).await?,
        None => tcp_socket(address.is_ipv4()).map_err(DialError::Socket)?,
    };
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
    let connected = socket.connect(address).await;
    connected.map_err(|source| DialError::Connect {
        port: address.port(),
        source,
    })
}

fn tcp_socket(is_v4: bool) -> io::Result<OwnedFd> {
    let family = if is_v4 {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(family, SockType::Stream, flags, None)?)
}

async fn socket_inside(netns: &Path, is_v4: bool) -> Result<OwnedFd, DialError> {
    let (tell, told) = oneshot::channel();
    let path = netns.to_owned();
    let make = move || {
        let made = enter(&path).and_then(|()| tcp_socket(is_v4).map_err(DialError::Socket));
        tell.send(made).ok();
    };
    let thread = thread::Builder::new().name("netns".to_owned()).spawn(make);
    thread.map_err(DialError::Socket)?;
    told.await
        .unwrap_or_else(|_| Err(DialError::Socket(io::Error::other("its thread ended"))))
}

/// Moves the calling thread into a namespace. The thread must end after its work.
fn enter(path: &Path) -> Result<(), DialError> {
    let failed = |source| DialError::Namespace {
        path: path.to_owned(),
        source,
    };
    let namespace = File::open(path).map_err(failed)?;
    let entered = crisp_sys::ns::setns(namespace.as_fd(), libc::CLONE_NEWNET);
    entered.map_err(|error| failed(error.into()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn ipv6_is_found_where_ipv4_is_refused() {
        let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else {
            return println!("no IPv6 here");
        };
        let port = listener.local_addr().unwrap().port();
        let mut stream = dial(None, port).await.unwrap();
        drop(listener.accept().unwrap());
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        drop(listener);
        let error = dial(None, port).await.unwrap_err();
        assert!(matches!(error, DialError::Connect { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_namespace_that_is_not_there_is_named() {
        let error = dial(Some(Path::new("/run/netns/none-such")), 1)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("none-such"), "{error}");
    }
}

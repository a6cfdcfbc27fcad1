//! Finds a monitor again after a restart of the daemon.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use conmon_rs::protocol::{self, Reply, Request, Snapshot};
use tokio::sync::mpsc;

use super::{Monitor, MonitorError, Notice, REQUEST_LIMIT, link::Link};
use crate::process::Process;

/// A monitor that was found again.
pub struct Connected {
    /// The monitor.
    pub monitor: Monitor,
    /// Everything it knows about its container.
    pub snapshot: Snapshot,
    /// What it says unasked from now on.
    pub notices: mpsc::UnboundedReceiver<Notice>,
}

/// Connects to the monitor whose runtime files lie in `directory`.
///
/// # Errors
/// When no monitor listens there or it does not answer.
pub async fn connect(directory: &Path) -> Result<Connected, MonitorError> {
    let path = directory.to_owned();
    let (socket, pid, start_time, pidfd) = tokio::task::spawn_blocking(move || reach(&path))
        .await
        .map_err(|_| MonitorError::Gone)?
        .map_err(MonitorError::Connect)?;
    let process = Process::watch(pid, start_time, pidfd).map_err(MonitorError::Connect)?;
    let (sender, notices) = mpsc::unbounded_channel::<Notice>();
    let link = Link::start(socket, sender).map_err(MonitorError::Connect)?;
    let monitor = Monitor { link, process };
    let hello = Request::Hello {
        version: protocol::PROTOCOL_VERSION,
    };
    match monitor.timed("hello", hello, REQUEST_LIMIT).await {
        Ok(answer) => match answer.reply {
            Reply::Snapshot(snapshot) => Ok(Connected {
                monitor,
                snapshot,
                notices,
            }),
            other => Err(MonitorError::refused(other)),
        },
        Err(error) => {
            monitor.disconnect();
            Err(error)
        }
    }
}

fn reach(directory: &Path) -> io::Result<(OwnedFd, i32, u64, OwnedFd)> {
    let directory = File::open(directory)?;
    let socket = crisp_sys::socket::seqpacket_connect(directory.as_fd(), protocol::SOCKET_NAME)?;
    // The kernel noted who listened when the socket was made. The number may have been recycled
    // only if that process is gone, and then nobody would have accepted the connection.
    let pid = crisp_sys::socket::peer_cred(socket.as_fd())?.pid;
    let pidfd = crisp_sys::pidfd::open(pid)?;
    let start_time = crisp_sys::pidfd::start_time(pid)?;
    Ok((socket, pid, start_time, pidfd))
}

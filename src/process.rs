//! Processes that outlive a daemon (monitors and pauses), watched by pidfd.
//!
//! A pidfd names one process for ever, so no signal can reach a stranger with a recycled number. The
//! ones that this daemon started are its children and are reaped here; after a restart they belong
//! to the host's init, and only their end is seen.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use tokio::{io::unix::AsyncFd, sync::watch};

/// A process that is watched. Cloning shares the watch.
#[derive(Clone, Debug)]
pub struct Process {
    pid: i32,
    start_time: u64,
    pidfd: Arc<OwnedFd>,
    ended: watch::Receiver<bool>,
}

impl Process {
    /// Watches the process behind `pidfd`. Must be called inside the tokio runtime.
    ///
    /// `start_time` is field 22 of `/proc/<pid>/stat`, in clock ticks since boot: with the number it
    /// names the process in records.
    ///
    /// # Errors
    /// When the descriptor cannot be watched.
    pub fn watch(pid: i32, start_time: u64, pidfd: OwnedFd) -> io::Result<Self> {
        let pidfd = Arc::new(pidfd);
        let (sender, ended) = watch::channel(false);
        #[expect(
            deprecated,
            reason = "its successor is unsafe, and this value owns its descriptor for as long as it lives"
        )]
        let watched =
            AsyncFd::with_interest(Shared(Arc::clone(&pidfd)), tokio::io::Interest::READABLE)?;
        tokio::spawn(async move {
            if let Err(error) = watched.readable().await {
                tracing::warn!(pid, %error, "lost the watch on a process");
            }
            // ECHILD after a restart of the daemon: then it is init's to reap.
            crisp_sys::pidfd::try_wait(watched.get_ref().0.as_fd()).ok();
            sender.send_replace(true);
        });
        Ok(Self {
            pid,
            start_time,
            pidfd,
            ended,
        })
    }

    /// The process number in the daemon's PID namespace.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// When it started, in clock ticks since boot.
    #[must_use]
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// The descriptor that names it.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Waits for its end.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error means that the watching task is gone, which it only is after the end.
        ended.wait_for(|ended| *ended).await.ok();
    }

    /// Sends SIGKILL and waits for the end, at most `limit`. True if it ended.
    pub async fn kill(&self, limit: Duration) -> bool {
        crisp_sys::pidfd::send_signal(self.pidfd.as_fd(), libc::SIGKILL).ok();
        tokio::time::timeout(limit, self.ended()).await.is_ok()
    }
}

struct Shared(Arc<OwnedFd>);

impl std::os::fd::AsRawFd for Shared {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

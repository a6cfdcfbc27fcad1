//! What has become of a container's output, as far as its monitor told: shown in its verbose status.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use conmon_rs::protocol::Snapshot;
use serde_json::{Value, json};

/// Losses of a container's output.
#[derive(Debug, Default)]
pub struct Output {
    lost_bytes: AtomicU64,
    errno: AtomicI32,
    dropped_clients: AtomicU64,
}

impl Output {
    /// What a monitor that was found again knows.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        Self {
            lost_bytes: snapshot.log.lost_bytes.into(),
            errno: snapshot.log.errno.into(),
            dropped_clients: snapshot.dropped_clients.into(),
        }
    }

    /// The log cannot be written (`errno` says why), or can again (0); so much is lost so far.
    pub(super) fn log_trouble(&self, lost_bytes: u64, errno: i32) {
        self.lost_bytes.store(lost_bytes, Ordering::Relaxed);
        self.errno.store(errno, Ordering::Relaxed);
    }

    /// So many attached clients were dropped so far.
    pub(super) fn clients_dropped(&self, count: u64) {
        self.dropped_clients.store(count, Ordering::Relaxed);
    }

    /// For the verbose status.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let errno = self.errno.load(Ordering::Relaxed);
        let error = (errno != 0).then(|| std::io::Error::from_raw_os_error(errno).to_string());
        json!({
            "logLostBytes": self.lost_bytes.load(Ordering::Relaxed),
            "logError": error,
            "attachClientsDropped": self.dropped_clients.load(Ordering::Relaxed),
        })
    }
}

//! The wall clock, as CRI tells time.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since the epoch, never 0 (which means "never" in CRI).
#[must_use]
pub fn now_ns() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX).max(1)
}

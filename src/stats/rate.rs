//! From a counter to a rate.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Over at least this long a rate is measured; who asks more often gets the one from before.
const WINDOW: Duration = Duration::from_secs(1);
/// The first rate is measured sooner, since there is none before it.
const FIRST_WINDOW: Duration = Duration::from_millis(50);

/// How fast a counter of nanoseconds of CPU time grows.
#[derive(Debug, Default)]
pub struct Rate {
    // Held for arithmetic only.
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    since: Option<(Instant, u64)>,
    nano_cores: Option<u64>,
}

impl Rate {
    /// Takes note of what the counter says at `now`, and tells the rate in billionths of a core;
    /// nothing before the second reading.
    pub fn note(&self, now: Instant, counter: u64) -> Option<u64> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((since, from)) = seen.since else {
            seen.since = Some((now, counter));
            return None;
        };
        let elapsed = now.saturating_duration_since(since);
        let whole = elapsed >= WINDOW;
        if whole || (seen.nano_cores.is_none() && elapsed >= FIRST_WINDOW) {
            let rate = u128::from(counter.saturating_sub(from)) * 1_000_000_000
                / elapsed.as_nanos().max(1);
            let rate = u64::try_from(rate).unwrap_or(u64::MAX);
            if whole {
                *seen = Seen {
                    since: Some((now, counter)),
                    nano_cores: Some(rate),
                };
            }
            return Some(rate);
        }
        seen.nano_cores
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_readings_and_a_while_between_them() {
        let (rate, begin) = (Rate::default(), Instant::now());
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let ms = |ms: u64| ms * 1_000_000;
        // When, what the counter says, the rate.
        for (now, counter, expected) in [
            (0, ms(500), None),
            (10, ms(510), None),
            (100, ms(550), Some(500_000_000)),
            (1000, ms(1500), Some(1_000_000_000)),
            (1001, ms(1600), Some(1_000_000_000)),
            (1999, ms(1600), Some(1_000_000_000)),
            (3000, ms(5500), Some(2_000_000_000)),
            // A counter that went back is no reason to go mad.
            (5000, ms(10), Some(0)),
        ] {
            assert_eq!(rate.note(at(now), counter), expected, "at {now}");
        }
    }
}

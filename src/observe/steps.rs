//! How long steps take: a layer that measures spans into histograms.
//!
//! A step is a span of ours whose name has a dot in it, `sandbox.network`. Its time runs from the
//! making of the span to its end, waiting included, because that is what the caller of the operation
//! waits for. A histogram is a fixed block of counters (2.2 KiB), and there are at most as many as
//! there are span names in the program, so memory is bounded whatever the load; recording is three
//! atomic additions.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tracing::{Metadata, Subscriber, span};
use tracing_subscriber::{Layer, filter::filter_fn, layer::Context, registry::LookupSpan};

/// What is known about one step since the daemon started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepTiming {
    /// The step's name, `sandbox.network`.
    pub name: String,
    /// How often it ran.
    pub count: u64,
    /// Half of the runs were at most this long (to 6 %).
    pub median: Duration,
    /// 19 of 20 runs were at most this long (to 6 %).
    pub p95: Duration,
}

static STEPS: RwLock<BTreeMap<&'static str, Arc<Histogram>>> = RwLock::new(BTreeMap::new());

/// The timings of all steps that ran so far, by name.
#[must_use]
pub fn snapshot() -> Vec<StepTiming> {
    let steps = STEPS.read().unwrap_or_else(PoisonError::into_inner);
    steps
        .iter()
        .map(|(name, histogram)| histogram.timing(name))
        .collect()
}

/// Counts one run of a step. For steps that are no span.
pub fn record(name: &'static str, took: Duration) {
    histogram(name).record(took);
}

/// The layer that measures. It sees steps only, at every level, whatever is printed.
pub(super) fn layer<S>() -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    StepLayer.with_filter(filter_fn(is_step))
}

fn is_step(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.name().contains('.') && metadata.target().starts_with("crisp")
}

struct StepLayer;

/// Kept with a span while it lives.
struct Running {
    since: Instant,
    histogram: Arc<Histogram>,
}

impl<S> Layer<S> for StepLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(
        &self,
        attributes: &span::Attributes<'_>,
        id: &span::Id,
        context: Context<'_, S>,
    ) {
        if let Some(span) = context.span(id) {
            let histogram = histogram(attributes.metadata().name());
            span.extensions_mut().insert(Running {
                since: Instant::now(),
                histogram,
            });
        }
    }

    fn on_close(&self, id: span::Id, context: Context<'_, S>) {
        if let Some(span) = context.span(&id)
            && let Some(running) = span.extensions().get::<Running>()
        {
            running.histogram.record(running.since.elapsed());
        }
    }
}

fn histogram(name: &'static str) -> Arc<Histogram> {
    if let Some(known) = STEPS
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .get(name)
    {
        return Arc::clone(known);
    }
    let mut steps = STEPS.write().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(steps.entry(name).or_default())
}

/// Eight buckets for each doubling, from 1 us to 2^35 us (nine hours).
const PER_OCTAVE_BITS: u32 = 3;
const PER_OCTAVE: u64 = 1 << PER_OCTAVE_BITS;
const OCTAVES: usize = 35;
const BUCKETS: usize = OCTAVES << PER_OCTAVE_BITS;

struct Histogram {
    buckets: [AtomicU64; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

impl Histogram {
    fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket(micros)].fetch_add(1, Ordering::Relaxed);
    }

    fn timing(&self, name: &str) -> StepTiming {
        let counts: Vec<u64> = self
            .buckets
            .iter()
            .map(|b| b.load(Ordering::Relaxed))
            .collect();
        let count: u64 = counts.iter().sum();
        let rank = |part: u64, of: u64| {
            let wanted = (count * part).div_ceil(of).max(1);
            let mut seen = 0;
            let at = counts.iter().position(|c| {
                seen += c;
                seen >= wanted
            });
            at.map_or(Duration::ZERO, |index| Duration::from_micros(middle(index)))
        };
        StepTiming {
            name: name.to_owned(),
            count,
            median: rank(1, 2),
            p95: rank(19, 20),
        }
    }
}

/// The bucket of a time: exact below 8 us, then by the leading four bits.
fn bucket(micros: u64) -> usize {
    let index = if micros < PER_OCTAVE {
        micros
    } else {
        let octave = u64::from(micros.ilog2() - PER_OCTAVE_BITS);
        (octave << PER_OCTAVE_BITS) + (micros >> octave)
    };
    usize::try_from(index)
        .unwrap_or(usize::MAX)
        .min(BUCKETS - 1)
}

/// The time in the middle of a bucket.
fn middle(index: usize) -> u64 {
    let index = index as u64;
    if index < 2 * PER_OCTAVE {
        return index;
    }
    let octave = (index >> PER_OCTAVE_BITS) - 1;
    let low = (index - (octave << PER_OCTAVE_BITS)) << octave;
    low + (1 << octave) / 2
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::{Registry, layer::SubscriberExt};

    use super::*;

    fn timing_of(name: &str) -> Option<StepTiming> {
        snapshot().into_iter().find(|t| t.name == name)
    }

    #[test]
    fn every_time_falls_into_a_bucket_whose_middle_is_near() {
        let mut last = 0;
        for micros in (0..5000).chain((13..35).map(|e| (1 << e) + 12345 % (1 << e))) {
            let index = bucket(micros);
            assert!(index >= last, "{micros} us: buckets go up");
            last = index;
            let off = middle(index).abs_diff(micros);
            assert!(
                off * 16 <= micros.max(16),
                "{micros} us in the bucket of {}",
                middle(index)
            );
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn median_and_p95_are_those_of_the_runs() {
        for _ in 0..90 {
            record("test.quantiles", Duration::from_micros(100));
        }
        for _ in 0..10 {
            record("test.quantiles", Duration::from_millis(10));
        }
        let timing = timing_of("test.quantiles").unwrap();
        assert_eq!(timing.count, 100);
        assert!(
            (94..=106).contains(&timing.median.as_micros()),
            "{timing:?}"
        );
        assert!(
            (9_400..=10_600).contains(&timing.p95.as_micros()),
            "{timing:?}"
        );
    }

    #[test]
    fn spans_with_a_dot_are_steps_and_others_are_not() {
        tracing::subscriber::with_default(Registry::default().with(layer()), || {
            for _ in 0..3 {
                let _step = tracing::debug_span!("test.span").entered();
                let _other = tracing::debug_span!("plain").entered();
            }
        });
        assert_eq!(timing_of("test.span").unwrap().count, 3);
        assert_eq!(timing_of("plain"), None);
    }

    #[test]
    fn parallel_recording_loses_nothing() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for i in 0..10_000 {
                        record("test.parallel", Duration::from_micros(i));
                    }
                });
            }
        });
        assert_eq!(timing_of("test.parallel").unwrap().count, 40_000);
    }
}

//! Every histogram of a node: the one place that knows bounds.
//!
//! Each is classic and native at once. The classic bounds are chosen so that a service level can be counted
//! exactly; the native buckets, which only the protobuf format carries, tell any quantile within ten per cent.

use std::time::Duration;

use debros_proto::limits;
use prometheus_client::metrics::histogram::NativeHistogramConfig;

use super::recorders::{Histogram, TracedHistogram};

/// Of requests and of what they wait for, in seconds; clients have the same.
const DURATIONS: [f64; 14] = limits::DURATION_BOUNDS_SECONDS;
/// Of flushes to disk, in seconds: from a fast disk's to one that endangers elections.
const FLUSHES: [f64; 12] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.5];
/// Of what may take a minute, in seconds. The service level of discovery, 30, is among them.
const WAITS: [f64; 10] = [0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0];
/// Of things handled together.
const AMOUNTS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 512.0];

/// A native bucket is at most this much wider than the one before.
const NATIVE_FACTOR: f64 = 1.1;
/// Native buckets of one histogram. Five orders of magnitude take 121 at that factor; past this the resolution halves.
const NATIVE_BUCKETS_MAX: usize = 160;
/// What is faster than this, or smaller, is nothing.
const NATIVE_ZERO: f64 = 1e-6;

fn both(bounds: &[f64]) -> Histogram {
    let native =
        NativeHistogramConfig::new(NATIVE_FACTOR).max_buckets(NATIVE_BUCKETS_MAX).zero_threshold(NATIVE_ZERO);
    Histogram::new(bounds, native)
}

/// Of requests and of what they wait for, in seconds.
pub fn durations() -> Histogram {
    both(&DURATIONS)
}

/// Of flushes to disk, in seconds.
pub fn flushes() -> Histogram {
    both(&FLUSHES)
}

/// Of what may take a minute, in seconds.
pub fn waits() -> Histogram {
    both(&WAITS)
}

/// Of things handled together.
pub fn amounts() -> Histogram {
    both(&AMOUNTS)
}

/// Durations with the trace that is an example of each bucket. Classic only: `prometheus-client` writes no exemplars of
/// native histograms.
pub fn traced_durations<S>() -> TracedHistogram<S> {
    TracedHistogram::new(&DURATIONS)
}

/// Whether a service level of this threshold can be counted by the bounds of [`durations`] or [`waits`].
pub fn counts_exactly(threshold: Duration) -> bool {
    let threshold = threshold.as_secs_f64();
    DURATIONS.iter().chain(&WAITS).any(|bound| *bound == threshold)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{AMOUNTS, DURATIONS, FLUSHES, WAITS, counts_exactly};

    #[test]
    fn the_service_levels_are_bounds() {
        for threshold in [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(30)] {
            assert!(counts_exactly(threshold), "{threshold:?}");
        }
        assert!(!counts_exactly(Duration::from_millis(99)));
    }

    #[test]
    fn bounds_grow() {
        for bounds in [&DURATIONS[..], &FLUSHES, &WAITS, &AMOUNTS] {
            assert!(bounds.is_sorted_by(|one, next| one < next), "{bounds:?}");
        }
    }
}

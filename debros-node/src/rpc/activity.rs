//! What the engines have answered, as a client asks for it to know rates and latencies: `debros top` reads no metrics.
//! Counts only ever grow; whoever asks twice subtracts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use debros_proto::v1;

/// Upper bounds of how long requests took, in microseconds: each twice the one before, up to the longest request
/// that is worth telling apart. One bucket more takes what is slower.
const BOUNDS_US: [u32; 16] = [
    250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 100_000, 250_000, 500_000, 1_000_000,
    2_000_000, 4_000_000, 8_000_000,
];

/// Requests of one engine.
#[derive(Default)]
struct Activity {
    failed: AtomicU64,
    by_duration: [AtomicU64; BOUNDS_US.len() + 1],
}

/// Requests of the engines that answer by request.
#[derive(Default)]
pub(super) struct Activities {
    database: Activity,
    storage: Activity,
}

impl Activities {
    /// Counts an answer of a method; of one that is no request for data, nothing.
    pub(super) fn answered(&self, method: &str, ok: bool, took: Duration) {
        let activity = match method {
            "Execute" | "Query" | "RegisterWrite" | "RegisterGet" | "RegisterList" => &self.database,
            "StoragePut" | "StorageDelete" | "StorageGet" | "StorageList" => &self.storage,
            _ => return,
        };
        let us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        activity.by_duration[bucket].fetch_add(1, Ordering::Relaxed);
        if !ok {
            activity.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// As the status tells it.
    pub(super) fn told(&self) -> impl Iterator<Item = v1::EngineActivity> + use<> {
        [("database", &self.database), ("storage", &self.storage)]
            .map(|(name, activity)| activity.told(name))
            .into_iter()
    }
}

impl Activity {
    fn told(&self, engine: &str) -> v1::EngineActivity {
        let bounds = BOUNDS_US.into_iter().chain([0]);
        let latency: Vec<v1::LatencyBucket> = bounds
            .zip(&self.by_duration)
            .map(|(up_to_us, count)| v1::LatencyBucket { up_to_us, requests: count.load(Ordering::Relaxed) })
            .collect();
        v1::EngineActivity {
            engine: engine.to_owned(),
            requests: latency.iter().map(|bucket| bucket.requests).sum(),
            failed: self.failed.load(Ordering::Relaxed),
            delivered: 0,
            latency,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Activities;

    #[test]
    fn requests_are_counted_by_engine_outcome_and_duration() {
        let activities = Activities::default();
        activities.answered("Execute", true, Duration::from_micros(250));
        activities.answered("Query", false, Duration::from_secs(60));
        activities.answered("StorageGet", true, Duration::from_micros(251));
        activities.answered("Status", true, Duration::ZERO);
        let told: Vec<_> = activities.told().collect();
        let filled = |engine: usize| {
            let buckets = told[engine].latency.iter().filter(|bucket| bucket.requests > 0);
            buckets.map(|bucket| bucket.up_to_us).collect::<Vec<_>>()
        };
        assert_eq!((told[0].requests, told[0].failed, filled(0)), (2, 1, vec![250, 0]));
        assert_eq!((told[1].requests, told[1].failed, filled(1)), (1, 0, vec![500]));
    }
}

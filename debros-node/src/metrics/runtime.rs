//! The tokio runtime, as `tokio-metrics` reads it: whether its workers are busy and what waits for them.

use std::sync::{Mutex, PoisonError};

use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio_metrics::{RuntimeIntervals, RuntimeMonitor};

use super::read_at_scrape;

/// The monitor tells what has happened since it was last asked; counters tell what ever did.
struct Totals {
    intervals: RuntimeIntervals,
    busy_seconds: f64,
    parks: u64,
}

pub(super) fn register(registry: &mut Registry, runtime: &Handle) {
    let intervals = RuntimeMonitor::new(runtime).intervals();
    let totals = Mutex::new(Totals { intervals, busy_seconds: 0.0, parks: 0 });
    read_at_scrape(registry, move |readings| {
        let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(now) = totals.intervals.next() else { return Ok(()) };
        totals.busy_seconds += now.total_busy_duration.as_secs_f64();
        totals.parks += now.total_park_count;
        readings.gauge(
            "debros_tokio_workers",
            "Threads that run the tasks of the runtime",
            now.workers_count as u64,
        )?;
        readings.gauge(
            "debros_tokio_live_tasks",
            "Tasks of the runtime that have not ended; one that only grows is a leak",
            now.live_tasks_count as u64,
        )?;
        readings.gauge(
            "debros_tokio_global_queue_tasks",
            "Tasks that are ready and wait for any worker",
            now.global_queue_depth as u64,
        )?;
        readings.counter(
            "debros_tokio_busy_seconds",
            "Time that the runtime's workers were busy, summed over them",
            totals.busy_seconds,
        )?;
        readings.counter(
            "debros_tokio_parks",
            "How often a worker of the runtime found nothing to do and went to sleep",
            totals.parks,
        )
    });
}

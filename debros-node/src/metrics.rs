//! What all metrics share: the bounds of histograms, handles for hot paths, values that are read at a scrape,
//! depths beside their limits, what is true of the process, and how all of it is written out.
//!
//! It knows no engine: each registers and describes its own metrics in a `metrics.rs` of its own. Labels are
//! bounded everywhere: a database, a key, a topic or a peer is never one.

mod bounds;
mod exposition;
mod histograms;
mod operations;
mod process;
mod readings;
mod recorders;
pub mod recording;
mod reference;
mod runtime;

use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;

pub use bounds::Bounds;
pub use exposition::{Exposition, Format};
pub use histograms::{amounts, counts_exactly, durations, flushes, traced_durations, waits};
pub use operations::{Operation, Operations, Origin};
pub use readings::{Readings, read_at_scrape};
pub use recorders::{Counter, Gauge, Histogram, Stopwatch, TracedHistogram};
pub use reference::{Kind, Metric, list, reference};

/// The target of the build and its compiler, as `build.rs` found them.
const BUILD: [(&str, &str); 3] = [
    ("version", debros_proto::VERSION),
    ("rustc", env!("DEBROS_RUSTC_VERSION")),
    ("target", env!("DEBROS_TARGET")),
];

/// The process's own metrics and those of the runtime, in a registry of their own: a process may have many nodes.
pub fn process(runtime: &Handle) -> Registry {
    let mut registry = Registry::default();
    let build = Family::<Vec<(&str, &str)>, prometheus_client::metrics::gauge::Gauge>::default();
    build.get_or_create(&BUILD.to_vec()).set(1);
    registry.register("debros_build_info", "What was built; always 1", build);
    process::register(&mut registry);
    runtime::register(&mut registry, runtime);
    registry
}

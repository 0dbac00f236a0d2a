//! Depths and uses beside their named limits, all under the same few names: one rule and one panel see
//! whichever comes near its limit, and a leak shows as a use that only grows.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::registry::Registry;

use super::readings::{Readings, read_at_scrape};

type Read = Box<dyn Fn() -> usize + Send + Sync>;

struct Bound {
    name: &'static str,
    limit: usize,
    used: Read,
}

#[derive(Default)]
struct All {
    items: Vec<Bound>,
    bytes: Vec<Bound>,
    resources: Vec<Bound>,
}

/// Where engines name what they hold to a limit. Cheap to clone; to be used while a node is composed.
#[derive(Clone, Default)]
pub struct Bounds(Arc<Mutex<All>>);

impl Bounds {
    /// Registers what will be named.
    pub fn register(registry: &mut Registry) -> Self {
        let bounds = Self::default();
        let read = bounds.clone();
        read_at_scrape(registry, move |readings| read.tell(readings));
        bounds
    }

    /// A queue whose limit is a number of things.
    pub fn queue_items(
        &self,
        name: &'static str,
        limit: usize,
        used: impl Fn() -> usize + Send + Sync + 'static,
    ) {
        self.all().items.push(Bound { name, limit, used: Box::new(used) });
    }

    /// A queue or buffer whose limit is a number of bytes.
    pub fn queue_bytes(
        &self,
        name: &'static str,
        limit: usize,
        used: impl Fn() -> usize + Send + Sync + 'static,
    ) {
        self.all().bytes.push(Bound { name, limit, used: Box::new(used) });
    }

    /// Something that is open, held or attached until somebody lets go of it.
    pub fn resource(
        &self,
        name: &'static str,
        limit: usize,
        used: impl Fn() -> usize + Send + Sync + 'static,
    ) {
        self.all().resources.push(Bound { name, limit, used: Box::new(used) });
    }

    fn all(&self) -> std::sync::MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, readings: &mut Readings<'_>) -> fmt::Result {
        let all = self.all();
        let used = |bounds: &[Bound]| -> Vec<_> {
            bounds.iter().map(|bound| (bound.name, (bound.used)() as u64)).collect()
        };
        let limits = |bounds: &[Bound]| -> Vec<_> {
            bounds.iter().map(|bound| (bound.name, bound.limit as u64)).collect()
        };
        readings.gauges(
            ("debros_queue_items", "Things that wait in a queue of this node"),
            "queue",
            used(&all.items),
        )?;
        readings.gauges(
            (
                "debros_queue_items_limit",
                "Things that a queue takes; past it whoever comes waits or is refused",
            ),
            "queue",
            limits(&all.items),
        )?;
        readings.gauges(
            ("debros_queue_bytes", "Bytes that wait or are kept in a queue of this node"),
            "queue",
            used(&all.bytes),
        )?;
        readings.gauges(
            (
                "debros_queue_bytes_limit",
                "Bytes that a queue takes; past it whoever comes waits, is refused, or the oldest goes",
            ),
            "queue",
            limits(&all.bytes),
        )?;
        readings.gauges(
            (
                "debros_resource_used",
                "What is open, held or attached at this node; one that only grows is a leak",
            ),
            "resource",
            used(&all.resources),
        )?;
        readings.gauges(
            (
                "debros_resource_limit",
                "How much of a resource this node gives; past it whoever comes is refused",
            ),
            "resource",
            limits(&all.resources),
        )
    }
}

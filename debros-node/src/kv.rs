//! Storage: a replicated key-value store that stays available and converges.
//!
//! ```text
//! service --> coordinator (any node) --> replicas of the key's partition: this node's own, or over links
//!                                         replica --> store (LMDB)
//! beside:  transition (changes of the layout), repair (anti-entropy), hints, collect (tombstones), probes
//! ```
//!
//! Dynamo's family (DeCandia et al. 2007) with last-writer-wins versions by hybrid logical clocks, a layout
//! that the cluster's meta group decides, and its change in phases. This module knows the layout but not
//! who decides it, and namespaces but not who may use them.

mod clock;
mod collect;
mod coordinator;
mod hints;
mod layouts;
mod links;
mod list;
mod metrics;
mod read;
mod record;
mod repair;
mod replica;
mod server;
mod store;
mod transition;
mod tree;
mod watch;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use debros_net::grpc::Channels;
use debros_proto::{ErrorCode, Failure, NodeId, v1};
use tokio::sync::watch as latest;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use v1::replica_call::Operation;
use v1::replica_reply::Outcome;

use crate::clock::Clock;
use clock::VersionClock;
use coordinator::{Coordinator, Inner};
use layouts::Layouts;
use links::Links;
use replica::Replica;
use transition::Transition;

pub use coordinator::{Quorum, Write};
pub use list::{List, Page};
pub use metrics::KvMetrics;
pub use read::Get;
pub use record::{Record, Version};
pub use server::{IsMember, ReplicaService};
pub use store::{Options as StoreOptions, Store, StoreError};
pub use transition::Reporter;
pub use watch::{Watch, Watching};

/// The namespace of requests that nodes make on their own behalf.
const SYSTEM_NAMESPACE: &str = "debros";
/// Clocks are compared this often.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// A node's files are closed within this time when it stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The patience of what runs in the background.
#[derive(Clone, Debug)]
pub struct KvOptions {
    /// Replicas compare what they hold this often.
    pub repair_interval: Duration,
    /// How long a deletion is remembered at least. A node that is away for longer takes the others' word.
    pub tombstone_life: Duration,
    /// Deletions old enough are looked for this often.
    pub collect_interval: Duration,
    /// How the store is opened.
    pub store: StoreOptions,
}

impl Default for KvOptions {
    fn default() -> Self {
        Self {
            repair_interval: Duration::from_secs(10),
            tombstone_life: Duration::from_secs(24 * 3600),
            collect_interval: Duration::from_secs(600),
            store: StoreOptions::default(),
        }
    }
}

/// What the engine is made of.
pub struct KvParts {
    /// This node.
    pub node: NodeId,
    /// What it holds.
    pub store: Store,
    /// The time of day.
    pub clock: Clock,
    /// The way to other nodes.
    pub channels: Channels,
    /// Where its tasks run.
    pub tracker: TaskTracker,
    /// What it counts.
    pub metrics: KvMetrics,
    /// Tells the meta group how far a change of the layout is here.
    pub report: Reporter,
    /// The patience of what runs in the background.
    pub options: KvOptions,
    /// When to stop.
    pub stop: CancellationToken,
}

/// The storage of a member. Cheap to clone.
#[derive(Clone)]
pub struct Kv {
    coordinator: Coordinator,
    tombstone_life: Duration,
}

/// How the storage of a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvStatus {
    /// The layout under which it acts; 0 before there is one.
    pub layout: u64,
    /// Partitions that it still has to copy for a change of the layout.
    pub to_copy: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Bytes of writes kept for absent replicas.
    pub hinted_bytes: u64,
    /// Its clock's distance from its peers' median in milliseconds; `None` before it was compared.
    pub clock_offset_ms: Option<i64>,
}

impl Kv {
    /// Starts the engine.
    pub fn start(parts: KvParts) -> Self {
        let KvParts { node, store, clock, channels, tracker, metrics, report, options, stop } = parts;
        let clock = Arc::new(VersionClock::new(clock, node));
        let layouts = Layouts::new();
        let replica = Replica::new(store, clock.clone(), layouts.clone(), metrics.clone());
        let links = Links::new(channels, tracker.clone());
        let turn = AtomicUsize::new(0);
        let inner = Inner { node, replica, clock, layouts, links, tracker: tracker.clone(), metrics, turn };
        let coordinator = Coordinator { inner: Arc::new(inner) };
        let KvOptions { repair_interval, tombstone_life, collect_interval, store: _ } = options;
        tracker.spawn(Transition::new(coordinator.clone(), report).run(stop.clone()));
        tracker.spawn(probe(coordinator.clone(), stop.clone()));
        tracker.spawn(hints::run(coordinator.clone(), stop.clone()));
        tracker.spawn(repair::run(coordinator.clone(), repair_interval, stop.clone()));
        tracker.spawn(collect::run(coordinator.clone(), tombstone_life, collect_interval, stop));
        Self { coordinator, tombstone_life }
    }

    /// Takes note of a layout that the meta group has decided.
    pub fn learn(&self, layout: v1::StorageLayout) {
        self.coordinator.inner.layouts.learn(layout);
    }

    /// The layout under which this node acts.
    ///
    /// # Errors
    /// `NOT_READY` before there is one.
    pub fn layout(&self) -> Result<v1::StorageLayout, Failure> {
        Ok(self.coordinator.inner.layouts.current()?.wire().clone())
    }

    /// Writes or deletes a key.
    ///
    /// # Errors
    /// Says whether the write may have been applied.
    pub async fn write(&self, write: Write) -> Result<Version, Failure> {
        self.coordinator.write(write).await
    }

    /// What is at a key now; `None` when there is nothing.
    ///
    /// # Errors
    /// Nothing was changed.
    pub async fn get(&self, get: &Get) -> Result<Option<Record>, Failure> {
        let record = self.coordinator.get(get).await?;
        let now = self.coordinator.inner.clock.unix_ms();
        let mut record = record.filter(|record| !record.is_gone(now));
        // A repair needs the value, whether the client does or not.
        if let Some(record) = record.as_mut().filter(|_| !get.with_value) {
            record.value.clear();
        }
        Ok(record)
    }

    /// A page of keys.
    ///
    /// # Errors
    /// Nothing was changed.
    pub async fn list(&self, list: List) -> Result<Page, Failure> {
        self.coordinator.list(list).await
    }

    /// Changes of the keys with a prefix.
    ///
    /// # Errors
    /// `NOT_READY` before there is a layout.
    pub fn watch(&self, watch: Watch) -> Result<Watching, Failure> {
        watch::start(self.coordinator.clone(), watch, self.tombstone_life)
    }

    /// How it is.
    pub fn status(&self) -> KvStatus {
        let inner = &self.coordinator.inner;
        let store = inner.replica.store();
        KvStatus {
            layout: inner.layouts.adopted().map_or(0, |view| view.version()),
            to_copy: inner.metrics.to_copy(),
            disk_bytes: store.disk_bytes(),
            hinted_bytes: store.hinted_bytes(),
            clock_offset_ms: inner.clock.offset_ms(),
        }
    }

    /// The hash tree's root of a partition as this node holds it; `None` when it does not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn root_of(&self, partition: u16) -> Result<Option<Vec<u8>>, StoreError> {
        let inner = &self.coordinator.inner;
        let holds = inner.layouts.adopted().is_some_and(|view| view.readers().holds(inner.node, partition));
        if !holds {
            return Ok(None);
        }
        Ok(Some(inner.replica.store().tree(partition).await?.root().to_vec()))
    }
}

/// A place for the engine, filled when the node has become a member.
#[derive(Clone)]
pub struct KvSlot(Arc<latest::Sender<Option<Kv>>>);

impl Default for KvSlot {
    fn default() -> Self {
        Self(Arc::new(latest::Sender::new(None)))
    }
}

impl KvSlot {
    /// Fills the place.
    pub fn fill(&self, kv: Kv) {
        self.0.send_replace(Some(kv));
    }

    /// Empties it, so that the store can be closed.
    pub fn clear(&self) {
        self.0.send_replace(None);
    }

    /// The engine.
    ///
    /// # Errors
    /// `NOT_READY` before the node is a member, and after it has stopped.
    pub fn get(&self) -> Result<Kv, Failure> {
        self.0.borrow().clone().ok_or_else(|| {
            Failure::new(ErrorCode::NotReady, "this node has not joined a cluster yet: retry in a moment")
        })
    }
}

/// Resolves when the store must not be used any more.
pub async fn failed(store: &Store) -> StoreError {
    store.failed().await
}

/// Closes a store once nobody uses it any more.
pub async fn close(store: Store) {
    store.close(CLOSE_TIMEOUT).await;
}

/// Compares clocks with all peers until the token is cancelled.
async fn probe(coordinator: Coordinator, stop: CancellationToken) {
    let mut adopted = coordinator.inner.layouts.watch_adopted();
    loop {
        let view = adopted.borrow_and_update().clone();
        if let Some(view) = view {
            let others = view.peers().keys().filter(|node| **node != coordinator.inner.node);
            let asked = others.map(|node| {
                let (coordinator, view, asked) = (&coordinator, &view, Instant::now());
                async move {
                    let answer =
                        coordinator.ask_any(view, *node, Operation::Probe(v1::ReplicaProbe {})).await;
                    if let Ok(Outcome::Time(time)) = answer {
                        coordinator.inner.clock.compare(*node, asked, time.unix_ms);
                    }
                }
            });
            let all = futures::future::join_all(asked);
            tokio::select! {
                () = stop.cancelled() => return,
                _ = all => {}
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = adopted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(PROBE_INTERVAL) => {}
        }
    }
}

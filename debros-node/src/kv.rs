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

mod asks;
mod budget;
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
mod traces;
mod transition;
mod tree;
mod watch;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use debros_net::grpc::Channels;
use debros_proto::layout::Phase;
use debros_proto::{Failure, NodeId, limits, v1};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use v1::replica_call::Operation;
use v1::replica_reply::Outcome;

use crate::clock::Clock;
use crate::slot::Slot;
use budget::Budget;
use clock::VersionClock;
use coordinator::{Coordinator, Inner};
use layouts::Layouts;
use links::Links;
use replica::Replica;
use transition::Transition;

pub use coordinator::{Quorum, Write};
pub use list::{List, Page};
pub use metrics::{KvMetrics, StoreMetrics, register_storage};
pub use read::Get;
pub use record::{Record, Version};
pub use server::{IsMember, ReplicaService};
pub use store::{Options as StoreOptions, Store, StoreError};
pub use transition::Reporter;
pub use watch::{Watch, Watching};

/// The namespace of requests that nodes make on their own behalf.
const SYSTEM_NAMESPACE: &str = "debros";
/// Relaxed writes are on disk within this time.
const TICK_INTERVAL: Duration = Duration::from_millis(100);
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
    /// Namespaces whose writes are acknowledged once they survive the end of a process. When as many replicas
    /// of a key as a quorum has lose power within some tenths of a second, such writes are lost.
    pub relaxed_namespaces: BTreeSet<String>,
    /// How the store is opened.
    pub store: StoreOptions,
}

impl Default for KvOptions {
    fn default() -> Self {
        Self {
            repair_interval: Duration::from_secs(10),
            tombstone_life: Duration::from_secs(24 * 3600),
            collect_interval: Duration::from_secs(600),
            relaxed_namespaces: BTreeSet::new(),
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

impl Kv {
    /// Starts the engine.
    pub fn start(parts: KvParts) -> Self {
        let KvParts { node, store, clock, channels, tracker, metrics, report, options, stop } = parts;
        let clock = Arc::new(VersionClock::new(clock, node));
        let layouts = Layouts::new();
        let replica = Replica::new(store, clock.clone(), layouts.clone(), metrics.clone());
        let links = Links::new(channels, tracker.clone());
        let turn = AtomicUsize::new(0);
        let KvOptions {
            repair_interval,
            tombstone_life,
            collect_interval,
            relaxed_namespaces: relaxed,
            store: _,
        } = options;
        let tracked = tracker.clone();
        let lists = Budget::new(("LISTS_BYTES_MAX", limits::LISTS_BYTES_MAX), limits::LIST_WAIT_MAX);
        let inner =
            Inner { node, replica, clock, layouts, links, tracker: tracked, metrics, turn, relaxed, lists };
        let coordinator = Coordinator { inner: Arc::new(inner) };
        tracker.spawn(Transition::new(coordinator.clone(), report).run(stop.clone()));
        tracker.spawn(tick(coordinator.clone(), stop.clone()));
        tracker.spawn(probe(coordinator.clone(), stop.clone()));
        tracker.spawn(hints::run(coordinator.clone(), stop.clone()));
        tracker.spawn(repair::run(coordinator.clone(), repair_interval, stop.clone()));
        tracker.spawn(collect::run(coordinator.clone(), tombstone_life, collect_interval, stop));
        Self { coordinator, tombstone_life }
    }

    /// Takes note of the layout in this node's cluster map.
    pub fn set_layout(&self, layout: v1::StorageLayout) {
        self.coordinator.inner.layouts.update(layout);
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

    /// How far this node's clock is from the median of its peers' and its own, in milliseconds, positive when the
    /// others are ahead; `None` when no peer has been compared with for a while.
    pub fn clock_offset_ms(&self) -> Option<i64> {
        self.coordinator.inner.clock.offset_ms()
    }

    /// How it is, and how far a change of the layout is.
    pub fn status(&self) -> v1::StorageStatus {
        let inner = &self.coordinator.inner;
        let store = inner.replica.store();
        let status = v1::StorageStatus {
            partitions_to_copy: u32::try_from(inner.metrics.to_copy()).unwrap_or(u32::MAX),
            bytes: store.disk_bytes(),
            hinted_bytes: store.hinted_bytes(),
            relaxed_namespaces: inner.relaxed.iter().cloned().collect(),
            ..Default::default()
        };
        let Some(view) = inner.layouts.adopted() else { return status };
        // The newest word on who has copied may be younger than what was adopted.
        let known = inner.layouts.watch_known().borrow().clone();
        let progress = known.filter(|known| known.version == view.version());
        let copied = progress.iter().flat_map(|known| &known.progress);
        v1::StorageStatus {
            layout_version: view.version(),
            phase: phase_name(view.phase()).to_owned(),
            nodes: view.peers().len() as u32,
            nodes_copied: copied.filter(|told| told.copied == view.version()).count() as u32,
            partitions: view.readers().partitions_of_node(inner.node).count() as u32,
            ..status
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

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Stable => "stable",
        Phase::WriteBoth => "write-both",
        Phase::ReadNext => "read-next",
    }
}

/// The storage of this node, once it is a member.
pub type KvSlot = Slot<Kv>;

/// Resolves when the store must not be used any more.
pub async fn failed(store: &Store) -> StoreError {
    store.failed().await
}

/// Closes a store once nobody uses it any more.
pub async fn close(store: Store) {
    store.close(CLOSE_TIMEOUT).await;
}

/// Lets relaxed writes become durable until the token is cancelled.
async fn tick(coordinator: Coordinator, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(TICK_INTERVAL) => {}
        }
        if coordinator.inner.replica.store().tick().await.is_err() {
            return;
        }
    }
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

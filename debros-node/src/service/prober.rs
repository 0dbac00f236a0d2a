//! The prober: every few seconds this node does what a user would, and keeps how it went.
//!
//! One round writes a number into the storage and into a database and has another node read it back, and has
//! another node publish a number that this one listens for. All goes through the services, as requests of clients
//! do, in a namespace that only nodes may name. A round touches one key, one row and one topic of the node's own,
//! whatever the size of the cluster, and the node that helps is drawn anew each time (docs/adr/0009).
//!
//! Decides neither how bad a failure is (`super::health`) nor what to do about it.

mod listener;
mod metrics;
mod work;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use debros_net::grpc::Channels;
use debros_proto::{Failure, NodeId, limits, v1};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::databases::Databases;
use super::membership::ClusterSlot;
use super::pubsub::Messages;
use super::storage::Storage;
use crate::cluster::Cluster;
use crate::cluster::map::ClusterMap;
use listener::Listener;

pub use metrics::ProbeMetrics;

/// What the first round needs, its database above all, is made within this time or while rounds fail.
const PREPARATION: Duration = Duration::from_secs(10);
/// Probing begins when the members and the storage's layout have been the same for so long: a cluster that forms has
/// other work, and what would fail is no measure of it.
const SETTLED_AFTER: Duration = Duration::from_secs(3);
/// It begins after this time in any case.
const SETTLING_MAX: Duration = Duration::from_secs(60);

/// What is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    /// A put here, a get at another node.
    Storage,
    /// A write here, a linearizable read at another node.
    Database,
    /// A publication at another node, received here.
    PubSub,
}

impl Probe {
    /// Every probe, in the order in which they are told.
    pub const ALL: [Self; 3] = [Self::Storage, Self::Database, Self::PubSub];

    /// As it is told.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Storage => "storage",
            Self::Database => "database",
            Self::PubSub => "pubsub",
        }
    }
}

/// How a probe went.
#[derive(Clone, Debug)]
pub struct Probed {
    /// What was probed.
    pub probe: Probe,
    /// The node through which it went; `None` when no other was in reach.
    pub through: Option<NodeId>,
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// How many of its last rounds have failed, this one included.
    pub failed_in_a_row: u32,
    /// How long it took.
    pub took: Duration,
}

/// What the prober works with.
pub struct ProberParts {
    /// Who the members are.
    pub cluster: ClusterSlot,
    /// The service for SQL.
    pub databases: Databases,
    /// The service for the storage.
    pub storage: Storage,
    /// The service for pub/sub.
    pub messages: Messages,
    /// The way to other nodes.
    pub channels: Channels,
    /// What it counts.
    pub metrics: ProbeMetrics,
    /// How often it probes; `None` is never.
    pub interval: Option<Duration>,
}

/// The prober of a node. Cheap to clone.
#[derive(Clone)]
pub struct Prober {
    inner: Arc<Inner>,
}

struct Inner {
    parts: ProberParts,
    listener: Listener,
    latest: Mutex<Option<Round>>,
    begun: AtomicBool,
    /// Held during a round: however many ask, one is under way.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Round {
    at: Instant,
    probed: Vec<Probed>,
}

impl Prober {
    /// A prober that has not probed yet.
    pub fn new(parts: ProberParts) -> Self {
        let listener = Listener::default();
        Self {
            inner: Arc::new(Inner {
                parts,
                listener,
                latest: Mutex::default(),
                begun: AtomicBool::new(false),
                turn: tokio::sync::Mutex::default(),
            }),
        }
    }

    /// Listens for other nodes' messages and probes, until the token is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let Some(interval) = self.inner.parts.interval else { return };
        let probing = async {
            let cluster = self.inner.parts.cluster.joined().await;
            let _ = timeout(SETTLING_MAX, settled(&cluster, SETTLED_AFTER.min(interval))).await;
            self.inner.begun.store(true, Ordering::Relaxed);
            let rounds = async {
                // Whoever sees the cluster settle sees it when the others do.
                tokio::time::sleep(interval.mul_f64(rand::random())).await;
                // What is made anew is no measure of what users get.
                let _ = timeout(PREPARATION, self.prepare()).await;
                loop {
                    self.probe_unless_within(Duration::ZERO).await;
                    tokio::time::sleep(jittered(interval)).await;
                }
            };
            tokio::join!(self.inner.listener.run(&self.inner.parts), rounds);
        };
        stop.run_until_cancelled(probing).await;
    }

    /// How the last round went, which was at most [`limits::PROBE_AGE_MAX`] ago: otherwise one is made now. Empty
    /// where nothing is probed, and before there is anything to tell.
    pub async fn latest(&self) -> Vec<Probed> {
        let Some(interval) = self.inner.parts.interval else { return Vec::new() };
        if !self.inner.begun.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let age_max = limits::PROBE_AGE_MAX.min(interval.saturating_mul(2).max(limits::PROBE_TIMEOUT));
        if self.latest_within(age_max).is_none() {
            // Whoever asks has no more patience than that.
            let _ = timeout(limits::PROBE_TIMEOUT, self.probe_unless_within(age_max)).await;
        }
        self.latest_within(Duration::MAX).map(|round| round.probed).unwrap_or_default()
    }

    /// Whether this node probes at all.
    pub fn is_on(&self) -> bool {
        self.inner.parts.interval.is_some()
    }

    /// Does another node's half of a probe, for the member `of`.
    ///
    /// # Errors
    /// Whatever the engine gives, and `NOT_READY` where this node does not probe.
    pub async fn answer(&self, of: NodeId, request: &v1::CanaryRequest) -> Result<u64, Failure> {
        let timeout_ms = request.header.as_ref().map_or(0, |header| header.timeout_ms);
        let asked = Duration::from_millis(u64::from(timeout_ms)).min(limits::PROBE_TIMEOUT);
        self.inner.answer(of, request.task(), request.number, Instant::now() + asked).await
    }

    fn latest_within(&self, age_max: Duration) -> Option<Round> {
        let latest = self.inner.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.clone().filter(|round| round.at.elapsed() <= age_max)
    }

    /// Makes a round, unless somebody else has just made one.
    async fn probe_unless_within(&self, age_max: Duration) {
        let _turn = self.inner.turn.lock().await;
        if self.latest_within(age_max).is_some_and(|_| !age_max.is_zero()) {
            return;
        }
        let before = self.latest_within(Duration::MAX).map(|round| round.probed).unwrap_or_default();
        // SQLite's numbers are signed, and 0 is for none.
        let number = rand::random_range(1..i64::MAX as u64);
        let probes = Probe::ALL.map(|probe| self.probe(probe, number, &before));
        let probed = futures::future::join_all(probes).await;
        let round = Round { at: Instant::now(), probed };
        *self.inner.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(round);
    }

    async fn probe(&self, probe: Probe, number: u64, before: &[Probed]) -> Probed {
        let (started, inner) = (Instant::now(), &self.inner);
        let deadline = started + limits::PROBE_TIMEOUT;
        let attempt = async {
            match probe {
                Probe::Storage => inner.probe_storage(number, deadline).await,
                Probe::Database => inner.probe_database(number, deadline).await,
                Probe::PubSub => inner.probe_pubsub(number, deadline).await,
            }
        };
        let outcome = timeout_at(deadline, attempt)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} ms", limits::PROBE_TIMEOUT.as_millis())));
        let took = started.elapsed();
        inner.parts.metrics.probed(probe, outcome.is_ok(), took);
        let (through, failure) = match outcome {
            Ok(through) => (through, None),
            Err(reason) => {
                tracing::warn!(probe = probe.as_str(), reason, "a probe failed");
                (None, Some(reason))
            }
        };
        let failed_before =
            before.iter().find(|last| last.probe == probe).map_or(0, |last| last.failed_in_a_row);
        let failed_in_a_row = if failure.is_some() { failed_before.saturating_add(1) } else { 0 };
        Probed { probe, through, failure, failed_in_a_row, took }
    }

    /// Makes what rounds need: the canary's database.
    async fn prepare(&self) {
        while self.inner.make_table(Instant::now() + limits::REQUEST_TIMEOUT_DEFAULT).await.is_err() {
            tokio::time::sleep(limits::PROBE_TIMEOUT).await;
        }
    }
}

/// Waits until nobody has come, gone or been given another share of the storage for this long.
async fn settled(cluster: &Cluster, for_long: Duration) {
    let mut map = cluster.watch();
    loop {
        let seen = shape(&map.borrow_and_update());
        let changed = async { map.wait_for(|map| shape(map) != seen).await.is_ok() };
        match timeout(for_long, changed).await {
            Ok(true) => {}
            // Nothing changed in time, or nothing will any more.
            Ok(false) | Err(_) => return,
        }
    }
}

/// What has to stay the same.
fn shape(map: &ClusterMap) -> (Vec<NodeId>, u64) {
    (map.members().map(|node| node.id).collect(), map.layout().map_or(0, |layout| layout.version))
}

/// Nodes that start together do not probe together.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(0.9..1.1))
}

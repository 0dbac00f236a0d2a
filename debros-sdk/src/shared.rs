//! What all clones of a client share: the network, what is known of the nodes, and the settings.
//! Locks here are short and never held across an await.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use debros_net::grpc::Channels;
use debros_net::{Lane, Multiaddr, Network, PeerId};
use debros_proto::{DatabaseName, Namespace, v1};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::call::{Plan, Target};
use crate::database::Consistency;
use crate::error::{Error, ErrorKind};
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::pubsub::session::Session;
use crate::storage::routes::Routes;
use crate::writer::Writer;

/// What the builder decided.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) operation_timeout: Duration,
    pub(crate) consistency: Consistency,
    pub(crate) bootstrap: Vec<Multiaddr>,
}

/// The state behind every clone of a client.
pub(crate) struct Shared {
    namespace: Namespace,
    settings: Settings,
    channels: Channels,
    nodes: Mutex<Nodes>,
    writers: Mutex<HashMap<DatabaseName, Arc<Writer>>>,
    storage: Routes,
    pubsub: Arc<Session>,
    metrics: Metrics,
    /// Raised only by a node's refusal: a client places nothing, so it needs no map of its own.
    epoch: AtomicU64,
    refresh_wanted: Notify,
    shutdown: CancellationToken,
}

impl Shared {
    pub(crate) fn new(namespace: Namespace, settings: Settings, network: Arc<dyn Network>) -> Self {
        let channels = Channels::new(network);
        Self {
            namespace,
            settings,
            storage: Routes::new(channels.clone()),
            pubsub: Session::new(),
            metrics: Metrics::new(),
            channels,
            nodes: Mutex::default(),
            writers: Mutex::default(),
            epoch: AtomicU64::new(0),
            refresh_wanted: Notify::new(),
            shutdown: CancellationToken::new(),
        }
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn network(&self) -> &Arc<dyn Network> {
        self.channels.network()
    }

    pub(crate) fn channel(&self, peer: PeerId, lane: Lane) -> Channel {
        self.channels.get(peer, lane)
    }

    pub(crate) fn forget_channel(&self, peer: PeerId) {
        self.channels.forget(peer);
    }

    pub(crate) fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn choose(&self, database: Option<&str>, tried: &BTreeSet<PeerId>) -> Option<PeerId> {
        let is_connected = |peer| self.network().is_connected(peer);
        self.nodes().choose(database, tried, is_connected, Instant::now(), rand::random_range(0..usize::MAX))
    }

    /// The first of these replicas that is well, or any other node.
    pub(crate) fn choose_replica(&self, replicas: &[PeerId], tried: &BTreeSet<PeerId>) -> Option<PeerId> {
        let usable = self.nodes().first_usable(replicas, tried, Instant::now());
        usable.or_else(|| self.choose(None, tried))
    }

    pub(crate) fn storage(&self) -> &Routes {
        &self.storage
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn pubsub(&self) -> &Arc<Session> {
        &self.pubsub
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    pub(crate) fn raise_epoch(&self, epoch: u64) {
        self.epoch.fetch_max(epoch, Ordering::Relaxed);
    }

    /// Takes in who leads a database, and where; a hint that names nobody changes nothing.
    pub(crate) fn learn_leader(&self, database: &str, hint: Option<&v1::LeaderHint>) {
        if let Some(leader) = hint.and_then(|hint| self.learn(&hint.peer_id, &hint.addresses)) {
            self.nodes().set_leader(database, leader);
        }
    }

    /// Takes in a node and its addresses as they came over the wire.
    pub(crate) fn learn(&self, peer_id: &str, addresses: &[String]) -> Option<PeerId> {
        let peer: PeerId = peer_id.parse().ok()?;
        let addresses: Vec<Multiaddr> = addresses.iter().filter_map(|address| address.parse().ok()).collect();
        self.network().learn(peer, &addresses);
        self.nodes().learn(peer);
        Some(peer)
    }

    /// The writer of a database; every clone of the client shares it.
    pub(crate) fn writer(&self, database: &DatabaseName) -> Arc<Writer> {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(writers.entry(database.clone()).or_insert_with(|| Arc::new(Writer::new(database.clone()))))
    }

    /// Forgets the sessions of a database that was dropped.
    pub(crate) fn forget_writer(&self, database: &DatabaseName) {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner).remove(database);
    }

    pub(crate) fn deadline(&self, timeout: Option<Duration>) -> Instant {
        Instant::now() + timeout.unwrap_or(self.settings.operation_timeout)
    }

    /// A repeatable operation that any node can answer, within the client's operation timeout.
    pub(crate) fn plan_any(&self) -> Plan {
        Plan { target: Target::Any, deadline: self.deadline(None), repeatable: true }
    }

    /// An operation on the connected node itself, not sent again once the node may have acted on it.
    pub(crate) fn plan_connected_node(&self) -> Result<Plan, Error> {
        let home = self.nodes().home();
        let Some(peer) = home.or_else(|| self.choose(None, &BTreeSet::new())) else {
            return Err(Error::new(ErrorKind::Unreachable, "no node is known; see `debros health`"));
        };
        Ok(Plan { target: Target::Node(peer), deadline: self.deadline(None), repeatable: false })
    }

    /// A question about the connected node, which no other node can answer.
    pub(crate) fn plan_about_connected_node(&self) -> Result<Plan, Error> {
        Ok(Plan { repeatable: true, ..self.plan_connected_node()? })
    }

    pub(crate) fn ask_for_refresh(&self) {
        self.refresh_wanted.notify_one();
    }

    pub(crate) async fn refresh_wanted(&self) {
        self.refresh_wanted.notified().await;
    }

    pub(crate) fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    pub(crate) async fn closed(&self) {
        self.shutdown.cancelled().await;
    }

    pub(crate) fn check_open(&self) -> Result<(), Error> {
        if self.shutdown.is_cancelled() { Err(Error::closed()) } else { Ok(()) }
    }
}

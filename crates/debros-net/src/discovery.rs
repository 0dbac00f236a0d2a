//! Discovery: from one address of one member to connections with all of them, and back to them after
//! every loss.
//!
//! Sits above the seam: dials through [`Network`] and speaks `debros.v1.Peering` over the client
//! lane. What Kademlia and mDNS find arrives here as learnt addresses.
//!
//! [`task`] decides whom to dial and with whom to exchange, and when; [`ledger`] keeps signed records
//! and statuses; [`exchange`] is the exchange itself, both sides; [`backoff`] and [`saved`] are what
//! their names say.
//!
//! ```text
//! network events ──► task ──► dials (JoinSet) ──► network
//!                     │  └──► exchanges (JoinSet) ──► peers
//!                     ▼
//!                  ledger ◄── PeeringService ◄── peers
//! ```
//!
//! Invariants: an SDK client is never dialed and never passed on; a record is passed on only by who
//! was itself connected to its owner, so what is dead dies out; dials and exchanges under way are
//! bounded, and no exchange goes to everybody at once.

mod backoff;
mod exchange;
mod ledger;
mod saved;
mod task;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use debros_proto::{limits, v1};
use libp2p::{Multiaddr, PeerId};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::network::Network;
use ledger::Ledger;

pub use exchange::PeeringService;

/// Says what this process offers and how it is, at the moment it is asked.
pub type OwnStatus = Arc<dyn Fn() -> v1::NodeStatus + Send + Sync>;

/// What discovery is started with.
#[derive(Clone)]
pub struct DiscoveryConfig {
    /// Addresses that are tried until they answer, for ever.
    pub bootstrap: Vec<Multiaddr>,
    /// How often peers exchange what they know; spread over the peers.
    pub interval: Duration,
    /// Whether records of other peers are passed on and believed. Statuses are exchanged either way.
    pub peer_exchange: bool,
    /// Where peers are kept over a restart.
    pub saved_peers: Option<PathBuf>,
    /// No more nodes than this are dialed.
    pub peers_max: usize,
    /// This process's status.
    pub own_status: OwnStatus,
    /// Told how long it took from when a peer became known, or was last found to be out of reach, until it was connected.
    pub on_found: Option<OnFound>,
}

/// Told of a peer that was found. It must not block.
pub type OnFound = Arc<dyn Fn(Duration) + Send + Sync>;

impl DiscoveryConfig {
    /// A node's defaults.
    pub fn new(bootstrap: Vec<Multiaddr>, own_status: OwnStatus) -> Self {
        Self {
            bootstrap,
            interval: INTERVAL_DEFAULT,
            peer_exchange: true,
            saved_peers: None,
            peers_max: limits::MESH_NODES_MAX,
            own_status,
            on_found: None,
        }
    }
}

/// The configuration's own default.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(10);

impl fmt::Debug for DiscoveryConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DiscoveryConfig")
            .field("bootstrap", &self.bootstrap)
            .field("interval", &self.interval)
            .field("peer_exchange", &self.peer_exchange)
            .field("saved_peers", &self.saved_peers)
            .field("peers_max", &self.peers_max)
            .finish_non_exhaustive()
    }
}

/// What a peer said of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerStatus {
    /// Its own words, its `peer_id` proved.
    pub status: v1::NodeStatus,
    /// When it said so.
    pub received: tokio::time::Instant,
}

/// Running discovery; a cheap clone of a handle.
#[derive(Clone)]
pub struct Discovery {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    task: Arc<tokio::sync::Mutex<Option<JoinHandle<()>>>>,
}

/// What the task and the service share.
struct Shared {
    network: Arc<dyn Network>,
    own_status: OwnStatus,
    peer_exchange: bool,
    ledger: Mutex<Ledger>,
    /// Grows with every change of a status.
    changes: watch::Sender<u64>,
}

impl Shared {
    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

impl Discovery {
    /// Starts looking for peers at once. Must be called inside a tokio runtime.
    pub fn start(network: Arc<dyn Network>, config: DiscoveryConfig) -> Self {
        let shared = Arc::new(Shared {
            network,
            own_status: Arc::clone(&config.own_status),
            peer_exchange: config.peer_exchange,
            ledger: Mutex::default(),
            changes: watch::Sender::new(0),
        });
        let (stop, stopped) = watch::channel(false);
        let task = task::Task::new(Arc::clone(&shared), config);
        let task = tokio::spawn(task.run(stopped));
        Self { shared, stop, task: Arc::new(tokio::sync::Mutex::new(Some(task))) }
    }

    /// The service to mount on the client lane.
    pub fn service(&self) -> PeeringService {
        PeeringService::new(Arc::clone(&self.shared))
    }

    /// The last status of every peer that is, or lately was, connected.
    pub fn statuses(&self) -> HashMap<PeerId, PeerStatus> {
        self.shared.ledger().statuses()
    }

    /// The last status of one peer.
    pub fn status_of(&self, peer: PeerId) -> Option<PeerStatus> {
        self.shared.ledger().status_of(peer)
    }

    /// Changes whenever a status does.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Waits until the statuses are as wanted.
    pub async fn wait_for(&self, mut wanted: impl FnMut(&HashMap<PeerId, PeerStatus>) -> bool) {
        let mut changes = self.watch();
        while !wanted(&self.statuses()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Stops dialing and exchanging, and saves the peers.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        let mut task = self.task.lock().await;
        if let Some(task) = task.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the discovery task ended badly");
        }
    }
}

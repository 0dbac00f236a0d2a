//! A simulated machine: one whole node, unchanged, over the simulated network and a simulated disk,
//! and the board on which it shows how it is.
//!
//! The harness never holds a part of a node: a handle that outlived its machine would keep files open.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use debros_net::simulated::{SimulatedNetwork, multiaddr};
use debros_net::{Keypair, Lane};
use debros_node::blocking::Blocking;
use debros_node::clock::Clock;
use debros_node::cluster::ReconcileOptions;
use debros_node::kv::{Kv, KvOptions};
use debros_node::node::{Environment, Node, Settings};
use debros_node::pubsub::PubSubOptions;
use debros_node::raft::{RaftOptions, log};
use debros_proto::layout::PARTITIONS;
use debros_proto::v1;
use tokio::sync::Notify;

use crate::dice::Dice;
use crate::planted;

/// When the simulated world begins.
pub(crate) const EPOCH: Duration = Duration::from_secs(1_700_000_000);
/// The port of every node.
const PORT: u16 = 4001;
/// Small segments are rotated, reused and compacted in every run.
const SEGMENT_BYTES: u64 = 256 << 10;
/// A small tail makes followers that lag read the log's files.
const TAIL_BYTES_MAX: usize = 64 << 10;
/// Address space of a storage.
const MAP_BYTES: usize = 64 << 20;
/// Roots are computed this often once they were asked for.
const ROOTS_INTERVAL: Duration = Duration::from_millis(500);

/// How a node is set up in a scenario.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    /// Nodes whose addresses each node is given.
    pub(crate) bootstrap_nodes: usize,
    /// As [`RaftOptions`]: few, so that each run has purges and snapshots.
    pub(crate) durable_after_entries: u64,
    /// As [`RaftOptions`].
    pub(crate) kept_entries: u64,
    /// How often it shows how it is.
    pub(crate) show_interval: Duration,
    /// One step of simulated time.
    pub(crate) step: Duration,
    /// Whether machines may die and lose power. It takes books of what is durable: a copy of each file that is flushed.
    pub(crate) may_die: bool,
    /// Planted bug: entries are acknowledged before they are on disk.
    pub(crate) acknowledge_before_fsync: bool,
    /// Of the key-value storage.
    pub(crate) storage: StorageTuning,
    /// Of pub/sub.
    pub(crate) pubsub: PubSubOptions,
}

/// How the key-value storage is set up in a scenario.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StorageTuning {
    /// As [`KvOptions`].
    pub(crate) repair_interval: Duration,
    /// As [`KvOptions`].
    pub(crate) tombstone_life: Duration,
    /// As [`KvOptions`].
    pub(crate) collect_interval: Duration,
    /// As [`ReconcileOptions`].
    pub(crate) layout_settles_after: Duration,
    /// As [`ReconcileOptions`].
    pub(crate) lost_after: Duration,
    /// Planted bug: writes are acknowledged before they are on disk.
    pub(crate) acknowledge_before_fsync: bool,
}

impl Default for StorageTuning {
    fn default() -> Self {
        let (kv, reconcile) = (KvOptions::default(), ReconcileOptions::default());
        Self {
            repair_interval: kv.repair_interval,
            tombstone_life: kv.tombstone_life,
            collect_interval: kv.collect_interval,
            layout_settles_after: reconcile.layout_settles_after,
            lost_after: reconcile.lost_after,
            acknowledge_before_fsync: false,
        }
    }
}

/// How the storage of a node is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Engine {
    /// The layout under which it acts.
    pub(crate) layout: v1::StorageLayout,
    /// The root of every partition, `None` for one that it does not hold; empty before they were asked for.
    pub(crate) roots: Vec<Option<Vec<u8>>>,
}

/// What the harness and the machines share.
#[derive(Clone, Default)]
pub(crate) struct Board(Rc<RefCell<BoardState>>);

#[derive(Default)]
struct BoardState {
    shown: BTreeMap<usize, v1::StatusResponse>,
    engines: BTreeMap<usize, Engine>,
    roots_asked: bool,
    failures: Vec<String>,
    formed: bool,
    stops: BTreeMap<usize, Arc<Notify>>,
}

impl Board {
    /// How a node was a moment ago, as an operator would see it, if its machine runs.
    pub(crate) fn shown(&self, node: usize) -> Option<v1::StatusResponse> {
        self.0.borrow().shown.get(&node).cloned()
    }

    /// How a node's storage was a moment ago.
    pub(crate) fn engine(&self, node: usize) -> Option<Engine> {
        self.0.borrow().engines.get(&node).cloned()
    }

    /// From now on the nodes show the roots of their partitions.
    pub(crate) fn ask_for_roots(&self) {
        self.0.borrow_mut().roots_asked = true;
    }

    /// The machine is down.
    pub(crate) fn clear(&self, node: usize) {
        let mut state = self.0.borrow_mut();
        state.shown.remove(&node);
        state.engines.remove(&node);
        state.stops.remove(&node);
    }

    /// Asks a node to stop as it should.
    pub(crate) fn ask_to_stop(&self, node: usize) {
        if let Some(stop) = self.0.borrow().stops.get(&node) {
            stop.notify_one();
        }
    }

    /// What no fault explains.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.0.borrow().failures.clone()
    }

    /// The cluster exists: from now on no node may begin another, whatever its disk has lost.
    pub(crate) fn formed(&self) {
        self.0.borrow_mut().formed = true;
    }

    /// Notes what no fault explains.
    pub(crate) fn fail(&self, failure: String) {
        self.0.borrow_mut().failures.push(failure);
    }

    /// The node that leads the group with this name, by the highest term.
    pub(crate) fn leader(&self, group: &str) -> Option<usize> {
        let state = self.0.borrow();
        let leading = state.shown.iter().filter_map(|(node, shown)| {
            let group = shown.groups.iter().find(|status| status.name == group)?;
            (group.role == "leader").then_some((group.term, *node))
        });
        leading.max().map(|(_, node)| node)
    }
}

/// Everything a machine's software is made from, each time it starts.
#[derive(Clone)]
pub(crate) struct Machine {
    /// Its number, from 0.
    pub(crate) number: usize,
    /// Its disk.
    pub(crate) folder: PathBuf,
    /// How its node is set up.
    pub(crate) tuning: Tuning,
    /// Where it shows how it is.
    pub(crate) board: Board,
    /// How long its disk takes.
    pub(crate) storage: Storage,
    /// What its clock shows.
    pub(crate) skew: Skew,
}

/// How far the clock of a machine is ahead, in milliseconds; also across restarts. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Skew(Arc<AtomicI64>);

impl Skew {
    /// The clock is set.
    pub(crate) fn set(&self, milliseconds: i64) {
        self.0.store(milliseconds, Ordering::Relaxed);
    }

    /// The clock of a node that starts now.
    fn clock(&self) -> Clock {
        let (skew, begin) = (self.0.clone(), EPOCH + turmoil::sim_elapsed().unwrap_or_default());
        let start = tokio::time::Instant::now();
        Clock::from_fn(move || {
            let now = begin + start.elapsed();
            let ahead = skew.load(Ordering::Relaxed);
            let distance = Duration::from_millis(ahead.unsigned_abs());
            if ahead < 0 { now - distance } else { now + distance }
        })
    }
}

/// How long a machine's disk takes: mostly nothing, sometimes as long as a bad disk.
#[derive(Clone)]
pub(crate) struct Storage(Arc<Mutex<StorageState>>);

struct StorageState {
    dice: Dice,
    stalled: bool,
}

/// While a disk is stalled each access takes this long.
const STALL: Duration = Duration::from_millis(400);

impl Storage {
    pub(crate) fn new(dice: Dice) -> Self {
        Self(Arc::new(Mutex::new(StorageState { dice, stalled: false })))
    }

    /// From now on nothing gets done in good time, or it does again.
    pub(crate) fn stall(&self, stalled: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).stalled = stalled;
    }

    fn delay(&self) -> Duration {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.dice.below(200) {
            _ if state.stalled => STALL,
            0 => state.dice.milliseconds(10, 80),
            1..100 => Duration::ZERO,
            _ => state.dice.milliseconds(1, 3),
        }
    }
}

/// The name of a machine in the simulated network.
pub(crate) fn name(node: usize) -> String {
    format!("node-{node}")
}

/// Where a node is; inside the simulation only.
pub(crate) fn socket(node: usize) -> SocketAddr {
    SocketAddr::new(turmoil::lookup(name(node)), PORT)
}

/// Who a node is, whatever becomes of its disk.
pub(crate) fn keypair(node: usize) -> Keypair {
    keypair_of(1, node)
}

/// Who a client is.
pub(crate) fn client_keypair(client: usize) -> Keypair {
    keypair_of(2, client)
}

fn keypair_of(kind: u8, number: usize) -> Keypair {
    let mut seed = [kind; 32];
    seed[..8].copy_from_slice(&(number as u64).to_be_bytes());
    Keypair::ed25519_from_bytes(seed).expect("any 32 bytes are a key")
}

impl Machine {
    /// The software of the machine.
    pub(crate) async fn run(self) -> turmoil::Result {
        let stop = Arc::new(Notify::new());
        self.board.0.borrow_mut().stops.insert(self.number, stop.clone());
        if let Err(error) = self.run_node(&stop).await {
            let elapsed = turmoil::sim_elapsed().unwrap_or_default();
            self.board.fail(format!("node {} ended at {elapsed:?}: {error:#}", self.number));
        }
        // A machine whose node has ended does nothing until it is started again.
        std::future::pending::<()>().await;
        Ok(())
    }

    async fn run_node(&self, stop: &Notify) -> Result<(), anyhow::Error> {
        let at = socket(self.number);
        let (network, incoming) = SimulatedNetwork::start(keypair(self.number), Some(at), &Lane::ALL).await?;
        let storage = self.storage.clone();
        let environment = Environment {
            network,
            incoming,
            blocking: Blocking::Inline(Arc::new(move || storage.delay())),
            clock: self.skew.clock(),
        };
        let node = Node::start(self.settings(), environment).await?;
        let failure = tokio::select! {
            failure = node.failed() => Some(failure),
            () = stop.notified() => None,
            () = self.show(&node) => None,
        };
        match failure {
            Some(failure) => Err(failure.into()),
            None => {
                node.shutdown().await;
                Ok(())
            }
        }
    }

    async fn show(&self, node: &Node) {
        let mut roots_at = Duration::ZERO;
        loop {
            let status = node.cluster_service().node_status();
            self.board.0.borrow_mut().shown.insert(self.number, status);
            let now = turmoil::sim_elapsed().unwrap_or_default();
            let with_roots = self.board.0.borrow().roots_asked && now >= roots_at;
            if let Ok(kv) = node.storage_engine().get() {
                self.show_engine(&kv, with_roots).await;
            }
            if with_roots {
                roots_at = now + ROOTS_INTERVAL;
            }
            tokio::time::sleep(self.tuning.show_interval).await;
        }
    }

    async fn show_engine(&self, kv: &Kv, with_roots: bool) {
        let Ok(layout) = kv.layout() else { return };
        let mut roots = Vec::new();
        if with_roots {
            let asked = futures::future::join_all((0..PARTITIONS).map(|partition| kv.root_of(partition)));
            roots = asked.await.into_iter().map(Result::unwrap_or_default).collect();
        }
        let mut board = self.board.0.borrow_mut();
        let shown = board.engines.entry(self.number).or_default();
        shown.layout = layout;
        if with_roots {
            shown.roots = roots;
        }
    }

    fn settings(&self) -> Settings {
        let others = (0..self.tuning.bootstrap_nodes).filter(|node| *node != self.number);
        let log = log::Options {
            segment_bytes: SEGMENT_BYTES,
            tail_bytes_max: TAIL_BYTES_MAX,
            ..planted::log_options(self.tuning.acknowledge_before_fsync)
        };
        Settings {
            data_folder: self.folder.clone(),
            database_folder: self.folder.join("database"),
            storage_folder: self.folder.join("storage"),
            bootstrap: others.map(|node| multiaddr(socket(node))).collect(),
            discovery_interval: Duration::from_secs(1),
            peer_exchange: true,
            // They go past the storage seam, to tokio's real threads.
            saved_peers: false,
            zone: String::new(),
            replication_factor: 3,
            may_initialise: self.number == 0 && !self.board.0.borrow().formed,
            pinned: None,
            rejoin: false,
            max_database_bytes: 0,
            raft: RaftOptions {
                durable_after_entries: self.tuning.durable_after_entries,
                kept_entries: self.tuning.kept_entries,
                ..RaftOptions::default()
            },
            reconcile: ReconcileOptions {
                lost_after: self.tuning.storage.lost_after,
                layout_settles_after: self.tuning.storage.layout_settles_after,
                ..ReconcileOptions::default()
            },
            log,
            kv: KvOptions {
                repair_interval: self.tuning.storage.repair_interval,
                tombstone_life: self.tuning.storage.tombstone_life,
                collect_interval: self.tuning.storage.collect_interval,
                store: planted::store_options(MAP_BYTES, self.tuning.storage.acknowledge_before_fsync),
                ..KvOptions::default()
            },
            pubsub: self.tuning.pubsub,
            tracing: None,
            // Histories and seeds are of the clients' requests alone.
            probe_interval: None,
        }
    }
}

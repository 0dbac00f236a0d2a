//! The composition root: the only module that sees everything. It starts a node from its parts and
//! stops it in the opposite order.
//!
//! Everything environmental comes in as an argument ([`Environment`]): network, storage seam and
//! clock are libp2p, threads and the system's in production ([`crate::launch`]) and simulated in
//! tests, and nothing below this module can tell.

mod assembly;
mod duties;
mod metrics;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use debros_net::discovery::{Discovery, DiscoveryConfig, OnFound};
use debros_net::grpc::{self, Channels};
use debros_net::{IncomingStreams, Lane, Multiaddr, Network, PeerId};
use debros_proto::{ClusterId, VERSION, v1};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::blocking::Blocking;
use crate::clock::Clock;
use crate::cluster::{self, Cluster, EnterError, Entry, Identity, ReconcileOptions, Removal};
use crate::http::HttpMetrics;
use crate::kv::{self, IsMember, KvMetrics, KvOptions, KvSlot, ReplicaService, Store, StoreError};
use crate::metrics::Bounds;
use crate::pubsub::{PubSubMetrics, PubSubOptions, PubSubSlot, RoutingService};
use crate::raft::log::{self, LogError};
use crate::raft::{Groups, RaftOptions, RaftService};
use crate::rpc::{self, RpcMetrics};
use crate::service::{
    ClusterParts, ClusterService, ClusterSlot, Databases, DiskState, Health, Members, Messages, Prober,
    Registers, Replicas, Standing, Storage, bound_watches, end_leases,
};
use crate::sql::FailedFlush;
use crate::trace::{self, TraceError, TraceMetrics, TraceOptions, Tracer};
use assembly::EngineMetrics;

/// What a node offers.
const SERVICES: [&str; 3] = ["database", "storage", "pubsub"];
/// Requests under way get this long to end when the node stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Leaderships are handed over within this time when the node stops.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(5);
/// Background tasks end within this time when the node stops.
const TASKS_TIMEOUT: Duration = Duration::from_secs(5);

/// What the node lives in.
pub struct Environment {
    /// The network.
    pub network: Arc<dyn Network>,
    /// The streams that peers open to this node.
    pub incoming: IncomingStreams,
    /// Where blocking work runs.
    pub blocking: Blocking,
    /// The time of day.
    pub clock: Clock,
}

/// What the node is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where everything of this node is kept.
    pub data_folder: PathBuf,
    /// Where databases and the Raft log are kept.
    pub database_folder: PathBuf,
    /// Where the key-value storage is kept.
    pub storage_folder: PathBuf,
    /// Addresses of members.
    pub bootstrap: Vec<Multiaddr>,
    /// How often peers exchange what they know.
    pub discovery_interval: Duration,
    /// Whether peers tell each other of others.
    pub peer_exchange: bool,
    /// Whether peers are kept over a restart.
    pub saved_peers: bool,
    /// The failure domain; may be empty.
    pub zone: String,
    /// Replicas of a new database.
    pub replication_factor: u32,
    /// The node may begin a cluster.
    pub may_initialise: bool,
    /// The only cluster it may belong to.
    pub pinned: Option<ClusterId>,
    /// A node that was removed begins anew when it is started again.
    pub rejoin: bool,
    /// What a database may grow to; 0 is no limit.
    pub max_database_bytes: u64,
    /// The timing of Raft.
    pub raft: RaftOptions,
    /// The patience of the meta leader.
    pub reconcile: ReconcileOptions,
    /// The log store.
    pub log: log::Options,
    /// The key-value storage.
    pub kv: KvOptions,
    /// Pub/sub.
    pub pubsub: PubSubOptions,
    /// Traces; `None` for none.
    pub tracing: Option<TraceOptions>,
    /// How often the node probes what users get; `None` is never.
    pub probe_interval: Option<Duration>,
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A folder cannot be used.
    #[error("the folder {folder} cannot be used: check that it exists, is writable and has space")]
    Folder {
        /// Which.
        folder: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The node's place in its cluster cannot be read.
    #[error("the node's place in its cluster cannot be read in {folder}: restore member.json from a backup")]
    Membership {
        /// The data folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The Raft log cannot be opened.
    #[error("the Raft log cannot be opened")]
    Log(#[from] LogError),
    /// The key-value storage cannot be opened.
    #[error(transparent)]
    Storage(#[from] StoreError),
    /// Traces were asked for and cannot be sent.
    #[error(transparent)]
    Tracing(#[from] TraceError),
}

/// Why a running node must end.
#[derive(Debug, thiserror::Error)]
pub enum NodeFailure {
    /// The log could not be written: what is on disk is not known any more.
    #[error("the Raft log failed; the node ends so that it acknowledges nothing it cannot keep: {0}")]
    Log(log::Failure),
    /// A database could not be flushed: what is on disk is not known any more.
    #[error("the node ends so that it does not rely on what it cannot keep: {0}")]
    Database(FailedFlush),
    /// The storage could not be written: what is on disk is not known any more.
    #[error("the node ends so that it acknowledges nothing it cannot keep: {0}")]
    Storage(StoreError),
    /// The node cannot become a member.
    #[error("the node cannot become a member of a cluster")]
    Enter(#[source] Arc<EnterError>),
}

/// A running node.
pub struct Node {
    core: Core,
    registry: Arc<Registry>,
    http_metrics: HttpMetrics,
    discovery: Discovery,
    service: ClusterService,
    entered: watch::Receiver<Option<Arc<EnterError>>>,
    servers: Servers,
}

/// The parts of a node that the others are built on.
#[derive(Clone)]
struct Core {
    network: Arc<dyn Network>,
    blocking: Blocking,
    clock: Clock,
    channels: Channels,
    groups: Groups,
    cluster: ClusterSlot,
    members: Members,
    replicas: Replicas,
    disk: DiskState,
    prober: Prober,
    health: Health,
    databases: Databases,
    kv: KvSlot,
    kv_store: Store,
    kv_metrics: KvMetrics,
    pubsub: PubSubSlot,
    pubsub_metrics: PubSubMetrics,
    stop_clients: CancellationToken,
    stop: CancellationToken,
    tracker: TaskTracker,
    tracer: Tracer,
}

/// The gRPC servers: that for clients stops first, that for peers when nothing is left to replicate.
struct Servers {
    registers: Registers,
    clients: JoinHandle<()>,
    stop_clients: CancellationToken,
    peers: JoinHandle<()>,
    stop_peers: CancellationToken,
}

impl Node {
    /// Starts a node. It serves at once; it is a member later ([`Self::joined`]).
    ///
    /// # Errors
    /// [`StartError`]; nothing goes on running then.
    pub async fn start(settings: Settings, environment: Environment) -> Result<Self, StartError> {
        let Environment { network, incoming, blocking, clock } = environment;
        let mut registry = Registry::default();
        let bounds = Bounds::register(&mut registry);
        let tracker = TaskTracker::new();
        let tracer = tracer(&settings, &*network, &mut registry, &tracker)?;
        let rpc_metrics = RpcMetrics::register(&mut registry).with_tracer(tracer.clone());
        let http_metrics = HttpMetrics::register(&mut registry).with_tracer(tracer.clone());
        let log = log::Options { tracer: tracer.clone(), ..settings.log.clone() };
        let metrics = EngineMetrics::register(&mut registry, &rpc_metrics, &log);

        let known = cluster::read_membership(&settings.data_folder)
            .map_err(|source| StartError::Membership { folder: settings.data_folder.clone(), source })?;
        let core = Core::open(&settings, metrics, network, (blocking, clock), (tracer, tracker)).await?;
        core.register_readings(&mut registry, &bounds);

        let on_found = metrics::register_discovery(&mut registry);
        let discovery = core.discover(&settings, &rpc_metrics, on_found);
        let (initialise_asked, asked) = watch::channel(false);
        let removal = Removal::new(settings.data_folder.clone(), core.blocking.clone());
        let service = ClusterService::new(ClusterParts {
            cluster: core.cluster.clone(),
            groups: core.groups.clone(),
            replicas: core.replicas.clone(),
            channels: core.channels.clone(),
            network: core.network.clone(),
            discovery: discovery.clone(),
            health: core.health.clone(),
            prober: core.prober.clone(),
            disk: core.disk.clone(),
            activity: core.activity(&rpc_metrics),
            clock: core.clock.clone(),
            zone: settings.zone.clone(),
            started: Instant::now(),
            kv: core.kv.clone(),
            initialise_asked,
            belongs_to: known.map(|known| known.cluster_id).or(settings.pinned),
            removal: removal.clone(),
            rejoin: settings.rejoin,
        });
        let servers = core.serve(incoming, &service, &discovery, rpc_metrics, &bounds);
        let entered = core.run(settings, &discovery, asked, removal);
        core.tracker.spawn(service.clone().leave_when_told(core.stop.clone()));
        let registry = Arc::new(registry);
        Ok(Self { core, registry, http_metrics, discovery, service, entered, servers })
    }

    /// This node's identity.
    pub fn peer_id(&self) -> PeerId {
        self.core.network.local_peer()
    }
    /// Where others can dial it.
    pub fn addresses(&self) -> Vec<Multiaddr> {
        self.core.network.listen_addresses()
    }
    /// The service for databases.
    pub fn databases(&self) -> &Databases {
        &self.core.databases
    }
    /// The key-value storage's engine.
    pub fn storage_engine(&self) -> &KvSlot {
        &self.core.kv
    }

    /// The service for registers.
    pub fn registers(&self) -> &Registers {
        &self.servers.registers
    }
    /// The service for the cluster.
    pub fn cluster_service(&self) -> &ClusterService {
        &self.service
    }
    /// The probes.
    pub fn health(&self) -> &Health {
        &self.core.health
    }
    /// For the HTTP listeners.
    pub fn http_metrics(&self) -> &HttpMetrics {
        &self.http_metrics
    }
    /// Cancelled when the node begins to stop.
    pub fn stopping(&self) -> CancellationToken {
        self.servers.stop_clients.clone()
    }
    /// The metrics.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }
    /// Waits until the node is a member.
    pub async fn joined(&self) -> Cluster {
        self.core.cluster.joined().await
    }

    /// How many other nodes and clients are connected.
    pub fn connected_peers(&self) -> usize {
        self.core.network.peers().iter().filter(|peer| peer.connected).count()
    }

    /// Resolves when the node must end.
    pub async fn failed(&self) -> NodeFailure {
        let log = self.core.groups.log().failed();
        let mut entered = self.entered.clone();
        let refused = async {
            match entered.wait_for(Option::is_some).await.map(|refused| refused.clone()) {
                Ok(Some(refused)) => refused,
                Ok(None) | Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            failure = log => NodeFailure::Log(failure),
            failure = self.core.replicas.failed() => NodeFailure::Database(failure),
            failure = kv::failed(&self.core.kv_store) => NodeFailure::Storage(failure),
            refused = refused => NodeFailure::Enter(refused),
        }
    }

    /// Stops: hands over leaderships, refuses new requests, lets those under way end, stops the
    /// groups, flushes the log, closes the network. Each step has its own deadline.
    pub async fn shutdown(self) {
        let Self { core, discovery, servers, .. } = self;
        // First: a leader that refuses requests and waits for those under way is one that nobody can write to.
        core.groups.hand_over(HAND_OVER_TIMEOUT).await;
        servers.stop_clients.cancel();
        within(DRAIN_TIMEOUT, "requests under way", servers.clients).await;
        if let Ok(pubsub) = core.pubsub.get() {
            pubsub.say_goodbye().await;
        }
        // What has come back since, from others that stop.
        core.groups.hand_over(HAND_OVER_TIMEOUT).await;
        core.stop.cancel();
        discovery.shutdown().await;
        for group in core.groups.all() {
            core.groups.close(group.id()).await;
        }
        if let Err(error) = core.groups.log().close().await {
            tracing::error!(%error, "the Raft log did not close cleanly");
        }
        servers.stop_peers.cancel();
        core.network.shutdown().await;
        within(DRAIN_TIMEOUT, "streams of other nodes", servers.peers).await;
        core.kv.close();
        core.pubsub.close();
        core.tracer.stop();
        core.tracker.close();
        within(TASKS_TIMEOUT, "background tasks", core.tracker.wait()).await;
        kv::close(core.kv_store).await;
        tracing::info!("stopped");
    }
}

impl Core {
    fn discover(&self, settings: &Settings, metrics: &RpcMetrics, on_found: OnFound) -> Discovery {
        let config = DiscoveryConfig {
            interval: settings.discovery_interval,
            peer_exchange: settings.peer_exchange,
            on_found: Some(on_found),
            saved_peers: settings.saved_peers.then(|| settings.data_folder.join("peers.json")),
            ..DiscoveryConfig::new(settings.bootstrap.clone(), self.own_status(&settings.zone, metrics))
        };
        Discovery::start(self.network.clone(), config)
    }

    fn own_status(&self, zone: &str, metrics: &RpcMetrics) -> debros_net::discovery::OwnStatus {
        let peer_id = self.network.local_peer().to_string();
        let (cluster, disk) = (self.cluster.clone(), self.disk.clone());
        let (zone, metrics) = (zone.to_owned(), metrics.clone());
        Arc::new(move || {
            let joined = cluster.get().ok();
            v1::NodeStatus {
                peer_id: peer_id.clone(),
                node_id: joined.as_ref().map_or(0, |cluster| cluster.node().0),
                cluster_id: joined.as_ref().map(|cluster| cluster.id().to_string()).unwrap_or_default(),
                version: VERSION.to_owned(),
                zone: zone.clone(),
                services: SERVICES.map(str::to_owned).to_vec(),
                load: metrics.load(),
                epoch: joined.as_ref().map_or(0, |cluster| cluster.map().epoch().0),
                client: false,
                disk_low: disk.is_low(),
            }
        })
    }

    fn serve(
        &self,
        mut incoming: IncomingStreams,
        service: &ClusterService,
        discovery: &Discovery,
        metrics: RpcMetrics,
        bounds: &Bounds,
    ) -> Servers {
        let peer_streams = incoming.take(&[Lane::Raft, Lane::Bulk, Lane::Kv, Lane::Pubsub]);
        let members = self.cluster.clone();
        let is_member: IsMember = Arc::new(move |peer| {
            members.get().is_ok_and(|cluster| cluster.map().node_of_peer(&peer.to_string()).is_some())
        });
        let peer_routes = Routes::new(RaftService::new(self.groups.clone(), self.tracker.clone()))
            .add_service(ReplicaService::server(self.kv.clone(), is_member, self.tracer.clone()))
            .add_service(RoutingService::server(self.pubsub.clone()));
        let (stop_clients, stop_peers) = (self.stop_clients.clone(), CancellationToken::new());
        let storage = Storage::new(self.kv.clone(), self.disk.clone());
        let registers = Registers::new(self.databases.clone(), stop_clients.clone(), self.tracker.clone());
        bound_watches(bounds, &registers, &storage);
        let client_routes = Routes::new(rpc::database_service(self.databases.clone(), metrics.clone()))
            .add_service(rpc::storage_service(storage, metrics.clone(), stop_clients.clone()))
            .add_service(rpc::pubsub_service(Messages::new(self.pubsub.clone()), metrics.clone()))
            .add_service(rpc::registers_service(registers.clone(), metrics.clone()))
            .add_service(rpc::cluster_service(service.clone(), metrics.clone()))
            .add_service(rpc::membership_service(service.clone(), metrics))
            .add_service(discovery.service().into_server());
        let client_routes = if self.tracer.is_on() { trace::route(client_routes) } else { client_routes };
        Servers {
            registers,
            clients: tokio::spawn(serve(client_routes, incoming, stop_clients.clone())),
            stop_clients,
            peers: tokio::spawn(serve(peer_routes, peer_streams, stop_peers.clone())),
            stop_peers,
        }
    }

    /// Starts what runs in the background. Gives why the node could not become a member, once it is
    /// known that it cannot.
    fn run(
        &self,
        settings: Settings,
        discovery: &Discovery,
        initialise_asked: watch::Receiver<bool>,
        removal: Removal,
    ) -> watch::Receiver<Option<Arc<EnterError>>> {
        let identity = Identity {
            peer: self.network.local_peer(),
            zone: settings.zone,
            services: SERVICES.map(str::to_owned).to_vec(),
        };
        let entry = Entry {
            identity: identity.clone(),
            data_folder: settings.data_folder,
            groups: self.groups.clone(),
            channels: self.channels.clone(),
            blocking: self.blocking.clone(),
            clock: self.clock.clone(),
            may_initialise: settings.may_initialise,
            pinned: settings.pinned,
            initialise_asked,
        };
        let (told, entered) = watch::channel(None);
        let (tracker, stop) = (&self.tracker, &self.stop);
        let engines = (settings.kv, settings.pubsub);
        tracker.spawn(self.clone().enter(entry, discovery.clone(), settings.reconcile, engines, told));
        let standing = Standing {
            cluster: self.cluster.clone(),
            kv: self.kv.clone(),
            pubsub: self.pubsub.clone(),
            channels: self.channels.clone(),
            bootstrap: settings.bootstrap.clone(),
            removal,
        };
        tracker.spawn(standing.run(stop.clone()));
        tracker.spawn(self.members.clone().run(self.channels.clone(), settings.bootstrap, stop.clone()));
        tracker.spawn(self.replicas.clone().run(self.cluster.clone(), stop.clone()));
        tracker.spawn(self.prober.clone().run(stop.clone()));
        tracker.spawn(end_leases(self.replicas.clone(), stop.clone()));
        let disks = [settings.database_folder, settings.storage_folder];
        tracker.spawn(self.disk.clone().watch(disks, self.blocking.clone(), stop.clone()));
        tracker.spawn(self.clone().heed_disks(discovery.clone()));
        tracker.spawn(self.clone().notice_strangers(discovery.clone()));
        tracker.spawn(self.clone().follow_map(identity));
        entered
    }
}

/// Records where somebody takes what is recorded.
fn tracer(
    settings: &Settings,
    network: &dyn Network,
    registry: &mut Registry,
    tracker: &TaskTracker,
) -> Result<Tracer, TraceError> {
    let metrics = TraceMetrics::register(registry);
    let Some(options) = &settings.tracing else { return Ok(Tracer::off()) };
    let identity = trace::Identity { peer: network.local_peer().to_string(), zone: settings.zone.clone() };
    Tracer::start(options, &identity, metrics, tracker)
}

async fn within<T>(limit: Duration, what: &'static str, work: impl Future<Output = T>) {
    if tokio::time::timeout(limit, work).await.is_err() {
        tracing::warn!(what, ?limit, "did not end in time while the node stopped");
    }
}

async fn serve(routes: Routes, incoming: IncomingStreams, stop: CancellationToken) {
    if let Err(error) = grpc::serve(routes, incoming, stop.cancelled_owned()).await {
        tracing::error!(%error, "a gRPC server ended");
    }
}

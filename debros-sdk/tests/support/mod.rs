//! A small cluster in this process, to prove the client's retrying against: real gRPC servers over
//! in-memory streams, one shared log, exactly-once sessions as DESIGN section 5 has them. Nodes can
//! be killed and frozen at any moment, also between applying a write and answering it.

mod storage;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use debros_net::{
    ByteStream, ClusterSecret, Host, HostConfig, IncomingStream, IncomingStreams, Keypair, KnownPeer, Lane,
    Multiaddr, Network, OpenError, PeerEvent, PeerId, grpc,
};
use debros_proto::v1::cluster_server::{Cluster as ClusterService, ClusterServer};
use debros_proto::v1::database_server::{Database as DatabaseService, DatabaseServer};
use debros_proto::v1::storage_server::StorageServer;
use debros_proto::{ErrorCode, Failure, v1};
use debros_sdk::memory::MemoryStorage;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

/// The cluster and its network.
#[derive(Clone)]
pub(crate) struct World {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<PeerEvent>,
    client: PeerId,
    /// What all nodes store.
    pub(crate) storage: MemoryStorage,
}

#[derive(Default)]
pub(crate) struct State {
    nodes: Vec<Node>,
    pub(crate) leader: Option<usize>,
    /// Every applied statement.
    pub(crate) log: Vec<String>,
    sessions: HashMap<u64, Session>,
    opened: u64,
    /// What happens to the next writes after they were applied.
    pub(crate) after_apply: Vec<Fault>,
    /// Requests that reached each node's `Execute`.
    pub(crate) executes: HashMap<usize, usize>,
    pub(crate) violations: Vec<String>,
    /// The nodes are members of no cluster yet.
    pub(crate) forming: bool,
    /// Replicas of each key of the storage.
    pub(crate) replicas: u32,
    pub(crate) layout_version: u64,
    /// Storage calls that reached each node: the node, the key, and the clock that came with it.
    pub(crate) operates: Vec<(usize, String, u64)>,
    /// Messages that carried storage calls.
    pub(crate) frames: usize,
    /// So many storage calls are told that the layout has changed.
    pub(crate) stale_answers: usize,
    /// How often the layout was asked for.
    pub(crate) layouts_told: usize,
    /// The node that told of changes last.
    pub(crate) watched: Option<usize>,
    /// Watches tell no resume tokens.
    pub(crate) tokenless: bool,
}

#[derive(Default)]
struct Session {
    results: BTreeMap<u64, v1::ExecuteResponse>,
    acknowledged: u64,
}

/// A fault between applying and answering.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The node dies and another leads.
    Kill,
    /// The same, and whoever leads now has lost all sessions.
    KillAndForget,
    /// The node falls silent, its connections stay, and another leads.
    Freeze,
    /// The answer never comes, all else goes on.
    Mute,
}

struct Node {
    peer: PeerId,
    address: Multiaddr,
    incoming: mpsc::Sender<IncomingStream>,
    up: bool,
    links: CancellationToken,
    frozen: CancellationToken,
}

impl World {
    pub(crate) fn new(nodes: usize) -> Self {
        let (events, _) = broadcast::channel(64);
        let client = Keypair::generate_ed25519().public().to_peer_id();
        let world = Self { state: Arc::default(), events, client, storage: MemoryStorage::new() };
        for index in 0..nodes {
            let peer = Keypair::generate_ed25519().public().to_peer_id();
            let (senders, incoming) = IncomingStreams::channel(&[Lane::Client]);
            let service = Service { world: world.clone(), index };
            tokio::spawn(grpc::serve(service.routes(), incoming, std::future::pending()));
            world.state().nodes.push(Node {
                peer,
                address: format!("/memory/{}", index + 1).parse().unwrap(),
                incoming: senders.sender(Lane::Client).unwrap().clone(),
                up: true,
                links: CancellationToken::new(),
                frozen: CancellationToken::new(),
            });
        }
        let mut state = world.state();
        (state.leader, state.replicas, state.layout_version) = (Some(0), 3, 1);
        drop(state);
        world
    }

    /// The same cluster over libp2p on loopback; the hosts live as long as they are kept.
    pub(crate) async fn over_libp2p(nodes: usize, secret: Option<ClusterSecret>) -> (Self, Vec<Arc<Host>>) {
        let world = Self::new(nodes);
        let mut hosts = Vec::new();
        for index in 0..nodes {
            let listen = vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()];
            let config = HostConfig {
                secret: secret.clone(),
                ..HostConfig::node(Keypair::generate_ed25519(), listen)
            };
            let (host, mut incoming) = Host::start(config).await.unwrap();
            let service = Service { world: world.clone(), index };
            let incoming = incoming.take(&[Lane::Client]);
            tokio::spawn(grpc::serve(service.routes(), incoming, std::future::pending()));
            let mut state = world.state();
            state.nodes[index].peer = host.local_peer();
            state.nodes[index].address = host.listen_addresses().remove(0);
            hosts.push(host);
        }
        (world, hosts)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn network(&self) -> Arc<dyn Network> {
        Arc::new(self.clone())
    }

    pub(crate) fn address(&self, index: usize) -> String {
        self.state().nodes[index].address.to_string()
    }

    pub(crate) fn kill(&self, index: usize) {
        let mut state = self.state();
        let node = &mut state.nodes[index];
        node.up = false;
        node.links.cancel();
        let _ = self.events.send(PeerEvent::Disconnected(node.peer));
    }

    /// The node falls silent, its connections stay.
    pub(crate) fn freeze(&self, index: usize) {
        self.state().nodes[index].frozen.cancel();
    }

    pub(crate) fn restart(&self, index: usize) {
        let mut state = self.state();
        state.nodes[index].links = CancellationToken::new();
        state.nodes[index].up = true;
    }

    fn strike(&self, index: usize, fault: Fault) {
        match fault {
            Fault::Mute => return,
            Fault::Kill => self.kill(index),
            Fault::KillAndForget => {
                self.kill(index);
                self.state().sessions.clear();
            }
            Fault::Freeze => self.freeze(index),
        }
        let mut state = self.state();
        let next = (0..state.nodes.len()).find(|other| *other != index && state.nodes[*other].up);
        state.leader = next;
    }

    /// Why a node cannot be reached, when it cannot.
    fn refusal(&self, peer: PeerId) -> Option<OpenError> {
        let state = self.state();
        let Some(node) = state.nodes.iter().find(|node| node.peer == peer) else {
            return Some(OpenError::NoAddress(peer));
        };
        (!node.up).then(|| OpenError::Unreachable {
            addresses: vec![node.address.clone()],
            reason: "connection refused".into(),
            timed_out: false,
        })
    }
}

#[async_trait]
impl Network for World {
    fn local_peer(&self) -> PeerId {
        self.client
    }
    fn listen_addresses(&self) -> Vec<Multiaddr> {
        Vec::new()
    }
    async fn open(&self, peer: PeerId, lane: Lane) -> Result<ByteStream, OpenError> {
        if let Some(refusal) = self.refusal(peer) {
            return Err(refusal);
        }
        let (incoming, links, frozen) = {
            let state = self.state();
            let node = state.nodes.iter().find(|node| node.peer == peer).unwrap();
            (node.incoming.clone(), node.links.clone(), node.frozen.clone())
        };
        let (ours, mut near) = tokio::io::duplex(64 << 10);
        let (mut far, theirs) = tokio::io::duplex(64 << 10);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = links.cancelled() => return,
                () = frozen.cancelled() => {}
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
            }
            // Frozen: nothing moves, and the streams stay open until the node is killed.
            links.cancelled().await;
        });
        let stream = ByteStream::new(self.client, lane, theirs);
        let incoming_stream = IncomingStream { peer: self.client, lane, stream };
        incoming.try_send(incoming_stream).map_err(|_| OpenError::Busy(lane))?;
        Ok(ByteStream::new(peer, lane, ours))
    }
    async fn connect(&self, address: &Multiaddr) -> Result<PeerId, OpenError> {
        let peer = self.state().nodes.iter().find(|node| node.address == *address).map(|node| node.peer);
        let peer = peer.ok_or(OpenError::Unreachable {
            addresses: vec![address.clone()],
            reason: "nobody is there".into(),
            timed_out: false,
        })?;
        self.refusal(peer).map_or(Ok(peer), Err)
    }
    async fn reach(&self, peer: PeerId) -> Result<(), OpenError> {
        self.refusal(peer).map_or(Ok(()), Err)
    }
    async fn disconnect(&self, _peer: PeerId) {}
    fn stats(&self) -> debros_net::NetworkStats {
        debros_net::NetworkStats::default()
    }
    fn learn(&self, _peer: PeerId, _addresses: &[Multiaddr]) {}
    fn forget(&self, _peer: PeerId) {}
    fn peers(&self) -> Vec<KnownPeer> {
        let state = self.state();
        let known = |node: &Node| KnownPeer {
            peer: node.peer,
            addresses: vec![node.address.clone()],
            connected: node.up,
            last_seen_ms: None,
            transport: None,
            round_trip: None,
        };
        state.nodes.iter().map(known).collect()
    }
    fn is_connected(&self, peer: PeerId) -> bool {
        self.refusal(peer).is_none()
    }
    fn watch_peers(&self) -> broadcast::Receiver<PeerEvent> {
        self.events.subscribe()
    }
    fn own_record(&self) -> Option<Vec<u8>> {
        None
    }
    async fn shutdown(&self) {}
}

#[derive(Clone)]
struct Service {
    world: World,
    index: usize,
}

impl Service {
    fn routes(self) -> Routes {
        Routes::new(DatabaseServer::new(self.clone()))
            .add_service(ClusterServer::new(self.clone()))
            .add_service(StorageServer::new(self))
    }

    /// This node leads, or says who does.
    fn lead(&self) -> Result<MutexGuard<'_, State>, Status> {
        let state = self.world.state();
        match state.leader {
            Some(leader) if leader == self.index => Ok(state),
            Some(leader) => {
                let node = &state.nodes[leader];
                let hint = v1::LeaderHint {
                    peer_id: node.peer.to_string(),
                    addresses: vec![node.address.to_string()],
                };
                Err(Failure::new(ErrorCode::NotLeader, "another node leads").with_leader(Some(hint)).into())
            }
            None => Err(Failure::new(ErrorCode::Unavailable, "no leader is known").into()),
        }
    }

    fn apply(&self, request: &v1::ExecuteRequest) -> Result<(v1::ExecuteResponse, Option<Fault>), Status> {
        *self.world.state().executes.entry(self.index).or_default() += 1;
        let mut state = self.lead()?;
        let place =
            request.session.ok_or_else(|| Status::from(Failure::invalid("a write without a session")))?;
        let Some(session) = state.sessions.get_mut(&place.id) else {
            return Err(Failure::new(ErrorCode::SessionExpired, "the session is unknown").into());
        };
        if let Some(result) = session.results.get(&place.sequence) {
            return Ok((result.clone(), None));
        }
        if place.sequence < session.acknowledged {
            let violation = format!("sequence {} below {}", place.sequence, session.acknowledged);
            state.violations.push(violation);
            return Err(Failure::new(ErrorCode::SessionExpired, "acknowledged already").into());
        }
        session.acknowledged = session.acknowledged.max(place.acknowledged);
        let acknowledged = session.acknowledged;
        session.results.retain(|sequence, _| *sequence >= acknowledged);
        let counts = v1::Counts { last_insert_id: 0, rows_affected: 1 };
        let outcome = v1::statement_result::Outcome::Counts(counts);
        let result = v1::ExecuteResponse {
            results: vec![v1::StatementResult { outcome: Some(outcome) }],
            log_index: 0,
            leader: None,
        };
        session.results.insert(place.sequence, result.clone());
        let sql = request.statements[0].sql.clone();
        state.log.push(sql);
        let fault = state.after_apply.pop();
        Ok((result, fault))
    }
}

#[async_trait]
impl DatabaseService for Service {
    async fn execute(
        &self,
        request: Request<v1::ExecuteRequest>,
    ) -> Result<Response<v1::ExecuteResponse>, Status> {
        let (result, fault) = self.apply(request.get_ref())?;
        if let Some(fault) = fault {
            self.world.strike(self.index, fault);
            std::future::pending::<()>().await;
        }
        Ok(Response::new(result))
    }
    async fn query(&self, _: Request<v1::QueryRequest>) -> Result<Response<v1::QueryResponse>, Status> {
        let state = self.lead()?;
        let count = i64::try_from(state.log.len()).unwrap();
        let value = v1::Value { kind: Some(v1::value::Kind::Integer(count)) };
        let rows = v1::Rows {
            columns: vec!["count".into()],
            types: vec![String::new()],
            rows: vec![v1::Row { values: vec![value] }],
        };
        let outcome = Some(v1::statement_result::Outcome::Rows(rows));
        let results = vec![v1::StatementResult { outcome }];
        Ok(Response::new(v1::QueryResponse { results, applied_index: 0, leader: None }))
    }
    async fn open_session(
        &self,
        _: Request<v1::OpenSessionRequest>,
    ) -> Result<Response<v1::OpenSessionResponse>, Status> {
        let mut state = self.lead()?;
        state.opened += 1;
        let id = state.opened;
        state.sessions.insert(id, Session::default());
        Ok(Response::new(v1::OpenSessionResponse { id, lifetime_ms: 1000 }))
    }
    async fn create_database(
        &self,
        _: Request<v1::CreateDatabaseRequest>,
    ) -> Result<Response<v1::CreateDatabaseResponse>, Status> {
        Err(Failure::new(ErrorCode::PermissionDenied, "this cluster has one database").into())
    }
    async fn drop_database(
        &self,
        _: Request<v1::DropDatabaseRequest>,
    ) -> Result<Response<v1::DropDatabaseResponse>, Status> {
        Err(Failure::new(ErrorCode::PermissionDenied, "this cluster has one database").into())
    }
    async fn list_databases(
        &self,
        _: Request<v1::ListDatabasesRequest>,
    ) -> Result<Response<v1::ListDatabasesResponse>, Status> {
        let leader = self.world.state().leader.map_or(0, |leader| leader as u64 + 1);
        let database = v1::DatabaseInfo { name: "default".into(), group: 1, replicas: vec![], leader };
        Ok(Response::new(v1::ListDatabasesResponse { databases: vec![database] }))
    }
}

#[async_trait]
impl ClusterService for Service {
    async fn members(&self, _: Request<v1::MembersRequest>) -> Result<Response<v1::MembersResponse>, Status> {
        let state = self.world.state();
        if state.forming {
            return Err(Failure::new(ErrorCode::NotReady, "this node has joined no cluster yet").into());
        }
        let member = |(index, node): (usize, &Node)| v1::Member {
            node_id: index as u64 + 1,
            peer_id: node.peer.to_string(),
            addresses: vec![node.address.to_string()],
            state: v1::MemberState::Active as i32,
            ..Default::default()
        };
        let members = state.nodes.iter().enumerate().map(member).collect();
        Ok(Response::new(v1::MembersResponse { cluster_id: String::new(), epoch: 1, members }))
    }
    async fn health(&self, _: Request<v1::HealthRequest>) -> Result<Response<v1::HealthResponse>, Status> {
        Ok(Response::new(v1::HealthResponse { status: "healthy".into(), ..Default::default() }))
    }
    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let peer_id = self.world.state().nodes[self.index].peer.to_string();
        Ok(Response::new(v1::StatusResponse {
            peer_id,
            node_id: self.index as u64 + 1,
            ..Default::default()
        }))
    }
    async fn peers(&self, _: Request<v1::PeersRequest>) -> Result<Response<v1::PeersResponse>, Status> {
        Ok(Response::new(v1::PeersResponse::default()))
    }
    async fn connect_peer(
        &self,
        _: Request<v1::ConnectPeerRequest>,
    ) -> Result<Response<v1::ConnectPeerResponse>, Status> {
        Err(Failure::invalid("this network is complete").into())
    }
    async fn disconnect_peer(
        &self,
        _: Request<v1::DisconnectPeerRequest>,
    ) -> Result<Response<v1::DisconnectPeerResponse>, Status> {
        Err(Failure::invalid("this network is complete").into())
    }
    async fn leave(&self, request: Request<v1::LeaveRequest>) -> Result<Response<v1::LeaveResponse>, Status> {
        Ok(Response::new(v1::LeaveResponse { epoch: request.get_ref().node_id }))
    }
    async fn initialise(
        &self,
        _: Request<v1::InitialiseRequest>,
    ) -> Result<Response<v1::InitialiseResponse>, Status> {
        Err(Failure::new(ErrorCode::AlreadyExists, "a cluster exists").into())
    }
    async fn hand_over(
        &self,
        _: Request<v1::HandOverRequest>,
    ) -> Result<Response<v1::HandOverResponse>, Status> {
        Err(Failure::new(ErrorCode::NotReady, "this process leads nothing").into())
    }
    async fn log_level(
        &self,
        _: Request<v1::LogLevelRequest>,
    ) -> Result<Response<v1::LogLevelResponse>, Status> {
        Err(Failure::new(ErrorCode::NotReady, "this process keeps no log of its own").into())
    }
}

impl State {
    /// How often a statement was applied.
    pub(crate) fn applied(&self, sql: &str) -> usize {
        self.log.iter().filter(|applied| *applied == sql).count()
    }

    pub(crate) fn applied_once_each(&self) -> bool {
        self.log.iter().collect::<HashSet<_>>().len() == self.log.len()
    }

    pub(crate) fn forget_sessions(&mut self) {
        self.sessions.clear();
    }

    pub(crate) fn sessions_opened(&self) -> u64 {
        self.opened
    }
}

//! What a client asks about the node and the cluster, and what nodes ask of each other as members.

mod leaving;

use std::collections::HashMap;
use std::time::Duration;

use debros_net::grpc::Channels;
use debros_net::{Multiaddr, PeerId};
use debros_proto::{ClusterId, ErrorCode, Failure, HasHeader, VERSION, v1};
use tokio::sync::watch;
use tokio::time::Instant;

use super::authorise::{Action, Principal, authorise};
use super::disk::DiskState;
use super::health::Health;
use super::membership::ClusterSlot;
use super::prober::Prober;
use super::replicas::Replicas;
use crate::clock::Clock;
use crate::cluster::{Cluster, Registration, Removal};
use crate::kv::KvSlot;
use crate::raft::{Group, Groups};
use crate::sql;

/// The service for everything that is not data.
#[derive(Clone)]
pub struct ClusterService {
    parts: std::sync::Arc<Parts>,
}

/// Leaderships are handed over within this time, so that the caller still hears of it.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(5);

/// Gives what each engine has answered since the node started.
pub type Activity = std::sync::Arc<dyn Fn() -> Vec<v1::EngineActivity> + Send + Sync>;

/// What the service answers from.
pub struct Parts {
    /// The cluster, once joined.
    pub cluster: ClusterSlot,
    /// Every group of this node, also that of the map.
    pub groups: Groups,
    /// This node's replicas.
    pub replicas: Replicas,
    /// To the other nodes.
    pub channels: Channels,
    /// The network.
    pub network: std::sync::Arc<dyn debros_net::Network>,
    /// What the other nodes said of themselves.
    pub discovery: debros_net::discovery::Discovery,
    /// The node's checks.
    pub health: Health,
    /// The node's probes.
    pub prober: Prober,
    /// Room on the disks.
    pub disk: DiskState,
    /// What the engines have answered.
    pub activity: Activity,
    /// For timestamps.
    pub clock: Clock,
    /// The failure domain.
    pub zone: String,
    /// When the node started.
    pub started: Instant,
    /// Tells the task that enters a cluster to initialise one.
    pub initialise_asked: watch::Sender<bool>,
    /// The key-value storage, once there is one.
    pub kv: KvSlot,
    /// The cluster that the data folder or the configuration names; `None` for a node that belongs nowhere, and may be
    /// asked to initialise one.
    pub belongs_to: Option<ClusterId>,
    /// Whether this node was removed.
    pub removal: Removal,
    /// A node that was removed begins anew when it is started again.
    pub rejoin: bool,
}

impl ClusterService {
    /// A service over the node's parts.
    pub fn new(parts: Parts) -> Self {
        Self { parts: std::sync::Arc::new(parts) }
    }

    /// How this node is.
    ///
    /// # Errors
    /// When the request is not authorised.
    pub fn status(
        &self,
        principal: &Principal,
        request: &v1::StatusRequest,
    ) -> Result<v1::StatusResponse, Failure> {
        authorise(principal, Action::Observe, request.header())?;
        Ok(self.node_status())
    }

    /// How this node is, for whoever was authorised elsewhere.
    pub fn node_status(&self) -> v1::StatusResponse {
        let parts = &self.parts;
        let cluster = parts.cluster.get().ok();
        let replicas = parts.replicas.all();
        let network = &parts.network;
        v1::StatusResponse {
            peer_id: network.local_peer().to_string(),
            node_id: cluster.as_ref().map_or(0, |cluster| cluster.node().0),
            cluster_id: cluster.as_ref().map(|cluster| cluster.id().to_string()).unwrap_or_default(),
            version: VERSION.to_owned(),
            zone: parts.zone.clone(),
            uptime_seconds: parts.started.elapsed().as_secs(),
            epoch: cluster.as_ref().map_or(0, |cluster| cluster.map().epoch().0),
            connected_peers: self.known_nodes().iter().filter(|peer| peer.connected).count() as u32,
            database_bytes: replicas.iter().map(sql::Database::bytes).sum(),
            groups: cluster.as_ref().map(|cluster| group_statuses(cluster, &replicas)).unwrap_or_default(),
            listen_addresses: network.listen_addresses().iter().map(ToString::to_string).collect(),
            warnings: cluster.as_ref().map(Cluster::warnings).unwrap_or_default(),
            storage: parts.kv.get().ok().map(|kv| kv.status()),
            activity: (parts.activity)(),
            disk_free_bytes: parts.disk.free_bytes(),
            belongs_to: self.belongs_to(),
            begins_anew: parts.rejoin && parts.removal.is_noted(),
        }
    }

    /// The cluster of this node, joined or not; empty for none.
    fn belongs_to(&self) -> String {
        let joined = self.parts.cluster.get().ok().map(|cluster| cluster.id());
        joined.or(self.parts.belongs_to).map(|id| id.to_string()).unwrap_or_default()
    }

    /// The peers that this node knows.
    ///
    /// # Errors
    /// When the request is not authorised.
    pub fn peers(
        &self,
        principal: &Principal,
        request: &v1::PeersRequest,
    ) -> Result<v1::PeersResponse, Failure> {
        authorise(principal, Action::Observe, request.header())?;
        Ok(v1::PeersResponse { peers: self.known_nodes() })
    }

    /// The nodes among the peers.
    fn known_nodes(&self) -> Vec<v1::Peer> {
        let statuses = self.parts.discovery.statuses();
        let map = self.parts.cluster.get().map(|cluster| cluster.map()).ok();
        // For who joined a moment ago and has not said its id yet.
        let mapped = |peer: &str| Some(map.as_ref()?.node_of_peer(peer)?.id.0);
        let peers = self.parts.network.peers().into_iter().filter_map(|known| {
            let status = statuses.get(&known.peer).map(|heard| heard.status.clone()).unwrap_or_default();
            // A client listens nowhere and says nothing of itself.
            let client = status.client || (status.peer_id.is_empty() && known.addresses.is_empty());
            (!client).then(|| v1::Peer {
                peer_id: known.peer.to_string(),
                addresses: known.addresses.iter().map(ToString::to_string).collect(),
                connected: known.connected,
                last_seen_unix_ms: known.last_seen_ms.unwrap_or(0),
                services: status.services,
                version: status.version,
                zone: status.zone,
                node_id: Some(status.node_id)
                    .filter(|told| *told != 0)
                    .or_else(|| mapped(&known.peer.to_string()))
                    .unwrap_or(0),
                rtt_us: known.round_trip.map_or(0, |rtt| u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX)),
            })
        });
        peers.collect()
    }

    /// The members of the cluster.
    ///
    /// # Errors
    /// `NOT_READY` before this node is one.
    pub fn members(
        &self,
        principal: &Principal,
        request: &v1::MembersRequest,
    ) -> Result<v1::MembersResponse, Failure> {
        authorise(principal, Action::Observe, request.header())?;
        let cluster = self.parts.cluster.get()?;
        let (map, meta) = (cluster.map(), cluster.meta().status());
        let members = map.members().map(|node| {
            let role = if meta.voters.contains(&node.id) {
                v1::GroupRole::Voter
            } else if meta.learners.contains(&node.id) {
                v1::GroupRole::Learner
            } else {
                v1::GroupRole::Unspecified
            };
            let peer = node.peer_id.parse::<PeerId>();
            v1::Member {
                node_id: node.id.0,
                peer_id: node.peer_id.clone(),
                addresses: node.addresses.clone(),
                zone: node.zone.clone(),
                state: node.state as i32,
                meta_role: role as i32,
                meta_leader: meta.leader == Some(node.id),
                connected: node.id == cluster.node()
                    || peer.is_ok_and(|peer| self.parts.network.is_connected(peer)),
                version: node.version.clone(),
            }
        });
        Ok(v1::MembersResponse {
            cluster_id: cluster.id().to_string(),
            epoch: map.epoch().0,
            members: members.collect(),
        })
    }

    /// How the node is.
    ///
    /// # Errors
    /// When the request is not authorised; a node that is not well answers that it is not.
    pub async fn health(
        &self,
        principal: &Principal,
        request: &v1::HealthRequest,
    ) -> Result<v1::HealthResponse, Failure> {
        authorise(principal, Action::Observe, request.header())?;
        Ok(self.parts.health.report().await)
    }

    /// Connects to a peer.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a malformed address, `UNAVAILABLE` when nobody answers there.
    pub async fn connect(
        &self,
        principal: &Principal,
        request: &v1::ConnectPeerRequest,
    ) -> Result<v1::ConnectPeerResponse, Failure> {
        authorise(principal, Action::Operate, request.header())?;
        let address: Multiaddr = request.address.parse().map_err(|error| {
            Failure::invalid(format!(
                "{:?} is not a multiaddr ({error}); it looks like /ip4/10.0.0.1/tcp/4001/p2p/12D3KooW...",
                request.address
            ))
        })?;
        let connected = self.parts.network.connect(&address).await;
        let peer = connected.map_err(|error| Failure::new(ErrorCode::Unavailable, error.to_string()))?;
        Ok(v1::ConnectPeerResponse { peer_id: peer.to_string() })
    }

    /// Closes the connections to a peer. A member is dialed again by itself.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a malformed peer id.
    pub async fn disconnect(
        &self,
        principal: &Principal,
        request: &v1::DisconnectPeerRequest,
    ) -> Result<v1::DisconnectPeerResponse, Failure> {
        authorise(principal, Action::Operate, request.header())?;
        let peer: PeerId = request
            .peer_id
            .parse()
            .map_err(|_| Failure::invalid(format!("{:?} is not a peer id", request.peer_id)))?;
        self.parts.network.disconnect(peer).await;
        Ok(v1::DisconnectPeerResponse {})
    }

    /// Asks this node to initialise a cluster: an operator does so once.
    ///
    /// # Errors
    /// `ALREADY_EXISTS` when the node belongs to a cluster, or its data folder says that it did.
    pub async fn initialise(
        &self,
        principal: &Principal,
        request: &v1::InitialiseRequest,
    ) -> Result<v1::InitialiseResponse, Failure> {
        let authorised = authorise(principal, Action::Operate, request.header())?;
        if let Ok(cluster) = self.parts.cluster.get() {
            let message = format!("this node already belongs to cluster {}", cluster.id());
            return Err(Failure::new(ErrorCode::AlreadyExists, message));
        }
        if self.parts.belongs_to.is_some() {
            return Err(Failure::new(
                ErrorCode::AlreadyExists,
                "this node belongs, or is pinned, to a cluster already and is about to join it",
            ));
        }
        self.parts.initialise_asked.send_replace(true);
        let joined = tokio::time::timeout_at(authorised.deadline, self.parts.cluster.joined()).await;
        let cluster = joined.map_err(|_| {
            Failure::new(
                ErrorCode::UnknownOutcome,
                "the cluster is still being initialised: ask for its status",
            )
        })?;
        Ok(v1::InitialiseResponse { cluster_id: cluster.id().to_string() })
    }

    /// Hands over every leadership of this node that another voter can take, as it does when it stops.
    ///
    /// # Errors
    /// When the request is not authorised. What could not be handed over in time is counted in the answer.
    pub async fn hand_over_leaderships(
        &self,
        principal: &Principal,
        request: &v1::HandOverRequest,
    ) -> Result<v1::HandOverResponse, Failure> {
        let authorised = authorise(principal, Action::Operate, request.header())?;
        let left = authorised.deadline.saturating_duration_since(Instant::now());
        self.parts.groups.hand_over(left.min(HAND_OVER_TIMEOUT)).await;
        let led = self.parts.groups.all().into_iter().filter(Group::is_leader).count();
        Ok(v1::HandOverResponse { still_led: u32::try_from(led).unwrap_or(u32::MAX) })
    }

    /// Admits a node to the cluster.
    ///
    /// # Errors
    /// `WRONG_CLUSTER`, or `NOT_READY` before this node is a member itself.
    pub async fn join(
        &self,
        principal: &Principal,
        request: v1::JoinRequest,
    ) -> Result<v1::JoinResponse, Failure> {
        authorise(principal, Action::Cooperate, request.header())?;
        if *principal != Principal::Peer(request.peer_id.parse().map_err(|_| bad_peer(&request.peer_id))?) {
            return Err(Failure::new(ErrorCode::PermissionDenied, "a node joins for itself only"));
        }
        let cluster = self.parts.cluster.get()?;
        let v1::JoinRequest { peer_id, incarnation, addresses, zone, services, version, cluster_id, .. } =
            request;
        let registration = Registration { peer_id, incarnation, addresses, zone, services, version };
        let node = cluster.admit(registration, &cluster_id).await?;
        Ok(v1::JoinResponse {
            node_id: node.0,
            cluster_id: cluster.id().to_string(),
            epoch: cluster.map().epoch().0,
        })
    }

    /// Takes a proposal from another member.
    ///
    /// # Errors
    /// `NOT_LEADER` when this node does not lead the meta group.
    pub async fn propose(
        &self,
        principal: &Principal,
        request: v1::ProposeRequest,
    ) -> Result<v1::ProposeResponse, Failure> {
        authorise(principal, Action::Cooperate, request.header())?;
        let cluster = self.parts.cluster.get()?;
        let member = match principal {
            Principal::Peer(peer) => cluster.map().node_of_peer(&peer.to_string()).is_some(),
            Principal::Http | Principal::Node(_) => false,
        };
        if !member {
            return Err(Failure::new(ErrorCode::PermissionDenied, "only members change the cluster map"));
        }
        Ok(v1::ProposeResponse { outcome: cluster.accept_proposal(request.command).await? })
    }

    /// Does this node's half of another member's probe.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` for who is no member; whatever the engine gives.
    pub async fn canary(
        &self,
        principal: &Principal,
        request: &v1::CanaryRequest,
    ) -> Result<v1::CanaryResponse, Failure> {
        authorise(principal, Action::Cooperate, request.header())?;
        let map = self.parts.cluster.get()?.map();
        let member = match principal {
            Principal::Peer(peer) => map.node_of_peer(&peer.to_string()),
            Principal::Http | Principal::Node(_) => None,
        };
        let member = member.ok_or_else(|| {
            Failure::new(ErrorCode::PermissionDenied, "only members have others probe for them")
        })?;
        Ok(v1::CanaryResponse { number: self.parts.prober.answer(member.id, request).await? })
    }
}

fn bad_peer(peer_id: &str) -> Failure {
    Failure::invalid(format!("{peer_id:?} is not a peer id"))
}

fn group_statuses(cluster: &Cluster, replicas: &[sql::Database]) -> Vec<v1::GroupStatus> {
    let map = cluster.map();
    let names: HashMap<_, _> = map
        .databases()
        .map(|database| (database.group, format!("{}/{}", database.namespace, database.name)))
        .collect();
    let mut statuses = vec![group_status(cluster.meta(), "meta".to_owned())];
    statuses.extend(replicas.iter().map(|replica| {
        let group = replica.group();
        group_status(group, names.get(&group.id()).cloned().unwrap_or_default())
    }));
    statuses.sort_by_key(|status| status.group);
    statuses
}

fn group_status(group: &Group, name: String) -> v1::GroupStatus {
    let status = group.status();
    v1::GroupStatus {
        group: group.id().0,
        name,
        leader: status.leader.map_or(0, |leader| leader.0),
        term: status.term,
        last_log_index: status.last_log_index,
        applied_index: status.applied_index,
        voters: status.voters.iter().map(|node| node.0).collect(),
        learners: status.learners.iter().map(|node| node.0).collect(),
        role: status.role.as_str().to_owned(),
    }
}

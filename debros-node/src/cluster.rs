//! The cluster: the meta group, the map it keeps, and how a node becomes and stays a member.
//!
//! Every member replicates the meta group, most of them without a vote, so each reads the map from
//! its own memory and the data path never waits for this module. Only the meta group's leader
//! decides; every other node sends it what it wants changed ([`Cluster::propose`]).

mod engine;
mod join;
mod layout;
pub mod map;
mod membership_file;
mod metrics;
mod placement;
mod reconcile;
mod removal;

use std::sync::Arc;
use std::time::Duration;

use debros_net::grpc::Channels;
use debros_net::{Lane, PeerId};
use debros_proto::names::CANARY_NAMESPACE;
use debros_proto::{ClusterId, ErrorCode, Failure, GroupId, NodeId, limits, v1};
use prost::Message;
use tokio::sync::watch;
use v1::membership_client::MembershipClient;
use v1::meta_command::Operation;

use crate::clock::Clock;
use crate::raft::{Group, Leader, ProposeError};
use engine::MetaEngine;
use map::{ClusterMap, NodeState};

pub use join::{EnterError, Entry, Identity, enter};
pub use membership_file::{Membership, read as read_membership};
pub use metrics::register_cluster;
pub use placement::Liveness;
pub use reconcile::{ReconcileOptions, Reconciler};
pub use removal::{Removal, former, set_aside};

/// A write of the map is given up after this much time without a leader.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait for a leader to be known before looking again.
const LEADER_WAIT: Duration = Duration::from_millis(100);

/// A member's view of its cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    id: ClusterId,
    node: NodeId,
    meta: Group,
    map: watch::Receiver<Arc<ClusterMap>>,
    channels: Channels,
    clock: Clock,
}

/// How a joining node presents itself to the leader.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Its peer id in base58.
    pub peer_id: String,
    /// Its log store.
    pub incarnation: String,
    /// Where it can be dialed.
    pub addresses: Vec<String>,
    /// Its failure domain.
    pub zone: String,
    /// What it offers.
    pub services: Vec<String>,
    /// The version it runs.
    pub version: String,
}

impl Cluster {
    fn new(
        membership: &Membership,
        meta: Group,
        engine: &MetaEngine,
        channels: Channels,
        clock: Clock,
    ) -> Self {
        let map = engine.watch();
        let inner = Inner { id: membership.cluster_id, node: membership.node_id, meta, map, channels, clock };
        Self { inner: Arc::new(inner) }
    }

    /// The cluster's identity.
    pub fn id(&self) -> ClusterId {
        self.inner.id
    }
    /// This node's id in it.
    pub fn node(&self) -> NodeId {
        self.inner.node
    }
    /// The meta group's replica on this node.
    pub fn meta(&self) -> &Group {
        &self.inner.meta
    }
    /// The last known map.
    pub fn map(&self) -> Arc<ClusterMap> {
        self.inner.map.borrow().clone()
    }
    /// The map as it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.inner.map.clone()
    }

    /// Changes the map through the meta group's leader, wherever it is, and waits until this node
    /// has the changed map.
    ///
    /// # Errors
    /// A refusal by the map's rules, or `UNAVAILABLE` when no leader was found in time.
    pub async fn propose(&self, operation: Operation) -> Result<v1::MetaOutcome, Failure> {
        refused_or(self.commit(Some(operation)).await?)
    }

    /// The map with everything that was committed before this call: the last known one may be older.
    ///
    /// # Errors
    /// `UNAVAILABLE` when no leader was found, or this node did not get its map, in time.
    pub async fn current_map(&self) -> Result<Arc<ClusterMap>, Failure> {
        // Without an operation a command changes nothing, and its outcome still tells the epoch.
        let epoch = self.commit(None).await?.epoch;
        let map = self.map();
        if map.epoch().0 < epoch {
            return Err(Failure::new(ErrorCode::Unavailable, "this node's cluster map is behind: retry"));
        }
        Ok(map)
    }

    async fn commit(&self, operation: Option<Operation>) -> Result<v1::MetaOutcome, Failure> {
        let stamp_unix_ms = self.inner.clock.unix_ms();
        // 0 is for none.
        let proposal = rand::random::<u64>().max(1);
        let command = v1::MetaCommand { stamp_unix_ms, operation, proposal };
        let deadline = tokio::time::Instant::now() + PROPOSE_TIMEOUT;
        let mut last = Failure::new(ErrorCode::Unavailable, "the meta group has no leader");
        while tokio::time::Instant::now() < deadline {
            match self.propose_once(&command).await {
                Ok(outcome) => {
                    self.reached(outcome.epoch).await;
                    return Ok(outcome);
                }
                // Commands of the map may be repeated: they are refused or do nothing the second time.
                Err(failure) => last = failure,
            }
            let _ = tokio::time::timeout(LEADER_WAIT, self.inner.meta.changed()).await;
        }
        Err(last)
    }

    async fn propose_once(&self, command: &v1::MetaCommand) -> Result<v1::MetaOutcome, Failure> {
        let bytes = command.encode_to_vec();
        match self.inner.meta.propose(bytes.clone().into()).await {
            Ok(committed) => decode_outcome(&committed.outcome),
            Err(ProposeError::NotLeader(leader)) => self.propose_at(leader, bytes).await,
            Err(error @ (ProposeError::Unknown | ProposeError::Stopped(_))) => {
                Err(Failure::new(ErrorCode::Unavailable, error.to_string()))
            }
        }
    }

    async fn propose_at(&self, leader: Option<Leader>, command: Vec<u8>) -> Result<v1::MetaOutcome, Failure> {
        let peer = leader
            .and_then(|leader| leader.peer)
            .ok_or_else(|| Failure::new(ErrorCode::Unavailable, "the meta group has no leader now"))?;
        let mut client = MembershipClient::new(self.inner.channels.get(peer, Lane::Client));
        let request = v1::ProposeRequest { header: Some(self.node_header()), command: command.into() };
        let call = tokio::time::timeout(PROPOSE_TIMEOUT, client.propose(request)).await;
        let reply = call
            .map_err(|_| Failure::new(ErrorCode::Unavailable, "the meta group's leader does not answer"))?
            .map_err(|status| Failure::from_status(&status))?;
        decode_outcome(&reply.into_inner().outcome)
    }

    /// Serves a proposal that another node sent to this one as the leader.
    ///
    /// # Errors
    /// `NOT_LEADER` when it is not.
    pub async fn accept_proposal(&self, command: bytes::Bytes) -> Result<bytes::Bytes, Failure> {
        match self.inner.meta.propose(command).await {
            Ok(committed) => Ok(committed.outcome),
            Err(ProposeError::NotLeader(_)) => {
                Err(Failure::new(ErrorCode::NotLeader, "this node does not lead the meta group"))
            }
            Err(error) => Err(Failure::new(ErrorCode::Unavailable, error.to_string())),
        }
    }

    /// Makes a node a member: registers it, wherever the leader is. The leader then adds it to the
    /// meta group by itself.
    ///
    /// # Errors
    /// `WRONG_CLUSTER` when the node belongs, or is pinned, to another cluster.
    pub async fn admit(&self, registration: Registration, wanted: &str) -> Result<NodeId, Failure> {
        if !wanted.is_empty() && wanted.parse() != Ok(self.id()) {
            return Err(Failure::new(
                ErrorCode::WrongCluster,
                format!(
                    "this is cluster {}, but the joining node belongs to cluster {wanted}: \
                     point it at its own cluster, or give it an empty data folder",
                    self.id()
                ),
            ));
        }
        let Registration { peer_id, incarnation, addresses, zone, services, version } = registration;
        let outcome = self
            .propose(Operation::RegisterNode(v1::MetaRegisterNode {
                peer_id,
                incarnation,
                addresses,
                zone,
                services,
                version,
                node_id: 0,
            }))
            .await?;
        Ok(NodeId(outcome.node_id))
    }

    /// Where the replicas of a new database should be.
    pub fn place(&self, replication_factor: u32, liveness: &Liveness) -> Vec<NodeId> {
        placement::new_replicas(&self.map(), replication_factor, liveness)
    }

    /// The header of requests that this node makes on its own behalf.
    pub fn node_header(&self) -> v1::RequestHeader {
        v1::RequestHeader {
            namespace: SYSTEM_NAMESPACE.to_owned(),
            epoch: self.map().epoch().0,
            hops: limits::FORWARD_HOPS_MAX,
            timeout_ms: 0,
        }
    }

    /// The peer of a node id.
    pub fn peer_of(&self, node: NodeId) -> Option<PeerId> {
        self.map().node(node)?.peer_id.parse().ok()
    }

    async fn reached(&self, epoch: u64) {
        let mut map = self.watch();
        // A replica that lags does not hold up the caller: the map arrives by itself.
        let _ = tokio::time::timeout(PROPOSE_TIMEOUT, map.wait_for(|map| map.epoch().0 >= epoch)).await;
    }

    /// Says why the cluster is less than it should be; empty when all is well.
    pub fn warnings(&self) -> Vec<String> {
        let map = self.map();
        let active = map.members().filter(|node| node.state == NodeState::Active).count();
        let short = map
            .databases()
            // A cluster that is smaller than its default holds nobody's data for that.
            .filter(|database| database.namespace.as_str() != CANARY_NAMESPACE)
            .filter(|database| (database.replicas.len() as u32) < database.replication_factor)
            .count();
        let mut warnings = Vec::new();
        if short > 0 {
            warnings.push(format!(
                "degraded: under-replicated: {short} databases have fewer replicas than asked for, \
                 the cluster has {active} nodes"
            ));
        }
        warnings
    }
}

/// The namespace of requests that nodes make on their own behalf.
pub const SYSTEM_NAMESPACE: &str = "debros";

/// The group of the cluster map.
pub const META: GroupId = GroupId::META;

fn decode_outcome(bytes: &[u8]) -> Result<v1::MetaOutcome, Failure> {
    v1::MetaOutcome::decode(bytes)
        .map_err(|_| Failure::new(ErrorCode::Internal, "the meta group's answer cannot be read"))
}

fn refused_or(outcome: v1::MetaOutcome) -> Result<v1::MetaOutcome, Failure> {
    match outcome.refused {
        Some(refusal) => Err(Failure::new(refusal.code(), refusal.message)),
        None => Ok(outcome),
    }
}

//! How a node leaves the cluster: it hands over what counts on it, and is taken out by another member.

use std::collections::BTreeMap;
use std::time::Duration;

use debros_net::grpc::open_error;
use debros_net::{Lane, PeerId};
use debros_proto::{ErrorCode, Failure, GroupId, HasHeader, NodeId, limits, v1};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use v1::cluster_client::ClusterClient;
use v1::meta_command::Operation;

use super::ClusterService;
use crate::cluster::Cluster;
use crate::cluster::map::{Database, NodeState};
use crate::raft::{Desired, Group, Role};
use crate::service::authorise::{Action, Authorised, Principal, authorise};

/// A leaving node looks this often whether it has handed everything over.
const LEAVE_POLL: Duration = Duration::from_millis(200);
/// A node that leaves of itself says after so long what it still waits for.
const LEAVE_ATTEMPT: Duration = Duration::from_secs(60);
/// Another replica says within this who votes in a group, or the next one is asked.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

impl ClusterService {
    /// A planned leave: the node that goes waits until no group counts on it, then it is taken out.
    ///
    /// # Errors
    /// When it is the last node, or it still holds something at the request's deadline; what was
    /// begun stays in force, and asking again goes on.
    pub async fn leave(
        &self,
        principal: &Principal,
        request: &v1::LeaveRequest,
    ) -> Result<v1::LeaveResponse, Failure> {
        let authorised = authorise(principal, Action::Operate, request.header())?;
        let cluster = self.parts.cluster.get()?;
        let node = if request.node_id == 0 { cluster.node() } else { NodeId(request.node_id) };
        let active = cluster.map().members().filter(|node| node.state == NodeState::Active).count();
        let known = cluster.map().node(node).map(|node| node.state);
        match known {
            None => return Err(Failure::new(ErrorCode::NotFound, format!("there is no node {node}"))),
            Some(NodeState::Removed) => {
                let epoch = removed_by_leader(&cluster, node, authorised.deadline).await?;
                return Ok(v1::LeaveResponse { epoch });
            }
            Some(NodeState::Active) if active <= 1 => {
                return Err(Failure::invalid("the last node of a cluster cannot leave: stop it instead"));
            }
            Some(_) => {}
        }
        let leaving = self.leave_as(principal, &authorised, &cluster, node);
        // Whoever waits below keeps the deadline itself, and can say more; this is for lost answers.
        let left = tokio::time::timeout_at(authorised.deadline + LEAVE_POLL, leaving).await;
        let epoch = left.unwrap_or_else(|_| Err(still_leaving(node, "its place in the map")))?;
        Ok(v1::LeaveResponse { epoch })
    }

    /// The node itself decides when it may go. Whoever else is asked passes that on to it, and takes
    /// it out when it says so.
    async fn leave_as(
        &self,
        principal: &Principal,
        authorised: &Authorised,
        cluster: &Cluster,
        node: NodeId,
    ) -> Result<u64, Failure> {
        let forwarded = authorised.hops >= limits::FORWARD_HOPS_MAX;
        let peer = cluster.peer_of(node);
        if node == cluster.node() {
            set_state(cluster, node, NodeState::Leaving).await?;
            self.hand_over(cluster, authorised.deadline).await?;
            if forwarded {
                return Ok(cluster.map().epoch().0);
            }
            // Its own replica of the map may be dropped before it hears that it was taken out.
            return self.ask_to_be_removed(cluster, authorised.deadline).await;
        }
        if peer.is_some_and(|peer| *principal == Principal::Peer(peer)) {
            return set_state(cluster, node, NodeState::Removed).await;
        }
        if let Some(peer) = peer.filter(|peer| !forwarded && self.parts.network.is_connected(*peer)) {
            match self.ask_to_leave(cluster, peer, node, authorised.deadline).await {
                Ok(_) => return set_state(cluster, node, NodeState::Removed).await,
                Err(status) if open_error(&status).is_none() => return Err(Failure::from_status(&status)),
                Err(status) => tracing::info!(%node, %status, "a node that is to leave is out of reach"),
            }
        }
        set_state(cluster, node, NodeState::Leaving).await?;
        removed_by_leader(cluster, node, authorised.deadline).await
    }

    /// Waits until nothing counts on this node, and does its part where it leads.
    async fn hand_over(&self, cluster: &Cluster, deadline: Instant) -> Result<(), Failure> {
        let mut map = cluster.watch();
        loop {
            drop(map.borrow_and_update());
            let Some(held) = self.held(cluster).await else { return Ok(()) };
            if Instant::now() >= deadline {
                return Err(still_leaving(cluster.node(), &held));
            }
            tokio::select! {
                _ = map.changed() => {}
                () = tokio::time::sleep(LEAVE_POLL) => {}
            }
        }
    }

    /// What still counts on this node; `None` when it may go.
    async fn held(&self, cluster: &Cluster) -> Option<String> {
        let (map, node) = (cluster.map(), cluster.node());
        let placed = |database: &&Database| {
            let founder = !database.initialised && database.founders.contains(&node);
            database.replicas.contains(&node) || founder
        };
        if let Some(database) = map.databases().find(placed) {
            return Some(format!("a replica of {}/{}", database.namespace, database.name));
        }
        if map.holds_storage(node) {
            return Some("a share of the storage".to_owned());
        }
        for id in self.parts.groups.log().groups() {
            let database = map.databases().find(|database| database.group == id);
            let name = match database {
                Some(database) => format!("{}/{}", database.namespace, database.name),
                None if id == GroupId::META => "the cluster map".to_owned(),
                // Dropped: nobody needs it any more.
                None => continue,
            };
            let Some(group) = self.parts.groups.get(id) else {
                return Some(format!("a replica of {name} that is not open yet"));
            };
            let status = group.status();
            if status.role == Role::Leader {
                if let Some(database) = database {
                    align(cluster, database, &group).await;
                }
                return Some(format!("the leadership of {name}"));
            }
            let counted = status.voters.contains(&node);
            if counted && !self.let_go(cluster, database, node).await {
                return Some(format!("a vote in {name}"));
            }
        }
        None
    }

    /// Whether a group's leader elsewhere says that this node has no vote in it: a node that was away
    /// when its replica was replaced is not told.
    async fn let_go(&self, cluster: &Cluster, database: Option<&Database>, node: NodeId) -> bool {
        let Some(database) = database else { return false };
        for peer in database.replicas.iter().filter_map(|replica| cluster.peer_of(*replica)) {
            let mut client = ClusterClient::new(self.parts.channels.get(peer, Lane::Client));
            let request = v1::StatusRequest { header: Some(cluster.node_header()) };
            let reply = tokio::time::timeout(STATUS_TIMEOUT, client.status(request)).await;
            let Ok(Ok(reply)) = reply else { continue };
            let groups = reply.into_inner().groups;
            let led = groups
                .iter()
                .find(|status| status.group == database.group.0 && status.role == Role::Leader.as_str());
            if let Some(status) = led {
                return !status.voters.contains(&node.0);
            }
        }
        false
    }

    /// Passes the request on to the node that is to leave.
    async fn ask_to_leave(
        &self,
        cluster: &Cluster,
        peer: PeerId,
        node: NodeId,
        deadline: Instant,
    ) -> Result<u64, Status> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
        let header = v1::RequestHeader { timeout_ms, ..cluster.node_header() };
        let mut client = ClusterClient::new(self.parts.channels.get(peer, Lane::Client));
        let reply = client.leave(v1::LeaveRequest { header: Some(header), node_id: node.0 }).await?;
        Ok(reply.into_inner().epoch)
    }

    /// Has another member take this node out, which needs it no longer.
    async fn ask_to_be_removed(&self, cluster: &Cluster, deadline: Instant) -> Result<u64, Failure> {
        let mut last = Failure::new(ErrorCode::Unavailable, "no other member is in reach: ask again");
        let map = cluster.map();
        let staying = map.members().filter(|node| node.state == NodeState::Active);
        let peers = staying.filter_map(|node| node.peer_id.parse().ok());
        for peer in peers.filter(|peer| self.parts.network.is_connected(*peer)) {
            match self.ask_to_leave(cluster, peer, cluster.node(), deadline).await {
                Ok(epoch) => return Ok(epoch),
                Err(status) => last = Failure::from_status(&status),
            }
        }
        Err(last)
    }

    /// Hands over and goes whenever the map says that this node leaves: whoever asked for it may have found
    /// it out of reach, or it was restarted meanwhile.
    pub async fn leave_when_told(self, stop: CancellationToken) {
        let leaving = async {
            let cluster = self.parts.cluster.joined().await;
            let mut map = cluster.watch();
            loop {
                let own = map.borrow_and_update().node(cluster.node()).map(|node| node.state);
                if own == Some(NodeState::Leaving) {
                    let deadline = Instant::now() + LEAVE_ATTEMPT;
                    let left = async {
                        self.hand_over(&cluster, deadline).await?;
                        self.ask_to_be_removed(&cluster, deadline).await
                    };
                    match left.await {
                        Ok(_) => {
                            tracing::info!("this node has left the cluster: it can be stopped");
                            self.parts.removal.note(cluster.node(), true).await;
                            return;
                        }
                        Err(failure) => tracing::info!(%failure, "this node is leaving the cluster"),
                    }
                    tokio::time::sleep(LEAVE_POLL).await;
                } else if map.changed().await.is_err() {
                    return;
                }
            }
        };
        stop.run_until_cancelled(leaving).await;
    }
}

/// Brings a group that this node leads to where the map wants it. Replicas that the map has moved
/// away from here are not tended otherwise, and only their leader can let them go.
async fn align(cluster: &Cluster, database: &Database, group: &Group) {
    let voters = database.replicas.iter().filter_map(|node| Some((*node, cluster.peer_of(*node)?)));
    let desired = Desired { voters: voters.collect(), learners: BTreeMap::new() };
    if let Err(error) = group.align(&desired).await {
        tracing::debug!(%error, "the members of a group will be looked at again");
    }
}

/// A node that is out of reach: the leader of the map takes it out once it finds the same, and that
/// it holds nothing any more.
async fn removed_by_leader(cluster: &Cluster, node: NodeId, deadline: Instant) -> Result<u64, Failure> {
    let mut map = cluster.watch();
    loop {
        let current = map.borrow_and_update().clone();
        let removed = current.node(node).is_none_or(|node| node.state == NodeState::Removed);
        let votes = cluster.meta().status().voters.contains(&node);
        if removed && !votes {
            return Ok(current.epoch().0);
        }
        if Instant::now() >= deadline {
            let held = if votes { "a vote in the cluster map" } else { "replicas, and is out of reach" };
            return Err(still_leaving(node, held));
        }
        tokio::select! {
            _ = map.changed() => {}
            () = tokio::time::sleep(LEAVE_POLL) => {}
        }
    }
}

fn still_leaving(node: NodeId, held: &str) -> Failure {
    let message = format!(
        "node {node} still hands over its replicas: ask again, it goes on meanwhile; it holds {held}"
    );
    Failure::new(ErrorCode::DeadlineExceeded, message)
}

async fn set_state(cluster: &Cluster, node: NodeId, state: NodeState) -> Result<u64, Failure> {
    let operation = Operation::SetNodeState(v1::MetaSetNodeState { node_id: node.0, state: state as i32 });
    Ok(cluster.propose(operation).await?.epoch)
}

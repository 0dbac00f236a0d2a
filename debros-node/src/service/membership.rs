//! The cluster as the services see it, not there until the node has become a member; who may speak for
//! its nodes; and whether this node is still one of them.

mod standing;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use debros_net::grpc::Channels;
use debros_net::{Lane, Multiaddr, PeerId};
use debros_proto::{ErrorCode, Failure, GroupId, NodeId, v1};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use v1::cluster_client::ClusterClient;

use crate::cluster::Cluster;
use crate::cluster::map::NodeState;
use crate::raft::Claim;

pub use standing::Standing;

/// A place for the cluster, filled once.
#[derive(Clone)]
pub struct ClusterSlot(Arc<watch::Sender<Option<Cluster>>>);

impl Default for ClusterSlot {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl ClusterSlot {
    /// Fills the place.
    pub fn fill(&self, cluster: Cluster) {
        self.0.send_replace(Some(cluster));
    }

    /// The cluster.
    ///
    /// # Errors
    /// `NOT_READY` before this node is a member.
    pub fn get(&self) -> Result<Cluster, Failure> {
        self.0.borrow().clone().ok_or_else(|| {
            Failure::new(
                ErrorCode::NotReady,
                "this node has not joined a cluster yet: it waits for a member at discovery.bootstrap_peers",
            )
        })
    }

    /// Waits until this node is a member.
    pub async fn joined(&self) -> Cluster {
        let mut watch = self.0.subscribe();
        let cluster = watch.wait_for(Option::is_some).await.ok().and_then(|cluster| cluster.clone());
        cluster.expect("the sender lives in self, and the value was awaited")
    }
}

/// The rest between two rounds of asking who somebody is: whoever claims wrongly causes no storm.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// A peer that is asked who somebody is answers within this, or another one does.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// Who may speak for a node that no membership on this node names.
///
/// The map says so. A replica of the map that has been away may know none of those who lead it now,
/// and would never hear of them if it refused them: then nodes that it knows, and those that the
/// operator named, are asked who is a member.
#[derive(Clone)]
pub struct Members {
    cluster: ClusterSlot,
    vouched: Arc<Mutex<HashMap<NodeId, PeerId>>>,
    wanted: Arc<Notify>,
}

impl Members {
    /// Nobody is vouched for yet.
    pub fn new(cluster: ClusterSlot) -> Self {
        Self { cluster, vouched: Arc::default(), wanted: Arc::default() }
    }

    /// Whether the claim is true, as far as this node can tell now.
    pub fn believe(&self, claim: Claim) -> bool {
        let Claim { group, node, caller, pristine } = claim;
        let Ok(cluster) = self.cluster.get() else {
            // The map's first entries come before anything is known of anybody.
            return group == GroupId::META && pristine;
        };
        if let Some(known) = cluster.map().node(node) {
            // One that was removed may still have to hand a group over to its new replicas.
            return known.peer_id == caller.to_string() && (pristine || known.state != NodeState::Removed);
        }
        if group != GroupId::META {
            return false;
        }
        if joining(&cluster) || self.vouched.lock().expect("not poisoned").get(&node) == Some(&caller) {
            return true;
        }
        self.wanted.notify_one();
        false
    }

    /// Asks who is a member whenever somebody unknown wants to speak for one, until the token is
    /// cancelled.
    pub async fn run(self, channels: Channels, bootstrap: Vec<Multiaddr>, stop: CancellationToken) {
        let asking = async {
            let cluster = self.cluster.joined().await;
            loop {
                self.wanted.notified().await;
                for peer in trusted(&cluster, &channels, &bootstrap).await {
                    let members = members_known_to(peer, &cluster, &channels).await;
                    self.vouched.lock().expect("not poisoned").extend(members);
                }
                tokio::time::sleep(ASK_INTERVAL).await;
            }
        };
        stop.run_until_cancelled(asking).await;
    }
}

/// Until its own name has reached it, a node takes the map from whom it was admitted by.
fn joining(cluster: &Cluster) -> bool {
    let (status, node) = (cluster.meta().status(), cluster.node());
    !status.voters.contains(&node) && !status.learners.contains(&node)
}

/// The members that this node knows and is connected to, and whoever is where the operator said.
async fn trusted(cluster: &Cluster, channels: &Channels, bootstrap: &[Multiaddr]) -> BTreeSet<PeerId> {
    let network = channels.network();
    let mut peers: BTreeSet<PeerId> = cluster
        .map()
        .members()
        .filter_map(|node| node.peer_id.parse().ok())
        .filter(|peer| network.is_connected(*peer))
        .collect();
    for address in bootstrap {
        if let Ok(Ok(peer)) = tokio::time::timeout(ASK_TIMEOUT, network.connect(address)).await {
            peers.insert(peer);
        }
    }
    peers.remove(&network.local_peer());
    peers
}

async fn members_known_to(peer: PeerId, cluster: &Cluster, channels: &Channels) -> Vec<(NodeId, PeerId)> {
    // One that does not know better is as good as one that does not answer.
    let known = ask_for_members(peer, cluster, channels).await;
    let members = known.map(|known| known.members).unwrap_or_default().into_iter();
    members.filter_map(|member| Some((NodeId(member.node_id), member.peer_id.parse().ok()?))).collect()
}

/// What a peer of the same cluster knows of its members.
async fn ask_for_members(
    peer: PeerId,
    cluster: &Cluster,
    channels: &Channels,
) -> Option<v1::MembersResponse> {
    let mut client = ClusterClient::new(channels.get(peer, Lane::Client));
    let request = v1::MembersRequest { header: Some(cluster.node_header()) };
    match tokio::time::timeout(ASK_TIMEOUT, client.members(request)).await {
        Ok(Ok(reply)) if reply.get_ref().cluster_id.parse() == Ok(cluster.id()) => Some(reply.into_inner()),
        _ => None,
    }
}

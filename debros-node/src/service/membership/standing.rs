//! Whether this node is still a member of its cluster.
//!
//! A node that was removed while it was away is told so by nobody: the map that it has says that it is a member,
//! and no newer one comes. What it holds of the storage would grow old and be served for ever, to reads of one
//! replica and to watches, and its subscribers would hear nobody. So a node to which the meta group has been silent
//! for a while asks those that it knows, or that the operator named, and stops serving storage and messages when one
//! of them has a newer map without it.
//!
//! No proof is needed that the map is newer than the node's own admission: its own map, which names it, is older.

use std::time::Duration;

use debros_net::Multiaddr;
use debros_net::grpc::Channels;
use debros_proto::{ErrorCode, Failure, limits};
use futures::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{ClusterSlot, ask_for_members, trusted};
use crate::cluster::map::NodeState;
use crate::cluster::{Cluster, Removal};
use crate::kv::KvSlot;
use crate::pubsub::PubSubSlot;

/// Pause between two looks, and between two rounds of asking.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Watches over this node's membership.
pub struct Standing {
    /// Where it is a member.
    pub cluster: ClusterSlot,
    /// What it must not serve when it is none any more.
    pub kv: KvSlot,
    /// As well.
    pub pubsub: PubSubSlot,
    /// The way to those that are asked.
    pub channels: Channels,
    /// Those that the operator named.
    pub bootstrap: Vec<Multiaddr>,
    /// Where it is noted.
    pub removal: Removal,
}

impl Standing {
    /// Runs until the token is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let watching = async {
            let cluster = self.cluster.joined().await;
            let mut heard = Instant::now();
            let mut told = false;
            loop {
                tokio::time::sleep(LOOK_INTERVAL).await;
                let now = Instant::now();
                if let Some(ago) = cluster.meta().silence() {
                    heard = heard.max(now.checked_sub(ago).unwrap_or(heard));
                }
                let silent = now.saturating_duration_since(heard) >= limits::META_SILENCE_MAX;
                let removed = silent && self.was_removed(&cluster).await;
                if removed && !told {
                    tracing::error!(node = %cluster.node(), "{REMOVED}");
                }
                // Where nobody can be asked, what was found last holds.
                if removed || !silent {
                    if told != removed {
                        self.removal.note(cluster.node(), removed).await;
                    }
                    told = removed;
                    self.kv.set_refused(removed.then(reason));
                    self.pubsub.set_refused(removed.then(reason));
                }
            }
        };
        stop.run_until_cancelled(watching).await;
    }

    async fn was_removed(&self, cluster: &Cluster) -> bool {
        let (map, node) = (cluster.map(), cluster.node());
        match map.node(node).map(|known| known.state) {
            Some(NodeState::Removed) => return true,
            Some(_) => {}
            // It has not heard of itself yet.
            None => return false,
        }
        let peers = trusted(cluster, &self.channels, &self.bootstrap).await;
        let asked = peers.into_iter().map(|peer| ask_for_members(peer, cluster, &self.channels));
        let answers = join_all(asked).await;
        answers.into_iter().flatten().any(|known| {
            let named = known.members.iter().any(|member| member.node_id == node.0);
            known.epoch > map.epoch().0 && !named
        })
    }
}

const REMOVED: &str = "this node was removed from its cluster while it was away, and what it holds is out of date: \
                       stop it, or empty its data folder and start it, to join as a new node";

fn reason() -> Failure {
    Failure::new(ErrorCode::Unavailable, REMOVED).elsewhere()
}

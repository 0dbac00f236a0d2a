//! The cluster as the services see it: not there until the node has become a member.

use std::sync::Arc;

use debros_proto::{ErrorCode, Failure};
use tokio::sync::watch;

use crate::cluster::Cluster;

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

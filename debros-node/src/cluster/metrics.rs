//! What a node tells of its cluster, as its own map and connections show it.

use std::sync::Arc;

use debros_net::Network;
use debros_proto::limits;
use prometheus_client::registry::Registry;

use super::Cluster;
use crate::metrics::{Bounds, read_at_scrape};

/// Registers what is read at each scrape: zeros before the node is a member. `joined` gives the cluster then.
pub fn register_cluster(
    registry: &mut Registry,
    bounds: &Bounds,
    network: Arc<dyn Network>,
    joined: impl Fn() -> Option<Cluster> + Clone + Send + Sync + 'static,
) {
    let databases = joined.clone();
    bounds.resource("databases", limits::DATABASES_MAX, move || {
        databases().map_or(0, |cluster| cluster.map().databases().count())
    });
    read_at_scrape(registry, move |readings| {
        let cluster = joined();
        let (mut members, mut unreachable, mut databases, mut epoch) = (0_u64, 0_u64, 0_u64, 0_u64);
        if let Some(cluster) = &cluster {
            let map = cluster.map();
            (databases, epoch) = (map.databases().count() as u64, map.epoch().0);
            for node in map.members() {
                members += 1;
                let connected = || node.peer_id.parse().is_ok_and(|peer| network.is_connected(peer));
                unreachable += u64::from(node.id != cluster.node() && !connected());
            }
        }
        readings.gauge(
            "debros_cluster_joined",
            "1 once this node is a member of a cluster",
            u64::from(cluster.is_some()),
        )?;
        readings.gauge("debros_cluster_members", "Members of the cluster", members)?;
        readings.gauge(
            "debros_cluster_members_unreachable",
            "Members that this node has no connection to",
            unreachable,
        )?;
        readings.gauge("debros_cluster_databases", "Databases of the cluster", databases)?;
        readings.gauge(
            "debros_cluster_epoch",
            "Version of the cluster map that this node knows; nodes that stay behind hear nothing",
            epoch,
        )
    });
}

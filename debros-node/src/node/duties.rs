//! What a node does by itself: it becomes a member, starts what needs one, and keeps others told.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use debros_net::Multiaddr;
use debros_net::discovery::Discovery;
use debros_proto::{VERSION, v1};
use tokio::sync::watch;
use v1::meta_command::Operation;

use super::Core;
use crate::cluster::map::ClusterMap;
use crate::cluster::{
    self, Cluster, EnterError, Entry, Identity, ReconcileOptions, Reconciler, Registration,
};
use crate::kv::{self, Kv, KvOptions, KvParts};
use crate::pubsub::{PubSub, PubSubOptions, PubSubParts};

/// A member that is gone holds up writes for no longer than this.
const DISKS_INTERVAL: Duration = Duration::from_secs(1);
/// How often the node looks whether its own addresses have changed.
const ADDRESS_INTERVAL: Duration = Duration::from_secs(5);

impl Core {
    /// Makes the node a member, then keeps the cluster as it should be.
    pub(super) async fn enter(
        self,
        entry: Entry,
        discovery: Discovery,
        options: ReconcileOptions,
        (kv, pubsub): (KvOptions, PubSubOptions),
        told: watch::Sender<Option<Arc<EnterError>>>,
    ) {
        let peers = move || {
            let statuses = discovery.statuses().into_iter();
            let mut nodes: Vec<_> = statuses.filter(|(_, heard)| !heard.status.client).collect();
            // Known members first. The others are asked too: a status is as old as the last exchange, and
            // a node that has just become a member would be passed by for an interval.
            nodes.sort_by_key(|(_, heard)| heard.status.cluster_id.is_empty());
            nodes.into_iter().map(|(peer, _)| peer).collect()
        };
        let entered = tokio::select! {
            () = self.stop.cancelled() => return,
            entered = cluster::enter(entry, peers) => entered,
        };
        match entered {
            Ok(cluster) => {
                self.cluster.fill(cluster.clone());
                self.start_storage(&cluster, kv);
                self.start_pubsub(&cluster, pubsub);
                self.tracker.spawn(Reconciler::new(cluster, options).run(self.stop.clone()));
            }
            Err(error) => drop(told.send_replace(Some(Arc::new(error)))),
        }
    }

    /// Starts the storage, and keeps it told of the layout that the map holds.
    fn start_storage(&self, cluster: &Cluster, options: KvOptions) {
        let reporting = cluster.clone();
        let report: kv::Reporter = Arc::new(move |progress| {
            let cluster = reporting.clone();
            let operation = Operation::LayoutProgress(v1::MetaLayoutProgress { progress: Some(progress) });
            Box::pin(async move { cluster.propose(operation).await.map(drop) })
        });
        let kv = Kv::start(KvParts {
            node: cluster.node(),
            store: self.kv_store.clone(),
            clock: self.clock.clone(),
            channels: self.channels.clone(),
            tracker: self.tracker.clone(),
            metrics: self.kv_metrics.clone(),
            report,
            options,
            stop: self.stop.clone(),
        });
        self.kv.fill(kv.clone());
        let (mut map, stop) = (cluster.watch(), self.stop.clone());
        self.tracker.spawn(async move {
            loop {
                let layout = map.borrow_and_update().layout().cloned();
                if let Some(layout) = layout {
                    kv.set_layout(layout);
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = map.changed() => if changed.is_err() { return },
                }
            }
        });
    }

    /// Starts pub/sub, and keeps it told of who the members are.
    fn start_pubsub(&self, cluster: &Cluster, options: PubSubOptions) {
        let pubsub = PubSub::start(PubSubParts {
            node: cluster.node(),
            cluster_id: cluster.id().to_string(),
            channels: self.channels.clone(),
            tracker: self.tracker.clone(),
            metrics: self.pubsub_metrics.clone(),
            tracer: self.tracer.clone(),
            options,
            stop_sessions: self.stop_clients.clone(),
            stop: self.stop.clone(),
        });
        self.pubsub.fill(pubsub.clone());
        let (mut map, stop) = (cluster.watch(), self.stop.clone());
        self.tracker.spawn(async move {
            loop {
                let members: BTreeMap<_, _> = {
                    let map = map.borrow_and_update();
                    map.members().filter_map(|node| Some((node.id, node.peer_id.parse().ok()?))).collect()
                };
                pubsub.set_members(&members);
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = map.changed() => if changed.is_err() { return },
                }
            }
        });
    }

    /// Leaders refuse writes while a member in reach has no room for them. What others say of
    /// themselves, and what one said that has gone since, counts for nothing.
    pub(super) async fn heed_disks(self, discovery: Discovery) {
        let cluster = tokio::select! {
            () = self.stop.cancelled() => return,
            cluster = self.cluster.joined() => cluster,
        };
        let (mut changes, mut map) = (discovery.watch(), cluster.watch());
        loop {
            let members = map.borrow_and_update().clone();
            let low = discovery.statuses().iter().any(|(peer, heard)| {
                let member = || members.node_of_peer(&peer.to_string()).is_some();
                heard.status.disk_low && self.network.is_connected(*peer) && member()
            });
            self.disk.set_low_elsewhere(low);
            tokio::select! {
                () = self.stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
                changed = map.changed() => if changed.is_err() { return },
                // A connection that breaks changes neither.
                () = tokio::time::sleep(DISKS_INTERVAL) => {}
            }
        }
    }

    /// Says by name which peers belong to another cluster: they will never answer this one's groups.
    pub(super) async fn notice_strangers(self, discovery: Discovery) {
        let cluster = tokio::select! {
            () = self.stop.cancelled() => return,
            cluster = self.cluster.joined() => cluster.id().to_string(),
        };
        let mut changes = discovery.watch();
        let mut told = HashSet::new();
        loop {
            for (peer, heard) in discovery.statuses() {
                let theirs = heard.status.cluster_id;
                if !theirs.is_empty() && theirs != cluster && told.insert(peer) {
                    tracing::error!(
                        %peer,
                        "a peer belongs to cluster {theirs}, this node's data folder to cluster {cluster}: \
                         check discovery.bootstrap_peers, or give the node an empty node.data_dir to join the other one"
                    );
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Teaches the network where the map says that members are, and the map where this node is.
    pub(super) async fn follow_map(self, identity: Identity) {
        let following = async {
            let cluster = self.cluster.joined().await;
            let mut map = cluster.watch();
            loop {
                let current = map.borrow_and_update().clone();
                self.learn_addresses(&cluster, &current);
                self.announce(&cluster, &current, &identity).await;
                // Without a change the node looks whether its own addresses have.
                let _ = tokio::time::timeout(ADDRESS_INTERVAL, map.changed()).await;
            }
        };
        // An announcement may wait for a majority, which a node that stops will not see again.
        self.stop.run_until_cancelled(following).await;
    }

    fn learn_addresses(&self, cluster: &Cluster, map: &ClusterMap) {
        for node in map.members().filter(|node| node.id != cluster.node()) {
            let addresses: Vec<Multiaddr> =
                node.addresses.iter().filter_map(|text| text.parse().ok()).collect();
            if let Ok(peer) = node.peer_id.parse() {
                self.network.learn(peer, &addresses);
            }
        }
    }

    async fn announce(&self, cluster: &Cluster, map: &ClusterMap, identity: &Identity) {
        let here: Vec<String> = self.network.listen_addresses().iter().map(ToString::to_string).collect();
        let out_of_date = map.node(cluster.node()).is_some_and(|known| {
            known.addresses != here || known.zone != identity.zone || known.version != VERSION
        });
        if !out_of_date {
            return;
        }
        let registration = Registration {
            peer_id: identity.peer.to_string(),
            incarnation: self.groups.log().incarnation().to_string(),
            addresses: here,
            zone: identity.zone.clone(),
            services: identity.services.clone(),
            version: VERSION.to_owned(),
        };
        if let Err(failure) = cluster.admit(registration, "").await {
            tracing::debug!(%failure, "the map does not know this node's addresses yet");
        }
    }
}

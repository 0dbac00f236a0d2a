//! What the meta group's leader does by itself: it keeps the voters and the placement of databases
//! as [`super::placement`] says, and takes nodes that left out of the meta group.
//!
//! It looks again at every change of the map and at a fixed interval, takes one step, and looks
//! again. Nothing is remembered but since when each node has been out of reach.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use debros_net::PeerId;
use debros_proto::layout::Phase;
use debros_proto::{NodeId, v1};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use v1::meta_command::Operation;

use super::Cluster;
use super::map::{ClusterMap, NodeState};
use super::placement::{self, Liveness};
use crate::raft::Desired;

/// Steps towards the wanted members of the meta group between two looks at the map.
const STEPS_MAX: usize = 32;

/// How patient the leader is.
#[derive(Clone, Debug)]
pub struct ReconcileOptions {
    /// The leader looks at least this often.
    pub interval: Duration,
    /// A node out of reach for longer counts as gone for good: its votes and replicas move.
    pub lost_after: Duration,
    /// For how long the keys of a node that leaves wait for nodes out of reach, before they move
    /// without them.
    pub leave_waits: Duration,
    /// The storage is laid out anew once its nodes have been the same for this long: nodes that come
    /// together are one change.
    pub layout_settles_after: Duration,
    /// Replicas of each key of the storage.
    pub storage_replicas: u32,
}

impl Default for ReconcileOptions {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(500),
            lost_after: Duration::from_secs(300),
            leave_waits: Duration::from_secs(10),
            layout_settles_after: Duration::from_secs(2),
            storage_replicas: 3,
        }
    }
}

/// The leader's task; runs on every member and acts only where the meta group leads.
pub struct Reconciler {
    cluster: Cluster,
    options: ReconcileOptions,
    out_of_reach_since: BTreeMap<NodeId, Instant>,
    /// The nodes that the storage should have, and since when.
    wanted_layout: Option<(v1::LayoutSet, Instant)>,
}

impl Reconciler {
    /// A task for this member.
    pub fn new(cluster: Cluster, options: ReconcileOptions) -> Self {
        Self { cluster, options, out_of_reach_since: BTreeMap::new(), wanted_layout: None }
    }

    /// Runs until the token is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut map = self.cluster.watch();
        loop {
            if self.cluster.meta().is_leader() {
                // A step may wait for a majority, which a node that stops will not see again.
                if stop.run_until_cancelled(self.step()).await.is_none() {
                    return;
                }
            } else {
                // A new leader starts its clocks afresh: it does not know how long others saw what.
                self.out_of_reach_since.clear();
                self.wanted_layout = None;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                _ = map.changed() => {}
                () = tokio::time::sleep(self.options.interval) => {}
            }
        }
    }

    async fn step(&mut self) {
        let map = self.cluster.map();
        let liveness = self.liveness(&map);
        let desired = self.desired(&map, &liveness);
        // One step a look would let a hundred nodes that come at once wait for most of a minute.
        for _ in 0..STEPS_MAX {
            match self.cluster.meta().align(&desired).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::debug!(%error, "the meta group's members will be looked at again");
                    break;
                }
            }
        }
        for operation in decisions(&map, &liveness).into_iter().chain(self.layout_change(&map, &liveness)) {
            if let Err(failure) = self.cluster.propose(operation).await {
                tracing::warn!(%failure, "a change of placement was refused");
            }
        }
    }

    fn liveness(&mut self, map: &ClusterMap) -> Liveness {
        let network = self.cluster.inner.channels.network();
        let now = Instant::now();
        let mut liveness = Liveness::default();
        for node in map.members() {
            let reachable = node.id == self.cluster.node()
                || node.peer_id.parse::<PeerId>().is_ok_and(|peer| network.is_connected(peer));
            if reachable {
                self.out_of_reach_since.remove(&node.id);
                continue;
            }
            liveness.unreachable.insert(node.id);
            let since = *self.out_of_reach_since.entry(node.id).or_insert(now);
            if now - since >= self.options.leave_waits {
                liveness.away.insert(node.id);
            }
            if now - since >= self.options.lost_after {
                liveness.lost.insert(node.id);
                liveness.away.insert(node.id);
            }
        }
        liveness
    }

    /// The change of the storage's layout that is due.
    fn layout_change(&mut self, map: &ClusterMap, liveness: &Liveness) -> Option<Operation> {
        let wanted = placement::storage_set(map, liveness, self.options.storage_replicas)?;
        let target = map.layout().and_then(|layout| layout.next.as_ref().or(layout.current.as_ref()));
        let carried_through = map.layout().is_some_and(|layout| layout.phase() == Phase::ReadNext);
        if target == Some(&wanted) || carried_through {
            self.wanted_layout = None;
            return None;
        }
        let now = Instant::now();
        let since = match &self.wanted_layout {
            Some((before, since)) if *before == wanted => *since,
            _ => now,
        };
        // The first layout waits for nobody: there is nothing to move.
        let settled = target.is_none() || now - since >= self.options.layout_settles_after;
        self.wanted_layout = Some((wanted.clone(), since));
        let seen = map.layout().map_or(0, |layout| layout.version);
        settled.then_some(Operation::ChangeLayout(v1::MetaChangeLayout { next: Some(wanted), seen }))
    }

    fn desired(&self, map: &ClusterMap, liveness: &Liveness) -> Desired {
        let current = self.cluster.meta().status().voters;
        let voters = placement::meta_voters(map, &current, liveness);
        let peers = |wanted: &dyn Fn(&NodeId) -> bool| -> BTreeMap<NodeId, PeerId> {
            map.members()
                .filter(|node| wanted(&node.id))
                .filter_map(|node| Some((node.id, node.peer_id.parse().ok()?)))
                .collect()
        };
        Desired { learners: peers(&|id| !voters.contains(id)), voters: peers(&|id| voters.contains(id)) }
    }
}

/// What should change in the map; one step per database.
fn decisions(map: &ClusterMap, liveness: &Liveness) -> Vec<Operation> {
    let mut operations = Vec::new();
    for database in map.databases() {
        if let Some(replicas) = placement::repaired_replicas(map, database, liveness) {
            operations.push(Operation::SetReplicas(v1::MetaSetReplicas {
                group: database.group.0,
                replicas: replicas.into_iter().map(|id| id.0).collect(),
            }));
        }
    }
    let holding: BTreeSet<NodeId> = map.databases().flat_map(|database| database.replicas.clone()).collect();
    // A leaving node that is in reach says itself when it has handed everything over.
    let left = map.members().filter(|node| {
        let gone = liveness.unreachable.contains(&node.id);
        node.state == NodeState::Leaving && gone && !holding.contains(&node.id) && !map.holds_storage(node.id)
    });
    operations.extend(left.map(|node| {
        Operation::SetNodeState(v1::MetaSetNodeState { node_id: node.id.0, state: NodeState::Removed as i32 })
    }));
    operations
}

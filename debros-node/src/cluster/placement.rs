//! Where voters of the meta group and replicas of databases should be: pure functions of the map
//! and of who is alive. They keep what is good, replace only what is gone for good, and spread over
//! zones.

use std::collections::{BTreeMap, BTreeSet};

use debros_proto::{NodeId, v1};

use super::map::{ClusterMap, Database, NodeState};

/// What the meta leader knows of the nodes beside the map.
#[derive(Clone, Debug, Default)]
pub struct Liveness {
    /// Nodes that have been out of reach for so long that they count as gone for good.
    pub lost: BTreeSet<NodeId>,
    /// Nodes that are out of reach now: never chosen, but not replaced either.
    pub unreachable: BTreeSet<NodeId>,
    /// Nodes that have been out of reach for longer than a node that leaves waits for them.
    pub away: BTreeSet<NodeId>,
}

/// How many voters a meta group of this many nodes has: a quorum of two nodes is worth less than
/// one node, since either loss stops it.
pub(super) fn voter_count(nodes: usize) -> usize {
    match nodes {
        0..=2 => nodes.min(1),
        3 | 4 => 3,
        _ => 5,
    }
}

/// The voters that the meta group should have.
pub(super) fn meta_voters(
    map: &ClusterMap,
    current: &BTreeSet<NodeId>,
    liveness: &Liveness,
) -> BTreeSet<NodeId> {
    let staying: Vec<NodeId> = map
        .members()
        .filter(|node| node.state == NodeState::Active && !liveness.lost.contains(&node.id))
        .map(|node| node.id)
        .collect();
    // A lost node still counts towards the size: losing two of three must not shrink the quorum.
    let members = map.members().filter(|node| node.state == NodeState::Active).count();
    let count = voter_count(members);
    let kept: Vec<NodeId> = staying.iter().copied().filter(|id| current.contains(id)).take(count).collect();
    let chosen = fill(map, kept, &staying, count, liveness, &BTreeMap::new());
    if chosen.is_empty() { current.clone() } else { chosen.into_iter().collect() }
}

/// The replicas of a new database: at most `replication_factor`, fewer when the cluster is smaller.
pub(super) fn new_replicas(map: &ClusterMap, replication_factor: u32, liveness: &Liveness) -> Vec<NodeId> {
    fill(map, Vec::new(), &candidates(map, liveness), replication_factor as usize, liveness, &loads(map))
}

/// The replicas that an existing database should have, when they differ from those it has. A
/// replica on a node that leaves or is lost is replaced as soon as there is somewhere to go.
pub(super) fn repaired_replicas(
    map: &ClusterMap,
    database: &Database,
    liveness: &Liveness,
) -> Option<Vec<NodeId>> {
    let stays = |id: &NodeId| {
        let active = map.node(*id).is_some_and(|node| node.state == NodeState::Active);
        active && !liveness.lost.contains(id)
    };
    let (kept, going): (Vec<NodeId>, Vec<NodeId>) = database.replicas.iter().copied().partition(stays);
    let wanted = database.replication_factor as usize;
    let mut replicas = fill(map, kept, &candidates(map, liveness), wanted, liveness, &loads(map));
    // Nowhere to go: a replica that may come back is better than none.
    let leaving = |id: &NodeId| map.node(*id).is_none_or(|node| node.state != NodeState::Active);
    let missing = database.replicas.len().saturating_sub(replicas.len());
    replicas.extend(going.into_iter().filter(|id| !leaving(id)).take(missing));
    replicas.sort_unstable();
    let mut before = database.replicas.clone();
    before.sort_unstable();
    (!replicas.is_empty() && replicas != before).then_some(replicas)
}

/// The nodes that should hold the storage; `None` while there are none.
///
/// A change of the layout waits for every node that it goes to, so it goes to none that is lost, and
/// while a node wants to leave to none that is away. But a node that is gone is no reason for a change
/// of its own while the others are too few to replace it: a replica that may come back is better than none.
pub(super) fn storage_set(map: &ClusterMap, liveness: &Liveness, replicas: u32) -> Option<v1::LayoutSet> {
    let leaving = map.members().any(|node| node.state == NodeState::Leaving && map.holds_storage(node.id));
    let gone = if leaving { &liveness.away } else { &liveness.lost };
    let offers = |services: &[String]| services.iter().any(|service| service == "storage");
    let active = || map.members().filter(|node| node.state == NodeState::Active && offers(&node.services));
    let set = |stays: &dyn Fn(NodeId) -> bool| v1::LayoutSet {
        replicas,
        nodes: active()
            .filter(|node| stays(node.id))
            .map(|node| v1::LayoutNode {
                node_id: node.id.0,
                peer_id: node.peer_id.clone(),
                zone: node.zone.clone(),
                weight: 1,
            })
            .collect(),
    };
    let present = set(&|id| !gone.contains(&id));
    if present.nodes.len() < replicas as usize {
        let with_held = set(&|id| !gone.contains(&id) || map.holds_storage(id));
        let current = map.layout().and_then(|layout| layout.current.as_ref());
        if current == Some(&with_held) {
            return Some(with_held);
        }
    }
    (!present.nodes.is_empty()).then_some(present)
}

fn candidates(map: &ClusterMap, liveness: &Liveness) -> Vec<NodeId> {
    map.members()
        .filter(|node| node.state == NodeState::Active && !liveness.lost.contains(&node.id))
        .filter(|node| node.services.is_empty() || node.services.iter().any(|service| service == "database"))
        .map(|node| node.id)
        .collect()
}

/// How many replicas each node should hold.
fn loads(map: &ClusterMap) -> BTreeMap<NodeId, usize> {
    let mut loads = BTreeMap::new();
    for replica in map.databases().flat_map(|database| &database.replicas) {
        *loads.entry(*replica).or_default() += 1;
    }
    loads
}

/// Adds candidates to `chosen` until there are `count`: first from zones with the fewest chosen,
/// then the least loaded, then the lowest id.
fn fill(
    map: &ClusterMap,
    mut chosen: Vec<NodeId>,
    candidates: &[NodeId],
    count: usize,
    liveness: &Liveness,
    loads: &BTreeMap<NodeId, usize>,
) -> Vec<NodeId> {
    let zone = |id: &NodeId| map.node(*id).map_or("", |node| node.zone.as_str());
    while chosen.len() < count {
        let in_zone = |id: &NodeId| chosen.iter().filter(|other| zone(other) == zone(id)).count();
        let next = candidates
            .iter()
            .filter(|id| !chosen.contains(id) && !liveness.unreachable.contains(id))
            .min_by_key(|id| (in_zone(id), loads.get(id).copied().unwrap_or(0), **id));
        match next {
            Some(next) => chosen.push(*next),
            None => break,
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use debros_proto::v1::{self, meta_command::Operation};
    use debros_proto::{DatabaseName, Namespace, NodeId};

    use super::{ClusterMap, Liveness, meta_voters, new_replicas, repaired_replicas, storage_set};
    use crate::cluster::map::NodeState;

    fn command(operation: Operation) -> v1::MetaCommand {
        v1::MetaCommand { operation: Some(operation), ..Default::default() }
    }

    fn cluster(zones: &[&str]) -> ClusterMap {
        let mut map = ClusterMap::default();
        let mut index = 1;
        let mut apply = |operation| {
            map.apply(index, command(operation));
            index += 1;
        };
        apply(Operation::Initialise(v1::MetaInitialise { cluster_id: vec![1; 16].into() }));
        for (number, zone) in zones.iter().enumerate() {
            apply(Operation::RegisterNode(v1::MetaRegisterNode {
                peer_id: format!("peer-{number}"),
                incarnation: "log".into(),
                zone: (*zone).into(),
                ..Default::default()
            }));
        }
        map
    }

    fn ids(ids: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
        ids.into_iter().map(NodeId).collect()
    }

    #[test]
    fn one_three_or_five_nodes_vote() {
        for (nodes, voters) in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (30, 5)] {
            let map = cluster(&vec![""; nodes]);
            let chosen = meta_voters(&map, &ids([1]), &Liveness::default());
            assert_eq!(chosen.len(), voters, "of {nodes} nodes");
            assert!(chosen.contains(&NodeId(1)), "the present voter stays");
        }
    }

    #[test]
    fn voters_and_replicas_spread_over_zones() {
        let map = cluster(&["a", "a", "a", "b", "c"]);
        assert_eq!(new_replicas(&map, 3, &Liveness::default()), [1, 4, 5].map(NodeId));
        let map = cluster(&["a", "a", "b", "c"]);
        assert_eq!(meta_voters(&map, &ids([1]), &Liveness::default()), ids([1, 3, 4]));
    }

    #[test]
    fn a_node_that_is_only_away_keeps_its_vote_and_a_lost_one_is_replaced() {
        let map = cluster(&[""; 4]);
        let away = Liveness { unreachable: ids([2]), ..Default::default() };
        assert_eq!(meta_voters(&map, &ids([1, 2, 3]), &away), ids([1, 2, 3]));
        let lost = Liveness { unreachable: ids([2]), lost: ids([2]), ..Default::default() };
        assert_eq!(meta_voters(&map, &ids([1, 2, 3]), &lost), ids([1, 3, 4]));
    }

    #[test]
    fn a_database_grows_to_its_factor_and_moves_off_a_leaving_node() {
        let mut map = cluster(&[""; 2]);
        let replicas: Vec<u64> = new_replicas(&map, 3, &Liveness::default()).iter().map(|id| id.0).collect();
        let create = Operation::CreateDatabase(v1::MetaCreateDatabase {
            namespace: "app".into(),
            database: "default".into(),
            replication_factor: 3,
            replicas,
        });
        map.apply(10, command(create));
        let database = |map: &ClusterMap| {
            map.database(&Namespace::new("app").unwrap(), &DatabaseName::new("default").unwrap())
                .unwrap()
                .clone()
        };
        assert_eq!(repaired_replicas(&map, &database(&map), &Liveness::default()), None);
        for (index, peer) in [(11, "peer-2"), (12, "peer-3")] {
            let register = Operation::RegisterNode(v1::MetaRegisterNode {
                peer_id: peer.into(),
                incarnation: "log".into(),
                ..Default::default()
            });
            map.apply(index, command(register));
        }
        let grown = repaired_replicas(&map, &database(&map), &Liveness::default()).unwrap();
        assert_eq!(grown, [1, 2, 3].map(NodeId));
        let leave =
            Operation::SetNodeState(v1::MetaSetNodeState { node_id: 2, state: NodeState::Leaving as i32 });
        map.apply(13, command(leave));
        let moved = repaired_replicas(&map, &database(&map), &Liveness::default()).unwrap();
        assert_eq!(moved, [1, 3, 4].map(NodeId));
    }

    #[test]
    fn a_lost_replica_with_nowhere_to_go_stays_in_place() {
        let mut map = cluster(&[""; 3]);
        let create = Operation::CreateDatabase(v1::MetaCreateDatabase {
            namespace: "app".into(),
            database: "default".into(),
            replication_factor: 3,
            replicas: vec![1, 2, 3],
        });
        map.apply(10, command(create));
        let database = map.databases().next().unwrap().clone();
        let lost = Liveness { unreachable: ids([2]), lost: ids([2]), ..Default::default() };
        assert_eq!(repaired_replicas(&map, &database, &lost), None);
    }

    #[test]
    fn the_storage_goes_to_no_node_that_is_gone_and_leaves_none_without_need() {
        let mut map = ClusterMap::default();
        let initialise = Operation::Initialise(v1::MetaInitialise { cluster_id: vec![1; 16].into() });
        map.apply(1, command(initialise));
        let register = |map: &mut ClusterMap, number: u64| {
            let node = v1::MetaRegisterNode {
                peer_id: format!("peer-{number}"),
                incarnation: "log".into(),
                services: vec!["storage".into()],
                ..Default::default()
            };
            map.apply(number + 1, command(Operation::RegisterNode(node)));
        };
        (1..=3).for_each(|number| register(&mut map, number));
        let wanted = |map: &ClusterMap, liveness: &Liveness| -> BTreeSet<NodeId> {
            let set = storage_set(map, liveness, 3).unwrap();
            set.nodes.into_iter().map(|node| NodeId(node.node_id)).collect()
        };
        let all = storage_set(&map, &Liveness::default(), 3);
        map.apply(5, command(Operation::ChangeLayout(v1::MetaChangeLayout { next: all, seen: 0 })));
        let lost = Liveness { unreachable: ids([2]), away: ids([2]), lost: ids([2]) };
        let away = Liveness { lost: ids([]), ..lost.clone() };
        assert_eq!(wanted(&map, &lost), ids([1, 2, 3]), "nobody could take its place");
        let mut leaves = map.clone();
        let state = v1::MetaSetNodeState { node_id: 3, state: NodeState::Leaving as i32 };
        leaves.apply(6, command(Operation::SetNodeState(state)));
        assert_eq!(wanted(&leaves, &Liveness::default()), ids([1, 2]));
        assert_eq!(wanted(&leaves, &away), ids([1]), "who is away cannot take over what leaves");
        register(&mut map, 4);
        assert_eq!(wanted(&map, &away), ids([1, 2, 3, 4]), "away is not lost");
        assert_eq!(wanted(&map, &lost), ids([1, 3, 4]));
    }
}

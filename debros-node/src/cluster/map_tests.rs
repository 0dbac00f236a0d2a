//! The map's invariants, command by command.

use debros_proto::v1::{self, meta_command::Operation};
use debros_proto::{DatabaseName, ErrorCode, GroupId, Namespace, NodeId};

use super::{ClusterMap, NodeState};

fn apply(map: &mut ClusterMap, index: u64, operation: Operation) -> v1::MetaOutcome {
    propose(map, index, index, operation)
}

fn propose(map: &mut ClusterMap, index: u64, proposal: u64, operation: Operation) -> v1::MetaOutcome {
    map.apply(index, v1::MetaCommand { stamp_unix_ms: index, operation: Some(operation), proposal })
}

fn register(map: &mut ClusterMap, index: u64, peer: &str, incarnation: &str) -> NodeId {
    let operation = Operation::RegisterNode(v1::MetaRegisterNode {
        peer_id: peer.into(),
        incarnation: incarnation.into(),
        ..Default::default()
    });
    NodeId(apply(map, index, operation).node_id)
}

fn initialised() -> ClusterMap {
    let mut map = ClusterMap::default();
    apply(&mut map, 1, Operation::Initialise(v1::MetaInitialise { cluster_id: vec![7; 16].into() }));
    map
}

fn creation(name: &str, replicas: &[u64]) -> Operation {
    Operation::CreateDatabase(v1::MetaCreateDatabase {
        namespace: "app".into(),
        database: name.into(),
        replication_factor: 3,
        replicas: replicas.to_vec(),
    })
}

fn create(map: &mut ClusterMap, index: u64, name: &str, replicas: &[u64]) -> v1::MetaOutcome {
    apply(map, index, creation(name, replicas))
}

fn drop_of(name: &str, group: u64) -> Operation {
    Operation::DropDatabase(v1::MetaDropDatabase { namespace: "app".into(), database: name.into(), group })
}

fn group_of(map: &ClusterMap, name: &str) -> Option<GroupId> {
    let (namespace, name) = (Namespace::new("app").unwrap(), DatabaseName::new(name).unwrap());
    map.database(&namespace, &name).map(|database| database.group)
}

#[test]
fn a_cluster_is_initialised_once() {
    let mut map = initialised();
    let before = map.clone();
    let again =
        apply(&mut map, 2, Operation::Initialise(v1::MetaInitialise { cluster_id: vec![8; 16].into() }));
    assert_eq!(again.refused.unwrap().code(), ErrorCode::AlreadyExists);
    assert_eq!(map.cluster_id(), before.cluster_id());
    assert_eq!(map.epoch(), before.epoch());
}

#[test]
fn a_lost_log_gets_a_new_node_id_and_the_old_one_is_never_used_again() {
    let mut map = initialised();
    let first = register(&mut map, 2, "peer-a", "log-1");
    assert_eq!(register(&mut map, 3, "peer-a", "log-1"), first, "the same log is the same node");
    let second = register(&mut map, 4, "peer-a", "log-2");
    assert_ne!(second, first);
    assert_eq!(map.node(first).unwrap().state, NodeState::Removed);
    assert_eq!(map.node_of_peer("peer-a").unwrap().id, second);
    let back =
        Operation::SetNodeState(v1::MetaSetNodeState { node_id: first.0, state: NodeState::Active as i32 });
    assert!(apply(&mut map, 5, back).refused.is_some());
}

#[test]
fn registering_again_without_a_change_keeps_the_epoch() {
    let mut map = initialised();
    register(&mut map, 2, "peer-a", "log-1");
    let epoch = map.epoch();
    register(&mut map, 3, "peer-a", "log-1");
    assert_eq!(map.epoch(), epoch);
}

#[test]
fn a_database_is_known_by_the_index_that_created_it() {
    let mut map = initialised();
    let node = register(&mut map, 2, "peer-a", "log-1");
    assert_eq!(create(&mut map, 9, "orders", &[node.0]).group, 9);
    let again = create(&mut map, 10, "orders", &[node.0]);
    assert_eq!(again.group, 9, "the existing group is named");
    assert_eq!(again.refused.unwrap().code(), ErrorCode::AlreadyExists);

    // Without a group, as in old logs, the name alone counts.
    apply(&mut map, 11, drop_of("orders", 0));
    assert_eq!(group_of(&map, "orders"), None);
    assert!(map.group(GroupId(9)).unwrap().dropped, "a late replica can still learn of the drop");
    assert_eq!(create(&mut map, 12, "orders", &[node.0]).group, 12, "the name is free, the group is new");
}

#[test]
fn a_repeated_drop_leaves_the_new_database_of_that_name() {
    let mut map = initialised();
    let node = register(&mut map, 2, "peer-a", "log-1");
    create(&mut map, 3, "orders", &[node.0]);
    assert_eq!(propose(&mut map, 4, 77, drop_of("orders", 3)).refused, None);
    create(&mut map, 5, "orders", &[node.0]);
    let before = map.clone();
    let again = propose(&mut map, 6, 77, drop_of("orders", 3));
    assert_eq!(again.refused.unwrap().code(), ErrorCode::NotFound);
    assert_eq!((group_of(&map, "orders"), map.epoch()), (Some(GroupId(5)), before.epoch()));
    assert!(!map.group(GroupId(5)).unwrap().dropped);
    assert_eq!(propose(&mut map, 7, 78, drop_of("orders", 5)).refused, None, "the new one by its own group");
    assert_eq!(group_of(&map, "orders"), None);
}

#[test]
fn a_repeated_creation_is_the_first_one_also_after_a_restart() {
    let mut map = initialised();
    let node = register(&mut map, 2, "peer-a", "log-1");
    assert_eq!(propose(&mut map, 3, 77, creation("orders", &[node.0])).group, 3);
    let mut map = ClusterMap::from_wire(map.to_wire()).unwrap();
    let before = map.clone();
    let again = propose(&mut map, 4, 77, creation("orders", &[node.0]));
    assert_eq!((again.group, again.refused), (3, None));
    assert_eq!(map.epoch(), before.epoch());
    let another = propose(&mut map, 5, 78, creation("orders", &[node.0]));
    assert_eq!(another.refused.unwrap().code(), ErrorCode::AlreadyExists);
    // Dropped by somebody else before the repetition: it stays dropped.
    apply(&mut map, 6, drop_of("orders", 3));
    assert_eq!(propose(&mut map, 7, 77, creation("orders", &[node.0])).group, 3);
    assert_eq!(group_of(&map, "orders"), None);
    // Old logs name no proposal; each of their commands is its own.
    assert_eq!(propose(&mut map, 8, 0, creation("old", &[node.0])).group, 8);
    assert_eq!(propose(&mut map, 9, 0, creation("older", &[node.0])).group, 9);
}

#[test]
fn a_database_on_an_unknown_node_is_refused_and_changes_nothing() {
    let mut map = initialised();
    let before = map.clone();
    assert!(create(&mut map, 2, "orders", &[42]).refused.is_some());
    assert!(create(&mut map, 3, "orders", &[]).refused.is_some());
    assert!(create(&mut map, 4, "No Such Name", &[1]).refused.is_some());
    assert_eq!(map.to_wire().databases, before.to_wire().databases);
    assert_eq!(map.epoch(), before.epoch());
}

#[test]
fn a_map_survives_storage() {
    let mut map = initialised();
    let a = register(&mut map, 2, "peer-a", "log-1");
    let b = register(&mut map, 3, "peer-b", "log-1");
    create(&mut map, 4, "orders", &[a.0, b.0]);
    create(&mut map, 5, "gone", &[a.0]);
    apply(&mut map, 6, drop_of("gone", 5));
    assert_eq!(ClusterMap::from_wire(map.to_wire()).unwrap(), map);
}

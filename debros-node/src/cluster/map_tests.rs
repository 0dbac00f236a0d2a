//! The map's invariants, command by command.

use debros_proto::v1::{self, meta_command::Operation};
use debros_proto::{DatabaseName, ErrorCode, GroupId, Namespace, NodeId};

use super::{ClusterMap, NodeState};

fn apply(map: &mut ClusterMap, index: u64, operation: Operation) -> v1::MetaOutcome {
    map.apply(index, v1::MetaCommand { stamp_unix_ms: index, operation: Some(operation) })
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

fn create(map: &mut ClusterMap, index: u64, name: &str, replicas: &[u64]) -> v1::MetaOutcome {
    let operation = Operation::CreateDatabase(v1::MetaCreateDatabase {
        namespace: "app".into(),
        database: name.into(),
        replication_factor: 3,
        replicas: replicas.to_vec(),
    });
    apply(map, index, operation)
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

    let namespace = Namespace::new("app").unwrap();
    let name = DatabaseName::new("orders").unwrap();
    let drop =
        Operation::DropDatabase(v1::MetaDropDatabase { namespace: "app".into(), database: "orders".into() });
    apply(&mut map, 11, drop);
    assert!(map.database(&namespace, &name).is_none());
    assert!(map.group(GroupId(9)).unwrap().dropped, "a late replica can still learn of the drop");
    assert_eq!(create(&mut map, 12, "orders", &[node.0]).group, 12, "the name is free, the group is new");
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
    let drop =
        Operation::DropDatabase(v1::MetaDropDatabase { namespace: "app".into(), database: "gone".into() });
    apply(&mut map, 6, drop);
    assert_eq!(ClusterMap::from_wire(map.to_wire()).unwrap(), map);
}

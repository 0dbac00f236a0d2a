//! Which nodes hold which keys of the storage: the one function that nodes and clients compute, so
//! that no table is ever sent.
//!
//! A key belongs to one of [`SPREAD`] slots of its namespace, a slot to one of [`PARTITIONS`]
//! partitions, and a partition to the nodes that score highest for it (rendezvous hashing, Thaler and
//! Ravishankar 1998), one zone after the other. Integers only: every platform computes the same.

use std::collections::BTreeMap;
use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::names::NodeId;
use crate::v1;

pub use crate::v1::LayoutPhase as Phase;

/// Partitions of a cluster: at a hundred nodes each holds some thirty, so that shares are even.
pub const PARTITIONS: u16 = 1024;
/// Partitions over which a namespace's keys spread: a listing asks no more than these.
pub const SPREAD: u64 = 16;
/// A node has at most this many times the share of another.
pub const WEIGHT_MAX: u32 = 64;

/// Purposes of the hash, so that no two of them agree by accident.
const SLOT: u64 = 1;
const PARTITION: u64 = 2;
const SCORE: u64 = 3;

fn hasher(purpose: u64) -> SipHasher13 {
    SipHasher13::new_with_keys(purpose, 0)
}

fn partition_of_slot(namespace: &str, slot: u64) -> u16 {
    let mut hasher = hasher(PARTITION);
    hasher.write(namespace.as_bytes());
    hasher.write_u64(slot.to_le());
    (hasher.finish() % u64::from(PARTITIONS)) as u16
}

/// The partition of a key.
pub fn partition_of(namespace: &str, key: &str) -> u16 {
    let mut hasher = hasher(SLOT);
    hasher.write(key.as_bytes());
    partition_of_slot(namespace, hasher.finish() % SPREAD)
}

/// All partitions that hold keys of a namespace, in ascending order: at most [`SPREAD`].
pub fn partitions_of(namespace: &str) -> Vec<u16> {
    let mut partitions: Vec<u16> = (0..SPREAD).map(|slot| partition_of_slot(namespace, slot)).collect();
    partitions.sort_unstable();
    partitions.dedup();
    partitions
}

/// More than half of this many replicas.
pub const fn majority(replicas: usize) -> usize {
    replicas / 2 + 1
}

/// The nodes of every partition under one set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Replicas of each partition.
    replicas: usize,
    /// Those of partition p are at `p * replicas ..`.
    table: Vec<NodeId>,
    peers: BTreeMap<NodeId, String>,
}

impl Placement {
    /// Computes the table of a set.
    pub fn new(set: &v1::LayoutSet) -> Self {
        let replicas = (set.replicas as usize).min(set.nodes.len());
        let mut table = Vec::with_capacity(usize::from(PARTITIONS) * replicas);
        for partition in 0..PARTITIONS {
            choose(set, partition, replicas, &mut table);
        }
        let peers = set.nodes.iter().map(|node| (NodeId(node.node_id), node.peer_id.clone())).collect();
        Self { replicas, table, peers }
    }

    /// The nodes that hold a partition, the highest score first.
    pub fn nodes_of(&self, partition: u16) -> &[NodeId] {
        let first = usize::from(partition) * self.replicas;
        &self.table[first..first + self.replicas]
    }

    /// How many nodes hold each partition.
    pub fn replicas(&self) -> usize {
        self.replicas
    }

    /// Whether this node holds that partition.
    pub fn holds(&self, node: NodeId, partition: u16) -> bool {
        self.nodes_of(partition).contains(&node)
    }

    /// The nodes of the set and their PeerIds in base58.
    pub fn peers(&self) -> &BTreeMap<NodeId, String> {
        &self.peers
    }

    /// The partitions that a node holds.
    pub fn partitions_of_node(&self, node: NodeId) -> impl Iterator<Item = u16> + '_ {
        (0..PARTITIONS).filter(move |partition| self.holds(node, *partition))
    }
}

fn choose(set: &v1::LayoutSet, partition: u16, replicas: usize, table: &mut Vec<NodeId>) {
    let mut left: Vec<(u64, &v1::LayoutNode)> =
        set.nodes.iter().map(|node| (score(partition, node), node)).collect();
    let mut chosen: Vec<&v1::LayoutNode> = Vec::with_capacity(replicas);
    for _ in 0..replicas {
        let in_zone = |node: &v1::LayoutNode| chosen.iter().filter(|other| other.zone == node.zone).count();
        let best = left
            .iter()
            .enumerate()
            .min_by_key(|(_, (score, node))| (in_zone(node), std::cmp::Reverse(*score), node.node_id));
        let (best, _) = best.expect("a set has at least as many nodes as replicas");
        chosen.push(left.swap_remove(best).1);
    }
    table.extend(chosen.iter().map(|node| NodeId(node.node_id)));
}

/// The best of as many lots as the node has weight: the chance to win is in proportion to it.
fn score(partition: u16, node: &v1::LayoutNode) -> u64 {
    let lot = |number: u32| {
        let mut hasher = hasher(SCORE);
        hasher.write_u16(partition.to_le());
        hasher.write_u64(node.node_id.to_le());
        hasher.write_u32(number.to_le());
        hasher.finish()
    };
    (0..node.weight.clamp(1, WEIGHT_MAX)).map(lot).max().unwrap_or_default()
}

/// A layout, ready to be asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    wire: v1::StorageLayout,
    current: Placement,
    next: Option<Placement>,
}

impl Layout {
    /// Computes the tables of a layout. `None` when it has no current set.
    pub fn new(wire: v1::StorageLayout) -> Option<Self> {
        let current = Placement::new(wire.current.as_ref().filter(|set| !set.nodes.is_empty())?);
        let next = wire.next.as_ref().filter(|set| !set.nodes.is_empty()).map(Placement::new);
        Some(Self { wire, current, next })
    }

    /// The epoch of the data path.
    pub fn version(&self) -> u64 {
        self.wire.version
    }
    /// Where a change under way stands.
    pub fn phase(&self) -> Phase {
        self.wire.phase()
    }
    /// The set that has been in force.
    pub fn current(&self) -> &Placement {
        &self.current
    }
    /// The set that takes over.
    pub fn next(&self) -> Option<&Placement> {
        self.next.as_ref()
    }
    /// As it is sent.
    pub fn wire(&self) -> &v1::StorageLayout {
        &self.wire
    }

    /// The placement that answers reads.
    pub fn readers(&self) -> &Placement {
        match (self.phase(), &self.next) {
            (Phase::ReadNext, Some(next)) => next,
            _ => &self.current,
        }
    }

    /// The placements that a write must reach.
    pub fn writers(&self) -> impl Iterator<Item = &Placement> {
        std::iter::once(&self.current).chain(self.next.as_ref())
    }

    /// Whether the node holds the partition in any set in force.
    pub fn holds(&self, node: NodeId, partition: u16) -> bool {
        self.writers().any(|placement| placement.holds(node, partition))
    }

    /// The PeerId of a node of any set, in base58.
    pub fn peer_of(&self, node: NodeId) -> Option<&str> {
        self.writers().find_map(|placement| placement.peers().get(&node)).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Layout, PARTITIONS, Placement, SPREAD, majority, partition_of, partitions_of};
    use crate::names::NodeId;
    use crate::v1;

    fn set(zones: &[&str]) -> v1::LayoutSet {
        let node = |(index, zone): (usize, &&str)| v1::LayoutNode {
            node_id: index as u64 + 1,
            peer_id: format!("peer-{}", index + 1),
            zone: (*zone).to_owned(),
            weight: 0,
        };
        v1::LayoutSet { replicas: 3, nodes: zones.iter().enumerate().map(node).collect() }
    }

    fn shares(placement: &Placement) -> BTreeMap<NodeId, usize> {
        let mut shares = BTreeMap::new();
        for partition in 0..PARTITIONS {
            for node in placement.nodes_of(partition) {
                *shares.entry(*node).or_default() += 1;
            }
        }
        shares
    }

    #[test]
    fn a_key_lies_in_one_of_its_namespaces_partitions() {
        let partitions = partitions_of("app");
        assert!(partitions.len() <= SPREAD as usize && !partitions.is_empty());
        for number in 0..1000 {
            assert!(partitions.contains(&partition_of("app", &format!("key-{number}"))));
        }
        assert_ne!(partitions, partitions_of("other"));
    }

    /// The bytes on every disk depend on this: it must never change.
    #[test]
    fn the_function_is_the_one_that_clusters_were_laid_out_with() {
        let keys = ["a", "user:1", "ключ"].map(|key| partition_of("app", key));
        let placement = Placement::new(&set(&["", "", "", "", ""]));
        let nodes: Vec<&[NodeId]> = [0, 511, 1023].map(|partition| placement.nodes_of(partition)).to_vec();
        assert_eq!(keys, [698, 230, 876]);
        assert_eq!(nodes, [[1, 2, 4], [1, 3, 2], [5, 2, 1]].map(|nodes| nodes.map(NodeId)));
    }

    #[test]
    fn shares_are_even_and_a_new_node_takes_only_its_own() {
        let before = Placement::new(&set(&[""; 10]));
        for share in shares(&before).values() {
            assert!((200..420).contains(share), "{:?}", shares(&before));
        }
        let after = Placement::new(&set(&[""; 11]));
        for partition in 0..PARTITIONS {
            let moved = after.nodes_of(partition).iter().filter(|node| !before.holds(**node, partition));
            assert!(moved.copied().all(|node| node == NodeId(11)));
        }
    }

    #[test]
    fn replicas_are_in_different_zones_while_there_are_any() {
        let placement = Placement::new(&set(&["a", "a", "a", "b", "b", "c"]));
        let zone = |node: &NodeId| ["a", "a", "a", "b", "b", "c"][node.0 as usize - 1];
        for partition in 0..PARTITIONS {
            let mut zones: Vec<&str> = placement.nodes_of(partition).iter().map(zone).collect();
            zones.sort_unstable();
            assert_eq!(zones, ["a", "b", "c"]);
        }
    }

    #[test]
    fn weight_is_a_share() {
        let mut weighted = set(&[""; 4]);
        weighted.replicas = 1;
        weighted.nodes[3].weight = 3;
        let shares = shares(&Placement::new(&weighted));
        assert!((430..600).contains(&shares[&NodeId(4)]), "{shares:?}");
    }

    #[test]
    fn a_small_cluster_has_as_many_replicas_as_nodes() {
        let placement = Placement::new(&set(&["", ""]));
        assert_eq!(placement.replicas(), 2);
        assert_eq!((majority(1), majority(2), majority(3), majority(5)), (1, 2, 2, 3));
        assert!(Layout::new(v1::StorageLayout::default()).is_none());
    }
}

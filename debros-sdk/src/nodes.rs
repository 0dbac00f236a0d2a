//! Which nodes there are and which of them to ask next, as plain data. It opens no connection and
//! reads no clock: both come in as arguments, so the choice is the same under simulated time.
//!
//! Invariant: as long as any node is known that is not in `tried`, `choose` gives one. A node that
//! failed lately is asked last, never not at all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use debros_net::PeerId;
use debros_proto::limits;
use tokio::time::Instant;

/// A node that failed is avoided for so long the first time; each further failure doubles it.
const AVOID_FIRST: Duration = Duration::from_millis(250);
/// A node that came back is asked again after this much at the latest.
const AVOID_MAX: Duration = Duration::from_secs(5);
/// As many nodes as keep a full mesh, and as many again that have been replaced by others.
const NODES_MAX: usize = 2 * limits::MESH_NODES_MAX;

/// What a client knows of the nodes.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    known: BTreeMap<PeerId, Node>,
    /// The connected node: the first that answered, until it fails. Asked first where any node will do.
    home: Option<PeerId>,
    /// By database, who led when last heard.
    leaders: HashMap<String, PeerId>,
}

#[derive(Debug, Default)]
struct Node {
    failures: u32,
    avoid_until: Option<Instant>,
}

impl Nodes {
    pub(crate) fn learn(&mut self, peer: PeerId) {
        if self.known.len() < NODES_MAX {
            self.known.entry(peer).or_default();
        }
    }

    /// Keeps only these; for when the cluster itself says who its members are.
    pub(crate) fn retain(&mut self, members: &BTreeSet<PeerId>) {
        self.known.retain(|peer, _| members.contains(peer));
        self.leaders.retain(|_, peer| members.contains(peer));
        self.home = self.home.filter(|peer| members.contains(peer));
    }

    pub(crate) fn all(&self) -> Vec<PeerId> {
        self.known.keys().copied().collect()
    }

    pub(crate) fn home(&self) -> Option<PeerId> {
        self.home
    }

    /// The node answered.
    pub(crate) fn answered(&mut self, peer: PeerId) {
        if let Some(node) = self.known.get_mut(&peer) {
            *node = Node::default();
            if self.home.is_none() {
                self.home = Some(peer);
            }
        }
    }

    /// The node could not be reached, or its connection broke.
    pub(crate) fn failed(&mut self, peer: PeerId, now: Instant) {
        self.unfit(peer, now);
        self.home = self.home.filter(|home| *home != peer);
    }

    /// The node answered that it cannot serve yet: others are asked first, and it stays connected.
    pub(crate) fn unfit(&mut self, peer: PeerId, now: Instant) {
        if let Some(node) = self.known.get_mut(&peer) {
            let avoid = AVOID_FIRST.saturating_mul(1 << node.failures.min(8)).min(AVOID_MAX);
            node.failures = node.failures.saturating_add(1);
            node.avoid_until = Some(now + avoid);
        }
        self.leaders.retain(|_, leader| *leader != peer);
    }

    pub(crate) fn set_leader(&mut self, database: &str, leader: PeerId) {
        self.learn(leader);
        self.leaders.insert(database.to_owned(), leader);
    }

    /// The node said that it does not lead.
    pub(crate) fn does_not_lead(&mut self, database: &str, peer: PeerId) {
        if self.leaders.get(database) == Some(&peer) {
            self.leaders.remove(database);
        }
    }

    pub(crate) fn leader(&self, database: &str) -> Option<PeerId> {
        self.leaders.get(database).copied()
    }

    /// The first of these that is not tried and did not fail lately.
    pub(crate) fn first_usable(
        &self,
        preferred: &[PeerId],
        tried: &BTreeSet<PeerId>,
        now: Instant,
    ) -> Option<PeerId> {
        preferred.iter().copied().find(|peer| self.is_usable(*peer, tried, now))
    }

    fn is_usable(&self, peer: PeerId, tried: &BTreeSet<PeerId>, now: Instant) -> bool {
        let well = |node: &Node| node.avoid_until.is_none_or(|until| until <= now);
        !tried.contains(&peer) && self.known.get(&peer).is_some_and(well)
    }

    /// Whom to ask next: the database's leader, then the node that answered last, then one that is
    /// connected, then any other; among equals the one at `draw`. Those that failed lately come last.
    pub(crate) fn choose(
        &self,
        database: Option<&str>,
        tried: &BTreeSet<PeerId>,
        is_connected: impl Fn(PeerId) -> bool,
        now: Instant,
        draw: usize,
    ) -> Option<PeerId> {
        let usable = |peer: &PeerId| self.is_usable(*peer, tried, now);
        let leader = database.and_then(|database| self.leader(database));
        if let Some(peer) = leader.filter(usable).or_else(|| self.home.filter(usable)) {
            return Some(peer);
        }
        let at_draw = |among: Vec<PeerId>| {
            if among.is_empty() { None } else { among.get(draw % among.len()).copied() }
        };
        let usable: Vec<PeerId> = self.known.keys().copied().filter(usable).collect();
        let connected = usable.iter().copied().filter(|peer| is_connected(*peer)).collect();
        at_draw(connected)
            .or_else(|| at_draw(usable))
            .or_else(|| at_draw(self.known.keys().copied().filter(|peer| !tried.contains(peer)).collect()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use debros_net::{Keypair, PeerId};
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use tokio::time::Instant;

    use super::Nodes;

    fn peers(count: usize) -> Vec<PeerId> {
        (0..count).map(|_| Keypair::generate_ed25519().public().to_peer_id()).collect()
    }

    #[test]
    fn the_leader_comes_first_then_the_home_then_the_connected() {
        let peers = peers(3);
        let mut nodes = Nodes::default();
        peers.iter().for_each(|peer| nodes.learn(*peer));
        let now = Instant::now();
        nodes.answered(peers[0]);
        nodes.set_leader("d", peers[1]);
        let mut tried = BTreeSet::new();
        let connected = |peer| peer == peers[2];
        assert_eq!(nodes.choose(Some("d"), &tried, connected, now, 0), Some(peers[1]));
        assert_eq!(nodes.choose(Some("other"), &tried, connected, now, 0), Some(peers[0]));
        tried.insert(peers[1]);
        assert_eq!(nodes.choose(Some("d"), &tried, connected, now, 0), Some(peers[0]));
        nodes.failed(peers[0], now);
        assert_eq!(nodes.choose(None, &tried, connected, now, 0), Some(peers[2]));
        tried.insert(peers[2]);
        assert_eq!(nodes.choose(None, &tried, connected, now, 0), Some(peers[0]));
        tried.insert(peers[0]);
        assert_eq!(nodes.choose(None, &tried, connected, now, 0), None);
    }

    #[test]
    fn a_failed_leader_is_forgotten_and_asked_again_after_a_while() {
        let peers = peers(1);
        let mut nodes = Nodes::default();
        nodes.set_leader("d", peers[0]);
        let now = Instant::now();
        nodes.failed(peers[0], now);
        assert_eq!(nodes.leader("d"), None);
        nodes.answered(peers[0]);
        assert_eq!(nodes.home(), Some(peers[0]));
        nodes.retain(&BTreeSet::new());
        assert_eq!((nodes.home(), nodes.all()), (None, vec![]));
    }

    proptest! {
        #[test]
        fn some_untried_node_is_always_given(
            failed in proptest::collection::vec(any::<bool>(), 1..8),
            tried in proptest::collection::vec(any::<bool>(), 8),
            draw in any::<usize>(),
            later_ms in 0u64..6000,
        ) {
            let peers = peers(failed.len());
            let mut nodes = Nodes::default();
            let now = Instant::now();
            for (peer, failed) in peers.iter().zip(&failed) {
                nodes.learn(*peer);
                if *failed {
                    nodes.failed(*peer, now);
                }
            }
            let tried: BTreeSet<PeerId> =
                peers.iter().zip(&tried).filter(|(_, tried)| **tried).map(|(peer, _)| *peer).collect();
            let chosen = nodes.choose(None, &tried, |_| false, now + Duration::from_millis(later_ms), draw);
            prop_assert_eq!(chosen.is_none(), tried.len() == peers.len());
            prop_assert!(chosen.is_none_or(|peer| !tried.contains(&peer)));
        }
    }
}

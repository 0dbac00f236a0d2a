//! The address book: who is known, where each may be dialed, when each was last heard from.
//!
//! Plain data behind a short lock. Knows nothing of dialing; whoever dials reports how it went.
//!
//! Invariants: at most [`limits::PEER_ADDRESSES_MAX`] addresses of a peer and
//! [`KNOWN_PEERS_MAX`] peers; an address that worked is tried first and given up last; a connected
//! peer is never evicted; `last_seen_ms` is set only by what this node heard itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use debros_proto::limits;
use libp2p::{Multiaddr, PeerId};

use crate::host::addresses;
use crate::network::{KnownPeer, TransportKind};

/// Peers kept: every member of a full mesh several times over, so that restarts under new
/// identities and SDK clients leave room. The longest unseen give way.
pub(crate) const KNOWN_PEERS_MAX: usize = 1024;

/// When a peer was last heard from, written by whoever hears and read by anybody.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastHeard(Arc<AtomicU64>);

impl LastHeard {
    pub(crate) fn now(&self) {
        self.0.store(unix_ms(), Ordering::Relaxed);
    }

    fn read(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|ms| *ms > 0)
    }
}

pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Debug, Default)]
struct Entry {
    /// The best first.
    addresses: Vec<Multiaddr>,
    /// The address of the last connection that was dialed from here.
    proved: Option<Multiaddr>,
    heard: LastHeard,
    transport: Option<TransportKind>,
    connected: bool,
    round_trip: Option<Duration>,
}

/// Every known peer.
#[derive(Debug)]
pub(crate) struct AddressBook {
    local: PeerId,
    entries: HashMap<PeerId, Entry>,
}

impl AddressBook {
    pub(crate) fn new(local: PeerId) -> Self {
        Self { local, entries: HashMap::new() }
    }

    /// Adds addresses, the given order first among the unproved; true when one of them was new.
    pub(crate) fn learn(&mut self, peer: PeerId, learnt: &[Multiaddr]) -> bool {
        let learnt: Vec<Multiaddr> = learnt
            .iter()
            .map(addresses::parse)
            .filter(|(address, owner)| {
                addresses::is_dialable(address) && owner.is_none_or(|owner| owner == peer)
            })
            .map(|(address, _)| address)
            .take(limits::PEER_ADDRESSES_MAX)
            .collect();
        if peer == self.local || learnt.is_empty() {
            return false;
        }
        self.make_room(peer);
        let entry = self.entries.entry(peer).or_default();
        let news = learnt.iter().any(|address| !entry.addresses.contains(address));
        let older = std::mem::take(&mut entry.addresses);
        for address in entry.proved.clone().into_iter().chain(learnt).chain(older) {
            if !entry.addresses.contains(&address) {
                entry.addresses.push(address);
            }
        }
        entry.addresses.truncate(limits::PEER_ADDRESSES_MAX);
        news
    }

    /// A dial reached the peer here.
    pub(crate) fn proved(&mut self, peer: PeerId, address: &Multiaddr) {
        let (address, _) = addresses::parse(address);
        self.learn(peer, std::slice::from_ref(&address));
        if let Some(entry) = self.entries.get_mut(&peer) {
            entry.addresses.retain(|known| *known != address);
            entry.addresses.insert(0, address.clone());
            entry.proved = Some(address);
        }
    }

    /// Every address failed; the proved one is no better than the others any more.
    pub(crate) fn failed(&mut self, peer: PeerId) {
        if let Some(entry) = self.entries.get_mut(&peer) {
            entry.proved = None;
        }
    }

    /// Somebody else answered at this address.
    pub(crate) fn remove(&mut self, peer: PeerId, address: &Multiaddr) {
        let (address, _) = addresses::parse(address);
        if let Some(entry) = self.entries.get_mut(&peer) {
            entry.addresses.retain(|known| *known != address);
            entry.proved.take_if(|proved| *proved == address);
        }
    }

    pub(crate) fn forget(&mut self, peer: PeerId) {
        if self.entries.get(&peer).is_some_and(|entry| !entry.connected) {
            self.entries.remove(&peer);
        }
    }

    /// Where to dial, the best first: the proved address, TCP before QUIC (half the cost of a round
    /// trip), then as learnt.
    pub(crate) fn addresses(&self, peer: PeerId) -> Vec<Multiaddr> {
        let Some(entry) = self.entries.get(&peer) else { return Vec::new() };
        let mut found = entry.addresses.clone();
        found.sort_by_key(|address| {
            let proved = entry.proved.as_ref() == Some(address);
            (!proved, addresses::transport_of(address) == Some(TransportKind::Quic))
        });
        found
    }

    /// The connected peer that was reached at this very address.
    pub(crate) fn connected_at(&self, address: &Multiaddr) -> Option<PeerId> {
        let (address, _) = addresses::parse(address);
        self.entries
            .iter()
            .find(|(_, entry)| entry.connected && entry.proved.as_ref() == Some(&address))
            .map(|(peer, _)| *peer)
    }

    /// Where it is noted that this peer was heard.
    pub(crate) fn last_heard(&mut self, peer: PeerId) -> LastHeard {
        self.make_room(peer);
        self.entries.entry(peer).or_default().heard.clone()
    }

    pub(crate) fn connected(&mut self, peer: PeerId, transport: TransportKind) {
        self.make_room(peer);
        let entry = self.entries.entry(peer).or_default();
        entry.connected = true;
        entry.transport = Some(transport);
        entry.heard.now();
    }

    pub(crate) fn disconnected(&mut self, peer: PeerId) {
        if let Some(entry) = self.entries.get_mut(&peer) {
            entry.connected = false;
            entry.transport = None;
            entry.round_trip = None;
            // A client that was never dialed has nothing to find it by.
            if entry.addresses.is_empty() {
                self.entries.remove(&peer);
            }
        }
    }

    pub(crate) fn round_trip(&mut self, peer: PeerId, round_trip: Duration) {
        if let Some(entry) = self.entries.get_mut(&peer) {
            entry.round_trip = Some(round_trip);
        }
    }

    pub(crate) fn is_connected(&self, peer: PeerId) -> bool {
        self.entries.get(&peer).is_some_and(|entry| entry.connected)
    }

    pub(crate) fn known(&self) -> Vec<KnownPeer> {
        let known = |(peer, entry): (&PeerId, &Entry)| KnownPeer {
            peer: *peer,
            addresses: entry.addresses.clone(),
            connected: entry.connected,
            last_seen_ms: entry.heard.read(),
            transport: entry.transport,
            round_trip: entry.round_trip,
        };
        self.entries.iter().map(known).collect()
    }

    fn make_room(&mut self, newcomer: PeerId) {
        if self.entries.len() < KNOWN_PEERS_MAX || self.entries.contains_key(&newcomer) {
            return;
        }
        let unseen = self
            .entries
            .iter()
            .filter(|(_, entry)| !entry.connected)
            .min_by_key(|(_, entry)| entry.heard.read())
            .map(|(peer, _)| *peer);
        if let Some(peer) = unseen {
            self.entries.remove(&peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: usize) -> Multiaddr {
        format!("/ip4/10.0.0.1/tcp/{port}").parse().unwrap()
    }

    #[test]
    fn what_worked_is_tried_first_and_given_up_last() {
        let (mut book, peer) = (AddressBook::new(PeerId::random()), PeerId::random());
        assert!(book.learn(peer, &[address(1), address(2)]));
        book.proved(peer, &address(2));
        for port in 3..100 {
            assert!(book.learn(peer, &[address(port)]));
        }
        let found = book.addresses(peer);
        assert_eq!(found.len(), limits::PEER_ADDRESSES_MAX);
        assert_eq!(found[..2], [address(2), address(99)]);
        assert!(!book.learn(peer, &[address(2)]));
        book.remove(peer, &address(2));
        assert!(!book.addresses(peer).contains(&address(2)));
    }

    #[test]
    fn the_book_is_bounded_and_keeps_the_connected() {
        let mut book = AddressBook::new(PeerId::random());
        let connected = PeerId::random();
        book.connected(connected, TransportKind::Tcp);
        for _ in 0..2 * KNOWN_PEERS_MAX {
            book.learn(PeerId::random(), &[address(1)]);
        }
        assert_eq!(book.known().len(), KNOWN_PEERS_MAX);
        assert!(book.is_connected(connected));
    }

    #[test]
    fn hearsay_is_not_seeing() {
        let (mut book, peer) = (AddressBook::new(PeerId::random()), PeerId::random());
        book.learn(peer, &[address(1)]);
        assert_eq!(book.known()[0].last_seen_ms, None);
        book.connected(peer, TransportKind::Quic);
        assert!(book.known()[0].last_seen_ms.is_some());
    }

    #[test]
    fn nobody_teaches_a_node_about_itself_or_of_another_under_a_false_name() {
        let (local, peer) = (PeerId::random(), PeerId::random());
        let mut book = AddressBook::new(local);
        assert!(!book.learn(local, &[address(1)]));
        assert!(!book.learn(peer, &[address(1).with_p2p(local).unwrap()]));
        assert!(book.known().is_empty());
    }
}

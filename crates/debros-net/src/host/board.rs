//! What the swarm's task and the host's callers share: the address book, who is connected, where
//! this node can be found, the counters.
//!
//! Invariants: locks are short and never held across an `await`; an event is sent after the book
//! says the same; the signed record changes only when the addresses do, so that others recognise it
//! by its bytes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::broadcast;

use super::address_book::{AddressBook, LastHeard};
use crate::error::OpenError;
use crate::network::{KnownPeer, PEER_EVENTS_KEPT, PeerEvent, TransportKind};
use crate::record;
use crate::stats::Counters;

pub(crate) struct Board {
    local: PeerId,
    keypair: Keypair,
    book: Mutex<AddressBook>,
    advertised: Mutex<Advertised>,
    events: broadcast::Sender<PeerEvent>,
    pub(crate) counters: Arc<Counters>,
}

#[derive(Default)]
struct Advertised {
    addresses: Vec<Multiaddr>,
    record: Option<Vec<u8>>,
}

impl Board {
    pub(crate) fn new(keypair: Keypair) -> Self {
        let local = keypair.public().to_peer_id();
        Self {
            local,
            keypair,
            book: Mutex::new(AddressBook::new(local)),
            advertised: Mutex::default(),
            events: broadcast::Sender::new(PEER_EVENTS_KEPT),
            counters: Arc::default(),
        }
    }

    pub(crate) fn local(&self) -> PeerId {
        self.local
    }

    /// Whether this side selects among the connections with that peer.
    pub(crate) fn decides(&self, peer: PeerId) -> bool {
        self.local < peer
    }

    pub(crate) fn watch(&self) -> broadcast::Receiver<PeerEvent> {
        self.events.subscribe()
    }

    pub(crate) fn learn(&self, peer: PeerId, addresses: &[Multiaddr]) {
        let (news, connected) = {
            let mut book = self.book();
            (book.learn(peer, addresses), book.is_connected(peer))
        };
        if news && !connected {
            self.tell(PeerEvent::Discovered(peer));
        }
    }

    pub(crate) fn forget(&self, peer: PeerId) {
        self.book().forget(peer);
    }

    pub(crate) fn proved(&self, peer: PeerId, address: &Multiaddr) {
        self.book().proved(peer, address);
    }

    pub(crate) fn remove(&self, peer: PeerId, address: &Multiaddr) {
        self.book().remove(peer, address);
    }

    pub(crate) fn unreachable(&self, peer: PeerId) {
        self.book().failed(peer);
    }

    pub(crate) fn addresses(&self, peer: PeerId) -> Vec<Multiaddr> {
        self.book().addresses(peer)
    }

    pub(crate) fn connected_at(&self, address: &Multiaddr) -> Option<PeerId> {
        self.book().connected_at(address)
    }

    pub(crate) fn last_heard(&self, peer: PeerId) -> LastHeard {
        self.book().last_heard(peer)
    }

    pub(crate) fn round_trip(&self, peer: PeerId, round_trip: Duration) {
        self.book().round_trip(peer, round_trip);
    }

    pub(crate) fn is_connected(&self, peer: PeerId) -> bool {
        self.book().is_connected(peer)
    }

    pub(crate) fn known(&self) -> Vec<KnownPeer> {
        self.book().known()
    }

    /// Notes whether, and over what, this peer is connected; tells the watchers when that changed.
    pub(crate) fn set_connected(&self, peer: PeerId, transport: Option<TransportKind>) {
        let event = {
            let mut book = self.book();
            match (book.is_connected(peer), transport) {
                (false, None) => return,
                (before, Some(transport)) => {
                    book.connected(peer, transport);
                    if before {
                        return;
                    }
                    PeerEvent::Connected(peer)
                }
                (true, None) => {
                    book.disconnected(peer);
                    PeerEvent::Disconnected(peer)
                }
            }
        };
        self.tell(event);
    }

    pub(crate) fn dial_failed(&self, reason: &OpenError) {
        if matches!(reason, OpenError::NoAddress(_)) {
            // Nobody was dialed.
            return;
        }
        self.counters.dial_failed(reason.kind());
        if let OpenError::Refused(refusal) = reason {
            self.counters.admission_refused(refusal.kind());
        }
    }

    /// Notes where this node can be found; true when that changed.
    pub(crate) fn advertise(&self, addresses: Vec<Multiaddr>) -> bool {
        let mut advertised = self.advertised.lock().unwrap_or_else(PoisonError::into_inner);
        if advertised.addresses == addresses {
            return false;
        }
        advertised.record = (!addresses.is_empty()).then(|| record::sign(&self.keypair, &addresses));
        advertised.addresses = addresses;
        true
    }

    pub(crate) fn advertised(&self) -> Vec<Multiaddr> {
        self.advertised.lock().unwrap_or_else(PoisonError::into_inner).addresses.clone()
    }

    pub(crate) fn record(&self) -> Option<Vec<u8>> {
        self.advertised.lock().unwrap_or_else(PoisonError::into_inner).record.clone()
    }

    fn tell(&self, event: PeerEvent) {
        // An error says that nobody watches.
        let _ = self.events.send(event);
    }

    fn book(&self) -> MutexGuard<'_, AddressBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

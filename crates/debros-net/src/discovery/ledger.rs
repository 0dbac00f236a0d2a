//! The ledger: signed records of other peers, who was told which of them, and what each peer said of
//! itself.
//!
//! Plain data. Each confirmed record has a version, the order in which this node came to vouch for
//! it; a peer is told what is newer than what it was told before, so a repeated exchange between two
//! that agree carries next to nothing.
//!
//! Invariants: only verified records get in, the newest of each peer; only confirmed ones, whose
//! owner this node was connected to itself, get out; at most [`RECORDS_MAX`] are kept.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use debros_proto::limits;
use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

use super::PeerStatus;
use crate::record::{self, RecordError};

/// A record and a status are kept this long after their owner was last connected.
const LIFETIME: Duration = Duration::from_secs(600);
/// A full mesh several times over: nodes that restart under another identity leave theirs behind.
const RECORDS_MAX: usize = 4 * limits::EXCHANGE_RECORDS_MAX;

struct Entry {
    bytes: Bytes,
    sequence: u64,
    /// The order in which this node came to vouch for it; `None` while it is hearsay.
    version: Option<u64>,
    fresh: Instant,
}

/// See the module.
#[derive(Default)]
pub(super) struct Ledger {
    records: HashMap<PeerId, Entry>,
    /// The bytes of the records above: what is known already needs no verification.
    known: HashSet<Bytes>,
    statuses: HashMap<PeerId, PeerStatus>,
    /// The newest version that each peer was told.
    told: HashMap<PeerId, u64>,
    version: u64,
}

/// What a record taught: a peer, and where it says it is.
pub(super) type Learnt = (PeerId, Vec<Multiaddr>);

impl Ledger {
    /// Takes in the records of an exchange and returns what they taught. The first bad one ends it:
    /// whoever passes on an unsigned record is broken or lies.
    pub(super) fn absorb(
        &mut self,
        local: PeerId,
        records: &[Bytes],
        connected: impl Fn(PeerId) -> bool,
    ) -> Result<Vec<Learnt>, RecordError> {
        let mut learnt = Vec::new();
        for bytes in records {
            if self.known.contains(bytes) {
                continue;
            }
            let record = record::verify(bytes)?;
            let newest = self.records.get(&record.peer).is_none_or(|kept| kept.sequence < record.sequence);
            if record.peer == local || !newest {
                continue;
            }
            if !self.make_room(record.peer) {
                continue;
            }
            let version = connected(record.peer).then(|| self.next_version());
            let entry =
                Entry { bytes: bytes.clone(), sequence: record.sequence, version, fresh: Instant::now() };
            if let Some(older) = self.records.insert(record.peer, entry) {
                self.known.remove(&older.bytes);
            }
            self.known.insert(bytes.clone());
            learnt.push((record.peer, record.addresses));
        }
        Ok(learnt)
    }

    /// What this peer should be told: whatever it was not told before, the oldest first, so that
    /// what does not fit follows next time.
    pub(super) fn offer(&mut self, to: PeerId, room: usize, held: &[Bytes]) -> Vec<Bytes> {
        let told = self.told.get(&to).copied().unwrap_or(0);
        let held: HashSet<&Bytes> = held.iter().collect();
        let mut news: Vec<(u64, &Bytes)> = self
            .records
            .iter()
            .filter(|(peer, entry)| **peer != to && !self.is_client(**peer) && !held.contains(&entry.bytes))
            .filter_map(|(_, entry)| Some((entry.version?, &entry.bytes)))
            .filter(|(version, _)| *version > told)
            .collect();
        news.sort_unstable_by_key(|(version, _)| *version);
        news.truncate(room);
        let offered: Vec<Bytes> = news.iter().map(|(_, bytes)| Bytes::clone(bytes)).collect();
        let newest =
            if news.len() < room { self.version } else { news.last().map_or(told, |(version, _)| *version) };
        self.told.insert(to, newest);
        offered
    }

    /// Forgets what this peer was told: it may not have arrived.
    pub(super) fn untold(&mut self, peer: PeerId) {
        self.told.remove(&peer);
    }

    /// This node is connected to the peer, so it vouches for its record.
    pub(super) fn confirm(&mut self, peer: PeerId) {
        let version = self.version + 1;
        if let Some(entry) = self.records.get_mut(&peer) {
            entry.fresh = Instant::now();
            if entry.version.is_none() {
                entry.version = Some(version);
                self.version = version;
            }
        }
    }

    pub(super) fn set_status(&mut self, peer: PeerId, status: PeerStatus) {
        if self.statuses.contains_key(&peer) || self.statuses.len() < RECORDS_MAX {
            self.statuses.insert(peer, status);
        }
    }

    pub(super) fn statuses(&self) -> HashMap<PeerId, PeerStatus> {
        self.statuses.clone()
    }

    pub(super) fn status_of(&self, peer: PeerId) -> Option<PeerStatus> {
        self.statuses.get(&peer).cloned()
    }

    pub(super) fn status_since(&self, peer: PeerId) -> Option<Instant> {
        self.statuses.get(&peer).map(|status| status.received)
    }

    pub(super) fn is_client(&self, peer: PeerId) -> bool {
        self.statuses.get(&peer).is_some_and(|status| status.status.client)
    }

    /// Drops what belongs to peers that have been away too long; true when a status went.
    pub(super) fn prune(&mut self, connected: impl Fn(PeerId) -> bool) -> bool {
        for (peer, entry) in &mut self.records {
            if connected(*peer) {
                entry.fresh = Instant::now();
            }
        }
        let known = &mut self.known;
        self.records.retain(|_, entry| {
            let keep = entry.fresh.elapsed() < LIFETIME;
            if !keep {
                known.remove(&entry.bytes);
            }
            keep
        });
        self.told.retain(|peer, _| connected(*peer));
        let before = self.statuses.len();
        self.statuses.retain(|peer, status| connected(*peer) || status.received.elapsed() < LIFETIME);
        self.statuses.len() != before
    }

    fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// Hearsay gives way to what is new; what this node vouches for does not.
    fn make_room(&mut self, newcomer: PeerId) -> bool {
        if self.records.len() < RECORDS_MAX || self.records.contains_key(&newcomer) {
            return true;
        }
        let hearsay = self
            .records
            .iter()
            .filter(|(_, entry)| entry.version.is_none())
            .min_by_key(|(_, entry)| entry.fresh)
            .map(|(peer, _)| *peer);
        let Some(entry) = hearsay.and_then(|peer| self.records.remove(&peer)) else { return false };
        self.known.remove(&entry.bytes);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::identity::Keypair;

    fn signed(keypair: &Keypair, port: u16) -> Bytes {
        let address = format!("/ip4/10.0.0.1/tcp/{port}").parse().unwrap();
        record::sign(keypair, &[address]).into()
    }

    #[tokio::test]
    async fn only_confirmed_records_get_out_and_each_only_once() {
        let (owner, reader) = (Keypair::generate_ed25519(), PeerId::random());
        let mut ledger = Ledger::default();
        let record = signed(&owner, 1);
        ledger.absorb(PeerId::random(), std::slice::from_ref(&record), |_| false).unwrap();
        assert!(ledger.offer(reader, 9, &[]).is_empty(), "hearsay stays here");
        ledger.confirm(owner.public().to_peer_id());
        assert_eq!(ledger.offer(reader, 9, &[]), vec![record.clone()]);
        assert!(ledger.offer(reader, 9, &[]).is_empty());
        ledger.untold(reader);
        assert!(ledger.offer(reader, 9, std::slice::from_ref(&record)).is_empty(), "it has it already");
        ledger.untold(reader);
        assert!(ledger.offer(owner.public().to_peer_id(), 9, &[]).is_empty(), "nobody is told of itself");
        assert_eq!(ledger.offer(reader, 9, &[]), vec![record]);
    }

    #[tokio::test]
    async fn the_newest_record_of_a_peer_counts() {
        let owner = Keypair::generate_ed25519();
        let (older, newer) = (signed(&owner, 1), signed(&owner, 2));
        let mut ledger = Ledger::default();
        let learnt = ledger.absorb(PeerId::random(), &[newer.clone(), older], |_| true).unwrap();
        assert_eq!(learnt.len(), 1);
        assert_eq!(learnt[0].1, vec!["/ip4/10.0.0.1/tcp/2".parse::<Multiaddr>().unwrap()]);
        assert_eq!(ledger.offer(PeerId::random(), 9, &[]), vec![newer]);
    }

    #[tokio::test]
    async fn what_does_not_fit_follows_next_time() {
        let mut ledger = Ledger::default();
        let records: Vec<Bytes> = (0..10).map(|port| signed(&Keypair::generate_ed25519(), port)).collect();
        ledger.absorb(PeerId::random(), &records, |_| true).unwrap();
        let reader = PeerId::random();
        let mut told: Vec<Bytes> = Vec::new();
        for _ in 0..4 {
            told.extend(ledger.offer(reader, 3, &[]));
        }
        assert_eq!(told, records);
    }

    #[tokio::test]
    async fn the_ledger_is_bounded_by_hearsay_first() {
        let (mut ledger, vouched) = (Ledger::default(), Keypair::generate_ed25519());
        let vouched_peer = vouched.public().to_peer_id();
        ledger.absorb(PeerId::random(), &[signed(&vouched, 1)], |peer| peer == vouched_peer).unwrap();
        for _ in 0..RECORDS_MAX + 10 {
            ledger.absorb(PeerId::random(), &[signed(&Keypair::generate_ed25519(), 1)], |_| false).unwrap();
        }
        assert_eq!(ledger.records.len(), RECORDS_MAX);
        assert_eq!(ledger.known.len(), RECORDS_MAX);
        assert_eq!(ledger.offer(PeerId::random(), 9, &[]).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_been_away_too_long_is_forgotten() {
        let (mut ledger, owner) = (Ledger::default(), Keypair::generate_ed25519());
        ledger.absorb(PeerId::random(), &[signed(&owner, 1)], |_| true).unwrap();
        tokio::time::advance(LIFETIME / 2).await;
        ledger.prune(|_| true);
        tokio::time::advance(LIFETIME / 2).await;
        ledger.prune(|_| false);
        assert_eq!(ledger.records.len(), 1);
        tokio::time::advance(LIFETIME).await;
        ledger.prune(|_| false);
        assert!(ledger.records.is_empty() && ledger.known.is_empty());
    }

    #[tokio::test]
    async fn a_bad_record_ends_the_exchange() {
        let mut record = signed(&Keypair::generate_ed25519(), 1).to_vec();
        *record.last_mut().unwrap() ^= 1;
        let refused = Ledger::default().absorb(PeerId::random(), &[record.into()], |_| true);
        assert_eq!(refused, Err(RecordError::BadSignature));
    }
}

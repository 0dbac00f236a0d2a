//! The discovery task: the one owner of who is dialed and who is exchanged with, and when.
//!
//! Driven by the network's events and its own due times. It never scans all peers on an event: a
//! hundred nodes that meet would spend their time on it.
//!
//! Invariants: at most [`DIALS_MAX`] dials, fewer while dials time out, and [`EXCHANGES_MAX`] exchanges are under way; of two that
//! learn of each other at once the one with the lower id dials and exchanges first, the other only if
//! that does not happen.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use debros_proto::limits;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::backoff::{jitter, pause, up_to};
use super::exchange::{ExchangeError, exchange};
use super::{DiscoveryConfig, Shared, saved};
use crate::error::OpenError;
use crate::host::addresses;
use crate::network::{Network, PeerEvent};

/// Dials under way. Starts small, grows with each that succeeds and is halved by each that nobody
/// answered in time: a hundred nodes that start at once must not time one another out.
const DIALS_MAX: usize = 8;
const DIALS_FIRST: usize = 3;
/// Exchanges under way that this side began.
const EXCHANGES_MAX: usize = 8;
/// Peers with which this node exchanges in one interval; with more, each has its turn less often.
const EXCHANGES_PER_INTERVAL: usize = 16;
/// The head start of the side that dials or exchanges first.
const HEAD_START: Duration = Duration::from_millis(300);
const EXCHANGE_HEAD_START: Duration = Duration::from_millis(1500);
/// What is learnt together is not dialed in the same instant.
const SPREAD: Duration = Duration::from_millis(50);
/// A lost peer is dialed again after about this: it may be restarting, and others lost it too.
const RECONNECT_PAUSE: Duration = Duration::from_millis(150);
/// Retry of what only an administrator can mend: another secret, another peer at that address.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// A bootstrap address that led to this node itself may lead elsewhere when its name changes.
const OWN_ADDRESS_PAUSE: Duration = Duration::from_secs(60);
/// A peer of another cluster is left alone for this long.
const OTHER_CLUSTER_PAUSE: Duration = Duration::from_secs(60);
/// A peer that does not offer exchanges is asked again after this.
const NOT_OFFERED_PAUSE: Duration = Duration::from_secs(300);
/// Peers that were never seen are given up after this, others after the longer time.
const GIVE_UP_UNSEEN: Duration = Duration::from_secs(600);
const GIVE_UP_SEEN: Duration = Duration::from_secs(7 * 24 * 3600);
/// Saved peers, old records and old statuses are looked after this often.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(10);

/// An address from the configuration.
struct Bootstrap {
    address: Multiaddr,
    /// Who is expected there, or was found there last.
    peer: Option<PeerId>,
    failures: u32,
    due: Instant,
    dialing: bool,
    /// What went wrong last, so that it is logged once.
    trouble: Option<&'static str>,
}

/// A peer that should be connected and is not.
struct Candidate {
    failures: u32,
    due: Instant,
    since: Instant,
    /// When it became known, or was last found to be out of reach; not of one whose connection was lost.
    learnt: Option<Instant>,
}

enum Dialed {
    Bootstrap(usize, Result<PeerId, OpenError>),
    Peer(PeerId, Result<(), OpenError>),
}

struct Connected {
    since: Instant,
    exchange_due: Instant,
    failures: u32,
}

pub(super) struct Task {
    shared: Arc<Shared>,
    config: DiscoveryConfig,
    local: PeerId,
    events: broadcast::Receiver<PeerEvent>,
    bootstrap: Vec<Bootstrap>,
    candidates: HashMap<PeerId, Candidate>,
    connected: HashMap<PeerId, Connected>,
    dials: JoinSet<Dialed>,
    dials_max: usize,
    dialing: HashSet<PeerId>,
    exchanges: JoinSet<(PeerId, Result<(), ExchangeError>)>,
    exchanging: HashSet<PeerId>,
    housekeeping: Instant,
}

impl Task {
    pub(super) fn new(shared: Arc<Shared>, config: DiscoveryConfig) -> Self {
        let now = Instant::now();
        let bootstrap = config.bootstrap.iter().map(|address| Bootstrap {
            address: address.clone(),
            peer: addresses::parse(address).1,
            failures: 0,
            due: now,
            dialing: false,
            trouble: None,
        });
        Self {
            local: shared.network.local_peer(),
            // From before the first look at the peers, so that nobody is missed in between.
            events: shared.network.watch_peers(),
            bootstrap: bootstrap.collect(),
            candidates: HashMap::new(),
            connected: HashMap::new(),
            dials: JoinSet::new(),
            dials_max: DIALS_FIRST,
            dialing: HashSet::new(),
            exchanges: JoinSet::new(),
            exchanging: HashSet::new(),
            housekeeping: now + HOUSEKEEPING_INTERVAL,
            shared,
            config,
        }
    }

    pub(super) async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        self.load().await;
        self.look_at_all_peers();
        loop {
            self.start_dials();
            self.start_exchanges();
            let due = self.next_due();
            tokio::select! {
                _ = stopped.changed() => break,
                event = self.events.recv() => match event {
                    Ok(event) => self.on_event(event),
                    Err(RecvError::Lagged(_)) => self.look_at_all_peers(),
                    Err(RecvError::Closed) => break,
                },
                Some(dialed) = self.dials.join_next() => {
                    if let Ok(dialed) = dialed {
                        self.on_dialed(dialed);
                    }
                }
                Some(exchanged) = self.exchanges.join_next() => {
                    if let Ok((peer, outcome)) = exchanged {
                        self.on_exchanged(peer, outcome).await;
                    }
                }
                () = sleep_until(due) => {
                    if Instant::now() >= self.housekeeping {
                        self.keep_house().await;
                    }
                }
            }
        }
        self.dials.shutdown().await;
        self.exchanges.shutdown().await;
        self.save().await;
    }

    fn network(&self) -> &dyn Network {
        &*self.shared.network
    }

    fn is_client(&self) -> bool {
        (self.config.own_status)().client
    }

    /// The side that acts first where both could.
    fn goes_first(&self, peer: PeerId) -> bool {
        self.local < peer || self.is_client()
    }

    fn on_event(&mut self, event: PeerEvent) {
        match event {
            PeerEvent::Connected(peer) => self.on_connected(peer),
            PeerEvent::Disconnected(peer) => {
                self.connected.remove(&peer);
                self.shared.ledger().untold(peer);
                self.add_candidate(peer, jitter(RECONNECT_PAUSE));
            }
            PeerEvent::Discovered(peer) => {
                let head_start = if self.goes_first(peer) { Duration::ZERO } else { HEAD_START };
                // New addresses are a new chance for one that failed at the old ones.
                let learnt = self.candidates.remove(&peer).and_then(|candidate| candidate.learnt);
                self.add_candidate(peer, head_start + up_to(SPREAD));
                if let Some(candidate) = self.candidates.get_mut(&peer) {
                    candidate.learnt = learnt.or_else(|| Some(Instant::now()));
                }
            }
        }
    }

    fn on_connected(&mut self, peer: PeerId) {
        let now = Instant::now();
        let candidate = self.candidates.remove(&peer);
        if let (Some(learnt), Some(on_found)) =
            (candidate.and_then(|candidate| candidate.learnt), &self.config.on_found)
        {
            on_found(now - learnt);
        }
        self.shared.ledger().confirm(peer);
        let head_start = if self.goes_first(peer) { Duration::ZERO } else { EXCHANGE_HEAD_START };
        let exchange_due = now + head_start + up_to(SPREAD);
        self.connected.insert(peer, Connected { since: now, exchange_due, failures: 0 });
    }

    fn add_candidate(&mut self, peer: PeerId, after: Duration) {
        if peer == self.local || self.network().is_connected(peer) || self.shared.ledger().is_client(peer) {
            return;
        }
        let now = Instant::now();
        self.candidates.entry(peer).or_insert(Candidate {
            failures: 0,
            due: now + after,
            since: now,
            learnt: None,
        });
    }

    /// After missed events, and at the start.
    fn look_at_all_peers(&mut self) {
        for known in self.network().peers() {
            match (known.connected, self.connected.contains_key(&known.peer)) {
                (true, false) => self.on_connected(known.peer),
                (false, true) => self.on_event(PeerEvent::Disconnected(known.peer)),
                (false, false) if !known.addresses.is_empty() => {
                    self.add_candidate(known.peer, up_to(SPREAD))
                }
                _ => {}
            }
        }
        let network = Arc::clone(&self.shared.network);
        self.connected.retain(|peer, _| network.is_connected(*peer));
    }

    fn start_dials(&mut self) {
        let now = Instant::now();
        for index in 0..self.bootstrap.len() {
            let bootstrap = &self.bootstrap[index];
            let satisfied = bootstrap
                .peer
                .is_some_and(|peer| self.connected.contains_key(&peer) || self.dialing.contains(&peer));
            if self.dials.len() < self.dials_max && !satisfied && !bootstrap.dialing && bootstrap.due <= now {
                self.bootstrap[index].dialing = true;
                let (network, address) =
                    (Arc::clone(&self.shared.network), self.bootstrap[index].address.clone());
                self.dials.spawn(async move { Dialed::Bootstrap(index, network.connect(&address).await) });
            }
        }
        if self.nodes_connected() + self.dialing.len() >= self.config.peers_max {
            return;
        }
        let mut due: Vec<(Instant, PeerId)> = self
            .candidates
            .iter()
            .filter(|(peer, candidate)| candidate.due <= now && !self.dialing.contains(*peer))
            .map(|(peer, candidate)| (candidate.due, *peer))
            .collect();
        due.sort_unstable();
        let room = self.config.peers_max - self.nodes_connected() - self.dialing.len();
        for (_, peer) in due.into_iter().take(room) {
            if self.dials.len() >= self.dials_max {
                break;
            }
            self.dialing.insert(peer);
            let network = Arc::clone(&self.shared.network);
            self.dials.spawn(async move { Dialed::Peer(peer, network.reach(peer).await) });
        }
    }

    fn nodes_connected(&self) -> usize {
        // Clients only matter near the limit, and looking at all of them costs.
        if self.connected.len() < self.config.peers_max {
            return self.connected.len();
        }
        let ledger = self.shared.ledger();
        self.connected.keys().filter(|peer| !ledger.is_client(**peer)).count()
    }

    fn on_dialed(&mut self, dialed: Dialed) {
        self.pace(&dialed);
        match dialed {
            Dialed::Bootstrap(index, outcome) => self.on_bootstrap_dialed(index, outcome),
            Dialed::Peer(peer, outcome) => {
                self.dialing.remove(&peer);
                if let Err(error) = outcome {
                    self.on_peer_failed(peer, &error);
                }
            }
        }
    }

    /// Dials faster while dials succeed, slower while they time out.
    fn pace(&mut self, dialed: &Dialed) {
        let error = match dialed {
            Dialed::Bootstrap(_, outcome) => outcome.as_ref().err(),
            Dialed::Peer(_, outcome) => outcome.as_ref().err(),
        };
        self.dials_max = match error {
            None => (self.dials_max + 1).min(DIALS_MAX),
            Some(error) if error.is_overload() => (self.dials_max / 2).max(1),
            Some(_) => self.dials_max,
        };
    }

    fn on_bootstrap_dialed(&mut self, index: usize, outcome: Result<PeerId, OpenError>) {
        let (now, alone) = (Instant::now(), self.connected.is_empty());
        let bootstrap = &mut self.bootstrap[index];
        bootstrap.dialing = false;
        match outcome {
            Ok(peer) => {
                bootstrap.peer = Some(peer);
                bootstrap.failures = 0;
                bootstrap.trouble = None;
                bootstrap.due = now + jitter(RECONNECT_PAUSE);
            }
            Err(error) => {
                let address = &bootstrap.address;
                if bootstrap.trouble != Some(error.kind()) && !matches!(error, OpenError::LocalPeer(_)) {
                    tracing::warn!(%address, %error, "a bootstrap peer cannot be reached; trying on");
                }
                bootstrap.trouble = Some(error.kind());
                bootstrap.due = now + pause_after(&error, bootstrap.failures, alone);
                bootstrap.failures = bootstrap.failures.saturating_add(1);
            }
        }
    }

    fn on_peer_failed(&mut self, peer: PeerId, error: &OpenError) {
        if matches!(error, OpenError::NoAddress(_)) {
            // Nothing to try until somebody says where it is.
            self.candidates.remove(&peer);
            return;
        }
        let (now, alone) = (Instant::now(), self.connected.is_empty());
        let Some(candidate) = self.candidates.get_mut(&peer) else { return };
        candidate.due = now + pause_after(error, candidate.failures, alone);
        candidate.failures = candidate.failures.saturating_add(1);
        candidate.learnt = candidate.learnt.map(|_| now);
        tracing::debug!(%peer, %error, failures = candidate.failures, "a peer cannot be reached");
    }

    fn start_exchanges(&mut self) {
        let now = Instant::now();
        let due: Vec<PeerId> = self
            .connected
            .iter()
            .filter(|(peer, connected)| connected.exchange_due <= now && !self.exchanging.contains(*peer))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in due {
            if self.exchanging.len() >= EXCHANGES_MAX {
                break;
            }
            if self.was_asked_lately(peer) {
                self.exchange_again(peer, self.exchange_pause());
                continue;
            }
            self.exchanging.insert(peer);
            let shared = Arc::clone(&self.shared);
            self.exchanges.spawn(async move { (peer, exchange(&shared, peer).await) });
        }
    }

    /// The other side began an exchange already, as it is its turn to.
    fn was_asked_lately(&self, peer: PeerId) -> bool {
        let Some(connected) = self.connected.get(&peer) else { return false };
        let status = self.shared.ledger().status_since(peer);
        !self.goes_first(peer)
            && status
                .is_some_and(|since| since >= connected.since && since.elapsed() < 2 * self.exchange_pause())
    }

    fn exchange_pause(&self) -> Duration {
        let turns = self.connected.len().div_ceil(EXCHANGES_PER_INTERVAL).max(1);
        self.config.interval * u32::try_from(turns).unwrap_or(u32::MAX)
    }

    fn exchange_again(&mut self, peer: PeerId, after: Duration) {
        if let Some(connected) = self.connected.get_mut(&peer) {
            connected.exchange_due = Instant::now() + jitter(after);
        }
    }

    async fn on_exchanged(&mut self, peer: PeerId, outcome: Result<(), ExchangeError>) {
        self.exchanging.remove(&peer);
        let regular = self.exchange_pause();
        let Some(connected) = self.connected.get_mut(&peer) else { return };
        let after = match outcome {
            Ok(()) => {
                connected.failures = 0;
                regular
            }
            Err(ExchangeError::NotOffered) => NOT_OFFERED_PAUSE,
            Err(ExchangeError::OtherCluster(reason)) => {
                tracing::warn!(%peer, %reason, "left a node of another cluster");
                self.shared.network.disconnect(peer).await;
                self.connected.remove(&peer);
                let (now, due) = (Instant::now(), Instant::now() + OTHER_CLUSTER_PAUSE);
                self.candidates.insert(peer, Candidate { failures: 0, due, since: now, learnt: None });
                return;
            }
            Err(ExchangeError::Failed(reason)) => {
                tracing::debug!(%peer, %reason, "an exchange failed");
                connected.failures = connected.failures.saturating_add(1);
                pause(connected.failures, false).max(HEAD_START).min(regular)
            }
        };
        self.exchange_again(peer, after);
    }

    fn next_due(&self) -> Instant {
        let dials_full = self.dials.len() >= self.dials_max;
        let bootstrap = self
            .bootstrap
            .iter()
            .filter(|bootstrap| !dials_full && !bootstrap.dialing)
            .filter(|bootstrap| bootstrap.peer.is_none_or(|peer| !self.connected.contains_key(&peer)))
            .filter(|bootstrap| bootstrap.peer.is_none_or(|peer| !self.dialing.contains(&peer)))
            .map(|bootstrap| bootstrap.due);
        let mesh_full = self.nodes_connected() + self.dialing.len() >= self.config.peers_max;
        let candidates = self
            .candidates
            .iter()
            .filter(|(peer, _)| !dials_full && !mesh_full && !self.dialing.contains(*peer))
            .map(|(_, candidate)| candidate.due);
        let exchanges_full = self.exchanging.len() >= EXCHANGES_MAX;
        let exchanges = self
            .connected
            .iter()
            .filter(|(peer, _)| !exchanges_full && !self.exchanging.contains(*peer))
            .map(|(_, connected)| connected.exchange_due);
        bootstrap.chain(candidates).chain(exchanges).min().unwrap_or(self.housekeeping).min(self.housekeeping)
    }

    async fn keep_house(&mut self) {
        self.housekeeping = Instant::now() + jitter(HOUSEKEEPING_INTERVAL);
        let network = Arc::clone(&self.shared.network);
        if self.shared.ledger().prune(|peer| network.is_connected(peer)) {
            self.shared.changed();
        }
        self.give_up();
        self.save().await;
    }

    /// Forgets peers that have not been reached for too long.
    fn give_up(&mut self) {
        if self.candidates.is_empty() {
            return;
        }
        let seen: HashSet<PeerId> = self
            .network()
            .peers()
            .into_iter()
            .filter(|known| known.last_seen_ms.is_some())
            .map(|known| known.peer)
            .collect();
        let network = Arc::clone(&self.shared.network);
        self.candidates.retain(|peer, candidate| {
            let patience = if seen.contains(peer) { GIVE_UP_SEEN } else { GIVE_UP_UNSEEN };
            let keep = candidate.since.elapsed() < patience;
            if !keep {
                network.forget(*peer);
            }
            keep
        });
    }

    async fn load(&mut self) {
        let Some(path) = self.config.saved_peers.clone() else { return };
        let shown = path.display().to_string();
        // The file is a hint: whatever is wrong with it costs the hint and nothing else.
        match tokio::task::spawn_blocking(move || saved::load(&path)).await {
            Ok(Ok(peers)) => {
                for (peer, addresses) in peers.into_iter().take(limits::MESH_NODES_MAX) {
                    self.network().learn(peer, &addresses);
                }
            }
            Ok(Err(error)) => {
                tracing::warn!(path = shown, %error, "the saved peers cannot be read; starting without")
            }
            Err(error) => tracing::warn!(path = shown, %error, "the saved peers were not read"),
        }
    }

    async fn save(&self) {
        let Some(path) = self.config.saved_peers.clone() else { return };
        let peers = saved::worth_saving(self.network().peers());
        if peers.is_empty() {
            // What was saved before is still the better hint.
            return;
        }
        let shown = path.display().to_string();
        let saving = tokio::task::spawn_blocking(move || saved::save(&path, &peers)).await;
        if let Ok(Err(error)) = saving {
            tracing::warn!(path = shown, %error, "the peers cannot be saved: check the data folder");
        }
    }
}

fn pause_after(error: &OpenError, failures: u32, alone: bool) -> Duration {
    match error {
        OpenError::LocalPeer(_) => jitter(OWN_ADDRESS_PAUSE),
        error if !error.is_retryable() => jitter(REFUSED_PAUSE),
        _ => pause(failures, alone),
    }
}

//! The swarm's task: the one owner of the swarm. Takes commands from the host's callers and passes
//! what libp2p's own behaviours learn into the board.
//!
//! Decides what an event of identify, Kademlia, mDNS or ping means to this node; knows nothing of
//! lanes. Never waits for anybody: commands come over a bounded queue, answers go to one-shots.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use libp2p::kad::{self, QueryId};
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::{ConnectionId, ListenError, NetworkBehaviour, Swarm, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, connection_limits, identify, mdns, ping};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::addresses;
use super::board::Board;
use super::failure::TransportFailure;
use super::lanes::{self, ConnectReply, LanesEvent, OpenRequest};
use crate::error::{AdmissionError, find};
use crate::stats::add;

/// What identify learns is given to Kademlia this often: it looks for more peers after each that is
/// new, and dials whomever it hears of, which is only of use where peer exchange does not work.
const DHT_FEED_INTERVAL: Duration = Duration::from_secs(2);
/// The routing table is refreshed after this much time, then after twice as much, and so on up to
/// the longest: soon while a cluster forms, seldom when it stands.
const DHT_REFRESH_FIRST: Duration = Duration::from_secs(4);
const DHT_REFRESH_LONGEST: Duration = Duration::from_secs(300);
/// Addresses that wait to be given to Kademlia.
const DHT_FEED_MAX: usize = 4096;
/// Kademlia queries for lost peers at a time: each asks up to twenty nodes.
const LOOKUPS_MAX: usize = 4;
/// A peer that stays lost is looked up no more often than this.
const LOOKUP_PAUSE: Duration = Duration::from_secs(10);
/// Lost peers whose last lookup is remembered.
const LOOKUPS_REMEMBERED_MAX: usize = 1024;
/// So many different peers must have seen this node at an address before it tells others of it: one
/// alone may lie, or see what only it can reach.
const OBSERVERS_MIN: usize = 2;
/// Addresses at which others say they see this node.
const OBSERVED_MAX: usize = 32;
/// Connections get this long to close at shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Every protocol on a connection.
#[derive(NetworkBehaviour)]
pub(super) struct Protocols {
    /// First, so that what is over the limit costs nothing else.
    pub(super) limits: connection_limits::Behaviour,
    pub(super) lanes: lanes::Behaviour,
    pub(super) identify: identify::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) kademlia: Toggle<kad::Behaviour<kad::store::MemoryStore>>,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
}

/// What the host's callers ask of the task.
pub(super) enum Command {
    Open(PeerId, OpenRequest),
    Reach(PeerId, ConnectReply),
    Connect(Multiaddr, Option<PeerId>, ConnectReply),
    Disconnect(PeerId, oneshot::Sender<()>),
}

/// The task's state.
pub(super) struct Driver {
    swarm: Swarm<Protocols>,
    board: Arc<Board>,
    /// The name under which peers offer Kademlia; `None` when it is switched off here.
    dht: Option<StreamProtocol>,
    /// Whether others may dial this node.
    listens: bool,
    observed: HashMap<Multiaddr, HashSet<PeerId>>,
    dht_feed: Vec<(PeerId, Multiaddr)>,
    dht_refresh: (Instant, Duration),
    lookups: HashMap<QueryId, PeerId>,
    looked_up: HashMap<PeerId, Instant>,
    closing: Vec<(PeerId, oneshot::Sender<()>)>,
}

impl Driver {
    pub(super) fn new(
        swarm: Swarm<Protocols>,
        board: Arc<Board>,
        dht: Option<StreamProtocol>,
        listens: bool,
    ) -> Self {
        Self {
            swarm,
            board,
            dht,
            listens,
            observed: HashMap::new(),
            dht_feed: Vec::new(),
            dht_refresh: (Instant::now() + DHT_REFRESH_FIRST, DHT_REFRESH_FIRST),
            lookups: HashMap::new(),
            looked_up: HashMap::new(),
            closing: Vec::new(),
        }
    }

    /// Runs until the callers are gone or shutdown is asked for, then closes every connection.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        shutdown: oneshot::Receiver<()>,
    ) {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut feed = tokio::time::interval(DHT_FEED_INTERVAL);
        loop {
            tokio::select! {
                _ = &mut shutdown => break,
                command = commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                event = self.swarm.select_next_some() => self.on_event(event),
                _ = feed.tick() => self.feed_dht(),
            }
        }
        commands.close();
        self.close().await;
    }

    async fn close(&mut self) {
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            self.swarm.behaviour_mut().lanes.disconnect(peer);
        }
        let drained = async {
            while self.swarm.connected_peers().next().is_some() {
                let event = self.swarm.select_next_some().await;
                self.on_event(event);
            }
        };
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, drained).await.is_err() {
            tracing::debug!("some peers did not take their close in time");
        }
    }

    fn on_command(&mut self, command: Command) {
        let lanes = &mut self.swarm.behaviour_mut().lanes;
        match command {
            Command::Open(peer, request) => lanes.open(peer, request),
            Command::Reach(peer, reply) => lanes.reach(peer, reply),
            Command::Connect(address, expected, reply) => lanes.connect(address, expected, reply),
            Command::Disconnect(peer, reply) => {
                lanes.disconnect(peer);
                if self.swarm.is_connected(&peer) {
                    self.closing.push((peer, reply));
                } else {
                    let _ = reply.send(());
                }
            }
        }
    }

    pub(super) fn on_event(&mut self, event: SwarmEvent<ProtocolsEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_protocol(event),
            SwarmEvent::NewListenAddr { .. }
            | SwarmEvent::ExpiredListenAddr { .. }
            | SwarmEvent::ExternalAddrConfirmed { .. }
            | SwarmEvent::ExternalAddrExpired { .. } => self.advertise(),
            SwarmEvent::ListenerClosed { addresses, reason, .. } => {
                tracing::warn!(
                    ?addresses,
                    ?reason,
                    "a listener closed: peers cannot reach this node there any more"
                );
                self.advertise();
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "a listener failed once"),
            SwarmEvent::IncomingConnectionError { error, connection_id, .. } => {
                self.on_inbound_failure(connection_id, &error);
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
                for (_, reply) in self.closing.extract_if(.., |(peer, _)| *peer == peer_id) {
                    let _ = reply.send(());
                }
            }
            _ => {}
        }
    }

    fn on_protocol(&mut self, event: ProtocolsEvent) {
        match event {
            ProtocolsEvent::Lanes(LanesEvent::Unreachable(peer)) => self.look_up(peer),
            ProtocolsEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                self.on_identified(peer_id, info);
            }
            ProtocolsEvent::Ping(ping::Event { peer, result: Ok(round_trip), .. }) => {
                self.board.round_trip(peer, round_trip);
            }
            ProtocolsEvent::Kademlia(event) => self.on_kademlia(event),
            ProtocolsEvent::Mdns(mdns::Event::Discovered(found)) => {
                for (peer, address) in found {
                    self.board.learn(peer, &[address]);
                }
            }
            // Ping only measures: the heartbeat tells who is gone.
            ProtocolsEvent::Ping(_)
            | ProtocolsEvent::Identify(_)
            | ProtocolsEvent::Mdns(mdns::Event::Expired(_))
            | ProtocolsEvent::Limits(_) => {}
        }
    }

    fn on_inbound_failure(&self, connection: ConnectionId, error: &ListenError) {
        let refusal = match error {
            ListenError::Transport(error) => admission_error(error),
            _ => None,
        };
        match refusal {
            Some(refusal) => {
                self.board.counters.admission_refused(refusal.kind());
                tracing::info!(%refusal, "refused a connection");
            }
            None => {
                add(&self.board.counters.inbound_failed);
                tracing::debug!(%connection, %error, "an inbound connection failed");
            }
        }
    }

    fn on_identified(&mut self, peer: PeerId, info: identify::Info) {
        let told = addresses::advertised(info.listen_addrs);
        self.board.learn(peer, &told);
        if let Some(dht) = &self.dht
            && info.protocols.contains(dht)
        {
            let room = DHT_FEED_MAX.saturating_sub(self.dht_feed.len());
            self.dht_feed.extend(told.into_iter().take(room).map(|address| (peer, address)));
        }
        self.on_observed(peer, &info.observed_addr);
    }

    fn feed_dht(&mut self) {
        let Some(kademlia) = self.swarm.behaviour_mut().kademlia.as_mut() else { return };
        for (peer, address) in self.dht_feed.drain(..) {
            kademlia.add_address(&peer, address);
        }
        let (due, pause) = self.dht_refresh;
        // An error says that nobody is known to ask; the next turn may find somebody.
        if due <= Instant::now() && kademlia.bootstrap().is_ok() {
            let pause = (2 * pause).min(DHT_REFRESH_LONGEST);
            self.dht_refresh = (Instant::now() + pause.mul_f64(rand::random_range(0.75..1.25)), pause);
        }
    }

    /// A peer sees this node at an address. With the port this node listens on it is one that others
    /// can dial, once several peers agree.
    fn on_observed(&mut self, peer: PeerId, seen: &Multiaddr) {
        if !self.listens || addresses::is_loopback(seen) {
            return;
        }
        let listening: Vec<Multiaddr> = self.swarm.listeners().cloned().collect();
        for candidate in listening.iter().filter_map(|own| addresses::with_host_of(own, seen)) {
            let known = listening.contains(&candidate)
                || self.swarm.external_addresses().any(|known| *known == candidate);
            if known || (self.observed.len() >= OBSERVED_MAX && !self.observed.contains_key(&candidate)) {
                continue;
            }
            let observers = self.observed.entry(candidate.clone()).or_default();
            if observers.len() < OBSERVERS_MIN {
                observers.insert(peer);
            }
            if observers.len() >= OBSERVERS_MIN {
                self.observed.remove(&candidate);
                self.swarm.add_external_address(candidate);
                self.advertise();
            }
        }
    }

    fn on_kademlia(&mut self, event: kad::Event) {
        match event {
            kad::Event::RoutingUpdated { peer, addresses, .. } => {
                self.board.learn(peer, &addresses.into_vec())
            }
            kad::Event::OutboundQueryProgressed { id, result, step, .. } => {
                if step.last {
                    self.lookups.remove(&id);
                }
                if let kad::QueryResult::GetClosestPeers(Ok(found)) = result {
                    for kad::PeerInfo { peer_id, addrs } in found.peers {
                        self.board.learn(peer_id, &addrs);
                    }
                }
            }
            _ => {}
        }
    }

    /// A peer is at none of its known addresses: others may know better.
    fn look_up(&mut self, peer: PeerId) {
        let now = Instant::now();
        self.looked_up.retain(|_, since| now.duration_since(*since) < LOOKUP_PAUSE);
        if self.lookups.len() >= LOOKUPS_MAX
            || self.looked_up.len() >= LOOKUPS_REMEMBERED_MAX
            || self.looked_up.contains_key(&peer)
            || self.swarm.connected_peers().next().is_none()
        {
            return;
        }
        if let Some(kademlia) = self.swarm.behaviour_mut().kademlia.as_mut() {
            let query = kademlia.get_closest_peers(peer);
            self.lookups.insert(query, peer);
            self.looked_up.insert(peer, now);
        }
    }

    pub(super) fn advertise(&self) {
        if !self.listens {
            return;
        }
        let external = self.swarm.external_addresses();
        let mut found = addresses::advertised(self.swarm.listeners().chain(external).cloned());
        found.sort();
        found.dedup();
        if self.board.advertise(found) {
            tracing::debug!(addresses = ?self.board.advertised(), "others can reach this node here");
        }
    }
}

fn admission_error(error: &libp2p::TransportError<std::io::Error>) -> Option<AdmissionError> {
    let libp2p::TransportError::Other(error) = error else { return None };
    match find::<TransportFailure>(error) {
        Some(TransportFailure::Admission(refusal)) => Some(*refusal),
        _ => None,
    }
}

//! Decides which connections to a peer exist and which one each stream is opened on.
//!
//! Knows connections by their id, dials with `PeerCondition::Always` (the swarm's own conditions do
//! not know roles), and writes what it knows of peers into the shared [`Board`] before it answers
//! anybody, so that whoever got an answer finds it true.
//!
//! Invariants: at most one dial per peer and role is under way; whatever waits is bounded by
//! [`WAITING_MAX`] and answered or dropped; the peer with the lower id selects connections, and the
//! other side opens nothing on one that was not selected.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::num::NonZeroU8;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::core::transport::PortUse;
use libp2p::core::{ConnectedPoint, Endpoint};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{
    CloseConnection, ConnectionClosed, ConnectionDenied, ConnectionId, DialError, FromSwarm,
    NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

use super::handler::{Handler, HandlerEvent, HandlerHandle, HandlerSetup};
use super::{ConnectReply, OpenRequest, Role};
use crate::error::OpenError;
use crate::host::board::Board;
use crate::host::failure;
use crate::network::TransportKind;
use crate::stream::IncomingSenders;

/// Two connections for the same purpose within this time come from simultaneous dials: the first
/// stays. Later, the second says that the far side lost the first.
const RACE: Duration = Duration::from_secs(3);
/// Streams and connections that wait for one dial, per peer and role.
const WAITING_MAX: usize = 1024;
/// TCP addresses dialed at once: one that swallows packets must not hold up the others for its whole
/// timeout. QUIC has its turn when they fail: a handshake that is dropped half way costs both sides.
const DIALS_AT_ONCE: u8 = 4;

/// What the host should know beyond the board.
#[derive(Debug)]
pub(in crate::host) enum LanesEvent {
    /// No known address of this peer leads to it.
    Unreachable(PeerId),
}

#[derive(Debug)]
struct Connection {
    role: Option<Role>,
    selected: bool,
    closing: bool,
    transport: TransportKind,
    incoming: bool,
    since: Instant,
    handle: HandlerHandle,
}

impl Connection {
    fn serves(&self, role: Role) -> bool {
        self.role == Some(role) && self.selected && !self.closing
    }

    /// It may still come to serve this role.
    fn may_serve(&self, role: Role) -> bool {
        !self.closing && self.role.is_none_or(|own| own == role)
    }
}

#[derive(Default)]
struct Peer {
    connections: HashMap<ConnectionId, Connection>,
    opens: [VecDeque<OpenRequest>; 2],
    connects: Vec<ConnectReply>,
    dialing: [Option<ConnectionId>; 2],
}

impl Peer {
    fn serving(&self, role: Role) -> Option<(&ConnectionId, &Connection)> {
        self.connections.iter().find(|(_, connection)| connection.serves(role))
    }

    fn is_idle(&self) -> bool {
        self.connections.is_empty()
            && self.connects.is_empty()
            && self.dialing == [None; 2]
            && self.opens.iter().all(VecDeque::is_empty)
    }

    fn fail(&mut self, role: Role, error: &OpenError) {
        for request in self.opens[role as usize].drain(..) {
            // A waiter that is gone needs no answer; the same holds below.
            let _ = request.reply.send(Err(error.clone()));
        }
        if role == Role::Main {
            for reply in self.connects.drain(..) {
                let _ = reply.send(Err(error.clone()));
            }
        }
    }
}

struct AddressDial {
    address: Multiaddr,
    expected: Option<PeerId>,
    reply: ConnectReply,
}

impl AddressDial {
    /// What a failure means to whoever asked: the event names the peer that answered, the caller
    /// knows the one that was expected.
    fn fail(self, local: PeerId, error: &DialError) {
        let Self { address, expected, reply } = self;
        let error = match (error, expected) {
            // The swarm leaves out addresses on which it listens itself.
            (DialError::NoAddresses, None) => OpenError::LocalPeer(address),
            (DialError::NoAddresses, Some(expected)) => {
                OpenError::WrongPeer { expected, obtained: local, address }
            }
            (error, expected) => failure::dial_error(error, expected),
        };
        let _ = reply.send(Err(error));
    }
}

/// The behaviour.
pub(in crate::host) struct Behaviour {
    board: Arc<Board>,
    queues: IncomingSenders,
    peers: HashMap<PeerId, Peer>,
    /// Handlers made, whose connection the swarm has not reported yet.
    fresh: HashMap<ConnectionId, (HandlerHandle, Option<Role>)>,
    bulk_dials: HashMap<ConnectionId, PeerId>,
    /// Dials of one address, for whoever asked for it.
    address_dials: HashMap<ConnectionId, AddressDial>,
    actions: VecDeque<ToSwarm<LanesEvent, Infallible>>,
}

impl Behaviour {
    pub(in crate::host) fn new(board: Arc<Board>, queues: IncomingSenders) -> Self {
        Self {
            board,
            queues,
            peers: HashMap::new(),
            fresh: HashMap::new(),
            bulk_dials: HashMap::new(),
            address_dials: HashMap::new(),
            actions: VecDeque::new(),
        }
    }

    /// A stream is wanted.
    pub(in crate::host) fn open(&mut self, peer: PeerId, request: OpenRequest) {
        let role = Role::of(request.lane);
        let waiting = &mut self.peers.entry(peer).or_default().opens[role as usize];
        if waiting.len() >= WAITING_MAX {
            let busy = OpenError::Busy(request.lane);
            let _ = request.reply.send(Err(busy));
            return;
        }
        waiting.push_back(request);
        self.advance(peer);
    }

    /// A connection to this peer is wanted, wherever it is.
    pub(in crate::host) fn reach(&mut self, peer: PeerId, reply: ConnectReply) {
        self.await_connection(peer, reply);
        self.advance(peer);
    }

    /// A connection to whoever is at this address is wanted.
    pub(in crate::host) fn connect(
        &mut self,
        address: Multiaddr,
        expected: Option<PeerId>,
        reply: ConnectReply,
    ) {
        let connected = match expected {
            Some(peer) => self.board.is_connected(peer).then_some(peer),
            None => self.board.connected_at(&address),
        };
        if let Some(peer) = connected {
            let _ = reply.send(Ok(peer));
            return;
        }
        if self.address_dials.len() >= WAITING_MAX {
            let _ = reply.send(Err(OpenError::TooManyConnections));
            return;
        }
        let options: DialOpts = match expected {
            Some(peer) => {
                let addresses = vec![address.clone()];
                DialOpts::peer_id(peer).condition(PeerCondition::Always).addresses(addresses).build()
            }
            None => DialOpts::unknown_peer_id().address(address.clone()).build(),
        };
        self.address_dials.insert(options.connection_id(), AddressDial { address, expected, reply });
        self.actions.push_back(ToSwarm::Dial { opts: options });
    }

    /// Every connection to this peer is to be closed.
    pub(in crate::host) fn disconnect(&mut self, peer: PeerId) {
        if let Some(known) = self.peers.get_mut(&peer) {
            known.connections.values_mut().for_each(|connection| connection.closing = true);
        }
        self.actions.push_back(ToSwarm::CloseConnection { peer_id: peer, connection: CloseConnection::All });
        self.publish(peer);
    }

    fn await_connection(&mut self, peer: PeerId, reply: ConnectReply) {
        let known = self.peers.entry(peer).or_default();
        if known.serving(Role::Main).is_some() {
            let _ = reply.send(Ok(peer));
        } else if known.connects.len() >= WAITING_MAX {
            let _ = reply.send(Err(OpenError::TooManyConnections));
        } else {
            known.connects.push(reply);
        }
    }

    /// Hands what waits to the connection that serves it, or dials one.
    fn advance(&mut self, peer: PeerId) {
        self.publish(peer);
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let mut wanted = Vec::new();
        known.connects.retain(|reply| !reply.is_closed());
        for role in Role::ALL {
            let slot = role as usize;
            known.opens[slot].retain(|request| !request.reply.is_closed());
            if let Some(id) = known.serving(role).map(|(id, _)| *id) {
                hand_out(known, id, role, peer);
                continue;
            }
            let waits = !known.opens[slot].is_empty() || (role == Role::Main && !known.connects.is_empty());
            let coming = known.dialing[slot].is_some()
                || known.connections.values().any(|connection| connection.may_serve(role));
            if waits && !coming {
                wanted.push(role);
            }
        }
        if known.is_idle() {
            self.peers.remove(&peer);
        }
        for role in wanted {
            self.dial(peer, role);
        }
    }

    fn dial(&mut self, peer: PeerId, role: Role) {
        let addresses = self.board.addresses(peer);
        let quick = addresses.iter().take_while(|address| !is_quic(address)).take(usize::from(DIALS_AT_ONCE));
        let at_once = u8::try_from(quick.count()).ok().and_then(NonZeroU8::new).unwrap_or(NonZeroU8::MIN);
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .addresses(addresses)
            // Kademlia may know of more.
            .extend_addresses_through_behaviour()
            .override_dial_concurrency_factor(at_once)
            .build();
        let id = options.connection_id();
        self.peers.entry(peer).or_default().dialing[role as usize] = Some(id);
        if role == Role::Bulk {
            self.bulk_dials.insert(id, peer);
        }
        self.actions.push_back(ToSwarm::Dial { opts: options });
    }

    /// Selects among the connections of one role, if this side is the one to decide.
    fn settle(&mut self, peer: PeerId, id: ConnectionId, role: Role) {
        if !self.board.decides(peer) {
            return;
        }
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let serving = known.serving(role).map(|(id, connection)| (*id, connection.since.elapsed() < RACE));
        let loser = match serving {
            Some((other, _)) if other == id => return,
            Some((_, true)) => Some(id),
            Some((other, false)) => Some(other),
            None => None,
        };
        if loser != Some(id)
            && let Some(connection) = known.connections.get_mut(&id)
        {
            connection.selected = true;
            connection.handle.select.notify_one();
        }
        if let Some(loser) = loser {
            self.close(peer, loser);
        }
    }

    /// The deciding side selected this connection; any other of its role is gone over there.
    fn selected(&mut self, peer: PeerId, id: ConnectionId) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let Some(connection) = known.connections.get_mut(&id) else { return };
        connection.selected = true;
        let role = connection.role;
        let older: Vec<ConnectionId> = known
            .connections
            .iter()
            .filter(|(other, connection)| **other != id && connection.role == role && connection.selected)
            .map(|(other, _)| *other)
            .collect();
        for other in older {
            self.close(peer, other);
        }
    }

    fn close(&mut self, peer: PeerId, id: ConnectionId) {
        if let Some(connection) = self.peers.get_mut(&peer).and_then(|known| known.connections.get_mut(&id)) {
            connection.closing = true;
        }
        let connection = CloseConnection::One(id);
        self.actions.push_back(ToSwarm::CloseConnection { peer_id: peer, connection });
    }

    /// Writes on the board whether this peer is connected.
    fn publish(&self, peer: PeerId) {
        let serving = self.peers.get(&peer).and_then(|known| known.serving(Role::Main));
        self.board.set_connected(peer, serving.map(|(_, connection)| connection.transport));
    }

    fn handler(&mut self, id: ConnectionId, peer: PeerId, announce: Option<Role>) -> Handler {
        let (handler, handle) = Handler::new(HandlerSetup {
            peer,
            announce,
            decides: self.board.decides(peer),
            queues: self.queues.clone(),
            heard: self.board.last_heard(peer),
            counters: Arc::clone(&self.board.counters),
        });
        self.fresh.insert(id, (handle, announce));
        handler
    }

    /// The role that a connection dialed from here will have. None when there is one already: it was
    /// dialed to learn who is at an address, and goes away again.
    fn role_of_dial(&self, id: ConnectionId, peer: PeerId) -> Option<Role> {
        let role = if self.bulk_dials.contains_key(&id) { Role::Bulk } else { Role::Main };
        let serving = self.peers.get(&peer).and_then(|known| known.serving(role));
        serving.is_none().then_some(role)
    }

    fn established(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let Some((handle, role)) = self.fresh.remove(&id) else { return };
        self.bulk_dials.remove(&id);
        let transport = transport_of(endpoint);
        let incoming = endpoint.is_listener();
        self.board.counters.connection_opened(transport, incoming);
        let known = self.peers.entry(peer).or_default();
        known.dialing.iter_mut().for_each(|dialing| {
            dialing.take_if(|dialing| *dialing == id);
        });
        let connection = Connection {
            role,
            selected: false,
            closing: false,
            transport,
            incoming,
            since: Instant::now(),
            handle,
        };
        known.connections.insert(id, connection);
        if let ConnectedPoint::Dialer { address, .. } = endpoint {
            self.board.proved(peer, address);
        }
        if role.is_none() && endpoint.is_dialer() {
            self.close(peer, id);
        }
        if let Some(dial) = self.address_dials.remove(&id) {
            self.await_connection(peer, dial.reply);
        }
        self.advance(peer);
    }

    fn closed(&mut self, event: &ConnectionClosed<'_>) {
        let ConnectionClosed { peer_id: peer, connection_id: id, .. } = *event;
        let Some(known) = self.peers.get_mut(&peer) else { return };
        if let Some(connection) = known.connections.remove(&id) {
            self.board.counters.connection_closed(connection.transport, connection.incoming);
            let alone = known.connections.is_empty() && known.dialing == [None; 2];
            if !connection.selected && alone {
                // Nothing to gain from dialing at once: whoever closed it would do so again.
                Role::ALL.into_iter().for_each(|role| known.fail(role, &OpenError::Closed));
            }
        }
        self.advance(peer);
    }

    fn dial_failed(&mut self, id: ConnectionId, expected: Option<PeerId>, error: &DialError) {
        self.fresh.remove(&id);
        self.bulk_dials.remove(&id);
        let reason = failure::dial_error(error, expected);
        self.board.dial_failed(&reason);
        if let Some(peer) = expected {
            for address in failure::taken_over(error) {
                self.board.remove(peer, &address);
            }
        }
        if let Some(dial) = self.address_dials.remove(&id) {
            dial.fail(self.board.local(), error);
        }
        let Some(peer) = expected else { return };
        let Some(known) = self.peers.get_mut(&peer) else { return };
        for role in Role::ALL {
            if known.dialing[role as usize] != Some(id) {
                continue;
            }
            known.dialing[role as usize] = None;
            if !known.connections.values().any(|connection| connection.may_serve(role)) {
                known.fail(role, &reason);
                self.board.unreachable(peer);
                self.actions.push_back(ToSwarm::GenerateEvent(LanesEvent::Unreachable(peer)));
            }
        }
        self.advance(peer);
    }
}

/// Gives everything that waits for a role to the connection that serves it.
fn hand_out(known: &mut Peer, id: ConnectionId, role: Role, peer: PeerId) {
    if role == Role::Main {
        for reply in known.connects.drain(..) {
            let _ = reply.send(Ok(peer));
        }
    }
    let Some(connection) = known.connections.get(&id) else { return };
    for request in known.opens[role as usize].drain(..) {
        if let Err(refused) = connection.handle.opens.try_send(request) {
            let request = refused.into_inner();
            let _ = request.reply.send(Err(OpenError::Busy(request.lane)));
        }
    }
}

fn transport_of(endpoint: &ConnectedPoint) -> TransportKind {
    let address = match endpoint {
        ConnectedPoint::Dialer { address, .. } => address,
        ConnectedPoint::Listener { local_addr, .. } => local_addr,
    };
    if is_quic(address) { TransportKind::Quic } else { TransportKind::Tcp }
}

fn is_quic(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, libp2p::multiaddr::Protocol::QuicV1))
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = LanesEvent;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(id, peer, None))
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let role = self.role_of_dial(id, peer);
        Ok(self.handler(id, peer, role))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) => {
                self.established(event.peer_id, event.connection_id, event.endpoint);
            }
            FromSwarm::ConnectionClosed(event) => self.closed(&event),
            FromSwarm::DialFailure(event) => {
                self.dial_failed(event.connection_id, event.peer_id, event.error)
            }
            FromSwarm::ListenFailure(event) => {
                self.fresh.remove(&event.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {
            // Not before: a connection that the far side refuses for its limits looks established here.
            HandlerEvent::Role(role) => {
                let known = self.peers.entry(peer).or_default();
                if let Some(connection) = known.connections.get_mut(&id) {
                    connection.role = Some(role);
                    self.settle(peer, id, role);
                }
            }
            HandlerEvent::Selected => self.selected(peer, id),
            HandlerEvent::Lost(reason) => {
                tracing::debug!(%peer, ?reason, "closing a connection");
                self.close(peer, id);
            }
        }
        self.advance(peer);
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<LanesEvent, THandlerInEvent<Self>>> {
        // Nothing here happens by itself: every action follows a call from the host or the swarm.
        self.actions.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

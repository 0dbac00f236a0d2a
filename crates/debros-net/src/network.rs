//! The seam: what the rest of the system knows of the network.
//!
//! Two implementations exist, libp2p ([`crate::Host`]) and turmoil's simulated TCP
//! (`simulated`, for tests). Nothing above this trait names either.
//!
//! Invariants: a [`PeerId`] that comes out of here was proved by its owner's key; a peer counts as
//! connected only after admission; a stream that [`Network::open`] returned is already queued at the
//! other side.

use std::time::Duration;

use async_trait::async_trait;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::broadcast;

use crate::error::OpenError;
use crate::lane::Lane;
use crate::stats::NetworkStats;
use crate::stream::ByteStream;

/// Events kept for a slow watcher; one that misses some is told so and looks at
/// [`Network::peers`] instead.
pub const PEER_EVENTS_KEPT: usize = 1024;

/// Opens authenticated byte streams to peers and knows where they are.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// This node's own identity.
    fn local_peer(&self) -> PeerId;

    /// Where others can dial this node: the addresses it listens on, with wildcards replaced by
    /// those of real interfaces, and the addresses that others saw. Without `/p2p`.
    fn listen_addresses(&self) -> Vec<Multiaddr>;

    /// Opens a stream on a lane, dialing the peer first where there is no connection.
    async fn open(&self, peer: PeerId, lane: Lane) -> Result<ByteStream, OpenError>;

    /// Makes sure of a connection to whoever is at this address, and returns who that is. With
    /// `/p2p/<id>` at its end only that peer will do.
    async fn connect(&self, address: &Multiaddr) -> Result<PeerId, OpenError>;

    /// Makes sure of a connection to this peer, at any of its known addresses.
    async fn reach(&self, peer: PeerId) -> Result<(), OpenError>;

    /// Closes every connection to this peer. Does not keep either side from dialing again.
    async fn disconnect(&self, peer: PeerId);

    /// Adds addresses at which a peer may be found, the most trusted first. Bounded by
    /// [`debros_proto::limits::PEER_ADDRESSES_MAX`]: the oldest unproved ones give way.
    fn learn(&self, peer: PeerId, addresses: &[Multiaddr]);

    /// Forgets a peer's addresses, unless it is connected.
    fn forget(&self, peer: PeerId);

    /// Every peer this node knows an address of, or is connected to.
    fn peers(&self) -> Vec<KnownPeer>;

    /// Whether streams can be opened to this peer without dialing.
    fn is_connected(&self, peer: PeerId) -> bool;

    /// What happens from now on.
    fn watch_peers(&self) -> broadcast::Receiver<PeerEvent>;

    /// This node's signed peer record: a libp2p signed envelope (RFC 0002 and 0003 of libp2p/specs)
    /// with its [`Network::listen_addresses`]. `None` for a client, which nobody dials.
    fn own_record(&self) -> Option<Vec<u8>>;

    /// A reading of the counters.
    fn stats(&self) -> NetworkStats;

    /// Closes listeners and connections, and waits until they are closed.
    async fn shutdown(&self);
}

/// One peer, as this node knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownPeer {
    /// Who.
    pub peer: PeerId,
    /// Where it may be dialed, the best first.
    pub addresses: Vec<Multiaddr>,
    /// Whether it is connected now.
    pub connected: bool,
    /// When this node itself last heard from it, in milliseconds of Unix time; `None` when it only
    /// heard of it.
    pub last_seen_ms: Option<u64>,
    /// What carries the connection.
    pub transport: Option<TransportKind>,
    /// The last measured round trip.
    pub round_trip: Option<Duration>,
}

/// What carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransportKind {
    /// TCP with Noise and yamux.
    Tcp,
    /// QUIC.
    Quic,
}

impl TransportKind {
    /// As metrics and messages say it.
    pub const fn name(self) -> &'static str {
        match self {
            TransportKind::Tcp => "tcp",
            TransportKind::Quic => "quic",
        }
    }
}

/// A change among the peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerEvent {
    /// Streams can be opened to this peer.
    Connected(PeerId),
    /// The last connection to this peer is gone.
    Disconnected(PeerId),
    /// An address of this peer was learnt that was not known before.
    Discovered(PeerId),
}

impl PeerEvent {
    /// Whom it concerns.
    pub fn peer(&self) -> PeerId {
        match self {
            PeerEvent::Connected(peer) | PeerEvent::Disconnected(peer) | PeerEvent::Discovered(peer) => *peer,
        }
    }
}

//! The one door to libp2p: identity, admission, connections, discovery, and the seam on which
//! everything above runs: "open an authenticated byte stream to peer P".
//!
//! Above [`Network`] nothing knows libp2p. [`grpc`] and [`discovery`] sit above it and run unchanged
//! over turmoil's simulated network (module `simulated`, a feature for tests).

pub mod calls;
pub mod discovery;
mod error;
pub mod grpc;
mod host;
pub mod identity;
mod lane;
mod network;
pub mod record;
mod secret;
#[cfg(feature = "simulated")]
pub mod simulated;
mod stats;
mod stream;

pub use error::{AdmissionError, OpenError};
pub use host::{Host, HostConfig, HostError, HostRole};
pub use lane::Lane;
pub use libp2p::identity::Keypair;
pub use libp2p::multiaddr::Protocol;
pub use libp2p::{Multiaddr, PeerId};
pub use network::{KnownPeer, Network, PEER_EVENTS_KEPT, PeerEvent, TransportKind};
pub use secret::{ClusterSecret, SecretError};
pub use stats::NetworkStats;
pub use stream::{
    ByteStream, Carrier, INCOMING_QUEUE_STREAMS, IncomingSenders, IncomingStream, IncomingStreams,
    PeerIdentity,
};

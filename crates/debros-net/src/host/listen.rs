//! Starting to listen, and why a host could not be started.
//!
//! Invariant: a port that another process listens on is refused. libp2p listens with SO_REUSEPORT,
//! under which a second node on the same port starts without complaint and takes every other
//! connection; so the port is tried without it first.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use libp2p::core::transport::ListenerId;
use libp2p::swarm::{Swarm, SwarmEvent};
use libp2p::{Multiaddr, TransportError};

use super::addresses;
use super::driver::{Protocols, ProtocolsEvent};
use super::failure::TransportFailure;

/// A listener knows its address at once, or after the interfaces were listed.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a host could not be started.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Another process listens there.
    #[error("the port of {address} is taken: stop the other process or choose another listen address")]
    AddressInUse {
        /// The address from the configuration.
        address: Multiaddr,
    },
    /// Not something to listen on.
    #[error(
        "cannot listen on {address}: expected something like /ip4/0.0.0.0/tcp/4001 or /ip4/0.0.0.0/udp/4001/quic-v1"
    )]
    InvalidListenAddress {
        /// The address from the configuration.
        address: Multiaddr,
    },
    /// The system refused.
    #[error(
        "cannot listen on {address}: check that the address belongs to this machine and that this user may use the port"
    )]
    Listen {
        /// The address from the configuration.
        address: Multiaddr,
        /// What it said.
        source: io::Error,
    },
    /// The DHT's name is not a protocol name.
    #[error("discovery.dht_prefix {0:?} is not a protocol name: expected something like /debros/kad/1.0.0")]
    DhtName(String),
    /// The key cannot sign handshakes.
    #[error("the identity key cannot be used for handshakes: use an Ed25519 key")]
    Keypair,
}

/// Listens on every address and waits until each listener has one. Returns what else happened.
pub(super) async fn listen(
    swarm: &mut Swarm<Protocols>,
    wanted: &[Multiaddr],
) -> Result<Vec<SwarmEvent<ProtocolsEvent>>, HostError> {
    let mut starting: Vec<(ListenerId, Multiaddr)> = Vec::new();
    for address in wanted {
        let (parsed, _) = addresses::parse(address);
        if addresses::transport_of(&parsed).is_none() || addresses::ip_of(&parsed).is_none() {
            return Err(HostError::InvalidListenAddress { address: address.clone() });
        }
        probe(&parsed).map_err(|error| refused(address, error))?;
        let id = swarm.listen_on(parsed).map_err(|error| match error {
            TransportError::MultiaddrNotSupported(address) => HostError::InvalidListenAddress { address },
            TransportError::Other(error) => refused(address, error),
        })?;
        starting.push((id, address.clone()));
    }
    let mut events = Vec::new();
    let deadline = tokio::time::Instant::now() + LISTEN_TIMEOUT;
    while let Some((_, address)) = starting.first().cloned() {
        let event = tokio::time::timeout_at(deadline, swarm.select_next_some()).await;
        let event =
            event.map_err(|_| HostError::Listen { address, source: io::ErrorKind::TimedOut.into() })?;
        match event {
            SwarmEvent::NewListenAddr { listener_id, .. } => starting.retain(|(id, _)| *id != listener_id),
            SwarmEvent::ListenerClosed { listener_id, reason, .. } => {
                if let Some((_, address)) = starting.iter().find(|(id, _)| *id == listener_id) {
                    return Err(refused(address, reason.err().unwrap_or(io::ErrorKind::NotConnected.into())));
                }
            }
            event => events.push(event),
        }
    }
    // A listener on every interface reports them one after the other.
    while let Some(event) = swarm.select_next_some().now_or_never() {
        events.push(event);
    }
    Ok(events)
}

fn probe(address: &Multiaddr) -> io::Result<()> {
    match addresses::tcp_socket(address) {
        Some(socket) if socket.port() != 0 => TcpListener::bind(socket).map(drop),
        _ => Ok(()),
    }
}

fn refused(address: &Multiaddr, error: io::Error) -> HostError {
    match TransportFailure::of(&error) {
        TransportFailure::AddressInUse => HostError::AddressInUse { address: address.clone() },
        _ => HostError::Listen { address: address.clone(), source: error },
    }
}

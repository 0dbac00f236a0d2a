//! Which protocols run on a connection and with which settings.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use libp2p::connection_limits::ConnectionLimits;
use libp2p::core::transport::Boxed;
use libp2p::kad::{self, Mode, StoreInserts};
use libp2p::swarm::Swarm;
use libp2p::{PeerId, StreamProtocol, connection_limits, identify, mdns, ping, swarm};

use super::board::Board;
use super::driver::Protocols;
use super::transport::Output;
use super::{HostConfig, HostError, HostRole, lanes};
use crate::stream::IncomingSenders;

const IDENTIFY_PROTOCOL: &str = "/debros/1";
/// Ping only measures round trips; the heartbeat tells who is gone.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Inbound connections in handshakes: past it new ones are dropped before they cost anything.
const HANDSHAKES_MAX: u32 = 256;
/// Both roles, each once more while simultaneous dials are settled, and as much again while old
/// connections close.
const CONNECTIONS_PER_PEER_MAX: u32 = 8;
/// Inbound streams in negotiation on one connection; a burst of 200 passes at once.
const NEGOTIATIONS_MAX: usize = 256;
/// A connection without a role or streams is closed after this.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Events of one connection that wait for the swarm, and the other way round.
const EVENTS_MAX: usize = 64;
/// A lookup asks some twenty nodes over connections that are mostly there.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

/// The DHT's protocol name, from the configuration.
pub(super) fn dht_name(configured: Option<&str>) -> Result<Option<StreamProtocol>, HostError> {
    let Some(name) = configured else { return Ok(None) };
    if name.len() < 2 {
        return Err(HostError::DhtName(name.to_owned()));
    }
    StreamProtocol::try_from_owned(name.to_owned()).map(Some).map_err(|_| HostError::DhtName(name.to_owned()))
}

pub(super) fn build(
    config: &HostConfig,
    dht: Option<StreamProtocol>,
    board: Arc<Board>,
    queues: IncomingSenders,
) -> Protocols {
    let local = board.local();
    Protocols {
        limits: connection_limits::Behaviour::new(limits(config.connections_max)),
        lanes: lanes::Behaviour::new(board, queues),
        identify: identify::Behaviour::new(
            identify::Config::new(IDENTIFY_PROTOCOL.to_owned(), config.keypair.public())
                .with_agent_version(format!("debros/{}", debros_proto::VERSION))
                .with_push_listen_addr_updates(true)
                // The address book keeps what identify learns.
                .with_cache_size(0),
        ),
        ping: ping::Behaviour::new(
            ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIMEOUT),
        ),
        kademlia: dht.map(|name| kademlia(local, name, config.role)).into(),
        mdns: config.mdns.then(|| multicast(local)).flatten().into(),
    }
}

pub(super) fn swarm(transport: Boxed<Output>, behaviour: Protocols, local: PeerId) -> Swarm<Protocols> {
    let config = swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(IDLE_TIMEOUT)
        .with_max_negotiating_inbound_streams(NEGOTIATIONS_MAX)
        .with_per_connection_event_buffer_size(EVENTS_MAX)
        .with_notify_handler_buffer_size(NonZeroUsize::new(EVENTS_MAX).expect("the constant is not zero"));
    Swarm::new(transport, behaviour, local, config)
}

fn limits(connections_max: u32) -> ConnectionLimits {
    ConnectionLimits::default()
        .with_max_pending_incoming(Some(HANDSHAKES_MAX))
        .with_max_established_incoming(Some(connections_max))
        .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX))
}

fn kademlia(local: PeerId, name: StreamProtocol, role: HostRole) -> kad::Behaviour<kad::store::MemoryStore> {
    let mut config = kad::Config::new(name);
    config
        .set_query_timeout(QUERY_TIMEOUT)
        // The driver refreshes, at its own pace.
        .set_periodic_bootstrap_interval(None)
        // It finds peers; nothing is stored in it, and nobody may store anything here.
        .set_record_filtering(StoreInserts::FilterBoth)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None);
    let mut kademlia = kad::Behaviour::with_config(local, kad::store::MemoryStore::new(local), config);
    kademlia.set_mode(Some(match role {
        HostRole::Node => Mode::Server,
        HostRole::Client => Mode::Client,
    }));
    kademlia
}

fn multicast(local: PeerId) -> Option<mdns::tokio::Behaviour> {
    mdns::tokio::Behaviour::new(mdns::Config::default(), local)
        .inspect_err(
            |error| tracing::warn!(%error, "multicast DNS does not work here: other sources find peers"),
        )
        .ok()
}

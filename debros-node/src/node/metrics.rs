//! What a node tells of its network, which counts and names nothing itself.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use debros_net::discovery::OnFound;
use debros_net::{AdmissionError, KnownPeer, Network, NetworkStats, OpenError, TransportKind};
use prometheus_client::registry::Registry;

use crate::metrics::{Bounds, Readings, read_at_scrape, waits};

/// Registers how long it takes to find peers; gives whom to tell.
pub(super) fn register_discovery(registry: &mut Registry) -> OnFound {
    let found = waits();
    registry.register(
        "debros_net_discovery_duration_seconds",
        "Time from when a peer became known, or was last found to be out of reach, until it was connected",
        found.clone(),
    );
    Arc::new(move |took| found.observe(took.as_secs_f64()))
}

/// Registers what is read from the network at each scrape.
pub(super) fn register_network(registry: &mut Registry, bounds: &Bounds, network: &Arc<dyn Network>) {
    let incoming = network.clone();
    let limit = usize::try_from(network.stats().connections_incoming_max).unwrap_or(usize::MAX);
    bounds.resource("incoming_connections", limit, move || {
        usize::try_from(incoming.stats().connections_incoming).unwrap_or(usize::MAX)
    });
    let network = network.clone();
    read_at_scrape(registry, move |readings| {
        tell_peers(readings, &network.peers())?;
        tell_counters(readings, network.stats())
    });
}

fn tell_peers(readings: &mut Readings<'_>, peers: &[KnownPeer]) -> fmt::Result {
    let connected = || peers.iter().filter(|peer| peer.connected);
    readings.gauges(
        ("debros_net_peers", "Nodes and clients that this node is connected to, or only knows of"),
        "state",
        [("connected", connected().count() as u64), ("known", (peers.len() - connected().count()) as u64)],
    )?;
    let slowest = connected().filter_map(|peer| peer.round_trip).max().unwrap_or_default();
    readings.gauge(
        "debros_net_round_trip_max_seconds",
        "The longest of the round trips last measured to connected peers",
        slowest.as_secs_f64(),
    )
}

fn tell_counters(readings: &mut Readings<'_>, stats: NetworkStats) -> fmt::Result {
    let NetworkStats {
        connections_tcp,
        connections_quic,
        connections_incoming: _,
        connections_incoming_max: _,
        connections_total,
        streams_opened_total,
        streams_accepted_total,
        streams_refused_total,
        heartbeats_lost_total,
        inbound_failed_total,
        dials_failed_total,
        admission_refused_total,
    } = stats;
    readings.gauges(
        ("debros_net_connections", "Open connections to peers; two nodes have two, one for bulk transfers"),
        "transport",
        [(TransportKind::Tcp.name(), connections_tcp), (TransportKind::Quic.name(), connections_quic)],
    )?;
    let counters = [
        ("debros_net_connections_opened", "Connections that were ever established", connections_total),
        ("debros_net_streams_opened", "Streams that this node opened", streams_opened_total),
        ("debros_net_streams_accepted", "Streams that peers opened here", streams_accepted_total),
        (
            "debros_net_streams_refused",
            "Streams refused because a queue or a connection was full",
            streams_refused_total,
        ),
        (
            "debros_net_heartbeats_lost",
            "Connections closed because the peer's heartbeat stopped",
            heartbeats_lost_total,
        ),
        (
            "debros_net_inbound_failed",
            "Incoming connections that failed before admission: garbage, silence, broken handshakes",
            inbound_failed_total,
        ),
    ];
    for (name, help, value) in counters {
        readings.counter(name, help, value)?;
    }
    readings.counters(
        ("debros_net_dials_failed", "Dials that failed"),
        "reason",
        from_zero(&OpenError::KINDS, dials_failed_total),
    )?;
    readings.counters(
        ("debros_net_admission_refused", "Refusals of admission, by this node or of it"),
        "reason",
        from_zero(&AdmissionError::KINDS, admission_refused_total),
    )
}

/// What has not happened is told as well.
fn from_zero(kinds: &[&'static str], counted: BTreeMap<&'static str, u64>) -> BTreeMap<&'static str, u64> {
    let mut all: BTreeMap<_, _> = kinds.iter().map(|kind| (*kind, 0)).collect();
    all.extend(counted);
    all
}

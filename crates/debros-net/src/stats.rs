//! Plain counters of what the network does, for the node's metrics to read.
//!
//! Counts only; names, labels and exposition belong to whoever reads. Every label is one of a
//! handful of words, never a peer or an address.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::network::TransportKind;

/// A reading of the counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkStats {
    /// Connections over TCP that are open now.
    pub connections_tcp: u64,
    /// Connections over QUIC that are open now.
    pub connections_quic: u64,
    /// Those of both that the other side opened.
    pub connections_incoming: u64,
    /// How many of these there may be.
    pub connections_incoming_max: u64,
    /// Connections that were ever established.
    pub connections_total: u64,
    /// Streams that this node opened.
    pub streams_opened_total: u64,
    /// Streams that peers opened here.
    pub streams_accepted_total: u64,
    /// Streams refused because a queue or a connection was full.
    pub streams_refused_total: u64,
    /// Connections closed because the peer's heartbeat stopped.
    pub heartbeats_lost_total: u64,
    /// Inbound connections that failed before admission: garbage, silence, broken handshakes.
    pub inbound_failed_total: u64,
    /// Failed dials by reason ([`crate::OpenError::kind`]).
    pub dials_failed_total: BTreeMap<&'static str, u64>,
    /// Refusals of admission by reason ([`crate::AdmissionError::kind`]), both as dialer and listener.
    pub admission_refused_total: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections_tcp: AtomicU64,
    pub(crate) connections_quic: AtomicU64,
    pub(crate) connections_incoming: AtomicU64,
    pub(crate) connections_incoming_max: AtomicU64,
    pub(crate) connections_total: AtomicU64,
    pub(crate) streams_opened: AtomicU64,
    pub(crate) streams_accepted: AtomicU64,
    pub(crate) streams_refused: AtomicU64,
    pub(crate) heartbeats_lost: AtomicU64,
    pub(crate) inbound_failed: AtomicU64,
    reasons: Mutex<Reasons>,
}

#[derive(Debug, Default)]
struct Reasons {
    dials: BTreeMap<&'static str, u64>,
    admission: BTreeMap<&'static str, u64>,
}

impl Counters {
    pub(crate) fn connection_opened(&self, transport: TransportKind, incoming: bool) {
        add(&self.connections_total);
        add(self.open(transport));
        if incoming {
            add(&self.connections_incoming);
        }
    }

    pub(crate) fn connection_closed(&self, transport: TransportKind, incoming: bool) {
        self.open(transport).fetch_sub(1, Ordering::Relaxed);
        if incoming {
            self.connections_incoming.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn dial_failed(&self, reason: &'static str) {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        *reasons.dials.entry(reason).or_default() += 1;
    }

    pub(crate) fn admission_refused(&self, reason: &'static str) {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        *reasons.admission.entry(reason).or_default() += 1;
    }

    pub(crate) fn read(&self) -> NetworkStats {
        let reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        NetworkStats {
            connections_tcp: self.connections_tcp.load(Ordering::Relaxed),
            connections_quic: self.connections_quic.load(Ordering::Relaxed),
            connections_incoming: self.connections_incoming.load(Ordering::Relaxed),
            connections_incoming_max: self.connections_incoming_max.load(Ordering::Relaxed),
            connections_total: self.connections_total.load(Ordering::Relaxed),
            streams_opened_total: self.streams_opened.load(Ordering::Relaxed),
            streams_accepted_total: self.streams_accepted.load(Ordering::Relaxed),
            streams_refused_total: self.streams_refused.load(Ordering::Relaxed),
            heartbeats_lost_total: self.heartbeats_lost.load(Ordering::Relaxed),
            inbound_failed_total: self.inbound_failed.load(Ordering::Relaxed),
            dials_failed_total: reasons.dials.clone(),
            admission_refused_total: reasons.admission.clone(),
        }
    }

    fn open(&self, transport: TransportKind) -> &AtomicU64 {
        match transport {
            TransportKind::Tcp => &self.connections_tcp,
            TransportKind::Quic => &self.connections_quic,
        }
    }
}

pub(crate) fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

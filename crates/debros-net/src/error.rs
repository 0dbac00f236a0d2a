//! Why a stream or a connection could not be had. Each variant says what the caller can do: try
//! again, fix the configuration, or give up.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId};

use crate::lane::Lane;

/// Why [`crate::Network::open`] or [`crate::Network::connect`] failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Nobody said yet where this peer is.
    #[error(
        "no address of peer {0} is known: add one to the bootstrap peers, or wait until a member passes it on"
    )]
    NoAddress(PeerId),
    /// Nothing usable answered at any address.
    #[error("nothing answered at {}: {reason}; check that the node runs there and that no firewall is in between", list(.addresses))]
    Unreachable {
        /// The addresses that were tried.
        addresses: Vec<Multiaddr>,
        /// What the most telling of them said.
        reason: String,
        /// Whether that was nothing at all, for too long.
        timed_out: bool,
    },
    /// The other side answered, and admission failed.
    #[error(transparent)]
    Refused(#[from] AdmissionError),
    /// Somebody else is at that address.
    #[error(
        "{address} belongs to peer {obtained}, not to {expected}: correct the /p2p part of the address or the address itself"
    )]
    WrongPeer {
        /// Who was wanted.
        expected: PeerId,
        /// Who answered.
        obtained: PeerId,
        /// Where.
        address: Multiaddr,
    },
    /// The address leads back to this node.
    #[error("{0} is this node itself: give the address of another node")]
    LocalPeer(Multiaddr),
    /// The address cannot be dialed.
    #[error(
        "cannot dial {address}: {reason}; expected something like /ip4/10.0.0.1/tcp/4001 or /dns4/name/udp/4001/quic-v1"
    )]
    InvalidAddress {
        /// The address as it was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The peer's queue for this lane is full, or too many streams are open.
    #[error("the {0} lane is busy: retry after a moment")]
    Busy(Lane),
    /// The peer does not serve this lane.
    #[error("the peer does not serve the {0} lane: ask another node")]
    Unsupported(Lane),
    /// A limit on connections was met, here or there.
    #[error("too many connections: raise node.max_connections or retry later")]
    TooManyConnections,
    /// No answer in time.
    #[error("no answer within {} ms: retry, or check the path to the peer", .0.as_millis())]
    Timeout(Duration),
    /// The connection went away while the stream was being opened.
    #[error("the connection to the peer closed while a stream was being opened: retry")]
    Closed,
    /// This node's own network was shut down.
    #[error("this node's network is shut down")]
    ShutDown,
}

impl OpenError {
    /// Whether the same call can succeed later without anybody changing a configuration.
    pub fn is_retryable(&self) -> bool {
        match self {
            OpenError::NoAddress(_)
            | OpenError::Unreachable { .. }
            | OpenError::Busy(_)
            | OpenError::TooManyConnections
            | OpenError::Timeout(_)
            | OpenError::Closed => true,
            OpenError::Refused(refusal) => refusal.is_retryable(),
            OpenError::WrongPeer { .. }
            | OpenError::LocalPeer(_)
            | OpenError::InvalidAddress { .. }
            | OpenError::Unsupported(_)
            | OpenError::ShutDown => false,
        }
    }

    /// Whether the other side, or the path to it, may simply have too much to do.
    pub(crate) fn is_overload(&self) -> bool {
        match self {
            OpenError::Timeout(_) | OpenError::Closed => true,
            OpenError::Unreachable { timed_out, .. } => *timed_out,
            OpenError::Refused(refusal) => refusal.is_retryable(),
            _ => false,
        }
    }

    /// A short word for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            OpenError::NoAddress(_) => "no_address",
            OpenError::Unreachable { .. } => "unreachable",
            OpenError::Refused(_) => "admission",
            OpenError::WrongPeer { .. } => "wrong_peer",
            OpenError::LocalPeer(_) => "local_peer",
            OpenError::InvalidAddress { .. } => "invalid_address",
            OpenError::Busy(_) => "busy",
            OpenError::Unsupported(_) => "unsupported",
            OpenError::TooManyConnections => "too_many_connections",
            OpenError::Timeout(_) => "timeout",
            OpenError::Closed => "closed",
            OpenError::ShutDown => "shut_down",
        }
    }

    /// Whatever [`Self::kind`] gives of a dial that failed.
    pub const KINDS: [&'static str; 10] = [
        "unreachable",
        "admission",
        "wrong_peer",
        "local_peer",
        "invalid_address",
        "busy",
        "unsupported",
        "too_many_connections",
        "timeout",
        "closed",
    ];

    /// Finds the reason in an error chain, through `io::Error`, whose `source` skips the very error
    /// it wraps. A failed gRPC call over a lane has it among its sources.
    pub fn find<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a OpenError> {
        find(error)
    }
}

/// Why admission failed, as this side can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum AdmissionError {
    /// Both sides have a secret, and they differ.
    #[error("peer {0} has another cluster secret: give both the same security.cluster_secret_file")]
    WrongSecret(PeerId),
    /// The other side asks for a secret and this one has none.
    #[error("peer {0} asks for the cluster secret: set security.cluster_secret_file to its file")]
    SecretRequired(PeerId),
    /// This side asks for a secret and the other has none.
    #[error("peer {0} has no cluster secret: set security.cluster_secret_file there")]
    SecretMissing(PeerId),
    /// The other side speaks something else.
    #[error("peer {0} does not speak debros admission: it is another program or another version")]
    NotDebros(PeerId),
    /// The other side fell silent.
    #[error("peer {0} fell silent during admission: retry")]
    TimedOut(PeerId),
    /// The connection broke off.
    #[error("the connection to peer {0} broke off during admission: retry")]
    BrokenOff(PeerId),
}

impl AdmissionError {
    /// Whether the same dial can succeed later without anybody changing a configuration.
    pub fn is_retryable(&self) -> bool {
        matches!(self, AdmissionError::TimedOut(_) | AdmissionError::BrokenOff(_))
    }

    /// A short word for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            AdmissionError::WrongSecret(_) => "wrong_secret",
            AdmissionError::SecretRequired(_) => "secret_required",
            AdmissionError::SecretMissing(_) => "secret_missing",
            AdmissionError::NotDebros(_) => "not_debros",
            AdmissionError::TimedOut(_) => "timed_out",
            AdmissionError::BrokenOff(_) => "broken_off",
        }
    }

    /// Whatever [`Self::kind`] gives.
    pub const KINDS: [&'static str; 6] =
        ["wrong_secret", "secret_required", "secret_missing", "not_debros", "timed_out", "broken_off"];
}

/// Walks an error and its causes down to a `T`.
pub(crate) fn find<'a, T: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a T> {
    if let Some(found) = error.downcast_ref::<T>() {
        return Some(found);
    }
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    match wrapped {
        Some(inner) => find(inner),
        None => find(error.source()?),
    }
}

fn list(addresses: &[Multiaddr]) -> String {
    let shown: Vec<String> = addresses.iter().take(4).map(ToString::to_string).collect();
    let more = addresses.len().saturating_sub(shown.len());
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

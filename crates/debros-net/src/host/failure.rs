//! Why a connection could not be made: one flat type from the depths of the transport to the caller.
//!
//! Decides what a libp2p error means to whoever asked for a connection. Knows nothing of retries.

use std::error::Error;
use std::io;

use libp2p::swarm::DialError;
use libp2p::{Multiaddr, PeerId, quic};

use super::transport::CONNECT_TIMEOUT;
use crate::error::{AdmissionError, OpenError, find};

/// What went wrong below the swarm.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum TransportFailure {
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    #[error("expected peer {expected}, found {obtained}")]
    WrongPeer { expected: PeerId, obtained: PeerId },
    #[error("connection refused")]
    Refused,
    #[error("no answer in time")]
    TimedOut,
    #[error("cannot resolve the name: {0}")]
    Name(String),
    #[error("cannot dial {0}")]
    Unsupported(Multiaddr),
    #[error("the address is in use")]
    AddressInUse,
    #[error("{0}")]
    Other(String),
}

impl TransportFailure {
    /// What an error means; itself, where it is one of these already.
    pub(super) fn of(error: &(dyn Error + 'static)) -> Self {
        if let Some(failure) = find::<TransportFailure>(error) {
            return failure.clone();
        }
        // Transparent errors skip what they wrap when they are asked for their source, too.
        match find::<quic::Error>(error) {
            Some(quic::Error::HandshakeTimedOut) => return TransportFailure::TimedOut,
            Some(quic::Error::Io(error)) => return Self::of(error),
            _ => {}
        }
        match socket_error(error) {
            Some(io::ErrorKind::ConnectionRefused) => TransportFailure::Refused,
            Some(io::ErrorKind::TimedOut) => TransportFailure::TimedOut,
            Some(io::ErrorKind::AddrInUse) => TransportFailure::AddressInUse,
            _ => TransportFailure::Other(error.to_string()),
        }
    }

    /// Of several failures at several addresses the most telling one is reported: what an
    /// administrator has to mend comes before what may pass.
    pub(super) fn telling(&self) -> u8 {
        match self {
            TransportFailure::Admission(refusal) if !refusal.is_retryable() => 7,
            TransportFailure::WrongPeer { .. } => 6,
            TransportFailure::Admission(_) => 5,
            TransportFailure::Name(_) => 4,
            TransportFailure::Refused => 3,
            TransportFailure::TimedOut => 2,
            TransportFailure::Other(_) | TransportFailure::AddressInUse => 1,
            TransportFailure::Unsupported(_) => 0,
        }
    }
}

/// The innermost socket error: outer ones say `Other`.
fn socket_error(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    let mut found = None;
    let mut next = Some(error);
    while let Some(error) = next {
        let io = error.downcast_ref::<io::Error>();
        found = io.map(io::Error::kind).or(found);
        next = match io.and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    found
}

/// What a failed dial means to whoever asked for it.
pub(super) fn dial_error(error: &DialError, expected: Option<PeerId>) -> OpenError {
    match error {
        DialError::NoAddresses => match expected {
            Some(peer) => OpenError::NoAddress(peer),
            None => OpenError::Closed,
        },
        DialError::LocalPeerId { address } => OpenError::LocalPeer(address.clone()),
        DialError::WrongPeerId { obtained, address } => OpenError::WrongPeer {
            expected: expected.unwrap_or(*obtained),
            obtained: *obtained,
            address: address.clone(),
        },
        DialError::Denied { .. } => OpenError::TooManyConnections,
        DialError::DialPeerConditionFalse(_) | DialError::Aborted => OpenError::Closed,
        DialError::Transport(attempts) => {
            let worst = attempts
                .iter()
                .map(|(address, error)| (address, transport_failure(error)))
                .max_by_key(|(_, failure)| failure.telling());
            let addresses = attempts.iter().map(|(address, _)| address.clone()).collect();
            match worst {
                Some((address, failure)) => open_error(failure, address, addresses),
                None => OpenError::Closed,
            }
        }
    }
}

/// The addresses of a failed dial at which somebody else answered: they are this peer's no more.
pub(super) fn taken_over(error: &DialError) -> Vec<Multiaddr> {
    match error {
        DialError::WrongPeerId { address, .. } | DialError::LocalPeerId { address } => vec![address.clone()],
        DialError::Transport(attempts) => attempts
            .iter()
            .filter(|(_, error)| matches!(transport_failure(error), TransportFailure::WrongPeer { .. }))
            .map(|(address, _)| address.clone())
            .collect(),
        _ => Vec::new(),
    }
}

fn transport_failure(error: &libp2p::TransportError<io::Error>) -> TransportFailure {
    match error {
        libp2p::TransportError::MultiaddrNotSupported(address) => {
            TransportFailure::Unsupported(address.clone())
        }
        libp2p::TransportError::Other(error) => TransportFailure::of(error),
    }
}

fn open_error(failure: TransportFailure, address: &Multiaddr, addresses: Vec<Multiaddr>) -> OpenError {
    match failure {
        TransportFailure::Admission(refusal) => OpenError::Refused(refusal),
        TransportFailure::WrongPeer { expected, obtained } => {
            OpenError::WrongPeer { expected, obtained, address: address.clone() }
        }
        TransportFailure::Unsupported(address) => OpenError::InvalidAddress {
            address: address.to_string(),
            reason: "no transport speaks it".to_owned(),
        },
        TransportFailure::TimedOut => OpenError::Unreachable {
            addresses,
            reason: format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
            timed_out: true,
        },
        TransportFailure::Refused | TransportFailure::Name(_) | TransportFailure::AddressInUse => {
            OpenError::Unreachable { addresses, reason: failure.to_string(), timed_out: false }
        }
        TransportFailure::Other(reason) => OpenError::Unreachable { addresses, reason, timed_out: false },
    }
}

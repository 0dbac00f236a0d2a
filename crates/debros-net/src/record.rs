//! Signed peer records: where a peer says it can be found, in a form that anybody may pass on and
//! nobody else can make.
//!
//! The bytes are a libp2p signed envelope with a peer record (RFC 0002 and 0003 of libp2p/specs, the
//! form that other implementations read). This module signs and verifies; it keeps nothing.
//!
//! Invariants: a [`SignedRecord`] exists only with a valid signature by the peer it speaks of. The
//! sequence is nanoseconds of Unix time: libp2p's own constructor counts seconds, so a node that
//! restarts on another port within one second would be found at the old one.

use std::time::{SystemTime, UNIX_EPOCH};

use debros_proto::limits;
use libp2p::core::{PeerRecord, SignedEnvelope};
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use prost::Message;

/// What the signature covers besides the payload; both are given by libp2p's specification.
const DOMAIN: &str = "libp2p-peer-record";
const PAYLOAD_TYPE: [u8; 2] = [0x03, 0x01];

/// A verified record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRecord {
    /// Whom it speaks of, and who signed it.
    pub peer: PeerId,
    /// Grows with each record of the same peer.
    pub sequence: u64,
    /// Where the peer can be dialed.
    pub addresses: Vec<Multiaddr>,
}

/// Why bytes are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Too large to read.
    #[error("the peer record has {0} bytes, at most {max} are read", max = limits::PEER_RECORD_BYTES_MAX)]
    TooLarge(usize),
    /// More addresses than anybody keeps.
    #[error("the peer record names {0} addresses, at most {max} are kept", max = limits::PEER_ADDRESSES_MAX)]
    TooManyAddresses(usize),
    /// Not an envelope.
    #[error("not a signed envelope")]
    Malformed,
    /// The signature, or what was signed, does not hold.
    #[error("the peer record is not signed by the peer it speaks of")]
    BadSignature,
}

#[derive(Clone, PartialEq, Message)]
struct PeerRecordMessage {
    #[prost(bytes = "vec", tag = "1")]
    peer_id: Vec<u8>,
    #[prost(uint64, tag = "2")]
    sequence: u64,
    #[prost(message, repeated, tag = "3")]
    addresses: Vec<AddressMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct AddressMessage {
    #[prost(bytes = "vec", tag = "1")]
    multiaddr: Vec<u8>,
}

/// Signs where the owner of `keypair` can be found. At most
/// [`limits::PEER_ADDRESSES_MAX`] addresses go in.
pub fn sign(keypair: &Keypair, addresses: &[Multiaddr]) -> Vec<u8> {
    let sequence = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let record = PeerRecordMessage {
        peer_id: keypair.public().to_peer_id().to_bytes(),
        sequence: u64::try_from(sequence).unwrap_or(u64::MAX),
        addresses: addresses
            .iter()
            .take(limits::PEER_ADDRESSES_MAX)
            .map(|address| AddressMessage { multiaddr: address.to_vec() })
            .collect(),
    };
    SignedEnvelope::new(keypair, DOMAIN.to_owned(), PAYLOAD_TYPE.to_vec(), record.encode_to_vec())
        .expect("an Ed25519 key signs whatever it is given")
        .into_protobuf_encoding()
}

/// Checks a record's size and signature.
pub fn verify(bytes: &[u8]) -> Result<SignedRecord, RecordError> {
    if bytes.len() > limits::PEER_RECORD_BYTES_MAX {
        return Err(RecordError::TooLarge(bytes.len()));
    }
    let envelope = SignedEnvelope::from_protobuf_encoding(bytes).map_err(|_| RecordError::Malformed)?;
    let record = PeerRecord::from_signed_envelope_interop(envelope).map_err(|_| RecordError::BadSignature)?;
    if record.addresses().len() > limits::PEER_ADDRESSES_MAX {
        return Err(RecordError::TooManyAddresses(record.addresses().len()));
    }
    Ok(SignedRecord {
        peer: record.peer_id(),
        sequence: record.seq(),
        addresses: record.addresses().to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_later_ones_are_newer() {
        let keypair = Keypair::generate_ed25519();
        let addresses: Vec<Multiaddr> = vec!["/ip4/10.0.0.1/tcp/4001".parse().unwrap()];
        let (first, second) = (sign(&keypair, &addresses), sign(&keypair, &addresses));
        let (first, second) = (verify(&first).unwrap(), verify(&second).unwrap());
        assert_eq!(first.peer, keypair.public().to_peer_id());
        assert_eq!(first.addresses, addresses);
        assert!(second.sequence > first.sequence, "two records of one second must differ");
    }

    #[test]
    fn no_changed_byte_is_accepted() {
        let record = sign(&Keypair::generate_ed25519(), &["/ip4/10.0.0.1/tcp/4001".parse().unwrap()]);
        let original = verify(&record).unwrap();
        for index in 0..record.len() {
            let mut changed = record.clone();
            changed[index] ^= 0x01;
            // A changed tag may make a field unknown; what is read must then still be what was signed.
            if let Ok(read) = verify(&changed) {
                assert_eq!(read, original, "byte {index}");
            }
        }
    }

    #[test]
    fn oversized_records_are_refused_unread() {
        let record = vec![0; limits::PEER_RECORD_BYTES_MAX + 1];
        assert_eq!(verify(&record), Err(RecordError::TooLarge(record.len())));
    }
}

//! Addresses and peer ids as people write them, parsed once, with errors that show a good one.

use debros_net::{Multiaddr, PeerId};

use crate::error::Error;

/// Parses a multiaddr.
pub(crate) fn parse(address: &str) -> Result<Multiaddr, Error> {
    let parsed: Result<Multiaddr, _> = address.trim().parse();
    match parsed {
        Ok(parsed) if !parsed.is_empty() => Ok(parsed),
        Ok(_) => Err(refused(address, "it is empty")),
        Err(error) => Err(refused(address, &error.to_string())),
    }
}

fn refused(address: &str, reason: &str) -> Error {
    Error::invalid(format!(
        "{address:?} is not a multiaddr ({reason}); write it like /ip4/10.0.0.1/tcp/4001, \
         /dns4/node-0.example/udp/4001/quic-v1 or with /p2p/<peer id> at its end"
    ))
}

/// Parses a peer id.
pub(crate) fn parse_peer_id(peer_id: &str) -> Result<PeerId, Error> {
    peer_id.trim().parse().map_err(|error| {
        Error::invalid(format!(
            "{peer_id:?} is not a peer id ({error}); `debros peers` lists those of the network"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::{parse, parse_peer_id};

    #[test]
    fn a_malformed_address_is_refused_with_an_example() {
        for address in ["", "127.0.0.1:4001", "/ip4/300.0.0.1/tcp/1", "/nonsense"] {
            let error = parse(address).unwrap_err().to_string();
            assert!(error.contains("/ip4/10.0.0.1/tcp/4001"), "{error}");
        }
        assert!(parse("/ip4/127.0.0.1/tcp/4001").is_ok());
        assert!(parse_peer_id("x").unwrap_err().to_string().contains("debros peers"));
    }
}

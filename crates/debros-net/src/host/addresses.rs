//! Multiaddrs as people write them and as others can use them.
//!
//! Decides which spellings are accepted and which addresses are worth telling others. Pure
//! functions; keeps nothing.

use std::net::{IpAddr, SocketAddr};

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

use crate::network::TransportKind;

/// Takes an address apart into what is dialed and who is expected there. The older spelling `/quic`
/// means `/quic-v1`: drafts of QUIC before version 1 are spoken nowhere any more.
pub(crate) fn parse(address: &Multiaddr) -> (Multiaddr, Option<PeerId>) {
    let mut expected = None;
    let mut dialed = Multiaddr::empty();
    for part in address.iter() {
        match part {
            Protocol::P2p(peer) => expected = Some(peer),
            Protocol::Quic => dialed.push(Protocol::QuicV1),
            part => dialed.push(part),
        }
    }
    (dialed, expected)
}

/// The transport an address asks for; `None` for one that neither speaks.
pub(crate) fn transport_of(address: &Multiaddr) -> Option<TransportKind> {
    let mut parts = address.iter();
    let host = matches!(
        parts.next()?,
        Protocol::Ip4(_) | Protocol::Ip6(_) | Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_)
    );
    match (parts.next(), parts.next()) {
        (Some(Protocol::Tcp(_)), None) if host => Some(TransportKind::Tcp),
        (Some(Protocol::Udp(_)), Some(Protocol::QuicV1)) if host => Some(TransportKind::Quic),
        _ => None,
    }
}

/// Whether it can be dialed at all: a transport that exists, or a name that leads to one.
pub(crate) fn is_dialable(address: &Multiaddr) -> bool {
    matches!(address.iter().next(), Some(Protocol::Dnsaddr(_)))
        || (transport_of(address).is_some() && !is_unspecified(address))
}

pub(crate) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

/// The socket that listening on a TCP address would bind.
pub(crate) fn tcp_socket(address: &Multiaddr) -> Option<SocketAddr> {
    match (ip_of(address), address.iter().nth(1)) {
        (Some(ip), Some(Protocol::Tcp(port))) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}

pub(crate) fn is_loopback(address: &Multiaddr) -> bool {
    ip_of(address).is_some_and(|ip| ip.is_loopback())
}

/// A listening address with the host under which somebody sees this node, where both are of one
/// transport and one family.
pub(crate) fn with_host_of(listening: &Multiaddr, seen: &Multiaddr) -> Option<Multiaddr> {
    let (own, theirs) = (ip_of(listening)?, ip_of(seen)?);
    if own.is_ipv4() != theirs.is_ipv4() || own.is_loopback() || transport_of(listening) != transport_of(seen)
    {
        return None;
    }
    let (seen, _) = parse(seen);
    seen.iter().next().map(|host| std::iter::once(host).chain(listening.iter().skip(1)).collect())
}

fn is_unspecified(address: &Multiaddr) -> bool {
    ip_of(address).is_some_and(|ip| ip.is_unspecified())
}

/// Addresses of one machine as another can use them: its loopback means something else elsewhere, so
/// it is told only where there is nothing but loopback.
pub(crate) fn advertised(addresses: impl IntoIterator<Item = Multiaddr>) -> Vec<Multiaddr> {
    let dialable: Vec<Multiaddr> = addresses.into_iter().filter(is_dialable).collect();
    if dialable.iter().all(is_loopback) {
        return dialable;
    }
    dialable.into_iter().filter(|address| !is_loopback(address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_older_spelling_of_quic_is_accepted() {
        let peer = PeerId::random();
        let written = address(&format!("/ip4/127.0.0.1/udp/4001/quic/p2p/{peer}"));
        assert_eq!(parse(&written), (address("/ip4/127.0.0.1/udp/4001/quic-v1"), Some(peer)));
        assert_eq!(parse(&address("/dns4/a/tcp/1")), (address("/dns4/a/tcp/1"), None));
    }

    #[test]
    fn only_what_a_transport_speaks_is_dialed() {
        for good in ["/ip4/1.2.3.4/tcp/1", "/ip6/::1/udp/1/quic-v1", "/dns4/a.b/tcp/1", "/dnsaddr/a.b"] {
            assert!(is_dialable(&address(good)), "{good}");
        }
        for bad in
            ["/ip4/1.2.3.4", "/ip4/0.0.0.0/tcp/1", "/ip4/1.2.3.4/udp/1", "/ip4/1.2.3.4/tcp/1/ws", "/memory/1"]
        {
            assert!(!is_dialable(&address(bad)), "{bad}");
        }
    }

    #[test]
    fn loopback_is_told_only_where_there_is_nothing_else() {
        let (home, away) = (address("/ip4/127.0.0.1/tcp/1"), address("/ip4/10.0.0.1/tcp/1"));
        assert_eq!(advertised([home.clone(), away.clone()]), vec![away]);
        assert_eq!(advertised([home.clone()]), vec![home]);
    }
}

//! Multiaddrs, as far as a configuration writes them.
//!
//! Decides which addresses a node may listen on and which it may dial, by their text alone: nothing is resolved
//! and nothing is connected. The forms are those of the node's transports (TCP and QUIC) and no more, so a typing
//! error is told here with the key that holds it, rather than by a dial that never succeeds. The older `/quic` is
//! read as `/quic-v1`.
//!
//! Source: the multiaddr specification (libp2p) and the peer id specification, "inlined" Ed25519 keys.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// RFC 1035, section 2.3.4.
const HOST_NAME_BYTES_MAX: usize = 253;
/// RFC 1035, section 2.3.4.
const HOST_LABEL_BYTES_MAX: usize = 63;
/// An inlined Ed25519 key is 38 bytes, which is 52 characters in base 58.
const PEER_ID_TEXT_BYTES: usize = 52;
const PEER_ID_BYTES: usize = 38;
/// Identity multihash of 36 bytes, holding a protobuf: key type Ed25519, key of 32 bytes.
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];
const BASE58: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// How bytes travel to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// `/tcp/<port>`
    Tcp,
    /// `/udp/<port>/quic-v1`
    Quic,
}

/// An address a node listens on: `/ip4/0.0.0.0/tcp/4001` or `/ip4/0.0.0.0/udp/4001/quic-v1`. Port 0 is any free port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ListenAddress {
    socket: SocketAddr,
    transport: Transport,
}

impl ListenAddress {
    /// An address from its parts.
    pub const fn new(socket: SocketAddr, transport: Transport) -> Self {
        Self { socket, transport }
    }

    /// The IP address and port.
    pub const fn socket(&self) -> SocketAddr {
        self.socket
    }

    /// How bytes travel.
    pub const fn transport(&self) -> Transport {
        self.transport
    }

    /// Whether only this machine can reach it.
    pub fn is_loopback(&self) -> bool {
        is_loopback(self.socket.ip())
    }
}

/// Whether only this machine can reach an address, in either family and in IPv4's IPv6 notation.
pub(crate) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// An address a node dials: an IP address or a name, TCP or QUIC, with or without the peer id expected there.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerAddress {
    text: String,
    peer_id_at: Option<usize>,
}

impl PeerAddress {
    /// The multiaddr, `/quic` already written as `/quic-v1`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The peer id that the address pins, if it does.
    pub fn peer_id(&self) -> Option<&str> {
        self.peer_id_at.map(|at| &self.text[at..])
    }
}

/// Why a text is not an address that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// Not a multiaddr at all.
    #[error("a multiaddr begins with `/`, as in {example}")]
    NotMultiaddr {
        /// An address of the wanted form.
        example: &'static str,
    },
    /// A first part that names no host.
    #[error("it begins with `/{found}`; use {expected}")]
    Host {
        /// What stands there.
        found: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// An IP address that is none.
    #[error("`{0}` is not an IP address of that family")]
    Ip(String),
    /// A name that DNS cannot hold.
    #[error("`{0}` is not a host name")]
    Name(String),
    /// A port that is none.
    #[error("`{0}` is not a port; use a number from 0 to 65535")]
    Port(String),
    /// No transport, or one that is not built in.
    #[error("after the host it needs /tcp/<port> or /udp/<port>/quic-v1")]
    Transport,
    /// Something after the end of a complete address.
    #[error("`/{0}` does not belong there")]
    Trailing(String),
    /// A peer id that is none.
    #[error(
        "`{0}` is not a peer id; it is 52 characters beginning with 12D3KooW, as the node prints at its start"
    )]
    PeerId(String),
    /// A peer id on an address to listen on.
    #[error("a node's own peer id comes from its identity file; leave /p2p out")]
    ListenPeerId,
    /// An address that means "all interfaces", which cannot be dialled.
    #[error("`{0}` means every interface and cannot be dialled; write the address of one")]
    Unspecified(IpAddr),
    /// Port 0, which cannot be dialled.
    #[error("port 0 cannot be dialled; write the port the peer listens on")]
    PortZero,
}

/// The parts of a multiaddr, taken one after the other.
struct Parts<'a> {
    rest: std::iter::Peekable<std::str::Split<'a, char>>,
}

impl<'a> Parts<'a> {
    fn of(text: &'a str, example: &'static str) -> Result<Self, InvalidAddress> {
        let text = text.strip_prefix('/').ok_or(InvalidAddress::NotMultiaddr { example })?;
        Ok(Self { rest: text.split('/').peekable() })
    }

    fn next(&mut self) -> &'a str {
        self.rest.next().unwrap_or("")
    }

    fn transport(&mut self) -> Result<(Transport, u16), InvalidAddress> {
        let layer = self.next();
        if layer != "tcp" && layer != "udp" {
            return Err(InvalidAddress::Transport);
        }
        let port = self.next();
        // `u16::from_str` alone would take `+80`.
        let port = match port.parse() {
            Ok(number) if port.bytes().all(|byte| byte.is_ascii_digit()) => number,
            _ => return Err(InvalidAddress::Port(port.to_owned())),
        };
        if layer == "tcp" {
            return Ok((Transport::Tcp, port));
        }
        match self.next() {
            "quic-v1" | "quic" => Ok((Transport::Quic, port)),
            _ => Err(InvalidAddress::Transport),
        }
    }

    fn end(&mut self) -> Result<(), InvalidAddress> {
        match self.rest.next() {
            None => Ok(()),
            Some(part) => Err(InvalidAddress::Trailing(part.to_owned())),
        }
    }
}

fn ip(family: &str, text: &str) -> Result<IpAddr, InvalidAddress> {
    let parsed = match family {
        "ip4" => text.parse::<Ipv4Addr>().map(IpAddr::V4),
        _ => text.parse::<Ipv6Addr>().map(IpAddr::V6),
    };
    parsed.map_err(|_| InvalidAddress::Ip(text.to_owned()))
}

fn host_name(text: &str) -> Result<&str, InvalidAddress> {
    let label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.len() <= HOST_LABEL_BYTES_MAX && label.bytes().all(allowed)
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.len() <= HOST_NAME_BYTES_MAX && name.split('.').all(label) {
        Ok(text)
    } else {
        Err(InvalidAddress::Name(text.to_owned()))
    }
}

/// Base 58, most significant digit first, into exactly the bytes of an inlined key.
fn is_peer_id(text: &str) -> bool {
    if text.len() != PEER_ID_TEXT_BYTES {
        return false;
    }
    let mut bytes = [0_u8; PEER_ID_BYTES];
    for character in text.bytes() {
        let Some(digit) = BASE58.iter().position(|known| *known == character) else { return false };
        let mut carry = digit as u32;
        for byte in bytes.iter_mut().rev() {
            carry += u32::from(*byte) * 58;
            *byte = (carry & 0xff) as u8;
            carry >>= 8;
        }
        if carry != 0 {
            return false;
        }
    }
    bytes.starts_with(&PEER_ID_PREFIX)
}

impl FromStr for ListenAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let mut parts = Parts::of(text, "/ip4/0.0.0.0/tcp/4001")?;
        let family = parts.next();
        if family != "ip4" && family != "ip6" {
            return Err(InvalidAddress::Host { found: family.to_owned(), expected: "/ip4 or /ip6" });
        }
        let ip = ip(family, parts.next())?;
        let (transport, port) = parts.transport()?;
        if parts.rest.peek() == Some(&"p2p") {
            return Err(InvalidAddress::ListenPeerId);
        }
        parts.end()?;
        Ok(Self { socket: SocketAddr::new(ip, port), transport })
    }
}

impl FromStr for PeerAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let mut parts = Parts::of(text, "/ip4/192.0.2.1/tcp/4001")?;
        let family = parts.next();
        let mut normal = match family {
            "ip4" | "ip6" => match ip(family, parts.next())? {
                address if address.is_unspecified() => return Err(InvalidAddress::Unspecified(address)),
                address => format!("/{family}/{address}"),
            },
            "dns" | "dns4" | "dns6" | "dnsaddr" => format!("/{family}/{}", host_name(parts.next())?),
            _ => {
                let expected = "/ip4, /ip6, /dns, /dns4, /dns6 or /dnsaddr";
                return Err(InvalidAddress::Host { found: family.to_owned(), expected });
            }
        };
        // The records behind a /dnsaddr are whole addresses, with the transport in them.
        if family != "dnsaddr" {
            let (transport, port) = parts.transport()?;
            if port == 0 {
                return Err(InvalidAddress::PortZero);
            }
            normal.push_str(&suffix(transport, port));
        }
        let mut peer_id_at = None;
        if parts.rest.next_if_eq(&"p2p").is_some() {
            let peer_id = parts.next();
            if !is_peer_id(peer_id) {
                return Err(InvalidAddress::PeerId(peer_id.to_owned()));
            }
            normal.push_str("/p2p/");
            peer_id_at = Some(normal.len());
            normal.push_str(peer_id);
        }
        parts.end()?;
        Ok(Self { text: normal, peer_id_at })
    }
}

fn suffix(transport: Transport, port: u16) -> String {
    match transport {
        Transport::Tcp => format!("/tcp/{port}"),
        Transport::Quic => format!("/udp/{port}/quic-v1"),
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.socket.is_ipv4() { "ip4" } else { "ip6" };
        write!(f, "/{family}/{}{}", self.socket.ip(), suffix(self.transport, self.socket.port()))
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for ListenAddress {
    type Error = InvalidAddress;

    fn try_from(text: String) -> Result<Self, InvalidAddress> {
        text.parse()
    }
}

impl From<ListenAddress> for String {
    fn from(address: ListenAddress) -> String {
        address.to_string()
    }
}

impl TryFrom<String> for PeerAddress {
    type Error = InvalidAddress;

    fn try_from(text: String) -> Result<Self, InvalidAddress> {
        text.parse()
    }
}

impl From<PeerAddress> for String {
    fn from(address: PeerAddress) -> String {
        address.text
    }
}

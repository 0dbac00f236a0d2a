//! The transport: TCP with Noise and yamux, and QUIC, both behind admission, with names resolved at
//! each dial.
//!
//! Decides how a connection is made and every limit on making it; knows nothing of what it is for.
//!
//! Invariants, each from a failure that was seen:
//! - every TCP dial leaves from a fresh port: two nodes that dial each other at once from their
//!   listening ports make one simultaneous open, and both take the dialer's part;
//! - making a connection ends within [`CONNECT_TIMEOUT`], handshakes and admission included, since a
//!   swarm built by hand has no such limit of its own;
//! - closing one ends within [`CLOSE_TIMEOUT`]: a frozen peer never empties its socket;
//! - names are not cached: a pod that restarts has a new address, and a cached "no such name" would
//!   outlive the pod's start;
//! - an error is one [`TransportFailure`], because `Either` and `io::Error` skip what they wrap when
//!   they are asked for their source.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use either::Either;
use futures::FutureExt;
use hickory_resolver::config::ResolverConfig;
use hickory_resolver::system_conf::read_system_conf;
use libp2p::core::Transport;
use libp2p::core::muxing::{StreamMuxer, StreamMuxerBox, StreamMuxerEvent, StreamMuxerExt, SubstreamBox};
use libp2p::core::transport::timeout::{TransportTimeout, TransportTimeoutError};
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, PortUse, TransportError, TransportEvent};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId, dns, noise, quic, tcp, yamux};

use super::admission::Admission;
use super::failure::TransportFailure;

/// From the first packet to the end of admission.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A graceful close waits this long for the peer to take what is left.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// Streams of one connection. Yamux closes the whole connection at one more, so the lanes' own
/// limits stay below; more would shrink each stream's window.
pub(super) const CONNECTION_STREAMS_MAX: usize = 512;
/// QUIC tells nothing when a peer is gone; its default of 10 s is too long.
const QUIC_IDLE_TIMEOUT: Duration = Duration::from_secs(3);
/// Well inside the idle timeout.
const QUIC_KEEP_ALIVE: Duration = Duration::from_millis(500);

pub(super) type Output = (PeerId, StreamMuxerBox);

/// Everything below the swarm.
pub(super) fn build(keypair: &Keypair, admission: Admission) -> Result<Boxed<Output>, noise::Error> {
    let admitted = unadmitted(keypair)?
        .map_err(|error| TransportFailure::of(&error))
        .and_then(move |(peer, muxer), point| admission.clone().run(peer, muxer, point))
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(BoundedClose::new(muxer))))
        .map_err(Either::into_inner);
    let timed = TransportTimeout::new(admitted, CONNECT_TIMEOUT).map_err(|error| match error {
        TransportTimeoutError::Timeout => TransportFailure::TimedOut,
        TransportTimeoutError::TimerError(error) => TransportFailure::of(&error),
        TransportTimeoutError::Other(failure) => failure,
    });
    // Outermost, so that each resolved address gets its own time and its own admission.
    Ok(named(timed.boxed()))
}

/// Authenticated and encrypted connections to and from anybody.
pub(super) fn unadmitted(keypair: &Keypair) -> Result<Boxed<Output>, noise::Error> {
    let quic = quic::tokio::Transport::new(quic_config(keypair))
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
        .map_err(|error| TransportFailure::of(&error))
        .boxed();
    let either = quic.or_transport(tcp_transport(keypair)?).map(|either, _| either.into_inner());
    Ok(either.map_err(Either::into_inner).boxed())
}

fn tcp_transport(keypair: &Keypair) -> Result<Boxed<Output>, noise::Error> {
    let mut multiplexing = yamux::Config::default();
    multiplexing.set_max_num_streams(CONNECTION_STREAMS_MAX);
    let transport = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(keypair)?)
        .multiplex(multiplexing)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .map_err(|error| match error {
            Either::Left(Either::Left(socket)) => TransportFailure::of(&socket),
            Either::Left(Either::Right(handshake)) => TransportFailure::of(&handshake),
            Either::Right(multiplexing) => TransportFailure::of(&multiplexing),
        });
    Ok(FreshPort(transport.boxed()).boxed())
}

fn quic_config(keypair: &Keypair) -> quic::Config {
    let mut config = quic::Config::new(keypair);
    config.handshake_timeout = CONNECT_TIMEOUT;
    config.max_idle_timeout = QUIC_IDLE_TIMEOUT.as_millis() as u32;
    config.keep_alive_interval = QUIC_KEEP_ALIVE;
    config.max_concurrent_stream_limit = CONNECTION_STREAMS_MAX as u32;
    config
}

fn named(transport: Boxed<Output>) -> Boxed<Output> {
    let (servers, mut options) = read_system_conf().unwrap_or_else(|error| {
        tracing::warn!(%error, "no name servers are configured: only the hosts file resolves names");
        (ResolverConfig::default(), Default::default())
    });
    options.cache_size = 0;
    dns::tokio::Transport::custom(transport, servers, options)
        .map_err(|error| resolve_failure(&error))
        .boxed()
}

fn resolve_failure(error: &dns::Error<io::Error>) -> TransportFailure {
    match error {
        dns::Error::Transport(error) => TransportFailure::of(error),
        dns::Error::ResolveError(error) => TransportFailure::Name(error.to_string()),
        dns::Error::MultiaddrNotSupported(address) => TransportFailure::Unsupported(address.clone()),
        dns::Error::TooManyLookups => TransportFailure::Name("it leads to too many other names".to_owned()),
        dns::Error::Dial(errors) => errors
            .iter()
            .map(resolve_failure)
            .max_by_key(TransportFailure::telling)
            .unwrap_or_else(|| TransportFailure::Name("it has no addresses".to_owned())),
    }
}

/// Makes every dial leave from a fresh port, Kademlia's too.
struct FreshPort<T>(T);

impl<T: Transport + Unpin> Transport for FreshPort<T> {
    type Output = T::Output;
    type Error = T::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = T::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<T::Error>> {
        self.0.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.0.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<T::Dial, TransportError<T::Error>> {
        self.0.dial(address, DialOpts { port_use: PortUse::New, ..options })
    }

    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<TransportEvent<T::ListenerUpgrade, T::Error>> {
        Pin::new(&mut self.0).poll(context)
    }
}

/// Limits how long a graceful close may take.
struct BoundedClose {
    muxer: StreamMuxerBox,
    deadline: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl BoundedClose {
    fn new(muxer: StreamMuxerBox) -> Self {
        Self { muxer, deadline: None }
    }
}

impl StreamMuxer for BoundedClose {
    type Substream = SubstreamBox;
    type Error = io::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<SubstreamBox>> {
        self.muxer.poll_inbound_unpin(context)
    }

    fn poll_outbound(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<SubstreamBox>> {
        self.muxer.poll_outbound_unpin(context)
    }

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        self.muxer.poll_unpin(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(outcome) = self.muxer.poll_close_unpin(context) {
            return Poll::Ready(outcome);
        }
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(CLOSE_TIMEOUT)));
        deadline.poll_unpin(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

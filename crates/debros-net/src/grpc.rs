//! gRPC over lanes: a channel to a peer's lane, and a server on the streams that peers open.
//!
//! Knows tonic and the seam, nothing of libp2p. Services find the caller's [`PeerIdentity`] in the
//! extensions of each request ([`caller`]).
//!
//! Invariant: both sides send HTTP/2 keep-alives. Without them a partition over a transport that
//! does not retransmit is never noticed, and a channel stays broken after it heals.
//!
//! [`PeerIdentity`]: crate::PeerIdentity

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use debros_proto::limits;
use futures::{Stream, StreamExt};
use hyper_util::rt::TokioIo;
use libp2p::PeerId;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint, Server, Uri};

use crate::error::OpenError;
use crate::lane::Lane;
use crate::network::Network;
use crate::stream::{IncomingStream, PeerIdentity};

/// A silent HTTP/2 connection is asked for a sign of life this often.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_millis(500);
/// A connection that gave no sign of life for this long is closed, as the heartbeat does below.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// A channel's connection is made within this time; a call on it fails after that.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for a request that a node forwards to another. Members are kept connected, so a stream
/// opens at once; one to a node that has just died must not be waited for longer than an election.
pub const FORWARD_TIMEOUT: Duration = Duration::from_millis(500);
/// One call's bytes under way: a full Raft append frame moves without waiting for credit.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// All calls' bytes under way on one connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Calls under way on one connection.
pub const CONCURRENT_CALLS_MAX: u32 = 4096;
/// Bytes of one HTTP/2 frame: fewer, larger frames for rows and snapshots.
const FRAME_BYTES: u32 = 64 << 10;
/// Kept channels; past it those of unconnected peers are dropped.
const CHANNELS_MAX: usize = limits::MESH_NODES_MAX * Lane::ALL.len();

/// A channel to a peer's lane. Connects at the first call, and again at the first call after it
/// broke. Must be made inside a tokio runtime.
pub fn channel(network: Arc<dyn Network>, peer: PeerId, lane: Lane) -> Channel {
    channel_within(CONNECT_TIMEOUT, network, peer, lane)
}

fn channel_within(patience: Duration, network: Arc<dyn Network>, peer: PeerId, lane: Lane) -> Channel {
    let connector = tower::service_fn(move |_: Uri| {
        let network = Arc::clone(&network);
        async move {
            let opened = tokio::time::timeout(patience, network.open(peer, lane)).await;
            opened.unwrap_or(Err(OpenError::Timeout(patience))).map(TokioIo::new)
        }
    });
    Endpoint::from_static("http://debros.peer")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .connect_with_connector_lazy(connector)
}

/// The channels of a node, one per peer and lane.
#[derive(Clone)]
pub struct Channels {
    network: Arc<dyn Network>,
    open: Arc<Mutex<HashMap<(PeerId, Lane), Channel>>>,
}

impl Channels {
    /// No channels yet.
    pub fn new(network: Arc<dyn Network>) -> Self {
        Self { network, open: Arc::default() }
    }

    /// The network below.
    pub fn network(&self) -> &Arc<dyn Network> {
        &self.network
    }

    /// The channel to that peer's lane, a cheap clone of the kept one.
    pub fn get(&self, peer: PeerId, lane: Lane) -> Channel {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = open.get(&(peer, lane)) {
            return channel.clone();
        }
        if open.len() >= CHANNELS_MAX {
            open.retain(|(peer, _), _| self.network.is_connected(*peer));
        }
        let patience = if lane == Lane::Client { FORWARD_TIMEOUT } else { CONNECT_TIMEOUT };
        let channel = channel_within(patience, Arc::clone(&self.network), peer, lane);
        open.insert((peer, lane), channel.clone());
        channel
    }

    /// Drops the channels to a peer; calls under way end when their last clone does.
    pub fn forget(&self, peer: PeerId) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).retain(|(kept, _), _| *kept != peer);
    }
}

/// A server with the settings that every lane shares; add layers and services to it.
pub fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(CONCURRENT_CALLS_MAX)
        .max_frame_size(FRAME_BYTES)
}

/// Serves services on incoming streams until `shutdown` is ready; then refuses new calls, waits for
/// those under way and returns.
pub async fn serve(
    routes: Routes,
    incoming: impl Stream<Item = IncomingStream> + Send + 'static,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), tonic::transport::Error> {
    let streams = incoming.map(|incoming| Ok::<_, Infallible>(incoming.stream));
    server().add_routes(routes).serve_with_incoming_shutdown(streams, shutdown).await
}

/// Who calls: the identity that the transport proved. `None` when the request did not come over a
/// lane.
pub fn caller<T>(request: &tonic::Request<T>) -> Option<PeerIdentity> {
    request.extensions().get::<PeerIdentity>().copied()
}

/// Why the stream for a call could not be opened, when that is why the call failed: it never reached
/// the peer.
pub fn open_error(status: &Status) -> Option<&OpenError> {
    std::error::Error::source(status).and_then(OpenError::find)
}

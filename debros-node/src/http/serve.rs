//! Runs a router on an address: accepts connections, speaks TLS where asked, and ends them.
//!
//! Every connection is a task of one tracker; the returned handle ends when all of them have. When
//! the token is cancelled: no further connection is accepted, idle ones are closed, those with a
//! request under way are closed after its answer, and what is left after [`DRAIN_DEADLINE`] is cut.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::meter::HttpMetrics;
use super::stall::StallTimeout;
use super::tls::{TlsError, TlsFiles};

/// Connections of one listener at a time; further ones wait in the kernel's queue. One connection
/// has one request under way, so this bounds those as well.
pub const CONNECTIONS_MAX: usize = 1024;
/// A connection that has not sent a whole head in this time is closed: slow senders, and clients
/// that keep an idle connection.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(60);
/// A client that has read nothing of its answer for this long is given up.
const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// A TLS handshake takes two round trips; this is for the slowest of networks.
const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// One request's head. A GET's query is in it: the longest target is 64 KiB, a longer one is answered
/// by 414 (send it by POST).
const HEAD_BYTES_MAX: usize = 128 << 10;
/// How long requests under way may take to end once the node shuts down; below what the node waits
/// for its listeners.
const DRAIN_DEADLINE: Duration = Duration::from_secs(4);
/// Pause after a failed accept: mostly there are no file descriptors left, which only time mends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What to listen on.
#[derive(Clone, Debug)]
pub struct Listen {
    /// The listener's name in metrics and logs.
    pub name: &'static str,
    /// The key of the configuration that says the port; errors name it.
    pub key: &'static str,
    /// The address; port 0 is any free port.
    pub address: SocketAddr,
    /// Speak TLS.
    pub tls: Option<TlsFiles>,
}

/// Why a listener did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Another program has the address.
    #[error(
        "{address} is taken by another program: stop it, or set {key} to another port (0 is any free one)"
    )]
    AddressTaken {
        /// The address asked for.
        address: SocketAddr,
        /// The key to change.
        key: &'static str,
    },
    /// This machine does not have the address, or this process may not use it.
    #[error(
        "cannot listen on {address}: set an address of this machine and a port that this process may open ({key})"
    )]
    AddressUnusable {
        /// The address asked for.
        address: SocketAddr,
        /// The key of the port.
        key: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The certificate or its key is of no use.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The address of this node that a request came to, and whether it came over TLS: an extension of
/// every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAddress {
    /// The connection's own end.
    pub address: SocketAddr,
    /// `https`.
    pub tls: bool,
}

impl LocalAddress {
    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}

/// What every connection of a listener needs.
struct Connections {
    listen: Listen,
    router: Router,
    tls: Option<TlsAcceptor>,
    metrics: HttpMetrics,
    /// Refuse and drain.
    shutdown: CancellationToken,
    /// End at once.
    cut: CancellationToken,
}

/// Listens, and answers by the router until the token is cancelled. Gives the address that is
/// listened on, and a handle that ends when the last connection has.
///
/// # Errors
/// When the address or the TLS files cannot be used; nothing is left running then.
pub async fn serve(
    listen: Listen,
    router: Router,
    metrics: HttpMetrics,
    shutdown: CancellationToken,
) -> Result<(SocketAddr, JoinHandle<()>), ListenError> {
    let tls = listen.tls.as_ref().map(TlsFiles::load).transpose()?;
    let unusable = |source: io::Error| {
        let Listen { address, key, .. } = listen;
        match source.kind() {
            io::ErrorKind::AddrInUse => ListenError::AddressTaken { address, key },
            _ => ListenError::AddressUnusable { address, key, source },
        }
    };
    let listener = TcpListener::bind(listen.address).await.map_err(unusable)?;
    let address = listener.local_addr().map_err(unusable)?;
    let (name, cut) = (listen.name, CancellationToken::new());
    let connections = Connections { listen, router, tls, metrics, shutdown, cut };
    tracing::info!(listener = name, %address, tls = connections.tls.is_some(), "listening");
    Ok((address, tokio::spawn(accept_all(listener, Arc::new(connections)))))
}

async fn accept_all(listener: TcpListener, connections: Arc<Connections>) {
    let tasks = TaskTracker::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = connections.shutdown.cancelled() => break,
            accepted = async {
                let place = places.clone().acquire_owned().await.expect("never closed");
                listener.accept().await.map(|(stream, _)| (stream, place))
            } => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                let connections = connections.clone();
                tasks.spawn(async move {
                    connections.carry(stream).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(listener = connections.listen.name, %error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(DRAIN_DEADLINE, tasks.wait()).await.is_err() {
        let left = tasks.len();
        tracing::warn!(
            listener = connections.listen.name,
            left,
            "connections are cut: they did not end in time"
        );
        connections.cut.cancel();
        tasks.wait().await;
    }
}

impl Connections {
    async fn carry(&self, stream: TcpStream) {
        let _counted = self.metrics.connection(self.listen.name);
        // An answer is written whole: waiting for more to send only delays it.
        let prepared = stream.set_nodelay(true).and_then(|()| stream.local_addr());
        let Ok(address) = prepared else { return };
        let local = LocalAddress { address, tls: self.tls.is_some() };
        let stream = StallTimeout::new(stream, WRITE_STALL_TIMEOUT);
        let Some(tls) = &self.tls else { return self.converse(stream, local).await };
        let handshake = tokio::time::timeout(TLS_HANDSHAKE_TIMEOUT, tls.accept(stream));
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            accepted = handshake => match accepted {
                Ok(Ok(stream)) => self.converse(stream, local).await,
                Ok(Err(error)) => tracing::debug!(listener = self.listen.name, %error, "a TLS handshake failed"),
                Err(_) => tracing::debug!(listener = self.listen.name, "a TLS handshake took too long"),
            }
        }
    }

    async fn converse(&self, stream: impl AsyncRead + AsyncWrite + Unpin, local: LocalAddress) {
        let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(local);
            self.router.clone().oneshot(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_READ_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let mut draining = false;
        loop {
            tokio::select! {
                () = self.cut.cancelled() => return,
                () = self.shutdown.cancelled(), if !draining => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(listener = self.listen.name, %error, "a connection ended early");
                    }
                    return;
                }
            }
        }
    }
}

//! The seam over turmoil's simulated TCP, for tests of whole nodes in simulated time.
//!
//! The second real implementation of [`Network`]: every stream is a TCP connection that begins with
//! who opens it and why. No encryption and no proof of identity: in a simulation nobody lies.
//! Otherwise it keeps the promises of the first one: a bounded queue per lane reserved before the
//! stream is accepted, kept connections with a heartbeat,
//! typed errors.
//!
//! To be made inside a turmoil host; its tasks die with the host.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::broadcast;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use turmoil::net::{TcpListener, TcpStream};

use crate::error::OpenError;
use crate::host::addresses;
use crate::host::board::Board;
use crate::lane::Lane;
use crate::network::{KnownPeer, Network, PeerEvent, TransportKind};
use crate::stream::{ByteStream, IncomingSenders, IncomingStream, IncomingStreams};

/// As the heartbeat of the production host, but a beat each second: a full mesh of a hundred nodes
/// has ten thousand of them.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// A dial with its greeting.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// As in production.
const QUEUE_WAIT: Duration = Duration::from_millis(500);

const CONNECTION: u8 = 0xff;
const ACCEPTED: u8 = 1;
const BUSY: u8 = 2;
const UNSUPPORTED: u8 = 3;
/// A PeerId is a hash of at most this many bytes.
const PEER_ID_BYTES_MAX: usize = 64;

/// A network inside a turmoil host.
pub struct SimulatedNetwork {
    inner: Arc<Inner>,
}

struct Inner {
    board: Board,
    queues: IncomingSenders,
    connections: Mutex<HashMap<PeerId, Vec<CancellationToken>>>,
    /// One dial per peer at a time; the others wait for its outcome.
    dials: Mutex<HashMap<PeerId, Arc<tokio::sync::Mutex<()>>>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl SimulatedNetwork {
    /// Starts a network. With a socket others can dial it there; without one it is a client.
    pub async fn start(
        keypair: Keypair,
        listen: Option<SocketAddr>,
        lanes: &[Lane],
    ) -> io::Result<(Arc<Self>, IncomingStreams)> {
        let (queues, incoming) = IncomingStreams::channel(lanes);
        let inner = Arc::new(Inner {
            board: Board::new(keypair),
            queues,
            connections: Mutex::default(),
            dials: Mutex::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        if let Some(socket) = listen {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, socket.port())).await?;
            inner.board.advertise(vec![multiaddr(socket)]);
            inner.tasks.spawn(Arc::clone(&inner).accept(listener));
        }
        Ok((Arc::new(Self { inner }), incoming))
    }
}

/// The address of a simulated node.
pub fn multiaddr(socket: SocketAddr) -> Multiaddr {
    Multiaddr::from(socket.ip()).with(Protocol::Tcp(socket.port()))
}

fn socket(address: &Multiaddr) -> Option<SocketAddr> {
    let (address, _) = addresses::parse(address);
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        // turmoil's own names.
        Protocol::Dns(name) | Protocol::Dns4(name) => turmoil::lookup(name.as_ref()),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}

impl Inner {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            if let Ok((stream, _)) = accepted {
                self.tasks.spawn(timeout(DIAL_TIMEOUT, Arc::clone(&self).greet(stream)));
            }
        }
    }

    /// The listener's side of a new stream.
    async fn greet(self: Arc<Self>, mut stream: TcpStream) -> io::Result<()> {
        let purpose = stream.read_u8().await?;
        let peer = read_peer(&mut stream).await?;
        write_peer(&mut stream, self.board.local()).await?;
        if purpose == CONNECTION {
            stream.write_u8(ACCEPTED).await?;
            self.keep(peer, stream);
            return Ok(());
        }
        let lane = Lane::ALL.into_iter().find(|lane| lane.index() == usize::from(purpose));
        let queue = lane.and_then(|lane| Some((lane, self.queues.sender(lane)?)));
        let Some((lane, queue)) = queue else { return stream.write_u8(UNSUPPORTED).await };
        match timeout(QUEUE_WAIT, queue.reserve()).await {
            Ok(Ok(place)) => {
                stream.write_u8(ACCEPTED).await?;
                place.send(IncomingStream { peer, lane, stream: ByteStream::new(peer, lane, stream) });
                Ok(())
            }
            _ => stream.write_u8(BUSY).await,
        }
    }

    /// The dialer's side: who answered, and the stream once it was accepted.
    async fn dial(&self, address: &Multiaddr, purpose: u8) -> io::Result<(PeerId, u8, TcpStream)> {
        let socket = socket(address).ok_or(io::ErrorKind::Unsupported)?;
        let mut stream = TcpStream::connect(socket).await?;
        stream.write_u8(purpose).await?;
        write_peer(&mut stream, self.board.local()).await?;
        let peer = read_peer(&mut stream).await?;
        let verdict = stream.read_u8().await?;
        Ok((peer, verdict, stream))
    }

    async fn dial_for(
        &self,
        addresses: &[Multiaddr],
        expected: Option<PeerId>,
        purpose: u8,
    ) -> Result<(PeerId, u8, TcpStream), OpenError> {
        let mut outcome = Err(expected.map_or(OpenError::Closed, OpenError::NoAddress));
        for address in addresses {
            let dialed = timeout(DIAL_TIMEOUT, self.dial(address, purpose)).await;
            outcome = match dialed.unwrap_or(Err(io::ErrorKind::TimedOut.into())) {
                Ok((obtained, ..)) if obtained == self.board.local() => {
                    Err(OpenError::LocalPeer(address.clone()))
                }
                Ok((obtained, verdict, stream)) => match expected {
                    Some(expected) if expected != obtained => {
                        self.board.remove(expected, address);
                        Err(OpenError::WrongPeer { expected, obtained, address: address.clone() })
                    }
                    _ => {
                        self.board.proved(obtained, address);
                        return Ok((obtained, verdict, stream));
                    }
                },
                Err(error) => Err(OpenError::Unreachable {
                    addresses: addresses.to_vec(),
                    reason: error.to_string(),
                    timed_out: error.kind() == io::ErrorKind::TimedOut,
                }),
            };
        }
        outcome
    }

    /// Keeps a connection until the peer falls silent or either side closes it.
    fn keep(self: &Arc<Self>, peer: PeerId, stream: TcpStream) {
        let token = self.stop.child_token();
        {
            let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
            connections.entry(peer).or_default().push(token.clone());
            self.board.set_connected(peer, Some(TransportKind::Tcp));
        }
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            token.run_until_cancelled(inner.beat(peer, stream)).await;
            // Marks this one as over for the count below.
            token.cancel();
            let mut connections = inner.connections.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(kept) = connections.get_mut(&peer) else { return };
            kept.retain(|token| !token.is_cancelled());
            if kept.is_empty() {
                connections.remove(&peer);
                inner.board.set_connected(peer, None);
            }
        });
    }

    async fn beat(&self, peer: PeerId, stream: TcpStream) {
        let heard = self.board.last_heard(peer);
        let (mut reader, mut writer) = stream.into_split();
        let mut deadline = Instant::now() + SILENCE_MAX;
        let mut beats = tokio::time::interval(BEAT_INTERVAL);
        let mut byte = [0];
        loop {
            tokio::select! {
                read = reader.read(&mut byte) => match read {
                    Ok(1..) => {
                        heard.now();
                        deadline = Instant::now() + SILENCE_MAX;
                    }
                    _ => return,
                },
                _ = beats.tick() => {
                    if writer.write_all(&[0]).await.is_err() {
                        return;
                    }
                }
                () = sleep_until(deadline) => return,
            }
        }
    }

    /// In a task of its own: a caller that is not polled any more, as a channel whose request was given up,
    /// would keep its turn to dial for ever.
    async fn reach(self: &Arc<Self>, peer: PeerId) -> Result<(), OpenError> {
        let reached = self.tasks.spawn(Arc::clone(self).dial_in_turn(peer)).await;
        reached.unwrap_or(Err(OpenError::ShutDown))
    }

    async fn dial_in_turn(self: Arc<Self>, peer: PeerId) -> Result<(), OpenError> {
        if self.stop.is_cancelled() {
            return Err(OpenError::ShutDown);
        }
        let turn = {
            let mut dials = self.dials.lock().unwrap_or_else(PoisonError::into_inner);
            dials.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(dials.entry(peer).or_default())
        };
        let _turn = turn.lock().await;
        if self.board.is_connected(peer) {
            return Ok(());
        }
        let addresses = self.board.addresses(peer);
        let (_, _, stream) =
            self.dial_for(&addresses, Some(peer), CONNECTION).await.inspect_err(|error| {
                self.board.dial_failed(error);
            })?;
        self.keep(peer, stream);
        Ok(())
    }
}

async fn write_peer(stream: &mut TcpStream, peer: PeerId) -> io::Result<()> {
    let bytes = peer.to_bytes();
    stream.write_u8(u8::try_from(bytes.len()).map_err(io::Error::other)?).await?;
    stream.write_all(&bytes).await
}

async fn read_peer(stream: &mut TcpStream) -> io::Result<PeerId> {
    let length = usize::from(stream.read_u8().await?);
    let mut bytes = vec![0; length.min(PEER_ID_BYTES_MAX)];
    stream.read_exact(&mut bytes).await?;
    PeerId::from_bytes(&bytes).map_err(io::Error::other)
}

#[async_trait]
impl Network for SimulatedNetwork {
    fn local_peer(&self) -> PeerId {
        self.inner.board.local()
    }

    fn listen_addresses(&self) -> Vec<Multiaddr> {
        self.inner.board.advertised()
    }

    async fn open(&self, peer: PeerId, lane: Lane) -> Result<ByteStream, OpenError> {
        if peer == self.local_peer() {
            return Err(OpenError::LocalPeer(Multiaddr::empty().with(Protocol::P2p(peer))));
        }
        self.inner.reach(peer).await?;
        let purpose = u8::try_from(lane.index()).expect("there are few lanes");
        let addresses = self.inner.board.addresses(peer);
        if addresses.is_empty() {
            // Connected, and nowhere to be dialed: a client, which serves nothing.
            return Err(OpenError::Unsupported(lane));
        }
        let (_, verdict, stream) = self.inner.dial_for(&addresses, Some(peer), purpose).await?;
        match verdict {
            ACCEPTED => Ok(ByteStream::new(peer, lane, stream)),
            UNSUPPORTED => Err(OpenError::Unsupported(lane)),
            _ => Err(OpenError::Busy(lane)),
        }
    }

    async fn connect(&self, address: &Multiaddr) -> Result<PeerId, OpenError> {
        let (dialed, expected) = addresses::parse(address);
        if expected == Some(self.local_peer()) {
            return Err(OpenError::LocalPeer(address.clone()));
        }
        if !addresses::is_dialable(&dialed) {
            let reason = "it names no host, or no transport that this node speaks".to_owned();
            return Err(OpenError::InvalidAddress { address: address.to_string(), reason });
        }
        let known = match expected {
            Some(peer) => self.inner.board.is_connected(peer).then_some(peer),
            None => self.inner.board.connected_at(&dialed),
        };
        if let Some(peer) = known {
            return Ok(peer);
        }
        let outcome = self.inner.dial_for(&[dialed], expected, CONNECTION).await;
        let (peer, _, stream) = outcome.inspect_err(|error| self.inner.board.dial_failed(error))?;
        // A surplus connection closes when its stream is dropped here.
        if !self.inner.board.is_connected(peer) {
            self.inner.keep(peer, stream);
        }
        Ok(peer)
    }

    async fn reach(&self, peer: PeerId) -> Result<(), OpenError> {
        self.inner.reach(peer).await
    }

    async fn disconnect(&self, peer: PeerId) {
        let mut events = self.watch_peers();
        {
            let connections = self.inner.connections.lock().unwrap_or_else(PoisonError::into_inner);
            connections.get(&peer).into_iter().flatten().for_each(CancellationToken::cancel);
        }
        while self.is_connected(peer) && events.recv().await.is_ok() {}
    }

    fn learn(&self, peer: PeerId, addresses: &[Multiaddr]) {
        self.inner.board.learn(peer, addresses);
    }

    fn forget(&self, peer: PeerId) {
        self.inner.board.forget(peer);
    }

    fn peers(&self) -> Vec<KnownPeer> {
        self.inner.board.known()
    }

    fn is_connected(&self, peer: PeerId) -> bool {
        self.inner.board.is_connected(peer)
    }

    fn watch_peers(&self) -> broadcast::Receiver<PeerEvent> {
        self.inner.board.watch()
    }

    fn stats(&self) -> crate::stats::NetworkStats {
        self.inner.board.counters.read()
    }

    fn own_record(&self) -> Option<Vec<u8>> {
        self.inner.board.record()
    }

    async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl Drop for SimulatedNetwork {
    fn drop(&mut self) {
        self.inner.stop.cancel();
    }
}

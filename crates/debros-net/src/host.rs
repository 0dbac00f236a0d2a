//! The production network: a libp2p host behind the [`Network`] seam.
//!
//! [`transport`] makes connections, [`admission`] lets them in, [`lanes`] decides which are kept and
//! opens streams on them, [`driver`] owns the swarm, [`board`] is what callers read without asking
//! the swarm.
//!
//! Invariants: nothing outside this folder touches a swarm; a start that fails leaves nothing
//! behind; every queue is bounded.

pub(crate) mod address_book;
pub(crate) mod addresses;
mod admission;
pub(crate) mod board;
mod carrier;
mod driver;
mod failure;
mod lanes;
mod listen;
mod protocols;
mod transport;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::error::OpenError;
use crate::lane::Lane;
use crate::network::{KnownPeer, Network, PeerEvent};
use crate::secret::ClusterSecret;
use crate::stats::NetworkStats;
use crate::stream::{ByteStream, IncomingStreams};
use admission::Admission;
use board::Board;
use driver::{Command, Driver};
use lanes::OpenRequest;

pub use listen::HostError;

/// Commands that wait for the swarm's task, which answers each within microseconds.
const COMMANDS_MAX: usize = 1024;
/// The longest that opening a stream or a connection takes: names, several addresses, handshakes.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// A connection that went away while a stream was being opened is tried again after this pause.
const REOPEN_PAUSE: Duration = Duration::from_millis(20);
/// So often, the pause doubling: a race between two dials is over by then.
const REOPEN_ATTEMPTS: u32 = 5;

/// Whether others can dial this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostRole {
    /// A node: listens, serves the DHT.
    Node,
    /// An SDK client: dials only.
    Client,
}

/// What a host is started with.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// This node's identity.
    pub keypair: Keypair,
    /// Where to listen; `/quic` is read as `/quic-v1`, port 0 takes a free one.
    pub listen: Vec<Multiaddr>,
    /// What peers must prove to know; `None` admits everybody that has none either.
    pub secret: Option<ClusterSecret>,
    /// Node or client.
    pub role: HostRole,
    /// The lanes that this process serves.
    pub lanes: Vec<Lane>,
    /// Connections from others. A full mesh of 200 nodes takes up to 400.
    pub connections_max: u32,
    /// The protocol name of the DHT, such as `/debros/kad/1.0.0`; `None` switches it off.
    pub dht: Option<String>,
    /// Whether to find nodes on the local network by multicast DNS.
    pub mdns: bool,
}

impl HostConfig {
    /// A node's defaults: every lane, no secret, no multicast, no DHT.
    pub fn node(keypair: Keypair, listen: Vec<Multiaddr>) -> Self {
        Self {
            keypair,
            listen,
            secret: None,
            role: HostRole::Node,
            lanes: Lane::ALL.to_vec(),
            connections_max: CONNECTIONS_MAX_DEFAULT,
            dht: None,
            mdns: false,
        }
    }

    /// A client's defaults: listens nowhere, serves nothing.
    pub fn client(keypair: Keypair) -> Self {
        Self { role: HostRole::Client, lanes: Vec::new(), ..Self::node(keypair, Vec::new()) }
    }
}

/// A full mesh with both connections, and as many clients.
const CONNECTIONS_MAX_DEFAULT: u32 = 1024;

/// A running libp2p host. Dropping it closes everything at once; [`Network::shutdown`] says goodbye.
pub struct Host {
    board: Arc<Board>,
    commands: mpsc::Sender<Command>,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    task: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Host {
    /// Starts listening. Returns once every listener has an address.
    pub async fn start(config: HostConfig) -> Result<(Arc<Self>, IncomingStreams), HostError> {
        let board = Arc::new(Board::new(config.keypair.clone()));
        let limit = u64::from(config.connections_max);
        board.counters.connections_incoming_max.store(limit, Ordering::Relaxed);
        let (senders, incoming) = IncomingStreams::channel(&config.lanes);
        let dht = protocols::dht_name(config.dht.as_deref())?;
        let admission = Admission { local: board.local(), secret: config.secret.clone() };
        let transport = transport::build(&config.keypair, admission).map_err(|_| HostError::Keypair)?;
        let behaviour = protocols::build(&config, dht.clone(), Arc::clone(&board), senders);
        let mut swarm = protocols::swarm(transport, behaviour, board.local());
        let early = listen::listen(&mut swarm, &config.listen).await?;
        let listens = config.role == HostRole::Node;
        let mut driver = Driver::new(swarm, Arc::clone(&board), dht, listens);
        early.into_iter().for_each(|event| driver.on_event(event));
        driver.advertise();
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(driver.run(receiver, stopped));
        let host =
            Self { board, commands, stop: Mutex::new(Some(stop)), task: tokio::sync::Mutex::new(Some(task)) };
        Ok((Arc::new(host), incoming))
    }

    /// Asks the swarm's task and waits for its answer. Whatever broke off before anything was handed
    /// out is tried again.
    async fn ask<T>(
        &self,
        command: impl Fn(oneshot::Sender<Result<T, OpenError>>) -> Command,
    ) -> Result<T, OpenError> {
        let deadline = Instant::now() + OPEN_TIMEOUT;
        let mut pause = REOPEN_PAUSE;
        for attempt in 1..=REOPEN_ATTEMPTS {
            let (reply, answer) = oneshot::channel();
            let asked = async {
                self.commands.send(command(reply)).await.map_err(|_| OpenError::ShutDown)?;
                answer.await.unwrap_or(Err(OpenError::Closed))
            };
            let outcome = tokio::time::timeout_at(deadline, asked).await;
            match outcome.unwrap_or(Err(OpenError::Timeout(OPEN_TIMEOUT))) {
                Err(OpenError::Closed) if self.commands.is_closed() => return Err(OpenError::ShutDown),
                Err(OpenError::Closed) if attempt < REOPEN_ATTEMPTS => {
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
                    pause *= 2;
                }
                outcome => return outcome,
            }
        }
        Err(OpenError::Closed)
    }
}

#[async_trait]
impl Network for Host {
    fn local_peer(&self) -> PeerId {
        self.board.local()
    }

    fn listen_addresses(&self) -> Vec<Multiaddr> {
        self.board.advertised()
    }

    async fn open(&self, peer: PeerId, lane: Lane) -> Result<ByteStream, OpenError> {
        if peer == self.board.local() {
            return Err(OpenError::LocalPeer(
                Multiaddr::empty().with(libp2p::multiaddr::Protocol::P2p(peer)),
            ));
        }
        self.ask(|reply| Command::Open(peer, OpenRequest { lane, reply })).await
    }

    async fn connect(&self, address: &Multiaddr) -> Result<PeerId, OpenError> {
        let (dialed, expected) = addresses::parse(address);
        if expected == Some(self.board.local()) {
            return Err(OpenError::LocalPeer(address.clone()));
        }
        if !addresses::is_dialable(&dialed) {
            return Err(OpenError::InvalidAddress {
                address: address.to_string(),
                reason: "it names no host, or no transport that this node speaks".to_owned(),
            });
        }
        self.ask(|reply| Command::Connect(dialed.clone(), expected, reply)).await
    }

    async fn reach(&self, peer: PeerId) -> Result<(), OpenError> {
        self.ask(|reply| Command::Reach(peer, reply)).await.map(|_| ())
    }

    async fn disconnect(&self, peer: PeerId) {
        let (reply, closed) = oneshot::channel();
        if self.commands.send(Command::Disconnect(peer, reply)).await.is_ok() {
            // An error says that the whole host is gone, and the connection with it.
            let _ = closed.await;
        }
    }

    fn learn(&self, peer: PeerId, addresses: &[Multiaddr]) {
        self.board.learn(peer, addresses);
    }

    fn forget(&self, peer: PeerId) {
        self.board.forget(peer);
    }

    fn peers(&self) -> Vec<KnownPeer> {
        self.board.known()
    }

    fn is_connected(&self, peer: PeerId) -> bool {
        self.board.is_connected(peer)
    }

    fn watch_peers(&self) -> broadcast::Receiver<PeerEvent> {
        self.board.watch()
    }

    fn stats(&self) -> NetworkStats {
        self.board.counters.read()
    }

    fn own_record(&self) -> Option<Vec<u8>> {
        self.board.record()
    }

    async fn shutdown(&self) {
        let stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(stop) = stop {
            let _ = stop.send(());
        }
        // Held while waiting, so that everybody who asks for a shutdown returns after it.
        let mut task = self.task.lock().await;
        if let Some(task) = task.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the network's task ended badly");
        }
    }
}

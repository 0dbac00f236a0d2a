//! Building a client: settings, the network below it, and the first connection. Every mistake in
//! the settings is found before anything is dialed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use debros_net::{Multiaddr, Network, OpenError, PeerId};
use debros_proto::{Namespace, limits};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use crate::address;
use crate::call;
use crate::client::Client;
use crate::database::Consistency;
use crate::error::{Error, ErrorKind};
use crate::host::{self, HostSettings};
use crate::refresh;
use crate::shared::{Settings, Shared};

/// One attempt to connect takes at most this long, unless the builder says otherwise.
pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Attempts to connect.
pub const ATTEMPTS_DEFAULT: u32 = 3;
/// The pause between attempts to connect.
pub const RETRY_DELAY_DEFAULT: Duration = Duration::from_secs(5);
/// One operation takes at most this long, with all its retries.
pub const OPERATION_TIMEOUT_MAX: Duration = limits::REQUEST_TIMEOUT_MAX;

/// Learning the other members is worth this much of the time to connect. A node that has not joined a
/// cluster yet is asked again and again for as long.
const FIRST_REFRESH_TIMEOUT: Duration = Duration::from_millis(500);

/// Builds a [`Client`].
#[must_use = "a builder does nothing until `connect` is awaited"]
pub struct ClientBuilder {
    application: String,
    bootstrap_peers: Vec<String>,
    connect_timeout: Duration,
    attempts: u32,
    retry_delay: Duration,
    operation_timeout: Duration,
    consistency: Consistency,
    host: HostSettings,
    network: Option<Arc<dyn Network>>,
}

impl ClientBuilder {
    pub(crate) fn new(application: String) -> Self {
        Self {
            application,
            bootstrap_peers: Vec::new(),
            connect_timeout: CONNECT_TIMEOUT_DEFAULT,
            attempts: ATTEMPTS_DEFAULT,
            retry_delay: RETRY_DELAY_DEFAULT,
            operation_timeout: limits::REQUEST_TIMEOUT_DEFAULT,
            consistency: Consistency::default(),
            host: HostSettings::default(),
            network: None,
        }
    }

    /// Multiaddrs of nodes to begin with; one that answers is enough, the others are found through
    /// it. With `/p2p/<peer id>` at its end an address accepts that peer only. Adds to those given before.
    pub fn bootstrap_peers<A: Into<String>>(mut self, addresses: impl IntoIterator<Item = A>) -> Self {
        self.bootstrap_peers.extend(addresses.into_iter().map(Into::into));
        self
    }

    /// The file with the cluster secret, where the cluster asks for one.
    pub fn cluster_secret_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.host.secret_file = Some(path.into());
        self
    }

    /// The cluster secret itself; it wins over a file.
    pub fn cluster_secret(mut self, secret: impl Into<Vec<u8>>) -> Self {
        self.host.secret = Some(secret.into());
        self
    }

    /// A folder in which this client keeps its identity, so that it is the same peer every time.
    /// Without one a client is a new peer each time it is built. A folder serves one client at a time:
    /// nodes keep one connection per peer.
    pub fn identity_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.host.identity_folder = Some(folder.into());
        self
    }

    /// How long one attempt to connect may take; 30 s by default.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How often to try to connect; 3 by default.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// The pause between attempts to connect; 5 s by default.
    pub fn retry_delay(mut self, delay: Duration) -> Self {
        self.retry_delay = delay;
        self
    }

    /// How long one operation may take with all its retries; 10 s by default, at most
    /// [`OPERATION_TIMEOUT_MAX`].
    pub fn operation_timeout(mut self, timeout: Duration) -> Self {
        self.operation_timeout = timeout.min(OPERATION_TIMEOUT_MAX);
        self
    }

    /// How fresh reads are unless a call says otherwise; linearizable by default.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = consistency;
        self
    }

    /// Advanced: a network made elsewhere, a simulated one for example. It is shared, so closing the
    /// client leaves it open; the settings of secret and identity are its maker's business.
    pub fn network(mut self, network: Arc<dyn Network>) -> Self {
        self.network = Some(network);
        self
    }

    /// Connects to the first bootstrap peer that answers.
    ///
    /// # Errors
    /// `InvalidArgument` for a malformed name or address, or a wrong peer at an address; `WrongCluster`
    /// when the cluster secret is missing or wrong; `Unreachable` when nobody answered in any attempt.
    pub async fn connect(self) -> Result<Client, Error> {
        let namespace = Namespace::new(&self.application)?;
        let bootstrap: Vec<Multiaddr> =
            self.bootstrap_peers.iter().map(|address| address::parse(address)).collect::<Result<_, _>>()?;
        if bootstrap.is_empty() {
            return Err(Error::invalid(
                "no bootstrap peer was given; name at least one node, like /ip4/127.0.0.1/tcp/4001",
            ));
        }
        let owns_network = self.network.is_none();
        let network = match self.network {
            Some(network) => network,
            None => host::start(&self.host).await?,
        };
        let settings = Settings {
            operation_timeout: self.operation_timeout,
            consistency: self.consistency,
            bootstrap: bootstrap.clone(),
        };
        let first = FirstConnection {
            network: &*network,
            addresses: &bootstrap,
            timeout: self.connect_timeout,
            attempts: self.attempts,
            retry_delay: self.retry_delay,
        };
        let connected = first.establish().await;
        let peer = match connected {
            Ok(peer) => peer,
            Err(error) => {
                if owns_network {
                    network.shutdown().await;
                }
                return Err(error);
            }
        };
        let shared = Arc::new(Shared::new(namespace, settings, network));
        shared.nodes().learn(peer);
        shared.nodes().answered(peer);
        // Before the first operation, or the death of the only known node would be the end.
        refresh::refresh(&shared, FIRST_REFRESH_TIMEOUT).await;
        let tasks = TaskTracker::new();
        tasks.spawn(refresh::keep_fresh(Arc::clone(&shared)));
        Ok(Client::new(shared, tasks, owns_network))
    }
}

/// Finding one bootstrap peer that answers.
struct FirstConnection<'n> {
    network: &'n dyn Network,
    addresses: &'n [Multiaddr],
    timeout: Duration,
    attempts: u32,
    retry_delay: Duration,
}

impl FirstConnection<'_> {
    async fn establish(&self) -> Result<PeerId, Error> {
        for attempt in 1.. {
            let errors = match self.dial_all().await {
                Ok(peer) => return Ok(peer),
                Err(errors) => errors,
            };
            let hopeless = errors.iter().all(|(_, error)| !error.is_retryable());
            if hopeless || attempt >= self.attempts {
                return Err(refusal(errors, attempt));
            }
            tracing::debug!(attempt, "no bootstrap peer answered");
            sleep(self.retry_delay).await;
        }
        unreachable!("the loop returns at the last attempt")
    }

    /// Dials all addresses at once; the first that answers counts.
    async fn dial_all(&self) -> Result<PeerId, Vec<(Multiaddr, OpenError)>> {
        let dials = self.addresses.iter().map(|address| async move {
            let dialed = timeout(self.timeout, self.network.connect(address)).await;
            (address.clone(), dialed.unwrap_or(Err(OpenError::Timeout(self.timeout))))
        });
        let mut dials: FuturesUnordered<_> = dials.collect();
        let mut errors = Vec::new();
        while let Some((address, dialed)) = dials.next().await {
            match dialed {
                Ok(peer) => return Ok(peer),
                Err(error) => errors.push((address, error)),
            }
        }
        Err(errors)
    }
}

/// One error for all dials: the kind of the first that no retry would mend, else unreachable.
fn refusal(errors: Vec<(Multiaddr, OpenError)>, attempts: u32) -> Error {
    let told: Vec<String> = errors.iter().map(|(address, error)| told(address, error)).collect();
    let decisive = errors.into_iter().map(|(_, error)| error).find(|error| !error.is_retryable());
    let kind = decisive.map_or(ErrorKind::Unreachable, |error| call::unreachable(error).kind());
    let tries = if attempts == 1 { "1 attempt".to_owned() } else { format!("{attempts} attempts") };
    Error::new(kind, format!("no bootstrap peer could be reached in {tries}: {}", told.join("; ")))
}

/// A dial's error; most name the address themselves.
fn told(address: &Multiaddr, error: &OpenError) -> String {
    let (address, error) = (address.to_string(), error.to_string());
    if error.contains(&address) { error } else { format!("{address}: {error}") }
}

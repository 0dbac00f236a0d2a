//! A cluster of real nodes in this process, each launched from a configuration as the program does
//! it, and what tests ask of it. It decides nothing about what is right.
//!
//! Every start of a node takes free ports, so every restart is a change of address.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;

use debros_config::{Config, Interval, NodeType, Tracing};
use debros_node::clock::Clock;
use debros_node::launch::{LaunchError, Launched, launch_under};
use debros_node::node::Settings;
use debros_sdk::{Client, ClientBuilder, Consistency, Database, ReadOptions, params};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

/// Conditions are waited for at most this long: a dev build on two noisy cores needs a tenth of it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// How often a condition that nothing announces is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// More at a time only slow each other down, until elections fail for want of a processor.
static TURNS: Semaphore = Semaphore::const_new(2);

/// Waits until `look` gives `Ok`.
///
/// # Panics
/// After [`DEADLINE`], with the last reason why not.
pub(crate) async fn eventually<T, E: Debug>(what: &str, mut look: impl AsyncFnMut() -> Result<T, E>) -> T {
    let started = Instant::now();
    loop {
        // A look that hangs is a condition that does not hold.
        let reason = match timeout(DEADLINE, look()).await {
            Ok(Ok(found)) => return found,
            Ok(Err(reason)) => format!("{reason:?}"),
            Err(_) => "the look itself did not end".to_owned(),
        };
        assert!(started.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}: {reason}");
        tokio::time::sleep(LOOK_EVERY).await; // poll: the condition of the caller
    }
}

/// Gives `Ok` where `found` is what is expected; for [`eventually`].
pub(crate) fn expect<T: PartialEq + Debug>(found: T, expected: &T) -> Result<(), String> {
    if found == *expected { Ok(()) } else { Err(format!("{found:?} instead of {expected:?}")) }
}

/// What tests may change about every node: beyond what a configuration can say.
pub(crate) type Adjust = fn(&mut Settings);

/// A configuration of a node under `folder` that listens on free ports of loopback.
pub(crate) fn configuration(folder: &Path, bootstrap: &[String]) -> Config {
    let mut config = Config::default();
    config.node.data_dir = folder.to_owned();
    config.node.node_type = if bootstrap.is_empty() { NodeType::Bootstrap } else { NodeType::Node };
    config.node.listen_addresses = vec!["/ip4/127.0.0.1/tcp/0".parse().expect("an address")];
    config.database.rqlite_port = 0;
    config.admin.port = 0;
    config.discovery.bootstrap_peers =
        bootstrap.iter().map(|address| address.parse().expect("an address")).collect();
    config.discovery.discovery_interval = "1s".parse().expect("an interval");
    // Tests of it switch it on.
    config.admin.probe_interval = "0s".parse().expect("an interval");
    config
}

/// Where a node can be dialed.
pub(crate) fn address_of(node: &Launched) -> String {
    node.node.addresses().first().expect("a node listens").to_string()
}

/// A place for a node, running or not.
struct Place {
    config: Config,
    clock: Clock,
    running: Option<Launched>,
}

/// Nodes of one cluster.
pub(crate) struct Cluster {
    places: Vec<Place>,
    adjust: Adjust,
    probe_interval: Interval,
    secret: Option<PathBuf>,
    tracing: Tracing,
    folder: TempDir,
    _turn: SemaphorePermit<'static>,
}

impl Cluster {
    /// No node yet.
    pub(crate) async fn empty() -> Self {
        log_for_people();
        let turn = TURNS.acquire().await.expect("never closed");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let probe_interval = Interval::from_seconds(0);
        let tracing = Tracing::default();
        Self {
            places: Vec::new(),
            adjust: |_| {},
            probe_interval,
            secret: None,
            tracing,
            folder,
            _turn: turn,
        }
    }

    /// No node yet; those that come probe several times a second.
    pub(crate) async fn probing() -> Self {
        Self { probe_interval: Interval::from_milliseconds(300), ..Self::empty().await }
    }

    /// A cluster of so many nodes, all members and connected.
    pub(crate) async fn of(nodes: usize) -> Self {
        Self::adjusted(nodes, |_| {}).await
    }

    /// The same with settings of the test's own.
    pub(crate) async fn adjusted(nodes: usize, adjust: Adjust) -> Self {
        let mut cluster = Self { adjust, ..Self::empty().await };
        for _ in 0..nodes {
            cluster.add().await;
        }
        cluster.formed().await;
        cluster
    }

    /// The same with a cluster secret.
    pub(crate) async fn closed(nodes: usize, secret: &[u8]) -> Self {
        let mut cluster = Self::empty().await;
        let file = cluster.folder.path().join("secret");
        std::fs::write(&file, secret).expect("a file");
        cluster.secret = Some(file);
        for _ in 0..nodes {
            cluster.add().await;
        }
        cluster.formed().await;
        cluster
    }

    /// The same whose nodes trace.
    pub(crate) async fn traced(nodes: usize, tracing: Tracing) -> Self {
        let mut cluster = Self { tracing, ..Self::empty().await };
        for _ in 0..nodes {
            cluster.add().await;
        }
        cluster.formed().await;
        cluster
    }

    /// The folder under which everything of the cluster is.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts one node more; the first one begins the cluster.
    pub(crate) async fn add(&mut self) -> usize {
        self.add_under(Clock::system()).await
    }

    /// The same under a clock of its own.
    pub(crate) async fn add_under(&mut self, clock: Clock) -> usize {
        let index = self.places.len();
        let folder = self.folder.path().join(format!("node-{index}"));
        let bootstrap: Vec<String> = self.running().next().map(address_of).into_iter().collect();
        let mut config = configuration(&folder, &bootstrap);
        config.security.cluster_secret_file.clone_from(&self.secret);
        config.tracing.clone_from(&self.tracing);
        config.admin.probe_interval = self.probe_interval;
        self.places.push(Place { config, clock, running: None });
        self.start(index).await.expect("the node starts");
        index
    }

    /// Starts the node at a place as it was configured.
    pub(crate) async fn start(&mut self, index: usize) -> Result<(), LaunchError> {
        let place = &mut self.places[index];
        assert!(place.running.is_none(), "node {index} runs");
        place.running = Some(launch_under(&place.config, place.clock.clone(), self.adjust).await?);
        Ok(())
    }

    /// Starts the node at a place, told where a running node is now: of nodes that have all moved,
    /// somebody has to know one.
    pub(crate) async fn start_told(&mut self, index: usize) {
        let running = self.running().next().map(address_of);
        if let Some(address) = running {
            self.places[index].config.discovery.bootstrap_peers = vec![address.parse().expect("an address")];
        }
        self.start(index).await.expect("the node starts");
    }

    /// Stops the node at a place, as SIGTERM does.
    pub(crate) async fn stop(&mut self, index: usize) {
        let node = self.places[index].running.take().expect("the node runs");
        node.shutdown().await;
    }

    /// A running node.
    pub(crate) fn node(&self, index: usize) -> &Launched {
        self.places[index].running.as_ref().expect("the node runs")
    }

    /// The configuration with which the node at a place starts next.
    pub(crate) fn config(&mut self, index: usize) -> &mut Config {
        &mut self.places[index].config
    }

    /// The running nodes, by place.
    pub(crate) fn running(&self) -> impl Iterator<Item = &Launched> {
        self.places.iter().filter_map(|place| place.running.as_ref())
    }

    /// The node id of a running node.
    pub(crate) async fn id(&self, index: usize) -> u64 {
        let joined = timeout(DEADLINE, self.node(index).node.joined()).await;
        joined.expect("the node becomes a member").node().0
    }

    /// The place of a running node by its id.
    pub(crate) async fn place_of(&self, id: u64) -> usize {
        for (index, place) in self.places.iter().enumerate() {
            if place.running.is_some() && self.id(index).await == id {
                return index;
            }
        }
        panic!("no running node has the id {id}");
    }

    /// Waits until every running node is a member, knows all members and is connected to all.
    pub(crate) async fn formed(&self) {
        let count = self.running().count();
        for node in self.running() {
            eventually("every node knows all members and a leader", async || {
                let joined =
                    timeout(DEADLINE, node.node.joined()).await.map_err(|_| "not a member".to_owned())?;
                let (map, meta) = (joined.map(), joined.meta().status());
                let found =
                    (map.members().count(), meta.leader.is_some(), node.node.connected_peers() + 1 >= count);
                let known: Vec<_> = map.members().map(|member| (member.id.0, &member.addresses)).collect();
                expect(found, &(count, true, true)).map_err(|reason| {
                    format!("node {}: {reason}: {meta:?}, members {known:?}", joined.node())
                })
            })
            .await;
        }
    }

    /// A client that begins at the node of a place.
    pub(crate) async fn client(&self, index: usize, application: &str) -> Client {
        self.builder([index], application).connect().await.expect("the node lets the client in")
    }

    /// A client that knows every running node from its start.
    pub(crate) async fn client_of_all(&self, application: &str) -> Client {
        let builder = Client::builder(application).bootstrap_peers(self.running().map(address_of));
        self.keyed(builder).connect().await.expect("a node lets the client in")
    }

    /// A client's builder with the addresses of these places.
    pub(crate) fn builder(
        &self,
        places: impl IntoIterator<Item = usize>,
        application: &str,
    ) -> ClientBuilder {
        let addresses = places.into_iter().map(|index| address_of(self.node(index)));
        self.keyed(Client::builder(application).bootstrap_peers(addresses))
    }

    fn keyed(&self, builder: ClientBuilder) -> ClientBuilder {
        match &self.secret {
            Some(file) => builder.cluster_secret_file(file),
            None => builder,
        }
    }

    /// The place of the node that leads the client's default database.
    pub(crate) async fn leader(&self, client: &Client) -> usize {
        let id = eventually("the database has a leader", async || {
            let databases = client.list_databases().await.map_err(|error| error.to_string())?;
            let leader = databases.first().map_or(0, |database| database.leader);
            let mut found = None;
            for node in self.running() {
                let id = node.node.joined().await.node().0;
                found = found.or((id == leader).then_some(id));
            }
            found.ok_or_else(|| format!("{databases:?}"))
        })
        .await;
        self.place_of(id).await
    }

    /// Stops all nodes at once.
    pub(crate) async fn shutdown(self) {
        let running = self.places.into_iter().filter_map(|place| place.running);
        futures::future::join_all(running.map(Launched::shutdown)).await;
    }
}

/// Waits until the replica that the client began at holds these numbers in `written(n)`, in order.
pub(crate) async fn holds(client: &Client, numbers: &[i64]) {
    eventually("the replica holds what was acknowledged", async || {
        let stale = ReadOptions::consistency(Consistency::None);
        let read = client.database().query_with("SELECT n FROM written ORDER BY n", params![], stale).await;
        let found = read.and_then(|rows| rows.rows_as::<i64>()).map_err(|error| error.to_string())?;
        let (count, wanted) = (found.len(), numbers.len());
        if found == numbers { Ok(()) } else { Err(format!("{count} rows instead of {wanted}")) }
    })
    .await;
}

/// Makes the table that [`write`] writes to.
pub(crate) async fn table(client: &Client) {
    let table = "CREATE TABLE written (n INTEGER PRIMARY KEY) WITHOUT ROWID";
    client.database().create_table(table).await.expect("a table");
}

/// Writes one number; the acknowledgement is what counts.
pub(crate) async fn write(client: &Client, number: i64) {
    let inserted = client.database().execute("INSERT INTO written (n) VALUES (?)", params![number]).await;
    assert_eq!(inserted.expect("the write is acknowledged").rows_affected, 1);
}

/// The answer to a GET.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// GET on loopback, one connection a request.
pub(crate) async fn get(address: std::net::SocketAddr, path: &str) -> Answer {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = timeout(DEADLINE, asked).await.expect("an answer in time").expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, body: body.to_owned() }
}

/// An error with all its causes, as a program prints it.
pub(crate) fn whole(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |told, cause| format!("{told}: {cause}"))
}

/// `RUST_LOG` shows what the nodes say.
fn log_for_people() {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "off".to_owned());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer();
    // All tests of this program share one.
    let _ = subscriber.try_init();
}

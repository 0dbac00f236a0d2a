//! A whole cluster in one process, for trying things out: `debros-node dev`.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use debros_config::{Config, Interval, ListenAddress, NodeType, PeerAddress, Transport};
use futures::FutureExt;
use tokio::time::Instant;

use crate::launch::{LaunchError, Launched, launch_with};

/// How the cluster is started.
#[derive(Clone, Debug)]
pub struct DevOptions {
    /// How many nodes.
    pub nodes: usize,
    /// The first node's HTTP port; 0 for free ports everywhere.
    pub first_http_port: u16,
    /// The first node's peer-to-peer port; 0 for free ports everywhere.
    pub first_listen_port: u16,
}

/// Why the cluster did not come up.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// There are not as many ports behind the first one.
    #[error(
        "{option} {first} leaves no port for node {nodes}: choose at most {highest}, or 0 for free ports"
    )]
    Ports {
        /// The option that names the first port.
        option: &'static str,
        /// What it was given.
        first: u16,
        /// How many nodes.
        nodes: usize,
        /// The highest first port that so many nodes can have.
        highest: usize,
    },
    /// The data folder cannot be looked into.
    #[error("the data folder {folder} cannot be read: check its permissions")]
    Folder {
        /// Which.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Some nodes of the folder's cluster would stay away.
    #[error("{folder} has a cluster of {kept} nodes: start all with --nodes {kept}, or name another folder")]
    MoreNodesKept {
        /// The data folder.
        folder: PathBuf,
        /// How many nodes it has.
        kept: usize,
    },
    /// A node could not be started.
    #[error("node {number} could not be started")]
    Launch {
        /// Which, from 1.
        number: usize,
        /// Why.
        #[source]
        source: LaunchError,
    },
    /// The configuration of a node does not hold together.
    #[error("the configuration of node {number} cannot be used: {reason}")]
    Config {
        /// Which, from 1.
        number: usize,
        /// Why.
        reason: String,
    },
    /// A node ended before all were members.
    #[error("node {number} failed: {reason}")]
    Failed {
        /// Which, from 1.
        number: usize,
        /// Why.
        reason: String,
    },
}

/// The nodes of a cluster in this process.
pub struct DevCluster {
    /// In the order they were started; the first one initialised the cluster.
    pub nodes: Vec<Launched>,
    started: Instant,
}

/// Nodes of which each may probe at the default interval.
const NODES_PROBING_AT_ONCE: usize = 3;
/// A segment is written full of zeros when it is made: many nodes on one disk want small ones.
const SEGMENT_BYTES: u64 = 4 << 20;
/// A node's folder is this and its number.
const NODE_FOLDER: &str = "node-";
/// Looks this often whether everybody is there.
const POLL: Duration = Duration::from_millis(50);

/// Starts nodes under `folder`; [`DevCluster::formed`] waits until they are a cluster. Gives nothing
/// when `stop` came first.
///
/// # Errors
/// [`DevError`]; nodes that were started are stopped.
pub async fn start(
    folder: &Path,
    options: &DevOptions,
    mut stop: impl Future<Output = ()> + Unpin,
) -> Result<Option<DevCluster>, DevError> {
    check_ports(options)?;
    let kept = nodes_kept(folder)?;
    if kept > options.nodes {
        return Err(DevError::MoreNodesKept { folder: folder.to_owned(), kept });
    }
    let mut cluster = DevCluster { nodes: Vec::with_capacity(options.nodes), started: Instant::now() };
    for number in 1..=options.nodes {
        // Between two nodes only: one that is half started would leave its threads behind.
        if (&mut stop).now_or_never().is_some() {
            cluster.shutdown().await;
            return Ok(None);
        }
        match start_node(folder, options, number, cluster.nodes.first().map(first_address)).await {
            Ok(node) => cluster.nodes.push(node),
            Err(error) => {
                cluster.shutdown().await;
                return Err(error);
            }
        }
    }
    Ok(Some(cluster))
}

impl DevCluster {
    /// Waits until every node has a map with all nodes, and is connected to all of them. Gives the
    /// time that took since the first was started.
    ///
    /// # Errors
    /// [`DevError::Failed`] for a node that ended instead.
    pub async fn formed(&self) -> Result<Duration, DevError> {
        let count = self.nodes.len();
        for (index, launched) in self.nodes.iter().enumerate() {
            let complete = async {
                let cluster = launched.node.joined().await;
                let mut map = cluster.watch();
                // The sender lives as long as the node does.
                let _ = map.wait_for(|map| map.members().count() == count).await;
                while launched.node.connected_peers() + 1 < count {
                    tokio::time::sleep(POLL).await;
                }
            };
            tokio::select! {
                () = complete => {}
                failure = launched.failed() => {
                    return Err(DevError::Failed { number: index + 1, reason: failure.to_string() });
                }
            }
        }
        Ok(self.started.elapsed())
    }

    /// Stops all nodes.
    pub async fn shutdown(self) {
        futures::future::join_all(self.nodes.into_iter().map(Launched::shutdown)).await;
    }
}

fn check_ports(options: &DevOptions) -> Result<(), DevError> {
    let &DevOptions { nodes, first_http_port, first_listen_port } = options;
    let highest = usize::from(u16::MAX) + 1 - nodes;
    for (option, first) in [("--port", first_listen_port), ("--http-port", first_http_port)] {
        if usize::from(first) > highest {
            return Err(DevError::Ports { option, first, nodes, highest });
        }
    }
    Ok(())
}

/// How many nodes were started in this folder before.
fn nodes_kept(folder: &Path) -> Result<usize, DevError> {
    let failed = |source| DevError::Folder { folder: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(failed(error)),
    };
    let mut kept = 0;
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(NODE_FOLDER)?.parse().ok());
        kept = kept.max(number.unwrap_or(0));
    }
    Ok(kept)
}

fn first_address(node: &Launched) -> String {
    node.node
        .addresses()
        .first()
        .map(|address| format!("{address}/p2p/{}", node.node.peer_id()))
        .unwrap_or_default()
}

async fn start_node(
    folder: &Path,
    options: &DevOptions,
    number: usize,
    bootstrap: Option<String>,
) -> Result<Launched, DevError> {
    let config = config(folder, options, number, bootstrap)?;
    let launched = launch_with(&config, |settings| settings.log.segment_bytes = SEGMENT_BYTES).await;
    launched.map_err(|source| DevError::Launch { number, source })
}

fn config(
    folder: &Path,
    options: &DevOptions,
    number: usize,
    bootstrap: Option<String>,
) -> Result<Config, DevError> {
    let refused = |reason: String| DevError::Config { number, reason };
    // `check_ports` has seen that the sum is a port.
    let port = |first: u16| if first == 0 { 0 } else { first + (number as u16 - 1) };
    let mut config = Config::default();
    config.node.data_dir = folder.join(format!("{NODE_FOLDER}{number}"));
    config.node.node_type = if number == 1 { NodeType::Bootstrap } else { NodeType::Node };
    let socket = SocketAddr::from((Ipv4Addr::LOCALHOST, port(options.first_listen_port)));
    config.node.listen_addresses = vec![ListenAddress::new(socket, Transport::Tcp)];
    config.database.rqlite_port = port(options.first_http_port);
    config.admin.port = 0;
    // One machine does what all of them do: together they probe as often as a few.
    let turns = options.nodes.div_ceil(NODES_PROBING_AT_ONCE) as u64;
    let every = config.admin.probe_interval.as_duration().as_millis() as u64;
    config.admin.probe_interval = Interval::from_milliseconds(every * turns);
    config.discovery.enable_dht = false;
    if let Some(bootstrap) = bootstrap {
        let peer: PeerAddress = bootstrap.parse().map_err(|error| refused(format!("{error}")))?;
        config.discovery.bootstrap_peers = vec![peer];
    }
    config.validate().map_err(|error| refused(error.to_string()))?;
    Ok(config)
}

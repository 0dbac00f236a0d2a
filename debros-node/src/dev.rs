//! A whole cluster in one process, for trying things out: `debros-node dev`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use debros_config::{Config, ListenAddress, NodeType, PeerAddress, Transport};
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
    /// How long it took until every node knew all members and was connected to them.
    pub formed_in: Duration,
}

/// A segment is written full of zeros when it is made: many nodes on one disk want small ones.
const SEGMENT_BYTES: u64 = 4 << 20;
/// Looks this often whether everybody is there.
const POLL: Duration = Duration::from_millis(50);

/// Starts nodes under `folder` and waits until all are members of one cluster.
///
/// # Errors
/// [`DevError`]; nodes that were started are stopped.
pub async fn start(folder: &Path, options: &DevOptions) -> Result<DevCluster, DevError> {
    let started = Instant::now();
    let mut nodes: Vec<Launched> = Vec::with_capacity(options.nodes);
    for number in 1..=options.nodes {
        let bootstrap = nodes.first().map(first_address);
        let config = config(folder, options, number, bootstrap)?;
        match launch_with(&config, |settings| settings.log.segment_bytes = SEGMENT_BYTES).await {
            Ok(node) => nodes.push(node),
            Err(source) => {
                DevCluster { nodes, formed_in: Duration::ZERO }.shutdown().await;
                return Err(DevError::Launch { number, source });
            }
        }
    }
    match formed(&mut nodes).await {
        Ok(()) => Ok(DevCluster { nodes, formed_in: started.elapsed() }),
        Err(error) => {
            DevCluster { nodes, formed_in: Duration::ZERO }.shutdown().await;
            Err(error)
        }
    }
}

impl DevCluster {
    /// Stops all nodes.
    pub async fn shutdown(self) {
        futures::future::join_all(self.nodes.into_iter().map(Launched::shutdown)).await;
    }
}

fn first_address(node: &Launched) -> String {
    node.node
        .addresses()
        .first()
        .map(|address| format!("{address}/p2p/{}", node.node.peer_id()))
        .unwrap_or_default()
}

fn config(
    folder: &Path,
    options: &DevOptions,
    number: usize,
    bootstrap: Option<String>,
) -> Result<Config, DevError> {
    let refused = |reason: String| DevError::Config { number, reason };
    let port = |first: u16| if first == 0 { 0 } else { first + (number as u16 - 1) };
    let mut config = Config::default();
    config.node.data_dir = folder.join(format!("node-{number}"));
    config.node.node_type = if number == 1 { NodeType::Bootstrap } else { NodeType::Node };
    let socket = SocketAddr::from((Ipv4Addr::LOCALHOST, port(options.first_listen_port)));
    config.node.listen_addresses = vec![ListenAddress::new(socket, Transport::Tcp)];
    config.database.rqlite_port = port(options.first_http_port);
    config.admin.port = 0;
    config.discovery.enable_dht = false;
    if let Some(bootstrap) = bootstrap {
        let peer: PeerAddress = bootstrap.parse().map_err(|error| refused(format!("{error}")))?;
        config.discovery.bootstrap_peers = vec![peer];
    }
    config.validate().map_err(|error| refused(error.to_string()))?;
    Ok(config)
}

/// Waits until every node has a map with all nodes, and is connected to all of them.
async fn formed(nodes: &mut [Launched]) -> Result<(), DevError> {
    let count = nodes.len();
    for (index, launched) in nodes.iter_mut().enumerate() {
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
    Ok(())
}

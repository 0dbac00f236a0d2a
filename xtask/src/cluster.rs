//! Nodes as separate processes on loopback, each with its own folder, ports, configuration file and log.
//! It decides where they live and when they are ready; it does not know what is asked of them.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use debros_config::{Config, NodeType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::server::Server;

/// A dev build on two busy cores is ready in a few seconds; this is for a machine at its limit.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How often a condition outside this process is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// What a cluster is made of.
pub(crate) struct Layout {
    /// The program of a node.
    pub(crate) program: PathBuf,
    /// Everything of the cluster is below it.
    pub(crate) folder: PathBuf,
    /// How many nodes.
    pub(crate) nodes: usize,
    /// Start from what an earlier run left, instead of from nothing.
    pub(crate) keep_data: bool,
}

const PORTS_PER_NODE: usize = 3;

/// Ports of one node.
#[derive(Clone, Copy)]
struct Ports {
    peer: u16,
    http: u16,
    admin: u16,
}

/// A node process, running or not.
pub(crate) struct Node {
    server: Server,
    ports: Ports,
}

impl Node {
    /// `node-1` and so on.
    pub(crate) fn name(&self) -> &str {
        self.server.name()
    }

    /// Where nodes and SDK clients reach it.
    pub(crate) fn peer_address(&self) -> String {
        format!("/ip4/127.0.0.1/tcp/{}", self.ports.peer)
    }

    /// The HTTP API, as `host:port`.
    pub(crate) fn http_port(&self) -> u16 {
        self.ports.http
    }

    /// The port of health checks and metrics.
    pub(crate) fn admin_port(&self) -> u16 {
        self.ports.admin
    }

    /// The process id while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.server.pid()
    }
}

/// Nodes on loopback.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
}

impl Cluster {
    /// Lays out folders and configuration files; starts nothing.
    pub(crate) fn prepare(layout: Layout) -> Result<Self> {
        Self::prepare_with(layout, |_| ())
    }

    /// The same, with what differs from the usual configuration of every node.
    pub(crate) fn prepare_with(layout: Layout, differs: impl Fn(&mut Config)) -> Result<Self> {
        Self::prepare_within(layout, differs, |_, _| Vec::new())
    }

    /// The same, and each node is started by the command that `within` gives of its index and its data folder: one that becomes the node, or
    /// none.
    pub(crate) fn prepare_within(
        layout: Layout,
        differs: impl Fn(&mut Config),
        within: impl Fn(usize, &Path) -> Vec<OsString>,
    ) -> Result<Self> {
        if !layout.keep_data && layout.folder.exists() {
            fs::remove_dir_all(&layout.folder)
                .with_context(|| format!("cannot empty {}", layout.folder.display()))?;
        }
        let ports = free_ports(PORTS_PER_NODE * layout.nodes)?;
        let ports = ports.chunks_exact(PORTS_PER_NODE).map(|ports| Ports {
            peer: ports[0],
            http: ports[1],
            admin: ports[2],
        });
        let mut first = None;
        let mut nodes = Vec::new();
        for (index, ports) in ports.enumerate() {
            let name = format!("node-{}", index + 1);
            let folder = layout.folder.join(&name);
            fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
            let mut config = configuration(&name, &folder, ports, first.as_deref())?;
            differs(&mut config);
            let config_file = folder.join("node.yaml");
            fs::write(&config_file, config.to_yaml())?;
            let mut command = within(index, &config.node.data_dir);
            command.extend([layout.program.clone().into(), "--config".into(), config_file.into()]);
            let program = PathBuf::from(command.remove(0));
            let server = Server::new(name, program, command, folder.join("node.log"));
            let node = Node { server, ports };
            first.get_or_insert_with(|| node.peer_address());
            nodes.push(node);
        }
        Ok(Self { nodes })
    }

    /// The nodes, running or not.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Where a client finds the cluster, whichever nodes are down.
    pub(crate) fn peer_addresses(&self) -> Vec<String> {
        self.nodes.iter().map(Node::peer_address).collect()
    }

    /// Process ids of the running nodes.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(Node::pid).collect()
    }

    /// Starts one node; it is not ready yet.
    pub(crate) fn start(&mut self, index: usize) -> Result<()> {
        self.nodes[index].server.start()
    }

    /// Starts every node and waits until each says that it is ready.
    pub(crate) async fn start_all(&mut self) -> Result<()> {
        for index in 0..self.nodes.len() {
            self.start(index)?;
        }
        for index in 0..self.nodes.len() {
            self.ready(index).await?;
        }
        Ok(())
    }

    /// Waits until the node's own readiness probe says yes.
    pub(crate) async fn ready(&mut self, index: usize) -> Result<()> {
        let Node { server, ports } = &mut self.nodes[index];
        let start = Instant::now();
        loop {
            if let Some(status) = server.ended() {
                bail!("{} ended with {status} before it was ready; {}", server.name(), server.log_end());
            }
            let answer = probe(ports.admin, "/readyz").await;
            if answer.as_ref().is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            if start.elapsed() > READY_WITHIN {
                let said = answer.map_or_else(|error| format!("{error:#}"), |answer| answer.body);
                bail!("{} is not ready after {READY_WITHIN:?}: {said}; {}", server.name(), server.log_end());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Sends a signal to a running node.
    pub(crate) fn signal(&self, index: usize, signal: i32) {
        self.nodes[index].server.signal(signal);
    }

    /// SIGKILL, as a power button does it; returns when the process is gone.
    pub(crate) async fn kill(&mut self, index: usize) -> Result<()> {
        self.nodes[index].server.kill().await
    }

    /// Asks every running node to stop, and waits for each.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.nodes.iter().for_each(|node| node.server.terminate());
        for node in &mut self.nodes {
            node.server.stopped().await?;
        }
        Ok(())
    }
}

fn configuration(name: &str, folder: &Path, ports: Ports, bootstrap: Option<&str>) -> Result<Config> {
    let mut config = Config::default();
    config.node.id = Some(name.to_owned());
    config.node.node_type = if bootstrap.is_some() { NodeType::Node } else { NodeType::Bootstrap };
    config.node.data_dir = folder.join("data");
    let Ports { peer, http, admin } = ports;
    config.node.listen_addresses = vec![
        format!("/ip4/127.0.0.1/tcp/{peer}").parse()?,
        format!("/ip4/127.0.0.1/udp/{peer}/quic-v1").parse()?,
    ];
    config.database.rqlite_port = http;
    config.admin.port = admin;
    config.discovery.bootstrap_peers = bootstrap.map(str::parse).transpose()?.into_iter().collect();
    Ok(config)
}

/// Ports on loopback that are free for TCP and UDP. All are held until all are found, so that no two are the same.
pub(crate) fn free_ports(count: usize) -> Result<Vec<u16>> {
    let mut held = Vec::new();
    let mut ports = Vec::new();
    while ports.len() < count {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on loopback")?;
        let port = tcp.local_addr()?.port();
        // QUIC listens on the same number over UDP.
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            ports.push(port);
        }
        held.push(tcp);
    }
    Ok(ports)
}

/// An answer to a GET.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// GET on loopback, one connection a request: enough to ask a probe.
pub(crate) async fn probe(port: u16, path: &str) -> Result<Answer> {
    let work = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = timeout(Duration::from_secs(5), work).await.context("no answer within 5 s")??;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Answer { status: status.context("the answer is not HTTP")?, body: body.to_owned() })
}

/// The program of the node in a build's folder.
pub(crate) fn node_program(target: &Path, profile: &str) -> PathBuf {
    target.join(profile).join(format!("debros-node{}", std::env::consts::EXE_SUFFIX))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use debros_config::Config;

    use super::{Cluster, Layout, free_ports};

    #[test]
    fn ports_are_all_different() {
        let different = free_ports(15).unwrap().into_iter().collect::<BTreeSet<_>>();
        assert_eq!(different.len(), 15);
    }

    #[test]
    fn the_first_node_begins_the_cluster_and_the_others_join_it() {
        let folder = tempfile::tempdir().unwrap();
        let layout =
            Layout { program: "unused".into(), folder: folder.path().join("up"), nodes: 3, keep_data: false };
        let cluster = Cluster::prepare(layout).unwrap();
        let first = cluster.nodes()[0].peer_address();
        for (index, node) in cluster.nodes().iter().enumerate() {
            let file = folder.path().join("up").join(node.name()).join("node.yaml");
            let text = std::fs::read_to_string(file).unwrap();
            let config = Config::from_yaml(&text).unwrap().config;
            assert_eq!(config.may_initialise(), index == 0);
            let peers = config.discovery.bootstrap_peers.iter().map(ToString::to_string).collect::<Vec<_>>();
            assert_eq!(peers, if index == 0 { vec![] } else { vec![first.clone()] });
        }
    }
}

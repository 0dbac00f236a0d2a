//! etcd as a peer: three processes on loopback without TLS, with their usual durability, asked through etcd's own gRPC API.
//! What is asked of them is the business of each benchmark.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use async_trait::async_trait;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};

use super::{CONNECTIONS_MAX, System, empty_folder};
use crate::cluster::free_ports;
use crate::server::Server;
use wire::maintenance_client::MaintenanceClient;
use wire::{StatusRequest, StatusResponse};

/// The messages and clients that the build script makes.
#[allow(unreachable_pub, clippy::all, reason = "generated from proto/etcd.proto")]
pub(super) mod wire {
    tonic::include_proto!("etcdserverpb");
}

const NAME: &str = "etcd";
const MEMBERS: usize = 3;
pub(super) const READY_WITHIN: Duration = Duration::from_secs(30);
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(25);
/// A call to a member that was killed is given up after this, as an application that wants short outages does.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);

/// Starts a cluster on an empty folder and waits until it has a leader.
pub(super) async fn start(program: &Path) -> Result<Etcd> {
    let folder = empty_folder(NAME)?;
    let ports = free_ports(2 * MEMBERS)?;
    let (client_ports, peer_ports) = ports.split_at(MEMBERS);
    let initial = peer_ports.iter().enumerate().map(|(index, port)| format!("m{index}={}", url(*port)));
    let initial = initial.collect::<Vec<_>>().join(",");
    let mut members = Vec::new();
    for index in 0..MEMBERS {
        let (client, peer) = (url(client_ports[index]), url(peer_ports[index]));
        let data = folder.join(format!("m{index}"));
        let arguments = [
            ("--name", format!("m{index}")),
            ("--data-dir", data.to_string_lossy().into_owned()),
            ("--listen-client-urls", client.clone()),
            ("--advertise-client-urls", client.clone()),
            ("--listen-peer-urls", peer.clone()),
            ("--initial-advertise-peer-urls", peer),
            ("--initial-cluster", initial.clone()),
            ("--initial-cluster-state", "new".to_owned()),
            ("--logger", "zap".to_owned()),
            ("--log-level", "error".to_owned()),
        ];
        let arguments = arguments.into_iter().flat_map(|(name, value)| [name.into(), value.into()]).collect();
        let log = folder.join(format!("m{index}.log"));
        let server = Server::new(format!("etcd m{index}"), program.to_owned(), arguments, log);
        let endpoint = Endpoint::from_shared(client)?;
        members.push(Member { server, channel: endpoint.connect_lazy(), endpoint });
    }
    let mut etcd = Etcd { members, killed: None };
    for member in &mut etcd.members {
        member.server.start()?;
    }
    etcd.ready().await?;
    Ok(etcd)
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

struct Member {
    server: Server,
    endpoint: Endpoint,
    channel: Channel,
}

/// A cluster of etcd processes.
pub(super) struct Etcd {
    members: Vec<Member>,
    killed: Option<usize>,
}

impl Etcd {
    async fn ready(&mut self) -> Result<()> {
        let start = Instant::now();
        while !self.all_follow_one().await {
            for Member { server, .. } in &mut self.members {
                if let Some(status) = server.ended() {
                    bail!("{} ended with {status}; {}", server.name(), server.log_end());
                }
            }
            if start.elapsed() > READY_WITHIN {
                bail!("etcd is not ready after {READY_WITHIN:?}; {}", self.members[0].server.log_end());
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    async fn all_follow_one(&self) -> bool {
        let mut leaders = Vec::new();
        for member in &self.members {
            leaders.push(status(member).await.map(|status| status.leader).unwrap_or_default());
        }
        leaders[0] != 0 && leaders.iter().all(|leader| *leader == leaders[0])
    }

    /// A connection to each member.
    pub(super) fn channels(&self) -> Vec<Channel> {
        self.members.iter().map(|member| member.channel.clone()).collect()
    }

    /// The connections of so many clients, straight to the leader: as our client goes, and the best case for etcd.
    pub(super) async fn leader_channels(&self, clients: usize) -> Result<Vec<Channel>> {
        let leader = &self.members[self.leader().await?];
        let connections = clients.min(CONNECTIONS_MAX);
        let channels = (0..connections).map(|_| leader.endpoint.connect_lazy()).collect::<Vec<_>>();
        Ok(channels.into_iter().cycle().take(clients).collect())
    }

    /// SIGKILL to the member that leads.
    pub(super) async fn kill_leader(&mut self) -> Result<()> {
        let leader = self.leader().await?;
        self.killed = Some(leader);
        self.members[leader].server.kill().await
    }

    /// Starts the member that was killed and waits until it follows.
    pub(super) async fn restore(&mut self) -> Result<()> {
        if let Some(killed) = self.killed.take() {
            self.members[killed].server.start()?;
        }
        self.ready().await
    }

    /// The member that leads.
    async fn leader(&self) -> Result<usize> {
        for (index, member) in self.members.iter().enumerate() {
            let status = status(member).await.unwrap_or_default();
            if status.leader != 0 && status.header.is_some_and(|header| header.member_id == status.leader) {
                return Ok(index);
            }
        }
        bail!("etcd has no leader; {}", self.members[0].server.log_end())
    }
}

async fn status(member: &Member) -> Result<StatusResponse> {
    let mut client = MaintenanceClient::new(member.channel.clone());
    Ok(timeout(PATIENCE, client.status(StatusRequest {})).await??.into_inner())
}

#[async_trait]
impl System for Etcd {
    fn name(&self) -> &'static str {
        NAME
    }

    fn pids(&self) -> Vec<u32> {
        self.members.iter().filter_map(|member| member.server.pid()).collect()
    }

    async fn stop(mut self: Box<Self>) -> Result<()> {
        self.members.iter().for_each(|member| member.server.terminate());
        for member in &mut self.members {
            member.server.stopped().await?;
        }
        Ok(())
    }
}

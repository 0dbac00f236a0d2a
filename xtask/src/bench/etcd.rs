//! etcd as a peer: three processes on loopback without TLS, with their usual durability, asked through etcd's own gRPC API.
//! A row is a key; a transaction of rows is one etcd transaction.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};

use super::System;
use super::load::Session;
use super::sql::{READ_ROWS, TRANSACTION_ROWS, VALUE_BYTES, Work};
use crate::cluster::free_ports;
use crate::server::Server;
use crate::steps::target_folder;
use wire::kv_client::KvClient;
use wire::maintenance_client::MaintenanceClient;
use wire::{PutRequest, RangeRequest, RequestOp, StatusRequest, TxnRequest, request_op};

/// The messages and clients that the build script makes.
#[allow(unreachable_pub, clippy::all, reason = "generated from proto/etcd.proto")]
mod wire {
    tonic::include_proto!("etcdserverpb");
}

const NAME: &str = "etcd";
const MEMBERS: usize = 3;
const READY_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// A call to a member that was killed is given up after this, as an application that wants short outages does.
const PATIENCE: Duration = Duration::from_millis(250);

/// The etcd on the PATH.
pub(super) fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(NAME)).find(|program| program.is_file())
}

/// Starts a cluster on an empty folder and waits until it has a leader.
pub(super) async fn start(program: &Path) -> Result<Etcd> {
    let folder = target_folder().join("bench").join(NAME);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(&folder)?;
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
    let mut etcd = Etcd { members, killed: None, next_key: Arc::default() };
    for member in &mut etcd.members {
        member.server.start()?;
    }
    etcd.ready().await?;
    etcd.fill().await?;
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
    /// Each insert writes a new key, as each insert into a table is a new row.
    next_key: Arc<AtomicU64>,
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

    /// Writes what reads read.
    async fn fill(&mut self) -> Result<()> {
        let mut client = KvClient::new(self.members[0].channel.clone());
        for row in 0..READ_ROWS {
            client.put(PutRequest { key: read_key(row).into(), value: value() }).await?;
        }
        Ok(())
    }

    fn client(&self, work: Work, channels: Vec<Channel>) -> Client {
        Client {
            work,
            clients: channels.into_iter().map(KvClient::new).collect(),
            next_key: Arc::clone(&self.next_key),
        }
    }
}

async fn status(member: &Member) -> Result<wire::StatusResponse> {
    let mut client = MaintenanceClient::new(member.channel.clone());
    Ok(timeout(PATIENCE, client.status(StatusRequest {})).await??.into_inner())
}

fn read_key(row: u32) -> String {
    format!("read/{row}")
}

fn value() -> tonic::codegen::Bytes {
    vec![b'x'; VALUE_BYTES].into()
}

#[async_trait]
impl System for Etcd {
    fn name(&self) -> &'static str {
        NAME
    }

    fn pids(&self) -> Vec<u32> {
        self.members.iter().filter_map(|member| member.server.pid()).collect()
    }

    async fn sessions(&mut self, work: Work, clients: usize) -> Result<Vec<Box<dyn Session>>> {
        // Straight to the leader, as our client goes; the best case for etcd.
        let leader = &self.members[self.leader().await?];
        let connections = clients.min(super::CONNECTIONS_MAX);
        let channels = (0..connections).map(|_| leader.endpoint.connect_lazy()).collect::<Vec<_>>();
        Ok((0..clients)
            .map(|client| self.client(work, vec![channels[client % channels.len()].clone()]))
            .map(|client| Box::new(client) as Box<dyn Session>)
            .collect())
    }

    async fn steadfast_writer(&mut self) -> Result<Box<dyn Session>> {
        let channels = self.members.iter().map(|member| member.channel.clone()).collect();
        Ok(Box::new(self.client(Work::Outage, channels)))
    }

    async fn kill_leader(&mut self) -> Result<()> {
        let leader = self.leader().await?;
        self.killed = Some(leader);
        self.members[leader].server.kill().await
    }

    async fn restore(&mut self) -> Result<()> {
        if let Some(killed) = self.killed.take() {
            self.members[killed].server.start()?;
        }
        self.ready().await
    }

    async fn stop(mut self: Box<Self>) -> Result<()> {
        self.members.iter().for_each(|member| member.server.terminate());
        for member in &mut self.members {
            member.server.stopped().await?;
        }
        Ok(())
    }
}

/// One client of etcd, with the members it may ask.
struct Client {
    work: Work,
    clients: Vec<KvClient<Channel>>,
    next_key: Arc<AtomicU64>,
}

impl Client {
    fn put(&self) -> PutRequest {
        let key = self.next_key.fetch_add(1, Ordering::Relaxed);
        PutRequest { key: format!("insert/{key:016}").into(), value: value() }
    }

    /// Asks one member after the other until one has written.
    async fn put_somewhere(&mut self) -> Result<()> {
        let put = self.put();
        let start = Instant::now();
        while start.elapsed() < READY_WITHIN {
            let answer = timeout(PATIENCE, self.clients[0].put(put.clone())).await;
            if matches!(answer, Ok(Ok(_))) {
                return Ok(());
            }
            self.clients.rotate_left(1);
            if answer.is_ok() {
                sleep(LOOK_EVERY).await;
            }
        }
        bail!("etcd accepts no write for {READY_WITHIN:?}")
    }

    async fn read(&mut self, serializable: bool) -> Result<()> {
        let key = read_key(rand::random_range(0..READ_ROWS)).into();
        let found = self.clients[0].range(RangeRequest { key, serializable }).await?.into_inner();
        if found.count != 1 {
            bail!("etcd does not know a key that was written");
        }
        Ok(())
    }

    async fn transaction(&mut self) -> Result<()> {
        let put = |_| RequestOp { request: Some(request_op::Request::RequestPut(self.put())) };
        let success = (0..TRANSACTION_ROWS).map(put).collect();
        let done = self.clients[0].txn(TxnRequest { success }).await?.into_inner();
        if !done.succeeded {
            bail!("etcd refused a transaction without a condition");
        }
        Ok(())
    }
}

#[async_trait]
impl Session for Client {
    async fn once(&mut self) -> Result<()> {
        match self.work {
            Work::Insert => {
                let put = self.put();
                self.clients[0].put(put).await?;
                Ok(())
            }
            Work::LinearizableRead => self.read(false).await,
            Work::StaleRead => self.read(true).await,
            Work::InsertTx100 => self.transaction().await,
            Work::Outage => self.put_somewhere().await,
        }
    }
}

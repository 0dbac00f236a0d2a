//! NATS as a peer: three nats-server processes on loopback without TLS, and a bucket of JetStream with three replicas. It keeps
//! the bucket in files that it syncs every two minutes, its default: a put is acknowledged when a quorum has handed it to its
//! operating system, so only relaxed puts mean the same.
//!
//! A client's `get` asks whichever replica is nearest and stands for R = 1. What the stream's leader answers stands for R = 2;
//! it has all that was acknowledged, though the leader does not ask a quorum whether it still leads.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use async_nats::ConnectOptions;
use async_nats::jetstream::stream::{self, DiscardPolicy, StorageType};
use async_nats::jetstream::{self, kv};
use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{KEYS, KvSystem, Work, key, random_key, value};
use crate::bench::load::Session;
use crate::bench::turns::Does;
use crate::bench::{CONNECTIONS_MAX, System, empty_folder};
use crate::cluster::free_ports;
use crate::server::Server;

const NAME: &str = "nats-kv";
const MEMBERS: usize = 3;
const BUCKET: &str = "bench";
const READY_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// So many clients write the keys before anything is measured.
const FILLERS: u32 = 50;

/// Starts a cluster on an empty folder and writes all keys to a bucket.
pub(super) async fn start(program: &Path) -> Result<Nats> {
    let folder = empty_folder(NAME)?;
    let ports = free_ports(2 * MEMBERS)?;
    let (client_ports, route_ports) = ports.split_at(MEMBERS);
    let routes = route_ports.iter().map(|port| url(*port)).collect::<Vec<_>>().join(",");
    let mut members = Vec::new();
    for index in 0..MEMBERS {
        let name = format!("m{index}");
        let arguments = [
            ("--server_name", name.clone()),
            ("--addr", "127.0.0.1".to_owned()),
            ("--port", client_ports[index].to_string()),
            ("--cluster_name", NAME.to_owned()),
            ("--cluster", url(route_ports[index])),
            ("--routes", routes.clone()),
            ("--store_dir", folder.join(&name).to_string_lossy().into_owned()),
        ];
        let arguments = arguments.into_iter().flat_map(|(name, value)| [name.into(), value.into()]);
        let arguments = arguments.chain(["--jetstream".into()]).collect();
        let log = folder.join(format!("{name}.log"));
        let server = Server::new(format!("nats {name}"), program.to_owned(), arguments, log);
        members.push(Member { name, server, url: url(client_ports[index]) });
    }
    let mut nats = Nats { members };
    for member in &mut nats.members {
        member.server.start()?;
    }
    nats.ready().await?;
    nats.fill().await?;
    Ok(nats)
}

fn url(port: u16) -> String {
    format!("nats://127.0.0.1:{port}")
}

/// What `create_key_value` makes. That one asks for a report on the account first, which servers before 2.10 give in another
/// form, and Debian has 2.9.
fn bucket() -> stream::Config {
    stream::Config {
        name: format!("KV_{BUCKET}"),
        subjects: vec![format!("$KV.{BUCKET}.>")],
        num_replicas: MEMBERS,
        storage: StorageType::File,
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        allow_rollup: true,
        deny_delete: true,
        allow_direct: true,
        ..stream::Config::default()
    }
}

struct Member {
    name: String,
    server: Server,
    url: String,
}

impl Member {
    async fn connect(&self) -> Result<jetstream::Context> {
        // Otherwise a client that was sent to the leader could end up elsewhere.
        let options = ConnectOptions::new().ignore_discovered_servers();
        Ok(jetstream::new(options.connect(&self.url).await?))
    }
}

/// A cluster of nats-server processes.
pub(super) struct Nats {
    members: Vec<Member>,
}

impl Nats {
    /// Waits until the cluster takes a bucket and all its replicas are there.
    async fn ready(&mut self) -> Result<()> {
        let start = Instant::now();
        while let Err(error) = self.has_bucket().await {
            for Member { server, .. } in &mut self.members {
                if let Some(status) = server.ended() {
                    bail!("{} ended with {status}; {}", server.name(), server.log_end());
                }
            }
            if start.elapsed() > READY_WITHIN {
                let log = self.members[0].server.log_end();
                return Err(error.context(format!("NATS is not ready after {READY_WITHIN:?}; {log}")));
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    async fn has_bucket(&self) -> Result<()> {
        let context = self.members[0].connect().await?;
        let stream = context.create_stream(bucket()).await?;
        let cluster = stream.cached_info().cluster.clone().context("the bucket is on one server only")?;
        if cluster.replicas.iter().filter(|replica| replica.current).count() != MEMBERS - 1 {
            bail!("replicas of the bucket are behind");
        }
        self.member(cluster.leader).map(drop)
    }

    fn member(&self, name: Option<String>) -> Result<&Member> {
        let name = name.context("the bucket has no leader")?;
        let member = self.members.iter().find(|member| member.name == name);
        member.with_context(|| format!("the bucket's leader {name} is none of ours"))
    }

    /// The member that leads the bucket's replicas.
    async fn leader(&self) -> Result<&Member> {
        let store = self.members[0].connect().await?.get_key_value(BUCKET).await?;
        let cluster = store.stream.get_info().await?.cluster;
        self.member(cluster.and_then(|cluster| cluster.leader))
    }

    /// Writes all keys.
    async fn fill(&self) -> Result<()> {
        let store = self.leader().await?.connect().await?.get_key_value(BUCKET).await?;
        let mut fillers = JoinSet::new();
        for filler in 0..FILLERS {
            let store = store.clone();
            fillers.spawn(async move {
                for number in (filler..KEYS).step_by(FILLERS as usize) {
                    store.put(key(number), value()).await?;
                }
                Ok::<(), kv::PutError>(())
            });
        }
        fillers.join_all().await.into_iter().collect::<Result<(), _>>().context("cannot write the keys")
    }
}

#[async_trait]
impl System for Nats {
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

impl KvSystem for Nats {
    fn has(&self, work: Work) -> bool {
        matches!(work, Work::PutRelaxed | Work::GetR1 | Work::GetR2)
    }
}

#[async_trait]
impl Does<Work> for Nats {
    async fn sessions(&mut self, work: Work, clients: usize) -> Result<Vec<Box<dyn Session>>> {
        // Straight to the leader of the bucket: the best case for NATS.
        let leader = self.leader().await?;
        let mut stores = Vec::new();
        for _ in 0..clients.min(CONNECTIONS_MAX) {
            stores.push(leader.connect().await?.get_key_value(BUCKET).await?);
        }
        let client = |store| Box::new(Asking { work, store }) as Box<dyn Session>;
        Ok(stores.into_iter().cycle().take(clients).map(client).collect())
    }
}

/// One client.
struct Asking {
    work: Work,
    store: kv::Store,
}

#[async_trait]
impl Session for Asking {
    async fn once(&mut self) -> Result<()> {
        match self.work {
            Work::PutRelaxed => {
                self.store.put(random_key(), value()).await?;
                Ok(())
            }
            Work::GetR1 => match self.store.get(random_key()).await? {
                Some(_) => Ok(()),
                None => Err(anyhow!("NATS does not know a key that was written")),
            },
            Work::GetR2 => {
                let subject = format!("{}{}", self.store.prefix, random_key());
                self.store.stream.get_last_raw_message_by_subject(&subject).await?;
                Ok(())
            }
            Work::PutFsync | Work::List100 => bail!("NATS has nothing that means the same"),
        }
    }
}

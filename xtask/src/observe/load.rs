//! A mixed load: SQL, storage, registers, messages and rqlite's HTTP API, through each node, and mistakes of users among them. It is not
//! fast: it is there so that everything that is measured happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use debros_sdk::{
    Client, Database, LeaseListOptions, PubSub, RegisterListOptions, Registers, Storage, Subscription, params,
};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::cluster::{Cluster, probe};
use crate::membership;

pub(super) const APPLICATION: &str = "observe";
const TOPIC: &str = "ships.1.position";
const PATTERN: &str = "ships.*.position";
/// One round of everything, by each node.
const ROUND_EVERY: Duration = Duration::from_millis(50);
const STEADFAST_ROUND_EVERY: Duration = Duration::from_millis(250);
/// Every so many rounds what is asked seldom.
const SELDOM: u64 = 10;
const HEARD_WITHIN: Duration = Duration::from_secs(30);
const TABLE: &str = "CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT)";

/// What a client does when something it asked for failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Nothing may fail: the client gives up.
    None,
    /// Something is made to fail: the client goes on asking, less often.
    Steadfast,
}

/// Clients under way, one for each node.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// Connects to each node and begins.
    pub(super) async fn start(cluster: &Cluster, patience: Patience) -> Result<Self> {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let first = membership::client_at(cluster, 0, APPLICATION).await?;
        first.database().create_table(TABLE).await.context("cannot create a table")?;
        first.close().await;
        let mut tasks = Vec::new();
        for (index, node) in cluster.nodes().iter().enumerate() {
            let client = membership::client_at(cluster, index, APPLICATION).await?;
            let user = User { client, name: node.name().to_owned(), http_port: node.http_port(), patience };
            let name = node.name().to_owned();
            let (stop, rounds) = (stop.clone(), rounds.clone());
            tasks.push(tokio::spawn(async move {
                user.ask(&stop, &rounds).await.with_context(|| format!("the load at {name} failed"))
            }));
        }
        Ok(Self { stop, rounds, tasks })
    }

    /// Fails when a client gave up.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(!self.tasks.iter().any(JoinHandle::is_finished), "a client of the load gave up");
        Ok(())
    }

    /// Ends it; tells what it did.
    pub(super) async fn stop(self) -> Result<String> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.context("a client of the load broke off")??;
        }
        Ok(format!("{} rounds of everything", self.rounds.load(Ordering::Relaxed)))
    }
}

/// A client at one node.
struct User {
    client: Client,
    name: String,
    http_port: u16,
    patience: Patience,
}

impl User {
    async fn ask(self, stop: &AtomicBool, rounds: &AtomicU64) -> Result<()> {
        let mut heard = self.client.pubsub().subscribe(PATTERN).await.context("cannot subscribe")?;
        let mut tick = interval(match self.patience {
            Patience::None => ROUND_EVERY,
            Patience::Steadfast => STEADFAST_ROUND_EVERY,
        });
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut round = 0;
        while !stop.load(Ordering::Relaxed) {
            tick.tick().await;
            self.round(round, &mut heard).await?;
            round += 1;
            rounds.fetch_add(1, Ordering::Relaxed);
        }
        self.client.close().await;
        Ok(())
    }

    /// Everything once. A steadfast client asks for all of it, whatever failed before.
    async fn round(&self, round: u64, heard: &mut Subscription) -> Result<()> {
        self.borne(self.database(round).await.context("database"))?;
        self.borne(self.storage(round).await.context("storage"))?;
        self.borne(self.registers(round).await.context("registers"))?;
        self.borne(self.messages(round, heard).await.context("pub/sub"))?;
        if round.is_multiple_of(SELDOM) {
            self.borne(self.http().await.context("HTTP"))?;
            self.borne(self.mistakes().await)?;
        }
        Ok(())
    }

    /// What a failure comes to.
    fn borne(&self, outcome: Result<()>) -> Result<()> {
        match self.patience {
            Patience::None => outcome,
            Patience::Steadfast => Ok(()),
        }
    }

    async fn messages(&self, round: u64, heard: &mut Subscription) -> Result<()> {
        self.pubsub(round).await?;
        let next = timeout(HEARD_WITHIN, heard.next_batch()).await.context("no message is heard")?;
        next.context("the subscription ended")??;
        Ok(())
    }

    async fn database(&self, round: u64) -> Result<()> {
        let database = self.client.database();
        let text = format!("{} says {round}", self.name);
        database.execute("INSERT INTO notes (text) VALUES (?)", params![text]).await?;
        database.query("SELECT count(*) FROM notes", params![]).await?;
        if round.is_multiple_of(SELDOM) {
            self.client.list_databases().await?;
        }
        Ok(())
    }

    async fn storage(&self, round: u64) -> Result<()> {
        let (storage, key) = (self.client.storage(), format!("{}/{}", self.name, round % 100));
        storage.put(&key, round.to_string().into_bytes().into()).await?;
        ensure!(storage.get(&key).await?.is_some(), "{key} was put and is not there");
        if round.is_multiple_of(SELDOM) {
            storage.list(&format!("{}/", self.name), 10).await?;
            storage.delete(&key).await?;
        }
        Ok(())
    }

    async fn registers(&self, round: u64) -> Result<()> {
        let (registers, key) = (self.client.registers(), format!("{}/counter", self.name));
        registers.increment(key.as_bytes(), 1).await?;
        registers.get(key.as_bytes()).await?;
        if round.is_multiple_of(SELDOM) {
            registers.list(b"", RegisterListOptions::default()).await?;
            registers.list_leases(LeaseListOptions::default()).await?;
        }
        Ok(())
    }

    async fn pubsub(&self, round: u64) -> Result<()> {
        let pubsub = self.client.pubsub();
        pubsub.publish_acked(TOPIC, round.to_string().as_bytes()).await?;
        if round.is_multiple_of(SELDOM) {
            pubsub.list_topics().await?;
            pubsub.present(PATTERN).await?;
            // Subscribing is an operation that has its promise, too.
            drop(pubsub.subscribe("ships.*.weather").await?);
        }
        Ok(())
    }

    async fn http(&self) -> Result<()> {
        let answer = probe(self.http_port, "/db/query?q=SELECT%201").await?;
        ensure!(answer.status == 200, "status {}: {}", answer.status, answer.body);
        Ok(())
    }

    /// What fails by the user's fault must not count as ours.
    async fn mistakes(&self) -> Result<()> {
        if self.client.database().query("SELECT * FROM nowhere", params![]).await.is_ok() {
            bail!("a table that does not exist was read");
        }
        Ok(())
    }
}

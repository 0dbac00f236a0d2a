//! `bench pubsub`: what subscribers get of what publishers publish, across three nodes. Decides the works, where publishers and
//! subscribers sit, and what is counted; knows systems only through [`Messaging`].
//!
//! Deliveries are counted, not publishes, and every message must arrive: a figure over losses would mean nothing. So that none
//! is lost on the way, publishers wait while too much is under way, the same for every system.

pub(super) mod debros;
mod flow;
mod nats;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use async_trait::async_trait;
use bytes::Bytes;
use clap::{Args, ValueEnum};

use super::form::Row;
use super::load::cpu_seconds;
use super::{Build, CommonOptions, System, program};

/// Turns of each system at each work, in which they alternate.
const TURNS: u32 = 2;
const NODES: usize = 3;
/// Messages that are handed over together.
const BURST: usize = 256;
/// Tasks of one publisher, each of which hands over one burst at a time.
const TASKS_PER_PUBLISHER: usize = 4;
/// Messages that are published a second where their latency is measured.
const PACE: Duration = Duration::from_millis(1);

/// Options of `bench pubsub`.
#[derive(Args)]
pub(crate) struct PubSubOptions {
    #[command(flatten)]
    common: CommonOptions,
    /// What is published and subscribed to.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WORK,..")]
    works: Option<Vec<Work>>,
    /// Measure these systems beside this one, in turns.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PEER,..")]
    against: Vec<Peer>,
}

/// A system that is not ours.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// The nats-server on the PATH (Debian: nats-server), three of them, with TLS everywhere.
    Nats,
}

/// What is published and who gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum Work {
    /// 128 bytes, from one publisher to one subscriber at another node.
    #[value(name = "across_128b")]
    Across128b,
    /// The same with 1 KiB.
    #[value(name = "across_1kib")]
    Across1kib,
    /// 128 bytes, from one publisher to eight subscribers at all nodes.
    #[value(name = "fanout_1_to_8")]
    Fanout1To8,
    /// 128 bytes, four publishers with a subscriber each at another node.
    FourToFour,
    /// One request at a time, answered at another node.
    RequestReply,
    /// 1,000 messages a second across nodes: how long each takes.
    #[value(name = "delivery_1000")]
    Delivery1000,
    /// 128 bytes across nodes to one subscription with a wildcard.
    #[value(name = "wildcards_1")]
    Wildcards1,
    /// The same to one of 10,000 subscriptions with a wildcard.
    #[value(name = "wildcards_10k")]
    Wildcards10k,
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Self::Across128b => "across_128b",
            Self::Across1kib => "across_1kib",
            Self::Fanout1To8 => "fanout_1_to_8",
            Self::FourToFour => "four_to_four",
            Self::RequestReply => "request_reply",
            Self::Delivery1000 => "delivery_1000",
            Self::Wildcards1 => "wildcards_1",
            Self::Wildcards10k => "wildcards_10k",
        }
    }

    /// What flows, where something does.
    fn stream(self) -> Option<Stream> {
        let usual = Stream { publishers: 1, topics: 1, subscribers: 1, wildcard: false, bytes: 128 };
        Some(match self {
            Self::Across128b => usual,
            Self::Across1kib => Stream { bytes: 1024, ..usual },
            Self::Fanout1To8 => Stream { subscribers: 8, ..usual },
            Self::FourToFour => Stream { publishers: 4, ..usual },
            Self::Wildcards1 => Stream { wildcard: true, ..usual },
            Self::Wildcards10k => Stream { wildcard: true, topics: 10_000, ..usual },
            Self::RequestReply | Self::Delivery1000 => return None,
        })
    }
}

/// What flows as fast as it can.
#[derive(Clone, Copy, Debug)]
struct Stream {
    publishers: usize,
    /// Topics of each publisher.
    topics: usize,
    /// Subscribers of each topic.
    subscribers: usize,
    /// Whether they subscribe with a wildcard.
    wildcard: bool,
    bytes: usize,
}

/// A system with messages.
#[async_trait]
pub(super) trait Messaging: System {
    /// A client at a node.
    async fn connect(&mut self, node: usize) -> Result<Arc<dyn Member>>;
}

/// A client.
#[async_trait]
pub(super) trait Member: Send + Sync {
    /// Publishes a burst in order; returns when more may be handed over.
    async fn publish(&self, topics: &[String], payload: &Bytes) -> Result<()>;
    /// Begins to receive.
    async fn subscribe(&self, pattern: &str) -> Result<Box<dyn Receiver>>;
    /// Asks, and waits for the answer.
    async fn request(&self, topic: &str) -> Result<()>;
    /// Answers every request from now on, as long as the client is there.
    async fn respond(&self, topic: &str) -> Result<()>;
}

/// A subscription.
#[async_trait]
pub(super) trait Receiver: Send {
    /// Waits for messages; gives each payload that has come.
    async fn receive(&mut self, each: &mut (dyn for<'p> FnMut(&'p [u8]) + Send)) -> Result<()>;
}

/// Measures and reports.
pub(super) async fn run(options: &PubSubOptions) -> Result<()> {
    let common = &options.common;
    let mut systems: Vec<Box<dyn Messaging>> = vec![Box::new(debros::start(&Build::shipped()).await?)];
    if options.against.contains(&Peer::Nats)
        && let Some(program) = program("nats-server", "nats-server")
    {
        systems.push(Box::new(nats::start(&program).await?));
    }
    let mut rows = Vec::new();
    for work in options.works.clone().unwrap_or_else(|| Work::value_variants().to_vec()) {
        let mut sums: Vec<Figure> = systems.iter().map(|_| Figure::default()).collect();
        for turn in 1..=TURNS {
            for (system, sum) in systems.iter_mut().zip(&mut sums) {
                eprintln!("{}, turn {turn} of {TURNS}: {}", work.name(), system.name());
                sum.add(measure(system.as_mut(), work, common.duration() / TURNS).await?);
            }
        }
        rows.extend(systems.iter().zip(sums).map(|(system, sum)| sum.row(work, system.name())));
    }
    for system in systems {
        system.stop().await?;
    }
    common.report(&rows)
}

pub(super) async fn measure(system: &mut dyn Messaging, work: Work, duration: Duration) -> Result<Figure> {
    let pids = system.pids();
    match (work, work.stream()) {
        (_, Some(stream)) => flow::stream(system, stream, duration, &pids).await,
        (Work::RequestReply, None) => requests(system, duration, &pids).await,
        (_, None) => flow::paced(system, PACE, duration, &pids).await,
    }
}

async fn requests(system: &mut dyn Messaging, duration: Duration, pids: &[u32]) -> Result<Figure> {
    let (asking, answering) = (system.connect(0).await?, system.connect(1).await?);
    answering.respond("bench.ask").await?;
    asking.request("bench.ask").await?;
    let mut figure = Figure::default();
    let (began, cpu) = (Instant::now(), cpu_seconds(pids)?);
    while began.elapsed() < duration {
        let asked = Instant::now();
        asking.request("bench.ask").await?;
        figure.count += 1;
        figure.latencies_us.push(micros(asked.elapsed()));
    }
    figure.seconds = began.elapsed().as_secs_f64();
    figure.cpu_seconds = cpu_seconds(pids)? - cpu;
    Ok(figure)
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// What one or more turns gave.
#[derive(Default)]
pub(super) struct Figure {
    count: u64,
    seconds: f64,
    cpu_seconds: f64,
    /// Empty where latencies mean nothing.
    latencies_us: Vec<u32>,
}

impl Figure {
    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.seconds += other.seconds;
        self.cpu_seconds += other.cpu_seconds;
        self.latencies_us.extend(other.latencies_us);
    }

    /// Deliveries or answers a second.
    #[expect(clippy::cast_precision_loss, reason = "a count is far below 2^52")]
    pub(super) fn ops_per_s(&self) -> f64 {
        self.count as f64 / self.seconds
    }

    /// CPU time of the servers for each.
    #[expect(clippy::cast_precision_loss, reason = "a count is far below 2^52")]
    pub(super) fn cpu_us_per_op(&self) -> f64 {
        self.cpu_seconds * 1e6 / (self.count as f64).max(1.0)
    }

    fn row(mut self, work: Work, system: &str) -> Row {
        self.latencies_us.sort_unstable();
        let quantile = |per_cent: usize| {
            let place = self.latencies_us.len() * per_cent / 100;
            self.latencies_us.get(place).map(|us| f64::from(*us))
        };
        Row {
            bench: "pubsub",
            work: work.name(),
            system: system.to_owned(),
            clients: work.stream().map_or(1, |stream| stream.publishers),
            ops_per_s: Some(self.ops_per_s()),
            p50_us: quantile(50),
            p99_us: quantile(99),
            cpu_us_per_op: Some(self.cpu_us_per_op()),
        }
    }
}

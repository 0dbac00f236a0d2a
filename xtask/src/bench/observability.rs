//! `bench observability`: what metrics and traces cost. One cluster does a work over and over, and signals say what it records meanwhile: nothing,
//! metrics, or metrics and 1 % of the traces, which go to a collector here. Its nodes are of a build with the feature `switched`, which differs from
//! the shipped one in nothing but that it can be told. Decides the works and the order of the turns; [`losses`] judges the figures, [`collector`] takes the traces.
//!
//! Why not two builds side by side: three node processes differ from another three of the same program by more than recording may cost, for as long
//! as they live. A round measures each recording once, beginning with another one each time, so that what one lost is a ratio of neighbours in time on the
//! very same processes. Turns are short and many: the machine's moods last longer than a turn.

mod collector;
mod losses;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use tokio::time::sleep;

use super::load::drive;
use super::turns::Does;
use super::{Build, RELEASE_BUILD, System, form, kv, pubsub, seconds, sql};
use crate::cluster::{Cluster, probe};
use crate::steps::{cargo, run as run_program, target_folder};
use collector::Collector;
use losses::{Figure, Figures, Loss, Verdict};

/// Clients of the works that ask and wait: enough to keep the machine busy.
const CLIENTS: usize = 64;
/// What Prometheus usually does to each node.
const SCRAPE_EVERY: Duration = Duration::from_secs(15);
/// Rounds of each cluster that are not counted, so that it is warm.
const WARM_UP_ROUNDS: u32 = 1;

/// Options of `bench observability`.
#[derive(Args)]
pub(crate) struct ObservabilityOptions {
    /// Seconds of one recording at one work in one round.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// Rounds, over all clusters: each gives a ratio of each recording at each work.
    #[arg(long, default_value_t = 27, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How many clusters, one after the other, the rounds are shared out to.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    clusters: u32,
    /// What the clients do.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WORK,..")]
    works: Option<Vec<Work>>,
    /// Write the results to FILE as JSON, one object a line.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What a client does over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Work {
    /// One row; acknowledged when a quorum has it on disk.
    SqlInsert,
    /// One row by its key, as of now.
    SqlRead,
    /// A value of 256 bytes; acknowledged when a quorum has it on disk.
    KvPut,
    /// One key with all that was acknowledged before.
    KvGet,
    /// 128 bytes from one publisher to one subscriber at another node.
    #[value(name = "pubsub_across_nodes")]
    PubSubAcrossNodes,
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Self::SqlInsert => "sql_insert",
            Self::SqlRead => "sql_read",
            Self::KvPut => "kv_put",
            Self::KvGet => "kv_get",
            Self::PubSubAcrossNodes => "pubsub_across_nodes",
        }
    }

    fn engine(self) -> Engine {
        match self {
            Self::SqlInsert | Self::SqlRead => Engine::Sql,
            Self::KvPut | Self::KvGet => Engine::Kv,
            Self::PubSubAcrossNodes => Engine::PubSub,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    Sql,
    Kv,
    PubSub,
}

/// What is recorded, and what may be lost by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recording {
    Nothing,
    Metrics,
    MetricsAndTraces,
}

impl Recording {
    /// The first is what the others are compared with.
    const ALL: [Self; 3] = [Self::Nothing, Self::Metrics, Self::MetricsAndTraces];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Metrics => "metrics",
            Self::MetricsAndTraces => "metrics+traces",
        }
    }

    /// The part of the throughput that may be lost.
    fn limit(self) -> f64 {
        match self {
            Self::Nothing => 0.0,
            Self::Metrics => 0.02,
            Self::MetricsAndTraces => 0.04,
        }
    }

    /// What tells a node of it.
    fn signal(self) -> i32 {
        let place = match self {
            Self::Nothing => 0,
            Self::Metrics => 1,
            Self::MetricsAndTraces => 2,
        };
        libc::SIGRTMIN() + place
    }
}

/// The build that can be told, with a collector. The node samples 1 % of what comes without a trace: the default of `tracing.sampling_ratio`.
fn switched(collector: &Collector) -> Build {
    Build { name: "observability", program: switched_program(), collector: Some(collector.endpoint()) }
}

/// Where that build is kept: cargo puts the next one in its place.
fn switched_program() -> PathBuf {
    target_folder().join("bench").join(format!("debros-node-switched{}", std::env::consts::EXE_SUFFIX))
}

/// Builds it.
pub(super) fn build_switched() -> Result<()> {
    run_program(cargo(&[&RELEASE_BUILD[..], &["--features", "debros-node/switched"]].concat()))?;
    let (built, kept) = (Build::shipped().program, switched_program());
    fs::create_dir_all(target_folder().join("bench"))?;
    fs::copy(&built, &kept)
        .with_context(|| format!("cannot copy {} to {}", built.display(), kept.display()))?;
    Ok(())
}

/// A running cluster, at the works of one engine.
enum Measured {
    Sql(sql::debros::Debros),
    Kv(kv::debros::Debros),
    PubSub(pubsub::debros::Debros),
}

impl Measured {
    async fn start(engine: Engine, build: &Build) -> Result<Self> {
        Ok(match engine {
            Engine::Sql => Self::Sql(sql::debros::start(build).await?),
            Engine::Kv => Self::Kv(kv::debros::start(build).await?),
            Engine::PubSub => Self::PubSub(pubsub::debros::start(build).await?),
        })
    }

    fn cluster(&self) -> &Cluster {
        match self {
            Self::Sql(system) => system.cluster(),
            Self::Kv(system) => system.cluster(),
            Self::PubSub(system) => system.cluster(),
        }
    }

    async fn work(&mut self, work: Work, duration: Duration) -> Result<Figure> {
        match (self, work) {
            (Self::Sql(system), Work::SqlInsert) => asked(system, sql::Work::Insert, duration).await,
            (Self::Sql(system), _) => asked(system, sql::Work::LinearizableRead, duration).await,
            (Self::Kv(system), Work::KvPut) => asked(system, kv::Work::PutFsync, duration).await,
            (Self::Kv(system), _) => asked(system, kv::Work::GetR2, duration).await,
            (Self::PubSub(system), _) => {
                let figure = pubsub::measure(system, pubsub::Work::Across128b, duration).await?;
                Ok(Figure { ops_per_s: figure.ops_per_s(), cpu_us_per_op: figure.cpu_us_per_op() })
            }
        }
    }

    async fn stop(self) -> Result<()> {
        match self {
            Self::Sql(system) => Box::new(system).stop().await,
            Self::Kv(system) => Box::new(system).stop().await,
            Self::PubSub(system) => Box::new(system).stop().await,
        }
    }
}

/// A running cluster, and when each recording is to be scraped.
struct Switched {
    system: Measured,
    /// With each recording that there is something of, it was measured for so long since a node was scraped.
    unscraped: [Duration; Recording::ALL.len()],
    scrapes: usize,
}

impl Switched {
    /// One recording at one work in one round. Nodes are scraped in the middle of turns, one after the other, as often as is usual for the time that
    /// is measured.
    async fn turn(&mut self, place: usize, work: Work, duration: Duration) -> Result<Figure> {
        let recording = Recording::ALL[place];
        let cluster = self.system.cluster();
        let nodes = cluster.nodes();
        for index in 0..nodes.len() {
            cluster.signal(index, recording.signal());
        }
        let port = nodes[self.scrapes % nodes.len()].admin_port();
        self.unscraped[place] += duration;
        let due =
            recording != Recording::Nothing && self.unscraped[place] * nodes.len() as u32 >= SCRAPE_EVERY;
        if due {
            self.unscraped[place] = Duration::ZERO;
            self.scrapes += 1;
        }
        let scraping = async {
            sleep(duration / 2).await;
            if due {
                let answer = probe(port, "/metrics").await.context("a node gave no metrics")?;
                ensure!(answer.status == 200, "a node answered {} when it was scraped", answer.status);
            }
            Ok(())
        };
        let turn = async { tokio::try_join!(self.system.work(work, duration), scraping) };
        let failed = || format!("{} with {} recorded failed", work.name(), recording.name());
        turn.await.map(|(figure, ())| figure).with_context(failed)
    }
}

/// A turn of a work whose clients ask and wait.
async fn asked<W: super::turns::Work>(
    system: &mut impl Does<W>,
    work: W,
    duration: Duration,
) -> Result<Figure> {
    let sessions = system.sessions(work, CLIENTS).await?;
    let measured = drive(sessions, duration, &system.pids()).await?;
    Ok(Figure { ops_per_s: measured.ops_per_s(), cpu_us_per_op: measured.cpu_us_per_op() })
}

/// Measures, shows what was lost, and fails where it certainly is more than may be.
pub(super) async fn run(options: &ObservabilityOptions) -> Result<()> {
    let asked = options.works.clone().unwrap_or_else(|| Work::value_variants().to_vec());
    let collector = Collector::start().await?;
    let mut losses = Vec::new();
    for engine in [Engine::Sql, Engine::Kv, Engine::PubSub] {
        let works: Vec<Work> = asked.iter().copied().filter(|work| work.engine() == engine).collect();
        if !works.is_empty() {
            losses.extend(of_engine(engine, &works, &collector, options).await?);
        }
    }
    let exports = collector.exports();
    println!("{}", losses::table(&losses));
    println!("{} requests to the collector, {} KiB of spans", exports.requests, exports.bytes / 1024);
    if let Some(path) = &options.json {
        form::write_json(path, &losses)?;
    }
    ensure!(exports.requests > 0, "no trace came to the collector, so what traces cost was not measured");
    let broken: Vec<String> =
        losses.iter().filter(|loss| loss.verdict() == Verdict::Over).map(Loss::told).collect();
    ensure!(broken.is_empty(), "recording costs more than it may: {}", broken.join("; "));
    Ok(())
}

/// The works of one engine, on clusters that are started anew now and then.
async fn of_engine(
    engine: Engine,
    works: &[Work],
    collector: &Collector,
    options: &ObservabilityOptions,
) -> Result<Vec<Loss>> {
    let mut figures = vec![Recording::ALL.map(|_| Figures::default()); works.len()];
    for cluster in 1..=options.clusters {
        eprintln!("{engine:?}: cluster {cluster} of {}", options.clusters);
        let system = Measured::start(engine, &switched(collector)).await?;
        let mut switched = Switched { system, unscraped: Default::default(), scrapes: 0 };
        rounds(&mut switched, works, &mut figures, options).await?;
        switched.system.stop().await?;
    }
    let mut losses = Vec::new();
    for (work, figures) in works.iter().zip(&figures) {
        for (recording, recorded) in Recording::ALL.into_iter().zip(figures) {
            losses.push(Loss::of(work.name(), recording.name(), recording.limit(), recorded, &figures[0]));
        }
    }
    Ok(losses)
}

async fn rounds(
    switched: &mut Switched,
    works: &[Work],
    figures: &mut [[Figures; Recording::ALL.len()]],
    options: &ObservabilityOptions,
) -> Result<()> {
    let duration = Duration::from_secs_f64(options.seconds);
    let counted = options.rounds.div_ceil(options.clusters);
    for round in 0..WARM_UP_ROUNDS + counted {
        for (work, figures) in works.iter().zip(&mut *figures) {
            for step in 0..Recording::ALL.len() {
                let place = (round as usize + step) % Recording::ALL.len();
                let figure = switched.turn(place, *work, duration).await?;
                if round >= WARM_UP_ROUNDS {
                    figures[place].push(figure);
                }
            }
            eprintln!("{}: round {round} of {counted} (0 warms up)", work.name());
        }
    }
    Ok(())
}

//! `cargo xtask bench`: how fast it is, beside others where asked. This module decides what is measured in which order and
//! gives all benchmarks one command line; [`form`] shows results, [`load`] takes them, and each benchmark has a module for its
//! works and one in its folder for each system that does them.
//!
//! Systems are measured in turns within one run, on one disk, so that what the machine does meanwhile meets both.

mod etcd;
mod form;
mod kv;
mod load;
mod observability;
mod pubsub;
mod sql;
mod turns;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use clap::{Args, Subcommand};
use debros_config::Config;

use crate::cluster::{Cluster, Layout, node_program};
use crate::steps::{cargo, run as run_program, step, target_folder};
use form::Row;

/// Clients share so many connections, whatever the system: more would measure connections.
const CONNECTIONS_MAX: usize = 8;
/// What benchmarks measure, and what measures.
const RELEASE_BUILD: [&str; 6] = ["build", "--release", "--package", "debros-node", "--package", "xtask"];
/// How results name this project.
const OURS: &str = "debros";

/// Which benchmark.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// The SQL database: single inserts, reads, transactions of 100 rows, and the write outage when a leader dies.
    Sql(sql::SqlOptions),
    /// The key-value storage: puts, reads and listings.
    Kv(kv::KvOptions),
    /// Pub/sub: messages across nodes, to many subscribers, with wildcards, and requests.
    #[command(name = "pubsub")]
    PubSub(pubsub::PubSubOptions),
    /// What metrics and traces cost: nothing recorded, metrics, and 1 % of traces, in turns. Fails over the limits.
    Observability(observability::ObservabilityOptions),
}

/// What every benchmark understands.
#[derive(Args)]
pub(crate) struct CommonOptions {
    /// Seconds that each figure is measured for.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    seconds: f64,
    /// A first impression: few clients, a second a figure.
    #[arg(long)]
    quick: bool,
    /// Write the results to FILE as JSON, one object a line.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many clients ask at the same time.
    #[arg(long, value_delimiter = ',', value_name = "N,..", value_parser = clap::value_parser!(u16).range(1..=4096))]
    clients: Option<Vec<u16>>,
}

impl CommonOptions {
    fn duration(&self) -> Duration {
        Duration::from_secs_f64(if self.quick { 1.0 } else { self.seconds })
    }

    fn clients(&self, usual: &[u16], quick: &[u16]) -> Vec<usize> {
        let asked = self.clients.as_deref();
        asked
            .unwrap_or(if self.quick { quick } else { usual })
            .iter()
            .map(|count| usize::from(*count))
            .collect()
    }

    /// Shows the results and writes them where they were asked for.
    fn report(&self, rows: &[Row]) -> Result<()> {
        let rows = form::with_ratios(rows, OURS);
        println!("{}", form::table(&rows));
        match &self.json {
            Some(path) => form::write_json(path, &rows),
            None => Ok(()),
        }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number of seconds from 0.1 to 3600 is needed".to_owned()),
    }
}

/// A running system under measurement.
#[async_trait]
pub(crate) trait System: Send {
    /// As results name it.
    fn name(&self) -> &'static str;
    /// The processes whose CPU time counts.
    fn pids(&self) -> Vec<u32>;
    /// Stops all processes.
    async fn stop(self: Box<Self>) -> Result<()>;
}

/// A program on the PATH, or where Debian puts servers. Says so where there is none.
fn program(name: &str, package: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let found = folders.map(|folder| folder.join(name)).find(|program| program.is_file());
    if found.is_none() {
        eprintln!("{name}: skipped, because there is no {name} on the PATH (Debian: {package})");
    }
    found
}

/// A build of this project, and how it is told to work.
#[derive(Clone)]
struct Build {
    /// As results name it; its folder, too.
    name: &'static str,
    program: PathBuf,
    /// Where its traces go, if it is to make any.
    collector: Option<String>,
}

impl Build {
    /// The release build as it is shipped.
    fn shipped() -> Self {
        Self { name: OURS, program: node_program(&target_folder(), "release"), collector: None }
    }

    /// A cluster of it on an empty folder, started.
    async fn cluster(&self, nodes: usize, differs: impl Fn(&mut Config)) -> Result<Cluster> {
        let layout = Layout {
            program: self.program.clone(),
            folder: target_folder().join("bench").join(self.name),
            nodes,
            keep_data: false,
        };
        let mut cluster = Cluster::prepare_with(layout, |config| {
            config.tracing.otlp_endpoint.clone_from(&self.collector);
            differs(config);
        })?;
        cluster.start_all().await?;
        Ok(cluster)
    }
}

/// Empties the folder in which a system keeps its data and its logs.
fn empty_folder(system: &str) -> Result<PathBuf> {
    let folder = target_folder().join("bench").join(system);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Runs a benchmark. A debug build would measure itself, so it hands over to a release build.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    if cfg!(debug_assertions) {
        match bench {
            Bench::Observability(_) => step("build (release, switched)", observability::build_switched)?,
            _ => step("build (release)", || run_program(cargo(&RELEASE_BUILD)))?,
        }
        let program = target_folder().join("release").join(format!("xtask{}", std::env::consts::EXE_SUFFIX));
        let mut again = Command::new(program);
        again.args(std::env::args_os().skip(1));
        let status = again.status()?;
        if !status.success() {
            bail!("the benchmark ended with {status}; what it printed above says why");
        }
        return Ok(());
    }
    tokio::runtime::Runtime::new()?.block_on(async {
        match bench {
            Bench::Sql(options) => sql::run(options).await,
            Bench::Kv(options) => kv::run(options).await,
            Bench::PubSub(options) => pubsub::run(options).await,
            Bench::Observability(options) => observability::run(options).await,
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::Bench;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        bench: Bench,
    }

    #[test]
    fn the_command_line_is_checked_before_anything_is_built() {
        for good in [
            "sql",
            "sql --quick --against etcd",
            "sql --seconds 0.5 --clients 1,8 --works insert,stale_read --json x",
            "kv",
            "kv --against etcd,nats-kv --works put_fsync,put_relaxed,get_r1,get_r2,list_100",
            "pubsub --against nats --works across_128b,across_1kib,fanout_1_to_8,four_to_four",
            "pubsub --works request_reply,delivery_1000,wildcards_1,wildcards_10k",
            "observability --rounds 3 --clusters 2 --seconds 0.5 --works sql_insert,pubsub_across_nodes --json x",
        ] {
            assert!(Line::try_parse_from(format!("bench {good}").split(' ')).is_ok(), "{good}");
        }
        for bad in [
            "sql --seconds 0",
            "sql --clients 0",
            "sql --against nobody",
            "sql --against nats-kv",
            "sql --works sorting",
            "kv --works sorting",
            "pubsub --against etcd",
            "observability --rounds 0",
        ] {
            assert!(Line::try_parse_from(format!("bench {bad}").split(' ')).is_err(), "{bad}");
        }
    }
}

//! `cargo xtask observe`: do the dashboards, rules and alerts show what there is? Statically first: promtool runs the tests of the
//! rules, Grafana's published models read the dashboards. Then live: a real Prometheus scrapes three real nodes under a mixed load, and
//! every expression of every panel, rule and alert is evaluated over its HTTP API. One that is empty, `NaN` or an error fails the command.

mod expressions;
mod faults;
mod load;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Args;
use tokio::time::sleep;

use crate::cluster::{Cluster, Layout, node_program};
use crate::prometheus::{Programs, Prometheus, scrape_config};
use crate::rules::{ALERTS_PATH, RULES_PATH};
use crate::slo::Slo;
use crate::steps::{cargo, run as run_program, step, target_folder, workspace_root};
use crate::{dashboards, python, rules};
use expressions::{Expression, Verdict};
use load::{Load, Patience};

/// The models of Grafana 11.6, as its authors publish them for Python.
const GRAFANA_MODELS: &str = "grafana-foundation-sdk==1769699379!11.6.0";
const CLUSTER: &str = "observe";
const NODES: usize = 3;
/// Between scrapes: rates need several of them within the short run.
const SCRAPE_SECONDS: u32 = 1;
/// What has not got its value then has none: probes and repair run each few seconds.
const VALUES_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Whether each node answered each scrape since the load began.
const REACHED: &str = "min_over_time(up{job=\"debros\"}[15s])";

/// Options of `observe`.
#[derive(Args)]
pub(crate) struct ObserveOptions {
    /// How long the load runs before anything is evaluated.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(10..=86400))]
    seconds: u64,
    /// Build the nodes with optimisation.
    #[arg(long)]
    release: bool,
    /// Instead: skew a clock, stop a follower, kill a node and fill a disk, and see that each turns exactly its own checks and alerts and
    /// that they clear. Takes ten minutes.
    #[arg(long, conflicts_with_all = ["seconds", "keep"])]
    faults: bool,
    /// Leave the cluster, the load and Prometheus running until Ctrl-C, to look around.
    #[arg(long)]
    keep: bool,
}

/// How a run is made.
struct Run {
    program: PathBuf,
    folder: PathBuf,
    load_for: Duration,
    keep: bool,
}

/// Builds, checks and observes; without a Prometheus it fails.
pub(crate) fn run(options: &ObserveOptions) -> Result<()> {
    let Some(programs) = Programs::set_up()? else { bail!("there is nothing to observe with") };
    let mut arguments = vec!["build", "--package", "debros-node", "--bin", "debros-node"];
    if options.release {
        arguments.push("--release");
    }
    run_program(cargo(&arguments))?;
    let slo = Slo::read(&workspace_root())?;
    if !options.faults {
        check_rules(&programs, &slo)?;
        check_dashboards(&slo)?;
    }
    let profile = if options.release { "release" } else { "debug" };
    let run = Run {
        program: node_program(&target_folder(), profile),
        folder: target_folder().join(if options.faults { "observe-faults" } else { "observe" }),
        load_for: Duration::from_secs(options.seconds),
        keep: options.keep,
    };
    if options.faults {
        return faults::run(&programs, &slo, &run);
    }
    watch(&programs, &slo, &run)
}

/// The short form, for the tests, with the programs that are built already. Where Prometheus cannot be had it says so and goes on.
pub(crate) fn test() -> Result<()> {
    let slo = Slo::read(&workspace_root())?;
    step("dashboards: against Grafana's models", || check_dashboards(&slo))?;
    let Some(programs) = step("prometheus: set up", Programs::set_up)? else { return Ok(()) };
    step("rules and alerts: promtool's tests", || check_rules(&programs, &slo))?;
    let run = Run {
        program: node_program(&target_folder(), "debug"),
        folder: target_folder().join("observe-test"),
        load_for: Duration::from_secs(15),
        keep: false,
    };
    step("dashboards, rules and alerts on a live cluster", || watch(&programs, &slo, &run))
}

fn check_rules(programs: &Programs, slo: &Slo) -> Result<()> {
    programs.promtool(&["check", "rules", RULES_PATH, ALERTS_PATH])?;
    let tests = rules::test_files(slo)?;
    let paths = tests.iter().map(|(path, _)| path.as_str());
    programs.promtool(&["test", "rules"].into_iter().chain(paths).collect::<Vec<_>>())
}

fn check_dashboards(slo: &Slo) -> Result<()> {
    let python = python::environment("python-grafana", GRAFANA_MODELS)?;
    let mut command = std::process::Command::new(python);
    command.current_dir(workspace_root()).arg("xtask/python/grafana_dashboards.py");
    command.args(dashboards::all(slo)?.iter().map(dashboards::path));
    run_program(command)
}

fn watch(programs: &Programs, slo: &Slo, run: &Run) -> Result<()> {
    let expressions = expressions::all(slo)?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let layout = Layout {
            program: run.program.clone(),
            folder: run.folder.clone(),
            nodes: NODES,
            keep_data: false,
        };
        let mut cluster = Cluster::prepare(layout)?;
        cluster.start_all().await?;
        let configuration = scrape_config(&cluster, CLUSTER, SCRAPE_SECONDS)?;
        let folder = fresh(&run.folder.join("prometheus"))?;
        let prometheus = Prometheus::start(programs, &folder, &configuration).await?;
        println!("prometheus at {}, scraping {NODES} nodes each {SCRAPE_SECONDS} s", prometheus.url());
        let load = Load::start(&cluster, Patience::None).await?;
        let observed = observe(&prometheus, &load, &expressions, run).await;
        if run.keep && observed.is_ok() {
            println!("all of it keeps running at {}; Ctrl-C ends it", prometheus.url());
            tokio::signal::ctrl_c().await?;
        }
        let asked = load.stop().await;
        prometheus.stop().await?;
        cluster.stop().await?;
        observed?;
        println!("the load meanwhile: {}", asked?);
        Ok(())
    })
}

fn fresh(folder: &Path) -> Result<PathBuf> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    Ok(folder.to_owned())
}

async fn observe(prometheus: &Prometheus, load: &Load, expressions: &[Expression], run: &Run) -> Result<()> {
    println!("a mixed load for {:?}", run.load_for);
    sleep(run.load_for).await;
    let started = Instant::now();
    let mut verdicts = Vec::new();
    loop {
        load.check()?;
        verdicts.clear();
        for expression in expressions {
            verdicts.push(expression.evaluate(prometheus).await);
        }
        if verdicts.iter().all(Verdict::is_well) || started.elapsed() > VALUES_WITHIN {
            break;
        }
        sleep(LOOK_EVERY).await;
    }
    for (expression, verdict) in expressions.iter().zip(&verdicts) {
        println!("{verdict}  {expression}");
    }
    let failing = prometheus.failing_rules().await?;
    for sample in prometheus.evaluate(REACHED).await? {
        ensure!(sample.value == 1.0, "a node gave no metrics for a while: it hangs, or was away");
    }
    ensure!(failing.is_empty(), "rules fail: {}", failing.join("; "));
    let wrong = verdicts.iter().filter(|verdict| !verdict.is_well()).count();
    ensure!(
        wrong == 0,
        "{wrong} of {} expressions are empty, NaN or wrong (marked above)",
        expressions.len()
    );
    println!("{} expressions, each with a value", expressions.len());
    Ok(())
}

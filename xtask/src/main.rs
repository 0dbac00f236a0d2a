//! `cargo xtask`: the commands of this project, one module each. It decides nothing itself; it
//! parses the command line and hands over.

mod bench;
mod charts;
mod ci;
mod cluster;
mod crash;
mod dashboards;
mod debian;
mod digest;
mod e2e;
mod generate;
mod grow;
mod image;
mod k8s;
mod membership;
mod metrics;
mod observe;
mod outage;
mod pace;
mod prometheus;
mod puts;
mod python;
mod rqlite_client;
mod rules;
mod server;
mod sim;
mod slo;
mod steps;
mod storage;
mod tidy;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The commands of this project.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a cluster of three processes and show what it does, a killed leader included.
    Up(up::UpOptions),
    /// Kill a random node again and again under load of SQL and storage; check that nothing acknowledged is lost.
    Crash(crash::CrashOptions),
    /// Grow a cluster from three nodes to five while clients put; check that nothing is lost, and how much moves.
    Grow(grow::GrowOptions),
    /// Evaluate every panel, rule and alert by a real Prometheus on a real cluster under load; none may be empty or wrong.
    Observe(observe::ObserveOptions),
    /// Write images of the node and of the operator, made here of programs built here.
    Image(image::ImageOptions),
    /// A real Kubernetes on this machine: control plane, nodes, DNS, volumes and zones, from programs built here.
    #[command(subcommand)]
    K8s(k8s::Kubernetes),
    /// The images on a real Kubernetes, under a load that remembers every acknowledged write.
    #[command(subcommand)]
    E2e(e2e::EndToEnd),
    /// Everything CI runs: fmt, tidy, gen --check, clippy, docs, test.
    Ci,
    /// All tests, with their own set-up: an rqlite client and a Prometheus that are not ours, the demonstration, then cargo's.
    Test,
    /// Check what the compiler cannot: crate edges, library doors, house rules, links.
    Tidy,
    /// Write the generated files.
    Gen {
        /// Change nothing; fail when a generated file is not what it should be.
        #[arg(long)]
        check: bool,
    },
    /// The page of all metrics, and what a scrape costs.
    #[command(subcommand)]
    Metrics(metrics::Metrics),
    /// How fast it is: a table, and JSON where asked.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Whole nodes in simulated time, under faults drawn from a seed.
    #[command(subcommand)]
    Sim(sim::Simulation),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Up(options) => up::run(&options),
        Command::Crash(options) => crash::run(&options),
        Command::Grow(options) => grow::run(&options),
        Command::Observe(options) => observe::run(&options),
        Command::Image(options) => image::run(&options).map(drop),
        Command::K8s(command) => k8s::run(&command),
        Command::E2e(command) => e2e::run(&command),
        Command::Ci => ci::ci(),
        Command::Test => ci::test(),
        Command::Tidy => tidy::run(),
        Command::Gen { check } => generate::run(check),
        Command::Metrics(command) => metrics::metrics(&command),
        Command::Bench(bench) => bench::run(&bench),
        Command::Sim(simulation) => sim::simulate(&simulation),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

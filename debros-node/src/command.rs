//! The command line of `debros-node`.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use debros_config::{Config, ListenAddress, Loaded, NodeType, PeerAddress};
use tokio::signal::unix::{SignalKind, signal};

use crate::dev::{self, DevCluster, DevError, DevOptions};
use crate::launch::{Launched, launch};
use crate::logging;

/// A node of a debros cluster: a replicated SQL database, peer to peer.
#[derive(Debug, Parser)]
#[command(name = "debros-node", version, args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    start: StartArguments,
}

const EXAMPLES: &str = "\
Examples:
  debros-node dev                                  three nodes in one process, to try things out
  debros-node --config configs/bootstrap.yaml      the first node of a cluster
  debros-node --config configs/node.yaml           a node that joins it
  debros-node config validate --config node.yaml   check a configuration without starting

Every key of the configuration can be set by an environment variable:
  DEBROS_NODE__DATA_DIR=/var/lib/debros LOG_LEVEL=debug debros-node --config node.yaml";

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a cluster in this process, for trying things out.
    Dev(DevArguments),
    /// Check or show a configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration file, YAML. Without one, defaults and environment variables count.
    #[arg(short, long, env = "DEBROS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct StartArguments {
    #[command(flatten)]
    file: ConfigFile,
    /// Where everything of this node is kept (node.data_dir).
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Where to listen, a multiaddr; may be given several times (node.listen_addresses).
    #[arg(long, value_name = "MULTIADDR")]
    listen: Vec<ListenAddress>,
    /// A member to join, a multiaddr; may be given several times (discovery.bootstrap_peers).
    #[arg(long, value_name = "MULTIADDR")]
    bootstrap: Vec<PeerAddress>,
    /// The port of the HTTP API (database.rqlite_port).
    #[arg(long, value_name = "PORT")]
    http_port: Option<u16>,
    /// The port of health and metrics (admin.port).
    #[arg(long, value_name = "PORT")]
    admin_port: Option<u16>,
    /// Begin a new cluster if the data folder is empty (node.type: bootstrap).
    #[arg(long)]
    begin: bool,
}

#[derive(Debug, Args)]
struct DevArguments {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=200))]
    nodes: u16,
    /// Keep the data here; without it, it is thrown away at the end.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// The first node's HTTP port, the others' follow; 0 for free ports.
    #[arg(long, default_value_t = 5001, value_name = "PORT")]
    http_port: u16,
    /// The first node's peer-to-peer port, the others' follow; 0 for free ports.
    #[arg(long, default_value_t = 4001, value_name = "PORT")]
    port: u16,
    /// Stop once the cluster has formed.
    #[arg(long)]
    once: bool,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check a configuration: errors, warnings, and keys that are not in effect yet.
    Validate(ConfigFile),
    /// Print the whole configuration in effect, defaults and environment included.
    Print(ConfigFile),
}

/// Runs the command line.
///
/// # Errors
/// What went wrong and what to do, for `main` to print.
pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Some(Command::Config(command)) => configuration(command),
        Some(Command::Dev(arguments)) => runtime(cores())?.block_on(run_dev(arguments)),
        None => {
            let loaded = start_config(arguments.start)?;
            // The Raft log and every database have a thread of their own, so the reactor leaves them a core:
            // with one more, a small machine spends its time on waking threads.
            runtime((cores() - 1).max(1))?.block_on(run_node(loaded))
        }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

fn runtime(workers: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        builder.worker_threads(workers);
    }
    builder.enable_all().build().context("the async runtime cannot start")
}

fn load(file: &Option<PathBuf>) -> anyhow::Result<Loaded> {
    let environment = std::env::vars_os();
    Ok(match file {
        Some(path) => Config::load(path, environment)?,
        None => Config::from_yaml_and_environment("", environment)?,
    })
}

fn configuration(command: ConfigCommand) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Validate(file) => {
            let Loaded { config, warnings } = load(&file.config)?;
            for warning in &warnings {
                println!("warning: {warning}");
            }
            for key in config.not_in_effect() {
                println!("not in effect: {key}");
            }
            println!("the configuration is valid");
        }
        ConfigCommand::Print(file) => print!("{}", load(&file.config)?.config.to_yaml()),
    }
    Ok(ExitCode::SUCCESS)
}

/// The configuration of file, environment and command line, with what is to be said about all of it.
fn start_config(arguments: StartArguments) -> anyhow::Result<Loaded> {
    let StartArguments { file, data_dir, listen, bootstrap, http_port, admin_port, begin } = arguments;
    let Loaded { mut config, mut warnings } = load(&file.config)?;
    // What keys are to each other is judged below, once the command line has had its say.
    let premature = config.warnings();
    warnings.retain(|warning| !premature.contains(warning));
    if let Some(folder) = data_dir {
        config.move_data_dir(folder);
    }
    if !listen.is_empty() {
        config.node.listen_addresses = listen;
    }
    if !bootstrap.is_empty() {
        config.discovery.bootstrap_peers = bootstrap;
    }
    config.database.rqlite_port = http_port.unwrap_or(config.database.rqlite_port);
    config.admin.port = admin_port.unwrap_or(config.admin.port);
    if begin {
        config.node.node_type = NodeType::Bootstrap;
    }
    config.validate()?;
    warnings.extend(config.warnings());
    Ok(Loaded { config, warnings })
}

async fn run_node(loaded: Loaded) -> anyhow::Result<ExitCode> {
    let Loaded { config, warnings } = loaded;
    logging::start(&config)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    for key in config.not_in_effect() {
        tracing::warn!("not in effect: {key}");
    }
    let launched = launch(&config).await?;
    announce(&launched);
    let failure = tokio::select! {
        failure = launched.failed() => Some(failure),
        () = asked_to_stop() => None,
    };
    launched.shutdown().await;
    match failure {
        Some(failure) => Err(failure.into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn announce(launched: &Launched) {
    let peer = launched.node.peer_id();
    for address in launched.node.addresses() {
        tracing::info!("listening on {address}/p2p/{peer}");
    }
    tracing::info!("HTTP API on {}, health and metrics on {}", launched.http, launched.admin);
}

/// Watches from the call on, not only once it is awaited.
fn asked_to_stop() -> impl Future<Output = ()> {
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be watched");
    let mut interrupt = signal(SignalKind::interrupt()).expect("signals can be watched");
    async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("asked to stop by SIGTERM"),
            _ = interrupt.recv() => tracing::info!("asked to stop by SIGINT"),
        }
    }
}

async fn run_dev(arguments: DevArguments) -> anyhow::Result<ExitCode> {
    logging::start(&dev_log()?)?;
    // From the beginning: a cluster that is forming is stopped as cleanly as one that has formed.
    let mut stop = Box::pin(asked_to_stop());
    let temporary = temporary_folder(&arguments)?;
    let folder = arguments.data_dir.as_deref().or(temporary.as_ref().map(TemporaryFolder::path));
    let folder = folder.expect("one of the two is there");
    let options = DevOptions {
        nodes: usize::from(arguments.nodes),
        first_http_port: arguments.http_port,
        first_listen_port: arguments.port,
    };
    println!("starting {} nodes under {}", options.nodes, folder.display());
    if let Some(cluster) = dev::start(folder, &options, &mut stop).await? {
        println!("{} nodes are up; waiting until all are members and connected", options.nodes);
        let outcome = attend(&cluster, arguments.once, stop).await;
        cluster.shutdown().await;
        outcome?;
    }
    Ok(ExitCode::SUCCESS)
}

/// How `dev` logs: as a node does, but quieter, because many nodes speak at once. Only what concerns the
/// log is taken from the environment, for everything else is chosen here.
fn dev_log() -> anyhow::Result<Config> {
    let of_the_log = |name: &str| name == "LOG_LEVEL" || name.starts_with("DEBROS_LOGGING_");
    let environment = std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_the_log));
    Ok(Config::from_yaml_and_environment("logging: { level: warn }", environment)?.config)
}

/// Tells of the cluster until it is to be stopped.
async fn attend(
    cluster: &DevCluster,
    once: bool,
    mut stop: impl Future<Output = ()> + Unpin,
) -> Result<(), DevError> {
    let formed_in = tokio::select! {
        formed = cluster.formed() => formed?,
        () = &mut stop => return Ok(()),
    };
    println!("{} members, fully connected after {:.1} s\n", cluster.nodes.len(), formed_in.as_secs_f64());
    for (number, launched) in cluster.nodes.iter().enumerate() {
        let peer = launched.node.peer_id();
        let address = launched.node.addresses().first().map(ToString::to_string).unwrap_or_default();
        println!("node {}  {address}/p2p/{peer}", number + 1);
        println!("        HTTP http://{}  health and metrics http://{}", launched.http, launched.admin);
    }
    if !once {
        println!("\ntry: debros query \"SELECT 1\"\nCtrl-C stops the cluster");
        stop.await;
    }
    Ok(())
}

/// A folder that goes with the process.
struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{} could not be removed: {error}", self.0.display());
        }
    }
}

fn temporary_folder(arguments: &DevArguments) -> anyhow::Result<Option<TemporaryFolder>> {
    if arguments.data_dir.is_some() {
        return Ok(None);
    }
    let path =
        std::env::temp_dir().join(format!("debros-dev-{}-{:08x}", std::process::id(), rand::random::<u32>()));
    std::fs::create_dir_all(&path).with_context(|| format!("{} cannot be created", path.display()))?;
    Ok(Some(TemporaryFolder(path)))
}

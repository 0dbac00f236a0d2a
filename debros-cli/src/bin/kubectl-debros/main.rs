//! `kubectl debros`: the command line client for a cluster on Kubernetes. It finds the cluster's pods and its secret by
//! `kubectl`, forwards a port to each pod, and has `debros` do the rest. Knows nothing of the cluster's contents.

mod forward;
mod kubectl;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::{Args, Parser, Subcommand};

use forward::Forwards;
use kubectl::{Failure, Kubectl};

/// The command line client for clusters of debros on Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "kubectl debros", bin_name = "kubectl debros", version, after_help = EXAMPLES)]
struct Arguments {
    /// The namespace of the DebrosCluster
    #[arg(short, long, global = true)]
    namespace: Option<String>,
    /// The context of the kubeconfig
    #[arg(long, global = true)]
    context: Option<String>,
    #[command(subcommand)]
    command: Task,
}

const EXAMPLES: &str = "\
Examples:
  kubectl debros status orders
  kubectl debros query orders \"SELECT count(*) FROM customers\"
  kubectl debros top orders
  kubectl debros logs orders --follow
  kubectl debros run orders -- storage get settings/theme

It calls `kubectl` and `debros`, which must be on the PATH; DEBROS names another `debros`.";

#[derive(Debug, Subcommand)]
enum Task {
    /// The resource's status, and the nodes' health with the next step
    Status(Named),
    /// Run SQL in the default database
    Query {
        #[command(flatten)]
        named: Named,
        /// One statement
        sql: String,
    },
    /// What the nodes log
    Logs {
        #[command(flatten)]
        named: Named,
        /// Go on as they log
        #[arg(short, long)]
        follow: bool,
        /// Lines of each node to begin with
        #[arg(long, default_value_t = 50)]
        tail: u32,
    },
    /// Watch the cluster: nodes, leaders, rates, what is wrong
    Top(Named),
    /// Any command of `debros`, after `--`
    Run {
        #[command(flatten)]
        named: Named,
        /// What `debros` is told
        #[arg(last = true, required = true)]
        arguments: Vec<OsString>,
    },
}

#[derive(Debug, Args)]
struct Named {
    /// The DebrosCluster
    cluster: String,
}

fn main() -> ExitCode {
    let Arguments { namespace, context, command } = Arguments::parse();
    let kubectl = Kubectl::new(namespace, context);
    match run(&kubectl, command) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(kubectl: &Kubectl, task: Task) -> Result<ExitCode, Failure> {
    match task {
        Task::Status(Named { cluster }) => {
            kubectl.show(&["get", "debrosclusters.debros.network", &cluster])?;
            client(kubectl, &cluster, &["health".into()])
        }
        Task::Query { named, sql } => client(kubectl, &named.cluster, &["query".into(), sql.into()]),
        Task::Top(Named { cluster }) => client(kubectl, &cluster, &["top".into()]),
        Task::Run { named, arguments } => client(kubectl, &named.cluster, &arguments),
        Task::Logs { named, follow, tail } => {
            let (selector, tail) = (kubectl::selector(&named.cluster), format!("--tail={tail}"));
            let follow = format!("--follow={follow}");
            kubectl.show(&[
                "logs",
                "--selector",
                &selector,
                "--prefix",
                "--max-log-requests=50",
                &tail,
                &follow,
            ])?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Has `debros` do it, with a port forwarded to each of the cluster's pods and its secret at hand.
fn client(kubectl: &Kubectl, cluster: &str, arguments: &[OsString]) -> Result<ExitCode, Failure> {
    let secret = kubectl.secret(cluster)?;
    let forwards = Forwards::open(kubectl, &kubectl.pods(cluster)?)?;
    let program = std::env::var_os("DEBROS").map_or_else(|| PathBuf::from("debros"), PathBuf::from);
    let mut debros = Command::new(&program);
    debros.args(arguments).env("DEBROS_BOOTSTRAP", forwards.addresses().join(","));
    if let Some(secret) = &secret {
        debros.env("DEBROS_CLUSTER_SECRET_FILE", secret.path());
    }
    let status = debros.status().map_err(|source| Failure::Start { program, source })?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

//! The command line of `debros-operator`, and the order in which its parts start and stop.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use clap::{Args, Parser, Subcommand};
use futures::{StreamExt, future};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use kube::client::ClientBuilder;
use kube::runtime::events::{Recorder, Reporter};
use kube::{Client, Config};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::caches::{Caches, Scope};
use crate::controller;
use crate::crd;
use crate::identity::{Identity, IdentityError};
use crate::lease::Claim;
use crate::metrics::Metrics;
use crate::names::FIELD_MANAGER;
use crate::nodes::remote::RemoteNodes;
use crate::reconcile::Context;

/// The Kubernetes operator of debros: it turns each DebrosCluster into a running cluster and keeps it one.
#[derive(Debug, Parser)]
#[command(name = "debros-operator", version, after_help = EXAMPLES)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  debros-operator run                            every namespace, as the chart installs it
  debros-operator run --watch-namespace shop     one namespace only
  debros-operator crd | kubectl apply --server-side -f -

Outside of Kubernetes KUBECONFIG says where the API server is.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Work until told to end.
    Run(RunArguments),
    /// Print the definition of DebrosCluster.
    Crd,
}

#[derive(Debug, Args)]
struct RunArguments {
    /// The namespace whose clusters are kept; every namespace without it.
    #[arg(long, env = "WATCH_NAMESPACE")]
    watch_namespace: Option<String>,
    /// The operator's own namespace, with its identity and its lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    namespace: String,
    /// The name of this replica.
    #[arg(long, env = "POD_NAME", default_value = "debros-operator")]
    name: String,
    /// Where health and metrics are.
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// A folder that may be written, for copies of the identity.
    #[arg(long, env = "STATE_FOLDER", default_value = "/tmp/debros-operator")]
    state_folder: PathBuf,
    /// What is logged: a level, or a list such as info,operator=debug.
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    log_level: String,
    /// Log one JSON object a line.
    #[arg(long, env = "LOG_JSON")]
    log_json: bool,
}

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(
        "the Kubernetes API cannot be reached: {0}; inside a cluster it needs a ServiceAccount, outside KUBECONFIG"
    )]
    Config(#[from] kube::config::InferConfigError),
    #[error("the Kubernetes client cannot be made: {0}")]
    Client(#[source] kube::Error),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("{0:?} is no filter of log lines: {1}")]
    LogLevel(String, tracing_subscriber::filter::ParseError),
    #[error("cannot wait for signals: {0}")]
    Signals(#[source] std::io::Error),
}

/// Does what the command line says.
pub async fn main(arguments: Arguments) -> ExitCode {
    match arguments.command {
        Command::Crd => {
            print!("{}", crd::definition_yaml());
            ExitCode::SUCCESS
        }
        Command::Run(arguments) => match run(arguments).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("debros-operator: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

/// What the listener answers from.
#[derive(Clone)]
struct Status {
    metrics: Metrics,
    ready: Arc<AtomicBool>,
}

async fn run(arguments: RunArguments) -> Result<(), RunError> {
    let filter = EnvFilter::try_new(&arguments.log_level);
    let filter = filter.map_err(|error| RunError::LogLevel(arguments.log_level.clone(), error))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if arguments.log_json {
        lines.json().init()
    } else {
        lines.init()
    }
    let stop = stop_on_signal().map_err(RunError::Signals)?;
    let metrics = Metrics::default();
    let client = client(metrics.clone()).await?;
    let status = Status { metrics: metrics.clone(), ready: Arc::default() };
    let server = serve(arguments.listen, status.clone(), stop.clone()).await?;
    let identity =
        Identity::load_or_create(&Api::<Secret>::namespaced(client.clone(), &arguments.namespace)).await?;
    let scope = arguments
        .watch_namespace
        .clone()
        .filter(|name| !name.is_empty())
        .map_or(Scope::All, Scope::Namespace);
    let leases = Api::<Lease>::namespaced(client.clone(), &arguments.namespace);
    let holder = format!("{}-{:08x}", arguments.name, rand::random::<u32>());
    let mut claim = Claim::new(leases, holder);
    while !stop.is_cancelled() {
        let (caches, changes) = Caches::watch(&client, &scope);
        let caches = Arc::new(caches);
        let (forward, changes) = stand_by(changes);
        status.ready.store(true, Ordering::Relaxed);
        tracing::info!(?scope, "standing by");
        if !claim.acquire(&stop).await {
            break;
        }
        tracing::info!("this replica works");
        metrics.leads(true);
        let context = Context {
            client: client.clone(),
            source: caches.clone(),
            nodes: Arc::new(RemoteNodes::new(identity.clone(), arguments.state_folder.clone())),
            metrics: metrics.clone(),
            hold: claim.hold(),
            recent: std::sync::Mutex::default(),
        };
        let reporter =
            Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(arguments.name.clone()) };
        let recorder = Recorder::new(client.clone(), reporter);
        let (working, done) = (stop.child_token(), CancellationToken::new());
        let work = async {
            if caches.filled().await.is_ok() {
                controller::run(context, recorder, caches.clusters.clone(), changes, working.clone()).await;
            }
            done.cancel();
        };
        // Also while the last runs come to their end.
        let keep = async {
            claim.keep(&done).await;
            working.cancel();
        };
        future::join(work, keep).await;
        forward.abort();
        metrics.leads(false);
        claim.release().await;
    }
    status.ready.store(false, Ordering::Relaxed);
    // It ends with the same signal.
    let _ = server.await;
    Ok(())
}

/// Changes that wait while another replica works are old when this one does: it begins with all clusters.
const CHANGES_MAX: usize = 1024;

/// Keeps the caches filled whoever works: takes changes, and hands on what somebody takes.
fn stand_by(mut changes: crate::caches::Changes) -> (JoinHandle<()>, crate::caches::Changes) {
    let (sender, receiver) = tokio::sync::mpsc::channel(CHANGES_MAX);
    let forward = tokio::spawn(async move {
        while let Some(change) = changes.next().await {
            // A queue that is full belongs to a replica that stands by, or to one that comes round to all soon.
            let _ = sender.try_send(change);
        }
    });
    let handed_on = futures::stream::unfold(receiver, |mut receiver| async move {
        let change = receiver.recv().await?;
        Some((change, receiver))
    });
    (forward, handed_on.boxed())
}

async fn client(metrics: Metrics) -> Result<Client, RunError> {
    let config = Config::infer().await?;
    let builder = ClientBuilder::try_from(config).map_err(RunError::Client)?;
    Ok(builder.with_layer(&metrics).build())
}

fn stop_on_signal() -> std::io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("told to end");
        told.cancel();
    });
    Ok(stop)
}

async fn serve(
    address: SocketAddr,
    status: Status,
    stop: CancellationToken,
) -> Result<JoinHandle<()>, RunError> {
    let failed = |source| RunError::Listen { address, source };
    let listener = tokio::net::TcpListener::bind(address).await.map_err(failed)?;
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(show_metrics))
        .with_state(status);
    Ok(tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "the listener ended");
        }
    }))
}

async fn readyz(State(status): State<Status>) -> Response {
    match status.ready.load(Ordering::Relaxed) {
        true => (StatusCode::OK, "ok\n").into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "starting or ending\n").into_response(),
    }
}

async fn show_metrics(State(status): State<Status>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], status.metrics.text()).into_response()
}

//! What the operator counts of itself, as Prometheus reads it. Labels are bounded: kinds of steps and outcomes, and the
//! clusters that there are, which leave with their resource.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use http::Request;
use kube::ResourceExt;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tower::{Layer, Service};

use crate::crd::{DebrosCluster, DebrosClusterStatus};
use crate::decide::Step;

/// A run asks its nodes, which answer within two seconds, and writes some objects.
const SECONDS: [f64; 9] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0];

/// What calls of the API do.
const VERBS: [&str; 8] = ["get", "list", "watch", "patch", "post", "put", "delete", "other"];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStep {
    step: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verb {
    verb: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCluster {
    namespace: String,
    cluster: String,
    condition: String,
}

/// The operator's metrics. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    runs: Family<Outcome, Counter<u64, AtomicU64>>,
    duration: Histogram,
    steps: Family<OfStep, Counter<u64, AtomicU64>>,
    calls: Family<Verb, Counter<u64, AtomicU64>>,
    conditions: Family<OfCluster, Gauge<i64, AtomicI64>>,
    leads: Gauge<i64, AtomicI64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Arc::new(Mutex::new(Registry::default())),
            runs: Family::default(),
            duration: Histogram::new(SECONDS),
            steps: Family::default(),
            calls: Family::default(),
            conditions: Family::default(),
            leads: Gauge::default(),
        };
        for outcome in ["ok", "failed", "conflict"] {
            metrics.runs.get_or_create(&Outcome { outcome }).inc_by(0);
        }
        for step in ["initialise", "record", "leave", "restart"] {
            metrics.steps.get_or_create(&OfStep { step }).inc_by(0);
        }
        for verb in VERBS {
            metrics.calls.get_or_create(&Verb { verb }).inc_by(0);
        }
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&self) {
        let mut registry = self.registry.lock().expect("not poisoned");
        registry.register(
            "debros_operator_reconciles",
            "Looks at a cluster, by how they ended",
            self.runs.clone(),
        );
        registry.register(
            "debros_operator_reconcile_duration_seconds",
            "How long a look at a cluster took, its nodes' answers and all writes included",
            self.duration.clone(),
        );
        registry.register(
            "debros_operator_steps",
            "Steps that clusters were brought on by",
            self.steps.clone(),
        );
        registry.register(
            "debros_operator_api_calls",
            "Calls of the Kubernetes API, by verb",
            self.calls.clone(),
        );
        registry.register(
            "debros_operator_cluster_condition",
            "Conditions of each DebrosCluster: 1 where it holds, 0 where it does not",
            self.conditions.clone(),
        );
        registry.register(
            "debros_operator_leads",
            "Whether this replica of the operator works",
            self.leads.clone(),
        );
    }

    /// A run ended.
    pub fn run(&self, outcome: &'static str, took: Duration) {
        self.runs.get_or_create(&Outcome { outcome }).inc();
        self.duration.observe(took.as_secs_f64());
    }

    /// A step was taken.
    pub fn step(&self, step: &Step) {
        let step = match step {
            Step::None => return,
            Step::Initialise(_) => "initialise",
            Step::Record(_) => "record",
            Step::TakeOut { .. } => "leave",
            Step::Restart { .. } => "restart",
        };
        self.steps.get_or_create(&OfStep { step }).inc();
    }

    /// A cluster has this status.
    pub fn cluster(&self, cluster: &DebrosCluster, status: &DebrosClusterStatus) {
        for condition in &status.conditions {
            let labels = Self::labels(cluster, &condition.type_);
            self.conditions.get_or_create(&labels).set(i64::from(condition.status == "True"));
        }
    }

    /// A cluster is gone.
    pub fn forget(&self, namespace: &str, cluster: &str) {
        for condition in ["Available", "Progressing", "Degraded", "QuorumHealthy", "Reconciled"] {
            self.conditions.remove(&OfCluster {
                namespace: namespace.to_owned(),
                cluster: cluster.to_owned(),
                condition: condition.to_owned(),
            });
        }
    }

    fn labels(cluster: &DebrosCluster, condition: &str) -> OfCluster {
        OfCluster {
            namespace: cluster.namespace().unwrap_or_default(),
            cluster: cluster.name_any(),
            condition: condition.to_owned(),
        }
    }

    /// This replica works, or waits.
    pub fn leads(&self, leads: bool) {
        self.leads.set(i64::from(leads));
    }

    /// Calls of the API since the start.
    pub fn api_calls(&self) -> u64 {
        VERBS.iter().map(|verb| self.calls.get_or_create(&Verb { verb }).get()).sum()
    }

    /// All of them, in OpenMetrics' text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry.lock().expect("not poisoned"))
            .expect("writing to a text does not fail");
        text
    }
}

impl<S> Layer<S> for Metrics {
    type Service = Counting<S>;

    fn layer(&self, inner: S) -> Counting<S> {
        Counting { inner, metrics: self.clone() }
    }
}

/// Counts the calls that pass.
#[derive(Clone)]
pub struct Counting<S> {
    inner: S,
    metrics: Metrics,
}

impl<S, B> Service<Request<B>> for Counting<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        self.metrics.calls.get_or_create(&Verb { verb: verb_of(&request) }).inc();
        self.inner.call(request)
    }
}

fn verb_of<B>(request: &Request<B>) -> &'static str {
    let query = request.uri().query().unwrap_or_default();
    match request.method().as_str() {
        "GET" if query.contains("watch=true") => "watch",
        "GET" if query.contains("labelSelector") || query.contains("limit=") => "list",
        "GET" => "get",
        "PATCH" => "patch",
        "POST" => "post",
        "PUT" => "put",
        "DELETE" => "delete",
        _ => "other",
    }
}

//! Rate, errors and duration of every gRPC method, and one span per request.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, OnceLock};

use debros_proto::{ErrorCode, Failure, HasHeader, TraceContext, v1};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tonic::{Response, Status};
use tracing::Instrument;

use super::activity::Activities;

use crate::metrics::{
    Operation, Operations, Origin, Stopwatch, TracedHistogram, recording, traced_durations,
};
use crate::trace::{KeyValue, Root, SpanKind, Tracer, keep, recorded};

/// Every method that is measured, by service.
const METHODS: [(&str, &[&str]); 5] = [
    ("database", &["Execute", "Query", "OpenSession", "CreateDatabase", "DropDatabase", "ListDatabases"]),
    ("registers", &["RegisterWrite", "RegisterGet", "RegisterList", "LeaseList", "RegisterWatch"]),
    ("storage", &["StoragePut", "StorageDelete", "StorageGet", "StorageList", "WatchStorage", "Layout"]),
    ("pubsub", &["PubSubPublish", "PubSubSubscribe", "PubSubSession", "PubSubTopics", "PubSubPresent"]),
    (
        "cluster",
        &[
            "Status",
            "Peers",
            "Members",
            "Health",
            "ConnectPeer",
            "DisconnectPeer",
            "Leave",
            "Initialise",
            "HandOver",
            "LogLevel",
        ],
    ),
];
/// The services whose requests nodes forward. Of the others a node's request is the exception, and has its series when it
/// comes: a scrape stays small.
const FORWARDED: [&str; 2] = ["database", "registers"];
/// What only nodes ask, of one another.
const MEMBERSHIP: (&str, &[&str]) = ("membership", &["Join", "Propose", "Canary"]);
/// Calls of storage streams that name no operation.
const NO_OPERATION: (&str, &str) = ("storage", "Storage");

/// On whose behalf a request comes.
pub(super) struct Asker {
    namespace: String,
    origin: Origin,
}

impl Asker {
    /// As its header says. A request that was forwarded is counted as a user's where the user sent it.
    pub(super) fn of(request: &impl HasHeader) -> Self {
        let Some(header) = request.header() else {
            return Self { namespace: String::new(), origin: Origin::Client };
        };
        let origin = if header.hops > 0 { Origin::Node } else { Origin::Client };
        Self { namespace: header.namespace.clone(), origin }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelSet)]
struct ServiceLabels {
    service: &'static str,
}

/// The trace that shows what happened in a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelSet)]
struct TraceLabels {
    trace_id: String,
}

type Traced = Family<ServiceLabels, TracedHistogram<TraceLabels>, fn() -> TracedHistogram<TraceLabels>>;

/// The metrics of the gRPC services. Labels are bounded: methods and error codes. Cheap to clone.
#[derive(Clone)]
pub struct RpcMetrics {
    inner: Arc<Inner>,
    tracer: Tracer,
}

struct Inner {
    operations: Operations,
    /// By method; whose requests it is, decides between the two.
    methods: HashMap<&'static str, Method>,
    traced: Traced,
    /// Other nodes are told of it as the load.
    under_way: Gauge,
    engines: Activities,
}

struct Method {
    service: &'static str,
    client: OnceLock<Operation>,
    node: OnceLock<Operation>,
}

impl Method {
    fn new(service: &'static str) -> Self {
        Self { service, client: OnceLock::new(), node: OnceLock::new() }
    }
}

impl RpcMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let operations = Operations::register(registry);
        let mut methods = HashMap::new();
        for (service, names) in METHODS.iter().chain([&MEMBERSHIP]) {
            methods.extend(names.iter().map(|name| (*name, Method::new(service))));
        }
        let (service, name) = NO_OPERATION;
        methods.insert(name, Method::new(service));
        let traced: Traced = Family::new_with_constructor(traced_durations);
        for (service, _) in METHODS.iter().chain([&MEMBERSHIP]) {
            drop(traced.get_or_create(&ServiceLabels { service }));
        }
        let under_way = Gauge::default();
        registry.register("debros_rpc_under_way", "Requests being answered", under_way.clone());
        registry.register(
            "debros_rpc_traced_duration_seconds",
            "Time that sampled requests took; its exemplars name their traces",
            traced.clone(),
        );
        let engines = Activities::default();
        let inner = Arc::new(Inner { operations, methods, traced, under_way, engines });
        let metrics = Self { inner, tracer: Tracer::off() };
        metrics.begin_at_zero();
        metrics
    }

    /// The first request of a kind is a rise from zero, not a series that nobody has seen before.
    fn begin_at_zero(&self) {
        for (service, names) in METHODS {
            for name in names {
                self.handle(name, Origin::Client);
                if FORWARDED.contains(&service) {
                    self.handle(name, Origin::Node);
                }
            }
        }
        let (_, names) = MEMBERSHIP;
        for name in names {
            self.handle(name, Origin::Node);
        }
    }

    /// The same, and every request is the local root of a trace.
    pub fn with_tracer(self, tracer: Tracer) -> Self {
        Self { tracer, ..self }
    }

    /// What the database and the storage have answered to clients, as the status tells it.
    pub fn activity(&self) -> impl Iterator<Item = v1::EngineActivity> + use<> {
        self.inner.engines.told()
    }

    /// How many requests are under way.
    pub fn load(&self) -> u32 {
        u32::try_from(self.inner.under_way.get()).unwrap_or(0)
    }

    /// The handle of a method that another engine measures itself.
    pub fn operation(&self, method: &'static str, origin: Origin) -> Operation {
        self.handle(method, origin).clone()
    }

    /// Tells of a request that can be found by its trace.
    fn traced(&self, method: &'static str, took: std::time::Duration, context: TraceContext) {
        let service = ServiceLabels { service: self.method(method).service };
        let example = || TraceLabels { trace_id: format!("{:032x}", context.trace) };
        self.inner.traced.get_or_create_owned(&service).observe(took.as_secs_f64(), example);
    }

    fn method(&self, method: &'static str) -> &Method {
        self.inner.methods.get(method).expect("every method is in METHODS")
    }

    fn handle(&self, name: &'static str, origin: Origin) -> &Operation {
        let method = self.method(name);
        // Whoever asks to join has no cluster yet, and is a node all the same.
        let (place, origin) = match origin {
            Origin::Client if method.service != MEMBERSHIP.0 => (&method.client, Origin::Client),
            Origin::Client | Origin::Node => (&method.node, Origin::Node),
        };
        place.get_or_init(|| self.inner.operations.operation(method.service, name, origin))
    }

    /// Answers one request, measured and in a span of its own.
    pub(super) async fn measure<T>(
        &self,
        method: &'static str,
        asker: &Asker,
        answer: impl Future<Output = Result<T, Failure>>,
    ) -> Result<Response<T>, Status> {
        self.measure_call(method, asker, answer).await.map(Response::new).map_err(Status::from)
    }

    /// The same for a request that is one of many on a stream.
    pub(super) async fn measure_call<T>(
        &self,
        method: &'static str,
        asker: &Asker,
        answer: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let namespace = &asker.namespace[..];
        let span = tracing::debug_span!("rpc", method, namespace);
        let stopwatch = Stopwatch::start();
        let _under_way = UnderWay::start(&self.inner.under_way);
        let root =
            Root { name: method, kind: SpanKind::Server, attributes: || attributes(method, namespace) };
        let answer = std::pin::pin!(answer);
        let answer = async {
            let result = answer.await;
            if let Err(failure) = &result
                && failure.code == ErrorCode::Internal
            {
                keep();
                tracing::error!(method, %failure, "a request failed on an internal error");
            }
            if let Some(context) = recorded() {
                self.traced(method, stopwatch.took(), context);
            }
            result
        };
        let result = self.tracer.request(root, answer.instrument(span), failed).await;
        let error = result.as_ref().err().map(|failure| failure.code);
        let took = stopwatch.took();
        self.handle(method, asker.origin).answered(error, took);
        if recording::metrics() && asker.origin == Origin::Client {
            self.inner.engines.answered(method, error.is_none(), took);
        }
        result
    }
}

/// The code that makes a request a failed one. Being sent to the leader, or told of a newer map, is none: whoever asked
/// goes on by it.
fn failed<T>(result: &Result<T, Failure>) -> Option<&'static str> {
    match result.as_ref().err()?.code {
        ErrorCode::NotLeader | ErrorCode::StaleEpoch => None,
        code => Some(code.as_str_name()),
    }
}

/// What a request's span tells, by the semantic conventions.
fn attributes(method: &'static str, namespace: &str) -> Vec<KeyValue> {
    let mut attributes = vec![KeyValue::new("rpc.system.name", "grpc"), KeyValue::new("rpc.method", method)];
    let namespace = namespace.to_owned();
    match system_of(method) {
        Some(system) => attributes.extend([
            KeyValue::new("db.system.name", system),
            KeyValue::new("db.operation.name", method),
            KeyValue::new("db.namespace", namespace),
        ]),
        None => attributes.push(KeyValue::new("debros.namespace", namespace)),
    }
    attributes
}

/// The database that a method is about.
fn system_of(method: &str) -> Option<&'static str> {
    match method {
        "Execute" | "Query" | "OpenSession" | "CreateDatabase" | "DropDatabase" | "ListDatabases" => {
            Some("sqlite")
        }
        _ if method.starts_with("Storage") || method.starts_with("Register") => Some("debros"),
        _ => None,
    }
}

/// Counts down also when the request is given up.
struct UnderWay(Gauge);

impl UnderWay {
    fn start(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.dec();
    }
}

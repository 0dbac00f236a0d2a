//! Rate, errors and duration of every HTTP route, connections, and one span per request.

use axum::extract::{MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tracing::Instrument;

use crate::metrics::{Counter, Gauge, Histogram, Stopwatch, durations};
use crate::trace::{KeyValue, Root, SpanKind, Tracer, from_headers, under};

/// The listener whose requests are traced.
const API: &str = "http";
/// The route of a request that no route matches.
const UNMATCHED: &str = "unmatched";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    listener: &'static str,
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    listener: &'static str,
    route: String,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabels {
    listener: &'static str,
}

/// The metrics of the HTTP listeners. Labels are bounded: listeners, routes as they are declared,
/// and classes of status codes.
#[derive(Clone)]
pub struct HttpMetrics {
    requests: Family<OutcomeLabels, Counter>,
    duration: Family<RouteLabels, Histogram, fn() -> Histogram>,
    under_way: Family<ListenerLabels, Gauge>,
    connections: Family<ListenerLabels, Gauge>,
    tracer: Tracer,
}

/// What listens, as labels say it.
const LISTENERS: [&str; 2] = ["http", "admin"];
/// Classes of status codes.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

impl HttpMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            duration: Family::new_with_constructor(durations),
            under_way: Family::default(),
            connections: Family::default(),
            tracer: Tracer::off(),
        };
        registry.register("debros_http_requests", "HTTP requests answered", metrics.requests.clone());
        registry.register(
            "debros_http_duration_seconds",
            "Time from an HTTP request's head to the head of its answer",
            metrics.duration.clone(),
        );
        registry.register("debros_http_under_way", "HTTP requests being answered", metrics.under_way.clone());
        registry.register("debros_http_connections", "Open HTTP connections", metrics.connections.clone());
        metrics.begin_at_zero();
        metrics
    }

    /// The first request of a kind is a rise from zero, not a series that nobody has seen before.
    fn begin_at_zero(&self) {
        for listener in LISTENERS {
            let route = UNMATCHED.to_owned();
            for status in CLASSES {
                drop(self.requests.get_or_create(&OutcomeLabels { listener, route: route.clone(), status }));
            }
            drop(self.duration.get_or_create(&RouteLabels { listener, route }));
            drop(self.under_way.get_or_create(&ListenerLabels { listener }));
            drop(self.connections.get_or_create(&ListenerLabels { listener }));
        }
    }

    /// The same, and every request of the API is the local root of a trace.
    pub fn with_tracer(self, tracer: Tracer) -> Self {
        Self { tracer, ..self }
    }

    /// Counts a connection until the guard is dropped.
    pub(super) fn connection(&self, listener: &'static str) -> Counted {
        Counted::start(&self.connections, listener)
    }

    /// The metrics of one listener's requests.
    pub(super) fn of(&self, listener: &'static str) -> Meter {
        Meter { metrics: self.clone(), listener }
    }
}

/// The metrics, for one listener.
#[derive(Clone)]
pub(super) struct Meter {
    metrics: HttpMetrics,
    listener: &'static str,
}

/// The middleware that measures a request.
pub(super) async fn measure(State(meter): State<Meter>, request: Request, next: Next) -> Response {
    let Meter { metrics, listener } = meter;
    let matched = request.extensions().get::<MatchedPath>();
    let route = matched.map_or(UNMATCHED, MatchedPath::as_str).to_owned();
    let method = request.method().as_str();
    let namespace = tracing::field::Empty;
    let span = tracing::debug_span!("http", listener, method, route, namespace);
    let stopwatch = Stopwatch::start();
    let under_way = Counted::start(&metrics.under_way, listener);
    let parent = from_headers(request.headers());
    let (verb, path) = (request.method().to_string(), route.clone());
    let root = Root { name: "HTTP", kind: SpanKind::Server, attributes: move || attributes(verb, path) };
    let work = next.run(request).instrument(span);
    let response = match listener {
        API => under(parent, metrics.tracer.request(root, work, failed)).await,
        // Probes and scrapes.
        _ => work.await,
    };
    drop(under_way);
    let status = class(response.status());
    let took = stopwatch.took().as_secs_f64();
    metrics.requests.get_or_create(&OutcomeLabels { listener, route: route.clone(), status }).inc();
    metrics.duration.get_or_create(&RouteLabels { listener, route }).observe(took);
    response
}

/// What a request's span tells, by the semantic conventions.
fn attributes(method: String, route: String) -> Vec<KeyValue> {
    vec![KeyValue::new("http.request.method", method), KeyValue::new("http.route", route)]
}

/// The class of status that makes a request a failed one.
fn failed(response: &Response) -> Option<&'static str> {
    response.status().is_server_error().then_some("5xx")
}

/// Counts down also when the request is given up.
pub(super) struct Counted(Gauge);

impl Counted {
    fn start(gauges: &Family<ListenerLabels, Gauge>, listener: &'static str) -> Self {
        let gauge = gauges.get_or_create_owned(&ListenerLabels { listener });
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn class(status: StatusCode) -> &'static str {
    let [informational, success, redirection, client_error, server_error] = CLASSES;
    match status.as_u16() {
        100..=199 => informational,
        200..=299 => success,
        300..=399 => redirection,
        400..=499 => client_error,
        _ => server_error,
    }
}

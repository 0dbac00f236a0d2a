//! Rate, errors and duration of every gRPC method, and one span per request.

use std::future::Future;
use std::sync::Arc;

use debros_proto::{ErrorCode, Failure, v1};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::time::Instant;
use tonic::{Response, Status};
use tracing::Instrument;

use super::activity::Activities;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabels {
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    method: &'static str,
    code: &'static str,
}

/// The metrics of the gRPC services. Labels are bounded: methods and error codes.
#[derive(Clone)]
pub struct RpcMetrics {
    requests: Family<OutcomeLabels, Counter>,
    duration: Family<MethodLabels, Histogram>,
    under_way: Gauge,
    engines: Arc<Activities>,
}

/// Around the service levels of 100 ms and 500 ms, in seconds.
const DURATION_BUCKETS: [f64; 14] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

impl RpcMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let new: fn() -> Histogram = || Histogram::new(DURATION_BUCKETS);
        let duration = Family::new_with_constructor(new);
        let metrics = Self {
            requests: Family::default(),
            duration,
            under_way: Gauge::default(),
            engines: Arc::default(),
        };
        registry.register(
            "debros_rpc_requests",
            "gRPC requests by method and error code",
            metrics.requests.clone(),
        );
        registry.register(
            "debros_rpc_duration_seconds",
            "Time from a gRPC request's arrival to its answer",
            metrics.duration.clone(),
        );
        registry.register("debros_rpc_under_way", "gRPC requests being answered", metrics.under_way.clone());
        metrics
    }

    /// What the database and the storage have answered, as the status tells it.
    pub fn activity(&self) -> impl Iterator<Item = v1::EngineActivity> + use<> {
        self.engines.told()
    }

    /// How many requests are under way.
    pub fn load(&self) -> u32 {
        u32::try_from(self.under_way.get()).unwrap_or(0)
    }

    /// Answers one request, measured and in a span of its own.
    pub(super) async fn measure<T>(
        &self,
        method: &'static str,
        namespace: &str,
        answer: impl Future<Output = Result<T, Failure>>,
    ) -> Result<Response<T>, Status> {
        self.measure_call(method, namespace, answer).await.map(Response::new).map_err(Status::from)
    }

    /// The same for a request that is one of many on a stream.
    pub(super) async fn measure_call<T>(
        &self,
        method: &'static str,
        namespace: &str,
        answer: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let span = tracing::debug_span!("rpc", method, namespace);
        let started = Instant::now();
        let _under_way = UnderWay::start(&self.under_way);
        let result = answer.instrument(span).await;
        let code = result.as_ref().map_or_else(|failure| code_name(failure.code), |_| "OK");
        self.requests.get_or_create(&OutcomeLabels { method, code }).inc();
        self.engines.answered(method, result.is_ok(), started.elapsed());
        self.duration.get_or_create(&MethodLabels { method }).observe(started.elapsed().as_secs_f64());
        if let Err(failure) = &result
            && failure.code == ErrorCode::Internal
        {
            tracing::error!(method, %failure, "a request failed on an internal error");
        }
        result
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

fn code_name(code: ErrorCode) -> &'static str {
    code.as_str_name()
}

//! A collector of traces: takes OTLP over HTTP on loopback, as OpenTelemetry's own does, and remembers the spans.
//! And an application with traces of its own, which sends them to the same place.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use debros_config::Tracing;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    SdkTracerProvider, Span as SdkSpan, SpanData, SpanExporter as _, SpanProcessor,
};
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tracing::Dispatch;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;

/// A span as it was received.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    /// What the resource says: of which service.
    pub(crate) service: String,
    /// And which instance of it.
    pub(crate) instance: String,
    pub(crate) name: String,
    pub(crate) trace: Vec<u8>,
    pub(crate) id: Vec<u8>,
    /// Empty for none.
    pub(crate) parent: Vec<u8>,
    /// The spans that it is linked to.
    pub(crate) links: Vec<Vec<u8>>,
    pub(crate) attributes: BTreeMap<String, String>,
    /// Nanoseconds since the Unix epoch.
    pub(crate) began: u64,
    pub(crate) ended: u64,
}

type Spans = Arc<Mutex<Vec<Span>>>;

/// Receives until it is dropped.
pub(crate) struct Collector {
    address: String,
    spans: Spans,
    _server: JoinSet<()>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let spans = Spans::default();
        let router = Router::new().route("/v1/traces", post(receive)).with_state(spans.clone());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { address, spans, _server: server }
    }

    /// For nodes that send their traces here and sample nothing by themselves.
    pub(crate) fn tracing(&self, slow: Duration) -> Tracing {
        Tracing {
            otlp_endpoint: Some(self.address.clone()),
            sampling_ratio: "0".parse().expect("a ratio"),
            slow_threshold: format!("{}ms", slow.as_millis()).parse().expect("an interval"),
        }
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All spans by trace.
    pub(crate) fn traces(&self) -> Vec<Vec<Span>> {
        let mut traces: BTreeMap<Vec<u8>, Vec<Span>> = BTreeMap::new();
        for span in self.spans() {
            traces.entry(span.trace.clone()).or_default().push(span);
        }
        traces.into_values().collect()
    }
}

async fn receive(State(spans): State<Spans>, body: Bytes) -> (StatusCode, Vec<u8>) {
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return (StatusCode::BAD_REQUEST, Vec::new());
    };
    let mut received = Vec::new();
    for resource in request.resource_spans {
        let of = texts(resource.resource.map(|resource| resource.attributes).unwrap_or_default());
        let told = |name: &str| of.get(name).cloned().unwrap_or_default();
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            received.push(Span {
                service: told("service.name"),
                instance: told("service.instance.id"),
                name: span.name,
                trace: span.trace_id,
                id: span.span_id,
                parent: span.parent_span_id,
                links: span.links.into_iter().map(|link| link.span_id).collect(),
                attributes: texts(span.attributes),
                began: span.start_time_unix_nano,
                ended: span.end_time_unix_nano,
            });
        }
    }
    spans.lock().unwrap_or_else(PoisonError::into_inner).append(&mut received);
    (StatusCode::OK, ExportTraceServiceResponse::default().encode_to_vec())
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Option<Value>| match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    let value = |attribute: KeyValue| attribute.value.and_then(|value| value.value);
    attributes.into_iter().map(|attribute| (attribute.key.clone(), text(value(attribute)))).collect()
}

/// An application that traces what it does, all of it. Its futures are to be run with its [`Dispatch`].
pub(crate) struct Application {
    ended: Ended,
    exporter: SpanExporter,
    pub(crate) dispatch: Dispatch,
    _provider: SdkTracerProvider,
}

#[derive(Clone, Debug, Default)]
struct Ended(Arc<Mutex<Vec<SpanData>>>);

impl SpanProcessor for Ended {
    fn on_start(&self, _: &mut SdkSpan, _: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl Application {
    pub(crate) fn new(collector: &Collector) -> Self {
        let ended = Ended::default();
        let resource = Resource::builder().with_service_name("application").build();
        let client = HyperClient::with_default_connector(Duration::from_secs(10), None);
        let endpoint = format!("{}/v1/traces", collector.address);
        let exporter = SpanExporter::builder().with_http().with_http_client(client).with_endpoint(endpoint);
        let mut exporter = exporter.build().expect("an exporter");
        exporter.set_resource(&resource);
        let provider =
            SdkTracerProvider::builder().with_span_processor(ended.clone()).with_resource(resource);
        let provider = provider.build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("application"));
        // Libraries make spans, too, and enter them in tasks of their own, where this subscriber is not.
        let of_the_sdk = Targets::new().with_target("debros_sdk", tracing::Level::INFO);
        let dispatch = Dispatch::new(tracing_subscriber::registry().with(layer.with_filter(of_the_sdk)));
        Self { ended, exporter, dispatch, _provider: provider }
    }

    /// Sends what has ended to the collector.
    pub(crate) async fn export(&self) {
        let ended = std::mem::take(&mut *self.ended.0.lock().unwrap_or_else(PoisonError::into_inner));
        if !ended.is_empty() {
            self.exporter.export(ended).await.expect("the collector takes them");
        }
    }
}

//! From the queue to the collector: batches over OTLP/HTTP, one request at a time.
//!
//! A collector that does not answer costs the spans and a line in the log, once, until it answers again. Headers and
//! timeouts are those of OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_HEADERS`, `..._TIMEOUT`), the resource
//! takes `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`, and `OTEL_EXPORTER_OTLP_CERTIFICATE` names whom to trust.

use std::path::PathBuf;
use std::time::Duration;

use debros_proto::{VERSION, limits};
use hyper_rustls::HttpsConnectorBuilder;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::metrics::TraceMetrics;
use super::record::Record;
use super::tracer::Identity;

/// What waits is exported at least this often.
const EXPORT_DELAY: Duration = Duration::from_secs(1);
/// What waits when the node stops is exported within this time, or lost.
const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// A collector that has not answered by then has failed, whatever its own timeout is.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Whom to trust, besides or instead of the system's own.
const CERTIFICATE_VARIABLE: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE";

/// Why traces cannot be exported at all.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The exporter refuses the collector's address, or a variable of its own.
    #[error("traces cannot be sent to {endpoint}: check tracing.otlp_endpoint and the OTEL_ variables")]
    Exporter {
        /// The collector.
        endpoint: String,
        /// Why.
        #[source]
        source: ExporterBuildError,
    },
    /// Nobody is there to vouch for the collector.
    #[error("traces go to {endpoint}, and the certificates to trust cannot be read")]
    Certificates {
        /// The collector.
        endpoint: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The certificates that were named are none.
    #[error("OTEL_EXPORTER_OTLP_CERTIFICATE: {file} holds no certificate that can be read")]
    Certificate {
        /// Which.
        file: PathBuf,
    },
}

/// The way to the collector.
pub(super) struct Exporter {
    exporter: SpanExporter,
    endpoint: String,
    scope: InstrumentationScope,
    metrics: TraceMetrics,
    failing: bool,
}

impl Exporter {
    pub(super) fn new(
        endpoint: &str,
        identity: &Identity,
        metrics: TraceMetrics,
    ) -> Result<Self, TraceError> {
        let builder = SpanExporter::builder().with_http().with_endpoint(endpoint);
        let builder = match endpoint.starts_with("https://") {
            true => builder.with_http_client(encrypted(endpoint)?),
            false => builder.with_http_client(HyperClient::with_default_connector(REQUEST_TIMEOUT, None)),
        };
        let endpoint = endpoint.to_owned();
        let mut exporter =
            builder.build().map_err(|source| TraceError::Exporter { endpoint: endpoint.clone(), source })?;
        exporter.set_resource(&resource(identity));
        let scope = InstrumentationScope::builder("debros-node").with_version(VERSION).build();
        Ok(Self { exporter, endpoint, scope, metrics, failing: false })
    }

    /// Exports until it is told to stop, and then what waits.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Vec<Record>>, stop: CancellationToken) {
        loop {
            let first = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                first = queue.recv() => first,
            };
            let Some(first) = first else { return };
            let mut batch = self.spans(first);
            let due = Instant::now() + EXPORT_DELAY;
            while batch.len() < limits::TRACE_SPANS_PER_EXPORT && !stop.is_cancelled() {
                let next = stop.run_until_cancelled(timeout_at(due, queue.recv())).await;
                let Some(Ok(Some(more))) = next else { break };
                batch.extend(self.spans(more));
            }
            self.export(batch).await;
        }
        queue.close();
        let mut batch = Vec::new();
        while let Ok(more) = queue.try_recv() {
            batch.extend(self.spans(more));
        }
        let count = batch.len();
        if count > 0 && timeout(LAST_EXPORT_TIMEOUT, self.export(batch)).await.is_err() {
            self.metrics.failed(count);
        }
    }

    fn spans(&self, records: Vec<Record>) -> Vec<SpanData> {
        records.into_iter().map(|record| record.into_span(&self.scope)).collect()
    }

    async fn export(&mut self, batch: Vec<SpanData>) {
        let count = batch.len();
        match self.exporter.export(batch).await {
            Ok(()) => {
                self.metrics.exported(count);
                if std::mem::take(&mut self.failing) {
                    tracing::info!(endpoint = self.endpoint, "the collector takes traces again");
                }
            }
            Err(error) => {
                self.metrics.failed(count);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(endpoint = self.endpoint, %error, "the collector takes no traces: they are lost until it does");
                }
            }
        }
    }
}

fn encrypted(
    endpoint: &str,
) -> Result<
    HyperClient<hyper_rustls::HttpsConnector<hyper_util::client::legacy::connect::HttpConnector>>,
    TraceError,
> {
    let named = std::env::var_os(CERTIFICATE_VARIABLE).filter(|file| !file.is_empty());
    let builder = HttpsConnectorBuilder::new();
    let builder = match named {
        None => builder
            .with_native_roots()
            .map_err(|source| TraceError::Certificates { endpoint: endpoint.to_owned(), source })?,
        Some(file) => {
            let file = PathBuf::from(file);
            let unreadable = || TraceError::Certificate { file: file.clone() };
            let mut roots = RootCertStore::empty();
            let read = CertificateDer::pem_file_iter(&file).map_err(|_| unreadable())?;
            let found = read.collect::<Result<Vec<_>, _>>().map_err(|_| unreadable())?;
            let (added, _) = roots.add_parsable_certificates(found);
            if added == 0 {
                return Err(unreadable());
            }
            let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
            builder.with_tls_config(config)
        }
    };
    Ok(HyperClient::new(builder.https_or_http().enable_http1().build(), REQUEST_TIMEOUT, None))
}

/// By the semantic conventions; what the standard variables say of the service goes before.
fn resource(identity: &Identity) -> Resource {
    let Identity { peer, zone } = identity;
    let mut attributes = vec![
        KeyValue::new("service.namespace", "debros"),
        KeyValue::new("service.instance.id", peer.clone()),
        KeyValue::new("service.version", VERSION),
    ];
    if !zone.is_empty() {
        attributes.push(KeyValue::new("cloud.availability_zone", zone.clone()));
    }
    let named = std::env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty())
        || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|list| list.contains("service.name="));
    if !named {
        attributes.push(KeyValue::new("service.name", "debros-node"));
    }
    Resource::builder().with_attributes(attributes).build()
}

//! Traces to a collector that is reached by TLS alone, with a certificate of an authority that nobody else knows.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::process::{Node, debros, run_with};
use crate::{DEADLINE, MACHINE, eventually};

/// What names the authorities to trust, as OpenTelemetry specifies it.
const CERTIFICATE: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE";
const EXPORT_BYTES_MAX: usize = 16 << 20;
/// Requests that wait to be looked at.
const EXPORTS_MAX: usize = 64;

/// Receives until it is dropped.
struct Collector {
    endpoint: String,
    /// The certificate of its authority.
    authority: PathBuf,
    /// The names of the spans of each request.
    exports: mpsc::Receiver<Vec<String>>,
    _server: JoinSet<()>,
}

impl Collector {
    async fn start(folder: &Path) -> Self {
        let (config, authority) = certified(folder);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let endpoint = format!("https://localhost:{}", listener.local_addr().expect("an address").port());
        let (received, exports) = mpsc::channel(EXPORTS_MAX);
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(acceptor.clone(), stream, received.clone()));
            }
        });
        Self { endpoint, authority, exports, _server: server }
    }
}

/// The server's side of TLS, for `localhost`, and the file of the authority that vouches for it.
fn certified(folder: &Path) -> (rustls::ServerConfig, PathBuf) {
    let key = KeyPair::generate().expect("a key");
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let file = folder.join("authority.pem");
    std::fs::write(&file, authority.self_signed(&key).expect("a certificate").pem()).expect("a file");
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate().expect("a key");
    let collector = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    let certificate = collector.signed_by(&key, &issuer).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .expect("the key of the certificate");
    (config, file)
}

/// One connection; what does not trust the certificate never gets to a request.
async fn serve(acceptor: TlsAcceptor, stream: TcpStream, received: mpsc::Sender<Vec<String>>) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let answer = service_fn(async |request: Request<Incoming>| {
        assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/v1/traces"));
        let body = to_bytes(Body::new(request.into_body()), EXPORT_BYTES_MAX).await.expect("a body");
        let export = ExportTraceServiceRequest::decode(body).expect("OTLP");
        let scopes = export.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        let names = scopes.flat_map(|scope| scope.spans).map(|span| span.name).collect();
        let _ = received.send(names).await;
        Ok::<_, Infallible>(Response::new(Body::empty()))
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

fn configured(folder: &Path, name: &str, endpoint: &str) -> PathBuf {
    let file = folder.join(format!("{name}.yaml"));
    let text = format!(
        "node: {{ id: {name}, data_dir: '{}', listen_addresses: [/ip4/127.0.0.1/tcp/0] }}\n\
         admin: {{ port: 0 }}\ndatabase: {{ rqlite_port: 0 }}\n\
         tracing: {{ otlp_endpoint: '{endpoint}', sampling_ratio: 1 }}\n",
        folder.join(name).display()
    );
    std::fs::write(&file, text).expect("a file");
    file
}

/// Waits until the node listens, and asks it something that it traces.
async fn asked(node: &Node) {
    eventually("it listens", async || node.said("HTTP API on").then_some(()).ok_or_else(|| node.log())).await;
    let log = node.log();
    let address = log.split_once("listening on ").expect("an address").1.split('\n').next().expect("its end");
    let (code, _, told) = debros(&["-b", address.trim(), "status"]).await;
    assert_eq!(code, Some(0), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_behind_tls_is_trusted_by_the_authority_that_is_named() {
    let _beside_others = MACHINE.read().await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    let mut collector = Collector::start(folder).await;

    // Nobody vouches for it: the traces are lost, the node is not, and says so once.
    let config = configured(folder, "doubting", &collector.endpoint);
    let config = config.to_str().expect("a path of letters");
    let doubting = Node::start(folder, "doubting", &["--begin", "--config", config]);
    asked(&doubting).await;
    eventually("the collector is not trusted", async || {
        doubting.said("the collector takes no traces").then_some(()).ok_or_else(|| doubting.log())
    })
    .await;
    assert!(collector.exports.try_recv().is_err(), "a request came to a collector that is not trusted");
    assert_eq!(doubting.terminate(DEADLINE).await, Some(0));

    // Its authority is named.
    let config = configured(folder, "trusting", &collector.endpoint);
    let config = config.to_str().expect("a path of letters");
    let trust = (CERTIFICATE, collector.authority.to_str().expect("a path of letters"));
    let trusting = Node::start_with(trust, folder, "trusting", &["--begin", "--config", config]);
    asked(&trusting).await;
    let mut names = Vec::new();
    let came = async {
        while !names.iter().any(|name| name == "Status") {
            names.extend(collector.exports.recv().await.expect("the collector runs"));
        }
    };
    tokio::time::timeout(DEADLINE, came).await.unwrap_or_else(|_| panic!("no span came: {}", trusting.log()));
    assert!(!trusting.said("the collector takes no traces"), "{}", trusting.log());
    assert_eq!(trusting.terminate(DEADLINE).await, Some(0));

    // What is named is no certificate.
    let empty = folder.join("empty.pem");
    std::fs::write(&empty, "nothing\n").expect("a file");
    let empty = (CERTIFICATE, empty.to_str().expect("a path of letters"));
    let (code, _, told) = run_with(empty, &["--begin", "--config", config]).await;
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("OTEL_EXPORTER_OTLP_CERTIFICATE") && told.contains("empty.pem"), "{told}");
}

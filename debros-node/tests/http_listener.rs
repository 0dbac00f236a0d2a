//! The HTTP listener: TLS, taken ports, clients that send nonsense and clients that do not go on. Needs
//! no cluster.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use debros_node::http::{HttpMetrics, Listen, ListenError, LocalAddress, TlsError, TlsFiles, serve};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

/// No step of these tests takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// A listener with a route that says how it was reached, one that waits, and one with a long answer.
async fn start(
    tls: Option<TlsFiles>,
    shutdown: &CancellationToken,
    release: &CancellationToken,
) -> Result<(SocketAddr, tokio::task::JoinHandle<()>), ListenError> {
    let release = release.clone();
    let router = Router::new()
        .route(
            "/",
            get(|axum::Extension(local): axum::Extension<LocalAddress>| async move { local.scheme() }),
        )
        .route(
            "/wait",
            get(|| async move {
                release.cancelled().await;
                "done"
            }),
        );
    let metrics = HttpMetrics::register(&mut Registry::default());
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let listen = Listen { name: "test", key: "database.rqlite_port", address, tls };
    serve(listen, router, metrics, shutdown.clone()).await
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a listener");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Sends a request on a stream and reads to its end.
fn exchange(mut stream: impl Read + Write, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("a writable stream");
    let mut response = Vec::new();
    stream.read_to_end(&mut response).expect("a readable stream");
    String::from_utf8(response).expect("text")
}

/// A certificate for `localhost`, and its key.
fn certify(folder: &Path, name: &str) -> (TlsFiles, String) {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let files = TlsFiles {
        certificate: folder.join(format!("{name}.pem")),
        private_key: folder.join(format!("{name}.key")),
    };
    std::fs::write(&files.certificate, certified.cert.pem()).expect("a writable folder");
    std::fs::write(&files.private_key, certified.signing_key.serialize_pem()).expect("a writable folder");
    (files, certified.cert.pem())
}

fn tls_client(certificate: &str) -> rustls::ClientConnection {
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_speaks_tls_with_the_given_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let (files, certificate) = certify(folder.path(), "node");
    let (stop, release) = (CancellationToken::new(), CancellationToken::new());
    let (address, ended) = start(Some(files), &stop, &release).await.expect("a listener");
    let answer = tokio::task::spawn_blocking(move || {
        exchange(rustls::StreamOwned::new(tls_client(&certificate), connect(address)), "/")
    });
    let answer = answer.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("https"), "{answer}");
    // Whoever speaks no TLS, or nothing at all, disturbs nobody.
    let silent = connect(address);
    let mut plain = connect(address);
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut rest = Vec::new();
    tokio::task::spawn_blocking(move || plain.read_to_end(&mut rest)).await.unwrap().ok();
    stop.cancel();
    tokio::time::timeout(PATIENCE, ended).await.expect("it ends").unwrap();
    drop(silent);
}

#[tokio::test]
async fn certificates_of_no_use_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let ((node, _), (other, _)) = (certify(folder.path(), "node"), certify(folder.path(), "other"));
    let (stop, release) = (CancellationToken::new(), CancellationToken::new());
    let missing = TlsFiles { certificate: folder.path().join("missing.pem"), ..node.clone() };
    let empty = TlsFiles { certificate: node.private_key.clone(), ..node.clone() };
    let no_key = TlsFiles { private_key: node.certificate.clone(), ..node.clone() };
    let mismatch = TlsFiles { private_key: other.private_key, ..node };
    for (files, expected) in [
        (missing, "security.certificate_file"),
        (empty, "holds no certificate"),
        (no_key, "security.private_key_file"),
        (mismatch, "does not belong to the certificate"),
    ] {
        let error = start(Some(files), &stop, &release).await.expect_err(expected);
        assert!(matches!(error, ListenError::Tls(_)), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let unreadable = TlsFiles { certificate: "/".into(), private_key: "/".into() };
    let error = start(Some(unreadable), &stop, &release).await.unwrap_err();
    assert!(matches!(error, ListenError::Tls(TlsError::CertificateUnreadable { .. })), "{error:?}");
}

#[tokio::test]
async fn a_taken_port_names_the_key_to_change() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = HttpMetrics::register(&mut Registry::default());
    let address = taken.local_addr().unwrap();
    let listen = Listen { name: "admin", key: "admin.port", address, tls: None };
    let error = serve(listen, Router::new(), metrics.clone(), CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, ListenError::AddressTaken { .. }), "{error:?}");
    assert!(error.to_string().contains("admin.port"), "{error}");
    let elsewhere =
        Listen { name: "admin", key: "admin.port", address: "192.0.2.1:1".parse().unwrap(), tls: None };
    let error = serve(elsewhere, Router::new(), metrics, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, ListenError::AddressUnusable { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_under_way_is_answered_before_the_listener_ends() {
    let (stop, release) = (CancellationToken::new(), CancellationToken::new());
    let (address, ended) = start(None, &stop, &release).await.unwrap();
    let idle = connect(address);
    let mut waiting = connect(address);
    waiting.write_all(b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let hello = tokio::task::spawn_blocking(move || exchange(connect(address), "/")).await.unwrap();
    assert!(hello.ends_with("http"), "{hello}");
    stop.cancel();
    // The socket is closed as the first step: then the release cannot come too early.
    while TcpStream::connect(address).is_ok() {
        tokio::task::yield_now().await;
    }
    release.cancel();
    let answer = tokio::task::spawn_blocking(move || {
        let mut answer = String::new();
        waiting.read_to_string(&mut answer).map(|_| answer)
    });
    let answer = tokio::time::timeout(PATIENCE, answer).await.expect("in time").unwrap().unwrap();
    assert!(answer.ends_with("done"), "{answer}");
    tokio::time::timeout(PATIENCE, ended).await.expect("it ends").unwrap();
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_listener_is_answered_and_closed() {
    let (stop, release) = (CancellationToken::new(), CancellationToken::new());
    let (address, ended) = start(None, &stop, &release).await.unwrap();
    let answers = tokio::task::spawn_blocking(move || {
        [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"HELO there\r\n\r\n", &[b'a'; 200_000], b"GET /\r\n"].map(
            |garbage| {
                let mut stream = connect(address);
                let _ = stream.write_all(garbage);
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer);
                String::from_utf8_lossy(&answer).into_owned()
            },
        )
    });
    for answer in answers.await.unwrap() {
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let hello = tokio::task::spawn_blocking(move || exchange(connect(address), "/")).await.unwrap();
    assert!(hello.starts_with("HTTP/1.1 200"), "{hello}");
    stop.cancel();
    tokio::time::timeout(PATIENCE, ended).await.expect("it ends").unwrap();
}

//! Parts that the integration tests share: hosts on loopback, and waiting for a condition.
#![allow(dead_code, reason = "each test binary uses its own part of it")]

pub(crate) mod node;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use debros_net::{Host, HostConfig, IncomingStreams, Keypair, Multiaddr, Network, PeerId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(crate) const TCP: &str = "/ip4/127.0.0.1/tcp/0";
pub(crate) const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) fn config(listen: &[&str]) -> HostConfig {
    let listen = listen.iter().map(|address| address.parse().unwrap()).collect();
    HostConfig::node(Keypair::generate_ed25519(), listen)
}

pub(crate) async fn start(config: HostConfig) -> (Arc<Host>, IncomingStreams) {
    Host::start(config).await.unwrap()
}

/// The first address with `/p2p`.
pub(crate) fn address(host: &Host) -> Multiaddr {
    host.listen_addresses()[0].clone().with_p2p(host.local_peer()).unwrap()
}

/// Serves every stream by sending back what comes.
pub(crate) fn echo(mut incoming: IncomingStreams) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while let Some(mut incoming) = incoming.next().await {
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = incoming.stream.read(&mut bytes).await {
                    if incoming.stream.write_all(&bytes[..count]).await.is_err()
                        || incoming.stream.flush().await.is_err()
                    {
                        break;
                    }
                }
            });
        }
    })
}

pub(crate) async fn echoes(network: &dyn Network, peer: PeerId, lane: debros_net::Lane) {
    let mut stream = network.open(peer, lane).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"hello");
}

/// Waits until a condition holds; fails with `what` when it does not within the deadline.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) {
    within(DEADLINE, what, condition).await;
}

pub(crate) async fn within(deadline: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let polled = async {
        let mut turns = tokio::time::interval(Duration::from_millis(10));
        while !condition().await {
            turns.tick().await;
        }
    };
    assert!(tokio::time::timeout(deadline, polled).await.is_ok(), "not within {deadline:?}: {what}");
}

pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}

pub(crate) fn trace() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}

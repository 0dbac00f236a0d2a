//! Peers that die or freeze: each is noticed within the heartbeat's two seconds, on both transports.

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use debros_net::{Host, Lane, Multiaddr, Network, PeerEvent};
use support::{QUIC, TCP, config, echo, echoes, in_time, start};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

/// The heartbeat's limit, its interval, and room for a machine that is busy.
const NOTICED: Duration = Duration::from_millis(3500);

fn port(address: &Multiaddr) -> u16 {
    address.to_string().split('/').nth(4).unwrap().parse().unwrap()
}

/// Passes bytes on until it is frozen; then it keeps its sockets open and is silent.
async fn tcp_path(target: SocketAddr, frozen: CancellationToken) -> Multiaddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let frozen = frozen.clone();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(target).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = frozen.cancelled() => std::future::pending().await,
                }
            });
        }
    });
    format!("/ip4/127.0.0.1/tcp/{}", own.port()).parse().unwrap()
}

async fn udp_path(target: SocketAddr, frozen: CancellationToken) -> Multiaddr {
    let (near, far) =
        (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let own = near.local_addr().unwrap();
    far.connect(target).await.unwrap();
    tokio::spawn(async move {
        let (mut there, mut back) = (vec![0; 65536], vec![0; 65536]);
        let mut client = None;
        loop {
            tokio::select! {
                Ok((count, from)) = near.recv_from(&mut there) => {
                    client = Some(from);
                    if !frozen.is_cancelled() {
                        let _ = far.send(&there[..count]).await;
                    }
                }
                Ok(count) = far.recv(&mut back) => if let (Some(client), false) = (client, frozen.is_cancelled()) {
                    let _ = near.send_to(&back[..count], client).await;
                }
            }
        }
    });
    format!("/ip4/127.0.0.1/udp/{}/quic-v1", own.port()).parse().unwrap()
}

#[tokio::test]
async fn a_frozen_peer_is_noticed_by_its_heartbeat() {
    for listen in [TCP, QUIC] {
        let (server, incoming) = start(config(&[listen])).await;
        let _served = echo(incoming);
        let (client, _) = start(config(&[])).await;
        let freeze = CancellationToken::new();
        let frozen = freeze.clone();
        let target = SocketAddr::from(([127, 0, 0, 1], port(&server.listen_addresses()[0])));
        let path =
            if listen == TCP { tcp_path(target, frozen).await } else { udp_path(target, frozen).await };
        let peer = client.connect(&path).await.unwrap();
        echoes(&*client, peer, Lane::Raft).await;
        let (mut here, mut there) = (client.watch_peers(), server.watch_peers());
        let started = Instant::now();
        freeze.cancel();
        assert_eq!(in_time("noticed here", here.recv()).await.unwrap(), PeerEvent::Disconnected(peer));
        let gone = PeerEvent::Disconnected(client.local_peer());
        assert_eq!(in_time("noticed there", there.recv()).await.unwrap(), gone);
        assert!(started.elapsed() < NOTICED, "{listen}: {:?}", started.elapsed());
        assert!(client.stats().heartbeats_lost_total + server.stats().heartbeats_lost_total > 0);
    }
}

/// A process that is killed says no goodbye: its tasks are gone from one moment to the next.
#[test]
fn a_dead_peer_is_noticed() {
    for listen in [TCP, QUIC] {
        let dying = tokio::runtime::Runtime::new().unwrap();
        let (server, incoming) = dying.block_on(start(config(&[listen])));
        let addresses = server.listen_addresses();
        dying.spawn(async move {
            let _kept = incoming;
            std::future::pending::<()>().await;
        });
        let living = tokio::runtime::Runtime::new().unwrap();
        living.block_on(async {
            let (client, _) = start(config(&[])).await;
            let peer = client.connect(&addresses[0]).await.unwrap();
            let mut events = client.watch_peers();
            let started = Instant::now();
            dying.shutdown_background();
            assert_eq!(in_time("noticed", events.recv()).await.unwrap(), PeerEvent::Disconnected(peer));
            assert!(started.elapsed() < NOTICED, "{listen}: {:?}", started.elapsed());
        });
        drop::<std::sync::Arc<Host>>(server);
    }
}

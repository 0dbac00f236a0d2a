//! Hosts with real sockets on loopback: streams on lanes, connections, and what goes wrong with them.

mod support;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use debros_net::{
    Host, HostConfig, HostError, HostRole, Keypair, Lane, Multiaddr, Network, OpenError, PeerEvent, PeerId,
    TransportKind,
};
use support::{QUIC, TCP, address, config, echo, echoes, eventually, in_time, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn lanes_open_both_ways_over_tcp_and_quic() {
    for (listen, transport) in [(TCP, TransportKind::Tcp), (QUIC, TransportKind::Quic)] {
        let (first, first_incoming) = start(config(&[listen])).await;
        let (second, second_incoming) = start(config(&[listen])).await;
        let (_one, _two) = (echo(first_incoming), echo(second_incoming));
        let peer = first.connect(&address(&second)).await.unwrap();
        assert_eq!(peer, second.local_peer());
        eventually("both sides are connected", async || second.is_connected(first.local_peer())).await;
        for lane in Lane::ALL {
            echoes(&*first, second.local_peer(), lane).await;
            echoes(&*second, first.local_peer(), lane).await;
        }
        let known = first.peers();
        assert_eq!(known.len(), 1);
        assert!(known[0].connected && known[0].last_seen_ms.is_some());
        assert_eq!(known[0].transport, Some(transport));
        assert_eq!(first.stats().connections_total, 2, "one for bulk, one for all else");
    }
}

#[tokio::test]
async fn incoming_streams_say_who_opened_them_and_on_which_lane() {
    let (server, mut incoming) = start(config(&[TCP])).await;
    let (client, _) = start(HostConfig::client(Keypair::generate_ed25519())).await;
    // Without /p2p the id is learnt from whoever answers.
    let peer = client.connect(&server.listen_addresses()[0]).await.unwrap();
    let _stream = client.open(peer, Lane::Kv).await.unwrap();
    let stream = in_time("the stream arrives", incoming.next()).await.unwrap();
    assert_eq!((stream.peer, stream.lane), (client.local_peer(), Lane::Kv));
    assert_eq!(stream.stream.identity().peer, client.local_peer());
    assert!(client.own_record().is_none() && server.own_record().is_some());
}

#[tokio::test]
async fn a_burst_of_streams_arrives_complete() {
    for listen in [TCP, QUIC] {
        let (server, mut incoming) = start(config(&[listen])).await;
        let (client, _) = start(config(&[])).await;
        client.learn(server.local_peer(), &server.listen_addresses());
        let opens = (0..200_u32).map(|number| {
            let (client, peer) = (client.clone(), server.local_peer());
            tokio::spawn(async move {
                let mut stream = client.open(peer, Lane::Kv).await.unwrap();
                stream.write_u32(number).await.unwrap();
                stream.flush().await.unwrap();
                stream
            })
        });
        let opened = futures::future::join_all(opens).await;
        let mut arrived = HashSet::new();
        while arrived.len() < 200 {
            let mut stream = in_time("the next stream", incoming.next()).await.unwrap();
            arrived.insert(stream.stream.read_u32().await.unwrap());
        }
        assert!(opened.iter().all(Result::is_ok));
    }
}

/// Yamux closes a connection that gets one stream more than it allows.
#[tokio::test]
async fn too_many_streams_are_refused_and_cost_nothing() {
    for listen in [TCP, QUIC] {
        let (server, incoming) = start(config(&[listen])).await;
        let (client, _) = start(config(&[])).await;
        client.learn(server.local_peer(), &server.listen_addresses());
        let _server = echo(incoming);
        let mut kept = Vec::new();
        let mut refused = 0;
        for _ in 0..600 {
            match client.open(server.local_peer(), Lane::Raft).await {
                Ok(stream) => kept.push(stream),
                Err(OpenError::Busy(Lane::Raft)) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(kept.len() >= 200 && refused > 0, "{} kept, {refused} refused", kept.len());
        for stream in &mut kept {
            stream.write_all(b"x").await.unwrap();
            stream.flush().await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'x');
        }
        drop(kept);
        eventually("there is room again", async || {
            client.open(server.local_peer(), Lane::Raft).await.is_ok()
        })
        .await;
        assert_eq!(client.stats().connections_total, 1);
    }
}

#[tokio::test]
async fn a_lane_that_nobody_serves_is_busy_and_leaves_the_others_alone() {
    let (server, mut incoming) = start(config(&[TCP])).await;
    let (client, _) = start(config(&[])).await;
    client.learn(server.local_peer(), &server.listen_addresses());
    // Opened from several processes' worth of streams: the queue is as deep as one side may open.
    let (other, _) = start(config(&[])).await;
    other.learn(server.local_peer(), &server.listen_addresses());
    let _served = echo(incoming.take(&[Lane::Raft]));
    let mut kept = Vec::new();
    let mut busy = false;
    for round in 0..2 * debros_net::INCOMING_QUEUE_STREAMS {
        let opener = if round % 2 == 0 { &client } else { &other };
        match opener.open(server.local_peer(), Lane::Kv).await {
            Ok(stream) => kept.push(stream),
            Err(error) => {
                assert_eq!(error, OpenError::Busy(Lane::Kv));
                busy = true;
                break;
            }
        }
    }
    assert!(busy);
    echoes(&*client, server.local_peer(), Lane::Raft).await;
}

#[tokio::test]
async fn a_lane_that_is_not_served_is_named() {
    let (server, _incoming) = start(HostConfig { lanes: vec![Lane::Raft], ..config(&[TCP]) }).await;
    let (client, _) = start(config(&[])).await;
    client.learn(server.local_peer(), &server.listen_addresses());
    let refusal = client.open(server.local_peer(), Lane::Kv).await.unwrap_err();
    assert_eq!(refusal, OpenError::Unsupported(Lane::Kv));
    assert!(client.open(server.local_peer(), Lane::Raft).await.is_ok());
}

#[tokio::test]
async fn simultaneous_dials_settle_without_losing_a_stream() {
    for listen in [TCP, QUIC] {
        for round in 0..15 {
            let (first, first_incoming) = start(config(&[listen])).await;
            let (second, second_incoming) = start(config(&[listen])).await;
            let (_one, _two) = (echo(first_incoming), echo(second_incoming));
            let (one, two) = (first.local_peer(), second.local_peer());
            first.learn(two, &second.listen_addresses());
            second.learn(one, &first.listen_addresses());
            let (a, b, c, d) = tokio::join!(
                first.open(two, Lane::Raft),
                second.open(one, Lane::Raft),
                first.open(two, Lane::Bulk),
                second.open(one, Lane::Bulk)
            );
            let settled = async || {
                let count = |host: &Host| host.stats().connections_tcp + host.stats().connections_quic;
                count(&first) == 2 && count(&second) == 2
            };
            eventually("one connection for bulk and one for the rest", settled).await;
            for stream in [a, b, c, d] {
                let mut stream = stream.unwrap_or_else(|error| panic!("{listen} round {round}: {error}"));
                stream.write_all(b"x").await.unwrap();
                stream.flush().await.unwrap();
                assert_eq!(stream.read_u8().await.unwrap(), b'x', "a stream that was handed out died");
            }
        }
    }
}

#[tokio::test]
async fn dialing_a_connected_peer_by_address_keeps_its_connection() {
    let (server, incoming) = start(config(&[TCP, QUIC])).await;
    let _served = echo(incoming);
    let (client, _) = start(config(&[])).await;
    let [tcp, quic] = <[Multiaddr; 2]>::try_from(server.listen_addresses()).unwrap();
    client.connect(&tcp).await.unwrap();
    let mut stream = client.open(server.local_peer(), Lane::Raft).await.unwrap();
    // The old connection is past the time in which two dials count as simultaneous.
    tokio::time::timeout(Duration::from_millis(3200), stream.read_u8()).await.unwrap_err();
    for address in [&tcp, &quic, &tcp] {
        assert_eq!(client.connect(address).await.unwrap(), server.local_peer());
    }
    stream.write_all(b"x").await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(in_time("the echo", stream.read_u8()).await.unwrap(), b'x');
    eventually("the surplus connection goes away", async || {
        client.stats().connections_tcp + client.stats().connections_quic == 1
    })
    .await;
}

#[tokio::test]
async fn the_wrong_peer_is_named_before_it_hears_of_a_connection() {
    for listen in [TCP, QUIC] {
        let (server, _incoming) = start(config(&[listen])).await;
        let (client, _) = start(config(&[])).await;
        let mut events = server.watch_peers();
        let expected = PeerId::random();
        let wrong = server.listen_addresses()[0].clone().with_p2p(expected).unwrap();
        match client.connect(&wrong).await.unwrap_err() {
            OpenError::WrongPeer { expected: named, obtained, .. } => {
                assert_eq!((named, obtained), (expected, server.local_peer()));
            }
            error => panic!("{error}"),
        }
        assert!(events.try_recv().is_err());
        assert_eq!(server.stats().connections_total, 0);
    }
}

#[tokio::test]
async fn each_way_of_not_connecting_has_its_own_error() {
    let (host, _incoming) = start(config(&[TCP])).await;
    let stranger = PeerId::random();
    assert_eq!(host.open(stranger, Lane::Raft).await.unwrap_err(), OpenError::NoAddress(stranger));
    assert!(matches!(host.connect(&address(&host)).await.unwrap_err(), OpenError::LocalPeer(_)));
    let own = host.connect(&host.listen_addresses()[0]).await.unwrap_err();
    assert!(matches!(own, OpenError::LocalPeer(_)), "{own}");
    for bad in ["/ip4/127.0.0.1", "/ip4/127.0.0.1/udp/1", "/memory/1", "/ip4/127.0.0.1/tcp/1/ws"] {
        let refusal = host.connect(&bad.parse().unwrap()).await.unwrap_err();
        assert!(matches!(refusal, OpenError::InvalidAddress { .. }), "{bad}: {refusal}");
        assert!(refusal.to_string().contains("/dns4/"), "{refusal}");
    }
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody: Multiaddr = format!("/ip4/127.0.0.1/tcp/{}", free.port()).parse().unwrap();
    let started = Instant::now();
    match host.connect(&nobody).await.unwrap_err() {
        OpenError::Unreachable { addresses, reason, .. } => {
            assert_eq!(addresses, vec![nobody.clone()]);
            assert_eq!(reason, "connection refused");
        }
        error => panic!("{error}"),
    }
    assert!(started.elapsed() < Duration::from_secs(2));
    host.learn(stranger, &[nobody]);
    assert!(matches!(host.open(stranger, Lane::Raft).await.unwrap_err(), OpenError::Unreachable { .. }));
    assert_eq!(host.stats().dials_failed_total["unreachable"], 2);
    let unnamed: Multiaddr = "/dns4/no-such-host.invalid/tcp/1".parse().unwrap();
    assert!(matches!(host.connect(&unnamed).await.unwrap_err(), OpenError::Unreachable { .. }));
}

#[tokio::test]
async fn names_are_resolved_when_they_are_dialed() {
    let (server, _incoming) = start(config(&[TCP])).await;
    let (client, _) = start(config(&[])).await;
    let port = server.listen_addresses()[0].to_string().rsplit('/').next().unwrap().to_owned();
    let named: Multiaddr = format!("/dns4/localhost/tcp/{port}").parse().unwrap();
    assert_eq!(client.connect(&named).await.unwrap(), server.local_peer());
}

#[tokio::test]
async fn a_taken_port_is_an_error_of_the_start() {
    for listen in [TCP, QUIC] {
        let (host, _incoming) = start(config(&[listen])).await;
        let taken = host.listen_addresses()[0].to_string();
        match Host::start(config(&[&taken])).await {
            Err(HostError::AddressInUse { address }) => assert_eq!(address.to_string(), taken),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("two hosts share a port"),
        }
        // The port is free again after a shutdown.
        host.shutdown().await;
        let (again, _incoming) = start(config(&[&taken])).await;
        assert_eq!(again.listen_addresses()[0].to_string(), taken);
    }
}

#[tokio::test]
async fn bad_listen_addresses_and_names_are_errors_of_the_start() {
    for bad in ["/dns4/localhost/tcp/0", "/ip4/127.0.0.1/udp/0", "/memory/1"] {
        assert!(
            matches!(Host::start(config(&[bad])).await, Err(HostError::InvalidListenAddress { .. })),
            "{bad}"
        );
    }
    // Documentation addresses (RFC 5737) belong to no machine.
    assert!(matches!(Host::start(config(&["/ip4/198.51.100.1/tcp/0"])).await, Err(HostError::Listen { .. })));
    let unnamed = HostConfig { dht: Some("debros".into()), ..config(&[TCP]) };
    assert!(matches!(Host::start(unnamed).await, Err(HostError::DhtName(_))));
}

#[tokio::test]
async fn listening_everywhere_advertises_real_addresses() {
    let (host, _incoming) = start(config(&["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic"])).await;
    let found = host.listen_addresses();
    assert!(found.len() >= 2, "{found:?}");
    assert!(found.iter().all(|address| !address.to_string().contains("0.0.0.0")), "{found:?}");
    let (other, _) = start(config(&[])).await;
    for address in found {
        assert_eq!(other.connect(&address).await.unwrap(), host.local_peer());
    }
}

#[tokio::test]
async fn peers_are_told_of_and_forgotten_in_time() {
    let (server, _incoming) = start(config(&[TCP])).await;
    let (client, _) = start(config(&[])).await;
    let mut events = client.watch_peers();
    let peer = server.local_peer();
    client.learn(peer, &server.listen_addresses());
    client.reach(peer).await.unwrap();
    assert_eq!(events.recv().await.unwrap(), PeerEvent::Discovered(peer));
    assert_eq!(events.recv().await.unwrap(), PeerEvent::Connected(peer));
    client.disconnect(peer).await;
    assert_eq!(events.recv().await.unwrap(), PeerEvent::Disconnected(peer));
    assert!(!client.is_connected(peer));
    let known = client.peers();
    assert!(known[0].last_seen_ms.is_some() && !known[0].connected);
    // It can be dialed again.
    client.reach(peer).await.unwrap();
    server.shutdown().await;
    eventually("the peer is gone", async || !client.is_connected(peer)).await;
    client.shutdown().await;
    assert_eq!(client.open(peer, Lane::Raft).await.unwrap_err(), OpenError::ShutDown);
}

#[tokio::test]
async fn garbage_on_the_listener_does_no_harm() {
    let (server, incoming) = start(config(&[TCP, QUIC])).await;
    let _served = echo(incoming);
    let port =
        |address: &Multiaddr| -> u16 { address.to_string().split('/').nth(4).unwrap().parse().unwrap() };
    let [tcp, quic] = <[Multiaddr; 2]>::try_from(server.listen_addresses()).unwrap();
    for garbage in [&[0_u8; 1000][..], b"GET / HTTP/1.1\r\n\r\n", b"\x13/multistream/1.0.0\n\x06/nope\n", b""]
    {
        let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port(&tcp))).await.unwrap();
        let _ = socket.write_all(garbage).await;
        let _ = socket.shutdown().await;
        let mut rest = Vec::new();
        let _ = in_time("the garbage is dropped", socket.read_to_end(&mut rest)).await;
        let datagrams = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        datagrams.send_to(garbage, ("127.0.0.1", port(&quic))).await.unwrap();
    }
    // A silent one is dropped when its time is over.
    let mut silent = tokio::net::TcpStream::connect(("127.0.0.1", port(&tcp))).await.unwrap();
    let mut rest = Vec::new();
    let _ = in_time("the silent one is dropped", silent.read_to_end(&mut rest)).await;
    let (client, _) = start(config(&[])).await;
    for address in [tcp, quic] {
        client.connect(&address).await.unwrap();
        echoes(&*client, server.local_peer(), Lane::Raft).await;
    }
    eventually("failures are counted", async || server.stats().inbound_failed_total >= 4).await;
}

#[tokio::test]
async fn connections_over_the_limit_are_refused() {
    let (server, _incoming) = start(HostConfig { connections_max: 1, ..config(&[TCP]) }).await;
    let (first, _) = start(config(&[])).await;
    first.connect(&server.listen_addresses()[0]).await.unwrap();
    let (second, _) = start(config(&[])).await;
    second.connect(&server.listen_addresses()[0]).await.unwrap_err();
    assert!(first.is_connected(server.local_peer()));
}

#[tokio::test]
async fn a_client_is_no_address_for_anybody() {
    let (server, _incoming) = start(config(&[TCP])).await;
    let (client, _) = start(HostConfig::client(Keypair::generate_ed25519())).await;
    client.connect(&server.listen_addresses()[0]).await.unwrap();
    eventually("the server sees its client", async || server.is_connected(client.local_peer())).await;
    assert!(server.peers()[0].addresses.is_empty());
    client.shutdown().await;
    eventually("nothing of it is kept", async || server.peers().is_empty()).await;
    assert_eq!(HostConfig::client(Keypair::generate_ed25519()).role, HostRole::Client);
}

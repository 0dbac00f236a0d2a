//! Discovery with real sockets: from one address to everybody, and back after every loss.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use debros_net::discovery::DiscoveryConfig;
use debros_net::{
    Host, HostConfig, Keypair, Lane, Multiaddr, Network, OpenError, PeerEvent, PeerId, grpc, record,
};
use debros_proto::v1::peering_client::PeeringClient;
use debros_proto::{ErrorCode, Failure, limits, v1};
use support::node::{Node, discovery_config, status};
use support::{QUIC, TCP, config, eventually, in_time, start, within};

async fn full_mesh(nodes: &[Node<Host>]) -> bool {
    nodes.iter().all(|node| node.connected() == nodes.len() - 1)
}

#[tokio::test]
async fn five_nodes_find_one_another_from_one_address() {
    let first = Node::start(config(&[TCP]), &[]).await;
    // Without /p2p.
    let known = first.network.listen_addresses();
    let mut nodes = vec![first];
    for _ in 0..4 {
        nodes.push(Node::start(config(&[TCP, QUIC]), &known).await);
    }
    eventually("a full mesh", async || full_mesh(&nodes).await).await;
    for node in &nodes {
        in_time("a status of everybody", node.discovery.wait_for(|statuses| statuses.len() == 4)).await;
        for (peer, status) in node.discovery.statuses() {
            assert_eq!(status.status.peer_id, peer.to_base58());
            assert_eq!(status.status.services, ["database"]);
        }
        assert!(node.network.peers().iter().all(|known| known.last_seen_ms.is_some()));
    }
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_restarted_node_is_found_again_at_its_new_address() {
    let first = Node::start(config(&[TCP]), &[]).await;
    let known = first.network.listen_addresses();
    let second = Node::start(config(&[TCP]), &known).await;
    let moving = config(&[TCP]);
    let third = Node::start(moving.clone(), &known).await;
    let (old, peer) = (third.network.listen_addresses(), third.peer());
    eventually("all are connected", async || second.network.is_connected(peer)).await;
    third.stop().await;
    eventually("it is missed", async || !second.network.is_connected(peer)).await;
    // It knows only the first; the second, which nobody tells it of, has to hear where it is now.
    let third = Node::start(moving, &known).await;
    assert_ne!(third.network.listen_addresses(), old);
    eventually("it is found again", async || second.network.is_connected(peer)).await;
    second.network.open(peer, Lane::Client).await.unwrap();
}

#[tokio::test]
async fn a_bootstrap_peer_that_starts_late_is_found_within_two_seconds() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let address: Multiaddr = format!("/ip4/127.0.0.1/tcp/{}", socket.port()).parse().unwrap();
    let early = Node::start(config(&[TCP]), std::slice::from_ref(&address)).await;
    eventually("some dials failed", async || {
        early.network.stats().dials_failed_total.get("unreachable").is_some_and(|count| *count >= 4)
    })
    .await;
    let _late = Node::start(config(&[&address.to_string()]), &[]).await;
    within(Duration::from_secs(2), "it is found", async || early.connected() == 1).await;
}

#[tokio::test]
async fn peers_are_kept_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let saved_peers = Some(folder.path().join("peers.json"));
    let first = Node::start(config(&[TCP]), &[]).await;
    let settings = config(&[TCP]);
    let with = |host: &Host, bootstrap: &[Multiaddr]| DiscoveryConfig {
        saved_peers: saved_peers.clone(),
        ..discovery_config(host, bootstrap)
    };
    let (host, incoming) = start(settings.clone()).await;
    let second = Node::new(host.clone(), incoming, with(&host, &first.network.listen_addresses()));
    eventually("they are connected", async || second.connected() == 1).await;
    eventually("both say where they are", async || {
        second.network.peers().iter().all(|known| !known.addresses.is_empty())
    })
    .await;
    second.stop().await;
    eventually("it is gone", async || first.connected() == 0).await;
    // The first forgets it, so that only what was saved can bring them together.
    first.network.forget(settings.keypair.public().to_peer_id());
    let (host, incoming) = start(settings).await;
    let second = Node::new(host.clone(), incoming, with(&host, &[]));
    eventually("they are connected again", async || second.connected() == 1).await;
}

#[tokio::test]
async fn kademlia_finds_members_without_peer_exchange() {
    let with_dht = || HostConfig { dht: Some("/debros/test/1".into()), ..config(&[TCP]) };
    let quiet = |host: &Host, bootstrap: &[Multiaddr]| DiscoveryConfig {
        peer_exchange: false,
        ..discovery_config(host, bootstrap)
    };
    let mut nodes: Vec<Node<Host>> = Vec::new();
    for _ in 0..4 {
        let (host, incoming) = start(with_dht()).await;
        let known = nodes.first().map_or_else(Vec::new, |first| first.network.listen_addresses());
        let settings = quiet(&host, &known);
        nodes.push(Node::new(host, incoming, settings));
    }
    eventually("a full mesh", async || full_mesh(&nodes).await).await;
}

#[tokio::test]
async fn without_any_source_nobody_is_found() {
    let quiet = |host: &Host, bootstrap: &[Multiaddr]| DiscoveryConfig {
        peer_exchange: false,
        ..discovery_config(host, bootstrap)
    };
    let (host, incoming) = start(config(&[TCP])).await;
    let settings = quiet(&host, &[]);
    let hub = Node::new(host, incoming, settings);
    let mut spokes = Vec::new();
    for _ in 0..2 {
        let (host, incoming) = start(config(&[TCP])).await;
        let settings = quiet(&host, &hub.network.listen_addresses());
        spokes.push(Node::new(host, incoming, settings));
    }
    for spoke in &spokes {
        let seen = |statuses: &std::collections::HashMap<_, _>| statuses.contains_key(&hub.peer());
        in_time("statuses are exchanged nevertheless", spoke.discovery.wait_for(seen)).await;
    }
    // Two more exchanges each: what could be learnt would have been.
    let mut changes = spokes[0].discovery.watch();
    for _ in 0..2 {
        in_time("another exchange", changes.changed()).await.unwrap();
    }
    assert_eq!(spokes[0].connected(), 1);
}

#[tokio::test]
async fn a_client_finds_nodes_and_is_never_dialed_or_passed_on() {
    // Whoever asks before a record is there learns of it the next time.
    let often =
        |settings: DiscoveryConfig| DiscoveryConfig { interval: Duration::from_millis(500), ..settings };
    let (host, incoming) = start(config(&[TCP])).await;
    let settings = often(discovery_config(&*host, &[]));
    let first = Node::new(host, incoming, settings);
    let (host, incoming) = start(config(&[TCP])).await;
    let settings = often(discovery_config(&*host, &first.network.listen_addresses()));
    let second = Node::new(host, incoming, settings);
    let (client, incoming) = start(HostConfig::client(Keypair::generate_ed25519())).await;
    let peer = client.local_peer();
    let own = status(peer, "");
    let settings = DiscoveryConfig {
        peers_max: 2,
        own_status: Arc::new(move || v1::NodeStatus { client: true, ..own() }),
        ..discovery_config(&*client, &first.network.listen_addresses())
    };
    let client = Node::new(client, incoming, often(settings));
    eventually("it finds both nodes", async || client.connected() == 2).await;
    in_time(
        "the nodes know what it is",
        first.discovery.wait_for(|statuses| statuses.get(&peer).is_some_and(|status| status.status.client)),
    )
    .await;
    client.stop().await;
    eventually("it is gone", async || !first.network.is_connected(peer)).await;
    let third = Node::start(config(&[TCP]), &first.network.listen_addresses()).await;
    eventually("the third finds the others", async || third.connected() == 2).await;
    assert!(third.network.peers().iter().all(|known| known.peer != peer));
    assert!(first.network.stats().dials_failed_total.is_empty());
    assert!(second.network.stats().dials_failed_total.is_empty());
}

#[tokio::test]
async fn a_node_of_another_cluster_is_left_by_name() {
    let in_cluster = |host: &Host, bootstrap: &[Multiaddr], name: &str| DiscoveryConfig {
        own_status: status(host.local_peer(), name),
        ..discovery_config(host, bootstrap)
    };
    let (host, incoming) = start(config(&[TCP])).await;
    let settings = in_cluster(&host, &[], "aaaa");
    let first = Node::new(host, incoming, settings);
    let (host, incoming) = start(config(&[TCP])).await;
    let mut events = host.watch_peers();
    let settings = in_cluster(&host, &first.network.listen_addresses(), "bbbb");
    let second = Node::new(host, incoming, settings);
    let peer = first.peer();
    assert_eq!(in_time("connected", events.recv()).await.unwrap(), PeerEvent::Connected(peer));
    let left = async { while events.recv().await.unwrap() != PeerEvent::Disconnected(peer) {} };
    in_time("and left", left).await;
    assert!(second.discovery.statuses().is_empty());
    // Refused by name, to whoever asks.
    let (asker, _) = start(config(&[])).await;
    asker.connect(&first.network.listen_addresses()[0]).await.unwrap();
    let request =
        v1::ExchangeRequest { status: Some(status(asker.local_peer(), "bbbb")()), signed_records: vec![] };
    let refusal = exchange(&asker, peer, request).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::WrongCluster);
    assert!(refusal.message.contains("aaaa") && refusal.message.contains("bbbb"), "{refusal}");
}

async fn exchange(
    network: &Arc<Host>,
    peer: PeerId,
    request: v1::ExchangeRequest,
) -> Result<v1::ExchangeResponse, Failure> {
    let channel = grpc::channel(network.clone(), peer, Lane::Client);
    let answer = PeeringClient::new(channel).exchange(request).await;
    answer.map(tonic::Response::into_inner).map_err(|status| Failure::from_status(&status))
}

#[tokio::test]
async fn an_exchange_over_a_lane_carries_status_and_records_and_refuses_what_is_false() {
    let node = Node::start(config(&[TCP]), &[]).await;
    let (host, _) = start(config(&[TCP])).await;
    host.connect(&node.network.listen_addresses()[0]).await.unwrap();
    let honest = status(host.local_peer(), "")();
    let request = v1::ExchangeRequest {
        status: Some(honest.clone()),
        signed_records: vec![host.own_record().unwrap().into()],
    };
    let answer = exchange(&host, node.peer(), request).await.unwrap();
    assert_eq!(answer.status.unwrap().peer_id, node.peer().to_base58());
    let first = record::verify(&answer.signed_records[0]).unwrap();
    assert_eq!((first.peer, first.addresses), (node.peer(), node.network.listen_addresses()));

    let mut forged = host.own_record().unwrap();
    *forged.last_mut().unwrap() ^= 1;
    let stranger = status(PeerId::random(), "")();
    let many = vec![bytes::Bytes::new(); limits::EXCHANGE_RECORDS_MAX + 1];
    let talkative = v1::NodeStatus { zone: "z".repeat(100_000), ..honest.clone() };
    for (status, signed_records, code) in [
        (None, vec![], ErrorCode::InvalidArgument),
        (Some(stranger), vec![], ErrorCode::InvalidArgument),
        (Some(honest.clone()), vec![forged.into()], ErrorCode::InvalidArgument),
        (Some(honest.clone()), vec![vec![0; 5000].into()], ErrorCode::InvalidArgument),
        (Some(honest), many, ErrorCode::LimitExceeded),
        (Some(talkative), vec![], ErrorCode::LimitExceeded),
    ] {
        let refusal = exchange(&host, node.peer(), v1::ExchangeRequest { status, signed_records }).await;
        assert_eq!(refusal.unwrap_err().code, code);
    }
}

#[tokio::test]
async fn a_call_to_a_peer_that_cannot_be_reached_says_why() {
    let (host, _) = start(config(&[])).await;
    let peer = PeerId::random();
    let channel = grpc::channel(host.clone(), peer, Lane::Client);
    let status = PeeringClient::new(channel).exchange(v1::ExchangeRequest::default()).await.unwrap_err();
    assert_eq!(grpc::open_error(&status), Some(&OpenError::NoAddress(peer)));
}

#[tokio::test]
async fn kept_channels_work_again_after_the_peer_came_back() {
    let settings = config(&[TCP]);
    let node = Node::start(settings.clone(), &[]).await;
    let address = node.network.listen_addresses()[0].clone();
    let (host, _) = start(config(&[])).await;
    host.connect(&address).await.unwrap();
    let channels = grpc::Channels::new(host.clone());
    let own = status(host.local_peer(), "");
    let call = async || {
        let request = v1::ExchangeRequest { status: Some(own()), signed_records: vec![] };
        PeeringClient::new(channels.get(settings.keypair.public().to_peer_id(), Lane::Client))
            .exchange(request)
            .await
    };
    call().await.unwrap();
    node.stop().await;
    eventually("the call fails", async || call().await.is_err()).await;
    let settings = HostConfig { listen: vec![address], ..settings.clone() };
    let _node = Node::start(settings, &[]).await;
    eventually("the same channel works again", async || call().await.is_ok()).await;
}

/// The bound of the whole project is 30 nodes in one process within 30 s on two cores. A build without
/// optimisation spends most of its time on handshakes, and may share its cores with a compiler.
const THIRTY_NODES_DEADLINE: Duration = Duration::from_secs(if cfg!(debug_assertions) { 150 } else { 30 });

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_nodes_in_one_process_find_one_another() {
    let settings = || HostConfig { dht: Some("/debros/test/1".into()), ..config(&[TCP, QUIC]) };
    let started = Instant::now();
    let first = Node::start(settings(), &[]).await;
    let known = first.network.listen_addresses();
    let mut nodes = vec![first];
    for _ in 1..30 {
        nodes.push(Node::start(settings(), &known[..1]).await);
    }
    within(THIRTY_NODES_DEADLINE, "a full mesh of 30, and a status of everybody", async || {
        full_mesh(&nodes).await && nodes.iter().all(|node| node.discovery.statuses().len() == 29)
    })
    .await;
    let ends: u64 = nodes.iter().map(|node| node.network.stats().connections_total).sum();
    println!("30 nodes: complete in {:?}, {ends} connection ends where 870 are needed", started.elapsed());
}

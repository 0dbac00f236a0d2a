//! Discovery over turmoil's network in simulated time: large clusters and partitions.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use debros_net::simulated::{SimulatedNetwork, multiaddr};
use debros_net::{Keypair, Lane, Network};
use support::node::{Node, discovery_config};
use tokio::time::Instant;

const PORT: u16 = 4001;

fn name(index: usize) -> String {
    format!("node-{index}")
}

fn socket(index: usize) -> SocketAddr {
    SocketAddr::new(turmoil::lookup(name(index)), PORT)
}

async fn node(index: usize) -> Node<SimulatedNetwork> {
    // Ed25519 takes any 32 bytes; a restart keeps its identity.
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&(index as u64).to_be_bytes());
    let keypair = Keypair::ed25519_from_bytes(seed).unwrap();
    let (network, incoming) =
        SimulatedNetwork::start(keypair, Some(socket(index)), &[Lane::Client]).await.unwrap();
    let bootstrap = if index == 0 { vec![] } else { vec![multiaddr(socket(0))] };
    let config = discovery_config(&*network, &bootstrap);
    Node::new(network, incoming, config)
}

/// Runs `count` nodes until each is connected to all others and has their status, and returns the
/// simulated time that took.
fn converge(count: usize, limit: Duration) -> Duration {
    let mut simulation =
        turmoil::Builder::new().simulation_duration(limit).tick_duration(Duration::from_millis(5)).build();
    let complete = Arc::new(AtomicUsize::new(0));
    for index in 0..count {
        let complete = Arc::clone(&complete);
        simulation.host(name(index), move || {
            let complete = Arc::clone(&complete);
            async move {
                let node = node(index).await;
                node.discovery.wait_for(|statuses| statuses.len() == count - 1).await;
                assert_eq!(node.connected(), count - 1);
                complete.fetch_add(1, Ordering::Relaxed);
                std::future::pending::<()>().await;
                Ok(())
            }
        });
    }
    simulation.client("observer", async move {
        while complete.load(Ordering::Relaxed) < count {
            tokio::time::sleep(Duration::from_millis(100)).await; // simulated time: between two looks
        }
        Ok(())
    });
    simulation.run().unwrap_or_else(|error| panic!("{count} nodes within {limit:?}: {error}"));
    simulation.elapsed()
}

#[test]
fn a_hundred_nodes_find_one_another_within_thirty_simulated_seconds() {
    let took = converge(100, Duration::from_secs(30));
    println!("100 nodes: {took:?} of simulated time");
}

#[test]
fn a_partition_is_noticed_and_healed() {
    let mut simulation = turmoil::Builder::new().simulation_duration(Duration::from_secs(60)).build();
    for index in 0..3 {
        simulation.host(name(index), move || async move {
            let _node = node(index).await;
            std::future::pending::<()>().await;
            Ok(())
        });
    }
    simulation.client("node-9", async move {
        let node = node(9).await;
        node.discovery.wait_for(|statuses| statuses.len() == 3).await;
        assert_eq!(node.connected(), 3);
        let mut events = node.network.watch_peers();
        let started = Instant::now();
        (0..3).for_each(|index| turmoil::partition("node-9", name(index)));
        for _ in 0..3 {
            events.recv().await.unwrap();
        }
        assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
        assert_eq!(node.connected(), 0);
        tokio::time::sleep(Duration::from_secs(10)).await; // simulated time: long enough to miss a heartbeat
        let healed = Instant::now();
        (0..3).for_each(|index| turmoil::repair("node-9", name(index)));
        while node.connected() < 3 {
            tokio::time::sleep(Duration::from_millis(50)).await; // simulated time: between two looks
        }
        assert!(healed.elapsed() < Duration::from_secs(8), "{:?}", healed.elapsed());
        Ok(())
    });
    simulation.run().unwrap();
}

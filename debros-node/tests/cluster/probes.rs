//! What nodes find out by themselves: probes through other nodes, and the checks that each trouble turns, no others.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use debros_node::clock::Clock;
use debros_sdk::{Client, Database, ErrorKind, Health, NetworkInfo, PubSub, Storage, params};

use crate::support::{Cluster, eventually, expect, get, table, write};

/// The checks that are not well, as `PLACE CHECK`.
async fn troubles(cluster: &Cluster) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (place, node) in cluster.running().enumerate() {
        let report = node.node.health().report().await;
        let checks = report.checks.into_iter().filter(|check| check.status != "ok");
        for check in checks {
            assert!(!check.next_step.is_empty(), "{} has no next step: {}", check.name, check.message);
            found.insert(format!("{place} {}", check.name));
        }
    }
    found
}

/// Waits until exactly these are not well.
async fn only(cluster: &Cluster, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(ToString::to_string).collect();
    eventually("exactly the expected checks are not well", async || {
        expect(troubles(cluster).await, &expected)
    })
    .await;
}

async fn probing(nodes: usize) -> Cluster {
    let mut cluster = Cluster::probing().await;
    for _ in 0..nodes {
        cluster.add().await;
    }
    cluster.formed().await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_probe_through_each_other_where_no_client_may_go() {
    let cluster = probing(3).await;
    let client = cluster.client(0, "app").await;
    table(&client).await;
    write(&client, 1).await;
    let checks = eventually("every node has probed all engines through another", async || {
        let health = client.network().health().await.map_err(|error| error.to_string())?;
        let through = |check: &debros_sdk::HealthCheck| {
            check.status == Health::Healthy && check.message.contains("through node")
        };
        let probes = health.checks.iter().filter(|(name, check)| name.contains(": probe ") && through(check));
        expect((health.status, probes.count()), &(Health::Healthy, 9))
            .map_err(|reason| format!("{reason}: {:?}", health.checks))?;
        Ok::<_, String>(health.checks)
    })
    .await;
    assert!(checks.values().all(|check| check.next_step.is_empty()), "{checks:?}");
    let metrics = get(cluster.node(1).admin, "/metrics").await.body;
    for probe in ["storage", "database", "pubsub"] {
        let counted = format!("debros_probe_total{{probe=\"{probe}\",outcome=\"ok\"}} ");
        let line = metrics.lines().find(|line| line.starts_with(&counted)).expect(&counted);
        assert_ne!(line.trim_start_matches(&counted), "0", "{line}");
        assert!(
            metrics.contains(&format!("debros_probe_duration_seconds_count{{probe=\"{probe}\"}}")),
            "{metrics}"
        );
    }
    let databases = client.list_databases().await.unwrap();
    assert_eq!(databases.len(), 1, "the canary's is no tenant's: {databases:?}");
    refused(&cluster).await;
    client.close().await;
    cluster.shutdown().await;
}

/// A client that names the canary's namespace gets nowhere.
async fn refused(cluster: &Cluster) {
    let intruder: Client = cluster.client(0, "debros-canary").await;
    let refusals = [
        intruder.database().query("SELECT * FROM canary", params![]).await.map(drop).unwrap_err(),
        intruder.storage().get("node/1").await.map(drop).unwrap_err(),
        intruder.storage().put("node/1", "x".into()).await.map(drop).unwrap_err(),
        intruder.pubsub().publish("node.1", b"x").await.unwrap_err(),
        intruder.list_databases().await.map(drop).unwrap_err(),
    ];
    for refusal in refusals {
        assert_eq!(refusal.kind(), ErrorKind::PermissionDenied, "{refusal}");
        assert!(refusal.to_string().contains("debros-canary"), "{refusal}");
    }
    intruder.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_alone_probes_itself() {
    let cluster = probing(1).await;
    only(&cluster, &[]).await;
    let report = cluster.node(0).node.health().report().await;
    let probes: Vec<_> = report.checks.iter().filter(|check| check.name.starts_with("probe ")).collect();
    assert_eq!(probes.len(), 3, "{report:?}");
    assert!(probes.iter().all(|check| check.message.ends_with("on this node alone")), "{probes:?}");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_gone_turns_peers_and_quorum_until_it_is_back() {
    let mut cluster = probing(3).await;
    only(&cluster, &[]).await;
    cluster.stop(2).await;
    only(&cluster, &["0 peers", "0 quorum", "1 peers", "1 quorum"]).await;
    let report = cluster.node(0).node.health().report().await;
    let peers = report.checks.iter().find(|check| check.name == "peers").unwrap();
    assert!(peers.message.contains("away: node 3 (last seen"), "{peers:?}");
    assert!(peers.next_step.contains("debros cluster leave 3"), "{peers:?}");
    cluster.start_told(2).await;
    only(&cluster, &[]).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_off_turns_its_own_node_until_it_is_set() {
    let ahead_ms = Arc::new(AtomicU64::new(0));
    let mut cluster = Cluster::probing().await;
    cluster.add().await;
    cluster.add().await;
    let read = ahead_ms.clone();
    let skewed = Clock::from_fn(move || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now + Duration::from_millis(read.load(Ordering::Relaxed))
    });
    cluster.add_under(skewed).await;
    cluster.formed().await;
    only(&cluster, &[]).await;
    ahead_ms.store(5_000, Ordering::Relaxed);
    only(&cluster, &["2 clock", "2 probe storage"]).await;
    let report = cluster.node(2).node.health().report().await;
    assert_eq!(report.status, "unhealthy");
    let clock = report.checks.iter().find(|check| check.name == "clock").unwrap();
    assert!(clock.message.contains("ms ahead of the median"), "{clock:?}");
    ahead_ms.store(0, Ordering::Relaxed);
    only(&cluster, &[]).await;
    cluster.shutdown().await;
}

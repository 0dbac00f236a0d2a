//! What health says while nodes go and come, and the admin listener.

use std::time::Duration;

use debros_sdk::{Consistency, Database, Health, HealthStatus, NetworkInfo, ReadOptions, params};

use crate::support::{Cluster, eventually, expect, get, table, write};

async fn becomes(client: &debros_sdk::Client, wanted: Health) -> HealthStatus {
    eventually("health is what it should be", async || {
        let health = client.network().health().await.map_err(|error| error.to_string())?;
        expect(health.status, &wanted).map_err(|reason| format!("{reason}: {:?}", health.checks))?;
        Ok::<_, String>(health)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_healthy_degraded_or_unhealthy() {
    let mut cluster = Cluster::of(3).await;
    let client = cluster.client(0, "app").await;
    table(&client).await;
    let healthy = becomes(&client, Health::Healthy).await;
    assert!(healthy.checks["database"].message.contains("linearizable"), "{:?}", healthy.checks);
    assert_eq!(
        healthy.checks.keys().filter(|name| name.starts_with("node ") && !name.contains(':')).count(),
        3
    );

    cluster.stop(2).await;
    becomes(&client, Health::Degraded).await;
    write(&client, 1).await;
    let admin = cluster.node(0).admin;
    eventually("the admin listener says so too", async || {
        let answer = get(admin, "/healthz").await;
        let said = (answer.status, answer.body.contains("\"degraded\""));
        expect(said, &(200, true)).map_err(|reason| format!("{reason}: {}", answer.body))
    })
    .await;

    cluster.stop(1).await;
    let unhealthy = becomes(&client, Health::Unhealthy).await;
    assert_eq!(unhealthy.checks["database"].status, Health::Unhealthy);
    eventually("one of three is not ready, but lives", async || {
        let (healthy, ready) = (get(admin, "/healthz").await, get(admin, "/readyz").await);
        expect((healthy.status, ready.status), &(503, 503))
            .map_err(|reason| format!("{reason}: {}", ready.body))
    })
    .await;
    assert_eq!(get(admin, "/livez").await.status, 200);
    // Leader or not: nobody confirms that what this node holds is the latest.
    let read = async |options| {
        client.database().query_with("SELECT count(*) FROM written", params![], options).await
    };
    assert_eq!(
        read(ReadOptions::consistency(Consistency::None)).await.unwrap().first_as::<i64>().unwrap(),
        Some(1)
    );
    let refused = read(ReadOptions::stale(Duration::from_millis(500))).await.unwrap_err();
    assert!(refused.to_string().contains("has not heard from a leader within 500ms"), "{refused}");

    cluster.start_told(1).await;
    cluster.start_told(2).await;
    becomes(&client, Health::Healthy).await;
    write(&client, 2).await;
    client.close().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_listener_answers_probes_and_metrics() {
    let cluster = Cluster::of(1).await;
    let client = cluster.client(0, "app").await;
    table(&client).await;
    write(&client, 1).await;
    let admin = cluster.node(0).admin;
    for (path, word) in [
        ("/livez", "alive"),
        ("/readyz", "\"ready\":true"),
        ("/healthz", "\"checks\""),
        ("/status", "\"cluster_id\""),
    ] {
        let answer = get(admin, path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        assert!(answer.body.contains(word), "{path}: {}", answer.body);
    }
    let nowhere = get(admin, "/nowhere").await;
    assert_eq!(nowhere.status, 404);
    assert!(nowhere.body.contains("use /livez, /readyz, /healthz, /metrics or /status"), "{}", nowhere.body);
    let metrics = get(admin, "/metrics").await.body;
    for name in [
        "debros_rpc_requests_total{service=\"database\",method=\"Execute\",origin=\"client\",code=\"OK\"}",
        "debros_rpc_duration_seconds_bucket{",
        "debros_raft_log_flush_duration_seconds_count",
        "debros_raft_groups_led 2",
        "debros_raft_groups_leaderless 0",
    ] {
        assert!(metrics.contains(name), "{name} is missing in:\n{metrics}");
    }
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    assert_eq!(get(cluster.node(0).http, "/readyz").await.status, 200);
    client.close().await;
    cluster.shutdown().await;
}

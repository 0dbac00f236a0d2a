//! What a node tells of itself: complete from the start, documented, and small however much the node has.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use debros_node::launch::Launched;
use debros_node::metrics::{Exposition, Format, Kind, Metric, list, process, reference};
use debros_sdk::{Client, CreateOptions, Database, PubSub, Storage, params};
use futures::{StreamExt, stream};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::support::{Cluster, eventually, table, write};

/// The page is generated; this variable has the test write it.
const WRITE: &str = "DEBROS_WRITE_DOCS";
/// How many databases a node is given; `cargo xtask metrics scrape` gives it 500, which takes longer.
const DATABASES: &str = "DEBROS_SCRAPE_DATABASES";
/// What a scrape may take, whatever a node has.
const SCRAPE_BYTES_MAX: usize = 200 << 10;

fn exposition(node: &Launched) -> Exposition {
    Exposition::new([node.node.registry().clone(), std::sync::Arc::new(process(&Handle::current()))])
}

fn text(node: &Launched) -> String {
    String::from_utf8(exposition(node).write(Format::Text)).expect("text")
}

/// The value of a series, by its name and labels as they are written.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// Waits until a series has such a value.
async fn becomes(node: &Launched, series: &str, wanted: impl Fn(f64) -> bool) {
    eventually("the metric follows", async || match value(&text(node), series) {
        Some(value) if wanted(value) => Ok(()),
        found => Err(format!("{series}: {found:?}")),
    })
    .await;
}

const HEAD: &str = "\
# Metrics

<!-- Written by `cargo xtask metrics page` from what a node and a client register; edit the descriptions there. -->

Every node serves these on `/metrics` of its admin port: as OpenMetrics text, or as the protobuf of Prometheus where a
scraper prefers that. Histograms are classic and native; only the protobuf carries native ones. A counter is named
here as it is queried, with `_total`. Labels are bounded: a database, a key, a topic or a peer is never one. What is
known in advance begins at zero, so that an idle node has every series that a panel asks for.

";

const SDK_HEAD: &str = "
## Of an application

`Client::register_metrics` adds these to the application's own `prometheus-client` registry.

";

fn page(node: &[Metric], client: &[Metric]) -> String {
    let mut page = HEAD.to_owned();
    // Writing into a string cannot fail.
    let _ = write!(page, "{}{SDK_HEAD}{}", reference(node), reference(client));
    page
}

async fn all_metrics(node: &Launched) -> Vec<Metric> {
    let mut metrics = list(node.node.registry()).expect("metrics");
    metrics.extend(list(&process(&Handle::current())).expect("metrics"));
    metrics.sort_by(|one, other| one.name.cmp(&other.name));
    metrics
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_node_tells_everything_and_the_page_describes_it() {
    let cluster = Cluster::of(1).await;
    becomes(cluster.node(0), "debros_raft_groups_led", |led| led >= 1.0).await;
    let client = cluster.client(0, "app").await;
    let metrics = all_metrics(cluster.node(0)).await;
    let mut registry = prometheus_client::registry::Registry::default();
    client.register_metrics(&mut registry);
    let of_client = list(&registry).expect("metrics");
    for Metric { name, kind, help, labels } in metrics.iter().chain(&of_client) {
        assert!(help.len() > 10 && !help.contains('|'), "{name}: {help:?}");
        assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
        let first = name.split('_').next().unwrap_or_default();
        assert!(["debros", "process"].contains(&first), "{name}");
        for word in ["_ms", "_millis", "_kib", "_minutes", "_count"] {
            assert!(!name.ends_with(word), "{name} is not in base units");
        }
        assert!(labels.values().all(|values| !values.is_empty()), "{name}: {labels:?}");
    }
    let names: BTreeSet<&str> = metrics.iter().map(|metric| &metric.name[..]).collect();
    assert_eq!(names.len(), metrics.len(), "a name is registered twice");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let page = page(&metrics, &of_client);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&file, &page).expect("the page is written");
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        committed == page,
        "docs/metrics.md is not what is registered: run `cargo xtask metrics page`\n{page}"
    );
    client.close().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_users_do_shows_and_is_told_from_what_nodes_forward() {
    let cluster = Cluster::of(3).await;
    let clients = [cluster.client(0, "app").await, cluster.client(1, "app").await];
    table(&clients[0]).await;
    let leader = cluster.leader(&clients[0]).await;
    let request = |origin, method, code| {
        let service = if method == "Execute" { "database" } else { "pubsub" };
        format!(
            "debros_rpc_requests_total{{service=\"{service}\",method=\"{method}\",origin=\"{origin}\",code=\"{code}\"}}"
        )
    };
    let before = value(&text(cluster.node(leader)), &request("node", "Execute", "OK")).expect("a series");
    for number in 0..5 {
        write(&clients[0], number).await;
    }
    let led = text(cluster.node(leader));
    for series in [
        "debros_raft_commit_duration_seconds_count",
        "debros_raft_log_flush_duration_seconds_count",
        "debros_sqlite_apply_duration_seconds_count",
        "debros_raft_log_written_bytes_total",
    ] {
        assert!(value(&led, series).expect("a series") >= 5.0, "{series}");
    }
    let ok: f64 =
        cluster.running().filter_map(|node| value(&text(node), &request("client", "Execute", "OK"))).sum();
    assert!(ok >= 6.0, "{ok} users' writes");
    assert!(value(&led, &request("node", "Execute", "OK")).expect("a series") >= before);
    let statement = clients[0].database().execute("NOT SQL", params![]).await;
    assert!(statement.is_err());
    assert_eq!(value(&led, "debros_raft_quorum_slack_min"), Some(1.0));
    assert_eq!(value(&led, "debros_raft_groups_without_slack"), Some(0.0));
    let topics = clients[1].pubsub();
    let mut heard = topics.subscribe("news").await.expect("a subscription");
    clients[0].pubsub().publish("news", b"here").await.expect("a message");
    heard.next().await.expect("it goes on").expect("the message");
    becomes(cluster.node(1), "debros_pubsub_subscriptions", |count| count == 1.0).await;
    becomes(cluster.node(0), &request("client", "PubSubPublish", "OK"), |count| count >= 1.0).await;
    becomes(cluster.node(1), &request("client", "PubSubSubscribe", "OK"), |count| count >= 1.0).await;
    for client in clients {
        client.close().await;
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_a_member_and_remembering_a_deletion_show() {
    let mut cluster = Cluster::adjusted(3, |settings| {
        settings.kv.repair_interval = std::time::Duration::from_millis(200);
    })
    .await;
    let client = cluster.client(0, "app").await;
    eventually("the storage is laid out", async || {
        client.storage().put("key", b"value".as_slice().into()).await
    })
    .await;
    client.storage().delete("key").await.expect("a delete");
    becomes(cluster.node(0), "debros_storage_tombstones", |count| count == 1.0).await;
    becomes(cluster.node(0), "debros_storage_repair_rounds_total", |count| count >= 1.0).await;
    table(&client).await;
    cluster.stop(2).await;
    for index in [0, 1] {
        becomes(cluster.node(index), "debros_cluster_members_unreachable", |count| count == 1.0).await;
    }
    eventually("whoever leads has no slack left", async || {
        let without: f64 =
            cluster.running().filter_map(|node| value(&text(node), "debros_raft_groups_without_slack")).sum();
        if without >= 2.0 { Ok(()) } else { Err(without) }
    })
    .await;
    client.close().await;
    cluster.shutdown().await;
}

/// Gives a node databases and subscriptions; the client holds on to the latter.
async fn filled(client: &Client, databases: usize, subscriptions: usize) -> Vec<debros_sdk::Subscription> {
    stream::iter(0..databases)
        .for_each_concurrent(8, |number| async move {
            let name = format!("database-{number}");
            client.create_database(&name, CreateOptions::default()).await.expect("a database");
            let database = client.database_named(&name).expect("a name");
            database.execute("CREATE TABLE t (n INTEGER)", params![]).await.expect("a table");
        })
        .await;
    let pubsub = client.pubsub();
    stream::iter(0..subscriptions)
        .map(|number| {
            let pubsub = pubsub.clone();
            async move {
                let topic = format!("topic/{number}");
                pubsub.subscribe(&topic).await.expect("a subscription")
            }
        })
        .buffer_unordered(256)
        .collect()
        .await
}

async fn scrape_stays_small(databases: usize, subscriptions: usize) {
    let cluster = Cluster::of(1).await;
    let client = cluster.client(0, "app").await;
    let began = Instant::now();
    let held = filled(&client, databases, subscriptions).await;
    let node = cluster.node(0);
    becomes(node, "debros_pubsub_subscriptions", |count| count == subscriptions as f64).await;
    becomes(node, "debros_sqlite_databases", |count| count == databases as f64).await;
    println!("{databases} databases and {subscriptions} subscriptions took {:?}", began.elapsed());
    let exposition = exposition(node);
    for format in [Format::Text, Format::Protobuf] {
        let began = Instant::now();
        let bytes = exposition.write(format).len();
        println!("a scrape as {format:?}: {bytes} bytes in {:?}", began.elapsed());
        assert!(bytes < SCRAPE_BYTES_MAX, "{bytes} bytes as {format:?}");
    }
    drop(held);
    client.close().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_is_small_whatever_a_node_has() {
    let databases = std::env::var(DATABASES).ok().map(|count| count.parse().expect("a number of databases"));
    scrape_stays_small(databases.unwrap_or(20), 10_000).await;
}

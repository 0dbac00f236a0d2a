//! Traces of a cluster as a collector receives them: connected over processes and nodes, and kept when something was
//! slow or failed.

use std::collections::BTreeSet;
use std::time::Duration;

use debros_sdk::{Database, PubSub, PubSubExt, PutOptions, Storage, params};
use tracing::instrument::WithSubscriber;

use crate::collector::{Application, Collector, Span};
use crate::support::{Cluster, eventually, table};

/// Nothing of a test takes so long.
const NEVER_SLOW: Duration = Duration::from_secs(600);
const NODE: &str = "debros-node";

/// The only span of this name under `parent`, and where it was made.
fn under<'t>(trace: &'t [Span], parent: &Span, name: &str) -> Result<&'t Span, String> {
    all_under(trace, parent, name).next().ok_or_else(|| {
        let known: Vec<_> = trace.iter().map(|span| (&span.name, &span.service)).collect();
        format!("no {name} under {}: {known:?}", parent.name)
    })
}

fn all_under<'t>(trace: &'t [Span], parent: &Span, name: &str) -> impl Iterator<Item = &'t Span> {
    trace.iter().filter(move |span| span.parent == parent.id && span.name == name)
}

/// Every span but the first has its parent in the trace.
fn is_connected(trace: &[Span]) -> Result<(), String> {
    let ids: BTreeSet<_> = trace.iter().map(|span| &span.id).collect();
    let lost: Vec<_> =
        trace.iter().filter(|span| !span.parent.is_empty() && !ids.contains(&span.parent)).collect();
    let roots = trace.iter().filter(|span| span.parent.is_empty()).count();
    if lost.is_empty() && roots == 1 {
        Ok(())
    } else {
        Err(format!("{roots} roots, without parents: {lost:?}"))
    }
}

/// client -> node -> leader -> log of the leader and of a replica -> fsync.
fn is_write_through_a_follower(trace: &[Span]) -> Result<(), String> {
    let root = trace.iter().find(|span| span.name == "Execute" && span.parent.is_empty());
    let root = root.filter(|span| span.service == "application").ok_or("no call of an application")?;
    let follower = under(trace, root, "Execute")?;
    let forward = under(trace, follower, "forward")?;
    let leader = under(trace, forward, "Execute")?;
    let propose = under(trace, leader, "raft propose")?;
    let own = under(trace, propose, "raft append")?;
    under(trace, own, "fsync")?;
    if follower.instance == leader.instance || own.instance != leader.instance {
        return Err(format!("forwarded from {} to {}", follower.instance, leader.instance));
    }
    let replicas: Vec<_> = all_under(trace, propose, "raft append (replica)").collect();
    let replicated: BTreeSet<_> = replicas.iter().map(|span| &span.instance).collect();
    if replicated.len() != 2 || replicated.contains(&leader.instance) {
        return Err(format!("appended at {replicated:?}"));
    }
    for replica in replicas {
        let fsync = under(trace, replica, "fsync")?;
        if fsync.instance != replica.instance || fsync.began < replica.began || fsync.ended > replica.ended {
            return Err(format!("not a flush of the append: {fsync:?} in {replica:?}"));
        }
    }
    let told = |name: &str| leader.attributes.get(name).map(String::as_str);
    let namespace = follower.attributes.get("db.namespace").map(String::as_str).unwrap_or_default();
    let expected =
        [("db.system.name", "sqlite"), ("db.operation.name", "Execute"), ("db.namespace", namespace)];
    match expected.iter().find(|(name, value)| told(name) != Some(value)) {
        Some((name, _)) => Err(format!("{name} is {:?}", told(name))),
        None => is_connected(trace),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_a_follower_is_one_trace_down_to_the_flush_on_every_replica() {
    let collector = Collector::start().await;
    let cluster = Cluster::traced(3, collector.tracing(NEVER_SLOW)).await;
    let application = Application::new(&collector);
    let mut attempts = 0;
    eventually("a trace of a write through a follower", async || {
        // A client that was there before the database knows no leader of it: it asks the node it is connected to. It may
        // hear of the leader while it opens its session, and go straight there: then another one has to try.
        attempts += 1;
        let namespace = format!("app-{attempts}");
        let mut clients = Vec::new();
        for index in 0..3 {
            clients.push(cluster.client(index, &namespace).await);
        }
        table(&clients[0]).await;
        let follower = (cluster.leader(&clients[0]).await + 1) % 3;
        let insert = "INSERT INTO written (n) VALUES (1)";
        let write = async { clients[follower].database().execute(insert, params![]).await };
        write.with_subscriber(application.dispatch.clone()).await.expect("the write is acknowledged");
        futures::future::join_all(clients.iter().map(debros_sdk::Client::close)).await;
        application.export().await;
        let traces = collector.traces();
        let found: Vec<_> = traces.iter().map(|trace| is_write_through_a_follower(trace)).collect();
        if found.iter().any(Result::is_ok) { Ok(()) } else { Err(found) }
    })
    .await;
    // What nobody traces is sampled by none of these nodes, and nothing was slow.
    let spans = collector.spans();
    let slow =
        spans.iter().find(|span| span.attributes.get("debros.kept").is_some_and(|kept| kept == "slow"));
    assert!(slow.is_none(), "{slow:?}");
    cluster.shutdown().await;
}

/// publish -> the publisher's node -> a delivery at each subscriber's node, linked to the message, and a handler of
/// each, in a trace of its own that is linked to it, too.
fn is_delivered_twice(spans: &[Span]) -> Result<(), String> {
    let publish = spans.iter().find(|span| span.name == "publish").ok_or("no publish")?;
    let trace: Vec<_> = spans.iter().filter(|span| span.trace == publish.trace).cloned().collect();
    let route = under(&trace, publish, "pubsub route")?;
    let deliveries: Vec<_> = all_under(&trace, publish, "pubsub deliver").collect();
    let places: BTreeSet<_> = deliveries.iter().map(|span| &span.instance).collect();
    if places.len() != 2 || places.contains(&route.instance) {
        return Err(format!("routed at {}, delivered at {places:?}", route.instance));
    }
    if deliveries.iter().any(|span| span.service != NODE || span.links != [publish.id.clone()]) {
        return Err(format!("without their links: {deliveries:?}"));
    }
    let handled = spans.iter().filter(|span| span.name == "process" && span.links == [publish.id.clone()]);
    match handled.filter(|span| span.parent.is_empty() && span.trace != publish.trace).count() {
        2 => is_connected(&trace),
        count => Err(format!("handled {count} times")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_to_two_subscribers_on_two_nodes_is_one_trace_with_links() {
    let collector = Collector::start().await;
    let cluster = Cluster::traced(3, collector.tracing(NEVER_SLOW)).await;
    let application = Application::new(&collector);
    let publishing = async {
        let publisher = cluster.client(0, "app").await;
        let subscribers = [cluster.client(1, "app").await, cluster.client(2, "app").await];
        let mut subscriptions = Vec::new();
        for subscriber in &subscribers {
            let handler = async |_| Ok::<_, std::convert::Infallible>(());
            let handled = subscriber.pubsub().subscribe_handler("news.*", handler).await;
            subscriptions.push(handled.expect("a subscription"));
        }
        publisher.pubsub().publish_acked("news.x", b"hello").await.expect("it is received");
        eventually("both have handled it", async || {
            let handled: Vec<u64> = subscriptions.iter().map(|subscription| subscription.handled()).collect();
            if handled == [1, 1] { Ok(()) } else { Err(handled) }
        })
        .await;
    };
    publishing.with_subscriber(application.dispatch.clone()).await;
    eventually("the trace of the message", async || {
        application.export().await;
        is_delivered_twice(&collector.spans())
    })
    .await;
    cluster.shutdown().await;
}

/// client -> coordinator -> its own replica and two others.
fn is_put(trace: &[Span]) -> Result<(), String> {
    let root = trace.iter().find(|span| span.name == "Storage").ok_or("no call")?;
    let coordinator = under(trace, root, "StoragePut")?;
    under(trace, coordinator, "own replica")?;
    let asked: Vec<_> = all_under(trace, coordinator, "ask replica").collect();
    for ask in &asked {
        let replica = under(trace, ask, "replica")?;
        if replica.instance == coordinator.instance {
            return Err(format!("asked itself: {replica:?}"));
        }
    }
    if asked.len() == 2 { is_connected(trace) } else { Err(format!("{} were asked", asked.len())) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_is_one_trace_to_its_replicas() {
    let collector = Collector::start().await;
    let cluster = Cluster::traced(3, collector.tracing(NEVER_SLOW)).await;
    let application = Application::new(&collector);
    let client = cluster.client(0, "app").await;
    eventually("a trace of a put at three replicas", async || {
        // The storage takes in new nodes after a while.
        let put = async { client.storage().put_with("key", "value".into(), PutOptions::default()).await };
        put.with_subscriber(application.dispatch.clone()).await.expect("it is stored");
        application.export().await;
        let traces = collector.traces();
        let found: Vec<_> = traces.iter().map(|trace| is_put(trace)).collect();
        if found.iter().any(Result::is_ok) { Ok(()) } else { Err(found) }
    })
    .await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_slow_or_fails_is_kept_though_nobody_sampled_it() {
    let collector = Collector::start().await;
    // No write of a debug build is faster.
    let cluster = Cluster::traced(3, collector.tracing(Duration::from_millis(1))).await;
    let client = cluster.client_of_all("app").await;
    table(&client).await;
    let absent = client.database_named("absent").expect("a name");
    absent.execute("SELECT 1", params![]).await.expect_err("there is none");
    eventually("both are received", async || {
        let spans = collector.spans();
        let kept =
            |span: &&Span, why: &str| span.attributes.get("debros.kept").is_some_and(|kept| kept == why);
        // The write was slow at its leader, and is there with what that process did for it.
        let mut slow = spans.iter().filter(|span| kept(span, "slow"));
        let proposed = slow.any(|root| all_under(&spans, root, "raft propose").next().is_some());
        let mut failed = spans.iter().filter(|span| kept(span, "failed"));
        let not_found =
            failed.any(|span| span.attributes.get("error.type").is_some_and(|code| code == "NOT_FOUND"));
        if proposed && not_found { Ok(()) } else { Err(format!("{proposed} {not_found}: {spans:?}")) }
    })
    .await;
    cluster.shutdown().await;
}

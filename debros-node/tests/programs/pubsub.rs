//! Pub/sub through the SDK while node processes are killed: nothing is flushed, nobody says goodbye. What was
//! published comes once and in order, through whichever node.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use debros_sdk::{Client, Presence, PubSub, RemotePubSub, Subscription, SubscriptionEvent};
use futures::StreamExt;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::process::Node;
use crate::{DEADLINE, MACHINE, eventually};

const NODES: usize = 3;
/// Where clients say at which node they are.
const SEATS: &str = "seats";
/// What ends a subscriber that knows of no last number.
const END: &str = "end";

/// Three processes that know each other.
struct Cluster {
    nodes: Vec<Option<Node>>,
    addresses: Vec<String>,
    _folder: TempDir,
}

impl Cluster {
    async fn formed() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (mut nodes, mut addresses) = (Vec::new(), Vec::<String>::new());
        for index in 0..NODES {
            let node = start(folder.path(), index, addresses.first());
            addresses.push(address_of(&node).await);
            nodes.push(Some(node));
        }
        let cluster = Self { nodes, addresses, _folder: folder };
        for index in 0..NODES {
            let client = cluster.client(index).await;
            eventually("every node is connected to all", async || {
                let members = client.cluster().members().await.map_err(|error| error.to_string())?.members;
                let connected = members.iter().filter(|member| member.connected).count();
                (connected + 1 >= NODES).then_some(()).ok_or_else(|| format!("{members:?}"))
            })
            .await;
            client.close().await;
        }
        cluster
    }

    /// A client that begins at this node.
    async fn client(&self, index: usize) -> Client {
        let builder = Client::builder("app").bootstrap_peers([&self.addresses[index]]);
        builder.connect().await.expect("the node lets the client in")
    }

    async fn kill(&mut self, index: usize) {
        self.nodes[index].take().expect("it runs").kill().await;
    }
}

fn start(folder: &Path, index: usize, member: Option<&String>) -> Node {
    let (name, data) = (format!("node-{index}"), format!("data-{index}"));
    let mut arguments = vec!["--data-dir", &data, "--listen", "/ip4/127.0.0.1/tcp/0"];
    arguments.extend(["--http-port", "0", "--admin-port", "0"]);
    match member {
        Some(member) => arguments.extend(["--bootstrap", member]),
        None => arguments.push("--begin"),
    }
    Node::start(folder, &name, &arguments)
}

async fn address_of(node: &Node) -> String {
    eventually("the node is a member", async || {
        node.said("member of the cluster").then_some(()).ok_or_else(|| node.log())
    })
    .await;
    let log = node.log();
    let (_, rest) = log.split_once("listening on ").expect("an address");
    rest.split_whitespace().next().expect("an address").to_owned()
}

/// The node that serves the client's session, by what everybody is told of who is there.
async fn seat(pubsub: &RemotePubSub, name: &str) -> Option<u64> {
    let present = pubsub.present(SEATS).await.ok()?;
    present.into_iter().find(|member| member.member == name).map(|member| member.node)
}

/// Takes a seat that nobody else has; gives it, and the node it is at.
async fn sit(pubsub: &RemotePubSub, name: &str) -> (Presence, u64) {
    let presence = pubsub.enter(SEATS, name, "".into()).await.expect("a seat");
    let mut found = None;
    eventually("the seat is known", async || {
        found = seat(pubsub, name).await;
        found.map(drop).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    (presence, found.expect("it was found"))
}

/// Waits until the client of a seat is at another node.
async fn moved(pubsub: &RemotePubSub, name: &str, from: u64) {
    eventually("the client is at another node", async || match seat(pubsub, name).await {
        Some(node) if node != from => Ok(()),
        found => Err(format!("{found:?}")),
    })
    .await;
}

async fn event(subscription: &mut Subscription) -> SubscriptionEvent {
    let event = timeout(DEADLINE, subscription.next()).await.expect("something in time");
    event.expect("the subscription goes on").expect("no error")
}

/// Expects exactly these numbers, in this order.
async fn hear(subscription: &mut Subscription, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        match event(subscription).await {
            SubscriptionEvent::Message(message) => {
                assert_eq!(message.payload(), number.to_string().as_bytes(), "one after the other");
            }
            other => panic!("{other:?} instead of {number}"),
        }
    }
}

/// Publishes number after number until told to stop; gives the last.
fn publish_on(pubsub: RemotePubSub) -> (oneshot::Sender<()>, JoinHandle<u64>) {
    let (stop, mut stopped) = oneshot::channel();
    let publishing = tokio::spawn(async move {
        let mut number = 0;
        while stopped.try_recv().is_err() {
            number += 1;
            pubsub.publish("news.x", number.to_string().as_bytes()).await.expect("its node lives");
        }
        number
    });
    (stop, publishing)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_whose_node_is_killed_goes_on_at_another_without_gap_or_repetition() {
    let _beside_others = MACHINE.read().await;
    let mut cluster = Cluster::formed().await;
    let clients = [cluster.client(0).await, cluster.client(1).await, cluster.client(2).await];
    let [publisher, staying, moving] = [0, 1, 2].map(|index: usize| clients[index].pubsub());
    let mut staying = staying.subscribe("news.*").await.unwrap();
    let mut goes_on = moving.subscribe("news.>").await.unwrap();
    let (_publisher, publishers) = sit(&publisher, "publisher").await;
    let (_moving, before) = sit(&moving, "moving").await;
    assert_ne!(publishers, before, "they are at nodes of their own");
    let (stop, publishing) = publish_on(publisher.clone());
    hear(&mut goes_on, 1..=200).await;
    cluster.kill(2).await;
    moved(&publisher, "moving", before).await;
    hear(&mut goes_on, 201..=1500).await;
    stop.send(()).unwrap();
    let last = publishing.await.unwrap();
    hear(&mut goes_on, 1501..=last).await;
    hear(&mut staying, 1..=last).await;
    for client in clients {
        client.close().await;
    }
}

/// What was acknowledged, of so many messages that were published at once, a few dozen at a time.
async fn publish_acked(pubsub: &RemotePubSub, messages: u64, half: oneshot::Sender<()>) -> Vec<u64> {
    let mut half = Some(half);
    let publish =
        async |number: u64| (number, pubsub.publish_acked("news", number.to_string().as_bytes()).await);
    let mut published = std::pin::pin!(futures::stream::iter(1..=messages).map(publish).buffered(32));
    let mut acknowledged = Vec::new();
    while let Some((number, result)) = published.next().await {
        match result {
            Ok(_) => acknowledged.push(number),
            Err(error) => assert!(error.maybe_applied(), "{number}: {error}"),
        }
        if number == messages / 2 {
            half.take().expect("once").send(()).expect("somebody waits");
        }
    }
    pubsub.publish_acked("news", END.as_bytes()).await.expect("acknowledged");
    acknowledged
}

/// All numbers up to the end, and whether a notice said that some may be missing.
async fn heard_to_the_end(mut subscription: Subscription) -> (Vec<u64>, bool) {
    let (mut heard, mut may_miss) = (Vec::new(), false);
    loop {
        match event(&mut subscription).await {
            SubscriptionEvent::Message(message) if message.payload() == END.as_bytes() => break,
            SubscriptionEvent::Message(message) => {
                heard.push(String::from_utf8_lossy(message.payload()).parse().expect("a number"));
            }
            SubscriptionEvent::Lagged { missed } => {
                assert_eq!(missed, None, "nothing is known to be missing");
                may_miss = true;
            }
            other => panic!("{other:?}"),
        }
    }
    (heard, may_miss)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_delivered_once_and_in_order_though_the_publishers_node_is_killed() {
    let _beside_others = MACHINE.read().await;
    const MESSAGES: u64 = 3000;
    let mut cluster = Cluster::formed().await;
    let clients = [cluster.client(0).await, cluster.client(1).await, cluster.client(2).await];
    let [one, publisher, other] = [0, 1, 2].map(|index: usize| clients[index].pubsub());
    let subscriptions = [one.subscribe("news").await.unwrap(), other.subscribe("*").await.unwrap()];
    let seats = [sit(&one, "one").await, sit(&publisher, "publisher").await, sit(&other, "other").await];
    let nodes: BTreeSet<u64> = seats.iter().map(|(_, node)| *node).collect();
    assert_eq!(nodes.len(), NODES, "everybody at a node of their own");
    let hearing = subscriptions.map(|subscription| tokio::spawn(heard_to_the_end(subscription)));
    let (half, reached) = oneshot::channel();
    let publishing = tokio::spawn(async move { publish_acked(&publisher, MESSAGES, half).await });
    reached.await.unwrap();
    cluster.kill(1).await;
    let acknowledged = timeout(DEADLINE, publishing).await.expect("acknowledged in time").unwrap();
    moved(&one, "publisher", seats[1].1).await;
    for hearing in hearing {
        let (heard, may_miss) = hearing.await.unwrap();
        assert!(heard.is_sorted_by(|one, other| one < other), "once and in order");
        let missing = acknowledged.iter().filter(|number| heard.binary_search(number).is_err());
        assert_eq!(missing.count(), 0, "all that was acknowledged; a notice was given: {may_miss}");
    }
    assert_eq!(acknowledged.len() as u64, MESSAGES, "the next node acknowledged all that this one had not");
    for client in clients {
        client.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_loses_its_node_with_the_publisher_has_all_or_is_told() {
    let _beside_others = MACHINE.read().await;
    const MESSAGES: u64 = 2000;
    let mut cluster = Cluster::formed().await;
    let clients = [cluster.client(1).await, cluster.client(1).await];
    let [publisher, subscriber] = [0, 1].map(|index: usize| clients[index].pubsub());
    let subscription = subscriber.subscribe("news").await.unwrap();
    let seats = [sit(&publisher, "publisher").await, sit(&subscriber, "subscriber").await];
    assert_eq!(seats[0].1, seats[1].1, "both at one node");
    let hearing = tokio::spawn(async move {
        let mut subscription = subscription;
        let (mut heard, mut told) = (Vec::new(), false);
        // The notice comes once the dead node is given up, behind all that came.
        while !told {
            let Ok(event) = timeout(Duration::from_secs(30), subscription.next()).await else { break };
            match event.expect("it goes on").expect("no error") {
                SubscriptionEvent::Message(message) if message.payload() == END.as_bytes() => {}
                SubscriptionEvent::Message(message) => {
                    heard.push(String::from_utf8_lossy(message.payload()).parse::<u64>().expect("a number"));
                }
                _ => told = true,
            }
        }
        (heard, told)
    });
    let (half, reached) = oneshot::channel();
    let publishing = tokio::spawn(async move { publish_acked(&publisher, MESSAGES, half).await });
    reached.await.unwrap();
    cluster.kill(1).await;
    let acknowledged = timeout(DEADLINE, publishing).await.expect("acknowledged in time").unwrap();
    let (heard, told) = hearing.await.unwrap();
    assert!(heard.is_sorted_by(|one, other| one < other), "once and in order");
    let missing = acknowledged.iter().filter(|number| heard.binary_search(number).is_err());
    assert!(told || missing.count() == 0, "silently lost");
    for client in clients {
        client.close().await;
    }
}

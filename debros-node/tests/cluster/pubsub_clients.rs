//! Pub/sub through the SDK: what a client of one node promises, and that it goes on when its node does not.

use std::sync::Arc;
use std::time::Duration;

use debros_sdk::{
    Error, ErrorKind, MessageBatch, PresenceEvent, PubSub, Subscription, SubscriptionEvent, conformance,
};
use futures::StreamExt;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::support::{Cluster, DEADLINE, eventually};

/// What comes next; `None` for a notice that messages were missed.
async fn heard(subscription: &mut Subscription) -> Option<u64> {
    let event = timeout(DEADLINE, subscription.next()).await.expect("a message in time");
    match event.expect("the subscription goes on").expect("no error") {
        SubscriptionEvent::Message(message) => {
            Some(String::from_utf8_lossy(message.payload()).parse().expect("a number"))
        }
        SubscriptionEvent::Lagged { .. } => None,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_every_node_conform() {
    let cluster = Cluster::of(3).await;
    for index in 0..3 {
        let client = cluster.client(index, &format!("conformance-{index}")).await;
        conformance::pubsub(Arc::new(client.pubsub())).await;
        client.close().await;
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_whose_node_stops_goes_on_elsewhere_without_gap_or_repetition() {
    let mut cluster = Cluster::of(3).await;
    let publisher = cluster.client(0, "app").await;
    let (staying, moving) = (cluster.client(1, "app").await, cluster.client(2, "app").await);
    let mut staying = staying.pubsub().subscribe("news.*").await.unwrap();
    let before = moving.connected_node().unwrap();
    let mut moved = moving.pubsub().subscribe("news.>").await.unwrap();
    let (stop, mut stopped) = oneshot::channel::<()>();
    let publishing = tokio::spawn(async move {
        let mut number = 0;
        while stopped.try_recv().is_err() {
            number += 1;
            publisher.pubsub().publish("news.x", number.to_string().as_bytes()).await.unwrap();
        }
        number
    });
    let mut expected = 1..;
    let mut go_on = async |moved: &mut Subscription, messages: usize| {
        for number in expected.by_ref().take(messages) {
            assert_eq!(heard(moved).await, Some(number));
        }
    };
    go_on(&mut moved, 200).await;
    cluster.stop(2).await;
    go_on(&mut moved, 1000).await;
    eventually("the client is elsewhere", async || match moving.connected_node() {
        Some(node) if node != before => Ok(()),
        node => Err(node),
    })
    .await;
    go_on(&mut moved, 200).await;
    stop.send(()).unwrap();
    let last = publishing.await.unwrap();
    for number in 1..=last {
        assert_eq!(heard(&mut staying).await, Some(number));
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_delivered_once_and_in_order_though_the_publishers_node_stops() {
    const MESSAGES: u64 = 2000;
    let mut cluster = Cluster::of(3).await;
    let publisher = cluster.client(1, "app").await.pubsub();
    let subscriber = cluster.client(0, "app").await.pubsub();
    let mut subscription = subscriber.subscribe("news").await.unwrap();
    let (half, reached) = oneshot::channel();
    let mut half = Some(half);
    let publishing = tokio::spawn(async move {
        let publish = |number: u64| {
            let publisher = &publisher;
            async move { (number, publisher.publish_acked("news", number.to_string().as_bytes()).await) }
        };
        let mut published = futures::stream::iter(1..=MESSAGES).map(publish).buffered(32);
        let mut acknowledged = Vec::new();
        while let Some((number, result)) = published.next().await {
            match result {
                Ok(nodes) => {
                    assert!(nodes.is_none_or(|nodes| nodes == 1), "{number} went to {nodes:?}");
                    acknowledged.push(number);
                }
                Err(error) => assert!(error.maybe_applied(), "{number}: {error}"),
            }
            if number == MESSAGES / 2 {
                half.take().unwrap().send(()).unwrap();
            }
        }
        drop(published);
        publisher.publish_acked("news", b"0").await.unwrap();
        acknowledged
    });
    reached.await.unwrap();
    cluster.stop(1).await;
    let mut delivered = Vec::new();
    loop {
        match heard(&mut subscription).await {
            Some(0) => break,
            Some(number) => delivered.push(number),
            None => panic!("messages were missed after {:?}", delivered.last()),
        }
    }
    let acknowledged = publishing.await.unwrap();
    assert!(delivered.is_sorted_by(|one, other| one < other), "once and in order");
    assert!(
        acknowledged.iter().all(|number| delivered.binary_search(number).is_ok()),
        "all that was acknowledged"
    );
    assert!(acknowledged.len() as u64 >= MESSAGES * 9 / 10, "{} of {MESSAGES}", acknowledged.len());
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_here_stays_when_their_node_stops() {
    let mut cluster = Cluster::of(3).await;
    let (ann, bob) = (cluster.client(2, "app").await.pubsub(), cluster.client(0, "app").await.pubsub());
    let mut watch = bob.watch_presence("room").await.unwrap();
    let here = ann.enter("room", "ann", "x".into()).await.unwrap();
    let mut told = async || timeout(DEADLINE, watch.next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(told().await, PresenceEvent::Entered(member) if member.member == "ann"));
    cluster.stop(2).await;
    // She has left with her node, and is at another: in whichever order the news come.
    let (mut entered, mut left) = (false, false);
    while !(entered && left) {
        match told().await {
            PresenceEvent::Entered(member) => entered |= member.member == "ann",
            PresenceEvent::Left(member) => left |= member.member == "ann",
        }
    }
    let present = bob.present("room").await.unwrap();
    assert_eq!(present.iter().map(|member| member.member.as_str()).collect::<Vec<_>>(), ["ann"]);
    drop(here);
    assert!(matches!(told().await, PresenceEvent::Left(member) if member.member == "ann"));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_does_not_read_is_told_what_it_missed_and_harms_nobody() {
    let cluster = Cluster::of(2).await;
    let publisher = cluster.client(0, "app").await.pubsub();
    let subscriber = cluster.client(1, "app").await.pubsub();
    let mut slow = subscriber.subscribe("news").await.unwrap();
    let mut quick = subscriber.subscribe("news").await.unwrap();
    // More than a node and a client keep.
    const MESSAGES: u64 = 40 * 16;
    let payload = vec![b'0'; 64 << 10];
    for _ in 0..MESSAGES {
        publisher.publish_acked("news", &payload).await.unwrap();
        assert_eq!(heard(&mut quick).await, Some(0));
    }
    let (mut delivered, mut missed) = (0, 0);
    while delivered + missed < MESSAGES {
        match timeout(DEADLINE, slow.next()).await.unwrap().unwrap().unwrap() {
            SubscriptionEvent::Message(_) => delivered += 1,
            SubscriptionEvent::Lagged { missed: more } => missed += more.expect("a number"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(delivered + missed, MESSAGES);
    assert!(delivered > 0 && missed > 0, "{delivered} delivered, {missed} missed");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_nodes_says_what_became_of_what_it_published() {
    let mut cluster = Cluster::of(1).await;
    let builder = cluster.builder([0], "app").operation_timeout(Duration::from_secs(2));
    let client = builder.connect().await.unwrap();
    let pubsub = client.pubsub();
    let mut subscription = pubsub.subscribe("news").await.unwrap();
    pubsub.publish("news", b"1").await.unwrap();
    assert_eq!(heard(&mut subscription).await, Some(1));
    cluster.stop(0).await;
    let unknown = |error: Error| (error.kind(), error.maybe_applied());
    let error = pubsub.publish("news", b"2").await.unwrap_err();
    assert_eq!(unknown(error), (ErrorKind::UnknownOutcome, true));
    let mut batch = MessageBatch::new();
    batch.push("news", b"3").unwrap();
    assert_eq!(unknown(pubsub.publish_batch(batch).await.unwrap_err()), (ErrorKind::UnknownOutcome, true));
    let error = pubsub.subscribe("more").await.unwrap_err();
    assert_eq!((error.kind(), error.maybe_applied()), (ErrorKind::DeadlineExceeded, false), "{error}");
    client.close().await;
    assert_eq!(pubsub.publish("news", b"4").await.unwrap_err().kind(), ErrorKind::Closed);
    let end = timeout(DEADLINE, subscription.next()).await.unwrap().unwrap();
    assert_eq!(end.unwrap_err().kind(), ErrorKind::Closed);
    assert!(timeout(DEADLINE, subscription.next()).await.unwrap().is_none());
    cluster.shutdown().await;
}

//! Pub/sub while nodes stop, connections break and clients do not read: what is delivered, what is reported, and
//! that nothing comes twice or out of order.

use std::time::Duration;

use debros_node::service::Principal;
use debros_proto::{ErrorCode, v1};
use v1::PublishMode::{Accepted, Received};
use v1::session_call::Call;
use v1::session_event::Event;

use crate::messenger::{Heard, Messenger, PLENTY, pack};
use crate::support::Cluster;

fn numbers(heard: &[Heard]) -> Vec<u64> {
    let number = |heard: &Heard| match heard {
        Heard::Message(delivered) => delivered.number,
        lagged @ Heard::Lagged(..) => panic!("{lagged:?} instead of a message"),
    };
    heard.iter().map(number).collect()
}

/// Publishes one message after the other until told to stop; gives the publisher and how many there were.
fn publish_on(
    mut publisher: Messenger,
) -> (tokio::sync::oneshot::Sender<()>, tokio::task::JoinHandle<(Messenger, u64)>) {
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let publishing = tokio::spawn(async move {
        let mut last = 0;
        while stopped.try_recv().is_err() {
            last = publisher.publish(Accepted, &[("news", "x"), ("other", "y"), ("news", "z")]).await + 2;
            publisher.published(last).await.expect("the origin lives");
        }
        (publisher, last)
    });
    (stop, publishing)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_whose_node_stops_goes_on_at_another_without_gap_or_repetition() {
    let mut cluster = Cluster::of(3).await;
    let publisher = Messenger::at(&cluster, 0, "app").await;
    let mut moving = Messenger::at(&cluster, 1, "app").await;
    let mut staying = Messenger::at(&cluster, 2, "app").await;
    moving.subscribe(1, "news").await;
    staying.subscribe(1, "news").await;
    let (stop, publishing) = publish_on(publisher);
    let mut heard: Vec<Heard> = Vec::new();
    while heard.len() < 100 {
        heard.push(moving.hear().await);
    }
    let ((), ()) = tokio::join!(cluster.stop(1), moving.drain());
    heard.extend(moving.heard());
    moving.move_to(&cluster, 2).await;
    moving.resume(1, "news").await;
    let before = heard.len();
    while heard.len() < before + 100 {
        heard.push(moving.hear().await);
    }
    stop.send(()).expect("it publishes");
    let (_publisher, last) = publishing.await.expect("it published");
    let wanted: Vec<u64> = (1..=last).filter(|number| number % 3 != 2).collect();
    while heard.len() < wanted.len() {
        heard.push(moving.hear().await);
    }
    assert_eq!(numbers(&heard), wanted);
    let mut heard = Vec::new();
    while heard.len() < wanted.len() {
        heard.push(staying.hear().await);
    }
    assert_eq!(numbers(&heard), wanted);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_whose_node_stops_goes_on_at_another_and_nothing_comes_twice() {
    let mut cluster = Cluster::of(3).await;
    let mut publisher = Messenger::at(&cluster, 1, "app").await;
    let mut subscriber = Messenger::at(&cluster, 0, "app").await;
    subscriber.subscribe(1, "news").await;
    for number in 1..=50 {
        publisher.send(number, Received, false, pack(&[("news", &number.to_string())])).await;
    }
    // Some are acknowledged, and all of them may have been taken in.
    publisher.published(20).await.unwrap();
    let ((), ()) = tokio::join!(cluster.stop(1), publisher.drain());
    publisher.move_to(&cluster, 2).await;
    for number in 21..=50 {
        publisher.send(number, Received, true, pack(&[("news", &number.to_string())])).await;
    }
    publisher.send(51, Received, false, pack(&[("news", "51")])).await;
    assert_eq!(publisher.published(51).await.unwrap(), [1]);
    let mut heard = Vec::new();
    while heard.last() != Some(&51) {
        heard.push(subscriber.message().await.number);
    }
    assert_eq!(heard, (1..=51).collect::<Vec<u64>>());

    // The same numbers once more, to the node that knows them and through one that does not.
    publisher.send(40, Received, true, pack(&[("news", "again"); 12])).await;
    publisher.published(51).await.unwrap();
    publisher.move_to(&cluster, 0).await;
    publisher.send(40, Received, true, pack(&[("news", "again"); 12])).await;
    publisher.published(51).await.unwrap();
    publisher.send(52, Received, false, pack(&[("news", "52")])).await;
    assert_eq!(subscriber.message().await.number, 52);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_break_go_on_where_they_were() {
    let cluster = Cluster::of(2).await;
    let publisher = Messenger::at(&cluster, 0, "app").await;
    let mut subscriber = Messenger::at(&cluster, 1, "app").await;
    subscriber.subscribe(1, "news").await;
    let (stop, publishing) = publish_on(publisher);
    let mut heard = Vec::new();
    for cut in 1..=5 {
        while heard.len() < cut * 50 {
            heard.push(subscriber.hear().await);
        }
        let header = Some(v1::RequestHeader { namespace: "app".into(), ..Default::default() });
        let peer_id = cluster.node(1).node.peer_id().to_string();
        let request = v1::DisconnectPeerRequest { header, peer_id };
        let service = cluster.node(0).node.cluster_service();
        service.disconnect(&Principal::Http, &request).await.expect("it is connected");
    }
    stop.send(()).expect("it publishes");
    let (_publisher, last) = publishing.await.expect("it published");
    let wanted: Vec<u64> = (1..=last).filter(|number| number % 3 != 2).collect();
    while heard.len() < wanted.len() {
        heard.push(subscriber.hear().await);
    }
    assert_eq!(numbers(&heard), wanted);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_told_how_much_it_missed_and_others_are_not_held_up() {
    const MESSAGES: usize = 400;
    let cluster = Cluster::of(2).await;
    let mut publisher = Messenger::at(&cluster, 0, "app").await;
    let mut slow = Messenger::at(&cluster, 1, "app").await;
    let mut cut_off = Messenger::at(&cluster, 1, "app").await;
    let mut fast = Messenger::at(&cluster, 1, "app").await;
    let subscribe = |overflow: v1::Overflow| v1::Subscribe {
        subscription: 1,
        pattern: "news".into(),
        credit_bytes: 1,
        overflow: overflow.into(),
        ..Default::default()
    };
    slow.subscribe_as(subscribe(v1::Overflow::DropOldest)).await.unwrap();
    cut_off.subscribe_as(subscribe(v1::Overflow::Disconnect)).await.unwrap();
    fast.subscribe(1, "news").await;
    let payload = "x".repeat(64 << 10);
    let publishing = tokio::spawn(async move {
        for _ in 0..MESSAGES {
            let number = publisher.publish(Accepted, &[("news", &payload)]).await;
            publisher.published(number).await.unwrap();
        }
        publisher
    });
    for number in 1..=MESSAGES as u64 {
        assert_eq!(fast.message().await.number, number);
        fast.call(Call::Credit(v1::Credit { subscription: 1, bytes: 66 << 10 })).await;
    }
    publishing.await.unwrap();
    let failure = cut_off.event("the end", |event| match event {
        Event::Failure(failure) => Some(failure.clone()),
        _ => None,
    });
    let failure = failure.await;
    assert_eq!(failure.about, Some(v1::session_failure::About::Subscription(1)));
    let detail = failure.failure.unwrap().detail.unwrap();
    assert_eq!(detail.code(), ErrorCode::LimitExceeded);

    assert_eq!(slow.message().await.number, 1, "what the first credit allowed");
    slow.call(Call::Credit(v1::Credit { subscription: 1, bytes: PLENTY })).await;
    let Heard::Lagged(1, Some(missed)) = slow.hear().await else { panic!("messages were missed") };
    assert!(missed > 50, "{missed} missed");
    for number in missed + 2..=MESSAGES as u64 {
        assert_eq!(slow.message().await.number, number);
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_incarnation_of_an_origin_is_not_mistaken_for_the_old_one() {
    let mut cluster = Cluster::of(2).await;
    let mut subscriber = Messenger::at(&cluster, 0, "app").await;
    subscriber.subscribe(1, "news").await;
    let mut publisher = Messenger::at(&cluster, 1, "app").await;
    assert_eq!(publisher.publish_received("news", "before").await, 1);
    let before = publisher.attached;
    let ((), ()) = tokio::join!(cluster.stop(1), publisher.drain());
    cluster.start_told(1).await;
    cluster.formed().await;
    publisher.move_to(&cluster, 1).await;
    assert_eq!(publisher.attached.node_id, before.node_id);
    assert_ne!(publisher.attached.incarnation, before.incarnation);
    // It settles first, so it knows the subscription by then.
    let received = tokio::time::timeout(Duration::from_secs(30), publisher.publish_received("news", "after"));
    assert_eq!(received.await.unwrap(), 1);
    assert_eq!(subscriber.payloads(2).await, ["before", "after"]);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_subscriptions_that_nobody_reads_keep_no_more_than_their_session_may() {
    const SUBSCRIPTIONS: u64 = 20;
    const MESSAGES: usize = 150;
    let cluster = Cluster::of(1).await;
    let mut publisher = Messenger::at(&cluster, 0, "app").await;
    let mut flooding = Messenger::at(&cluster, 0, "app").await;
    let mut other = Messenger::at(&cluster, 0, "app").await;
    for subscription in 1..=SUBSCRIPTIONS {
        let (pattern, credit_bytes) = ("news".into(), 1);
        let subscribe = v1::Subscribe { subscription, pattern, credit_bytes, ..Default::default() };
        flooding.subscribe_as(subscribe).await.unwrap();
    }
    other.subscribe(1, "news").await;
    // Together more than a session may have waiting, each less than a subscription may.
    let payload = "x".repeat(64 << 10);
    for _ in 0..MESSAGES {
        let number = publisher.publish(Accepted, &[("news", &payload)]).await;
        publisher.published(number).await.unwrap();
    }
    for number in 1..=MESSAGES as u64 {
        assert_eq!(other.message().await.number, number);
    }
    let mut missed = 0;
    for subscription in 1..=SUBSCRIPTIONS {
        assert_eq!(flooding.message().await.number, 1);
        flooding.call(Call::Credit(v1::Credit { subscription, bytes: PLENTY })).await;
    }
    let mut heard = SUBSCRIPTIONS;
    while heard + missed < SUBSCRIPTIONS * MESSAGES as u64 {
        match flooding.hear().await {
            Heard::Lagged(_, some) => missed += some.expect("they were counted"),
            Heard::Message(_) => heard += 1,
        }
    }
    assert!(heard << 16 < 80 << 20, "{heard} messages were kept");
    assert_eq!(heard + missed, SUBSCRIPTIONS * MESSAGES as u64);
    cluster.shutdown().await;
}

/// A publisher at full speed, and a subscriber that takes everything but has other work, too: the publisher is held
/// back before anything has to be dropped.
#[tokio::test(flavor = "multi_thread")]
async fn at_full_speed_everything_arrives_in_order() {
    const BATCHES: u64 = 400;
    const BATCH: u64 = 256;
    let cluster = Cluster::of(2).await;
    let mut publisher = Messenger::at(&cluster, 0, "app").await;
    let mut subscriber = Messenger::at(&cluster, 1, "app").await;
    let subscribe = v1::Subscribe {
        subscription: 1,
        pattern: "news.*".into(),
        credit_bytes: 1 << 20,
        ..Default::default()
    };
    subscriber.subscribe_as(subscribe).await.unwrap();
    let window = publisher.attached.publish_window_bytes;
    let payload = "x".repeat(128);
    let batch = pack(&vec![("news.today", payload.as_str()); BATCH as usize]);
    let began = std::time::Instant::now();
    let publishing = tokio::spawn(async move {
        let (mut acknowledged, ahead) = (0, window / batch.len() as u64);
        for number in 0..BATCHES {
            if number >= acknowledged + ahead {
                let last = (number - ahead + 1) * BATCH;
                publisher.published(last).await.unwrap();
                acknowledged = number - ahead + 1;
            }
            publisher.send(number * BATCH + 1, Accepted, false, batch.clone()).await;
        }
        publisher.published(BATCHES * BATCH).await.unwrap();
        publisher
    });
    for number in 1..=BATCHES * BATCH {
        assert_eq!(subscriber.message().await.number, number);
        if number % (4 * BATCH) == 0 {
            subscriber.give_back(1).await;
        }
    }
    println!("{} messages in {:?}", BATCHES * BATCH, began.elapsed());
    publishing.await.unwrap();
    cluster.shutdown().await;
}

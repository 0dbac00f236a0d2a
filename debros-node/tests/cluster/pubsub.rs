//! Pub/sub between real nodes, spoken to over the wire: who gets what, in which order, and who does not.

use debros_proto::{ErrorCode, v1};
use v1::PublishMode::{Accepted, Received, Routed};
use v1::session_call::Call;
use v1::session_event::Event;

use crate::messenger::{Messenger, PLENTY, pack};
use crate::support::{Cluster, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn messages_reach_every_matching_subscription_on_every_node_in_order() {
    let cluster = Cluster::of(3).await;
    let mut publisher = Messenger::at(&cluster, 0, "app").await;
    let mut literal = Messenger::at(&cluster, 1, "app").await;
    let mut patterns = Messenger::at(&cluster, 2, "app").await;
    let mut here = Messenger::at(&cluster, 0, "app").await;
    let mut stranger = Messenger::at(&cluster, 1, "other").await;
    assert_eq!(literal.subscribe(1, "rooms.1").await.unaware, 0);
    patterns.subscribe(1, "rooms.*").await;
    patterns.subscribe(2, "rooms.>").await;
    here.subscribe(7, ">").await;
    stranger.subscribe(1, ">").await;

    let wanted: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    for part in wanted.chunks(50) {
        let batch: Vec<(&str, &str)> = part.iter().map(|payload| ("rooms.1", payload.as_str())).collect();
        publisher.publish(Accepted, &batch).await;
    }
    publisher.published(500).await.unwrap();
    assert_eq!(literal.payloads(500).await, wanted);
    assert_eq!(here.payloads(500).await, wanted);
    let mut both = (Vec::new(), Vec::new());
    for _ in 0..1000 {
        let message = patterns.message().await;
        let payload = String::from_utf8(message.payload.to_vec()).unwrap();
        if message.subscription == 1 { both.0.push(payload) } else { both.1.push(payload) }
    }
    assert_eq!((both.0, both.1), (wanted.clone(), wanted));

    // Topics of one batch go different ways.
    let batch = [("rooms.1", "a"), ("rooms.2.x", "b"), ("rooms.2", "c"), ("rooms.1", "d"), ("halls", "e")];
    publisher.publish(Accepted, &batch).await;
    assert_eq!(literal.payloads(2).await, ["a", "d"]);
    assert_eq!(here.payloads(5).await, ["a", "b", "c", "d", "e"]);
    let mut found = Vec::new();
    for _ in 0..7 {
        let message = patterns.message().await;
        found.push((message.subscription, String::from_utf8(message.payload.to_vec()).unwrap()));
    }
    found.sort();
    let of = |subscription: u64, payloads: &[&str]| {
        payloads.iter().map(move |payload| (subscription, (*payload).to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(found, [of(1, &["a", "c", "d"]), of(2, &["a", "b", "c", "d"])].concat());

    // Nothing crossed to the other namespace: what is published there comes first.
    let mut other = Messenger::at(&cluster, 2, "other").await;
    assert_eq!(other.publish_received("rooms.1", "theirs").await, 1);
    assert_eq!(stranger.payloads(1).await, ["theirs"]);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_acknowledged_with_how_many_nodes_have_each_message() {
    let cluster = Cluster::of(3).await;
    let mut publisher = Messenger::at(&cluster, 0, "app").await;
    let mut one = Messenger::at(&cluster, 1, "app").await;
    let mut two = Messenger::at(&cluster, 2, "app").await;
    one.subscribe(1, "all.*").await;
    two.subscribe(1, "all.*").await;
    two.subscribe(2, "two").await;
    publisher.subscribe(1, "all.mine").await;
    let batch = [("all.x", "1"), ("nobody", "2"), ("two", "3"), ("all.mine", "4")];
    let first = publisher.publish(Routed, &batch).await;
    assert_eq!(publisher.published(first + 3).await.unwrap(), [2, 0, 1, 3]);
    let first = publisher.publish(Received, &batch).await;
    assert_eq!(publisher.published(first + 3).await.unwrap(), [2, 0, 1, 3]);
    assert_eq!(one.payloads(4).await, ["1", "4", "1", "4"]);

    // A subscription that has ended gets nothing, and one whose client has gone goes with it.
    one.call(Call::Unsubscribe(v1::Unsubscribe { subscription: 1 })).await;
    one.event("unsubscribed", |event| matches!(event, Event::Unsubscribed(_)).then_some(())).await;
    drop(two);
    eventually("nobody is left", async || {
        let nodes = publisher.publish_received("all.x", "5").await;
        if nodes == 0 { Ok(()) } else { Err(nodes) }
    })
    .await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_takes_several_turns_is_acknowledged_as_one() {
    const SUBSCRIPTIONS: u64 = 1000;
    let cluster = Cluster::of(1).await;
    let mut publisher = Messenger::at(&cluster, 0, "app").await;
    let mut many = Messenger::at(&cluster, 0, "app").await;
    for subscription in 1..=SUBSCRIPTIONS {
        let subscribe = v1::Subscribe { subscription, pattern: "x.>".into(), ..Default::default() };
        many.call(Call::Subscribe(subscribe)).await;
    }
    many.subscribe(SUBSCRIPTIONS + 1, "x.odd").await;
    // Each message goes to others than the one before.
    let batch: Vec<(&str, &str)> =
        (0..400).map(|number| (if number % 2 == 0 { "x.even" } else { "x.odd" }, "-")).collect();
    for mode in [Routed, Received] {
        let first = publisher.publish(mode, &batch).await;
        assert_eq!(publisher.published(first + 399).await.unwrap(), vec![1; 400]);
    }
    let first = publisher.publish(Accepted, &batch).await;
    let acknowledged = publisher.event("an acknowledgement", |event| match event {
        Event::Published(published) => Some(published.last),
        _ => None,
    });
    assert_eq!(acknowledged.await, first + 399);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_group_gets_each_message_once_and_all_of_its_members_work() {
    let cluster = Cluster::of(3).await;
    let mut publisher = Messenger::at(&cluster, 0, "app").await;
    let mut members = Vec::new();
    for place in 0..3 {
        let mut member = Messenger::at(&cluster, place, "app").await;
        let subscribe = v1::Subscribe {
            subscription: 1,
            pattern: "jobs.*".into(),
            group: "workers".into(),
            credit_bytes: PLENTY,
            ..Default::default()
        };
        member.subscribe_as(subscribe).await.unwrap();
        members.push(member);
    }
    let payloads: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    let batch: Vec<(&str, &str)> = payloads.iter().map(|payload| ("jobs.x", payload.as_str())).collect();
    let first = publisher.publish(Received, &batch).await;
    assert_eq!(publisher.published(first + 299).await.unwrap(), vec![1; 300]);
    // A mark for everybody tells that nothing follows.
    for member in &mut members {
        member.subscribe(2, "end").await;
    }
    publisher.publish_received("end", "end").await;
    let mut found = Vec::new();
    for member in &mut members {
        let mut worked = 0;
        loop {
            let message = member.message().await;
            if message.subscription == 2 {
                break;
            }
            worked += 1;
            found.push(String::from_utf8(message.payload.to_vec()).unwrap());
        }
        assert!(worked > 30, "one member got {worked} of 300");
    }
    found.sort_by_key(|payload| payload.parse::<u32>().unwrap());
    assert_eq!(found, payloads);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_answered_through_its_reply_topic_or_told_that_nobody_is_there() {
    let cluster = Cluster::of(2).await;
    let mut asker = Messenger::at(&cluster, 0, "app").await;
    let mut answerer = Messenger::at(&cluster, 1, "app").await;
    let request = |payload: &str| {
        let mut packed = bytes::BytesMut::new();
        debros_proto::packed::put_message(&mut packed, b"ask", b"replies.1", b"", payload.as_bytes())
            .unwrap();
        packed.freeze()
    };
    asker.subscribe(1, "replies.*").await;
    asker.send(1, Routed, false, request("?")).await;
    assert_eq!(asker.published(1).await.unwrap(), [0]);
    answerer.subscribe(1, "ask").await;
    asker.send(2, Routed, false, request("?")).await;
    assert_eq!(asker.published(2).await.unwrap(), [1]);
    let asked = answerer.message().await;
    assert_eq!((asked.topic.as_str(), asked.reply.as_str()), ("ask", "replies.1"));
    answerer.publish(Accepted, &[(asked.reply.as_str(), "!")]).await;
    let answer = asker.message().await;
    assert_eq!((answer.topic.as_str(), &answer.payload[..]), ("replies.1", &b"!"[..]));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_knows_what_is_subscribed_to_and_who_is_here() {
    let cluster = Cluster::of(2).await;
    let mut one = Messenger::at(&cluster, 0, "app").await;
    let mut two = Messenger::at(&cluster, 1, "app").await;
    let mut stranger = Messenger::at(&cluster, 1, "other").await;
    one.subscribe(1, "a.*").await;
    two.subscribe(1, "a.*").await;
    two.subscribe(2, "b").await;
    stranger.subscribe(1, "secret").await;
    let header = || Some(v1::RequestHeader { namespace: "app".into(), ..Default::default() });
    let topics = async |of: &Messenger, mine| {
        let request = v1::TopicsRequest { header: header(), mine, ..Default::default() };
        let topics = of.stub().topics(request).await.unwrap().into_inner().topics;
        topics.into_iter().map(|topic| (topic.pattern, topic.nodes)).collect::<Vec<_>>()
    };
    assert_eq!(topics(&one, true).await, [("a.*".to_owned(), 1)]);
    assert_eq!(topics(&one, false).await, [("a.*".to_owned(), 2), ("b".to_owned(), 1)]);

    one.call(Call::WatchPresence(v1::WatchPresence { subscription: 9, pattern: "room.*".into() })).await;
    let events = |event: &Event| match event {
        Event::Presence(presence) => Some(presence.events.clone()),
        _ => None,
    };
    assert_eq!(one.event("who is here", events).await, []);
    let enter = v1::Enter { presence: 1, topic: "room.1".into(), member: "ann".into(), data: "x".into() };
    two.call(Call::Enter(enter.clone())).await;
    two.event("entered", |event| matches!(event, Event::Entered(_)).then_some(())).await;
    stranger.call(Call::Enter(v1::Enter { member: "eve".into(), ..enter })).await;
    let entered = one.event("ann enters", events).await;
    let member = entered[0].member.clone().unwrap();
    assert_eq!((entered.len(), entered[0].left, member.member.as_str()), (1, false, "ann"));
    let request = v1::PresentRequest { header: header(), pattern: ">".into() };
    let present = one.stub().present(request).await.unwrap().into_inner();
    assert_eq!(present.members, std::slice::from_ref(&member));
    drop(two);
    let left = one.event("ann leaves", events).await;
    assert_eq!(left, [v1::PresenceEvent { left: true, member: Some(member) }]);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn presences_as_large_as_allowed_reach_other_nodes_and_break_no_link() {
    const PRESENCES: usize = 600;
    let cluster = Cluster::of(2).await;
    let mut present = Messenger::at(&cluster, 0, "app").await;
    let mut watcher = Messenger::at(&cluster, 1, "app").await;
    for presence in 1..=PRESENCES as u64 {
        let topic = format!("{presence}.{}", "t".repeat(1000));
        let enter = v1::Enter { presence, topic, member: "m".repeat(256), data: vec![1; 4096].into() };
        present.call(Call::Enter(enter)).await;
    }
    let all = |event: &Event| match event {
        Event::Entered(entered) => (entered.presence == PRESENCES as u64).then_some(()),
        _ => None,
    };
    present.event("the last enters", all).await;
    let mut here = 0;
    // Once as they come, and once all that are here.
    for subscription in 1..=2 {
        let pattern = ">".to_owned();
        watcher.call(Call::WatchPresence(v1::WatchPresence { subscription, pattern })).await;
        while here < PRESENCES * subscription as usize {
            here += watcher
                .event("who is here", |event| match event {
                    Event::Presence(presence) if presence.subscription == subscription => {
                        Some(presence.events.len())
                    }
                    _ => None,
                })
                .await;
        }
    }
    assert_eq!(present.publish_received("nobody", "the link is sound").await, 0);
    let header = Some(v1::RequestHeader { namespace: "app".into(), ..Default::default() });
    let request = v1::PresentRequest { header, pattern: ">".into() };
    let refused = watcher.stub().present(request).await.unwrap_err();
    assert!(refused.message().contains("PUBSUB_FRAME_BYTES_MAX"), "{}", refused.message());
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_by_its_rule_and_harms_nobody() {
    let cluster = Cluster::of(1).await;
    let mut client = Messenger::at(&cluster, 0, "app").await;
    client.subscribe(1, "ok").await;
    let subscribe = |subscription, pattern: &str| v1::Subscribe {
        subscription,
        pattern: pattern.to_owned(),
        credit_bytes: PLENTY,
        ..Default::default()
    };
    for (pattern, rule) in [("", "at least one character"), ("a..b", "is empty"), ("a.>.b", "comes last")] {
        let refused = client.subscribe_as(subscribe(5, pattern)).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::InvalidArgument);
        assert!(refused.message.contains(rule), "{pattern}: {}", refused.message);
    }
    let twice = client.subscribe_as(subscribe(1, "again")).await.unwrap_err();
    assert_eq!(twice.code, ErrorCode::AlreadyExists);
    // A batch is refused as a whole.
    let first = client.publish(Accepted, &[("ok", "half"), ("ok.*", "x")]).await;
    let refused = client.published(first).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InvalidArgument);
    assert!(refused.message.contains("publish to a literal topic"), "{}", refused.message);
    let large = "x".repeat((1 << 20) + 1);
    let mut packed = pack(&[("ok", "")]).to_vec();
    packed.extend_from_slice(large.as_bytes());
    packed[..4].copy_from_slice(&(6 + 2 + large.len() as u32).to_le_bytes());
    client.send(10, Accepted, false, packed.into()).await;
    let refused = client.published(10).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::LimitExceeded);
    assert!(refused.message.contains("MESSAGE_BYTES_MAX"), "{}", refused.message);
    client.send(11, Accepted, false, vec![1, 2, 3].into()).await;
    assert_eq!(client.published(11).await.unwrap_err().code, ErrorCode::InvalidArgument);
    client.send(20, Accepted, false, pack(&[("ok", "whole")])).await;
    assert_eq!(client.payloads(1).await, ["whole"]);
    cluster.shutdown().await;
}

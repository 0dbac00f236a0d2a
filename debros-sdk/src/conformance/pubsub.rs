//! The contract of pub/sub, also behind encryption.

use std::sync::Arc;
use std::time::Duration;

use debros_proto::limits;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::error::ErrorKind;
use crate::pubsub::batch::{MessageBatch, Outgoing};
use crate::pubsub::extension::PubSubExt;
use crate::pubsub::message::{Headers, Message, SubscriptionBatch, SubscriptionEvent};
use crate::pubsub::presence::PresenceEvent;
use crate::pubsub::subscription::Subscription;
use crate::pubsub::{Acknowledge, PubSub, SubscribeOptions};
use crate::storage::keyring::{EncryptionKey, Keyring};

/// What is expected comes within this time.
const PATIENCE: Duration = Duration::from_secs(30);

/// Holds a [`PubSub`] to its contract. Its topics begin with `conformance.`; no other client subscribes to them.
///
/// # Panics
/// Where the contract is broken.
pub async fn pubsub(pubsub: Arc<dyn PubSub>) {
    patterns(&*pubsub).await;
    batches(&*pubsub).await;
    counts(&*pubsub).await;
    contents(&*pubsub).await;
    groups(&*pubsub).await;
    requests(&pubsub).await;
    endings(&*pubsub).await;
    handlers(&*pubsub).await;
    panicking_handlers(&*pubsub).await;
    presence(&*pubsub).await;
    encryption(&pubsub).await;
    mistakes(&*pubsub).await;
}

async fn next(subscription: &mut Subscription) -> Message {
    let event = timeout(PATIENCE, subscription.next()).await.expect("a message in time");
    match event.expect("the subscription goes on").expect("no error") {
        SubscriptionEvent::Message(message) => message,
        lagged @ SubscriptionEvent::Lagged { .. } => panic!("{lagged:?} instead of a message"),
    }
}

async fn payload(subscription: &mut Subscription) -> String {
    String::from_utf8_lossy(next(subscription).await.payload()).into_owned()
}

async fn patterns(pubsub: &dyn PubSub) {
    let mut literal = pubsub.subscribe("conformance.rooms.1").await.expect("a subscription");
    let mut level = pubsub.subscribe("conformance.rooms.*").await.expect("a subscription");
    let mut rest = pubsub.subscribe("conformance.rooms.>").await.expect("a subscription");
    let mut twice = pubsub.subscribe("conformance.rooms.1").await.expect("a second one");
    let topics = [("rooms.1", "a"), ("rooms.2", "b"), ("rooms.1.x", "c"), ("halls", "d"), ("rooms.1", "e")];
    for (topic, payload) in topics {
        pubsub.publish(&format!("conformance.{topic}"), payload.as_bytes()).await.expect("published");
    }
    let expect = async |subscription: &mut Subscription, payloads: &[&str]| {
        for expected in payloads {
            assert_eq!(payload(subscription).await, *expected, "{}", subscription.pattern());
        }
    };
    expect(&mut literal, &["a", "e"]).await;
    expect(&mut twice, &["a", "e"]).await;
    expect(&mut level, &["a", "b", "e"]).await;
    expect(&mut rest, &["a", "b", "c", "e"]).await;
}

async fn batches(pubsub: &dyn PubSub) {
    const MESSAGES: usize = 5000;
    let mut one = pubsub.subscribe("conformance.batch").await.expect("a subscription");
    let mut many = pubsub.subscribe("conformance.*").await.expect("a subscription");
    let mut batch = MessageBatch::new();
    for number in 0..MESSAGES {
        batch.push("conformance.batch", format!("{number}: some words").as_bytes()).expect("it fits");
    }
    assert_eq!(batch.len(), MESSAGES);
    pubsub.publish_batch(batch).await.expect("published");
    let (mut last, mut publisher) = (0, None);
    for number in 0..MESSAGES {
        let message = next(&mut one).await;
        assert_eq!(message.payload(), format!("{number}: some words").as_bytes());
        assert!(message.number() > last, "numbers grow");
        assert_eq!(*publisher.get_or_insert(message.publisher()), message.publisher());
        last = message.number();
    }
    let mut number = 0;
    while number < MESSAGES {
        let batch = timeout(PATIENCE, many.next_batch()).await.expect("messages in time");
        let Some(Ok(SubscriptionBatch::Messages(messages))) = batch else { panic!("no messages") };
        assert!(messages.len() > 0);
        for message in messages {
            let message = message.expect("it can be read");
            assert_eq!(message.payload(), format!("{number}: some words").as_bytes());
            number += 1;
        }
    }
    pubsub.publish_batch(MessageBatch::new()).await.expect("nothing is published");
}

async fn counts(pubsub: &dyn PubSub) {
    let topic = "conformance.count";
    assert_eq!(pubsub.publish_acked(topic, b"x").await.expect("an answer"), Some(0));
    let mut subscription = pubsub.subscribe(topic).await.expect("a subscription");
    assert_eq!(pubsub.publish_acked(topic, b"1").await.expect("an answer"), Some(1));
    let mut batch = MessageBatch::new();
    for (topic, payload) in [(topic, "2"), ("conformance.nobody", "x"), (topic, "3")] {
        batch.push(topic, payload.as_bytes()).expect("it fits");
    }
    let routed = pubsub.publish_batch_with(batch, Acknowledge::Routed).await.expect("an answer");
    assert_eq!(routed, [Some(1), Some(0), Some(1)]);
    for expected in ["1", "2", "3"] {
        assert_eq!(payload(&mut subscription).await, expected);
    }
    drop(subscription);
    assert_eq!(pubsub.publish_acked(topic, b"x").await.expect("an answer"), Some(0));
}

async fn contents(pubsub: &dyn PubSub) {
    let topic = "conformance.contents";
    let mut subscription = pubsub.subscribe(topic).await.expect("a subscription");
    let headers = Headers::new().with("kind", "ship").and_then(|headers| headers.with("kind", [0, 255]));
    let headers = headers.expect("they fit");
    let message = Outgoing::new(topic, b"").with_headers(&headers).with_reply("conformance.reply");
    pubsub.publish_with(message, Acknowledge::Accepted).await.expect("published");
    let message = next(&mut subscription).await;
    assert_eq!((message.topic(), message.payload()), (topic, &b""[..]));
    assert_eq!(message.reply(), Some("conformance.reply"));
    assert_eq!(message.headers(), headers);
    assert_eq!(message.headers().get("kind").as_deref(), Some(&b"ship"[..]));
    assert_eq!(message.headers().get("sort"), None);
    // Room for what encryption adds.
    let large = vec![7; limits::MESSAGE_BYTES_MAX - 64];
    pubsub.publish(topic, &large).await.expect("published");
    let message = next(&mut subscription).await;
    assert!(message.reply().is_none() && message.headers().is_empty());
    assert!(*message.into_payload() == large[..]);
}

async fn groups(pubsub: &dyn PubSub) {
    const MESSAGES: usize = 100;
    let topic = "conformance.work";
    let mut members = Vec::new();
    for _ in 0..2 {
        let options = SubscribeOptions::group("workers");
        members.push(pubsub.subscribe_with("conformance.work", options).await.expect("a member"));
    }
    let mut marks = pubsub.subscribe("conformance.work").await.expect("one of its own");
    for number in 0..MESSAGES {
        pubsub.publish(topic, number.to_string().as_bytes()).await.expect("published");
    }
    for number in 0..MESSAGES {
        assert_eq!(payload(&mut marks).await, number.to_string());
    }
    let [one, other] = &mut members[..] else { unreachable!("there are two") };
    let (mut found, mut of_one) = (Vec::new(), 0);
    while found.len() < MESSAGES {
        let message = tokio::select! {
            message = next(one) => {
                of_one += 1;
                message
            }
            message = next(other) => message,
        };
        found.push(String::from_utf8_lossy(message.payload()).parse::<usize>().expect("a number"));
    }
    found.sort_unstable();
    assert!(found.into_iter().eq(0..MESSAGES), "each message goes to one member");
    assert!(of_one > 0 && of_one < MESSAGES, "both members work");
}

async fn requests(pubsub: &Arc<dyn PubSub>) {
    let topic = "conformance.ask";
    let error = pubsub.request(topic, b"?", PATIENCE).await.expect_err("nobody is there");
    assert_eq!((error.kind(), error.maybe_applied()), (ErrorKind::NoResponders, false), "{error}");
    let mut silent = pubsub.subscribe(topic).await.expect("a subscription");
    let error = pubsub.request(topic, b"?", Duration::from_millis(50)).await.expect_err("nobody answers");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    assert!(next(&mut silent).await.reply().is_some());
    drop(silent);
    let answering = Arc::clone(pubsub);
    let handler = move |message: Message| {
        let answering = Arc::clone(&answering);
        async move {
            let answer = [message.payload(), b"!"].concat();
            answering.respond(&message, &answer).await
        }
    };
    let answerer = pubsub.subscribe_handler(topic, handler).await.expect("a subscription");
    // Answers find those who asked, whoever of them reads.
    let asked = (0..20).map(|number| async move {
        let answer = pubsub.request(topic, number.to_string().as_bytes(), PATIENCE).await.expect("an answer");
        assert_eq!(answer.payload(), format!("{number}!").as_bytes());
    });
    futures::future::join_all(asked).await;
    assert_eq!(answerer.failed(), 0);
    requests_do_not_wait_for_each_other(&**pubsub, topic).await;
    let topics = pubsub.list_topics().await.expect("topics");
    assert!(topics.iter().all(|topic| !topic.pattern.starts_with("_replies")), "{topics:?}");
    let none = pubsub.request_with(Outgoing::new(topic, b"").with_reply("x"), PATIENCE).await;
    assert_eq!(none.expect_err("a mistake").kind(), ErrorKind::InvalidArgument);
}

/// One that is not answered, or not even polled, is no other one's concern.
async fn requests_do_not_wait_for_each_other(pubsub: &dyn PubSub, answering: &str) {
    const QUICK: Duration = Duration::from_secs(5);
    let mut silent = pubsub.subscribe("conformance.silent").await.expect("a subscription");
    let mut unanswered = pubsub.request("conformance.silent", b"?", PATIENCE);
    let asked = tokio::select! {
        answer = &mut unanswered => panic!("{answer:?}"),
        asked = next(&mut silent) => asked,
    };
    let answer = pubsub.request(answering, b"not polled", QUICK).await.expect("an answer");
    assert_eq!(answer.payload(), b"not polled!");
    tokio::select! {
        biased;
        answer = &mut unanswered => panic!("{answer:?}"),
        answer = pubsub.request(answering, b"polled", QUICK) => {
            assert_eq!(answer.expect("an answer").payload(), b"polled!");
        }
    }
    pubsub.respond(&asked, b"at last").await.expect("published");
    assert_eq!(unanswered.await.expect("an answer").payload(), b"at last");
}

async fn endings(pubsub: &dyn PubSub) {
    let pattern = "conformance.end.*";
    let mut one = pubsub.subscribe(pattern).await.expect("a subscription");
    let mut other = pubsub.subscribe(pattern).await.expect("a subscription");
    let of_it = |topics: Vec<crate::TopicInfo>| {
        topics.into_iter().find(|topic| topic.pattern == pattern).map(|topic| topic.subscriptions)
    };
    assert_eq!(of_it(pubsub.list_topics().await.expect("topics")), Some(2));
    pubsub.publish("conformance.end.x", b"last").await.expect("published");
    assert_eq!(payload(&mut one).await, "last");
    assert_eq!(payload(&mut other).await, "last");
    assert_eq!(pubsub.unsubscribe(pattern).await.expect("an end"), 2);
    for subscription in [&mut one, &mut other] {
        assert!(timeout(PATIENCE, subscription.next()).await.expect("an end in time").is_none());
    }
    assert_eq!(pubsub.unsubscribe(pattern).await.expect("nothing to end"), 0);
    assert_eq!(of_it(pubsub.list_topics().await.expect("topics")), None);
    assert_eq!(pubsub.publish_acked("conformance.end.x", b"").await.expect("an answer"), Some(0));
    // The node that is asked may hear of it a moment later.
    let everybody = async {
        while of_it(pubsub.cluster_topics().await.expect("topics")).is_some() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, everybody).await.expect("the cluster knows in time");
}

async fn handlers(pubsub: &dyn PubSub) {
    let (sender, mut handled) = mpsc::channel(16);
    let handler = move |message: Message| {
        let sender = sender.clone();
        async move {
            let payload = String::from_utf8_lossy(message.payload()).into_owned();
            let bad = payload == "bad";
            sender.send(payload).await.expect("somebody listens");
            if bad { Err("it was bad") } else { Ok(()) }
        }
    };
    let mut subscription =
        pubsub.subscribe_handler("conformance.handle", handler).await.expect("a subscription");
    for payload in ["good", "bad", "good again"] {
        pubsub.publish("conformance.handle", payload.as_bytes()).await.expect("published");
        assert_eq!(timeout(PATIENCE, handled.recv()).await.expect("in time").as_deref(), Some(payload));
    }
    assert_eq!(pubsub.unsubscribe("conformance.handle").await.expect("an end"), 1);
    timeout(PATIENCE, subscription.ended()).await.expect("it ends in time");
    assert_eq!((subscription.handled(), subscription.failed(), subscription.lagged()), (3, 1, 0));
}

/// A handler that panics fails with that message, not with the next.
async fn panicking_handlers(pubsub: &dyn PubSub) {
    let (sender, mut handled) = mpsc::channel(16);
    let handler = move |message: Message| {
        // Before there is a future.
        assert_ne!(message.payload(), b"at once", "expected by the conformance suite");
        let sender = sender.clone();
        async move {
            assert_ne!(message.payload(), b"later", "expected by the conformance suite");
            sender.send(message).await.map_err(|_| "nobody listens")
        }
    };
    let subscription = pubsub.subscribe_handler("conformance.panic", handler).await.expect("a subscription");
    for payload in ["at once", "later", "good"] {
        pubsub.publish("conformance.panic", payload.as_bytes()).await.expect("published");
    }
    let message = timeout(PATIENCE, handled.recv()).await.expect("in time").expect("it goes on");
    assert_eq!(message.payload(), b"good");
    assert_eq!(subscription.failed(), 2);
}

async fn presence(pubsub: &dyn PubSub) {
    let pattern = "conformance.hall.*";
    let ann = pubsub.enter("conformance.hall.1", "ann", "data".into()).await.expect("she enters");
    let mut watch = pubsub.watch_presence(pattern).await.expect("a watch");
    let mut told = async || {
        let event = timeout(PATIENCE, watch.next()).await.expect("an event in time");
        event.expect("the watch goes on").expect("no error")
    };
    let PresenceEvent::Entered(first) = told().await else { panic!("nobody has left") };
    assert_eq!(
        (first.topic.as_str(), first.member.as_str(), &*first.data),
        ("conformance.hall.1", "ann", &b"data"[..])
    );
    let again = pubsub.enter("conformance.hall.2", "ann", "".into()).await.expect("she enters elsewhere");
    let PresenceEvent::Entered(second) = told().await else { panic!("nobody has left") };
    assert_eq!((second.topic.as_str(), second.member.as_str()), ("conformance.hall.2", "ann"));
    // The node that is asked may hear of it a moment later.
    let here = async || {
        let present = pubsub.present(pattern).await.expect("an answer");
        present.into_iter().map(|member| member.topic).collect::<Vec<_>>()
    };
    let until = async |expected: &[&str]| {
        while here().await != expected {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, until(&["conformance.hall.1", "conformance.hall.2"])).await.expect("both in time");
    drop(ann);
    assert_eq!(told().await, PresenceEvent::Left(first));
    again.leave();
    assert_eq!(told().await, PresenceEvent::Left(second));
    timeout(PATIENCE, until(&[])).await.expect("nobody in time");
}

async fn encryption(plain: &Arc<dyn PubSub>) {
    let topic = "conformance.secret";
    let key = EncryptionKey::generate();
    let secret = Arc::clone(plain).encrypted(Keyring::new(1, &key));
    let stranger = Arc::clone(plain).encrypted(Keyring::new(2, &EncryptionKey::generate()));
    let mut inside = secret.subscribe(topic).await.expect("a subscription");
    let mut outside = plain.subscribe(topic).await.expect("a subscription");
    let mut strange = stranger.subscribe(topic).await.expect("a subscription");
    secret.publish(topic, b"the words").await.expect("published");
    let mut batch = MessageBatch::new();
    batch.push(topic, b"more words").expect("it fits");
    secret.publish_batch(batch).await.expect("published");
    for expected in ["the words", "more words"] {
        assert_eq!(payload(&mut inside).await, expected);
        let sealed = next(&mut outside).await;
        assert!(!sealed.payload().windows(5).any(|window| window == b"words"));
        let error = timeout(PATIENCE, strange.next()).await.expect("in time").expect("it goes on");
        assert_eq!(error.expect_err("another key").kind(), ErrorKind::UnknownKey);
    }
    // What is no message of theirs stands in its place, and the next one comes.
    plain.publish(topic, b"in the clear").await.expect("published");
    let error = timeout(PATIENCE, inside.next()).await.expect("in time").expect("it goes on");
    assert_eq!(error.expect_err("it is not encrypted").kind(), ErrorKind::Corrupt);
    secret.publish_json(topic, &[1, 2]).await.expect("published");
    assert_eq!(next(&mut inside).await.json::<Vec<u32>>().expect("numbers"), [1, 2]);
}

async fn mistakes(pubsub: &dyn PubSub) {
    let large = vec![0; limits::MESSAGE_BYTES_MAX + 1];
    let long = "x".repeat(limits::TOPIC_BYTES_MAX + 1);
    let group = SubscribeOptions::group("g".repeat(limits::GROUP_BYTES_MAX + 1));
    let nobody = "m".repeat(limits::PRESENCE_MEMBER_BYTES_MAX + 1);
    let cases = [
        (pubsub.publish("", b"").await, ErrorKind::InvalidArgument),
        (pubsub.publish("a..b", b"").await, ErrorKind::InvalidArgument),
        (pubsub.publish("a.*", b"").await, ErrorKind::InvalidArgument),
        (pubsub.publish("a.>", b"").await, ErrorKind::InvalidArgument),
        (pubsub.publish(&long, b"").await, ErrorKind::LimitExceeded),
        (pubsub.publish("a", &large).await, ErrorKind::LimitExceeded),
        (pubsub.subscribe("a.>.b").await.map(drop), ErrorKind::InvalidArgument),
        (pubsub.subscribe(&long).await.map(drop), ErrorKind::LimitExceeded),
        (pubsub.subscribe_with("a", group).await.map(drop), ErrorKind::LimitExceeded),
        (pubsub.subscribe_with("a", SubscribeOptions::group("")).await.map(drop), ErrorKind::InvalidArgument),
        (pubsub.request("a.*", b"", PATIENCE).await.map(drop), ErrorKind::InvalidArgument),
        (pubsub.enter("a.*", "m", "".into()).await.map(drop), ErrorKind::InvalidArgument),
        (pubsub.enter("a", &nobody, "".into()).await.map(drop), ErrorKind::LimitExceeded),
        (pubsub.present("").await.map(drop), ErrorKind::InvalidArgument),
        (pubsub.watch_presence("a..b").await.map(drop), ErrorKind::InvalidArgument),
    ];
    for (result, kind) in cases {
        let error = result.expect_err("a mistake");
        assert_eq!((error.kind(), error.maybe_applied()), (kind, false), "{error}");
    }
}

//! What clients may cost a node and each other: in memory when they do not read, and in time.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use debros_net::PeerId;
use debros_proto::packed::{self, Runs};
use debros_proto::{Failure, NodeId, limits, v1};
use debros_topics::Pattern;
use futures::{FutureExt, StreamExt};
use v1::session_event::Event;

use super::super::PubSubOptions;
use super::super::metrics::PubSubMetrics;
use super::super::outbound::Next;
use super::super::outlet::{Events, Outlet};
use super::super::publish::Incoming;
use super::super::queue::Queue;
use super::super::router::Router;
use super::super::subscriptions::Wanted;
use super::{DESTINATION, ORIGIN, Pair, heard};

/// A node without others that remembers nothing.
struct Alone {
    router: Router,
    next: u64,
}

/// A session, and what its subscriptions are numbered by.
struct Listener {
    session: u64,
    outlet: Arc<Outlet>,
    next: u64,
}

impl Alone {
    fn new() -> Self {
        let options = PubSubOptions { ring_bytes: 0, ..Default::default() };
        let router = Router::new(NodeId(1), 100, "cluster".into(), PubSubMetrics::default(), options);
        Self { router, next: 1 }
    }

    fn listener(&mut self, namespace: &str) -> Listener {
        let (session, outlet) = self.router.attach(namespace, PeerId::random()).expect("there is room");
        Listener { session, outlet, next: 1 }
    }

    /// A subscription whose client gives no credit.
    fn subscribe(&mut self, listener: &mut Listener, pattern: &str) -> Arc<Queue> {
        self.subscribe_as(listener, pattern, v1::Overflow::DropOldest)
    }

    fn subscribe_as(&mut self, listener: &mut Listener, pattern: &str, overflow: v1::Overflow) -> Arc<Queue> {
        let (number, outlet) = (listener.next, listener.outlet.clone());
        listener.next += 1;
        let queue = Queue::new(number, 0, overflow, outlet, PubSubMetrics::default());
        let pattern = Pattern::new(pattern).expect("a pattern");
        let wanted = Wanted { pattern, group: None, queue: queue.clone(), resume: None };
        self.router.subscribe(listener.session, wanted).expect("there is room");
        queue
    }

    fn publish(&mut self, namespace: &str, topic: &str, bytes: usize) {
        let mut packed = BytesMut::new();
        packed::put_message(&mut packed, topic.as_bytes(), b"", b"", &vec![0; bytes]).expect("small enough");
        self.publish_packed(namespace, 1, packed.freeze());
    }

    fn publish_packed(&mut self, namespace: &str, count: u64, messages: Bytes) {
        let batch = v1::Publish { first: self.next, messages, ..Default::default() };
        self.next += count;
        let incoming = Incoming { namespace: namespace.into(), publisher: 7, base: 1, batch };
        assert!(self.router.publish(incoming).expect("a sound batch").rest.is_none(), "it is no large one");
    }
}

#[tokio::test]
async fn subscriptions_without_credit_keep_what_their_session_may_and_no_more_for_being_many() {
    const MESSAGES: usize = 100;
    const BYTES: usize = 32 << 10;
    let mut node = Alone::new();
    let mut flooding = node.listener("app");
    let queues: Vec<_> = (0..1000).map(|_| node.subscribe(&mut flooding, "news")).collect();
    for _ in 0..MESSAGES {
        node.publish("app", "news", BYTES);
    }
    let kept = node.router.backlog.bytes();
    assert!(kept <= 2 * limits::SESSION_QUEUES_BYTES, "{kept} bytes are kept");
    queues[0].add_credit(limits::SUBSCRIPTION_CREDIT_BYTES_MAX);
    assert!(matches!(heard(&queues[0])[..], [None, .., Some(last)] if last == MESSAGES as u64));
    node.router.detach(flooding.session);
    assert_eq!(node.router.backlog.bytes(), 0);
}

#[tokio::test]
async fn large_messages_to_many_subscriptions_keep_no_more_either() {
    let mut node = Alone::new();
    let mut flooding = node.listener("app");
    let topics: Vec<String> = (0..150).map(|number| format!("news.{number}")).collect();
    let queues: Vec<_> = topics.iter().map(|topic| node.subscribe(&mut flooding, topic)).collect();
    topics.iter().for_each(|topic| node.publish("app", topic, limits::MESSAGE_BYTES_MAX));
    let kept = node.router.backlog.bytes();
    assert!(kept <= 2 * limits::SESSION_QUEUES_BYTES, "{kept} bytes are kept");
    // What is not kept is reported.
    let (mut messages, mut notices) = (0, 0);
    for queue in &queues {
        queue.add_credit(limits::SUBSCRIPTION_CREDIT_BYTES_MAX);
        match heard(queue)[..] {
            [Some(_)] => messages += 1,
            [None] => notices += 1,
            ref other => panic!("{other:?}"),
        }
    }
    assert!(messages >= limits::SESSION_QUEUES_BYTES / limits::MESSAGE_BYTES_MAX - 1);
    assert_eq!(messages + notices, queues.len());
}

#[tokio::test]
async fn sessions_that_fill_a_node_take_nothing_from_one_that_holds_less_than_its_part() {
    const MESSAGES: u64 = 8;
    let mut node = Alone::new();
    for _ in 0..8 {
        let mut flooding = node.listener("flooded");
        for _ in 0..4 {
            node.subscribe(&mut flooding, "news");
        }
    }
    // Just what they may have: it stays, for nothing more comes.
    for _ in 0..15 {
        node.publish("flooded", "news", limits::MESSAGE_BYTES_MAX);
    }
    node.publish("flooded", "news", 900 << 10);
    let mut busy = node.listener("app");
    let queue = node.subscribe(&mut busy, "news");
    let first = node.next;
    for _ in 0..MESSAGES {
        node.publish("app", "news", limits::MESSAGE_BYTES_MAX);
    }
    let kept = node.router.backlog.bytes();
    assert!(kept > limits::NODE_QUEUES_BYTES, "{kept} bytes are kept: the node is not full");
    queue.add_credit(limits::SUBSCRIPTION_CREDIT_BYTES_MAX);
    assert_eq!(heard(&queue), (first..first + MESSAGES).map(Some).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_message_that_is_larger_than_its_part_is_no_loss_when_nothing_was_dropped() {
    let mut node = Alone::new();
    let mut listener = node.listener("app");
    for _ in 0..4 {
        node.subscribe(&mut listener, "others");
    }
    for _ in 0..100 {
        node.subscribe(&mut listener, "idle");
    }
    let queue = node.subscribe(&mut listener, "news");
    for _ in 0..15 {
        node.publish("app", "others", limits::MESSAGE_BYTES_MAX);
    }
    node.publish("app", "others", 900 << 10);
    node.publish("app", "news", limits::MESSAGE_BYTES_MAX);
    assert!(node.router.backlog.bytes() > limits::SESSION_QUEUES_BYTES, "the session has too much");
    queue.add_credit(limits::SUBSCRIPTION_CREDIT_BYTES_MAX);
    assert_eq!(heard(&queue), [Some(17)]);
}

/// Bytes that somebody can see to be kept.
#[derive(Clone)]
struct Watched(Arc<Vec<u8>>);

impl AsRef<[u8]> for Watched {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Watched {
    fn new(bytes: BytesMut) -> Self {
        Self(Arc::new(bytes.to_vec()))
    }

    fn bytes(&self) -> Bytes {
        Bytes::from_owner(self.clone())
    }

    fn is_kept(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

#[tokio::test]
async fn what_waits_does_not_keep_the_batch_or_frame_that_it_came_in() {
    let mut node = Alone::new();
    let mut listener = node.listener("app");
    let queue = node.subscribe(&mut listener, "small");
    let batch = |large: usize| {
        let mut packed = BytesMut::new();
        packed::put_message(&mut packed, b"large", b"", b"", &vec![0; large]).expect("small enough");
        packed::put_message(&mut packed, b"small", b"", b"", b"x").expect("small enough");
        Watched::new(packed)
    };
    // Without credit it waits.
    let waiting = batch(40 << 10);
    node.publish_packed("app", 2, waiting.bytes());
    assert!(!waiting.is_kept(), "a batch is kept for one message of it");
    // With credit it may wait, too: for a connection that takes nothing.
    queue.add_credit(limits::SUBSCRIPTION_CREDIT_BYTES_MAX);
    assert_eq!(heard(&queue), [Some(2)]);
    let large = batch(1 << 20);
    node.publish_packed("app", 2, large.bytes());
    assert!(!large.is_kept(), "a large batch is kept for one message of it");
    assert_eq!(heard(&queue), [Some(4)]);
    // Behind others it waits.
    (0..600).for_each(|_| node.publish("app", "small", 1));
    let behind = batch(40 << 10);
    node.publish_packed("app", 2, behind.bytes());
    assert!(!behind.is_kept(), "a batch is kept for one message of it");
}

#[tokio::test]
async fn a_message_that_is_sent_at_once_is_not_copied() {
    let mut node = Alone::new();
    let mut listener = node.listener("app");
    let queue = node.subscribe(&mut listener, "news");
    queue.add_credit(limits::SUBSCRIPTION_CREDIT_BYTES_MAX);
    let mut packed = BytesMut::new();
    packed::put_message(&mut packed, b"news", b"", b"", b"x").expect("small enough");
    let sent = Watched::new(packed);
    node.publish_packed("app", 1, sent.bytes());
    assert!(sent.is_kept(), "it is the same memory");
    let (deliveries, _) = queue.take();
    let runs: Vec<_> = Runs::new(deliveries.expect("a message").runs).collect();
    assert_eq!(runs.len(), 1);
    assert!(!sent.is_kept());
}

/// Messages whose receivers differ from one to the next, where somebody subscribes to `x.odd`.
fn alternating(count: usize) -> Vec<(&'static str, &'static [u8])> {
    (0..count).map(|number| (if number % 2 == 0 { "x.even" } else { "x.odd" }, &b"-"[..])).collect()
}

fn packed(messages: &[(&str, &[u8])]) -> Bytes {
    let mut packed = BytesMut::new();
    for (topic, payload) in messages {
        packed::put_message(&mut packed, topic.as_bytes(), b"", b"", payload).expect("small enough");
    }
    packed.freeze()
}

const MANY: usize = 1000;
const BATCH: usize = 400;

#[tokio::test]
async fn a_batch_for_many_subscriptions_is_taken_in_by_turns_and_refused_as_a_whole() {
    let mut node = Alone::new();
    let mut listener = node.listener("app");
    let queues: Vec<_> = (0..MANY).map(|_| node.subscribe(&mut listener, "x.>")).collect();
    node.subscribe(&mut listener, "x.odd");
    let unsound = [alternating(BATCH), vec![("x.*", &b"-"[..])]].concat();
    let incoming = |first: u64, messages: Bytes| {
        let batch = v1::Publish { first, messages, ..Default::default() };
        Incoming { namespace: "app".into(), publisher: 7, base: 1, batch }
    };
    let refused = node.router.publish(incoming(1, packed(&unsound)));
    assert!(refused.err().expect("a pattern is no topic").message.contains("publish to a literal topic"));
    assert!(queues[0].is_idle(), "a part of a batch that is refused was delivered");

    let (mut turns, mut heard_by_one) = (0, Vec::new());
    let mut next = Some(incoming(1, packed(&alternating(BATCH))));
    while let Some(incoming) = next {
        let (base, first) = (incoming.base, incoming.batch.first);
        let taken = node.router.publish(incoming).expect("a sound batch");
        turns += 1;
        let delivered = (taken.last - first + 1) as usize * MANY;
        assert!(delivered <= limits::ROUTING_TURN_DELIVERIES + 2 * MANY, "{delivered} in one turn");
        for queue in &queues {
            queue.add_credit(1 << 20);
        }
        heard_by_one.extend(heard(&queues[0]));
        queues[1..].iter().for_each(|queue| drop(heard(queue)));
        next = taken.rest.map(|batch| Incoming { namespace: "app".into(), publisher: 7, base, batch });
    }
    assert!(turns > 1, "{MANY} times {BATCH} deliveries are more than a turn's");
    assert_eq!(heard_by_one, (1..=BATCH as u64).map(Some).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_frame_for_many_subscriptions_is_taken_in_by_turns_also_when_its_link_breaks() {
    let mut pair = Pair::new();
    let (session, outlet) = pair.destination.attach("app", PeerId::random()).expect("there is room");
    let mut queues = Vec::new();
    for number in 0..=MANY as u64 {
        let (outlet, metrics) = (outlet.clone(), PubSubMetrics::default());
        let queue = Queue::new(number, u64::MAX, v1::Overflow::DropOldest, outlet, metrics);
        let pattern = Pattern::new(if number == 0 { "x.odd" } else { "x.>" }).expect("a pattern");
        let wanted = Wanted { pattern, group: None, queue: queue.clone(), resume: None };
        pair.destination.subscribe(session, wanted).expect("there is room");
        queues.push(queue);
    }
    pair.settle();
    pair.publish(&alternating(BATCH));
    let frame = pair.origin.next_frame(DESTINATION, pair.there.stream);
    let Next::Frame(frame) = frame else { panic!("there are messages for it") };
    let taken = pair.destination.take_frame(ORIGIN, pair.there.stream, *frame).expect("a sound frame");
    assert!(taken.rest.is_some(), "{MANY} times {BATCH} deliveries are more than a turn's");
    let before = heard(&queues[1]);
    assert!(!before.is_empty() && before.len() < BATCH);
    // Where it stands is told to nobody meanwhile: it may be less than a subscription has.
    let positions = pair.destination.positions(true);
    assert!(positions.iter().all(|position| position.origin != ORIGIN.0), "{positions:?}");
    // The rest is never taken in, and all of it comes again.
    pair.cut();
    pair.link(20);
    pair.settle();
    let all = [before, heard(&queues[1])].concat();
    assert_eq!(all, (1..=BATCH as u64).map(Some).collect::<Vec<_>>());
    assert_eq!(heard(&queues[0]).len(), BATCH / 2);
}

#[tokio::test]
async fn topics_that_the_same_patterns_match_share_their_receivers() {
    let mut node = Alone::new();
    let mut listener = node.listener("app");
    (0..100).for_each(|_| drop(node.subscribe(&mut listener, ">")));
    let mut route = |topic| {
        let plan = node.router.space("app").plan(&packed(&[(topic, b"-")]), usize::MAX).expect("sound");
        plan.pieces[0].route.clone()
    };
    let (one, other) = (route("one"), route("other"));
    assert!(Arc::ptr_eq(&one, &other) && one.local.len() == 100);
}

#[tokio::test]
async fn what_a_session_had_goes_with_it_and_nothing_else() {
    let mut node = Alone::new();
    let (mut going, mut staying) = (node.listener("app"), node.listener("app"));
    let stays = node.subscribe(&mut staying, "news");
    for pattern in ["news", "news", "news.*", ">"] {
        node.subscribe(&mut going, pattern);
    }
    let mut elsewhere = node.listener("apple");
    node.subscribe(&mut elsewhere, "theirs");
    node.router.detach(going.session);
    let topics = |namespace: &str| {
        let topics = node.router.topics(namespace, None).into_iter();
        topics.map(|topic| (topic.pattern, topic.subscriptions)).collect::<Vec<_>>()
    };
    assert_eq!(topics("app"), [("news".to_owned(), 1)]);
    assert_eq!(topics("apple"), [("theirs".to_owned(), 1)]);
    assert_eq!((topics("appl"), topics("b")), (vec![], vec![]));
    assert_eq!(node.router.subscriptions, 2);
    node.publish("app", "news", 1);
    assert!(!stays.is_idle());
}

#[tokio::test]
async fn a_tick_takes_out_what_has_overflowed_and_excepts_what_has_something_waiting() {
    let mut node = Alone::new();
    let mut listener = node.listener("app");
    let mut events = Events::new(listener.outlet.clone());
    let full = node.subscribe_as(&mut listener, "full", v1::Overflow::Disconnect);
    let lagging = node.subscribe(&mut listener, "lagging");
    node.subscribe(&mut listener, "idle");
    for _ in 0..=limits::SUBSCRIPTION_QUEUE_BYTES / limits::MESSAGE_BYTES_MAX {
        node.publish("app", "full", limits::MESSAGE_BYTES_MAX);
    }
    assert!(full.has_ended() && node.router.subscriptions == 3);
    lagging.lag(None);
    node.router.tick();
    assert_eq!(node.router.subscriptions, 2);
    let mut excepted = Vec::new();
    while let Some(Some(event)) = events.next().now_or_never() {
        if let Some(Event::Positions(positions)) = event.expect("no end").event {
            excepted.push(positions.except);
        }
    }
    assert_eq!(excepted, [[lagging.number()]]);
}

fn enter(router: &mut Router, session: u64, presence: u64) -> Result<(), Failure> {
    let topic = format!("room.{}", presence % 2);
    router.enter(session, v1::Enter { presence, topic, member: "ann".into(), data: Bytes::new() })
}

#[tokio::test]
async fn presences_are_bounded_in_a_namespace_and_in_all_wherever_they_entered() {
    let mut pair = Pair::new();
    let (there, _) = pair.destination.attach("app", PeerId::random()).expect("there is room");
    let max = limits::PRESENCES_PER_NAMESPACE_MAX as u64;
    (1..=max).for_each(|presence| enter(&mut pair.destination, there, presence).expect("there is room"));
    pair.settle();
    let (here, _) = pair.origin.attach("app", PeerId::random()).expect("there is room");
    let refused = enter(&mut pair.origin, here, 1).unwrap_err();
    assert!(refused.message.contains("PRESENCES_PER_NAMESPACE_MAX"), "{}", refused.message);
    // Others have room, as long as there is any.
    let mut admitted = max;
    let mut refused = None;
    for namespace in ["b", "c", "d", "e"] {
        let (session, _) = pair.origin.attach(namespace, PeerId::random()).expect("there is room");
        for presence in 1..=max {
            match enter(&mut pair.origin, session, presence) {
                Ok(()) => admitted += 1,
                Err(failure) => refused = Some(failure.message),
            }
        }
    }
    assert_eq!(admitted, limits::PRESENCES_MAX as u64);
    assert!(refused.expect("it is full").contains("PRESENCES_MAX"));
    // Who leaves makes room.
    pair.destination.leave_by(there, 1);
    pair.settle();
    enter(&mut pair.origin, here, 1).expect("there is room");
}

#[tokio::test]
async fn listings_of_who_is_here_wait_as_what_they_are_and_end_no_session() {
    const PRESENCES: u64 = 5_000;
    const WATCHES: u64 = 250;
    let mut node = Alone::new();
    let present = node.listener("app");
    (1..=PRESENCES).for_each(|presence| enter(&mut node.router, present.session, presence).expect("room"));
    let listener = node.listener("app");
    let mut events = Events::new(listener.outlet.clone());
    for subscription in 1..=WATCHES {
        let pattern = Pattern::new("room.1").expect("a pattern");
        node.router.watch_presence(listener.session, subscription, pattern).expect("there is room");
    }
    assert!(listener.outlet.is_overdue(), "no more calls are carried out before it has taken some");
    node.router.leave_by(present.session, 1);
    node.router.leave_by(present.session, 2);
    let mut told = vec![(0, 0); WATCHES as usize + 1];
    while let Some(event) = events.next().now_or_never() {
        let event = event.expect("the session goes on").expect("the session goes on").event;
        let Some(Event::Presence(presence)) = event else { continue };
        let (entered, left) = &mut told[presence.subscription as usize];
        assert!(
            presence.events.iter().all(|event| event.left || *left == 0),
            "one enters behind one that left"
        );
        *left += presence.events.iter().filter(|event| event.left).count();
        *entered += presence.events.iter().filter(|event| !event.left).count();
    }
    assert_eq!(told[1..], vec![(PRESENCES as usize / 2, 1); WATCHES as usize]);
    assert!(!listener.outlet.is_overdue());
}

//! What clients that do not read may cost a node: in memory, and others.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use debros_net::PeerId;
use debros_proto::packed::{self, Runs};
use debros_proto::{NodeId, limits, v1};
use debros_topics::Pattern;

use super::super::PubSubOptions;
use super::super::metrics::PubSubMetrics;
use super::super::outlet::Outlet;
use super::super::publish::Incoming;
use super::super::queue::Queue;
use super::super::router::Router;
use super::super::subscriptions::Wanted;
use super::heard;

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
        let (number, outlet) = (listener.next, listener.outlet.clone());
        listener.next += 1;
        let queue = Queue::new(number, 0, v1::Overflow::DropOldest, outlet, PubSubMetrics::default());
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
        self.router.publish(incoming).expect("a sound batch");
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
    for _ in 0..20 {
        node.publish("flooded", "news", limits::MESSAGE_BYTES_MAX);
    }
    let mut busy = node.listener("app");
    let queue = node.subscribe(&mut busy, "news");
    let first = node.next;
    for _ in 0..MESSAGES {
        node.publish("app", "news", limits::MESSAGE_BYTES_MAX);
    }
    let kept = node.router.backlog.bytes();
    assert!(kept > limits::NODE_QUEUES_BYTES - (32 << 20), "{kept} bytes are kept: the node is not full");
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

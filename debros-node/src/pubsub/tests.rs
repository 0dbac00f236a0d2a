//! Two routers joined by hand, without a network: what needs a ring that is full or a link that breaks at a
//! certain place. Everything else is tried on whole nodes.

mod bounds;
mod pressure;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use debros_net::PeerId;
use debros_proto::packed::{self, Messages, Runs};
use debros_proto::{NodeId, limits, v1};
use debros_topics::Pattern;
use prost::Message;
use tokio::sync::mpsc;

use super::PubSubOptions;
use super::inbound::Broken;
use super::metrics::PubSubMetrics;
use super::outbound::Next;
use super::publish::Incoming;
use super::queue::Queue;
use super::router::Router;
use super::subscriptions::Wanted;

const ORIGIN: NodeId = NodeId(1);
const DESTINATION: NodeId = NodeId(2);

/// A link between two routers, one way.
struct Wire {
    stream: u64,
    replies: mpsc::Receiver<v1::LinkReply>,
    served: bool,
}

/// An origin and a destination.
struct Pair {
    origin: Router,
    destination: Router,
    there: Wire,
    back: Wire,
    next: u64,
    largest: usize,
}

fn wire(stream: u64) -> Wire {
    let (_, replies) = mpsc::channel(1);
    Wire { stream, replies, served: false }
}

/// Moves what one side has for the other; says whether there was anything.
fn pump(from: &mut Router, to: &mut Router, wire: &mut Wire, largest: &mut usize) -> bool {
    let (sender, receiver) = (from.node, to.node);
    let mut moved = false;
    while let Ok(reply) = wire.replies.try_recv() {
        from.take_reply(receiver, wire.stream, reply);
        moved = true;
    }
    let frame = match from.next_frame(receiver, wire.stream) {
        Next::Frame(frame) => *frame,
        Next::Again => return true,
        Next::Wait | Next::End => return moved,
    };
    *largest = (*largest).max(frame.encoded_len());
    if let Some(hello) = frame.hello.clone().filter(|_| !wire.served) {
        let (replies, waiting) = mpsc::channel(64);
        to.accept_link(sender, hello, replies).expect("a link of this cluster");
        (wire.replies, wire.served) = (waiting, true);
    } else {
        let mut next = Some(frame);
        while let Some(frame) = next {
            next = to.take_frame(sender, wire.stream, frame).expect("frames in order").rest;
        }
    }
    true
}

impl Pair {
    fn new() -> Self {
        let router = |node: NodeId| {
            Router::new(
                node,
                100 + node.0,
                "cluster".into(),
                PubSubMetrics::default(),
                PubSubOptions::default(),
            )
        };
        let (mut origin, mut destination) = (router(ORIGIN), router(DESTINATION));
        let members = BTreeMap::from([(ORIGIN, PeerId::random()), (DESTINATION, PeerId::random())]);
        origin.set_members(&members);
        destination.set_members(&members);
        let mut pair = Self { origin, destination, there: wire(0), back: wire(0), next: 1, largest: 0 };
        pair.link(10);
        pair.settle();
        pair
    }

    /// New streams, both ways.
    fn link(&mut self, stream: u64) {
        (self.there, self.back) = (wire(stream), wire(stream + 1));
        self.origin.open_link(DESTINATION, stream);
        self.destination.open_link(ORIGIN, stream + 1);
    }

    /// Both streams are gone, with whatever was on its way.
    fn cut(&mut self) {
        self.origin.close_link(DESTINATION, self.there.stream);
        self.destination.lose_link(ORIGIN, self.there.stream);
        self.destination.close_link(ORIGIN, self.back.stream);
        self.origin.lose_link(DESTINATION, self.back.stream);
    }

    /// Moves everything.
    fn settle(&mut self) {
        loop {
            let there = pump(&mut self.origin, &mut self.destination, &mut self.there, &mut self.largest);
            let back = pump(&mut self.destination, &mut self.origin, &mut self.back, &mut self.largest);
            if !there && !back {
                return;
            }
        }
    }

    fn publish(&mut self, messages: &[(&str, &[u8])]) {
        let mut packed = BytesMut::new();
        for (topic, payload) in messages {
            packed::put_message(&mut packed, topic.as_bytes(), b"", b"", payload).expect("small enough");
        }
        let first = self.next;
        self.next += messages.len() as u64;
        let batch = v1::Publish { first, messages: packed.freeze(), ..Default::default() };
        let incoming = Incoming { namespace: "app".into(), publisher: 7, base: 1, batch };
        let taken = self.origin.publish(incoming).expect("a sound batch");
        assert!(taken.rest.is_none(), "it is no large one");
    }

    /// More than the ring holds.
    fn fill_ring(&mut self, topic: &str) {
        let payload = vec![0; limits::MESSAGE_BYTES_MAX];
        for _ in 0..=limits::RING_BYTES_MAX / limits::MESSAGE_BYTES_MAX {
            self.publish(&[(topic, &payload)]);
        }
    }
}

fn subscribe(
    router: &mut Router,
    wanted: (u64, &str, &str),
    resume: Option<Vec<v1::Position>>,
) -> Arc<Queue> {
    let (session, outlet) = router.attach("app", PeerId::random()).expect("there is room");
    let (number, pattern, group) = wanted;
    let metrics = PubSubMetrics::default();
    let queue = Queue::new(number, u64::MAX, v1::Overflow::DropOldest, outlet, metrics);
    let pattern = Pattern::new(pattern).expect("a pattern");
    let group = (!group.is_empty()).then(|| group.into());
    router
        .subscribe(session, Wanted { pattern, group, queue: queue.clone(), resume })
        .expect("there is room");
    queue
}

/// What a queue holds: the publisher's numbers, and `None` where messages were missed.
fn heard(queue: &Queue) -> Vec<Option<u64>> {
    let mut heard = Vec::new();
    loop {
        let (deliveries, more) = queue.take();
        let Some(v1::Deliveries { lagged, runs, .. }) = deliveries else { return heard };
        heard.extend(lagged.map(|_| None));
        for run in Runs::new(runs).map(|run| run.expect("sound")) {
            let messages = Messages::new(run.messages.clone()).count() as u64;
            heard.extend((run.head.first..run.head.first + messages).map(Some));
        }
        if !more {
            return heard;
        }
    }
}

#[tokio::test]
async fn what_left_the_ring_while_a_link_was_away_is_reported() {
    let mut pair = Pair::new();
    let concerned = subscribe(&mut pair.destination, (1, "news", ""), None);
    pair.settle();
    pair.publish(&[("news", b"1")]);
    pair.settle();
    pair.cut();
    pair.publish(&[("news", b"2")]);
    pair.fill_ring("others");
    pair.publish(&[("news", b"last")]);
    pair.link(20);
    pair.settle();
    let last = pair.next - 1;
    assert_eq!(heard(&concerned), [Some(1), None, Some(last)]);
}

#[tokio::test]
async fn what_left_the_ring_and_concerned_nobody_there_alarms_nobody() {
    let mut pair = Pair::new();
    let concerned = subscribe(&mut pair.destination, (1, "news", ""), None);
    pair.settle();
    pair.publish(&[("news", b"1")]);
    pair.settle();
    pair.cut();
    pair.fill_ring("others");
    pair.publish(&[("news", b"last")]);
    pair.link(20);
    pair.settle();
    let last = pair.next - 1;
    assert_eq!(heard(&concerned), [Some(1), Some(last)]);
}

#[tokio::test]
async fn what_was_sent_but_never_arrived_is_reported_when_the_ring_has_dropped_it() {
    let mut pair = Pair::new();
    let concerned = subscribe(&mut pair.destination, (1, "news", ""), None);
    pair.settle();
    pair.publish(&[("news", b"1")]);
    pair.settle();
    pair.publish(&[("news", b"2")]);
    let sent = pair.origin.next_frame(DESTINATION, pair.there.stream);
    assert!(matches!(sent, Next::Frame(_)), "it is under way when the link breaks");
    pair.fill_ring("others");
    pair.cut();
    pair.link(20);
    pair.settle();
    assert_eq!(heard(&concerned), [Some(1), None]);
    // What the ring still holds is sent again, and nothing is reported.
    pair.publish(&[("news", b"3")]);
    let sent = pair.origin.next_frame(DESTINATION, pair.there.stream);
    assert!(matches!(sent, Next::Frame(_)));
    pair.cut();
    pair.link(30);
    pair.settle();
    assert_eq!(heard(&concerned), [Some(pair.next - 1)]);
}

#[tokio::test]
async fn a_subscription_resumes_in_the_middle_of_a_batch() {
    let mut pair = Pair::new();
    for _ in 0..3 {
        pair.publish(&[("news", b"a"), ("others", b"b"), ("news", b"c"), ("news", b"d")]);
    }
    let incarnation = 100 + ORIGIN.0;
    let position = v1::Position { origin: ORIGIN.0, incarnation, sequence: 7 };
    let resumed = subscribe(&mut pair.destination, (1, "news", ""), Some(vec![position]));
    // Live messages come before the origin has answered, and after.
    pair.publish(&[("news", b"13")]);
    pair.settle();
    pair.publish(&[("news", b"14")]);
    pair.settle();
    assert_eq!(heard(&resumed), [8, 9, 11, 12, 13, 14].map(Some));
    // Behind what the ring holds nobody knows.
    pair.fill_ring("news");
    pair.settle();
    let late = subscribe(&mut pair.destination, (1, "news", ""), Some(vec![position]));
    pair.settle();
    assert_eq!(heard(&late).first(), Some(&None));
}

#[tokio::test]
async fn a_large_batch_to_many_groups_fits_its_frames() {
    const GROUPS: usize = 40;
    let mut pair = Pair::new();
    let names: Vec<String> = (0..GROUPS).map(|group| format!("group {group}")).collect();
    let queues: Vec<_> =
        names.iter().map(|name| subscribe(&mut pair.destination, (1, "jobs", name), None)).collect();
    pair.settle();
    let payload = vec![0; 100 << 10];
    pair.publish(&[("jobs", &payload[..]); 10]);
    pair.publish(&vec![("jobs", &b""[..]); 2000]);
    pair.settle();
    assert!(pair.largest <= limits::PUBSUB_FRAME_BYTES_MAX, "{} bytes", pair.largest);
    for queue in queues {
        assert_eq!(heard(&queue), (1..=2010).map(Some).collect::<Vec<_>>());
    }
}

/// A member of a queue group whose session can be ended.
fn member(router: &mut Router) -> u64 {
    let (session, outlet) = router.attach("app", PeerId::random()).unwrap();
    let queue = Queue::new(1, u64::MAX, v1::Overflow::DropOldest, outlet, PubSubMetrics::default());
    let (pattern, group) = (Pattern::new("jobs").unwrap(), Some("workers".into()));
    router.subscribe(session, Wanted { pattern, group, queue, resume: None }).unwrap();
    session
}

#[tokio::test]
async fn a_message_for_a_member_that_has_gone_goes_to_another_one() {
    let mut pair = Pair::new();
    let session = member(&mut pair.destination);
    pair.settle();
    // It is chosen, being the only one, and gone when the message comes; another one is there by then.
    pair.publish(&[("jobs", b"1")]);
    pair.destination.detach(session);
    let other = subscribe(&mut pair.origin, (1, "jobs", "workers"), None);
    pair.settle();
    assert_eq!(heard(&other), [Some(1)]);
}

#[tokio::test]
async fn messages_that_come_back_wait_while_a_link_takes_no_replies() {
    const MORE_THAN_REPLIES: u64 = 100;
    let mut pair = Pair::new();
    let session = member(&mut pair.destination);
    pair.settle();
    // All are for the only member, which has gone when they come.
    for _ in 0..MORE_THAN_REPLIES {
        pair.publish(&[("jobs", b"")]);
    }
    pair.destination.detach(session);
    let other = subscribe(&mut pair.origin, (1, "jobs", "workers"), None);
    let full = v1::LinkReply::default();
    while pair.destination.peers[&ORIGIN].back.reply(full.clone()) {}
    while let Next::Frame(frame) = pair.origin.next_frame(DESTINATION, pair.there.stream) {
        pair.destination.take_frame(ORIGIN, pair.there.stream, *frame).expect("frames in order");
    }
    pair.settle();
    assert_eq!(heard(&other), [], "nothing came back yet");
    pair.origin.tick();
    pair.settle();
    let mut all = heard(&other);
    all.sort_unstable();
    assert_eq!(all, (1..=MORE_THAN_REPLIES).map(Some).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_member_at_a_node_that_is_away_is_given_nothing_while_there_are_others() {
    let mut pair = Pair::new();
    member(&mut pair.destination);
    let here = subscribe(&mut pair.origin, (1, "jobs", "workers"), None);
    pair.settle();
    pair.cut();
    for _ in 0..50 {
        pair.publish(&[("jobs", b"")]);
    }
    assert_eq!(heard(&here), (1..=50).map(Some).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_message_of_a_group_comes_once_though_the_link_breaks_within_its_batch() {
    let mut pair = Pair::new();
    let queues = ["one", "other"].map(|group| subscribe(&mut pair.destination, (1, "jobs", group), None));
    pair.settle();
    let payload = vec![0; 100 << 10];
    pair.publish(&[("jobs", &payload[..]); 10]);
    let Next::Frame(first) = pair.origin.next_frame(DESTINATION, pair.there.stream) else {
        panic!("there is something to be sent");
    };
    let routed = first.routed.as_ref().expect("messages");
    assert!(!routed.runs.is_empty() && routed.reached == routed.previous, "the rest is in another frame");
    pair.destination.take_frame(ORIGIN, pair.there.stream, *first).expect("frames in order");
    pair.cut();
    pair.link(20);
    pair.settle();
    for queue in queues {
        assert_eq!(heard(&queue), (1..=10).map(Some).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn an_answer_of_many_frames_says_when_the_ring_drops_the_rest_of_it() {
    const MESSAGES: usize = 20;
    let mut pair = Pair::new();
    let payload = vec![0; 100 << 10];
    for _ in 0..MESSAGES {
        pair.publish(&[("news", &payload[..])]);
    }
    let position = v1::Position { origin: ORIGIN.0, incarnation: 100 + ORIGIN.0, sequence: 0 };
    let resumed = subscribe(&mut pair.destination, (1, "news", ""), Some(vec![position]));
    while resumed.is_idle() {
        pump(&mut pair.destination, &mut pair.origin, &mut pair.back, &mut pair.largest);
        pump(&mut pair.origin, &mut pair.destination, &mut pair.there, &mut pair.largest);
    }
    pair.fill_ring("others");
    pair.settle();
    let heard = heard(&resumed);
    assert!(heard.contains(&None) && heard.len() < MESSAGES, "{heard:?}");
}

#[tokio::test]
async fn an_acknowledgement_of_interest_that_found_no_room_is_repeated() {
    let mut pair = Pair::new();
    subscribe(&mut pair.destination, (1, "news", ""), None);
    let Next::Frame(interest) = pair.destination.next_frame(ORIGIN, pair.back.stream) else {
        panic!("there is interest to be told");
    };
    pair.origin.take_frame(DESTINATION, pair.back.stream, *interest).expect("interest");
    while pair.back.replies.try_recv().is_ok() {}
    let heeds = |pair: &Pair| pair.destination.peers[&ORIGIN].out.progress.borrow().heeds;
    let before = heeds(&pair);
    pair.destination.tick();
    pair.settle();
    assert!(heeds(&pair) > before, "the origin heeds {before} as ever");
}

#[tokio::test]
async fn subscriptions_that_have_ended_are_forgotten_though_a_node_never_knew_of_them() {
    let mut pair = Pair::new();
    pair.cut();
    let (session, outlet) = pair.destination.attach("app", PeerId::random()).unwrap();
    let queue = Queue::new(1, u64::MAX, v1::Overflow::DropOldest, outlet, PubSubMetrics::default());
    let wanted = || Wanted {
        pattern: Pattern::new("news").unwrap(),
        group: None,
        queue: queue.clone(),
        resume: Some(Vec::new()),
    };
    let version = pair.destination.subscribe(session, wanted()).unwrap();
    pair.destination.begun(session, &queue, version, Some(&[]));
    assert!(queue.is_unaware());
    pair.destination.detach(session);
    drop(queue);
    pair.destination.tick();
    let back = &pair.destination.peers[&ORIGIN].back;
    assert!(back.unaware.is_empty() && back.asked.is_empty());
}

#[tokio::test]
async fn interest_that_differs_from_its_digest_is_told_anew() {
    let mut pair = Pair::new();
    let queue = subscribe(&mut pair.destination, (1, "news", ""), None);
    pair.settle();
    // Whatever made it so: the origin has forgotten.
    pair.origin.replace_interest(DESTINATION, super::interest::Interest::default());
    pair.publish(&[("news", b"1")]);
    pair.destination.tick();
    pair.settle();
    pair.publish(&[("news", b"2")]);
    pair.settle();
    assert_eq!(heard(&queue), [Some(2)]);
}

#[test]
fn a_frame_that_does_not_follow_ends_the_stream() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _entered = runtime.enter();
    let mut pair = Pair::new();
    let routed = v1::RoutedMessages { previous: 5, reached: 6, runs: Bytes::new(), ..Default::default() };
    let frame = v1::LinkFrame { routed: Some(routed), ..Default::default() };
    let taken = pair.destination.take_frame(ORIGIN, pair.there.stream, frame);
    assert!(matches!(taken, Err(Broken::Gap { previous: 5, received: 0 })), "another error");
}

/// What a client is told when it begins at the destination, in a session of its own.
fn begin(pair: &mut Pair, resume: Option<Vec<v1::Position>>) -> (Arc<Queue>, v1::Subscribed) {
    let origins: Option<Vec<u64>> =
        resume.as_ref().map(|known| known.iter().map(|position| position.origin).collect());
    let queue = subscribe(&mut pair.destination, (1, "news", ""), resume);
    pair.settle();
    let heeds = pair.destination.peers[&ORIGIN].out.progress.borrow().heeds;
    let subscribed = pair.destination.begun(0, &queue, heeds, origins.as_deref());
    (queue, subscribed)
}

#[tokio::test]
async fn what_was_published_before_a_subscription_began_out_of_reach_does_not_come_but_is_told_of() {
    let mut pair = Pair::new();
    pair.origin.announce(&"app".into());
    pair.publish(&[("news", b"1")]);
    pair.origin.tick();
    pair.settle();
    // The node where it began had never heard of the origin.
    let unknown = v1::Position { origin: ORIGIN.0, ..Default::default() };
    let (queue, _) = begin(&mut pair, Some(vec![unknown]));
    pair.publish(&[("news", b"2")]);
    pair.settle();
    assert_eq!(heard(&queue), [None, Some(2)]);
}

#[tokio::test]
async fn a_node_that_is_not_known_yet_is_named_where_a_subscription_begins() {
    let mut pair = Pair::new();
    let (_, subscribed) = begin(&mut pair, None);
    assert!(subscribed.positions.iter().all(|position| position.incarnation != 0));
    let stranger = NodeId(3);
    let members = BTreeMap::from([
        (ORIGIN, pair.destination.peers[&ORIGIN].peer),
        (DESTINATION, PeerId::random()),
        (stranger, PeerId::random()),
    ]);
    pair.destination.set_members(&members);
    let (queue, subscribed) = begin(&mut pair, None);
    let unknown = v1::Position { origin: stranger.0, ..Default::default() };
    assert!(subscribed.positions.contains(&unknown), "{:?}", subscribed.positions);
    assert_eq!(subscribed.unaware, 1);
    // At the next node nothing is known of it either: nothing was missed.
    let (resumed, _) = begin(&mut pair, Some(subscribed.positions));
    assert_eq!((heard(&queue), heard(&resumed)), (vec![], vec![]));
}

#[tokio::test]
async fn a_node_that_has_left_is_told_of_once() {
    let mut pair = Pair::new();
    let gone = v1::Position { origin: 9, incarnation: 109, sequence: 5 };
    let (queue, subscribed) = begin(&mut pair, Some(vec![gone]));
    assert_eq!((heard(&queue), &subscribed.gone[..]), (vec![None], &[9][..]));
    assert!(subscribed.positions.iter().all(|position| position.origin != 9));
    let (queue, subscribed) = begin(&mut pair, Some(subscribed.positions));
    assert_eq!((heard(&queue), subscribed.gone), (vec![], vec![]));
}

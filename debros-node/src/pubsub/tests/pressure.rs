//! Who waits when subscriptions are slower than their publishers: these, for a part of their time, and nobody else.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use debros_proto::{limits, packed, v1};
use futures::FutureExt;
use tokio::time::Instant;

use super::super::pressure::Pressure;
use super::super::publish::{Incoming, Taken};
use super::super::queue::{Patience, Queue};
use super::{DESTINATION, ORIGIN, Pair, subscribe};

/// More than half of what a queue holds.
const MUCH: usize = limits::SUBSCRIPTION_QUEUE_BYTES / 2 / limits::MESSAGE_BYTES_MAX + 1;

impl Pair {
    fn publish_in(&mut self, namespace: &str, topic: &str, bytes: usize) -> Taken {
        let mut packed = BytesMut::new();
        packed::put_message(&mut packed, topic.as_bytes(), b"", b"", &vec![0; bytes]).expect("small enough");
        let batch = v1::Publish { first: self.next, messages: packed.freeze(), ..Default::default() };
        self.next += 1;
        let incoming = Incoming { namespace: namespace.into(), publisher: 7, base: 1, batch };
        self.origin.publish(incoming).expect("a sound batch")
    }

    /// A subscription at the destination with so much waiting that its publishers should wait.
    fn pressed(&mut self) -> Arc<Queue> {
        let queue = subscribe(&mut self.destination, (1, "news", ""), None);
        self.settle();
        for _ in 0..MUCH {
            self.publish_in("app", "news", limits::MESSAGE_BYTES_MAX);
            self.settle();
        }
        queue
    }

    fn tell(&mut self, namespace: &str, pressed: bool) {
        self.destination.tell_pressure(ORIGIN, self.there.stream, namespace, pressed);
        self.settle();
    }
}

#[tokio::test(start_paused = true)]
async fn publishers_of_a_namespace_wait_for_its_subscriptions_at_other_nodes_and_others_do_not() {
    let mut pair = Pair::new();
    let _queue = pair.pressed();
    let _others = subscribe(&mut pair.destination, (1, "others", ""), None);
    pair.tell("app", true);
    pair.tell("nobody's", true);
    assert_eq!(pair.publish_in("app", "news", 1).holding.pressed_at, [DESTINATION]);
    // Nobody of another namespace, nor who publishes what does not go there.
    assert!(pair.publish_in("tenant", "news", 1).holding.is_empty());
    assert!(pair.publish_in("app", "unheard", 1).holding.is_empty());
    assert!(!pair.origin.is_pressed(DESTINATION, "nobody's"), "only namespaces that are known are kept");
    pair.tell("app", false);
    assert!(pair.publish_in("app", "news", 1).holding.is_empty());
    // A node that has not said for long that it is over is not believed for ever.
    pair.tell("app", true);
    tokio::time::advance(limits::PRESSURE_LIFE + Duration::from_millis(1)).await;
    assert!(pair.publish_in("app", "news", 1).holding.is_empty());
    pair.tell("app", true);
    pair.cut();
    assert!(!pair.origin.is_pressed(DESTINATION, "app"), "another link begins without");
}

#[tokio::test(start_paused = true)]
async fn a_namespace_is_under_pressure_until_its_subscription_has_room_or_takes_nothing() {
    let mut pair = Pair::new();
    let queue = pair.pressed();
    let mut pressure = Pressure::default();
    let app: Arc<str> = "app".into();
    assert!(pressure.add(&app, queue.clone()));
    assert!(!pressure.add(&app, queue.clone()), "the other side knows");
    assert!(pressure.eased().now_or_never().is_none(), "it has no room yet");
    for _ in 0..MUCH {
        queue.take();
    }
    assert_eq!(pressure.eased().now_or_never(), Some(Some(app.clone())));
    assert_eq!(pressure.eased().now_or_never(), Some(None), "there is none any more");
    let stuck = pair.pressed();
    assert!(pressure.add(&app, stuck));
    let began = Instant::now();
    assert_eq!(pressure.eased().await, Some(app));
    assert_eq!(began.elapsed().as_millis(), limits::PRESSURE_LIFE.as_millis());
}

/// A client that takes a message now and then keeps its queue full for ever.
#[tokio::test(start_paused = true)]
async fn a_subscription_that_is_slow_for_ever_takes_a_quarter_of_a_publishers_time() {
    let mut pair = Pair::new();
    let queue = pair.pressed();
    let (mut patience, began, mut waited) = (Patience::new(), Instant::now(), Duration::ZERO);
    while began.elapsed() < Duration::from_secs(20) {
        // It takes one message, and is not stalled any more.
        queue.take();
        pair.publish_in("app", "news", limits::MESSAGE_BYTES_MAX);
        pair.settle();
        let waits = Instant::now();
        patience.give(queue.room()).await;
        waited += waits.elapsed();
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    let share = waited.as_secs_f64() / began.elapsed().as_secs_f64();
    assert!((0.15..0.3).contains(&share), "it waited {share} of its time");
}

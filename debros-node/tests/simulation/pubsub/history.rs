//! What clients of pub/sub saw: every message with when it was sent and acknowledged, and what each
//! subscription heard, in its order.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use debros_proto::v1;

use crate::clients::now;
use crate::history::History;

/// The place of a message: its publisher and the publisher's number.
pub(crate) type Number = (u64, u64);

/// A process that took messages in: node and incarnation.
pub(crate) type Origin = (u64, u64);

/// When a message was acknowledged, and by which origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    pub(crate) at: Duration,
    pub(crate) by: Origin,
}

/// A message that was published.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub(crate) namespace: String,
    pub(crate) topic: String,
    pub(crate) mode: v1::PublishMode,
    /// When it was sent for the first time.
    pub(crate) sent: Duration,
    pub(crate) acknowledged: Option<Acknowledged>,
    /// How many nodes have it, as far as that was told.
    pub(crate) nodes: Option<u32>,
    /// At the end, when nothing goes wrong any more.
    pub(crate) is_final: bool,
}

/// What a subscription heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Message {
        number: Number,
        origin: Origin,
        /// It was given to another member of the group before.
        rerouted: bool,
        /// As it says itself.
        namespace: String,
        topic: String,
    },
    Lagged(Option<u64>),
    /// Its client asks another session for it.
    Moved,
}

/// A subscription, over all sessions of its client.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subscription {
    pub(crate) namespace: String,
    pub(crate) pattern: String,
    pub(crate) group: String,
    /// Its client takes its time: what it misses is by right, but reported.
    pub(crate) is_slow: bool,
    /// Since when its client knows that it exists.
    pub(crate) begun: Option<Duration>,
    /// When its client ended it.
    pub(crate) ended: Option<Duration>,
    /// The node it was at last.
    pub(crate) node: Option<u64>,
    pub(crate) heard: Vec<(Duration, Heard)>,
}

#[derive(Default)]
struct Recorded {
    published: BTreeMap<Number, Published>,
    subscriptions: Vec<Subscription>,
    wrong: Vec<String>,
}

/// Everything of a run. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Notes {
    recorded: Rc<RefCell<Recorded>>,
    history: History,
}

impl Notes {
    /// Nothing yet.
    pub(crate) fn new(history: History) -> Self {
        Self { recorded: Rc::default(), history }
    }

    /// Something that belongs to the history alone.
    pub(crate) fn note(&self, text: &str) {
        self.history.note(now(), text);
    }

    /// Something that no fault explains.
    pub(crate) fn wrong(&self, text: String) {
        self.note(&text);
        self.recorded.borrow_mut().wrong.push(text);
    }

    /// A message is sent for the first time.
    pub(crate) fn sent(&self, number: Number, published: Published) {
        self.note(&format!("{number:?} {published:?}"));
        self.recorded.borrow_mut().published.insert(number, published);
    }

    /// Messages of a publisher were acknowledged, the last of them at these many nodes each.
    pub(crate) fn acknowledged(&self, publisher: u64, numbers: (u64, u64), by: Acknowledged, nodes: &[u32]) {
        self.note(&format!("{publisher} {numbers:?} {by:?} {nodes:?}"));
        let mut recorded = self.recorded.borrow_mut();
        for number in numbers.0..=numbers.1 {
            let Some(published) = recorded.published.get_mut(&(publisher, number)) else { continue };
            published.acknowledged.get_or_insert(by);
            let at = (numbers.1 - number) as usize;
            let told = nodes.len().checked_sub(at + 1).and_then(|at| nodes.get(at).copied());
            published.nodes = published.nodes.or(told);
        }
    }

    /// A subscription that a client wants from now on; gives its place.
    pub(crate) fn subscribe(&self, subscription: Subscription) -> usize {
        let mut recorded = self.recorded.borrow_mut();
        let place = recorded.subscriptions.len();
        self.history.note(now(), &format!("subscription {place} {subscription:?}"));
        recorded.subscriptions.push(subscription);
        place
    }

    /// It exists at this node; not for the first time when it was resumed.
    pub(crate) fn begun(&self, place: usize, node: u64) {
        self.note(&format!("subscription {place} at {node}"));
        let mut recorded = self.recorded.borrow_mut();
        let subscription = &mut recorded.subscriptions[place];
        subscription.begun.get_or_insert(now());
        subscription.node = Some(node);
    }

    /// Its client does not want it any more.
    pub(crate) fn ended(&self, place: usize) {
        self.note(&format!("subscription {place} ended"));
        self.recorded.borrow_mut().subscriptions[place].ended.get_or_insert(now());
    }

    /// It heard something.
    pub(crate) fn heard(&self, place: usize, heard: Heard) {
        self.note(&format!("subscription {place} {heard:?}"));
        self.recorded.borrow_mut().subscriptions[place].heard.push((now(), heard));
    }

    /// How many messages were published, and how many of them acknowledged.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let recorded = self.recorded.borrow();
        let acknowledged = recorded.published.values().filter(|published| published.acknowledged.is_some());
        (recorded.published.len(), acknowledged.count())
    }

    /// What was published, who subscribed, and what was wrong at once.
    pub(crate) fn all(&self) -> (BTreeMap<Number, Published>, Vec<Subscription>, Vec<String>) {
        let recorded = self.recorded.borrow();
        (recorded.published.clone(), recorded.subscriptions.clone(), recorded.wrong.clone())
    }
}

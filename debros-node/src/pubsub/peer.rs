//! Another node of the cluster, as this one knows it: the link that carries this node's messages there, and
//! what comes from there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use debros_net::PeerId;
use debros_proto::{limits, v1};
use debros_topics::Pattern;
use futures::task::AtomicWaker;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::interest::Interest;
use super::queue::Queue;

/// A reply is of a frame's size at most.
const BOUNCES_PER_REPLY: usize = 1024;

/// What others wait for of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// The version of this node's interest that counts there; 0 for none.
    pub(super) heeds: u64,
    /// It has all of this node's messages up to this sequence that concern it.
    pub(super) received: u64,
    /// Since when it cannot be reached.
    pub(super) lost_since: Option<Instant>,
}

/// Another node.
pub(super) struct Peer {
    pub(super) peer: PeerId,
    pub(super) out: Outbound,
    pub(super) back: Inbound,
}

/// The way there.
pub(super) struct Outbound {
    /// The stream that is open now; 0 for none.
    pub(super) stream: u64,
    /// What came before is for a former incarnation of the other node.
    pub(super) since: u64,
    /// It said where it stands: messages may go.
    pub(super) stands: bool,
    pub(super) said_hello: bool,
    /// Up to here the ring was looked through for it.
    pub(super) cursor: u64,
    /// How many segments of the entry with that sequence, the next one, were sent.
    pub(super) part: (u64, usize),
    /// The offset in the ring that belongs to the cursor.
    pub(super) offset: u64,
    /// What it was told last to have reached.
    pub(super) told: u64,
    /// The version of this node's interest that it was sent.
    pub(super) interest: Option<u64>,
    pub(super) changes: VecDeque<v1::InterestChanges>,
    pub(super) state_due: bool,
    pub(super) said_goodbye: bool,
    /// Messages that left the ring before it had them, by namespace.
    pub(super) lost: BTreeMap<Arc<str>, u64>,
    /// What left the ring after it was sent and before the node said that it has it: the last of each namespace.
    pub(super) unconfirmed: BTreeMap<Arc<str>, u64>,
    pub(super) replays: VecDeque<Replay>,
    /// Publishers do not wait for it until it has caught up.
    pub(super) slow: bool,
    pub(super) waker: Arc<AtomicWaker>,
    pub(super) room: Arc<Notify>,
    /// Namespaces whose subscriptions there have much waiting, and since when it said so.
    pub(super) pressed: BTreeMap<Arc<str>, Instant>,
    /// Some of them have room again.
    pub(super) eased: Arc<Notify>,
    pub(super) progress: watch::Sender<Progress>,
}

/// What the other node asked this one's ring for.
pub(super) struct Replay {
    pub(super) number: u64,
    pub(super) namespace: Arc<str>,
    pub(super) pattern: Pattern,
    /// Sent up to here.
    pub(super) after: u64,
    /// Complete here; known once it has begun.
    pub(super) until: Option<u64>,
}

/// What comes from there.
pub(super) struct Inbound {
    /// The stream that is served now; 0 for none.
    pub(super) stream: u64,
    pub(super) replies: Option<mpsc::Sender<v1::LinkReply>>,
    /// Of the other node's process; 0 for not known yet.
    pub(super) incarnation: u64,
    /// Everything up to here that concerns this node was handed to its subscriptions.
    pub(super) received: u64,
    /// A part of a frame is with the subscriptions, which may have more than `received` says.
    pub(super) is_between_turns: bool,
    /// Its interest, as it was told last.
    pub(super) interest: Interest,
    /// The version of that.
    pub(super) version: u64,
    /// This node's last sequence when it began to heed that version.
    pub(super) heeded_from: u64,
    /// Messages of queue groups that no member here could take, and the other node was not told of yet.
    pub(super) bounced: Vec<v1::Bounced>,
    /// Messages of queue groups behind `received` that were given to members.
    pub(super) given: BTreeSet<(u64, Bytes)>,
    /// This incarnation has not said yet from when on it heeds this node's interest.
    pub(super) is_new: bool,
    /// All of it, as far as it has come.
    pub(super) gathering: Option<Vec<v1::InterestChange>>,
    /// It has stopped in order, with this sequence as its last.
    pub(super) goodbye: Option<u64>,
    /// What is known of the incarnation before.
    pub(super) former: Option<Former>,
    pub(super) lost_since: Option<Instant>,
    /// Its subscribers here were told that it may be gone.
    pub(super) given_up: bool,
    /// What it is asked, or will be when it can be.
    pub(super) asked: BTreeMap<u64, Asked>,
    /// Of these, what was not sent on the stream that is served now, in the order in which it can be asked.
    pub(super) unsent: VecDeque<u64>,
    /// Subscriptions that returned before it knew of them.
    pub(super) unaware: Vec<Unaware>,
}

/// What remains of an incarnation of another node that is gone.
pub(super) struct Former {
    pub(super) incarnation: u64,
    pub(super) publishes: BTreeSet<Arc<str>>,
    pub(super) goodbye: Option<u64>,
}

/// A question to the other node's ring.
pub(super) struct Asked {
    pub(super) queue: Weak<Queue>,
    pub(super) namespace: Arc<str>,
    pub(super) pattern: Pattern,
    /// Of the other node, when this is about a certain one; 0 for whichever it has.
    pub(super) incarnation: u64,
    /// Everything up to here is known.
    pub(super) after: u64,
    /// The other node must heed this version first.
    pub(super) heeds: u64,
}

/// A subscription that the other node did not know of when it returned. The subscription counts these itself.
pub(super) struct Unaware {
    queue: Weak<Queue>,
    pub(super) heeds: u64,
    /// Where the other node stood then, as far as was known.
    pub(super) incarnation: u64,
    pub(super) received: u64,
}

impl Unaware {
    /// The other node does not heed this version, which has the subscription.
    pub(super) fn new(queue: &Arc<Queue>, heeds: u64, back: &Inbound) -> Self {
        queue.add_unaware();
        let (incarnation, received) = (back.incarnation, back.received);
        Self { queue: Arc::downgrade(queue), heeds, incarnation, received }
    }

    /// The subscription, if it has not ended.
    pub(super) fn queue(&self) -> Option<Arc<Queue>> {
        self.queue.upgrade()
    }
}

impl Drop for Unaware {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.upgrade() {
            queue.remove_unaware();
        }
    }
}

impl Peer {
    /// Whether it has been out of reach for so long that nobody counts on it.
    pub(super) fn is_lost(&self) -> bool {
        let lost_since = self.out.progress.borrow().lost_since;
        lost_since.is_some_and(|since| since.elapsed() > limits::RECEIVE_PATIENCE)
    }

    /// A node of which nothing is known but who it is.
    pub(super) fn new(peer: PeerId) -> Self {
        let progress = Progress { lost_since: Some(Instant::now()), ..Default::default() };
        Self {
            peer,
            out: Outbound {
                stream: 0,
                since: 0,
                stands: false,
                said_hello: false,
                cursor: 0,
                part: (0, 0),
                offset: 0,
                told: 0,
                interest: None,
                changes: VecDeque::new(),
                state_due: false,
                said_goodbye: false,
                lost: BTreeMap::new(),
                unconfirmed: BTreeMap::new(),
                replays: VecDeque::new(),
                slow: false,
                waker: Arc::default(),
                room: Arc::default(),
                pressed: BTreeMap::new(),
                eased: Arc::default(),
                progress: watch::Sender::new(progress),
            },
            back: Inbound {
                stream: 0,
                replies: None,
                incarnation: 0,
                received: 0,
                is_between_turns: false,
                interest: Interest::default(),
                version: 0,
                heeded_from: 0,
                bounced: Vec::new(),
                given: BTreeSet::new(),
                is_new: false,
                gathering: None,
                goodbye: None,
                former: None,
                lost_since: Some(Instant::now()),
                given_up: false,
                asked: BTreeMap::new(),
                unsent: VecDeque::new(),
                unaware: Vec::new(),
            },
        }
    }
}

impl Inbound {
    /// Whether an incarnation that is gone, or may be, may have published something in a namespace behind a
    /// sequence.
    pub(super) fn may_have_lost(&self, namespace: &str, incarnation: u64, after: u64) -> bool {
        let may = |publishes: &BTreeSet<Arc<str>>, goodbye: Option<u64>| {
            publishes.contains(namespace) && goodbye.is_none_or(|last| after < last)
        };
        if incarnation == self.incarnation {
            return may(&self.interest.publishes, self.goodbye);
        }
        let former = self.former.as_ref().filter(|former| former.incarnation == incarnation);
        former.is_none_or(|former| may(&former.publishes, former.goodbye))
    }

    /// Nothing that it is to be asked is on its way.
    pub(super) fn ask_again(&mut self) {
        self.unsent = self.asked.keys().copied().collect();
    }

    /// Forgets subscriptions that have ended.
    pub(super) fn forget_ended(&mut self) {
        self.asked.retain(|_, asked| asked.queue.strong_count() > 0);
        self.unaware.retain(|unaware| unaware.queue.strong_count() > 0);
    }

    /// Whether subscriptions stand at different places: it was asked for messages that have not come, or a frame was
    /// taken in as a part.
    pub(super) fn stands_apart(&self) -> bool {
        self.is_between_turns || self.asked.values().any(|asked| asked.queue.strong_count() > 0)
    }

    /// Answers the stream that is served. Of a reply that finds no room the next heartbeat's says the same
    /// ([`Self::standing`]), or it is kept ([`Self::bounce`], [`Peer::ask`]); a stream whose other side takes none at
    /// all is ended by its keep-alive.
    pub(super) fn reply(&self, reply: v1::LinkReply) -> bool {
        let reply = v1::LinkReply { stream: self.stream, ..reply };
        self.replies.as_ref().is_some_and(|replies| replies.try_send(reply).is_ok())
    }

    /// How far this node is with what the other one has sent.
    pub(super) fn standing(&self) -> v1::LinkReply {
        v1::LinkReply {
            received: self.received,
            interest_version: self.version,
            heeded_from: self.heeded_from,
            ..Default::default()
        }
    }

    /// Tells the other node what no member here could take.
    pub(super) fn bounce(&mut self) {
        let mut rest = std::mem::take(&mut self.bounced);
        while !rest.is_empty() {
            let bounced: Vec<_> = rest.drain(..rest.len().min(BOUNCES_PER_REPLY)).collect();
            if !self.reply(v1::LinkReply { bounced: bounced.clone(), ..Default::default() }) {
                self.bounced = [bounced, rest].concat();
                return;
            }
        }
    }
}

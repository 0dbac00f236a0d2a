//! One namespace on this node: who is interested in what, here and elsewhere, and what each publisher has
//! published. Namespaces share nothing: a message finds its receivers in its own space alone.
//!
//! Invariant: a kept route is what the tries give; every change of interest drops them all.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use debros_proto::coverage::Coverage;
use debros_proto::packed::{Damaged, MessageRef, RunHead};
use debros_proto::{Failure, NodeId, limits};
use debros_topics::{Topic, TopicTrie};
use tokio::time::Instant;

use super::queue::Queue;

/// Receivers in kept routes: a topic of ten thousand subscriptions is not kept sixteen thousand times.
const ROUTE_RECEIVERS_MAX: usize = 1 << 20;

/// A subscription of this node.
pub(super) struct Local {
    pub(super) queue: Arc<Queue>,
    pub(super) group: Option<Arc<str>>,
}

/// What another node is interested in.
pub(super) struct Remote {
    pub(super) node: NodeId,
    pub(super) group: Option<Arc<str>>,
    pub(super) members: u32,
}

/// Who gets the messages of a topic.
#[derive(Default)]
pub(super) struct Route {
    pub(super) local: Vec<Arc<Queue>>,
    pub(super) nodes: Arc<[NodeId]>,
    pub(super) groups: Vec<Group>,
}

/// The members of a queue group that match a topic.
pub(super) struct Group {
    pub(super) name: Arc<str>,
    pub(super) local: Vec<Arc<Queue>>,
    pub(super) remote: Vec<(NodeId, u32)>,
}

/// The member that gets a message.
pub(super) enum Chosen<'r> {
    Local(&'r Arc<Queue>),
    Remote(NodeId),
}

impl Group {
    /// The same among the members of this node.
    pub(super) fn choose_here(&self) -> Option<Chosen<'_>> {
        let count = self.local.len();
        (count > 0).then(|| Chosen::Local(&self.local[rand::random_range(0..count)]))
    }

    /// Every member has the same chance, wherever it is; those at nodes that are away only when there are no others.
    pub(super) fn choose(&self, without: Option<NodeId>, away: &BTreeSet<NodeId>) -> Option<Chosen<'_>> {
        let candidate = |node: &NodeId| Some(*node) != without;
        let near = self.choose_among(|node| candidate(node) && !away.contains(node));
        near.or_else(|| self.choose_among(candidate))
    }

    fn choose_among(&self, is_candidate: impl Fn(&NodeId) -> bool) -> Option<Chosen<'_>> {
        let remote = self.remote.iter().filter(|(node, _)| is_candidate(node));
        let total = self.local.len() + remote.clone().map(|(_, members)| *members as usize).sum::<usize>();
        if total == 0 {
            return None;
        }
        let mut chosen = rand::random_range(0..total);
        if let Some(queue) = self.local.get(chosen) {
            return Some(Chosen::Local(queue));
        }
        chosen -= self.local.len();
        for (node, members) in remote {
            match chosen.checked_sub(*members as usize) {
                Some(rest) => chosen = rest,
                None => return Some(Chosen::Remote(*node)),
            }
        }
        None
    }
}

impl Route {
    /// Whether messages of both go the same way, one after the other.
    fn is_same(self: &Arc<Self>, other: &Arc<Self>) -> bool {
        let equal = || {
            let plain = self.groups.is_empty() && other.groups.is_empty() && self.nodes == other.nodes;
            plain
                && self.local.len() == other.local.len()
                && self.local.iter().zip(&other.local).all(|(one, other)| Arc::ptr_eq(one, other))
        };
        Arc::ptr_eq(self, other) || equal()
    }
}

/// Consecutive messages that go the same way.
#[derive(Clone)]
pub(super) struct Piece {
    /// Where they are.
    pub(super) at: Range<usize>,
    /// The first one's place in the batch.
    pub(super) index: u32,
    /// How many.
    pub(super) count: u32,
    pub(super) route: Arc<Route>,
}

/// A batch, by where its messages go.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) pieces: Vec<Piece>,
    pub(super) count: u32,
}

impl Plan {
    /// The part of messages `range`, by their places in the batch.
    pub(super) fn part(&self, messages: &[u8], range: Range<u32>) -> Result<Vec<Piece>, Damaged> {
        let mut parts = Vec::new();
        for piece in &self.pieces {
            let (mut index, mut at) = (piece.index, piece.at.start);
            let mut part = Piece { at: 0..0, index: 0, count: 0, route: piece.route.clone() };
            while index < piece.index + piece.count && index < range.end {
                let length = MessageRef::first(&messages[at..])?.encoded_len;
                if index >= range.start {
                    if part.count == 0 {
                        (part.index, part.at.start) = (index, at);
                    }
                    part.count += 1;
                    part.at.end = at + length;
                }
                (index, at) = (index + 1, at + length);
            }
            if part.count > 0 {
                parts.push(part);
            }
        }
        Ok(parts)
    }
}

/// What a node knows of a publisher.
pub(super) struct Publisher {
    /// The last of its numbers that this node took in as the origin.
    pub(super) accepted: u64,
    /// What the subscriptions here were told of.
    pub(super) coverage: Coverage,
    pub(super) used: Instant,
}

/// The state of one namespace.
pub(super) struct Space {
    pub(super) name: Arc<str>,
    pub(super) local: TopicTrie<Local>,
    pub(super) remote: TopicTrie<Remote>,
    routes: HashMap<Box<[u8]>, Arc<Route>>,
    /// Receivers in all kept routes.
    receivers: usize,
    pub(super) publishers: HashMap<u64, Publisher>,
    pub(super) sessions: usize,
    /// The others know that clients of this node publish here.
    pub(super) announced: bool,
    /// The last sequence that left the ring.
    pub(super) forgotten: u64,
    /// The last sequence that was given to a message of it.
    pub(super) last: u64,
}

impl Space {
    /// Nothing is known of it. Of messages up to `forgotten` the ring may have held some.
    pub(super) fn new(name: Arc<str>, forgotten: u64) -> Self {
        Self {
            name,
            local: TopicTrie::new(),
            remote: TopicTrie::new(),
            routes: HashMap::new(),
            receivers: 0,
            publishers: HashMap::new(),
            sessions: 0,
            announced: false,
            forgotten,
            last: forgotten,
        }
    }

    /// Interest has changed.
    pub(super) fn forget_routes(&mut self) {
        self.routes.clear();
        self.receivers = 0;
    }

    /// What is known of a publisher; something from now on.
    pub(super) fn publisher(&mut self, publisher: u64) -> &mut Publisher {
        let now = Instant::now();
        if self.publishers.len() >= limits::PUBLISHERS_MAX && !self.publishers.contains_key(&publisher) {
            self.forget_publishers(now, limits::PUBLISHER_LIFE / 10);
        }
        let known = self.publishers.entry(publisher).or_insert_with(|| Publisher {
            accepted: 0,
            coverage: Coverage::new(),
            used: now,
        });
        known.used = now;
        known
    }

    /// Drops what was not used for so long.
    pub(super) fn forget_publishers(&mut self, now: Instant, life: Duration) {
        self.publishers.retain(|_, publisher| now.duration_since(publisher.used) < life);
    }

    /// Whether nothing needs to be known of it.
    pub(super) fn is_unused(&self) -> bool {
        self.local.is_empty()
            && self.remote.is_empty()
            && self.publishers.is_empty()
            && self.sessions == 0
            && !self.announced
            && self.last <= self.forgotten
    }

    /// Finds where every message goes.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` or `LIMIT_EXCEEDED`, by the message at fault.
    pub(super) fn plan(&mut self, messages: &Bytes) -> Result<Plan, Failure> {
        let mut plan = Plan::default();
        let (mut at, mut topic): (usize, &[u8]) = (0, b"");
        while at < messages.len() {
            let message =
                MessageRef::first(&messages[at..]).map_err(|error| Failure::invalid(error.to_string()))?;
            check(&message)?;
            let end = at + message.encoded_len;
            let index = plan.count;
            plan.count += 1;
            let same = plan.pieces.last_mut().filter(|_| message.topic == topic);
            if let Some(piece) = same {
                (piece.at.end, piece.count) = (end, piece.count + 1);
            } else {
                let route = self.route(message.topic)?;
                match plan.pieces.last_mut() {
                    Some(piece) if piece.route.is_same(&route) => {
                        (piece.at.end, piece.count) = (end, piece.count + 1);
                    }
                    _ => plan.pieces.push(Piece { at: at..end, index, count: 1, route }),
                }
                topic = message.topic;
            }
            at = end;
        }
        Ok(plan)
    }

    /// Who gets the messages of a topic.
    pub(super) fn route(&mut self, topic: &[u8]) -> Result<Arc<Route>, Failure> {
        if let Some(route) = self.routes.get(topic) {
            return Ok(route.clone());
        }
        let checked = Topic::try_from(topic).map_err(|error| Failure::invalid(error.to_string()))?;
        let route = Arc::new(self.find(checked.as_str()));
        self.receivers += route.local.len() + route.nodes.len();
        if self.routes.len() >= limits::ROUTES_KEPT_MAX || self.receivers > ROUTE_RECEIVERS_MAX {
            self.forget_routes();
        }
        self.routes.insert(topic.into(), route.clone());
        Ok(route)
    }

    fn find(&self, topic: &str) -> Route {
        let (mut local, mut nodes): (Vec<Arc<Queue>>, Vec<NodeId>) = (Vec::new(), Vec::new());
        let mut groups: Vec<Group> = Vec::new();
        let place = |groups: &mut Vec<Group>, name: &Arc<str>| {
            groups.iter().position(|group| group.name == *name).unwrap_or_else(|| {
                groups.push(Group { name: name.clone(), local: Vec::new(), remote: Vec::new() });
                groups.len() - 1
            })
        };
        self.local.for_each_match(topic, |found| match &found.group {
            None => local.push(found.queue.clone()),
            Some(name) => {
                let at = place(&mut groups, name);
                groups[at].local.push(found.queue.clone());
            }
        });
        self.remote.for_each_match(topic, |found| match &found.group {
            None => nodes.push(found.node),
            Some(name) => {
                let at = place(&mut groups, name);
                groups[at].remote.push((found.node, found.members));
            }
        });
        nodes.sort_unstable();
        nodes.dedup();
        Route { local, nodes: nodes.into(), groups }
    }
}

fn check(message: &MessageRef<'_>) -> Result<(), Failure> {
    let MessageRef { reply, headers, payload, .. } = message;
    if payload.len() > limits::MESSAGE_BYTES_MAX {
        return Err(Failure::limit("MESSAGE_BYTES_MAX", limits::MESSAGE_BYTES_MAX, payload.len()));
    }
    if headers.len() > limits::MESSAGE_HEADERS_BYTES_MAX {
        let max = limits::MESSAGE_HEADERS_BYTES_MAX;
        return Err(Failure::limit("MESSAGE_HEADERS_BYTES_MAX", max, headers.len()));
    }
    if !reply.is_empty() {
        let reply = std::str::from_utf8(reply);
        let checked =
            reply.map_err(|_| debros_topics::InvalidTopic::NotText).and_then(debros_topics::check_topic);
        checked.map_err(|error| Failure::invalid(format!("the reply topic: {error}")))?;
    }
    Ok(())
}

/// The part of a run from its message at `index`.
pub(super) fn head_of(head: &RunHead, index: u32, count: u32) -> RunHead {
    let skipped = u64::from(index);
    RunHead { count, sequence: head.sequence + skipped, first: head.first + skipped, ..*head }
}

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
use debros_topics::{InvalidTopic, Topic, TopicTrie};
use tokio::time::Instant;

use super::queue::Queue;

/// Receivers in kept routes: a topic of ten thousand subscriptions is not kept sixteen thousand times.
const ROUTE_RECEIVERS_MAX: usize = 1 << 20;
/// So many levels of patterns are looked at in the time of one delivery.
const LEVELS_PER_DELIVERY: usize = 4;
/// So many receivers are found, or compared, in the time of one delivery.
const FOUND_PER_DELIVERY: usize = 32;

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

/// A batch, by where its messages go; or as much of it as one turn is long enough for.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) pieces: Vec<Piece>,
    pub(super) count: u32,
    /// The bytes of these messages.
    pub(super) bytes: usize,
    /// What it costs to find the receivers and to deliver, in deliveries.
    pub(super) work: usize,
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
    /// The one that was found last: topics that the same patterns match share it.
    found: Option<Arc<Route>>,
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
            found: None,
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
        (self.receivers, self.found) = (0, None);
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

    /// Finds where messages go: all of them, or the first ones up to so much work.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` or `LIMIT_EXCEEDED`, by the message at fault.
    pub(super) fn plan(&mut self, messages: &Bytes, work_max: usize) -> Result<Plan, Failure> {
        let mut plan = Plan::default();
        let mut topic: &[u8] = b"";
        while plan.bytes < messages.len() && (plan.work < work_max || plan.count == 0) {
            let at = plan.bytes;
            let message =
                MessageRef::first(&messages[at..]).map_err(|error| Failure::invalid(error.to_string()))?;
            check(&message)?;
            let end = at + message.encoded_len;
            let index = plan.count;
            plan.count += 1;
            let same = plan.pieces.last_mut().filter(|_| message.topic == topic);
            if let Some(piece) = same {
                (piece.at.end, piece.count) = (end, piece.count + 1);
                plan.work += piece.route.groups.len();
            } else {
                let (route, found) = self.route(message.topic)?;
                plan.work += found + route.groups.len();
                match plan.pieces.last_mut() {
                    Some(piece) if Arc::ptr_eq(&piece.route, &route) => {
                        (piece.at.end, piece.count) = (end, piece.count + 1);
                    }
                    Some(piece) if piece.route.is_same(&route) => {
                        (piece.at.end, piece.count) = (end, piece.count + 1);
                        plan.work += route.local.len() / FOUND_PER_DELIVERY;
                    }
                    _ => {
                        plan.work += route.local.len() + route.nodes.len();
                        plan.pieces.push(Piece { at: at..end, index, count: 1, route });
                    }
                }
                topic = message.topic;
            }
            plan.bytes = end;
        }
        Ok(plan)
    }

    /// Who gets the messages of a topic, and what it cost to find out, in deliveries.
    fn route(&mut self, topic: &[u8]) -> Result<(Arc<Route>, usize), Failure> {
        if let Some(route) = self.routes.get(topic) {
            return Ok((route.clone(), 0));
        }
        let checked = Topic::try_from(topic).map_err(|error| Failure::invalid(error.to_string()))?;
        let found = self.find(checked.as_str());
        let receivers = found.receivers();
        let work = found.levels / LEVELS_PER_DELIVERY + receivers / FOUND_PER_DELIVERY;
        let route = match self.found.as_ref().filter(|route| found.is(route)) {
            Some(route) => route.clone(),
            None => {
                let route = Arc::new(found.into_route());
                self.receivers += receivers;
                route
            }
        };
        if self.routes.len() >= limits::ROUTES_KEPT_MAX || self.receivers > ROUTE_RECEIVERS_MAX {
            self.forget_routes();
        }
        self.found = Some(route.clone());
        self.routes.insert(topic.into(), route.clone());
        Ok((route, work))
    }

    fn find<'s>(&'s self, topic: &str) -> Found<'s> {
        let mut found = Found::default();
        let mut places: HashMap<&str, usize> = HashMap::new();
        let mut place = |groups: &mut Vec<Group>, name: &'s Arc<str>| {
            *places.entry(name).or_insert_with(|| {
                groups.push(Group { name: Arc::clone(name), local: Vec::new(), remote: Vec::new() });
                groups.len() - 1
            })
        };
        let Found { local, nodes, groups, levels } = &mut found;
        *levels += self.local.for_each_match(topic, |found| match &found.group {
            None => local.push(&found.queue),
            Some(name) => {
                let at = place(groups, name);
                groups[at].local.push(found.queue.clone());
            }
        });
        *levels += self.remote.for_each_match(topic, |found| match &found.group {
            None => nodes.push(found.node),
            Some(name) => {
                let at = place(groups, name);
                groups[at].remote.push((found.node, found.members));
            }
        });
        nodes.sort_unstable();
        nodes.dedup();
        found
    }
}

/// What the tries give for a topic.
#[derive(Default)]
struct Found<'s> {
    local: Vec<&'s Arc<Queue>>,
    nodes: Vec<NodeId>,
    groups: Vec<Group>,
    /// Looked at for it.
    levels: usize,
}

impl Found<'_> {
    /// How many places messages go to, or are chosen from.
    fn receivers(&self) -> usize {
        let groups: usize = self.groups.iter().map(|group| group.local.len() + group.remote.len()).sum();
        self.local.len() + self.nodes.len() + groups
    }

    /// Whether it is this route. Queue groups are not compared.
    fn is(&self, route: &Route) -> bool {
        let plain = self.groups.is_empty() && route.groups.is_empty();
        plain
            && *self.nodes == *route.nodes
            && self.local.len() == route.local.len()
            && self.local.iter().zip(&route.local).all(|(one, other)| Arc::ptr_eq(one, other))
    }

    fn into_route(self) -> Route {
        let Self { local, nodes, groups, levels: _ } = self;
        Route { local: local.into_iter().cloned().collect(), nodes: nodes.into(), groups }
    }
}

/// Checks messages that are not routed yet. Gives how many there are.
///
/// # Errors
/// As [`Space::plan`].
pub(super) fn check_all(messages: &[u8]) -> Result<u32, Failure> {
    let (mut at, mut count) = (0, 0);
    while at < messages.len() {
        let message =
            MessageRef::first(&messages[at..]).map_err(|error| Failure::invalid(error.to_string()))?;
        check(&message)?;
        let topic = std::str::from_utf8(message.topic).map_err(|_| InvalidTopic::NotText);
        let checked = topic.and_then(debros_topics::check_topic);
        checked.map_err(|error| Failure::invalid(error.to_string()))?;
        (at, count) = (at + message.encoded_len, count + 1);
    }
    Ok(count)
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
        let checked = reply.map_err(|_| InvalidTopic::NotText).and_then(debros_topics::check_topic);
        checked.map_err(|error| Failure::invalid(format!("the reply topic: {error}")))?;
    }
    Ok(())
}

/// The part of a run from its message at `index`.
pub(super) fn head_of(head: &RunHead, index: u32, count: u32) -> RunHead {
    let skipped = u64::from(index);
    RunHead { count, sequence: head.sequence + skipped, first: head.first + skipped, ..*head }
}

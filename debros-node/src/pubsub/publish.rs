//! Taking in a batch as its origin: where each message goes, this node's own subscriptions, the ring.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use debros_proto::coverage::{Told, Verdict};
use debros_proto::packed::{MessageRef, RunHead};
use debros_proto::{Failure, NodeId, limits, v1};
use tokio::time::Instant;

use super::queue::{Queue, part_of};
use super::ring::{Batch, Nodes, Segment};
use super::router::Router;
use super::space::{Chosen, Piece, Plan, check_all, head_of};
use super::traces::Routing;

/// A batch of a session.
pub(super) struct Incoming {
    pub(super) namespace: Arc<str>,
    pub(super) publisher: u64,
    /// From this number on the publisher has sent everything through this session.
    pub(super) base: u64,
    pub(super) batch: v1::Publish,
}

/// What became of it.
#[derive(Default)]
pub(super) struct Taken {
    /// The publisher's number of its last message.
    pub(super) last: u64,
    /// This node's sequence of its last message; 0 when all was known.
    pub(super) sequence: u64,
    /// Where its messages go, for those that asked.
    pub(super) goes: Vec<Goes>,
    /// What the publisher gives a moment before it goes on.
    pub(super) holding: Holding,
    /// What was too much for one turn: a batch that is taken in next.
    pub(super) rest: Option<v1::Publish>,
}

/// What holds a publisher back.
#[derive(Default)]
pub(super) struct Holding {
    /// Subscriptions here that have much waiting.
    pub(super) pressed: Vec<Arc<Queue>>,
    /// Nodes where subscriptions of its namespace have much waiting.
    pub(super) pressed_at: Vec<NodeId>,
    /// Nodes that are far behind.
    pub(super) behind: Vec<NodeId>,
}

impl Holding {
    /// Nothing does.
    pub(super) fn is_empty(&self) -> bool {
        self.pressed.is_empty() && self.pressed_at.is_empty() && self.behind.is_empty()
    }
}

/// The receivers of consecutive messages.
pub(super) struct Goes {
    pub(super) count: u32,
    /// This node is among them.
    pub(super) here: bool,
    pub(super) nodes: Vec<NodeId>,
}

impl Router {
    /// Takes in a batch, or as much of it as one turn is long enough for.
    ///
    /// # Errors
    /// It is refused as a whole: what follows in later turns is sound.
    pub(super) fn publish(&mut self, incoming: Incoming) -> Result<Taken, Failure> {
        let Incoming { namespace, publisher, base, batch } = incoming;
        let v1::Publish { mut first, mode, again, mut messages } = batch;
        let routing = Routing::begin(&self.tracer);
        let mode = v1::PublishMode::try_from(mode)
            .map_err(|_| Failure::invalid(format!("{mode} is no mode of publishing")))?;
        if messages.len() > limits::PUBLISH_BYTES_MAX {
            return Err(Failure::limit("PUBLISH_BYTES_MAX", limits::PUBLISH_BYTES_MAX, messages.len()));
        }
        let (node, incarnation, sequence) = (self.node.0, self.incarnation, self.ring.last() + 1);
        let space = self.space(&namespace);
        let mut plan = space.plan(&messages, limits::ROUTING_TURN_DELIVERIES)?;
        check(&plan, first, &messages)?;
        let last = first + u64::from(plan.count) - 1;
        let rest = (plan.bytes < messages.len()).then(|| {
            let messages = messages.split_off(plan.bytes);
            v1::Publish { first: last + 1, mode: mode.into(), again, messages }
        });
        let known = space.publisher(publisher).accepted;
        if known >= first {
            let repeated = (known - first + 1).min(u64::from(plan.count)) as u32;
            self.metrics.repeated(repeated.into());
            if known >= last {
                return Ok(Taken { rest, ..self.taken_before(&namespace, last, mode) });
            }
            let rest = plan.part(&messages, repeated..plan.count).map_err(damaged)?;
            messages = messages.slice(rest[0].at.start..);
            first = known + 1;
            plan = self.space(&namespace).plan(&messages, usize::MAX)?;
        }
        let space = self.space(&namespace);
        let from = space.publisher(publisher);
        from.accepted = last;
        let told = from.coverage.tell(base, first, last);
        space.last = sequence + u64::from(plan.count) - 1;
        let count = plan.count;
        let head =
            RunHead { count, origin: node, incarnation, sequence, publisher, base, first, rerouted: false };
        let mut taken = Taken { last, sequence: space.last, rest, ..Default::default() };
        tell_here(&told, &plan, &head, &messages, &mut taken.holding.pressed, routing.as_ref())
            .map_err(damaged)?;
        // What was sent before may have reached a member through another node.
        let away = (!again).then_some(&self.away);
        let segments =
            segments(&plan, &head, &messages, away, &mut taken.holding.pressed).map_err(damaged)?;
        if mode != v1::PublishMode::Accepted {
            taken.goes = goes(&plan, &segments, !again);
        }
        if mode == v1::PublishMode::Routed {
            let counts = |node: &NodeId| self.peers.get(node).is_some_and(|peer| !peer.is_lost());
            taken.goes.iter_mut().for_each(|goes| goes.nodes.retain(counts));
        }
        if let Some(routing) = routing {
            routing.taken_in(&plan.pieces, &messages);
        }
        let nodes = destinations(&segments);
        let confirm = mode == v1::PublishMode::Received;
        taken.holding.pressed_at =
            nodes.iter().copied().filter(|node| self.is_pressed(*node, &namespace)).collect();
        self.ring.add(Batch { head, namespace, messages, segments, confirm, hidden: false });
        self.trim(Instant::now());
        self.wake(&nodes);
        taken.holding.behind = nodes.into_iter().filter(|node| self.is_behind(*node)).collect();
        self.metrics.published(count.into());
        Ok(taken)
    }

    /// A batch that was taken in before. Who waits for it waits for all that was taken in since.
    fn taken_before(&self, namespace: &str, last: u64, mode: v1::PublishMode) -> Taken {
        let mut taken = Taken { last, ..Default::default() };
        if mode == v1::PublishMode::Received {
            let concerned = self.peers.iter().filter(|(_, peer)| peer.back.interest.is_in(namespace));
            let nodes = concerned.map(|(node, _)| *node).collect();
            taken.sequence = self.ring.last();
            taken.goes.push(Goes { count: 0, here: false, nodes });
        }
        taken
    }

    /// Wakes the links to these nodes.
    fn wake(&self, nodes: &[NodeId]) {
        nodes.iter().filter_map(|node| self.peers.get(node)).for_each(|peer| peer.out.waker.wake());
    }

    /// Whether subscriptions of a namespace at a node have much waiting, as far as it has said lately.
    pub(super) fn is_pressed(&self, node: NodeId, namespace: &str) -> bool {
        let since = self.peers.get(&node).and_then(|peer| peer.out.pressed.get(namespace));
        since.is_some_and(|since| since.elapsed() <= limits::PRESSURE_LIFE)
    }

    /// Whether publishers should wait for a node.
    pub(super) fn is_behind(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| {
            let backlog = self.ring.offset().saturating_sub(peer.out.offset);
            peer.out.stands && !peer.out.slow && backlog > limits::LINK_BACKLOG_BYTES
        })
    }

    /// Drops what is past the ring's bounds, and notes who has missed it.
    pub(super) fn trim(&mut self, now: Instant) {
        while let Some(entry) = self.ring.drop_oldest(now) {
            self.forgotten = entry.last();
            if let Some(space) = self.spaces.get_mut(&entry.namespace) {
                space.forgotten = entry.last();
            }
            for (node, peer) in &mut self.peers {
                let missed = peer.out.misses(*node, &entry);
                self.metrics.lost(missed);
            }
        }
    }

    /// Gives a message of a queue group to another member than those of the node that had none.
    pub(super) fn reroute(&mut self, node: NodeId, bounced: &v1::Bounced) {
        let Some(entry) = self.ring.entry_of(bounced.sequence) else { return };
        let index = (bounced.sequence - entry.head.sequence) as u32;
        let is_it = |segment: &&Segment| {
            segment.index == index
                && matches!(&segment.to_nodes, Nodes::One(one, group) if *one == node && **group == bounced.group)
        };
        let Some(segment) = entry.segments.iter().find(is_it) else { return };
        let (namespace, message) = (entry.namespace.clone(), entry.messages.slice(segment.from..segment.to));
        let head = RunHead { rerouted: true, ..head_of(&entry.head, index, 1) };
        let Some(space) = self.spaces.get_mut(&namespace) else { return };
        let Ok(plan) = space.plan(&message, usize::MAX) else { return };
        let groups = plan.pieces.first().into_iter().flat_map(|piece| &piece.route.groups);
        let Some(group) = groups.into_iter().find(|group| *group.name == bounced.group) else { return };
        self.metrics.bounced();
        match group.choose(Some(node), &self.away) {
            None => {}
            Some(Chosen::Local(queue)) => drop(queue.push(&head, &message)),
            Some(Chosen::Remote(node)) => {
                let to_nodes = Nodes::One(node, group.name.clone());
                let segment = Segment { from: 0, to: message.len(), index: 0, count: 1, to_nodes };
                let head = RunHead { sequence: self.ring.last() + 1, ..head };
                let segments = vec![segment];
                let batch =
                    Batch { head, namespace, messages: message, segments, confirm: false, hidden: true };
                self.ring.add(batch);
                self.wake(&[node]);
            }
        }
    }
}

fn damaged(error: debros_proto::packed::Damaged) -> Failure {
    Failure::invalid(error.to_string())
}

/// Whether a batch can be taken in of which this is the plan, or the plan of its beginning.
fn check(plan: &Plan, first: u64, messages: &Bytes) -> Result<(), Failure> {
    let count = plan.count + check_all(&messages[plan.bytes..])?;
    if count == 0 {
        return Err(Failure::invalid("a batch has at least one message"));
    }
    if count as usize > limits::PUBLISH_MESSAGES_MAX {
        return Err(Failure::limit("PUBLISH_MESSAGES_MAX", limits::PUBLISH_MESSAGES_MAX, count));
    }
    if first == 0 || first.checked_add(count.into()).is_none() {
        return Err(Failure::invalid("a publisher's numbers begin at 1 and end before 2^64"));
    }
    Ok(())
}

/// Hands a run to this node's subscriptions of their own, as far as it is news to them.
pub(super) fn tell_here(
    told: &Told,
    plan: &Plan,
    head: &RunHead,
    messages: &Bytes,
    pressed: &mut Vec<Arc<Queue>>,
    routing: Option<&Routing>,
) -> Result<(), debros_proto::packed::Damaged> {
    for part in told.parts() {
        let range = (part.first - head.first) as u32..(part.last - head.first + 1) as u32;
        let clipped;
        let pieces: &[Piece] = if range == (0..plan.count) {
            &plan.pieces
        } else {
            clipped = plan.part(messages, range)?;
            &clipped
        };
        match part.verdict {
            Verdict::New => {
                deliver(pieces, head, messages, pressed);
                if let Some(routing) = routing {
                    routing.delivered(pieces, messages);
                }
            }
            Verdict::Late => {
                for piece in pieces {
                    piece.route.local.iter().for_each(|queue| queue.lag(Some(piece.count.into())));
                }
            }
            Verdict::Repeated => deliver_to_resuming(pieces, head, messages),
        }
    }
    Ok(())
}

fn deliver(pieces: &[Piece], head: &RunHead, messages: &Bytes, pressed: &mut Vec<Arc<Queue>>) {
    for piece in pieces.iter().filter(|piece| !piece.route.local.is_empty()) {
        let head = head_of(head, piece.index, piece.count);
        let slice = part_of(messages.len(), messages.slice(piece.at.clone()));
        for queue in &piece.route.local {
            if queue.push(&head, &slice) && !pressed.iter().any(|known| Arc::ptr_eq(known, queue)) {
                pressed.push(queue.clone());
            }
        }
    }
}

/// This node has had the messages, but a subscription that has just come has not, while the origin that brought them
/// has not answered what it asked. Its client knows what it had.
fn deliver_to_resuming(pieces: &[Piece], head: &RunHead, messages: &Bytes) {
    for piece in pieces {
        for queue in piece.route.local.iter().filter(|queue| queue.is_resuming()) {
            let slice = part_of(messages.len(), messages.slice(piece.at.clone()));
            queue.push(&head_of(head, piece.index, piece.count), &slice);
        }
    }
}

/// Who else gets what. Chooses the members of queue groups, unless they are left out, by the nodes that are away,
/// and hands over to those that are here.
fn segments(
    plan: &Plan,
    head: &RunHead,
    messages: &Bytes,
    away: Option<&BTreeSet<NodeId>>,
    pressed: &mut Vec<Arc<Queue>>,
) -> Result<Vec<Segment>, debros_proto::packed::Damaged> {
    let mut segments = Vec::new();
    for piece in &plan.pieces {
        let Piece { at, index, count, route } = piece;
        if !route.nodes.is_empty() {
            let to_nodes = Nodes::All(route.nodes.clone());
            segments.push(Segment { from: at.start, to: at.end, index: *index, count: *count, to_nodes });
        }
        let Some(away) = away.filter(|_| !route.groups.is_empty()) else { continue };
        let mut from = at.start;
        for index in *index..index + count {
            let to = from + MessageRef::first(&messages[from..])?.encoded_len;
            for group in &route.groups {
                match group.choose(None, away) {
                    None => {}
                    Some(Chosen::Local(queue)) => {
                        let slice = part_of(messages.len(), messages.slice(from..to));
                        if queue.push(&head_of(head, index, 1), &slice) {
                            pressed.push(queue.clone());
                        }
                    }
                    Some(Chosen::Remote(node)) => {
                        let to_nodes = Nodes::One(node, group.name.clone());
                        segments.push(Segment { from, to, index, count: 1, to_nodes });
                    }
                }
            }
            from = to;
        }
    }
    Ok(segments)
}

fn destinations(segments: &[Segment]) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> = Vec::new();
    for segment in segments {
        let of_it: &[NodeId] = match &segment.to_nodes {
            Nodes::All(nodes) => nodes,
            Nodes::One(node, _) => std::slice::from_ref(node),
        };
        for node in of_it {
            if !nodes.contains(node) {
                nodes.push(*node);
            }
        }
    }
    nodes
}

/// The receivers of every message, by consecutive ones. A queue group's member that is here counts as this node.
fn goes(plan: &Plan, segments: &[Segment], with_groups: bool) -> Vec<Goes> {
    let mut all = Vec::new();
    for piece in &plan.pieces {
        let here = !piece.route.local.is_empty();
        if piece.route.groups.is_empty() || !with_groups {
            all.push(Goes { count: piece.count, here, nodes: piece.route.nodes.to_vec() });
            continue;
        }
        for index in piece.index..piece.index + piece.count {
            // They are in the order of their first messages.
            let from = segments.partition_point(|segment| segment.index < index);
            let chosen = segments[from..].iter().take_while(|segment| segment.index == index);
            let chosen = chosen.filter_map(|segment| match &segment.to_nodes {
                Nodes::One(node, _) => Some(*node),
                Nodes::All(_) => None,
            });
            let chosen: Vec<NodeId> = chosen.collect();
            let here = here || chosen.len() < piece.route.groups.len();
            let mut nodes = piece.route.nodes.to_vec();
            nodes.extend(chosen);
            nodes.sort_unstable();
            nodes.dedup();
            all.push(Goes { count: 1, here, nodes });
        }
    }
    all
}

//! Subscriptions of this node's clients: how one begins, resumes behind what another node had delivered, and
//! ends; and what is subscribed to in the whole cluster.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use debros_net::PeerId;
use debros_proto::packed::MessageRef;
use debros_proto::{ErrorCode, Failure, NodeId, limits, v1};
use debros_topics::Pattern;

use super::interest::Key;
use super::peer::{Asked, Unaware};
use super::queue::{Queue, part_of};
use super::ring::Entry;
use super::router::Router;
use super::space::{Local, head_of};
use crate::planted::{Bug, is_planted};

/// A subscription to be added.
pub(super) struct Wanted {
    pub(super) pattern: Pattern,
    pub(super) group: Option<Arc<str>>,
    pub(super) queue: Arc<Queue>,
    /// Where it had got to at another node.
    pub(super) resume: Option<Vec<v1::Position>>,
}

impl Router {
    /// Adds a subscription. Gives the version of this node's interest from which on others know of it.
    ///
    /// # Errors
    /// `LIMIT_EXCEEDED`, `ALREADY_EXISTS` for a number in use.
    pub(super) fn subscribe(&mut self, session: u64, wanted: Wanted) -> Result<u64, Failure> {
        let Wanted { pattern, group, queue, resume } = wanted;
        if self.subscriptions >= limits::SUBSCRIPTIONS_MAX {
            let (max, found) = (limits::SUBSCRIPTIONS_MAX, self.subscriptions + 1);
            return Err(Failure::limit("SUBSCRIPTIONS_MAX", max, found).elsewhere());
        }
        let of_session = self.sessions.get_mut(&session).ok_or_else(ended)?;
        if of_session.queues.len() >= limits::SUBSCRIPTIONS_PER_SESSION_MAX {
            let max = limits::SUBSCRIPTIONS_PER_SESSION_MAX;
            return Err(Failure::limit("SUBSCRIPTIONS_PER_SESSION_MAX", max, max + 1));
        }
        if of_session.queues.contains_key(&queue.number()) {
            let message = format!("the session has a subscription {} already", queue.number());
            return Err(Failure::new(ErrorCode::AlreadyExists, message));
        }
        let namespace = of_session.namespace.clone();
        let key = Key { namespace: namespace.clone(), pattern: pattern.clone(), group: group.clone() };
        of_session.queues.insert(queue.number(), (queue.clone(), key.clone()));
        // A queue group's messages are nobody's once they were given to a member.
        let resume = resume.filter(|_| group.is_none() && !is_planted(Bug::CursorIgnored));
        let version = self.own.add(&key);
        if let Some(positions) = resume {
            self.resume(&key, &queue, &positions, version);
        }
        let space = self.space(&namespace);
        space.local.insert(&pattern, Local { queue, group });
        space.forget_routes();
        self.subscriptions += 1;
        self.metrics.set_subscriptions(self.subscriptions);
        self.wake_links();
        Ok(version)
    }

    /// Ends a subscription; says whether there was one.
    pub(super) fn unsubscribe(&mut self, session: u64, number: u64) -> bool {
        let Some(of_session) = self.sessions.get_mut(&session) else { return false };
        let Some((queue, key)) = of_session.queues.remove(&number) else { return false };
        self.take_out(&queue, &key);
        self.wake_links();
        true
    }

    fn take_out(&mut self, queue: &Arc<Queue>, key: &Key) {
        queue.end();
        let space = self.space(&key.namespace);
        space.local.remove(&key.pattern, |local| Arc::ptr_eq(&local.queue, queue));
        space.forget_routes();
        self.own.remove(key);
        self.subscriptions -= 1;
        self.metrics.set_subscriptions(self.subscriptions);
    }

    /// Takes out many of a namespace, at the cost of looking once at what else has their patterns.
    pub(super) fn take_out_all(&mut self, namespace: &str, gone: Vec<(Arc<Queue>, Key)>) {
        let mut by_pattern: BTreeMap<Pattern, HashSet<*const Queue>> = BTreeMap::new();
        for (queue, key) in &gone {
            queue.end();
            self.own.remove(key);
            by_pattern.entry(key.pattern.clone()).or_default().insert(Arc::as_ptr(queue));
        }
        let space = self.space(namespace);
        for (pattern, queues) in by_pattern {
            space.local.remove_all(&pattern, |local| queues.contains(&Arc::as_ptr(&local.queue)));
        }
        space.forget_routes();
        self.subscriptions -= gone.len();
        self.metrics.set_subscriptions(self.subscriptions);
    }

    /// Gives what this node has of a subscription's messages, and asks the other nodes for theirs.
    fn resume(&mut self, key: &Key, queue: &Arc<Queue>, positions: &[v1::Position], heeds: u64) {
        let known: BTreeMap<u64, &v1::Position> =
            positions.iter().map(|position| (position.origin, position)).collect();
        let mine = known.get(&self.node.0);
        // Another incarnation of this node may have had something that nobody has any more.
        if mine.is_some_and(|mine| mine.incarnation != self.incarnation) {
            queue.lag(None);
        }
        let after = mine.filter(|mine| mine.incarnation == self.incarnation).map_or(0, |mine| mine.sequence);
        self.replay_here(key, queue, after);
        // Nothing is known of what a node published that is no member any more.
        let gone = |origin: &u64| *origin != self.node.0 && !self.peers.contains_key(&NodeId(*origin));
        if known.keys().any(gone) {
            queue.lag(None);
        }
        // Unique for each node that is asked.
        let number = self.number();
        for (node, peer) in &mut self.peers {
            let back = &mut peer.back;
            let (incarnation, after) = match known.get(&node.0) {
                // It has started after the subscription was last told of all, so all is news.
                None => (back.incarnation, 0),
                // The node where the subscription began knew nothing of it, and it nothing of the subscription.
                Some(v1::Position { incarnation: 0, .. }) => {
                    // It will tell what it has published by then when it heeds this node's interest.
                    if back.incarnation == 0 {
                        continue;
                    }
                    if back.may_have_lost(&key.namespace, back.incarnation, 0) {
                        queue.lag(None);
                    }
                    (back.incarnation, back.received)
                }
                Some(known) if known.incarnation == back.incarnation || back.incarnation == 0 => {
                    (known.incarnation, known.sequence)
                }
                Some(known) => {
                    if back.may_have_lost(&key.namespace, known.incarnation, known.sequence) {
                        queue.lag(None);
                    }
                    (back.incarnation, 0)
                }
            };
            if back.given_up
                && incarnation != 0
                && known.contains_key(&node.0)
                && back.may_have_lost(&key.namespace, incarnation, after)
            {
                queue.lag(None);
            }
            queue.close_gate(node.0);
            let asked = Asked {
                queue: Arc::downgrade(queue),
                namespace: key.namespace.clone(),
                pattern: key.pattern.clone(),
                incarnation,
                after,
                heeds,
            };
            back.asked.insert(number, asked);
            back.unsent.push_back(number);
            peer.ask();
        }
    }

    fn replay_here(&self, key: &Key, queue: &Arc<Queue>, after: u64) {
        let space = self.spaces.get(&key.namespace);
        let forgotten = space.map_or(self.forgotten, |space| space.forgotten);
        if forgotten > after {
            queue.lag(None);
        }
        for entry in self.ring.after(after).filter(|entry| entry.namespace == key.namespace) {
            for (range, index, count) in matching(entry, &key.pattern, after) {
                let slice = part_of(entry.messages.len(), entry.messages.slice(range));
                queue.push_replayed(&head_of(&entry.head, index, count), &slice);
            }
        }
    }

    /// Of the nodes that a subscription was not acknowledged by, notes that they do not know of it. Gives the answer to
    /// its client, which may have resumed it behind positions of these origins.
    pub(super) fn begun(
        &mut self,
        session: u64,
        queue: &Arc<Queue>,
        heeds: u64,
        resumed: Option<&[u64]>,
    ) -> v1::Subscribed {
        let mut unaware = 0;
        for peer in self.peers.values_mut() {
            if peer.out.progress.borrow().heeds < heeds {
                unaware += 1;
                let unaware = Unaware::new(queue, heeds, &peer.back);
                peer.back.unaware.push(unaware);
            }
        }
        // What was said of all before is not said of this one yet.
        if let Some(session) = self.sessions.get_mut(&session) {
            session.told = Arc::default();
        }
        let mut positions = self.positions(resumed.is_some());
        let is_gone = |origin: &u64| *origin != self.node.0 && !self.peers.contains_key(&NodeId(*origin));
        let gone = resumed.into_iter().flatten().copied().filter(is_gone).collect();
        if resumed.is_none() {
            let unknown = self.peers.iter().filter(|(_, peer)| peer.back.incarnation == 0);
            positions.extend(unknown.map(|(node, _)| v1::Position { origin: node.0, ..Default::default() }));
        }
        v1::Subscribed { subscription: queue.number(), positions, unaware, gone }
    }

    /// What is subscribed to in a namespace; by one client here, or by all in the cluster.
    pub(super) fn topics(&self, namespace: &str, of: Option<PeerId>) -> Vec<v1::TopicStatus> {
        let mut found: BTreeMap<(String, String), (u32, u32)> = BTreeMap::new();
        let name = |key: &Key| {
            (key.pattern.as_str().to_owned(), key.group.as_deref().unwrap_or_default().to_owned())
        };
        if let Some(client) = of {
            let mine = self.sessions.values();
            let mine = mine.filter(|session| session.client == client && *session.namespace == *namespace);
            for (_, key) in mine.flat_map(|session| session.queues.values()) {
                let (subscriptions, nodes) = found.entry(name(key)).or_default();
                (*subscriptions, *nodes) = (*subscriptions + 1, 1);
            }
        } else {
            let others = self.peers.values().filter(|peer| !peer.is_lost()).map(|peer| &peer.back.interest);
            for interest in std::iter::once(&self.own.interest).chain(others) {
                for (key, members) in interest.entries_in(namespace) {
                    let (subscriptions, nodes) = found.entry(name(key)).or_default();
                    (*subscriptions, *nodes) = (*subscriptions + members, *nodes + 1);
                }
            }
        }
        let found = found.into_iter();
        found
            .map(|((pattern, group), (subscriptions, nodes))| v1::TopicStatus {
                pattern,
                group,
                subscriptions,
                nodes,
            })
            .collect()
    }
}

fn ended() -> Failure {
    Failure::new(ErrorCode::ShuttingDown, "the session has ended")
}

/// The messages of an entry behind a sequence that a pattern matches: where they are, from which one on, and
/// how many.
pub(super) fn matching(
    entry: &Entry,
    pattern: &Pattern,
    after: u64,
) -> Vec<(std::ops::Range<usize>, u32, u32)> {
    let mut found: Vec<(std::ops::Range<usize>, u32, u32)> = Vec::new();
    if entry.hidden {
        return found;
    }
    let (mut at, mut index): (usize, u32) = (0, 0);
    let mut last: (&[u8], bool) = (b"", false);
    // What is in the ring was checked when it was taken in.
    while let Some(Ok(message)) =
        entry.messages.get(at..).filter(|rest| !rest.is_empty()).map(MessageRef::first)
    {
        let end = at + message.encoded_len;
        if message.topic != last.0 {
            let matches = std::str::from_utf8(message.topic).is_ok_and(|topic| pattern.matches_text(topic));
            last = (message.topic, matches);
        }
        if last.1 && entry.head.sequence + u64::from(index) > after {
            match found.last_mut() {
                Some((range, _, count)) if range.end == at => (range.end, *count) = (end, *count + 1),
                _ => found.push((at..end, index, 1)),
            }
        }
        (at, index) = (end, index + 1);
    }
    found
}

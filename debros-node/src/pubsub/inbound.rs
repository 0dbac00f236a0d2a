//! The link from another node as seen by its destination: the other node's interest, its messages, and its
//! answers about its ring.
//!
//! Invariant: what comes from an origin is handed on in its order and without a silent gap. A frame that does
//! not follow the one before ends the stream; the next one begins where this node says it stands.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use debros_proto::coverage::Coverage;
use debros_proto::packed::{self, Run, Runs};
use debros_proto::{NodeId, limits, v1};
use debros_topics::Pattern;
use tokio::sync::mpsc;
use tokio::time::Instant;
use v1::interest_change::About;

use super::interest::{Interest, Key, Member};
use super::peer::{Inbound, Peer};
use super::publish::tell_here;
use super::queue::{Queue, part_of};
use super::router::Router;
use super::space::{Chosen, Remote, head_of};
use super::traces::Routing;
use crate::planted::{Bug, is_planted};

/// Why a stream of another node is not read on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the first frame of a link is its hello")]
    NoHello,
    #[error("the link is of another cluster, {0}")]
    OtherCluster(String),
    #[error("the link says it is of node {0}, which its peer is not")]
    OtherNode(u64),
    #[error("another stream has taken the place of this one")]
    Replaced,
    #[error("messages came out of order: they follow {previous}, and this node has {received}")]
    Gap { previous: u64, received: u64 },
    #[error("a frame cannot be read")]
    Damaged,
}

/// What became of a frame.
pub(super) struct TakenFrame {
    /// Subscriptions that have much waiting, one of a namespace.
    pub(super) pressed: BTreeMap<Arc<str>, Arc<Queue>>,
    /// What was too much for one turn: a frame that is taken in next, before any other.
    pub(super) rest: Option<v1::LinkFrame>,
}

/// The first messages of a run.
struct TakenRun {
    count: u32,
    /// Their bytes.
    messages: usize,
}

impl TakenRun {
    /// What follows them, and the runs behind.
    fn rest_of(&self, run: &Run, behind: &[u8]) -> Bytes {
        let mut rest = BytesMut::new();
        let Run { head, namespace, group, messages } = run;
        if self.messages < messages.len() {
            let head = head_of(head, self.count, head.count - self.count);
            packed::put_run(&mut rest, &head, namespace, group, &messages[self.messages..]);
        }
        rest.extend_from_slice(behind);
        rest.freeze()
    }
}

impl Router {
    /// A stream of another node begins with its hello. Gives its number.
    pub(super) fn accept_link(
        &mut self,
        node: NodeId,
        hello: v1::LinkHello,
        replies: mpsc::Sender<v1::LinkReply>,
    ) -> Result<u64, Broken> {
        let v1::LinkHello { node_id, incarnation, cluster_id, stream } = hello;
        if cluster_id != self.cluster_id {
            return Err(Broken::OtherCluster(cluster_id));
        }
        if node_id != node.0 || incarnation == 0 || stream == 0 {
            return Err(Broken::OtherNode(node_id));
        }
        self.meet(node, incarnation);
        let own = self.incarnation;
        let Some(peer) = self.peers.get_mut(&node) else { return Err(Broken::OtherNode(node_id)) };
        let back = &mut peer.back;
        (back.stream, back.replies, back.gathering) = (stream, Some(replies), None);
        (back.lost_since, back.given_up, back.goodbye) = (None, false, None);
        back.is_between_turns = false;
        back.ask_again();
        let stand = v1::LinkStand { incarnation: own, received: back.received };
        back.reply(v1::LinkReply { stand: Some(stand), ..Default::default() });
        Ok(stream)
    }

    /// A stream of another node has ended.
    pub(super) fn lose_link(&mut self, node: NodeId, stream: u64) {
        let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.back.stream == stream) else { return };
        (peer.back.stream, peer.back.replies) = (0, None);
        peer.back.lost_since = Some(Instant::now());
    }

    /// Tells the other side of a stream whether subscriptions of a namespace here have much waiting.
    pub(super) fn tell_pressure(&self, node: NodeId, stream: u64, namespace: &str, pressed: bool) {
        let Some(peer) = self.peers.get(&node).filter(|peer| peer.back.stream == stream) else { return };
        let pressure = vec![v1::NamespacePressure { namespace: namespace.to_owned(), pressed }];
        // One that finds no room is told again, or has had its time.
        peer.back.reply(v1::LinkReply { pressure, ..Default::default() });
    }

    /// Takes in a frame, or as much of it as one turn is long enough for.
    pub(super) fn take_frame(
        &mut self,
        node: NodeId,
        stream: u64,
        frame: v1::LinkFrame,
    ) -> Result<TakenFrame, Broken> {
        if self.peers.get(&node).is_none_or(|peer| peer.back.stream != stream) {
            return Err(Broken::Replaced);
        }
        let v1::LinkFrame { hello: _, interest, routed, replayed, state, goodbye } = frame;
        let mut pressed = BTreeMap::new();
        if let Some(changes) = interest {
            self.take_interest(node, changes);
        }
        if let Some(routed) = routed
            && let Some(routed) = self.take_routed(node, routed, &mut pressed)?
        {
            let routed = Some(routed);
            let rest = v1::LinkFrame { routed, replayed, state, goodbye, ..Default::default() };
            return Ok(TakenFrame { pressed, rest: Some(rest) });
        }
        if let Some(replayed) = replayed {
            self.take_replayed(node, replayed)?;
        }
        let Some(peer) = self.peers.get_mut(&node) else { return Err(Broken::Replaced) };
        if goodbye {
            peer.back.goodbye = state.map(|state| state.sequence);
        }
        if let Some(state) = state {
            let agrees = peer.back.version != state.interest_version
                || peer.back.interest.digest() == state.interest_digest;
            let interest_wanted = !agrees && peer.back.gathering.is_none();
            peer.back.reply(v1::LinkReply { interest_wanted, ..peer.back.standing() });
            // What found no room before is asked again.
            peer.ask();
        }
        peer.back.bounce();
        Ok(TakenFrame { pressed, rest: None })
    }

    /// Gives what is too much for this turn.
    fn take_routed(
        &mut self,
        node: NodeId,
        routed: v1::RoutedMessages,
        pressed: &mut BTreeMap<Arc<str>, Arc<Queue>>,
    ) -> Result<Option<v1::RoutedMessages>, Broken> {
        let v1::RoutedMessages { previous, reached, runs, confirm, lost } = routed;
        let Some(peer) = self.peers.get(&node) else { return Err(Broken::Replaced) };
        let (received, incarnation) = (peer.back.received, peer.back.incarnation);
        if previous != received {
            return Err(Broken::Gap { previous, received });
        }
        let lost =
            lost.into_iter().map(|lost| lost.namespace.into()).collect::<std::collections::BTreeSet<_>>();
        if !lost.is_empty() {
            self.lag(Some(&lost));
        }
        let (whole, mut runs) = (runs.len(), Runs::new(runs));
        let (mut work_left, mut gave) = (limits::ROUTING_TURN_DELIVERIES, Vec::new());
        while let Some(run) = runs.next() {
            let mut run = run.map_err(|_| Broken::Damaged)?;
            run.messages = part_of(whole, run.messages);
            if run.head.origin != node.0
                || run.head.incarnation != incarnation
                || run.head.count == 0
                || run.head.sequence == 0
            {
                return Err(Broken::Damaged);
            }
            // It may have come before, when the link broke behind it and before the end of its batch.
            let given = (run.head.sequence, run.group.clone());
            if !run.group.is_empty() && self.was_given(node, &given) {
                continue;
            }
            let mut full = Vec::new();
            let taken = self.take_run(node, &run, &mut work_left, &mut full)?;
            if let (Some(queue), Ok(namespace)) = (full.pop(), std::str::from_utf8(&run.namespace)) {
                pressed.insert(namespace.into(), queue);
            }
            gave.extend((!run.group.is_empty()).then_some(given));
            if taken.messages < run.messages.len() || work_left == 0 && !runs.rest().is_empty() {
                let runs = taken.rest_of(&run, runs.rest());
                // Runs to queue groups follow those to all, under the same sequences.
                let first = Runs::new(runs.clone()).flatten().map(|run| run.head.sequence).min();
                let previous = first.map_or(received, |first| received.max(first.saturating_sub(1)));
                self.stand_at(node, previous, true, gave)?;
                return Ok(Some(v1::RoutedMessages { previous, reached, runs, confirm, lost: Vec::new() }));
            }
        }
        let back = self.stand_at(node, reached, false, gave)?;
        if confirm {
            back.reply(v1::LinkReply { received: reached, ..Default::default() });
        }
        Ok(None)
    }

    /// Takes in the first messages of a run, up to so much work.
    fn take_run(
        &mut self,
        node: NodeId,
        run: &Run,
        work_left: &mut usize,
        pressed: &mut Vec<Arc<Queue>>,
    ) -> Result<TakenRun, Broken> {
        let Run { head, namespace, group, messages } = run;
        let all = TakenRun { count: head.count, messages: messages.len() };
        let namespace = std::str::from_utf8(namespace).map_err(|_| Broken::Damaged)?;
        head.first.checked_add(head.count.into()).ok_or(Broken::Damaged)?;
        let Some(space) = self.spaces.get_mut(namespace).filter(|space| !space.local.is_empty()) else {
            if !group.is_empty() && !head.rerouted {
                self.bounce(node, run);
            }
            return Ok(all);
        };
        let routing = Routing::begin(&self.tracer);
        let plan = space.plan(messages, *work_left).map_err(|_| Broken::Damaged)?;
        *work_left = work_left.saturating_sub(plan.work);
        let taken = TakenRun { count: plan.count, messages: plan.bytes };
        if plan.count > head.count || (plan.count == head.count) != (plan.bytes == messages.len()) {
            return Err(Broken::Damaged);
        }
        if group.is_empty() {
            let coverage = &mut space.publisher(head.publisher).coverage;
            if is_planted(Bug::RepeatedNumbersTaken) {
                *coverage = Coverage::new();
            }
            let told = coverage.tell(head.base, head.first, head.first + u64::from(plan.count) - 1);
            let told = tell_here(&told, &plan, head, messages, pressed, routing.as_ref());
            told.map_err(|_| Broken::Damaged)?;
            return Ok(taken);
        }
        let groups = plan.pieces.first().into_iter().flat_map(|piece| &piece.route.groups);
        let mut group = groups.filter(|known| known.name.as_bytes() == &group[..]);
        match group.next().and_then(|group| group.choose_here()) {
            Some(Chosen::Local(queue)) => {
                if queue.push(head, messages) {
                    pressed.push(queue.clone());
                }
                if let Some(routing) = routing {
                    routing.handed_over(messages, 1);
                }
            }
            _ if !head.rerouted => self.bounce(node, run),
            _ => self.metrics.dropped(head.count.into()),
        }
        Ok(all)
    }

    /// Whether a message of a queue group went to a member here.
    fn was_given(&self, node: NodeId, given: &(u64, Bytes)) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.back.given.contains(given))
    }

    /// Everything up to a sequence was taken in, and these messages of queue groups, some of them beyond it.
    fn stand_at(
        &mut self,
        node: NodeId,
        received: u64,
        is_between_turns: bool,
        gave: Vec<(u64, Bytes)>,
    ) -> Result<&mut Inbound, Broken> {
        let Some(peer) = self.peers.get_mut(&node) else { return Err(Broken::Replaced) };
        let back = &mut peer.back;
        (back.received, back.is_between_turns) = (received, is_between_turns);
        back.given.extend(gave);
        back.given.retain(|(sequence, _)| *sequence > received);
        Ok(back)
    }

    fn bounce(&mut self, node: NodeId, run: &Run) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.back.bounced.len() >= limits::BOUNCES_MAX {
            self.metrics.dropped(run.head.count.into());
            return;
        }
        let group = String::from_utf8_lossy(&run.group).into_owned();
        peer.back.bounced.push(v1::Bounced { sequence: run.head.sequence, group });
    }

    fn take_replayed(&mut self, node: NodeId, replayed: v1::Replayed) -> Result<(), Broken> {
        let v1::Replayed { replay, runs, complete, reached, lost } = replayed;
        let Some(peer) = self.peers.get_mut(&node) else { return Err(Broken::Replaced) };
        let incarnation = peer.back.incarnation;
        // One that has been unsubscribed meanwhile.
        let Some(asked) = peer.back.asked.get_mut(&replay) else { return Ok(()) };
        if let Some(queue) = asked.queue.upgrade() {
            if lost {
                queue.lag(None);
            }
            let whole = runs.len();
            for run in Runs::new(runs) {
                let Run { head, messages, .. } = run.map_err(|_| Broken::Damaged)?;
                queue.push_replayed(&head, &part_of(whole, messages));
                asked.after = asked.after.max(head.sequence + u64::from(head.count) - 1);
            }
            if complete {
                queue.open_gate(node.0, incarnation, reached);
            }
        }
        if complete {
            peer.back.asked.remove(&replay);
        }
        Ok(())
    }

    fn take_interest(&mut self, node: NodeId, changes: v1::InterestChanges) {
        let v1::InterestChanges { reset, changes, version } = changes;
        let heeded_from = self.ring.last();
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if reset {
            peer.back.gathering = Some(Vec::new());
        }
        if let Some(gathering) = &mut peer.back.gathering {
            gathering.extend(changes);
            if version > 0 {
                let all = std::mem::take(gathering);
                peer.back.gathering = None;
                let mut interest = Interest::default();
                all.into_iter().for_each(|change| drop(set(&mut interest, node, change)));
                self.replace_interest(node, interest);
            }
        } else {
            for change in changes {
                self.change_interest(node, change);
            }
        }
        let Some(peer) = self.peers.get_mut(&node).filter(|_| version > 0) else { return };
        (peer.back.version, peer.back.heeded_from) = (version, heeded_from);
        peer.back.reply(peer.back.standing());
        let count = self.peers.values().map(|peer| peer.back.interest.entries.len()).sum();
        self.metrics.set_interest_entries(count);
    }

    fn change_interest(&mut self, node: NodeId, change: v1::InterestChange) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        match set(&mut peer.back.interest, node, change) {
            Changed::Nothing => {}
            Changed::Entry(key, members) => self.set_remote(node, &key, members),
            Changed::Present { before, after } => self.tell_presence(before, after),
        }
    }

    fn set_remote(&mut self, node: NodeId, key: &Key, members: u32) {
        let space = self.space(&key.namespace);
        let is_it = |remote: &Remote| remote.node == node && remote.group == key.group;
        space.remote.remove(&key.pattern, is_it);
        if members > 0 {
            space.remote.insert(&key.pattern, Remote { node, group: key.group.clone(), members });
        }
        space.forget_routes();
    }

    /// The other node's interest is this from now on, at once.
    pub(super) fn replace_interest(&mut self, node: NodeId, interest: Interest) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let before = std::mem::replace(&mut peer.back.interest, interest);
        let after = &peer.back.interest;
        let mut changed: BTreeMap<Key, u32> = before.entries.keys().map(|key| (key.clone(), 0)).collect();
        changed.extend(after.entries.iter().map(|(key, members)| (key.clone(), *members)));
        changed.retain(|key, members| before.entries.get(key).copied().unwrap_or(0) != *members);
        let mut presence = Vec::new();
        for (entry, member) in before.present.iter().filter(|(entry, _)| !after.present.contains_key(entry)) {
            presence.push((Some(member.clone()), after.present.get(entry).cloned()));
        }
        for (entry, member) in after.present.iter().filter(|(entry, _)| !before.present.contains_key(entry)) {
            presence.push((before.present.get(entry).cloned(), Some(member.clone())));
        }
        for (key, members) in changed {
            self.set_remote(node, &key, members);
        }
        for (before, after) in presence {
            self.tell_presence(before, after);
        }
    }
}

enum Changed {
    Nothing,
    Entry(Key, u32),
    Present { before: Option<Member>, after: Option<Member> },
}

/// What a node of another version says that this one does not know is left out.
fn set(interest: &mut Interest, node: NodeId, change: v1::InterestChange) -> Changed {
    let v1::InterestChange { namespace, about } = change;
    let namespace: Arc<str> = namespace.into();
    match about {
        Some(About::Subscription(v1::SubscriptionInterest { pattern, group, members })) => {
            let Ok(pattern) = Pattern::new(&pattern) else { return Changed::Nothing };
            let group = (!group.is_empty()).then(|| group.into());
            let key = Key { namespace, pattern, group };
            interest.set(&key, members);
            Changed::Entry(key, members)
        }
        Some(About::Publishes(publishes)) => {
            interest.set_publishes(&namespace, publishes);
            Changed::Nothing
        }
        Some(About::Presence(v1::PresenceInterest { entry, topic, member, data, left })) => {
            let member = Arc::new(v1::PresentMember { topic, member, data, node_id: node.0, entry });
            let after = (!left).then_some((namespace, member));
            let before = interest.set_present(entry, after.clone());
            Changed::Present { before, after }
        }
        None => Changed::Nothing,
    }
}

impl Peer {
    /// Asks what can be asked now: the other node must route by what it is asked about.
    pub(super) fn ask(&mut self) {
        let heeds = self.out.progress.borrow().heeds;
        let back = &mut self.back;
        while let Some(number) = back.unsent.front() {
            if let Some(asked) = back.asked.get(number) {
                let request = v1::ReplayRequest {
                    replay: *number,
                    namespace: asked.namespace.to_string(),
                    pattern: asked.pattern.as_str().to_owned(),
                    after: asked.after,
                };
                if asked.heeds > heeds
                    || !back.reply(v1::LinkReply { replay: Some(request), ..Default::default() })
                {
                    return;
                }
            }
            back.unsent.pop_front();
        }
    }
}

//! The link to another node as seen by the origin: what it is sent next, and what its replies mean.
//!
//! A link has no queue of its own. It reads the ring from where its destination stands, so a link that broke
//! or was too slow goes on without a gap while the ring still holds what it missed, and otherwise says what
//! has been lost.

use std::sync::Arc;

use bytes::BytesMut;
use debros_proto::{NodeId, limits, packed, v1};
use debros_topics::Pattern;
use tokio::time::Instant;

use super::peer::{Former, Outbound, Peer, Replay};
use super::ring::{Entry, Ring};
use super::router::Router;
use super::space::head_of;
use super::subscriptions::matching;
use crate::planted::{Bug, is_planted};

/// Entries of the ring that are looked at without letting others have the lock.
const LOOKS_MAX: usize = 4096;
/// Questions of one node to the ring that wait.
const REPLAYS_MAX: usize = limits::SUBSCRIPTIONS_MAX;

/// An entry that a frame has begun with is packed up to here.
const FRAME_BYTES_LAST: usize = limits::PUBSUB_FRAME_BYTES + limits::PUBLISH_BYTES_MAX;

/// What a link does next.
pub(super) enum Next {
    Frame(Box<v1::LinkFrame>),
    /// There may be something after another look.
    Again,
    Wait,
    End,
}

impl Router {
    /// A stream to a node begins.
    pub(super) fn open_link(&mut self, node: NodeId, stream: u64) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let out = &mut peer.out;
        out.stream = stream;
        (out.stands, out.said_hello, out.said_goodbye) = (false, false, false);
        out.interest = None;
        out.changes.clear();
        out.replays.clear();
    }

    /// A stream to a node has ended.
    pub(super) fn close_link(&mut self, node: NodeId, stream: u64) {
        let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.out.stream == stream) else { return };
        (peer.out.stream, peer.out.stands) = (0, false);
        self.away.insert(node);
        peer.out.room.notify_waiters();
        peer.out.pressed.clear();
        peer.out.eased.notify_waiters();
        peer.out.progress.send_modify(|progress| {
            progress.heeds = 0;
            progress.lost_since.get_or_insert(Instant::now());
        });
    }

    /// The next frame of a stream.
    pub(super) fn next_frame(&mut self, node: NodeId, stream: u64) -> Next {
        let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.out.stream == stream) else {
            return Next::End;
        };
        let frame = |frame: v1::LinkFrame| Next::Frame(Box::new(frame));
        if !std::mem::replace(&mut peer.out.said_hello, true) {
            let hello = v1::LinkHello {
                node_id: self.node.0,
                incarnation: self.incarnation,
                cluster_id: self.cluster_id.clone(),
                stream,
            };
            return frame(v1::LinkFrame { hello: Some(hello), ..Default::default() });
        }
        if peer.out.changes.is_empty() && peer.out.interest != Some(self.own.version()) {
            peer.out.changes = self.own.changes_since(peer.out.interest);
            peer.out.interest = Some(self.own.version());
        }
        if let Some(interest) = peer.out.changes.pop_front() {
            if is_planted(Bug::InterestAcknowledgedEarly) {
                peer.out.progress.send_modify(|progress| progress.heeds = interest.version);
            }
            return frame(v1::LinkFrame { interest: Some(interest), ..Default::default() });
        }
        if !peer.out.stands {
            return Next::Wait;
        }
        if let Some(replay) = peer.out.replays.front_mut() {
            let space = self.spaces.get(&replay.namespace);
            let forgotten = space.map_or(self.forgotten, |space| space.forgotten);
            let replayed = replay.next(&self.ring, forgotten);
            if replayed.complete {
                peer.out.replays.pop_front();
            }
            return frame(v1::LinkFrame { replayed: Some(replayed), ..Default::default() });
        }
        let (routed, looked) = peer.read(node, &self.ring);
        if routed.is_none() && looked == LOOKS_MAX {
            return Next::Again;
        }
        let state_due = std::mem::take(&mut peer.out.state_due);
        let goodbye = self.stopping && routed.is_none() && !peer.out.said_goodbye;
        peer.out.said_goodbye |= goodbye;
        if routed.is_none() && !state_due && !goodbye {
            return Next::Wait;
        }
        let state = (state_due || goodbye).then(|| v1::LinkState {
            sequence: self.ring.last(),
            interest_version: self.own.version(),
            interest_digest: self.own.interest.digest(),
        });
        let routed = routed.or_else(|| Some(peer.reached()));
        frame(v1::LinkFrame { routed, state, goodbye, ..Default::default() })
    }

    /// Takes in a reply of the node that a stream leads to.
    pub(super) fn take_reply(&mut self, node: NodeId, stream: u64, reply: v1::LinkReply) {
        let v1::LinkReply {
            stream: about,
            stand,
            interest_version,
            heeded_from,
            received,
            interest_wanted,
            replay,
            bounced,
            pressure,
        } = reply;
        if about != stream || self.peers.get(&node).is_none_or(|peer| peer.out.stream != stream) {
            return;
        }
        if let Some(v1::LinkStand { incarnation, received }) = stand {
            self.meet(node, incarnation);
            self.stand(node, received);
        }
        if interest_version > 0 {
            self.heeded(node, interest_version, heeded_from);
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if received > 0 {
            peer.out.progress.send_if_modified(|progress| {
                let more = received > progress.received;
                progress.received = progress.received.max(received);
                more
            });
        }
        if interest_wanted {
            peer.out.interest = None;
            peer.out.changes.clear();
            peer.out.waker.wake();
        }
        if let Some(request) = replay.filter(|_| peer.out.replays.len() < REPLAYS_MAX)
            && let Ok(pattern) = Pattern::new(&request.pattern)
        {
            let v1::ReplayRequest { replay: number, namespace, pattern: _, after } = request;
            let namespace: Arc<str> = namespace.into();
            let replay = Replay { number, namespace, pattern, after, until: None };
            peer.out.replays.push_back(replay);
            peer.out.waker.wake();
        }
        for v1::NamespacePressure { namespace, pressed } in pressure {
            match self.spaces.get_key_value(namespace.as_str()).filter(|_| pressed) {
                Some((namespace, _)) => drop(peer.out.pressed.insert(namespace.clone(), Instant::now())),
                None => drop(peer.out.pressed.remove(namespace.as_str())),
            }
            peer.out.eased.notify_waiters();
        }
        for bounced in bounced {
            self.reroute(node, &bounced);
        }
    }

    fn stand(&mut self, node: NodeId, received: u64) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let out = &mut peer.out;
        let from = if is_planted(Bug::GapNotAskedFor) { out.cursor.max(received) } else { received };
        out.cursor = from.max(out.since).min(self.ring.last());
        out.offset = self.ring.offset_at(out.cursor);
        out.part = (0, 0);
        let again = self.ring.after(out.cursor).flat_map(|entry| &entry.segments);
        let again = again.filter(|segment| segment.to_nodes.contains(node));
        self.metrics.gaps_repaired(again.map(|segment| u64::from(segment.count)).sum());
        for (namespace, last) in std::mem::take(&mut out.unconfirmed) {
            if last > received {
                *out.lost.entry(namespace).or_default() += 1;
            }
        }
        (out.told, out.stands, out.slow) = (received, true, false);
        self.away.remove(&node);
        out.progress.send_modify(|progress| {
            progress.lost_since = None;
            progress.received = progress.received.max(received);
        });
        out.waker.wake();
    }

    /// The other node's process is this incarnation. What was for another one is void.
    pub(super) fn meet(&mut self, node: NodeId, incarnation: u64) {
        let last = self.ring.last();
        let Some(peer) = self.peers.get(&node) else { return };
        if peer.back.incarnation == incarnation {
            return;
        }
        // Also when it was given up before: it may have lived on and taken messages in.
        if peer.back.incarnation != 0 {
            let given_up = peer.back.given_up;
            self.mourn(node, given_up);
        }
        self.bury(node, incarnation);
        self.replace_interest(node, super::interest::Interest::default());
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.out.since = last;
        peer.out.lost.clear();
        peer.out.unconfirmed.clear();
        peer.out.progress.send_modify(|progress| progress.received = 0);
        let back = &mut peer.back;
        (back.incarnation, back.received, back.version) = (incarnation, 0, 0);
        (back.goodbye, back.given_up, back.is_new) = (None, false, true);
        back.gathering = None;
        (back.heeded_from, back.bounced, back.given) = Default::default();
    }

    /// Keeps what is known of an incarnation that is gone. Of what it was asked nothing will come any more; of the new
    /// one all is news.
    fn bury(&mut self, node: NodeId, successor: u64) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let back = &mut peer.back;
        let mut asked = std::mem::take(&mut back.asked);
        for asked in asked.values_mut().filter(|asked| asked.incarnation != successor) {
            let lost = asked.incarnation != 0
                && back.may_have_lost(&asked.namespace, asked.incarnation, asked.after);
            if let Some(queue) = asked.queue.upgrade().filter(|_| lost) {
                queue.lag(None);
            }
            (asked.incarnation, asked.after) = (successor, 0);
        }
        back.asked = asked;
        back.ask_again();
        let publishes = back.interest.publishes.clone();
        let (incarnation, goodbye) = (back.incarnation, back.goodbye);
        if incarnation != 0 {
            back.former = Some(Former { incarnation, publishes, goodbye });
        }
    }

    /// The other node routes by a version of this node's interest from now on.
    fn heeded(&mut self, node: NodeId, version: u64, heeded_from: u64) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.out.progress.send_modify(|progress| progress.heeds = progress.heeds.max(version));
        let incarnation = peer.back.incarnation;
        peer.back.unaware.retain(|unaware| {
            if unaware.heeds > version {
                return true;
            }
            // A former incarnation never heeded it, whatever it published.
            let (is_same, is_first) = (unaware.incarnation == incarnation, unaware.incarnation == 0);
            let known = if is_same { unaware.received } else { 0 };
            if (heeded_from > known || !is_same && !is_first)
                && let Some(queue) = unaware.queue()
            {
                queue.lag(None);
            }
            false
        });
        peer.ask();
        if std::mem::take(&mut peer.back.is_new) && heeded_from > 0 {
            self.lag(None);
        }
    }
}

impl Peer {
    /// Reads the ring on. Gives what is for the node, and how many entries were looked at.
    fn read(&mut self, node: NodeId, ring: &Ring) -> (Option<v1::RoutedMessages>, usize) {
        let mut runs = BytesMut::new();
        let (mut confirm, mut looked, mut full) = (false, 0, false);
        for entry in ring.after(self.out.cursor).take(LOOKS_MAX) {
            if !runs.is_empty() && runs.len() + entry.messages.len() > limits::PUBSUB_FRAME_BYTES {
                full = true;
                break;
            }
            if runs.is_empty() && !entry.segments.is_empty() {
                let backlog = (ring.offset() - self.out.offset) as usize;
                runs.reserve(backlog.min(limits::PUBSUB_FRAME_BYTES).max(entry.messages.len()));
            }
            let before = runs.len();
            full = !self.out.put(node, entry, &mut runs);
            confirm |= entry.confirm && runs.len() > before;
            if full {
                break;
            }
            (self.out.cursor, self.out.offset) = (entry.last(), entry.offset);
            looked += 1;
        }
        if !full && looked < LOOKS_MAX {
            self.out.offset = ring.offset();
        }
        if ring.offset() - self.out.offset <= limits::LINK_BACKLOG_BYTES / 2 {
            self.out.slow = false;
            self.out.room.notify_waiters();
        }
        if runs.is_empty() && self.out.lost.is_empty() {
            return (None, looked);
        }
        let mut routed = self.reached();
        (routed.runs, routed.confirm) = (runs.freeze(), confirm);
        (Some(routed), looked)
    }

    /// Says how far the ring was read.
    fn reached(&mut self) -> v1::RoutedMessages {
        let reached = self.out.cursor.max(self.out.told);
        let previous = std::mem::replace(&mut self.out.told, reached);
        let lost = std::mem::take(&mut self.out.lost).into_iter();
        let lost =
            lost.map(|(namespace, messages)| v1::RoutedLoss { namespace: namespace.to_string(), messages });
        let lost = lost.collect();
        v1::RoutedMessages { previous, reached, runs: bytes::Bytes::new(), confirm: false, lost }
    }
}

impl Outbound {
    /// Packs what an entry has for the node, as much as a frame takes; says whether that is all. What was
    /// packed of it before is left out.
    fn put(&mut self, node: NodeId, entry: &Entry, runs: &mut BytesMut) -> bool {
        let begun = if self.part.0 == entry.head.sequence { self.part.1 } else { 0 };
        let segments = entry.segments.iter().enumerate().skip(begun);
        for (at, segment) in segments.filter(|(_, segment)| segment.to_nodes.contains(node)) {
            let group = segment.to_nodes.group().as_bytes();
            let length = packed::RUN_HEAD + entry.namespace.len() + group.len() + segment.to - segment.from;
            if !runs.is_empty() && runs.len() + length > FRAME_BYTES_LAST {
                self.part = (entry.head.sequence, at);
                return false;
            }
            let head = head_of(&entry.head, segment.index, segment.count);
            let messages = &entry.messages[segment.from..segment.to];
            packed::put_run(runs, &head, entry.namespace.as_bytes(), group, messages);
        }
        true
    }

    /// An entry leaves the ring. Gives how many messages the node misses by that; whether it has what was sent
    /// is known when it says so.
    pub(super) fn misses(&mut self, node: NodeId, entry: &Entry) -> u64 {
        let last = entry.last();
        let confirmed = self.progress.borrow().received;
        if last <= self.since || last <= confirmed {
            return 0;
        }
        let concerned = entry.segments.iter().filter(|segment| segment.to_nodes.contains(node));
        let messages = concerned.map(|segment| u64::from(segment.count)).sum();
        if messages == 0 {
            return 0;
        }
        if last <= self.cursor {
            self.unconfirmed.insert(entry.namespace.clone(), last);
            return 0;
        }
        *self.lost.entry(entry.namespace.clone()).or_default() += messages;
        messages
    }
}

impl Replay {
    fn next(&mut self, ring: &Ring, forgotten: u64) -> v1::Replayed {
        let until = *self.until.get_or_insert(ring.last());
        // At every turn: the ring goes on while a long answer is under way.
        let lost = forgotten > self.after;
        let (mut runs, mut looked, mut complete) = (BytesMut::new(), 0, true);
        for entry in ring.after(self.after) {
            if entry.head.sequence > until {
                break;
            }
            if runs.len() >= limits::PUBSUB_FRAME_BYTES || looked == LOOKS_MAX {
                complete = false;
                break;
            }
            looked += 1;
            if entry.namespace == self.namespace || is_planted(Bug::NamespacesNotCompared) {
                for (range, index, count) in matching(entry, &self.pattern, self.after) {
                    let head = head_of(&entry.head, index, count);
                    packed::put_run(&mut runs, &head, b"", b"", &entry.messages[range]);
                }
            }
            self.after = entry.last();
        }
        let reached = if complete { until } else { self.after };
        v1::Replayed { replay: self.number, runs: runs.freeze(), complete, reached, lost }
    }
}

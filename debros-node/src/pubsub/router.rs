//! The heart of the engine, plain data behind one short lock: namespaces, the ring, the other nodes and the
//! sessions. What is done with it lies in the modules beside: [`super::publish`], [`super::subscriptions`],
//! [`super::outbound`], [`super::inbound`] and [`super::presence`].
//!
//! Nothing here waits. Order among the locks: the router's, then a queue's, then an outlet's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use debros_net::PeerId;
use debros_proto::{ErrorCode, Failure, NodeId, limits, v1};
use tokio::time::Instant;

use super::PubSubOptions;
use super::interest::{Interest, Key, Own};
use super::metrics::PubSubMetrics;
use super::outlet::{Backlog, Later, Outlet};
use super::peer::Peer;
use super::presence::Watch;
use super::queue::Queue;
use super::ring::Ring;
use super::space::Space;
use crate::trace::Tracer;

/// See the module.
pub(super) struct Router {
    pub(super) node: NodeId,
    pub(super) incarnation: u64,
    pub(super) cluster_id: String,
    pub(super) ring: Ring,
    pub(super) spaces: BTreeMap<Arc<str>, Space>,
    pub(super) peers: BTreeMap<NodeId, Peer>,
    /// Those of them to which no link stands.
    pub(super) away: BTreeSet<NodeId>,
    pub(super) own: Own,
    pub(super) sessions: BTreeMap<u64, Session>,
    /// By namespace.
    pub(super) watches: BTreeMap<Arc<str>, Vec<Watch>>,
    pub(super) subscriptions: usize,
    pub(super) stopping: bool,
    /// It was told who the members are.
    pub(super) has_members: bool,
    pub(super) metrics: PubSubMetrics,
    pub(super) tracer: Tracer,
    /// The last sequence that left the ring.
    pub(super) forgotten: u64,
    /// Nodes that were members, the latest last.
    departed: VecDeque<u64>,
    /// What waits for all sessions.
    pub(super) backlog: Arc<Backlog>,
    /// What one subscription may have waiting.
    queue_bytes: usize,
    next_number: u64,
}

/// What a client has here.
pub(super) struct Session {
    pub(super) outlet: Arc<Outlet>,
    pub(super) namespace: Arc<str>,
    pub(super) client: PeerId,
    pub(super) queues: BTreeMap<u64, (Arc<Queue>, Key)>,
    /// This node's number for a presence, by the client's.
    pub(super) present: BTreeMap<u64, u64>,
    /// The positions that it was told last.
    pub(super) told: Arc<[v1::Position]>,
}

impl Router {
    /// Nothing yet.
    pub(super) fn new(
        node: NodeId,
        incarnation: u64,
        cluster_id: String,
        metrics: PubSubMetrics,
        options: PubSubOptions,
    ) -> Self {
        Self {
            node,
            incarnation,
            cluster_id,
            ring: Ring::new(options.ring_bytes, options.ring_life),
            spaces: BTreeMap::new(),
            peers: BTreeMap::new(),
            away: BTreeSet::new(),
            own: Own::new(),
            sessions: BTreeMap::new(),
            watches: BTreeMap::new(),
            subscriptions: 0,
            stopping: false,
            has_members: false,
            metrics,
            tracer: Tracer::off(),
            forgotten: 0,
            departed: VecDeque::new(),
            backlog: Arc::default(),
            queue_bytes: options.queue_bytes,
            next_number: 1,
        }
    }

    /// Bytes in the queues of all subscriptions.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.backlog.bytes()
    }

    /// A number that was not given before.
    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    /// Begins a session.
    ///
    /// # Errors
    /// `BUSY` past [`limits::SESSIONS_PER_NODE_MAX`].
    pub(super) fn attach(&mut self, namespace: &str, client: PeerId) -> Result<(u64, Arc<Outlet>), Failure> {
        if self.sessions.len() >= limits::SESSIONS_PER_NODE_MAX {
            let max = limits::SESSIONS_PER_NODE_MAX;
            let message = format!("this node serves SESSIONS_PER_NODE_MAX, {max}, sessions: ask another");
            return Err(Failure::new(ErrorCode::Busy, message).elsewhere());
        }
        let namespace = self.space(namespace).name.clone();
        self.space(&namespace).sessions += 1;
        let (number, outlet) = (self.number(), Outlet::new(self.queue_bytes, self.backlog.clone()));
        let session = Session {
            outlet: outlet.clone(),
            namespace,
            client,
            queues: BTreeMap::new(),
            present: BTreeMap::new(),
            told: Arc::default(),
        };
        self.sessions.insert(number, session);
        self.metrics.set_sessions(self.sessions.len());
        Ok((number, outlet))
    }

    /// Ends a session with everything in it.
    pub(super) fn detach(&mut self, session: u64) {
        let Some(ended) = self.sessions.remove(&session) else { return };
        let Session { outlet, namespace, client: _, queues, present, told: _ } = ended;
        if !queues.is_empty() {
            self.take_out_all(&namespace, queues.into_values().collect());
        }
        for entry in present.into_values() {
            self.leave(&namespace, entry);
        }
        self.end_watches(&namespace, |watch| Arc::ptr_eq(&watch.outlet, &outlet));
        self.space(&namespace).sessions -= 1;
        outlet.end(Ok(()));
        self.wake_links();
        self.metrics.set_sessions(self.sessions.len());
    }

    /// A subscription of a session.
    pub(super) fn queue(&self, session: u64, subscription: u64) -> Option<Arc<Queue>> {
        let (queue, _) = self.sessions.get(&session)?.queues.get(&subscription)?;
        Some(queue.clone())
    }

    /// Clients of this node publish in a namespace. Gives a version of this node's interest that says so.
    pub(super) fn announce(&mut self, namespace: &Arc<str>) -> u64 {
        self.space(namespace).announced = true;
        let version = self.own.set_publishes(namespace, true);
        self.wake_links();
        version
    }

    /// Publishers do not wait for a node before it has caught up.
    pub(super) fn set_slow(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.out.slow = true;
        }
    }

    /// The space of a namespace; a new one where there was none.
    pub(super) fn space(&mut self, namespace: &str) -> &mut Space {
        if !self.spaces.contains_key(namespace) {
            let name: Arc<str> = namespace.into();
            // There may have been one before.
            self.spaces.insert(name.clone(), Space::new(name, self.forgotten));
        }
        self.spaces.get_mut(namespace).expect("it is there by now")
    }

    /// Sets who the other nodes are. Gives those that are new.
    pub(super) fn set_members(&mut self, members: &BTreeMap<NodeId, PeerId>) -> Vec<(NodeId, PeerId)> {
        self.has_members = true;
        let gone = |node: &NodeId, peer: &Peer| members.get(node) != Some(&peer.peer);
        let left: Vec<NodeId> =
            self.peers.iter().filter(|(node, peer)| gone(node, peer)).map(|(node, _)| *node).collect();
        for node in left {
            match self.peers.get(&node) {
                Some(peer) if peer.back.given_up => self.mourn(node, true),
                _ => self.give_up(node),
            }
            self.replace_interest(node, Interest::default());
            self.away.remove(&node);
            if let Some(peer) = self.peers.remove(&node) {
                peer.out.waker.wake();
                let asked = peer.back.asked.values().filter_map(|asked| asked.queue.upgrade());
                asked.for_each(|queue| queue.open_gate(node.0, 0, 0));
            }
            self.depart(node);
        }
        let new: Vec<_> = members
            .iter()
            .filter(|(node, _)| **node != self.node && !self.peers.contains_key(node))
            .map(|(node, peer)| (*node, *peer))
            .collect();
        for (node, peer) in &new {
            self.peers.insert(*node, Peer::new(*peer));
            self.away.insert(*node);
        }
        new
    }

    /// Clients may forget where a node stood: what could be missed of it was reported by now.
    fn depart(&mut self, node: NodeId) {
        if self.departed.len() >= limits::DEPARTED_TOLD_MAX {
            self.departed.pop_front();
        }
        self.departed.push_back(node.0);
        self.sessions.values_mut().for_each(|session| session.told = Arc::default());
    }

    /// There is something for all links.
    pub(super) fn wake_links(&self) {
        self.peers.values().for_each(|peer| peer.out.waker.wake());
    }

    /// Takes out what has ended by overflowing: its client was told so.
    fn take_out_ended(&mut self) {
        let mut ended = Vec::new();
        for session in self.sessions.values_mut().filter(|session| session.outlet.has_overflowed()) {
            let queues = session.queues.extract_if(.., |_, (queue, _)| queue.has_ended());
            ended.push((session.namespace.clone(), queues.map(|(_, ended)| ended).collect::<Vec<_>>()));
        }
        for (namespace, queues) in ended {
            self.take_out_all(&namespace, queues);
        }
    }

    /// Tells every subscription of these namespaces that messages may have been missed; `None` for all.
    pub(super) fn lag(&self, namespaces: Option<&BTreeSet<Arc<str>>>) {
        for session in self.sessions.values() {
            if namespaces.is_none_or(|namespaces| namespaces.contains(&session.namespace)) {
                session.queues.values().for_each(|(queue, _)| queue.lag(None));
            }
        }
    }

    /// Everything up to here was handed to the subscriptions of this node. When it must be true of all subscriptions,
    /// without those origins that were asked for more, and those that may not know of all.
    pub(super) fn positions(&self, of_all: bool) -> Vec<v1::Position> {
        let own =
            v1::Position { origin: self.node.0, incarnation: self.incarnation, sequence: self.ring.last() };
        let others = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.back.incarnation != 0)
            .filter(|(_, peer)| !of_all || !peer.back.is_new && !peer.back.stands_apart());
        let others = others.map(|(node, peer)| v1::Position {
            origin: node.0,
            incarnation: peer.back.incarnation,
            sequence: peer.back.received,
        });
        std::iter::once(own).chain(others).collect()
    }

    /// What is due from time to time.
    pub(super) fn tick(&mut self) {
        let now = Instant::now();
        self.trim(now);
        for space in self.spaces.values_mut() {
            space.forget_publishers(now, limits::PUBLISHER_LIFE);
        }
        self.stop_announcing();
        self.take_out_ended();
        self.spaces.retain(|_, space| !space.is_unused());
        let silent = |peer: &Peer| {
            let lost = peer.back.lost_since.is_some_and(|since| now - since > limits::ORIGIN_PATIENCE);
            lost && !peer.back.given_up
        };
        let silent: Vec<NodeId> =
            self.peers.iter().filter(|(_, peer)| silent(peer)).map(|(node, _)| *node).collect();
        for node in silent {
            self.give_up(node);
            self.set_absent(node);
        }
        for peer in self.peers.values_mut() {
            peer.back.forget_ended();
            peer.out.state_due = true;
            peer.out.waker.wake();
        }
        self.tell_positions();
        self.metrics.set_links(self.peers.values().filter(|peer| peer.out.stands).count());
        self.metrics.set_ring_bytes(self.ring.bytes());
        self.metrics.set_queue_bytes(self.backlog.bytes());
    }

    /// Namespaces in which nobody publishes any more, and of which nothing is on its way.
    fn stop_announcing(&mut self) {
        let idle =
            |space: &&mut Space| space.announced && space.sessions == 0 && space.last <= space.forgotten;
        for space in self.spaces.values_mut().filter(idle) {
            space.announced = false;
            self.own.set_publishes(&space.name, false);
        }
    }

    fn tell_positions(&mut self) {
        let positions: Arc<[v1::Position]> = self.positions(true).into();
        let some_unaware = self.peers.values().any(|peer| !peer.back.unaware.is_empty());
        let is_gone = |node: &u64| !self.peers.contains_key(&NodeId(*node));
        let gone: Arc<[u64]> = self.departed.iter().copied().filter(is_gone).collect();
        for session in self.sessions.values_mut() {
            if session.queues.is_empty() || session.told == positions || session.outlet.is_overdue() {
                continue;
            }
            // What a node published that does not know of a subscription was not delivered, wherever it stands.
            let is_busy = |queue: &Arc<Queue>| !queue.is_idle() || queue.is_unaware();
            let may_be_busy = !session.outlet.is_idle() || some_unaware;
            let busy = session.queues.values().filter(|(queue, _)| may_be_busy && is_busy(queue));
            let except: Vec<u64> = busy.map(|(queue, _)| queue.number()).collect();
            if except.is_empty() {
                session.told = positions.clone();
            }
            if except.len() < session.queues.len() {
                session.outlet.tell_later(Later::Positions(positions.clone(), except, gone.clone()));
            }
        }
    }

    /// An origin is gone, perhaps for good, and what it was asked for may not come.
    pub(super) fn give_up(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if std::mem::replace(&mut peer.back.given_up, true) {
            return;
        }
        let back = &peer.back;
        for asked in back.asked.values().filter(|asked| asked.incarnation != 0) {
            let lost = back.may_have_lost(&asked.namespace, asked.incarnation, asked.after);
            if let Some(queue) = asked.queue.upgrade().filter(|_| lost) {
                queue.lag(None);
            }
        }
        self.mourn(node, false);
    }

    /// An incarnation of an origin is gone, perhaps with messages that nobody has. After it was given up it may have
    /// begun to publish in any namespace.
    pub(super) fn mourn(&self, node: NodeId, was_given_up: bool) {
        let Some(peer) = self.peers.get(&node) else { return };
        if peer.back.goodbye.is_none() {
            self.lag((!was_given_up).then_some(&peer.back.interest.publishes));
        }
    }
}

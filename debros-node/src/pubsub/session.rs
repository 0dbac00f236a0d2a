//! One client's session: carries out its calls in order, and holds publishers back while what they publish cannot
//! go on. Calls that wait for other nodes do not hold up those behind them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use debros_proto::{ErrorCode, Failure, NodeId, limits, v1};
use debros_topics::Pattern;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};
use tonic::Status;
use v1::session_call::Call;
use v1::session_event::Event;
use v1::session_failure::About;

use super::Shared;
use super::outlet::Outlet;
use super::peer::{Outbound, Progress};
use super::publish::{Goes, Holding, Incoming, Taken};
use super::queue::{Patience, Queue};
use super::router::Router;
use super::subscriptions::Wanted;
use crate::metrics::Stopwatch;

/// A client that sends more than its window is not read on.
const WAITING_BYTES_MAX: usize = 2 * limits::PUBLISH_WINDOW_BYTES as usize;
/// What a batch costs beside its bytes.
const BATCH_BYTES: usize = 256;
/// A node that has lost its connection is looked at again this often while a batch waits for it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// See the module.
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) number: u64,
    pub(super) namespace: Arc<str>,
    pub(super) publisher: u64,
    pub(super) outlet: Arc<Outlet>,
}

/// What a session's task has at hand.
struct Work {
    session: Session,
    /// The number of the first batch.
    base: Option<u64>,
    announced: bool,
    /// Batches, with when they came.
    waiting: VecDeque<(Stopwatch, v1::Publish)>,
    waiting_bytes: usize,
    held: Option<BoxFuture<'static, Patience>>,
    patience: Option<Patience>,
    /// A batch of which the first messages are taken in: its first number, and where they go.
    begun: Option<(u64, Vec<Goes>)>,
    /// What the client is told in a moment.
    accepted: Option<Accepted>,
    under_way: FuturesUnordered<BoxFuture<'static, ()>>,
}

/// Batches that are in the ring, up to this number. The client is told once the tasks that were woken for them have had
/// their turn: subscribers wait for the message, and the publisher for its answer, on the same processors.
struct Accepted {
    last: u64,
    turn: BoxFuture<'static, ()>,
}

impl Accepted {
    fn new() -> Self {
        Self { last: 0, turn: tokio::task::yield_now().boxed() }
    }

    async fn told(&mut self) -> u64 {
        self.turn.as_mut().await;
        self.last
    }
}

impl Session {
    /// Carries out calls until there are no more, or nobody listens.
    pub(super) async fn run(self, calls: impl Stream<Item = Result<v1::SessionCall, Status>> + Send) {
        let (shared, number, outlet) = (self.shared.clone(), self.number, self.outlet.clone());
        let mut work = Work {
            session: self,
            base: None,
            announced: false,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            held: None,
            patience: Some(Patience::new()),
            begun: None,
            accepted: None,
            under_way: FuturesUnordered::new(),
        };
        tokio::select! {
            () = outlet.ended() => {}
            () = shared.stop_sessions.cancelled() => {
                let stopping = Failure::new(ErrorCode::ShuttingDown, "the node is shutting down");
                outlet.end(Err(stopping));
            }
            ended = work.carry_out(calls) => outlet.end(ended),
        }
        shared.router().detach(number);
    }
}

impl Work {
    async fn carry_out(
        &mut self,
        calls: impl Stream<Item = Result<v1::SessionCall, Status>> + Send,
    ) -> Result<(), Failure> {
        tokio::pin!(calls);
        loop {
            while self.held.is_none()
                && let Some((since, batch)) = self.waiting.pop_front()
            {
                self.waiting_bytes -= batch.messages.len() + BATCH_BYTES;
                self.publish(since, batch);
            }
            let listens = self.waiting_bytes < WAITING_BYTES_MAX
                && self.under_way.len() < limits::SESSION_CALLS_MAX
                && !self.session.outlet.is_overdue();
            tokio::select! {
                biased;
                patience = async { self.held.as_mut().expect("checked").await }, if self.held.is_some() => {
                    (self.held, self.patience) = (None, Some(patience));
                }
                last = async { self.accepted.as_mut().expect("checked").told().await }, if self.accepted.is_some() => {
                    self.accepted = None;
                    self.session.outlet.accepted(last);
                }
                Some(()) = self.under_way.next(), if !self.under_way.is_empty() => {}
                call = calls.next(), if listens => match call {
                    Some(Ok(call)) => self.call(call)?,
                    // The connection says why; nobody is left to be told.
                    Some(Err(_)) | None => return Ok(()),
                },
                () = tokio::time::sleep(LOOK_AGAIN), if !listens => {}
            }
        }
    }

    fn call(&mut self, call: v1::SessionCall) -> Result<(), Failure> {
        let Session { shared, number, outlet, .. } = &self.session;
        match call.call {
            Some(Call::Publish(batch)) => {
                self.waiting_bytes += batch.messages.len() + BATCH_BYTES;
                self.waiting.push_back((Stopwatch::start(), batch));
            }
            Some(Call::Subscribe(subscribe)) => {
                let (since, about) = (Stopwatch::start(), About::Subscription(subscribe.subscription));
                let metrics = shared.metrics.clone();
                if let Err(failure) = self.subscribe(since, subscribe) {
                    metrics.subscribe_answered(since, Some(failure.code));
                    self.refuse(about, failure);
                }
            }
            Some(Call::Unsubscribe(v1::Unsubscribe { subscription })) => {
                let mut router = shared.router();
                if !router.unsubscribe(*number, subscription) {
                    router.unwatch_presence(*number, subscription);
                }
                outlet.tell(Event::Unsubscribed(v1::Unsubscribed { subscription }));
            }
            Some(Call::Credit(v1::Credit { subscription, bytes })) => {
                let queue = shared.router().queue(*number, subscription);
                if let Some(queue) = queue {
                    queue.add_credit(bytes);
                }
            }
            Some(Call::Enter(enter)) => {
                let presence = enter.presence;
                let entered = shared.router().enter(*number, enter);
                match entered {
                    Ok(()) => outlet.tell(Event::Entered(v1::Entered { presence })),
                    Err(failure) => self.refuse(About::Presence(presence), failure),
                }
            }
            Some(Call::Leave(v1::Leave { presence })) => shared.router().leave_by(*number, presence),
            Some(Call::WatchPresence(v1::WatchPresence { subscription, pattern })) => {
                let watched = pattern_of(&pattern)
                    .and_then(|pattern| shared.router().watch_presence(*number, subscription, pattern));
                if let Err(failure) = watched {
                    self.refuse(About::Subscription(subscription), failure);
                }
            }
            Some(Call::Attach(_)) => return Err(Failure::invalid("a session is attached once")),
            None => return Err(Failure::invalid("the call is none that this version knows")),
        }
        Ok(())
    }

    fn refuse(&self, about: About, failure: Failure) {
        let (about, failure) = (Some(about), Some(failure.into_call()));
        self.session.outlet.tell(Event::Failure(v1::SessionFailure { about, failure }));
    }

    fn refuse_batch(&self, since: Stopwatch, first: u64, failure: Failure) {
        self.session.shared.metrics.publish_answered(since, Some(failure.code));
        self.refuse(About::Publish(first), failure);
    }

    fn subscribe(&mut self, since: Stopwatch, subscribe: v1::Subscribe) -> Result<(), Failure> {
        let v1::Subscribe { subscription, pattern, group, credit_bytes, overflow, resume, positions } =
            subscribe;
        let Session { shared, number, outlet, .. } = &self.session;
        let pattern = pattern_of(&pattern)?;
        if group.len() > limits::GROUP_BYTES_MAX {
            return Err(Failure::limit("GROUP_BYTES_MAX", limits::GROUP_BYTES_MAX, group.len()));
        }
        let overflow = v1::Overflow::try_from(overflow)
            .map_err(|_| Failure::invalid(format!("{overflow} is no way to overflow")))?;
        let metrics = shared.metrics.clone();
        let queue = Queue::new(subscription, credit_bytes, overflow, outlet.clone(), metrics);
        let resumed: Option<Vec<u64>> =
            resume.then(|| positions.iter().map(|position| position.origin).collect());
        let wanted = Wanted {
            pattern,
            group: (!group.is_empty()).then(|| group.into()),
            queue: queue.clone(),
            resume: resume.then_some(positions),
        };
        let number = *number;
        let heeds = shared.router().subscribe(number, wanted)?;
        let (shared, outlet) = (shared.clone(), outlet.clone());
        let begin = async move {
            shared.settled().await;
            shared.heeded(heeds).await;
            let subscribed = shared.router().begun(number, &queue, heeds, resumed.as_deref());
            outlet.tell(Event::Subscribed(subscribed));
            shared.metrics.subscribe_answered(since, None);
        };
        self.under_way.push(begin.boxed());
        Ok(())
    }

    fn publish(&mut self, since: Stopwatch, batch: v1::Publish) {
        let Session { shared, namespace, publisher, outlet, .. } = &self.session;
        if !self.announced {
            self.announced = true;
            self.announce(since, batch);
            return;
        }
        let (first, mode) = (batch.first, batch.mode());
        let base = *self.base.get_or_insert(first);
        if first < base {
            let message = format!("the batch begins at {first}, before the first one of the session, {base}");
            return self.refuse_batch(since, first, Failure::invalid(message));
        }
        let incoming = Incoming { namespace: namespace.clone(), publisher: *publisher, base, batch };
        let taken = shared.router().publish(incoming);
        let Taken { last, sequence, goes, holding, rest } = match taken {
            Ok(taken) => taken,
            Err(failure) => {
                let first = self.begun.take().map_or(first, |(first, _)| first);
                return self.refuse_batch(since, first, failure);
            }
        };
        let (first, goes) = match self.begun.take() {
            Some((first, before)) => (first, before.into_iter().chain(goes).collect()),
            None => (first, goes),
        };
        if let Some(rest) = rest {
            self.begun = Some((first, goes));
            return self.give_way(since, rest, holding);
        }
        match mode {
            v1::PublishMode::Accepted => {
                self.accepted.get_or_insert_with(Accepted::new).last = last;
                shared.metrics.publish_answered(since, None);
            }
            v1::PublishMode::Routed => {
                outlet.tell(published(last, &goes, &[]));
                shared.metrics.publish_answered(since, None);
            }
            v1::PublishMode::Received => {
                let (shared, outlet) = (shared.clone(), outlet.clone());
                let received = async move {
                    let received = shared.received(sequence, &goes).await;
                    shared
                        .metrics
                        .publish_answered(since, received.as_ref().err().map(|failure| failure.code));
                    let event = match received {
                        Ok(without) => published(last, &goes, &without),
                        Err(failure) => Event::Failure(v1::SessionFailure {
                            about: Some(About::Publish(first)),
                            failure: Some(failure.into_call()),
                        }),
                    };
                    outlet.tell(event);
                };
                self.under_way.push(received.boxed());
            }
        }
        self.hold(holding);
    }

    /// Lets others have their turn before the rest of a batch is taken in.
    fn give_way(&mut self, since: Stopwatch, rest: v1::Publish, holding: Holding) {
        self.waiting_bytes += rest.messages.len() + BATCH_BYTES;
        self.waiting.push_front((since, rest));
        self.hold(holding);
        if let Some(patience) = self.patience.take() {
            self.held = Some(tokio::task::yield_now().map(|()| patience).boxed());
        }
    }

    /// Before the first batch the other nodes hear that there will be some.
    fn announce(&mut self, since: Stopwatch, batch: v1::Publish) {
        let Session { shared, namespace, .. } = &self.session;
        let version = shared.router().announce(namespace);
        self.waiting_bytes += batch.messages.len() + BATCH_BYTES;
        self.waiting.push_front((since, batch));
        if let Some(patience) = self.patience.take() {
            let shared = shared.clone();
            let heeded = async move {
                shared.settled().await;
                shared.heeded(version).await;
                patience
            };
            self.held = Some(heeded.boxed());
        }
    }

    fn hold(&mut self, mut holding: Holding) {
        let Session { shared, namespace, outlet, .. } = &self.session;
        // A client that does not read would wait for itself.
        holding.pressed.retain(|queue| !Arc::ptr_eq(queue.outlet(), outlet));
        if holding.is_empty() {
            return;
        }
        let Some(mut patience) = self.patience.take() else { return };
        let (shared, namespace) = (shared.clone(), namespace.clone());
        let wait = async move {
            let Holding { pressed, pressed_at, behind } = holding;
            shared.caught_up(behind).await;
            let room = async {
                for queue in pressed {
                    queue.room().await;
                }
                shared.eased(pressed_at, &namespace).await;
            };
            patience.give(room).await;
            patience
        };
        self.held = Some(wait.boxed());
    }
}

fn pattern_of(text: &str) -> Result<Pattern, Failure> {
    Pattern::new(text).map_err(|error| Failure::invalid(error.to_string()))
}

/// Tells of each message to how many nodes it went, without those that were given up.
fn published(last: u64, goes: &[Goes], without: &[NodeId]) -> Event {
    let count = |goes: &Goes| {
        let nodes = goes.nodes.iter().filter(|node| !without.contains(node)).count();
        (nodes + usize::from(goes.here)) as u32
    };
    let nodes = goes.iter().flat_map(|goes| std::iter::repeat_n(count(goes), goes.count as usize));
    Event::Published(v1::Published { last, nodes: nodes.collect() })
}

impl Shared {
    /// Waits until the nodes in reach heed a version of this node's interest, but not for long.
    async fn heeded(&self, version: u64) {
        let deadline = Instant::now() + limits::SUBSCRIBE_PATIENCE;
        for (peer, mut progress) in self.progress() {
            if self.channels.network().is_connected(peer) {
                let heeds = progress.wait_for(|progress| progress.heeds >= version);
                let _ = timeout_at(deadline, heeds).await;
            }
        }
    }

    fn progress(&self) -> Vec<(debros_net::PeerId, watch::Receiver<Progress>)> {
        let router = self.router();
        router.peers.values().map(|peer| (peer.peer, peer.out.progress.subscribe())).collect()
    }

    /// Waits until all these nodes have the messages. Gives those that have gone without them.
    ///
    /// # Errors
    /// `UNKNOWN_OUTCOME` when one in reach does not say so in time.
    async fn received(&self, sequence: u64, goes: &[Goes]) -> Result<Vec<NodeId>, Failure> {
        let deadline = Instant::now() + limits::REQUEST_TIMEOUT_DEFAULT;
        let mut nodes: Vec<NodeId> = goes.iter().flat_map(|goes| goes.nodes.iter().copied()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let mut without = Vec::new();
        for node in nodes {
            let progress = self.router().peers.get(&node).map(|peer| peer.out.progress.subscribe());
            let Some(mut progress) = progress else {
                without.push(node);
                continue;
            };
            loop {
                let Progress { received, lost_since, .. } = *progress.borrow_and_update();
                if received >= sequence {
                    break;
                }
                if lost_since.is_some_and(|since| since.elapsed() > limits::RECEIVE_PATIENCE) {
                    without.push(node);
                    break;
                }
                if Instant::now() >= deadline {
                    let message = format!("node {node} has not said in time that it has the messages");
                    return Err(Failure::new(ErrorCode::UnknownOutcome, message));
                }
                tokio::select! {
                    changed = progress.changed() => if changed.is_err() {
                        without.push(node);
                        break;
                    },
                    () = tokio::time::sleep(LOOK_AGAIN) => {}
                }
            }
        }
        Ok(without)
    }

    /// Waits until these nodes have taken most of what is for them, for all of them at once. One that takes nothing
    /// is not waited for again before it has.
    async fn caught_up(&self, nodes: Vec<NodeId>) {
        let deadline = Instant::now() + limits::LINK_PATIENCE;
        for node in nodes {
            let caught_up = self.while_so(node, |out| &out.room, |router| router.is_behind(node));
            if timeout_at(deadline, caught_up).await.is_err() {
                self.router().set_slow(node);
            }
        }
    }

    /// Waits until the subscriptions of a namespace at these nodes have room.
    async fn eased(&self, nodes: Vec<NodeId>, namespace: &str) {
        for node in nodes {
            self.while_so(node, |out| &out.eased, |router| router.is_pressed(node, namespace)).await;
        }
    }

    /// Waits while something is so of a node, which is told of by a notice.
    async fn while_so(
        &self,
        node: NodeId,
        notice: impl Fn(&Outbound) -> &Arc<Notify>,
        is_so: impl Fn(&Router) -> bool,
    ) {
        loop {
            let found = self.router().peers.get(&node).map(|peer| notice(&peer.out).clone());
            let Some(changed) = found else { return };
            let notified = changed.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if !is_so(&self.router()) {
                return;
            }
            notified.await;
        }
    }
}

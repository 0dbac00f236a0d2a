//! A client's one session of pub/sub, over all nodes that it is attached to in turn: what waits to be sent, and
//! what is to be said again at the next node. `attachment` holds the stream; this is plain data behind a short
//! lock.
//!
//! ```text
//! callers --> state --> Calls (polled by the connection when it has room) --> node
//!               ^-- events <-- attachment (always reads) <-------------------+
//! ```
//!
//! Invariants: only the latest attachment is served. What waits is bounded: publishes by permits, subscriptions
//! and presences by their number, everything else by these.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use debros_proto::{ErrorCode, Failure, limits, v1};
use futures::stream::Stream;
use futures::task::AtomicWaker;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout_at};
use v1::session_call::Call;
use v1::session_event::Event;
use v1::session_failure::About;

use super::batch::{Outgoing, Part};
use super::presence::{Board, Presences, Settlings};
use super::publishing::{Publishing, Settled, Ticket};
use super::replies::Replies;
use super::settling::Settling;
use super::subscription::{Mailbox, Source};
use super::subscriptions::{Subscribing, Subscriptions};
use super::{SubscribeOptions, TopicInfo};
use crate::error::{Error, ErrorKind};
use crate::statement::too_large;

/// Bytes that may wait to be published and be under way, over all callers: what a node lets be under way, and as
/// much again to be packed meanwhile.
const ROOM_BYTES: usize = 2 * limits::PUBLISH_WINDOW_BYTES as usize;
/// Bytes of one subscription that may wait in this process, unless said otherwise: twenty milliseconds at full speed.
pub(crate) const BUFFER_BYTES_DEFAULT: u64 = 2 << 20;
/// Calls other than publishes that wait for a connection which takes nothing.
const CALLS_WAITING_MAX: usize = limits::SUBSCRIPTIONS_PER_SESSION_MAX;

/// See the module.
pub(crate) struct Session {
    state: Mutex<State>,
    room: Semaphore,
    /// Something is to be sent and no node is attached to.
    wanted: Notify,
    started: AtomicBool,
    pub(crate) replies: Replies,
}

#[derive(Default)]
struct State {
    /// A node tells by it what was sent before. Drawn at the first attachment; 0 until then.
    publisher: u64,
    attached: Option<Attachment>,
    /// Numbers of attachments that were begun, and of those that are over.
    begun: u64,
    over: u64,
    calls: VecDeque<Call>,
    publishing: Publishing,
    subscriptions: Subscriptions,
    presences: Presences,
    last_number: u64,
    closed: bool,
}

/// Something that a node was asked for, and stands when `begun` is settled.
pub(crate) struct Beginning<T> {
    pub(crate) number: u64,
    /// Where what comes of it is told.
    pub(crate) told_in: Arc<T>,
    pub(crate) begun: Arc<Settling<()>>,
}

struct Attachment {
    number: u64,
    waker: Arc<AtomicWaker>,
}

impl Session {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            room: Semaphore::new(ROOM_BYTES),
            wanted: Notify::new(),
            started: AtomicBool::new(false),
            replies: Replies::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this is the first use.
    pub(crate) fn start(&self) -> bool {
        !self.started.load(Ordering::Relaxed) && !self.started.swap(true, Ordering::Relaxed)
    }

    /// Waits until something is to be sent.
    pub(crate) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Wakes whoever sends, once the lock is free: it is the first thing that the woken one takes.
    fn wake(&self, state: MutexGuard<'_, State>) {
        let Some(attached) = &state.attached else {
            drop(state);
            return self.wanted.notify_one();
        };
        let waker = attached.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Waits until so many bytes may be added; no longer than to the deadline.
    pub(crate) async fn room(&self, bytes: usize, deadline: Instant) -> Result<(), Error> {
        let permits = u32::try_from(bytes).expect("a message is far smaller");
        if let Ok(room) = self.room.try_acquire_many(permits) {
            room.forget();
            return Ok(());
        }
        match timeout_at(deadline, self.room.acquire_many(permits)).await {
            Ok(Ok(room)) => {
                room.forget();
                Ok(())
            }
            Ok(Err(_)) => Err(Error::closed()),
            Err(_) => {
                let message = "no node has taken in what was published before; nothing of this was sent";
                Err(Error::new(ErrorKind::Busy, message))
            }
        }
    }

    /// Adds a message that was checked and has room.
    pub(crate) fn publish(&self, message: &Outgoing<'_>, mode: v1::PublishMode) -> Result<Ticket, Error> {
        let mut state = self.state();
        state.check_open()?;
        let ticket = state.publishing.add(message, mode)?;
        self.wake(state);
        Ok(ticket)
    }

    /// Adds messages that have room.
    pub(crate) fn publish_part(&self, part: Part, mode: v1::PublishMode) -> Result<Ticket, Error> {
        let mut state = self.state();
        state.check_open()?;
        let ticket = state.publishing.add_part(part, mode);
        self.wake(state);
        Ok(ticket)
    }

    /// Adds a subscription.
    pub(crate) fn subscribe(
        &self,
        pattern: &str,
        options: SubscribeOptions,
    ) -> Result<Beginning<Mailbox>, Error> {
        let buffer = options.buffer_bytes.unwrap_or(BUFFER_BYTES_DEFAULT);
        let mailbox = Mailbox::new(buffer.clamp(1, limits::SUBSCRIPTION_CREDIT_BYTES_MAX));
        self.subscribe_into(pattern, options, mailbox)
    }

    /// Adds a subscription whose messages go into a mailbox.
    pub(crate) fn subscribe_into(
        &self,
        pattern: &str,
        options: SubscribeOptions,
        mailbox: Arc<Mailbox>,
    ) -> Result<Beginning<Mailbox>, Error> {
        let SubscribeOptions { group, overflow, buffer_bytes: _ } = options;
        let mut subscribing = Subscribing::new(pattern, group, overflow, mailbox.clone());
        let begun = subscribing.begun.clone();
        let mut state = self.state();
        let count = state.subscriptions.len() + 1;
        let number = state.number(count)?;
        state.call(|| Call::Subscribe(subscribing.call(number)));
        state.subscriptions.add(number, subscribing);
        self.wake(state);
        Ok(Beginning { number, told_in: mailbox, begun })
    }

    /// Ends all subscriptions to a pattern.
    pub(crate) fn unsubscribe_all(&self, pattern: &str) -> Result<usize, Error> {
        let mut state = self.state();
        state.check_open()?;
        let ended = state.subscriptions.end_of(pattern);
        for subscription in &ended {
            let subscription = *subscription;
            state.call(|| Call::Unsubscribe(v1::Unsubscribe { subscription }));
        }
        self.wake(state);
        Ok(ended.len())
    }

    /// What is subscribed to.
    pub(crate) fn topics(&self) -> Vec<TopicInfo> {
        self.state().subscriptions.topics()
    }

    /// Adds a presence.
    pub(crate) fn enter(&self, topic: &str, member: &str, data: Bytes) -> Result<(u64, Settlings), Error> {
        let mut state = self.state();
        let count = state.presences.entered() + 1;
        let presence = state.number(count)?;
        let enter = v1::Enter { presence, topic: topic.to_owned(), member: member.to_owned(), data };
        state.call(|| Call::Enter(enter.clone()));
        let entered = state.presences.enter(enter);
        self.wake(state);
        Ok((presence, entered))
    }

    /// Ends a presence.
    pub(crate) fn leave(&self, presence: u64) {
        let mut state = self.state();
        if state.presences.leave(presence) {
            state.call(|| Call::Leave(v1::Leave { presence }));
            self.wake(state);
        }
    }

    /// Adds a watch of presence.
    pub(crate) fn watch_presence(&self, pattern: &str) -> Result<Beginning<Board>, Error> {
        let mut state = self.state();
        let (max, count) = (limits::PRESENCE_WATCHES_PER_SESSION_MAX, state.presences.watches() + 1);
        if count > max {
            return Err(too_large("PRESENCE_WATCHES_PER_SESSION_MAX", max, count));
        }
        let subscription = state.number(count)?;
        let pattern = pattern.to_owned();
        state.call(|| Call::WatchPresence(v1::WatchPresence { subscription, pattern: pattern.clone() }));
        let (board, begun) = state.presences.watch(subscription, pattern);
        self.wake(state);
        Ok(Beginning { number: subscription, told_in: board, begun })
    }

    /// The calls of a new attachment, which is served once it is the latest.
    pub(crate) fn begin(self: &Arc<Self>, mut attach: v1::Attach) -> (u64, Calls) {
        let mut state = self.state();
        if state.publisher == 0 {
            state.publisher = rand::random_range(1..=u64::MAX);
        }
        attach.publisher = state.publisher;
        state.begun += 1;
        let (number, waker) = (state.begun, Arc::default());
        drop(state);
        (number, Calls { session: self.clone(), number, attach: Some(attach), waker })
    }

    /// From now on a node serves this attachment: it is told everything that the last one knew.
    pub(crate) fn attached(&self, number: u64, waker: Arc<AtomicWaker>, attached: &v1::Attached) {
        let mut state = self.state();
        state.publishing.set_window(attached.publish_window_bytes);
        let resumed = state.subscriptions.calls().into_iter().map(Call::Subscribe).collect::<Vec<_>>();
        let presences = state.presences.calls();
        state.calls.clear();
        state.calls.extend(resumed.into_iter().chain(presences));
        state.attached = Some(Attachment { number, waker });
        self.wake(state);
    }

    /// The attachment is over.
    pub(crate) fn detached(&self) {
        let mut state = self.state();
        if let Some(Attachment { number, waker }) = state.attached.take() {
            state.over = number;
            waker.wake();
        }
        state.calls.clear();
        let freed = state.publishing.detached();
        drop(state);
        self.room.add_permits(freed);
    }

    /// No node will serve this client: everything that waits fails.
    pub(crate) fn fail(&self, failure: &Failure) {
        let mut state = self.state();
        let freed = state.publishing.give_up(failure);
        state.subscriptions.end(failure, || Some(failure.clone().into()));
        state.presences.end(failure, || Some(failure.clone().into()));
        drop(state);
        self.room.add_permits(freed);
    }

    /// The client is closed.
    pub(crate) fn close(&self) {
        self.detached();
        let failure = Failure::new(ErrorCode::ShuttingDown, Error::closed().to_string());
        let mut state = self.state();
        state.closed = true;
        state.publishing.give_up(&failure);
        state.subscriptions.end(&failure, || Some(Error::closed()));
        state.presences.end(&failure, || Some(Error::closed()));
        drop(state);
        self.room.close();
        self.replies.close();
    }

    /// Takes in what a node says.
    ///
    /// # Errors
    /// The session ends.
    pub(crate) fn take(&self, event: v1::SessionEvent) -> Result<(), Failure> {
        let mut state = self.state();
        let mut settled = Settled::default();
        let mut wakes = false;
        match event.event {
            Some(Event::Deliveries(deliveries)) => {
                if let Some((subscription, bytes)) = state.subscriptions.deliver(deliveries) {
                    state.call(|| Call::Credit(v1::Credit { subscription, bytes }));
                    wakes = true;
                }
            }
            Some(Event::Published(published)) => {
                settled = state.publishing.acknowledge(published);
                wakes = state.publishing.has_waiting();
            }
            Some(Event::Subscribed(subscribed)) => {
                state.presences.begin(subscribed.subscription);
                state.subscriptions.begin(subscribed);
            }
            Some(Event::Positions(positions)) => state.subscriptions.reach(positions),
            Some(Event::Entered(v1::Entered { presence })) => state.presences.entered_by(presence),
            Some(Event::Presence(events)) => state.presences.tell(events),
            Some(Event::Failure(v1::SessionFailure { about, failure })) => {
                let failure = Failure::from_call(failure.unwrap_or_default());
                match about {
                    Some(About::Publish(first)) => {
                        settled = state.publishing.refuse(first, failure);
                        wakes = state.publishing.has_waiting();
                    }
                    Some(About::Subscription(number)) => {
                        if state.subscriptions.goes_elsewhere(number, &failure) {
                            return Err(failure);
                        }
                        if !state.subscriptions.refuse(number, failure.clone()) {
                            state.presences.refuse_watch(number, failure);
                        }
                    }
                    Some(About::Presence(presence)) => state.presences.refuse(presence, failure),
                    None => return Err(failure),
                }
            }
            // It was forgotten when it was ended. What is unknown is of a newer version.
            Some(Event::Unsubscribed(_) | Event::Attached(_)) | None => {}
        }
        // What waited for the node's window can go, and nobody is woken to find the lock taken.
        if wakes {
            self.wake(state);
        } else {
            drop(state);
        }
        let freed = settled.tell();
        if freed > 0 {
            self.room.add_permits(freed);
        }
        Ok(())
    }
}

impl Source for Session {
    fn consumed(&self, subscription: u64, bytes: u64) {
        let mut state = self.state();
        state.call(|| Call::Credit(v1::Credit { subscription, bytes }));
        self.wake(state);
    }

    fn unsubscribe(&self, subscription: u64) {
        let mut state = self.state();
        if state.subscriptions.remove(subscription) || state.presences.unwatch(subscription) {
            state.call(|| Call::Unsubscribe(v1::Unsubscribe { subscription }));
            self.wake(state);
        }
    }
}

impl State {
    fn check_open(&self) -> Result<(), Error> {
        if self.closed { Err(Error::closed()) } else { Ok(()) }
    }

    /// The number of something new, of which there are so many then.
    fn number(&mut self, count: usize) -> Result<u64, Error> {
        self.check_open()?;
        let max = limits::SUBSCRIPTIONS_PER_SESSION_MAX;
        if count > max {
            return Err(too_large("SUBSCRIPTIONS_PER_SESSION_MAX", max, count));
        }
        if self.calls.len() >= CALLS_WAITING_MAX {
            let message = "the node takes no calls; try again in a moment";
            return Err(Error::new(ErrorKind::Busy, message));
        }
        self.last_number += 1;
        Ok(self.last_number)
    }

    /// Says something to the node; the next one hears it of itself.
    fn call(&mut self, call: impl FnOnce() -> Call) {
        if self.attached.is_some() {
            self.calls.push_back(call());
        }
    }
}

/// What one attachment sends.
pub(crate) struct Calls {
    session: Arc<Session>,
    number: u64,
    attach: Option<v1::Attach>,
    waker: Arc<AtomicWaker>,
}

impl Calls {
    /// Wakes whoever sends them.
    pub(crate) fn waker(&self) -> Arc<AtomicWaker> {
        self.waker.clone()
    }
}

impl Stream for Calls {
    type Item = v1::SessionCall;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let say = |call| Poll::Ready(Some(v1::SessionCall { call: Some(call) }));
        if let Some(attach) = self.attach.take() {
            return say(Call::Attach(attach));
        }
        self.waker.register(context.waker());
        let mut state = self.session.state();
        if state.over >= self.number {
            return Poll::Ready(None);
        }
        if state.attached.as_ref().is_none_or(|attached| attached.number != self.number) {
            return Poll::Pending;
        }
        if let Some(call) = state.calls.pop_front() {
            return say(call);
        }
        match state.publishing.take() {
            Some(publish) => say(Call::Publish(publish)),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Wake, Waker};

    use debros_proto::{ErrorCode, Failure, v1};
    use futures::stream::Stream;
    use v1::session_call::Call;
    use v1::session_event::Event;
    use v1::session_failure::About;

    use super::{Calls, Session};
    use crate::pubsub::SubscribeOptions;
    use crate::pubsub::batch::Outgoing;

    /// A node that is attached to: what it reads, and how often it was woken to read.
    struct Node {
        calls: Calls,
        woken: Arc<Woken>,
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Node {
        fn attached(session: &Arc<Session>, window: u64) -> Self {
            let (number, calls) = session.begin(v1::Attach::default());
            let mut node = Self { calls, woken: Arc::default() };
            assert!(matches!(node.read()[..], [Call::Attach(_)]));
            let attached = v1::Attached { publish_window_bytes: window, ..Default::default() };
            session.attached(number, node.calls.waker(), &attached);
            node
        }

        /// All that is there for it.
        fn read(&mut self) -> Vec<Call> {
            let waker = Waker::from(self.woken.clone());
            let mut context = Context::from_waker(&waker);
            let mut next = || match Pin::new(&mut self.calls).poll_next(&mut context) {
                Poll::Ready(call) => call.and_then(|call| call.call),
                Poll::Pending => None,
            };
            std::iter::from_fn(&mut next).collect()
        }

        fn times_woken(&self) -> usize {
            self.woken.0.swap(0, Ordering::Relaxed)
        }
    }

    fn tell(session: &Session, event: Event) -> Result<(), Failure> {
        session.take(v1::SessionEvent { event: Some(event) })
    }

    #[test]
    fn an_acknowledgement_wakes_nobody_unless_something_waits_for_it() {
        let session = Session::new();
        let mut node = Node::attached(&session, 1);
        let message = Outgoing::new("t", b"payload");
        session.publish(&message, v1::PublishMode::Accepted).unwrap();
        assert_eq!(node.read().len(), 1);
        node.times_woken();
        tell(&session, Event::Published(v1::Published { last: 1, nodes: vec![] })).unwrap();
        assert_eq!(node.times_woken(), 0);
        // The second one is beyond the window.
        for _ in 0..2 {
            session.publish(&message, v1::PublishMode::Accepted).unwrap();
            node.read();
        }
        node.times_woken();
        tell(&session, Event::Published(v1::Published { last: 2, nodes: vec![] })).unwrap();
        assert_eq!((node.times_woken(), node.read().len()), (1, 1));
    }

    #[test]
    fn a_subscription_that_a_full_node_refuses_goes_on_at_another() {
        let session = Session::new();
        let mut node = Node::attached(&session, 1);
        let subscribed = session.subscribe("t", SubscribeOptions::default()).unwrap();
        assert!(matches!(node.read()[..], [Call::Subscribe(_)]));
        let subscription = subscribed.number;
        tell(&session, Event::Subscribed(v1::Subscribed { subscription, ..Default::default() })).unwrap();
        session.detached();
        let mut full = Node::attached(&session, 1);
        assert!(matches!(&full.read()[..], [Call::Subscribe(call)] if call.resume));
        let failure = Failure::new(ErrorCode::LimitExceeded, "full").elsewhere();
        let about = Some(About::Subscription(subscription));
        let refused = v1::SessionFailure { about, failure: Some(failure.clone().into_call()) };
        assert_eq!(tell(&session, Event::Failure(refused)), Err(failure), "it is left");
        session.detached();
        let mut other = Node::attached(&session, 1);
        assert!(matches!(&other.read()[..], [Call::Subscribe(call)] if call.resume));
        assert_eq!(session.topics().len(), 1);
    }
}

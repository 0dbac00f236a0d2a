//! What a session sends: answers to its calls first, then its subscriptions in turn.
//!
//! ```text
//! session task, router --> events --+
//! queues that can send --> ready ---+--> Events (polled by the connection) --> client
//! ```
//!
//! The queues are bounded by themselves, the events by the calls that a session may have under way; what tells of many is
//! made when it is sent.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use debros_proto::{Failure, limits, v1};
use futures::Stream;
use futures::task::AtomicWaker;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use v1::session_event::Event;

use super::presence::{Here, MEMBERS_PER_EVENT};
use super::queue::Queue;

/// So much may wait for a session in the memory that it came in.
const SHARED_BYTES: usize = 64 << 10;
/// The same for all sessions of a node, but for what is the first to wait for its session.
const SHARED_BYTES_IN_ALL: usize = 1 << 20;

/// What waits for all sessions of a node.
#[derive(Default)]
pub(super) struct Backlog {
    bytes: AtomicUsize,
    /// For how many something waits.
    sessions: AtomicUsize,
}

impl Backlog {
    /// Bytes in all queues.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    /// What may wait for one session when there is so much in all.
    fn session_max(&self, bytes: usize) -> usize {
        if bytes <= limits::NODE_QUEUES_BYTES {
            return limits::SESSION_QUEUES_BYTES;
        }
        let part = limits::NODE_QUEUES_BYTES / self.sessions.load(Relaxed).max(1);
        part.min(limits::SESSION_QUEUES_BYTES)
    }
}

/// What a queue may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allowed {
    pub(super) bytes: usize,
    /// The newest entry may be larger than that, if it is the only one.
    pub(super) newest: bool,
}

/// The way out of one session.
pub(super) struct Outlet {
    state: Mutex<State>,
    waker: AtomicWaker,
    /// Bytes in the queues of the session.
    waiting: AtomicUsize,
    /// How many queues the session has.
    queues: AtomicUsize,
    /// What one of its queues may hold.
    queue_bytes: usize,
    overflowed: AtomicBool,
    /// What waits for all sessions.
    backlog: Arc<Backlog>,
    /// Cancelled when nobody listens any more, or the session is to end.
    ended: CancellationToken,
}

/// An event that is made when it is sent: as it waits it shares what it tells with others that wait.
pub(super) enum Later {
    Event(Event),
    /// Somebody has entered, or left.
    Presence {
        subscription: u64,
        left: bool,
        member: Arc<v1::PresentMember>,
    },
    /// Who is here; as many events as it takes.
    Here(Here),
    /// Positions, the subscriptions of which they are not, and nodes that have left.
    Positions(Arc<[v1::Position]>, Vec<u64>, Arc<[u64]>),
}

#[derive(Default)]
struct State {
    events: VecDeque<Later>,
    /// Members that wait to be told of to those that begin to watch.
    here: usize,
    ready: VecDeque<Arc<Queue>>,
    /// The last accepted number that was not told yet.
    accepted: Option<u64>,
    end: Option<Result<(), Status>>,
}

impl Outlet {
    /// Nothing to send yet.
    pub(super) fn new(queue_bytes: usize, backlog: Arc<Backlog>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            waker: AtomicWaker::new(),
            waiting: AtomicUsize::new(0),
            queues: AtomicUsize::new(0),
            queue_bytes,
            overflowed: AtomicBool::new(false),
            backlog,
            ended: CancellationToken::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends an event.
    pub(super) fn tell(&self, event: Event) {
        self.tell_later(Later::Event(event));
    }

    /// Sends what becomes an event, or several.
    pub(super) fn tell_later(&self, later: Later) {
        let mut state = self.state();
        if let Later::Here(here) = &later {
            state.here += here.left();
        }
        state.events.push_back(later);
        drop(state);
        self.waker.wake();
    }

    /// Acknowledges all batches up to this number; several become one answer.
    pub(super) fn accepted(&self, last: u64) {
        let mut state = self.state();
        state.accepted = Some(state.accepted.unwrap_or(0).max(last));
        drop(state);
        self.waker.wake();
    }

    /// A queue that can send, and is not among the ready ones.
    pub(super) fn ready(&self, queue: Arc<Queue>) {
        self.state().ready.push_back(queue);
        self.waker.wake();
    }

    /// The session has one queue more.
    pub(super) fn open_queue(&self) {
        self.queues.fetch_add(1, Relaxed);
    }

    /// The session has one queue less.
    pub(super) fn close_queue(&self) {
        self.queues.fetch_sub(1, Relaxed);
    }

    /// Bytes were added to a queue. Gives how much that queue may hold: less when session or node have too much.
    pub(super) fn allowed(&self, added: usize) -> Allowed {
        let before = self.waiting.fetch_add(added, Relaxed);
        if before == 0 {
            self.backlog.sessions.fetch_add(1, Relaxed);
        }
        let all = self.backlog.bytes.fetch_add(added, Relaxed) + added;
        let max = self.backlog.session_max(all);
        if before + added <= max {
            return Allowed { bytes: self.queue_bytes, newest: true };
        }
        let part = max / self.queues.load(Relaxed).max(1);
        Allowed { bytes: part.min(self.queue_bytes), newest: before <= max }
    }

    /// Bytes have left a queue.
    pub(super) fn gone(&self, bytes: usize) {
        if bytes > 0 {
            if self.waiting.fetch_sub(bytes, Relaxed) == bytes {
                self.backlog.sessions.fetch_sub(1, Relaxed);
            }
            self.backlog.bytes.fetch_sub(bytes, Relaxed);
        }
    }

    /// One of the queues has ended by overflowing.
    pub(super) fn note_overflow(&self) {
        self.overflowed.store(true, Relaxed);
    }

    /// Whether any has since this was asked last.
    pub(super) fn has_overflowed(&self) -> bool {
        self.overflowed.swap(false, Relaxed)
    }

    /// Whether nothing waits in any queue, no notice either.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.load(Relaxed) == 0
    }

    /// Whether so much waits that what is added is not sent in a moment.
    pub(super) fn is_behind(&self) -> bool {
        let waiting = self.waiting.load(Relaxed);
        waiting > SHARED_BYTES || waiting > 0 && self.backlog.bytes() > SHARED_BYTES_IN_ALL
    }

    /// Whether so much is waiting that no more is done for the client before it has taken some.
    pub(super) fn is_overdue(&self) -> bool {
        let state = self.state();
        state.events.len() + state.here / MEMBERS_PER_EVENT > limits::SESSION_CALLS_MAX
    }

    /// Whether more is waiting than the client's own calls explain: it does not listen.
    pub(super) fn takes_nothing(&self) -> bool {
        self.state().events.len() > limits::SESSION_CALLS_MAX
    }

    /// Ends the session, with what went wrong.
    pub(super) fn end(&self, how: Result<(), Failure>) {
        let mut state = self.state();
        state.end.get_or_insert(how.map_err(Status::from));
        drop(state);
        self.ended.cancel();
        self.waker.wake();
    }

    /// Resolves when the session has ended.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

/// The events of a session. The session ends when they are dropped.
pub struct Events {
    outlet: Arc<Outlet>,
    _ends: DropGuard,
}

impl Events {
    pub(super) fn new(outlet: Arc<Outlet>) -> Self {
        let ends = outlet.ended.clone().drop_guard();
        Self { outlet, _ends: ends }
    }
}

impl State {
    /// The event that is sent next.
    fn next_event(&mut self) -> Option<Event> {
        loop {
            match self.events.pop_front()? {
                Later::Event(event) => return Some(event),
                Later::Presence { subscription, left, member } => {
                    let event = v1::PresenceEvent { left, member: Some((*member).clone()) };
                    let events = vec![event];
                    return Some(Event::Presence(v1::PresenceEvents { subscription, events }));
                }
                Later::Here(mut here) => {
                    let before = here.left();
                    let events = here.next_event();
                    self.here -= before - here.left();
                    if let Some(events) = events {
                        self.events.push_front(Later::Here(here));
                        return Some(Event::Presence(events));
                    }
                }
                Later::Positions(positions, except, gone) => {
                    let (positions, gone) = (positions.to_vec(), gone.to_vec());
                    return Some(Event::Positions(v1::Positions { positions, except, gone }));
                }
            }
        }
    }
}

impl Stream for Events {
    type Item = Result<v1::SessionEvent, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let outlet = &self.outlet;
        outlet.waker.register(context.waker());
        let mut state = outlet.state();
        let event = |event| Poll::Ready(Some(Ok(v1::SessionEvent { event: Some(event) })));
        if let Some(next) = state.next_event() {
            return event(next);
        }
        if let Some(last) = state.accepted.take() {
            return event(Event::Published(v1::Published { last, nodes: Vec::new() }));
        }
        match &mut state.end {
            Some(Err(status)) => {
                let status = status.clone();
                state.end = Some(Ok(()));
                return Poll::Ready(Some(Err(status)));
            }
            Some(Ok(())) => return Poll::Ready(None),
            None => {}
        }
        while let Some(queue) = state.ready.pop_front() {
            drop(state);
            let (deliveries, more) = queue.take();
            state = outlet.state();
            if more {
                state.ready.push_back(queue);
            }
            if let Some(deliveries) = deliveries {
                return event(Event::Deliveries(deliveries));
            }
        }
        Poll::Pending
    }
}

//! What a session sends: answers to its calls first, then its subscriptions in turn.
//!
//! ```text
//! session task, router --> events --+
//! queues that can send --> ready ---+--> Events (polled by the connection) --> client
//! ```
//!
//! The queues are bounded by themselves, the events by the calls that a session may have under way.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use debros_proto::{Failure, limits, v1};
use futures::Stream;
use futures::task::AtomicWaker;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use v1::session_event::Event;

use super::queue::Queue;

/// The way out of one session.
pub(super) struct Outlet {
    state: Mutex<State>,
    waker: AtomicWaker,
    /// Bytes in the queues of the session.
    waiting: AtomicUsize,
    /// What one of its queues may hold.
    queue_bytes: usize,
    /// Bytes in all queues of the node.
    waiting_in_all: Arc<AtomicUsize>,
    /// Cancelled when nobody listens any more, or the session is to end.
    ended: CancellationToken,
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    ready: VecDeque<Arc<Queue>>,
    /// The last accepted number that was not told yet.
    accepted: Option<u64>,
    end: Option<Result<(), Status>>,
}

impl Outlet {
    /// Nothing to send yet.
    pub(super) fn new(queue_bytes: usize, waiting_in_all: Arc<AtomicUsize>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            waker: AtomicWaker::new(),
            waiting: AtomicUsize::new(0),
            queue_bytes,
            waiting_in_all,
            ended: CancellationToken::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends an event.
    pub(super) fn tell(&self, event: Event) {
        self.state().events.push_back(event);
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

    /// Bytes were added to a queue. Gives how many that queue may hold: less when session or node have too many.
    pub(super) fn allowed(&self, added: usize) -> usize {
        let session = self.waiting.fetch_add(added, Relaxed) + added;
        let all = self.waiting_in_all.fetch_add(added, Relaxed) + added;
        match session > limits::SESSION_QUEUES_BYTES || all > limits::NODE_QUEUES_BYTES {
            true => limits::SUBSCRIPTION_QUEUE_BYTES_ASSURED.min(self.queue_bytes),
            false => self.queue_bytes,
        }
    }

    /// Bytes have left a queue.
    pub(super) fn gone(&self, bytes: usize) {
        self.waiting.fetch_sub(bytes, Relaxed);
        self.waiting_in_all.fetch_sub(bytes, Relaxed);
    }

    /// Whether more is waiting than the client's own calls explain: it does not listen.
    pub(super) fn is_overdue(&self) -> bool {
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

impl Stream for Events {
    type Item = Result<v1::SessionEvent, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let outlet = &self.outlet;
        outlet.waker.register(context.waker());
        let mut state = outlet.state();
        let event = |event| Poll::Ready(Some(Ok(v1::SessionEvent { event: Some(event) })));
        if let Some(next) = state.events.pop_front() {
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

//! What waits for one subscription: bounded in bytes, sent as far as its client has given credit.
//!
//! A queue that is full drops its oldest messages and says how many, or ends. It never makes anybody wait by
//! itself; whoever fills it may give it a moment ([`Patience`]), out of a budget that a slow subscriber cannot
//! stretch.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use debros_proto::packed::{self, RunHead};
use debros_proto::{Failure, limits, v1};
use tokio::sync::Notify;
use tokio::time::Instant;
use v1::session_event::Event;

use super::metrics::PubSubMetrics;
use super::outlet::Outlet;
use crate::planted::{Bug, is_planted};

/// What an entry costs beside its messages.
const ENTRY_BYTES: usize = 128;
/// Behind so much, small messages are copied: as slices they would keep the whole frame in memory that they came in.
const COPY_BEHIND_BYTES: usize = 64 << 10;
/// What is small.
const COPY_BYTES_MAX: usize = 16 << 10;
/// Above this a queue is worth a moment's wait, below the half of it the wait ends.
const PRESSED_BYTES: usize = limits::SUBSCRIPTION_QUEUE_BYTES / 2;

/// One subscription of a session.
pub(super) struct Queue {
    number: u64,
    outlet: Arc<Outlet>,
    overflow: v1::Overflow,
    state: Mutex<State>,
    /// Other nodes that do not know of it yet.
    unaware: AtomicUsize,
    room: Notify,
    metrics: PubSubMetrics,
}

#[derive(Default)]
struct State {
    entries: VecDeque<Entry>,
    bytes: usize,
    credit: i64,
    /// It is among the outlet's ready ones.
    is_ready: bool,
    ended: bool,
    /// Nothing was taken while somebody waited for it: nobody waits again before something is.
    stalled: bool,
    gates: BTreeMap<u64, Gate>,
}

enum Entry {
    Messages(RunHead, Bytes),
    Lagged(Option<u64>),
}

/// What of an origin's messages is not for a subscription that resumes.
#[derive(Clone, Copy)]
enum Gate {
    /// All: the origin is asked for what it holds.
    Closed,
    /// Those up to this sequence: they were part of the origin's answer.
    After { incarnation: u64, sequence: u64 },
}

impl Queue {
    /// Nothing waits yet.
    pub(super) fn new(
        number: u64,
        credit: u64,
        overflow: v1::Overflow,
        outlet: Arc<Outlet>,
        metrics: PubSubMetrics,
    ) -> Arc<Self> {
        let credit = credit.min(limits::SUBSCRIPTION_CREDIT_BYTES_MAX) as i64;
        let state = Mutex::new(State { credit, ..Default::default() });
        Arc::new(Self {
            number,
            outlet,
            overflow,
            state,
            unaware: AtomicUsize::new(0),
            room: Notify::new(),
            metrics,
        })
    }

    /// The client's number for it.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The session it belongs to.
    pub(super) fn outlet(&self) -> &Arc<Outlet> {
        &self.outlet
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds messages. Says whether it is worth a wait ([`Patience::give`]).
    pub(super) fn push(self: &Arc<Self>, head: &RunHead, messages: &Bytes) -> bool {
        let mut state = self.state();
        if state.ended || !state.passes(head) {
            return false;
        }
        self.add(state, head, messages)
    }

    /// Adds messages that an origin was asked for.
    pub(super) fn push_replayed(self: &Arc<Self>, head: &RunHead, messages: &Bytes) {
        let state = self.state();
        if !state.ended {
            self.metrics.gaps_repaired(head.count.into());
            self.add(state, head, messages);
        }
    }

    fn add(self: &Arc<Self>, mut state: MutexGuard<'_, State>, head: &RunHead, messages: &Bytes) -> bool {
        let messages = match state.bytes > COPY_BEHIND_BYTES && messages.len() < COPY_BYTES_MAX {
            true => Bytes::copy_from_slice(messages),
            false => messages.clone(),
        };
        let added = messages.len() + ENTRY_BYTES;
        state.bytes += added;
        state.entries.push_back(Entry::Messages(*head, messages));
        let allowed = self.outlet.allowed(added);
        if state.bytes > allowed {
            match self.overflow {
                v1::Overflow::DropOldest => self.drop_oldest(&mut state, allowed),
                v1::Overflow::Disconnect => {
                    self.outlet.gone(state.end());
                    drop(state);
                    self.tell_overflow();
                    return false;
                }
            }
        }
        let pressed = state.bytes > PRESSED_BYTES && !state.stalled;
        self.announce(state);
        pressed
    }

    fn drop_oldest(&self, state: &mut State, allowed: usize) {
        let (mut missed, before) = (Some(0), state.bytes);
        // The newest stays, however large it is.
        while state.bytes > allowed
            && state.entries.len() > 1
            && let Some(oldest) = state.pop()
        {
            match oldest {
                Entry::Messages(head, _) => {
                    self.metrics.dropped(u64::from(head.count));
                    missed = join(missed, Some(u64::from(head.count)));
                }
                Entry::Lagged(more) => missed = join(missed, more),
            }
        }
        self.outlet.gone(before - state.bytes);
        if is_planted(Bug::LaggedSwallowed) {
            return;
        }
        if let Some(Entry::Lagged(known)) = state.entries.front_mut() {
            *known = join(*known, missed);
        } else {
            self.metrics.lagged();
            state.entries.push_front(Entry::Lagged(missed));
        }
    }

    fn tell_overflow(&self) {
        self.metrics.lagged();
        let (limit, found) = (limits::SUBSCRIPTION_QUEUE_BYTES, "more waiting, alone or with others");
        let failure = Failure::limit("SUBSCRIPTION_QUEUE_BYTES", limit, found).into_call();
        let about = Some(v1::session_failure::About::Subscription(self.number));
        self.outlet.tell(Event::Failure(v1::SessionFailure { about, failure: Some(failure) }));
    }

    /// Notes that messages were missed after those that wait.
    pub(super) fn lag(self: &Arc<Self>, missed: Option<u64>) {
        let mut state = self.state();
        if state.ended {
            return;
        }
        if let Some(Entry::Lagged(known)) = state.entries.back_mut() {
            *known = join(*known, missed);
        } else {
            self.metrics.lagged();
            state.entries.push_back(Entry::Lagged(missed));
        }
        self.announce(state);
    }

    /// The client has consumed some.
    pub(super) fn add_credit(self: &Arc<Self>, bytes: u64) {
        let mut state = self.state();
        let max = limits::SUBSCRIPTION_CREDIT_BYTES_MAX as i64;
        state.credit = state.credit.saturating_add(bytes.min(max as u64) as i64).min(max);
        self.announce(state);
    }

    fn announce(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if state.can_send() && !std::mem::replace(&mut state.is_ready, true) {
            drop(state);
            self.outlet.ready(self.clone());
        }
    }

    /// What can be sent at once, and whether there is more.
    pub(super) fn take(&self) -> (Option<v1::Deliveries>, bool) {
        let mut state = self.state();
        let mut lagged = None;
        if state.can_send()
            && let Some(Entry::Lagged(missed)) = state.entries.front()
        {
            lagged = Some(v1::Lagged { missed: *missed });
            state.entries.pop_front();
        }
        let mut runs = BytesMut::new();
        let (mut count, waiting) = (0, state.bytes);
        while state.credit > 0
            && let Some(Entry::Messages(head, messages)) = state.entries.front()
            && (runs.is_empty() || runs.len() + messages.len() <= limits::PUBSUB_FRAME_BYTES)
        {
            let before = runs.len();
            if before == 0 {
                let waiting = state.bytes.min(limits::PUBSUB_FRAME_BYTES);
                runs.reserve(waiting.max(messages.len() + packed::RUN_HEAD));
            }
            packed::put_run(&mut runs, head, b"", b"", messages);
            count += u64::from(head.count);
            state.credit -= (runs.len() - before) as i64;
            state.pop();
        }
        self.outlet.gone(waiting - state.bytes);
        state.stalled = false;
        state.is_ready = state.can_send();
        let (more, room) = (state.is_ready, state.bytes <= PRESSED_BYTES / 2);
        drop(state);
        if room {
            self.room.notify_waiters();
        }
        self.metrics.delivered(count);
        let something = lagged.is_some() || !runs.is_empty();
        let deliveries = v1::Deliveries { subscription: self.number, lagged, runs: runs.freeze() };
        (something.then_some(deliveries), more)
    }

    /// Everything that was added was sent.
    pub(super) fn is_idle(&self) -> bool {
        self.state().entries.is_empty()
    }

    /// Some origin has not answered yet what it was asked for.
    pub(super) fn is_resuming(&self) -> bool {
        self.state().gates.values().any(|gate| matches!(gate, Gate::Closed))
    }

    /// Another node does not know of it.
    pub(super) fn add_unaware(&self) {
        self.unaware.fetch_add(1, Relaxed);
    }

    /// That node does now, or is gone.
    pub(super) fn remove_unaware(&self) {
        self.unaware.fetch_sub(1, Relaxed);
    }

    /// Whether some node does not know of it.
    pub(super) fn is_unaware(&self) -> bool {
        self.unaware.load(Relaxed) > 0
    }

    /// Nothing is added any more.
    pub(super) fn has_ended(&self) -> bool {
        self.state().ended
    }

    /// Nothing is added any more, and what waits is dropped.
    pub(super) fn end(&self) {
        self.outlet.gone(self.state().end());
        self.room.notify_waiters();
    }

    /// Messages of this origin are left out until [`Self::open_gate`].
    pub(super) fn close_gate(&self, origin: u64) {
        self.state().gates.insert(origin, Gate::Closed);
    }

    /// Messages of this origin behind the sequence pass from now on.
    pub(super) fn open_gate(&self, origin: u64, incarnation: u64, sequence: u64) {
        self.state().gates.insert(origin, Gate::After { incarnation, sequence });
    }

    async fn room(&self, within: Duration) {
        let notified = self.room.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if self.state().bytes <= PRESSED_BYTES {
            return;
        }
        // Taking something ends a stall; that nothing is taken is known at the end.
        self.state().stalled = true;
        let _ = tokio::time::timeout(within, notified).await;
    }
}

impl State {
    fn passes(&mut self, head: &RunHead) -> bool {
        if self.gates.is_empty() {
            return true;
        }
        match self.gates.get(&head.origin) {
            None => true,
            Some(Gate::Closed) => false,
            Some(Gate::After { incarnation, sequence }) => {
                if head.incarnation == *incarnation && head.sequence <= *sequence {
                    return false;
                }
                self.gates.remove(&head.origin);
                true
            }
        }
    }

    fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front();
        if let Some(Entry::Messages(_, messages)) = &entry {
            self.bytes -= messages.len() + ENTRY_BYTES;
        }
        entry
    }

    fn can_send(&self) -> bool {
        // Without credit a notice waits, too: one tells of all that is dropped meanwhile.
        !self.entries.is_empty() && self.credit > 0
    }

    /// Gives how many bytes were waiting.
    fn end(&mut self) -> usize {
        self.ended = true;
        self.entries.clear();
        self.gates.clear();
        std::mem::take(&mut self.bytes)
    }
}

fn join(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    Some(one?.saturating_add(other?))
}

/// How long whoever fills queues may wait for them: a budget that comes back with time, so that slow
/// subscribers cannot slow others by more than its share.
pub(super) struct Patience {
    left: Duration,
    refilled: Instant,
}

/// The most of one wait.
const PATIENCE_MAX: Duration = Duration::from_millis(250);
/// The budget grows by this part of the time.
const PATIENCE_SHARE: u32 = 4;

impl Patience {
    /// A full budget.
    pub(super) fn new() -> Self {
        Self { left: PATIENCE_MAX, refilled: Instant::now() }
    }

    /// Waits until there is room in these queues, or the budget is used up.
    pub(super) async fn give(&mut self, pressed: Vec<Arc<Queue>>) {
        let began = Instant::now();
        self.left = PATIENCE_MAX.min(self.left + began.duration_since(self.refilled) / PATIENCE_SHARE);
        for queue in pressed {
            let within = self.left.saturating_sub(began.elapsed());
            if within.is_zero() {
                break;
            }
            queue.room(within).await;
        }
        self.left = self.left.saturating_sub(began.elapsed());
        self.refilled = Instant::now();
    }
}

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
use super::outlet::{Allowed, Outlet};
use crate::planted::{Bug, is_planted};

/// What an entry costs beside its messages.
const ENTRY_BYTES: usize = 128;
/// Messages that are not sent at once are copied up to here: as slices they would keep the whole frame in memory that they
/// came in.
const COPY_BYTES_MAX: usize = 16 << 10;
/// A larger frame or batch is not kept in memory for a small part of it, whenever that is sent.
const SHARED_BYTES_MAX: usize = 2 * limits::PUBSUB_FRAME_BYTES;
/// What is no small part of it: this fraction.
const SHARED_FRACTION: usize = 4;
/// A queue that is empty keeps room for so many entries.
const ENTRIES_KEPT: usize = 64;
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

impl Entry {
    fn bytes(&self) -> usize {
        match self {
            Self::Messages(_, messages) => messages.len() + ENTRY_BYTES,
            Self::Lagged(_) => ENTRY_BYTES,
        }
    }
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
        outlet.open_queue();
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
        let waits = state.credit <= 0 || self.outlet.is_behind();
        let messages = match waits && messages.len() < COPY_BYTES_MAX {
            true => Bytes::copy_from_slice(messages),
            false => messages.clone(),
        };
        let added = state.push(Entry::Messages(*head, messages));
        let allowed = self.outlet.allowed(added);
        if state.bytes > allowed.bytes && (state.entries.len() > 1 || !allowed.newest) {
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

    fn drop_oldest(&self, state: &mut State, allowed: Allowed) {
        let (mut missed, before) = (Some(0), state.bytes);
        let mut was_told = false;
        while state.bytes > allowed.bytes
            && state.entries.len() > usize::from(allowed.newest)
            && let Some(oldest) = state.pop()
        {
            match oldest {
                Entry::Messages(head, _) => {
                    self.metrics.dropped(u64::from(head.count));
                    missed = join(missed, Some(u64::from(head.count)));
                }
                Entry::Lagged(more) => (missed, was_told) = (join(missed, more), true),
            }
        }
        if is_planted(Bug::LaggedSwallowed) {
            self.outlet.gone(before - state.bytes);
            return;
        }
        if let Some(Entry::Lagged(known)) = state.entries.front_mut() {
            *known = join(*known, missed);
        } else {
            if !was_told {
                self.metrics.lagged();
            }
            state.bytes += ENTRY_BYTES;
            state.entries.push_front(Entry::Lagged(missed));
        }
        // What went was an entry at least, and the notice is one at most.
        self.outlet.gone(before - state.bytes);
    }

    fn tell_overflow(&self) {
        self.outlet.note_overflow();
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
            let added = state.push(Entry::Lagged(missed));
            // A notice stays however full the queue is: there is one for each entry at most.
            self.outlet.allowed(added);
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
        let (mut lagged, waiting) = (None, state.bytes);
        if state.can_send()
            && let Some(Entry::Lagged(missed)) = state.entries.front()
        {
            lagged = Some(v1::Lagged { missed: *missed });
            state.pop();
        }
        let mut runs = BytesMut::new();
        let mut count = 0;
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
        if state.entries.is_empty() {
            state.entries.shrink_to(ENTRIES_KEPT);
        }
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

    /// Waits until it has room.
    pub(super) async fn room(&self) {
        let notified = self.room.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if self.state().bytes <= PRESSED_BYTES {
            return;
        }
        // Taking something ends a stall; that nothing is taken is known at the end.
        self.state().stalled = true;
        notified.await;
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

    /// Gives how many bytes it adds.
    fn push(&mut self, entry: Entry) -> usize {
        let added = entry.bytes();
        self.bytes += added;
        self.entries.push_back(entry);
        added
    }

    fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.bytes -= entry.bytes();
        Some(entry)
    }

    fn can_send(&self) -> bool {
        // Without credit a notice waits, too: one tells of all that is dropped meanwhile.
        !self.entries.is_empty() && self.credit > 0
    }

    /// Gives how many bytes were waiting.
    fn end(&mut self) -> usize {
        self.ended = true;
        self.entries = VecDeque::new();
        self.gates.clear();
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.outlet.close_queue();
    }
}

/// A part of what came as one in so many bytes: as a slice where it may keep all of that in memory, else as a copy.
pub(super) fn part_of(whole: usize, part: Bytes) -> Bytes {
    match whole > SHARED_BYTES_MAX && part.len() < whole / SHARED_FRACTION {
        true => Bytes::copy_from_slice(&part),
        false => part,
    }
}

fn join(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    Some(one?.saturating_add(other?))
}

/// How long a publisher may wait for the queues that it fills, here and at other nodes: a budget that comes back with
/// time, so that slow subscribers cannot slow publishers by more than its share.
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

    /// Waits until there is room, or the budget is used up.
    pub(super) async fn give(&mut self, room: impl Future<Output = ()>) {
        let began = Instant::now();
        self.left = PATIENCE_MAX.min(self.left + began.duration_since(self.refilled) / PATIENCE_SHARE);
        if !self.left.is_zero() {
            let _ = tokio::time::timeout(self.left, room).await;
        }
        let took = began.elapsed();
        // A timer takes a millisecond at least: what was too long is paid back before the budget grows again.
        let overdrawn = took.saturating_sub(self.left);
        self.left = self.left.saturating_sub(took);
        self.refilled = self.refilled.max(Instant::now()) + overdrawn * PATIENCE_SHARE;
    }
}

//! Hybrid logical clocks (Kulkarni et al. 2014), and whether this node's clock may be trusted.
//!
//! A stamp is 48 bits of milliseconds since the Unix epoch and 16 bits of a counter. Stamps of one node
//! are never given twice; apart from those that a client's number lifted they only grow. Clocks are compared where a version is born, and
//! nowhere else: a version that exists must be able to spread.
//!
//! What a client has seen lifts its own write above that, and this node's clock only as far as harms nobody
//! ([`limits::CLOCK_LIFT_MAX`]): a client that lies is one whose writes fail, not everybody's. The same holds for
//! versions that are observed. Nothing relies on the clock having followed: a write that finds a newer version at a
//! replica of its quorum is stamped again above it, so each key's versions grow in the order of its writes.
//!
//! The `uhlc` crate is not used: its clock is a bare function, one for the process, and a simulation has
//! many nodes in one.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use debros_proto::{ErrorCode, Failure, NodeId, limits};
use tokio::time::Instant;

use super::record::Version;
use crate::clock::Clock;

const COUNTER_BITS: u32 = 16;
/// What a peer said of its clock counts for so long; peers are asked every second.
const OFFSET_LIFE: Duration = Duration::from_secs(30);

/// The milliseconds of a stamp.
pub(super) fn unix_ms_of(stamp: u64) -> u64 {
    stamp >> COUNTER_BITS
}

/// The smallest stamp of a time.
pub(super) fn stamp_of(unix_ms: u64) -> u64 {
    unix_ms << COUNTER_BITS
}

/// The clock that stamps this node's versions.
pub(super) struct VersionClock {
    clock: Clock,
    node: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    /// Stamps that were given above it.
    lifted: Runs,
    /// How far each peer's clock is ahead of this node's, in milliseconds, and when that was found.
    offsets: BTreeMap<NodeId, (i64, Instant)>,
    /// Their median, until the oldest of them counts no more. Every write asks for it, and must not look at all nodes.
    median: Option<(i64, Instant)>,
    /// Wall clock and steady clock at one moment: a step of the wall clock shows between the two.
    anchor: Option<(u64, Instant)>,
}

impl VersionClock {
    /// A clock for this node's versions.
    pub(super) fn new(clock: Clock, node: NodeId) -> Self {
        Self { clock, node: node.0, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time of day.
    pub(super) fn unix_ms(&self) -> u64 {
        self.clock.unix_ms()
    }

    /// A version above `seen` that was never given before.
    ///
    /// # Errors
    /// `UNAVAILABLE` when the version would lie too far in the future: somebody's clock is wrong.
    pub(super) fn stamp(&self, seen: u64) -> Result<Version, Failure> {
        let now = stamp_of(self.unix_ms());
        let mut state = self.state();
        let own = now.max(state.last + 1);
        state.lifted.forget_below(own);
        let stamp = state.lifted.free(own.max(seen.saturating_add(1)));
        if stamp > now + stamp_of(ahead_max_ms()) {
            let ahead = unix_ms_of(stamp - now);
            return Err(Failure::new(
                ErrorCode::Unavailable,
                format!(
                    "the newest version seen is {ahead} ms ahead of this node's clock: synchronise the clocks \
                     of nodes and clients"
                ),
            ));
        }
        if stamp <= (now + stamp_of(lift_max_ms())).max(state.last + 1) {
            state.last = stamp;
        } else if state.lifted.len() < limits::CLOCK_LIFTED_RUNS_MAX {
            state.lifted.take(stamp);
        } else {
            let message =
                "too many writes above versions from the future, CLOCK_LIFTED_RUNS_MAX: retry in a moment";
            return Err(Failure::new(ErrorCode::Unavailable, message));
        }
        Ok(Version { clock: stamp, node: self.node })
    }

    /// Takes note of a version, so that the next stamp is above it, and need not be given again.
    pub(super) fn observe(&self, stamp: u64) {
        // One from the future would carry this clock away with it.
        if stamp <= stamp_of(self.unix_ms() + lift_max_ms()) {
            let mut state = self.state();
            state.last = state.last.max(stamp);
        }
    }

    /// Whether a version that is just being born lies too far ahead of this node's clock.
    pub(super) fn is_ahead(&self, version: Version) -> bool {
        unix_ms_of(version.clock) > self.unix_ms() + ahead_max_ms()
    }

    /// Takes note of a peer's clock, asked for between two moments.
    pub(super) fn compare(&self, peer: NodeId, asked: Instant, theirs_unix_ms: u64) {
        let now = Instant::now();
        let half = now.saturating_duration_since(asked).as_millis() as i64 / 2;
        let offset = theirs_unix_ms as i64 + half - self.unix_ms() as i64;
        // Only what is certain: a slow answer, or one that was taken up late, says little.
        let offset = offset.signum() * (offset.abs() - half).max(0);
        let mut state = self.state();
        self.forget_before_a_step(&mut state, now);
        state.offsets.insert(peer, (offset, now));
        state.anchor = Some((self.unix_ms(), now));
        state.find_median(now);
    }

    /// Had the wall clock been set since the last comparison, what was found before would say nothing: also of
    /// peers that are gone and will not be compared with again.
    fn forget_before_a_step(&self, state: &mut State, now: Instant) {
        if let Some((wall, at)) = state.anchor {
            let expected = wall as i64 + now.saturating_duration_since(at).as_millis() as i64;
            if (self.unix_ms() as i64 - expected).unsigned_abs() > offset_max_ms() {
                state.offsets.clear();
                (state.anchor, state.median) = (None, None);
            }
        }
    }

    /// How far this clock is from the median of its peers and itself, in milliseconds; `None` when no peer
    /// has been compared with for a while.
    pub(super) fn offset_ms(&self) -> Option<i64> {
        let now = Instant::now();
        let mut state = self.state();
        self.forget_before_a_step(&mut state, now);
        if state.median.is_none_or(|(_, until)| until <= now) {
            state.find_median(now);
        }
        state.median.map(|(offset, _)| offset)
    }

    /// Whether this node may give versions, in a cluster with this many other nodes.
    ///
    /// # Errors
    /// `UNAVAILABLE` while its clock was not compared with any other, or is off.
    pub(super) fn check(&self, others: usize) -> Result<(), Failure> {
        if others == 0 {
            return Ok(());
        }
        match self.offset_ms() {
            Some(offset) if offset.unsigned_abs() <= offset_max_ms() => Ok(()),
            Some(offset) => Err(Failure::new(
                ErrorCode::Unavailable,
                format!("this node's clock is {offset} ms from its peers': synchronise it, others go on"),
            )),
            None => Err(Failure::new(
                ErrorCode::Unavailable,
                "this node has not compared its clock with another yet: retry",
            )),
        }
    }
}

impl State {
    fn find_median(&mut self, now: Instant) {
        self.offsets.retain(|_, (_, at)| now.saturating_duration_since(*at) < OFFSET_LIFE);
        let mut offsets: Vec<i64> = self.offsets.values().map(|(offset, _)| *offset).collect();
        // Of two, neither is right: both count as off when they differ.
        if offsets.len() > 1 {
            offsets.push(0);
        }
        offsets.sort_unstable();
        let oldest = self.offsets.values().map(|(_, at)| *at).min();
        self.median = oldest.map(|oldest| (offsets[offsets.len() / 2], oldest + OFFSET_LIFE));
    }
}

/// Numbers that are taken, as runs of consecutive ones: the first of each and its last.
#[derive(Default)]
struct Runs(BTreeMap<u64, u64>);

impl Runs {
    fn len(&self) -> usize {
        self.0.len()
    }

    /// The first number from this one on that is not taken.
    fn free(&self, number: u64) -> u64 {
        let run = self.0.range(..=number).next_back();
        run.filter(|(_, last)| **last >= number).map_or(number, |(_, last)| last + 1)
    }

    /// Takes a number that is free.
    fn take(&mut self, number: u64) {
        let before = self.0.range(..number).next_back().filter(|(_, last)| **last + 1 == number);
        let first = before.map_or(number, |(first, _)| *first);
        let last = self.0.remove(&(number + 1)).unwrap_or(number);
        self.0.insert(first, last);
    }

    /// Forgets the runs that end before a number.
    fn forget_below(&mut self, number: u64) {
        while let Some(run) = self.0.first_entry().filter(|run| *run.get() < number) {
            run.remove();
        }
    }
}

fn lift_max_ms() -> u64 {
    limits::CLOCK_LIFT_MAX.as_millis() as u64
}

fn ahead_max_ms() -> u64 {
    limits::CLOCK_AHEAD_MAX.as_millis() as u64
}

fn offset_max_ms() -> u64 {
    limits::CLOCK_OFFSET_MAX.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use debros_proto::NodeId;
    use tokio::time::Instant;

    use super::{Version, VersionClock, stamp_of};
    use crate::clock::Clock;

    fn clock_at(ms: u64) -> (VersionClock, Arc<AtomicU64>) {
        let now = Arc::new(AtomicU64::new(ms));
        let read = now.clone();
        let clock = Clock::from_fn(move || std::time::Duration::from_millis(read.load(Ordering::Relaxed)));
        (VersionClock::new(clock, NodeId(1)), now)
    }

    #[test]
    fn stamps_grow_past_all_that_was_seen_also_when_the_clock_goes_back() {
        let (clock, now) = clock_at(1_000_000);
        let first = clock.stamp(0).unwrap();
        now.store(999_700, Ordering::Relaxed);
        let second = clock.stamp(0).unwrap();
        assert!(second > first);
        let third = clock.stamp(stamp_of(1_000_050)).unwrap();
        assert!(third > second);
        now.store(1_000_000, Ordering::Relaxed);
        clock.observe(third.clock + 7);
        assert!(clock.stamp(0).unwrap().clock > third.clock + 7);
    }

    #[test]
    fn what_a_client_says_it_has_seen_lifts_its_own_write_alone() {
        let (clock, now) = clock_at(1_000_000);
        let lie = stamp_of(1_000_400);
        let lifted: Vec<Version> = (0..3).map(|_| clock.stamp(lie).unwrap()).collect();
        assert_eq!(lifted.iter().map(|version| version.clock - lie).collect::<Vec<_>>(), [1, 2, 3]);
        clock.observe(lifted[2].clock);
        assert_eq!(clock.stamp(0).unwrap().clock, stamp_of(1_000_000), "others go on where they were");
        let (between, after) = (clock.stamp(lie + 5).unwrap(), clock.stamp(lie).unwrap());
        assert_eq!((between.clock - lie, after.clock - lie), (6, 4), "each above what it has seen");
        // Time catches up: none of them is given again.
        now.store(1_000_400, Ordering::Relaxed);
        let own: Vec<u64> = (0..4).map(|_| clock.stamp(0).unwrap().clock - lie).collect();
        assert_eq!(own, [0, 5, 7, 8]);
    }

    #[test]
    fn a_version_from_the_future_is_not_born_and_carries_no_clock_away() {
        let (clock, _) = clock_at(1_000_000);
        clock.observe(stamp_of(2_000_000));
        assert_eq!(clock.stamp(0).unwrap().clock, stamp_of(1_000_000));
        assert!(clock.stamp(stamp_of(1_000_600)).is_err());
        assert!(clock.stamp(stamp_of(1_000_400)).is_ok());
    }

    #[tokio::test]
    async fn a_node_that_is_off_from_the_median_stops() {
        let (clock, now) = clock_at(1_000_000);
        assert!(clock.check(0).is_ok() && clock.check(2).is_err());
        clock.compare(NodeId(2), Instant::now(), 1_000_010);
        assert!(clock.check(2).is_ok());
        clock.compare(NodeId(3), Instant::now(), 4_600_000);
        assert!(clock.check(2).is_ok(), "the median of -, 10 ms and an hour is 10 ms");
        clock.compare(NodeId(2), Instant::now(), 4_600_000);
        assert!(clock.check(2).is_err());
        clock.compare(NodeId(2), Instant::now(), 1_000_000);
        assert!(clock.check(2).is_ok());
        now.store(5_000_000, Ordering::Relaxed);
        assert!(clock.check(2).is_err(), "the clock was set: what was found before says nothing");
        clock.compare(NodeId(2), Instant::now(), 5_000_000);
        now.store(9_000_000, Ordering::Relaxed);
        clock.compare(NodeId(3), Instant::now(), 5_000_000);
        assert!(clock.check(2).is_err(), "nor does it when the next comparison comes before the question");
        assert_eq!(clock.offset_ms(), Some(-4_000_000));
    }
}

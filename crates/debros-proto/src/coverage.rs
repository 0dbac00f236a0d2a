//! Which of a publisher's messages a receiver has had, so that what is sent again is known and nothing comes
//! out of order. Used by nodes for what other nodes send, and by clients that resume at another node.
//!
//! A publisher numbers its messages and sends them through one node at a time, the origin; after a failure it
//! sends through another what was not acknowledged, under the same numbers. Each run of messages says from
//! which number on (`base`) its publisher has sent everything through that origin. Since what comes from one
//! origin comes in order and without silent gaps, a receiver that got number n has been told of everything from `base`
//! to n: by delivery, by a loss notice, or by not being interested.
//!
//! Invariants: a number is told once; a number below one that was told is never delivered, only reported.

use crate::limits;

/// Ranges that are kept apart: each is a change of origin with something missing before it.
const RANGES_MAX: usize = 8;

// A change of origin happens at most once in some round trips; what is missing from eight ago does not come.
const _: () = assert!(limits::PUBLISHER_LIFE.as_secs() > RANGES_MAX as u64);

/// What to do with a part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The first number.
    pub first: u64,
    /// The last number.
    pub last: u64,
    /// What it is.
    pub verdict: Verdict,
}

/// Whether messages are news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To be delivered.
    New,
    /// Delivered or reported before: to be dropped without a word.
    Repeated,
    /// Never told, but younger ones were: to be reported as missed.
    Late,
}

/// The numbers of one publisher that a receiver was told of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Apart from each other, in order, both ends included.
    ranges: Vec<(u64, u64)>,
}

impl Coverage {
    /// Nothing was told yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The highest number that was told; 0 for none.
    pub fn highest(&self) -> u64 {
        self.ranges.last().map_or(0, |(_, last)| *last)
    }

    /// Takes note of messages `first..=last` of a publisher that sends through their origin since `base`, and
    /// says what each of them is. The ordinary case, the next messages of the same origin, costs a comparison.
    pub fn tell(&mut self, base: u64, first: u64, last: u64) -> Told {
        debug_assert!(first <= last);
        let base = base.min(first);
        if let Some(newest) = self.ranges.last_mut()
            && first > newest.1
            && base <= newest.1.saturating_add(1)
            && base >= newest.0
        {
            newest.1 = last;
            return Told { only: Some(Part { first, last, verdict: Verdict::New }), parts: Vec::new() };
        }
        self.tell_slowly(base, first, last)
    }

    fn tell_slowly(&mut self, base: u64, first: u64, last: u64) -> Told {
        let highest = self.highest();
        let mut parts: Vec<Part> = Vec::new();
        let mut add = |first: u64, last: u64, verdict| {
            if first <= last {
                parts.push(Part { first, last, verdict });
            }
        };
        let mut next = first;
        for (from, to) in self.ranges.iter().copied().filter(|(from, to)| *to >= first && *from <= last) {
            add(next, from.max(1) - 1, Verdict::Late);
            add(from.max(next), to.min(last), Verdict::Repeated);
            next = to.saturating_add(1);
        }
        add(next, last.min(highest), Verdict::Late);
        add(next.max(highest.saturating_add(1)), last, Verdict::New);
        self.cover(base, last);
        match parts[..] {
            [only] => Told { only: Some(only), parts: Vec::new() },
            _ => Told { only: None, parts },
        }
    }

    /// Joins the range with what it touches.
    fn cover(&mut self, mut from: u64, mut to: u64) {
        self.ranges.retain(|range| {
            let touches = range.0 <= to.saturating_add(1) && from <= range.1.saturating_add(1);
            if touches {
                (from, to) = (from.min(range.0), to.max(range.1));
            }
            !touches
        });
        let at = self.ranges.partition_point(|range| range.0 < from);
        self.ranges.insert(at, (from, to));
        if self.ranges.len() > RANGES_MAX {
            // What lies between the two oldest is taken for told from now on.
            let (from, _) = self.ranges.remove(0);
            self.ranges[0].0 = from;
        }
    }
}

/// What [`Coverage::tell`] says: the parts of the run in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    only: Option<Part>,
    parts: Vec<Part>,
}

impl Told {
    /// The parts of the run, in order; together they are all of it.
    pub fn parts(&self) -> &[Part] {
        match &self.only {
            Some(only) => std::slice::from_ref(only),
            None => &self.parts,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

    use super::{Coverage, Part, Verdict};

    fn told(coverage: &mut Coverage, base: u64, first: u64, last: u64) -> Vec<(u64, u64, Verdict)> {
        let told = coverage.tell(base, first, last);
        told.parts().iter().map(|Part { first, last, verdict }| (*first, *last, *verdict)).collect()
    }

    #[test]
    fn what_is_sent_again_through_another_origin_is_told_once() {
        let mut coverage = Coverage::new();
        assert_eq!(told(&mut coverage, 1, 3, 90), [(3, 90, Verdict::New)]);
        assert_eq!(told(&mut coverage, 80, 80, 110), [(80, 90, Verdict::Repeated), (91, 110, Verdict::New)]);
        assert_eq!(told(&mut coverage, 80, 111, 111), [(111, 111, Verdict::New)]);
    }

    #[test]
    fn what_the_former_origin_brings_late_is_reported_and_not_delivered() {
        let mut coverage = Coverage::new();
        assert_eq!(told(&mut coverage, 1, 1, 20), [(1, 20, Verdict::New)]);
        assert_eq!(told(&mut coverage, 90, 90, 110), [(90, 110, Verdict::New)]);
        assert_eq!(told(&mut coverage, 1, 21, 100), [(21, 89, Verdict::Late), (90, 100, Verdict::Repeated)]);
        assert_eq!(told(&mut coverage, 1, 21, 100), [(21, 100, Verdict::Repeated)]);
    }

    #[test]
    fn a_publisher_that_comes_back_to_an_origin_has_a_new_base() {
        let mut coverage = Coverage::new();
        told(&mut coverage, 1, 1, 100);
        told(&mut coverage, 90, 90, 150);
        assert_eq!(told(&mut coverage, 190, 190, 210), [(190, 210, Verdict::New)]);
        assert_eq!(
            told(&mut coverage, 90, 151, 200),
            [(151, 189, Verdict::Late), (190, 200, Verdict::Repeated)]
        );
    }

    proptest! {
        /// Against a set of numbers.
        #[test]
        fn every_number_is_told_once_and_in_order(runs in prop::collection::vec((any::<u8>(), 0_u64..20, 0_u64..20), 1..8)) {
            let mut coverage = Coverage::new();
            let mut seen = BTreeSet::new();
            for (base, skip, count) in runs {
                let base = u64::from(base) + 1;
                let (first, last) = (base + skip, base + skip + count);
                let highest = seen.last().copied().unwrap_or(0);
                let mut next = first;
                for (from, to, verdict) in told(&mut coverage, base, first, last) {
                    prop_assert_eq!(from, next);
                    next = to + 1;
                    for number in from..=to {
                        let wanted = match (seen.contains(&number), number > highest) {
                            (true, _) => Verdict::Repeated,
                            (false, true) => Verdict::New,
                            (false, false) => Verdict::Late,
                        };
                        prop_assert_eq!(verdict, wanted, "number {}", number);
                    }
                }
                prop_assert_eq!(next, last + 1);
                seen.extend(base..=last);
                prop_assert!(coverage.highest() >= last);
            }
        }
    }
}

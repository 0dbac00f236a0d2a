//! Whether a history of one register is linearizable (Herlihy and Wing 1990): whether its operations can be put
//! into one order that keeps to real time and in which each gives what it gave.
//!
//! The search is Wing and Gong's (1993), with Lowe's memory of what was tried (2017): an operation may come next
//! when none that is still to come had ended before it began; a set of operations that led to the same state
//! before leads nowhere new. Keys are independent, so each is searched alone. An operation without an answer may
//! take effect at any time after it began, or never.
//!
//! Versions are log indexes: they grow with every write of the key. One that no answer has told yet is open, and
//! is bound by the first operation that shows it.

use std::collections::HashSet;
use std::time::Duration;

/// States after which a search is given up; never taken for a success.
const STATES_MAX: usize = 2_000_000;

/// What was asked for. Values are numbers, so that all can be added to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Get,
    Put {
        value: i64,
    },
    /// `expected` is 0 for a key that is not there.
    CompareAndSet {
        expected: u64,
        value: i64,
    },
    Delete,
    CompareAndDelete {
        expected: u64,
    },
    Increment {
        delta: i64,
    },
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Value and version.
    Found(Option<(i64, u64)>),
    Written {
        version: u64,
    },
    /// Version 0 without a value for a key that is not there.
    Conflict {
        version: u64,
        value: Option<i64>,
    },
    /// The version it had; 0 when there was none.
    Deleted {
        version: u64,
    },
    Sum {
        value: i64,
        version: u64,
    },
}

/// One operation on the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) began: Duration,
    /// When it was answered, if it was.
    pub(crate) answered: Option<(Duration, Answer)>,
    pub(crate) call: Call,
}

impl Operation {
    fn ended(&self) -> Duration {
        self.answered.as_ref().map_or(Duration::MAX, |(ended, _)| *ended)
    }
}

/// The register between two operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct State {
    current: Option<Cell>,
    /// The greatest version that is known to have been.
    floor: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Cell {
    value: i64,
    /// Open after a write without an answer.
    version: Option<u64>,
}

impl State {
    fn written(self, value: i64, version: u64) -> Option<Self> {
        let current = Some(Cell { value, version: Some(version) });
        (version > self.floor).then_some(Self { current, floor: version })
    }

    fn written_openly(self, value: i64) -> Self {
        Self { current: Some(Cell { value, version: None }), ..self }
    }

    /// The state, if its register can have this version; 0 is none.
    fn at(self, version: u64) -> Option<Self> {
        match self.current {
            None => (version == 0).then_some(self),
            Some(Cell { version: Some(known), .. }) => (known == version).then_some(self),
            Some(Cell { value, version: None }) => self.written(value, version),
        }
    }

    fn without(self) -> Self {
        Self { current: None, ..self }
    }

    fn value(self) -> Option<i64> {
        self.current.map(|cell| cell.value)
    }

    /// The state after an operation that gave this answer; `None` when it cannot have given it here.
    fn after(self, call: &Call, answer: &Answer) -> Option<Self> {
        match (call, answer) {
            (Call::Get, Answer::Found(found)) => {
                let bound = self.at(found.map_or(0, |(_, version)| version))?;
                (bound.value() == found.map(|(value, _)| value)).then_some(bound)
            }
            (Call::Put { value }, Answer::Written { version }) => self.written(*value, *version),
            (Call::CompareAndSet { expected, value }, Answer::Written { version }) => {
                self.at(*expected)?.written(*value, *version)
            }
            (
                Call::CompareAndSet { expected, .. } | Call::CompareAndDelete { expected },
                Answer::Conflict { version, value },
            ) => {
                let bound = self.at(*version)?;
                (version != expected && bound.value() == *value).then_some(bound)
            }
            (Call::Delete, Answer::Deleted { version }) => Some(self.at(*version)?.without()),
            (Call::CompareAndDelete { expected }, Answer::Deleted { version }) => {
                Some(self.at(*version).filter(|_| version == expected)?.without())
            }
            (Call::Increment { delta }, Answer::Sum { value, version }) => {
                let sum = self.value().unwrap_or(0).checked_add(*delta);
                if sum == Some(*value) { self.written(*value, *version) } else { None }
            }
            _ => None,
        }
    }

    /// The state after an operation without an answer that took effect; `None` when it has none here.
    fn after_unanswered(self, call: &Call) -> Option<Self> {
        match call {
            Call::Get => None,
            Call::Put { value } => Some(self.written_openly(*value)),
            Call::CompareAndSet { expected, value } => Some(self.at(*expected)?.written_openly(*value)),
            Call::Delete => self.current.map(|_| self.without()),
            Call::CompareAndDelete { expected } => self.current.and(self.at(*expected)).map(Self::without),
            Call::Increment { delta } => {
                self.value().unwrap_or(0).checked_add(*delta).map(|sum| self.written_openly(sum))
            }
        }
    }
}

/// Searches an order for the operations of one key, which was not there before them.
///
/// # Errors
/// Where the search came no further; also when it had to be given up.
pub(crate) fn check(operations: &[Operation]) -> Result<(), String> {
    let mut operations: Vec<&Operation> = operations.iter().collect();
    operations.sort_by_key(|operation| (operation.began, operation.ended()));
    let answered = operations.iter().filter(|operation| operation.answered.is_some()).count();
    let done = vec![0; operations.len().div_ceil(u64::BITS as usize)];
    let mut search = Search {
        operations,
        tried: HashSet::new(),
        done,
        left: answered,
        furthest: answered + 1,
        stuck: None,
    };
    match search.from(State::default()) {
        Some(true) => Ok(()),
        Some(false) => Err(search.stuck.unwrap_or_else(|| "no operation can come first".to_owned())),
        None => Err(format!("undecided after {STATES_MAX} states: shorten the history")),
    }
}

struct Search<'a> {
    /// In the order in which they began.
    operations: Vec<&'a Operation>,
    tried: HashSet<(Vec<u64>, State)>,
    /// The set of operations that have their place.
    done: Vec<u64>,
    /// Answered operations without a place.
    left: usize,
    /// The fewest that were left.
    furthest: usize,
    stuck: Option<String>,
}

impl Search<'_> {
    fn is_done(&self, place: usize) -> bool {
        self.done[place / 64] >> (place % 64) & 1 == 1
    }

    fn toggle(&mut self, place: usize) {
        self.done[place / 64] ^= 1 << (place % 64);
    }

    /// Whether the rest can follow a state; `None` when that took too long to find out.
    fn from(&mut self, state: State) -> Option<bool> {
        if self.left == 0 {
            return Some(true);
        }
        if !self.tried.insert((self.done.clone(), state)) {
            return Some(false);
        }
        if self.tried.len() > STATES_MAX {
            return None;
        }
        let candidates = self.candidates();
        // Those with an answer first: one without may as well never have taken effect.
        for answered in [true, false] {
            for &place in &candidates {
                let operation = self.operations[place];
                let next = match (&operation.answered, answered) {
                    (Some((_, answer)), true) => state.after(&operation.call, answer),
                    (None, false) => state.after_unanswered(&operation.call),
                    _ => None,
                };
                let Some(next) = next else { continue };
                self.toggle(place);
                self.left -= usize::from(answered);
                let found = self.from(next);
                self.left += usize::from(answered);
                self.toggle(place);
                if found != Some(false) {
                    return found;
                }
            }
        }
        if self.left < self.furthest {
            self.furthest = self.left;
            let next = candidates.iter().map(|place| self.operations[*place]);
            self.stuck =
                Some(format!("after {state:?} none of these can come: {:?}", next.collect::<Vec<_>>()));
        }
        Some(false)
    }

    /// Operations that may come next: none that is still to come had ended before they began.
    fn candidates(&self) -> Vec<usize> {
        let mut candidates = Vec::new();
        let mut first_end = Duration::MAX;
        for (place, operation) in self.operations.iter().enumerate() {
            // All that follow began later still.
            if operation.began > first_end {
                break;
            }
            if !self.is_done(place) {
                first_end = first_end.min(operation.ended());
                candidates.push(place);
            }
        }
        candidates
    }
}

/// Histories of which it is known whether they are linearizable: the checker must know it too.
pub(crate) fn known_histories_are_told_apart() -> Result<(), String> {
    for (name, operations, linearizable) in known::all() {
        let found = check(&operations);
        if found.is_ok() != linearizable {
            return Err(format!("{name}: linearizable is {linearizable}, but the checker says {found:?}"));
        }
    }
    Ok(())
}

mod known {
    use std::time::Duration;

    use super::{Answer, Call, Operation};

    fn op(began: u64, ended: u64, call: Call, answer: Answer) -> Operation {
        let at = Duration::from_millis;
        Operation { began: at(began), answered: Some((at(ended), answer)), call }
    }

    fn lost(began: u64, call: Call) -> Operation {
        Operation { began: Duration::from_millis(began), answered: None, call }
    }

    fn put(began: u64, ended: u64, value: i64, version: u64) -> Operation {
        op(began, ended, Call::Put { value }, Answer::Written { version })
    }

    fn get(began: u64, ended: u64, found: Option<(i64, u64)>) -> Operation {
        op(began, ended, Call::Get, Answer::Found(found))
    }

    fn add(began: u64, ended: u64, delta: i64, value: i64, version: u64) -> Operation {
        op(began, ended, Call::Increment { delta }, Answer::Sum { value, version })
    }

    fn swap(began: u64, ended: u64, expected: u64, value: i64, version: u64) -> Operation {
        op(began, ended, Call::CompareAndSet { expected, value }, Answer::Written { version })
    }

    fn conflict(began: u64, ended: u64, expected: u64, found: Option<(i64, u64)>) -> Operation {
        let (version, value) = found.map_or((0, None), |(value, version)| (version, Some(value)));
        let call = Call::CompareAndSet { expected, value: 99 };
        op(began, ended, call, Answer::Conflict { version, value })
    }

    fn delete(began: u64, ended: u64, version: u64) -> Operation {
        op(began, ended, Call::Delete, Answer::Deleted { version })
    }

    fn lost_swap(began: u64, expected: u64, value: i64) -> Operation {
        lost(began, Call::CompareAndSet { expected, value })
    }

    type Known = (&'static str, Vec<Operation>, bool);

    pub(super) fn all() -> Vec<Known> {
        [reads(), conditions(), unanswered()].concat()
    }

    fn reads() -> Vec<Known> {
        vec![
            ("nothing at all", vec![], true),
            ("one after the other", vec![put(0, 1, 5, 3), get(2, 3, Some((5, 3))), delete(4, 5, 3)], true),
            ("a stale read", vec![put(0, 1, 5, 3), put(2, 3, 6, 4), get(4, 5, Some((5, 3)))], false),
            (
                "a read beside a write sees the old",
                vec![put(0, 1, 5, 3), put(2, 9, 6, 4), get(3, 4, Some((5, 3)))],
                true,
            ),
            (
                "a read beside a write sees the new",
                vec![put(0, 1, 5, 3), put(2, 9, 6, 4), get(3, 4, Some((6, 4)))],
                true,
            ),
            (
                "new, then old, while the write goes on",
                vec![put(0, 1, 5, 3), put(2, 9, 6, 4), get(3, 4, Some((6, 4))), get(5, 6, Some((5, 3)))],
                false,
            ),
            ("a value from nowhere", vec![put(0, 1, 5, 3), get(2, 3, Some((7, 3)))], false),
            ("another version", vec![put(0, 1, 5, 3), get(2, 3, Some((5, 4)))], false),
            ("an acknowledged write is lost", vec![put(0, 1, 5, 3), get(2, 3, None)], false),
            ("versions against real time", vec![put(0, 1, 5, 4), put(2, 3, 6, 3)], false),
            ("versions in either order while both go on", vec![put(0, 5, 5, 4), put(1, 4, 6, 3)], true),
            (
                "a version is reused after a deletion",
                vec![put(0, 1, 5, 4), delete(2, 3, 4), put(4, 5, 6, 4)],
                false,
            ),
        ]
    }

    fn conditions() -> Vec<Known> {
        vec![
            ("one of two wins", vec![swap(0, 5, 0, 1, 7), conflict(1, 4, 0, Some((1, 7)))], true),
            ("both win", vec![swap(0, 5, 0, 1, 7), swap(1, 4, 0, 2, 8)], false),
            (
                "a conflict with what was expected",
                vec![swap(0, 1, 0, 1, 7), conflict(2, 3, 7, Some((1, 7)))],
                false,
            ),
            ("a conflict with nothing", vec![conflict(0, 1, 3, None)], true),
            (
                "a conflict before there was one",
                vec![conflict(0, 1, 0, Some((1, 7))), swap(2, 3, 0, 1, 7)],
                false,
            ),
            ("sums add up", vec![add(0, 9, 1, 2, 4), add(0, 9, 1, 1, 3), add(0, 9, 2, 4, 5)], true),
            ("a sum counts twice", vec![add(0, 1, 1, 1, 3), add(2, 3, 1, 3, 4)], false),
            ("a lost update", vec![add(0, 9, 1, 1, 3), add(0, 9, 1, 1, 4)], false),
            ("deleted twice", vec![put(0, 1, 5, 3), delete(2, 9, 3), delete(2, 9, 3)], false),
            ("deleted once", vec![put(0, 1, 5, 3), delete(2, 9, 3), delete(2, 9, 0)], true),
        ]
    }

    fn unanswered() -> Vec<Known> {
        let lost_put = |began, value| lost(began, Call::Put { value });
        vec![
            ("it took effect late", vec![lost_put(0, 5), get(1, 2, None), get(3, 4, Some((5, 9)))], true),
            ("it never did", vec![lost_put(0, 5), get(1, 2, None)], true),
            (
                "it took effect, and then it had not",
                vec![lost_put(0, 5), get(1, 2, Some((5, 9))), get(3, 4, None)],
                false,
            ),
            ("it took effect twice", vec![lost(0, Call::Increment { delta: 1 }), add(1, 2, 1, 3, 9)], false),
            ("before it began", vec![get(0, 1, Some((5, 9))), lost_put(2, 5)], false),
            (
                "it came back after others had overwritten it",
                vec![lost_put(0, 5), get(1, 2, Some((5, 9))), put(3, 4, 6, 10), get(5, 6, Some((5, 9)))],
                false,
            ),
            (
                "two versions of one write",
                vec![lost_put(0, 5), get(1, 2, Some((5, 9))), get(3, 4, Some((5, 11)))],
                false,
            ),
            (
                "its condition held later only",
                vec![lost_swap(0, 3, 6), get(1, 2, None), put(3, 4, 5, 3), get(5, 6, Some((6, 8)))],
                true,
            ),
            (
                "its condition never held",
                vec![lost_swap(0, 4, 6), put(3, 4, 5, 3), get(5, 6, Some((6, 8)))],
                false,
            ),
            (
                "a chain of unanswered writes",
                vec![
                    lost_put(0, 5),
                    lost_swap(0, 9, 6),
                    lost(0, Call::Delete),
                    get(1, 2, Some((6, 12))),
                    get(3, 4, None),
                ],
                true,
            ),
        ]
    }
}

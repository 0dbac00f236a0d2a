//! What the clients saw: every operation with when it began, when it ended and what came of it.

use std::cell::RefCell;
use std::fmt::Write;
use std::rc::Rc;
use std::time::Duration;

use crate::linearizability::{Answer, Call};

/// What a client asked for. `write` numbers are unique over all clients and kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// A row whose key is the write's number; a second application is refused by SQLite.
    Insert { write: i64 },
    /// A row in a table without keys; a second application makes a second row.
    Append { write: i64 },
    /// Adds one to a counter.
    Increment { write: i64, counter: i64 },
    /// Sets a register to the write's number; gives its version, which grows by one.
    Set { write: i64, register: i64 },
    /// Adds one to both halves of a pair in one transaction.
    Pair { write: i64 },
    /// Reads a counter, linearizable.
    Count { counter: i64 },
    /// Reads a register, linearizable.
    Get { register: i64 },
    /// Reads both halves of the pair at any freshness.
    Halves { stale: bool },
    /// An operation on a register of scenario `registers`.
    Register { key: String, call: Call },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Acknowledged; for reads and `Set` with the numbers that came back.
    Done(Vec<i64>),
    /// Acknowledged, an operation on a register.
    Answered(Answer),
    /// Not applied, for certain.
    Refused(String),
    /// Nobody can know.
    Unknown(String),
    /// An error that no fault explains.
    Broken(String),
}

/// One operation.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    /// Who asked.
    pub(crate) client: usize,
    /// When the client began to ask.
    pub(crate) began: Duration,
    /// When it had its answer.
    pub(crate) ended: Duration,
    /// What it asked for.
    pub(crate) request: Request,
    /// What came of it.
    pub(crate) outcome: Outcome,
}

impl Operation {
    /// Whether its effect is certain.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.outcome, Outcome::Done(_) | Outcome::Answered(_))
    }

    /// The numbers that came back.
    pub(crate) fn numbers(&self) -> Option<&[i64]> {
        match &self.outcome {
            Outcome::Done(numbers) => Some(numbers),
            _ => None,
        }
    }

    /// Whether it may have had an effect.
    pub(crate) fn may_have_effect(&self) -> bool {
        self.is_done() || matches!(self.outcome, Outcome::Unknown(_))
    }
}

/// The history of a run, in the order of the answers. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct History(Rc<RefCell<Recorded>>);

#[derive(Default)]
struct Recorded {
    operations: Vec<Operation>,
    lines: Vec<String>,
}

impl History {
    /// Notes an answer.
    pub(crate) fn answered(&self, operation: Operation) {
        let mut recorded = self.0.borrow_mut();
        recorded.lines.push(format!("{operation:?}"));
        recorded.operations.push(operation);
    }

    /// Notes anything else that belongs to the run.
    pub(crate) fn note(&self, at: Duration, text: &str) {
        self.0.borrow_mut().lines.push(format!("{at:?} {text}"));
    }

    /// The operations.
    pub(crate) fn operations(&self) -> Vec<Operation> {
        self.0.borrow().operations.clone()
    }

    /// As text.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        for line in &self.0.borrow().lines {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    /// A fingerprint of everything that was noted: FNV-1a.
    pub(crate) fn hash(&self) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in self.0.borrow().lines.iter().flat_map(|line| line.bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        hash
    }
}

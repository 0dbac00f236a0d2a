//! What clients of the storage saw: every operation with when it began, when it ended and what came of it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use debros_sdk::Version;

/// What a client asked for. Values are unique over all clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Put {
        key: String,
        value: String,
    },
    Delete {
        key: String,
    },
    Get {
        key: String,
    },
    /// One page of all keys.
    List {
        after: Option<String>,
        limit: u32,
    },
}

/// A value that was read, under its version.
pub(crate) type Found = (Version, String);

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A put or delete was acknowledged.
    Written(Version),
    /// A get was answered.
    Found(Option<Found>),
    /// A page, and where the next one begins.
    Listed(BTreeMap<String, Found>, Option<String>),
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
    /// Whether it was carried out, for certain.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.outcome, Outcome::Written(_) | Outcome::Found(_) | Outcome::Listed(..))
    }
}

/// The operations of a run in the order of their answers. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Operations(Rc<RefCell<Vec<Operation>>>);

impl Operations {
    /// Notes an answer.
    pub(crate) fn answered(&self, operation: Operation) {
        self.0.borrow_mut().push(operation);
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Operation> {
        self.0.borrow().clone()
    }
}

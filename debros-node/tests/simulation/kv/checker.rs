//! Judges what clients of the storage saw. Every write and every value read carries a version, so no search
//! is needed: whatever was acknowledged or read before an operation began is the least that it may show.
//!
//! A list is a read of all keys that its page covers, and the last look at the storage is a read, too: it
//! follows that nothing acknowledged is lost, that no deleted key returns, and that each client reads its
//! own writes and never goes back. A read that finds nothing shows no version, so it needs a delete that
//! explains it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use debros_sdk::Version;

use super::clients::keys;
use super::history::{Found, Operation, Outcome, Request};
use crate::machine::EPOCH;

/// A delete whose outcome is unknown may be stamped so long after its client gave up: it waited in the
/// network, then its node worked at it until its time was up.
const LATE: Duration = Duration::from_secs(10);
/// An acknowledged delete that took so long may have been sent twice, and each sending has a version.
const SENT_ONCE_WITHIN: Duration = Duration::from_millis(250);
/// The bits of a version's clock that count within a millisecond.
const COUNTER_BITS: u32 = 16;

/// A put or delete of one key.
struct Write<'o> {
    operation: &'o Operation,
    /// `None` deletes.
    value: Option<&'o str>,
    /// `None` when it was not acknowledged.
    version: Option<Version>,
}

/// A read of one key.
struct Read<'o> {
    operation: &'o Operation,
    found: Option<&'o Found>,
}

/// Everything that is wrong; empty when the run is as it should be.
pub(crate) fn judge(operations: &[Operation]) -> Vec<String> {
    let mut wrong = Vec::new();
    for operation in operations {
        if let Outcome::Broken(error) = &operation.outcome {
            let (client, request) = (operation.client, &operation.request);
            wrong.push(format!(
                "client {client} got an error that no fault explains: {error} for {request:?}"
            ));
        }
    }
    keys().iter().for_each(|key| KeyHistory::of(key, operations).judge(&mut wrong));
    wrong
}

struct KeyHistory<'o> {
    key: String,
    writes: Vec<Write<'o>>,
    reads: Vec<Read<'o>>,
}

impl<'o> KeyHistory<'o> {
    fn of(key: &str, operations: &'o [Operation]) -> Self {
        let mut history = Self { key: key.to_owned(), writes: Vec::new(), reads: Vec::new() };
        for operation in operations {
            match (&operation.request, &operation.outcome) {
                (_, Outcome::Refused(_)) => {}
                (Request::Put { key: of, value }, outcome) if of == key => {
                    history.write(operation, Some(value), outcome);
                }
                (Request::Delete { key: of }, outcome) if of == key => {
                    history.write(operation, None, outcome);
                }
                (Request::Get { key: of }, Outcome::Found(found)) if of == key => {
                    history.reads.push(Read { operation, found: found.as_ref() });
                }
                (Request::List { after, .. }, Outcome::Listed(page, next)) => {
                    let after = after.as_ref().is_none_or(|after| after.as_str() < key);
                    if after && next.as_ref().is_none_or(|next| key <= next.as_str()) {
                        history.reads.push(Read { operation, found: page.get(key) });
                    }
                }
                _ => {}
            }
        }
        history
    }

    fn write(&mut self, operation: &'o Operation, value: Option<&'o str>, outcome: &Outcome) {
        let version = match outcome {
            Outcome::Written(version) => Some(*version),
            _ => None,
        };
        self.writes.push(Write { operation, value, version });
    }

    /// The greatest version that was acknowledged or read before that time, and whose it was.
    fn least_at(&self, time: Duration) -> Option<(Version, &'o Operation)> {
        let written = self.writes.iter().filter_map(|write| Some((write.version?, write.operation)));
        let read = self.reads.iter().filter_map(|read| Some((read.found?.0, read.operation)));
        let before = written.chain(read).filter(|(_, operation)| operation.ended < time);
        before.max_by_key(|(version, operation)| (*version, std::cmp::Reverse(operation.ended)))
    }

    fn judge(&self, wrong: &mut Vec<String>) {
        self.values_belong(wrong);
        for write in &self.writes {
            let Some(version) = write.version else { continue };
            if let Some((least, earlier)) = self.least_at(write.operation.began)
                && least >= version
            {
                wrong.push(format!(
                    "{} was acknowledged below what was there before: {} after {}",
                    self.key,
                    self.tell(write.operation),
                    self.tell(earlier)
                ));
            }
        }
        for read in &self.reads {
            let Some((least, earlier)) = self.least_at(read.operation.began) else { continue };
            let stale = match read.found {
                Some((version, _)) => *version < least,
                None => !self.may_be_deleted(least, read.operation.ended),
            };
            if stale {
                let what = if read.found.is_some() { "went back" } else { "was lost" };
                let (read, earlier) = (self.tell(read.operation), self.tell(earlier));
                wrong.push(format!("{} {what}: {read} after {earlier}", self.key));
            }
        }
    }

    /// What an operation says of this key.
    fn tell(&self, operation: &Operation) -> String {
        let Operation { client, began, ended, request, outcome } = operation;
        let what = match (request, outcome) {
            (Request::List { .. }, Outcome::Listed(page, _)) => {
                format!("listed {:?}", page.get(&self.key))
            }
            (Request::Get { .. }, Outcome::Found(found)) => format!("got {found:?}"),
            (request, outcome) => format!("{request:?} gave {outcome:?}"),
        };
        format!("client {client} from {began:?} to {ended:?}: {what}")
    }

    /// Every version has one value, and that was put.
    fn values_belong(&self, wrong: &mut Vec<String>) {
        let put: BTreeMap<&str, Duration> =
            self.writes.iter().filter_map(|write| Some((write.value?, write.operation.began))).collect();
        let mut values: BTreeMap<Version, Option<&str>> = BTreeMap::new();
        let mut told = BTreeSet::new();
        for write in &self.writes {
            let Some(version) = write.version else { continue };
            if values.insert(version, write.value).is_some() {
                wrong.push(format!("{} has two writes of version {version:?}", self.key));
            }
        }
        for read in &self.reads {
            let Some((version, value)) = read.found else { continue };
            let began = put.get(value.as_str());
            if began.is_none_or(|began| *began > read.operation.ended) && told.insert(value) {
                wrong.push(format!(
                    "{} shows a value that nobody put: {}",
                    self.key,
                    self.tell(read.operation)
                ));
            }
            if *values.entry(*version).or_insert(Some(value)) != Some(value) && told.insert(value) {
                let told = self.tell(read.operation);
                wrong.push(format!("{} shows another value at that version: {told}", self.key));
            }
        }
    }

    /// Whether a delete that had begun by that time explains that what had this version is gone.
    fn may_be_deleted(&self, least: Version, by: Duration) -> bool {
        let deletes = self.writes.iter().filter(|write| write.value.is_none() && write.operation.began <= by);
        let stamped = Duration::from_millis(least.clock >> COUNTER_BITS).saturating_sub(EPOCH);
        deletes.into_iter().any(|delete| {
            let Operation { began, ended, .. } = delete.operation;
            let sent_once = delete.version.is_some() && *ended - *began < SENT_ONCE_WITHIN;
            delete.version.is_some_and(|version| version >= least) || (!sent_once && stamped <= *ended + LATE)
        })
    }
}

/// The checker is held to histories whose verdicts are known.
pub(crate) fn known_histories_are_told_apart() -> Result<(), String> {
    let version = |clock: u64| Version { clock: (EPOCH.as_millis() as u64 + clock) << COUNTER_BITS, node: 1 };
    let (at, first) = (Duration::from_millis, keys().swap_remove(0));
    let operation = |began: u64, request: Request, outcome: Outcome| Operation {
        client: 0,
        began: at(began),
        ended: at(began + 5),
        request,
        outcome,
    };
    let put = |began: u64| Request::Put { key: first.clone(), value: began.to_string() };
    let write = |began: u64| operation(began, put(began), Outcome::Written(version(began)));
    let delete = |began: u64| {
        operation(began, Request::Delete { key: first.clone() }, Outcome::Written(version(began)))
    };
    let get = |began: u64, of: Option<u64>| {
        let found = of.map(|of| (version(of), of.to_string()));
        operation(began, Request::Get { key: first.clone() }, Outcome::Found(found))
    };
    let list = |began: u64, next: Option<String>| {
        let request = Request::List { after: None, limit: 1 };
        operation(began, request, Outcome::Listed(BTreeMap::new(), next))
    };
    let lost = |began: u64| {
        let request = Request::Delete { key: first.clone() };
        operation(began, request, Outcome::Unknown("no answer".to_owned()))
    };
    let broken = |began: u64| operation(began, put(began), Outcome::Broken("?".to_owned()));
    let cases: [(&str, Vec<Operation>, bool); 11] = [
        ("a write is read", vec![write(10), get(20, Some(10))], true),
        ("an older value is read", vec![write(10), write(20), get(30, Some(10))], false),
        ("a value is read that a read was beyond", vec![write(10), get(20, Some(15))], false),
        ("an acknowledged write is gone", vec![write(10), get(20, None)], false),
        ("a deleted value is gone", vec![write(10), delete(20), get(30, None)], true),
        ("a deleted value returns", vec![write(10), delete(20), get(30, Some(10))], false),
        ("a delete without an answer explains", vec![lost(5), write(10), get(20, None)], true),
        ("one that gave up long ago does not", vec![lost(5), write(20_000), get(20_010, None)], false),
        ("a list lacks a key", vec![write(10), list(20, None)], false),
        ("a page ends before the key", vec![write(10), list(20, Some("a".to_owned()))], true),
        ("an error without a reason", vec![broken(10)], false),
    ];
    let misjudged = cases.iter().filter(|(_, operations, fine)| judge(operations).is_empty() != *fine);
    let misjudged: Vec<&str> = misjudged.map(|(what, ..)| *what).collect();
    if misjudged.is_empty() { Ok(()) } else { Err(format!("misjudged: {}", misjudged.join(", "))) }
}

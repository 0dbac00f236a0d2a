//! Judges a history and the state at its end: nothing acknowledged is lost, nothing is applied twice,
//! nothing that was refused is there, and reads keep to real time.
//!
//! Every register carries a version that grows by one with each write, so whether a history of it is
//! linearizable (Herlihy and Wing 1990) is a question of versions alone: an operation must show one no
//! older than any that was shown before it began. No search is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::clients::CELLS;
use crate::history::{Operation, Outcome, Request};

/// What all replicas hold at the end, as one of them gave it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Keys of the table with keys.
    pub(crate) items: Vec<i64>,
    /// Writes in the table without keys.
    pub(crate) journal: Vec<i64>,
    /// Counters by id.
    pub(crate) counters: Vec<i64>,
    /// Values and versions by id.
    pub(crate) registers: Vec<(i64, i64)>,
    /// The halves of the pair.
    pub(crate) pair: Vec<i64>,
}

/// Everything that is wrong; empty when the run is as it should be.
pub(crate) fn judge(operations: &[Operation], state: &State) -> Vec<String> {
    let mut wrong = Vec::new();
    for operation in operations {
        if let Outcome::Broken(error) = &operation.outcome {
            let (client, request) = (operation.client, &operation.request);
            wrong.push(format!(
                "client {client} got an error that no fault explains: {error} for {request:?}"
            ));
        }
    }
    items(operations, state, &mut wrong);
    journal(operations, state, &mut wrong);
    for cell in 0..CELLS {
        counter(cell, operations, state, &mut wrong);
        register(cell, operations, state, &mut wrong);
    }
    pair(operations, state, &mut wrong);
    wrong
}

/// The writes of one kind by what is known of them.
struct Writes {
    done: BTreeSet<i64>,
    possible: BTreeSet<i64>,
}

fn writes(operations: &[Operation], number: impl Fn(&Request) -> Option<i64>) -> Writes {
    let mut writes = Writes { done: BTreeSet::new(), possible: BTreeSet::new() };
    for operation in operations {
        let Some(number) = number(&operation.request) else { continue };
        if operation.is_done() {
            writes.done.insert(number);
        }
        if operation.may_have_effect() {
            writes.possible.insert(number);
        }
    }
    writes
}

fn present(what: &str, found: &BTreeSet<i64>, writes: &Writes, wrong: &mut Vec<String>) {
    for lost in writes.done.difference(found) {
        wrong.push(format!("{what} {lost} was acknowledged and is lost"));
    }
    for extra in found.difference(&writes.possible) {
        wrong.push(format!("{what} {extra} was refused, or never asked for, and is there"));
    }
}

fn items(operations: &[Operation], state: &State, wrong: &mut Vec<String>) {
    let writes = writes(operations, |request| match request {
        Request::Insert { write } => Some(*write),
        _ => None,
    });
    present("insert", &state.items.iter().copied().collect(), &writes, wrong);
}

fn journal(operations: &[Operation], state: &State, wrong: &mut Vec<String>) {
    let writes = writes(operations, |request| match request {
        Request::Append { write } => Some(*write),
        _ => None,
    });
    let mut found = BTreeSet::new();
    for write in &state.journal {
        if !found.insert(*write) {
            wrong.push(format!("append {write} was applied twice"));
        }
    }
    present("append", &found, &writes, wrong);
}

fn between(what: &str, found: i64, least: usize, most: usize, wrong: &mut Vec<String>) {
    if found < least as i64 {
        wrong.push(format!("{what} is {found}, though {least} writes were acknowledged"));
    }
    if found > most as i64 {
        wrong.push(format!("{what} is {found}, though at most {most} writes were applied"));
    }
}

fn counter(cell: i64, operations: &[Operation], state: &State, wrong: &mut Vec<String>) {
    let increments: Vec<&Operation> = operations
        .iter()
        .filter(
            |operation| matches!(operation.request, Request::Increment { counter, .. } if counter == cell),
        )
        .collect();
    let possible = increments.iter().filter(|operation| operation.may_have_effect()).count();
    let done = increments.iter().filter(|operation| operation.is_done()).count();
    let found = state.counters.get(cell as usize).copied().unwrap_or(-1);
    between(&format!("counter {cell} at the end"), found, done, possible, wrong);

    let mut shown = Shown::default();
    for read in operations {
        let (Request::Count { counter }, Some(numbers)) = (&read.request, read.numbers()) else { continue };
        if *counter != cell {
            continue;
        }
        let least = increments.iter().filter(|write| write.is_done() && write.ended < read.began).count();
        let most =
            increments.iter().filter(|write| write.may_have_effect() && write.began < read.ended).count();
        let found = numbers.first().copied().unwrap_or(-1);
        between(&format!("counter {cell} as read at {:?}", read.began), found, least, most, wrong);
        shown.add(read, found);
    }
    shown.judge(&format!("counter {cell}"), wrong);
}

fn register(cell: i64, operations: &[Operation], state: &State, wrong: &mut Vec<String>) {
    let mut shown = Shown::default();
    let mut values = BTreeMap::from([(0, 0)]);
    let (mut done, mut possible) = (0, 0);
    for operation in operations {
        let (version, value) = match (&operation.request, operation.numbers()) {
            (Request::Set { register, .. }, None) if *register == cell => {
                possible += usize::from(operation.may_have_effect());
                continue;
            }
            (Request::Set { register, write }, Some([version])) if *register == cell => {
                (done, possible) = (done + 1, possible + 1);
                shown.add_write(operation, *version);
                (*version, *write)
            }
            (Request::Get { register }, Some([value, version])) if *register == cell => {
                shown.add(operation, *version);
                (*version, *value)
            }
            (Request::Set { register, .. } | Request::Get { register }, Some(numbers))
                if *register == cell =>
            {
                wrong.push(format!("register {cell} gave {numbers:?}"));
                continue;
            }
            _ => continue,
        };
        let bound = *values.entry(version).or_insert(value);
        if bound != value {
            wrong.push(format!("version {version} of register {cell} is both {bound} and {value}"));
        }
    }
    shown.judge(&format!("register {cell}"), wrong);
    let (value, version) = state.registers.get(cell as usize).copied().unwrap_or((-1, -1));
    between(&format!("version of register {cell} at the end"), version, done, possible, wrong);
    if values.get(&version).is_some_and(|bound| *bound != value) {
        wrong.push(format!("version {version} of register {cell} is another one at the end"));
    }
}

fn pair(operations: &[Operation], state: &State, wrong: &mut Vec<String>) {
    let pairs = || operations.iter().filter(|operation| matches!(operation.request, Request::Pair { .. }));
    let done = pairs().filter(|operation| operation.is_done()).count();
    let possible = pairs().filter(|operation| operation.may_have_effect()).count();
    between("the pair at the end", state.pair.first().copied().unwrap_or(-1), done, possible, wrong);
    let reads = operations.iter().filter(|operation| matches!(operation.request, Request::Halves { .. }));
    let read = reads.filter_map(|operation| operation.numbers());
    for halves in read.chain([&state.pair[..]]) {
        if halves.len() != 2 || halves[0] != halves[1] {
            wrong.push(format!("half of a transaction was seen: {halves:?}"));
        }
    }
}

/// The numbers that operations showed, each growing with time.
#[derive(Default)]
struct Shown {
    at: Vec<(Duration, Duration, i64, bool)>,
}

impl Shown {
    fn add(&mut self, operation: &Operation, number: i64) {
        self.at.push((operation.began, operation.ended, number, false));
    }

    fn add_write(&mut self, operation: &Operation, number: i64) {
        self.at.push((operation.began, operation.ended, number, true));
    }

    /// Nothing may show less than what had been shown before it began, and a write must show more.
    fn judge(mut self, what: &str, wrong: &mut Vec<String>) {
        let mut ends: Vec<(Duration, i64)> =
            self.at.iter().map(|(_, ended, number, _)| (*ended, *number)).collect();
        ends.sort_unstable();
        self.at.sort_unstable();
        let (mut ends, mut floor) = (ends.into_iter().peekable(), i64::MIN);
        for (began, _, number, is_write) in self.at {
            while let Some((_, shown)) = ends.next_if(|(ended, _)| *ended < began) {
                floor = floor.max(shown);
            }
            if number < floor || (is_write && number == floor) {
                let deed = if is_write { "written" } else { "read" };
                wrong.push(format!(
                    "{what} was {deed} as {number} at {began:?}, after {floor} had been shown"
                ));
            }
        }
    }
}

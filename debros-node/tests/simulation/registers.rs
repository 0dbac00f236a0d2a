//! The clients of scenario `registers` and what is asked of what they saw.
//!
//! Workers change keys that they share: each key's history must be [linearizable](crate::linearizability). A key
//! is used for a few seconds only, so that what was left without an answer does not add up. A watcher writes down
//! what it is told: in order, nothing that nobody wrote, nothing missing that was acknowledged. Holders take turns
//! at a lock: never two at a time, each with a greater token. A lender waits for its leases to end ([`leases`]).
//! Clocks are set forward and back by up to an hour meanwhile.

mod leases;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use debros_sdk::{
    Client, Conflict, Error, Lock, Register, RegisterEvent, RegisterListOptions, RegisterWatch, Registers,
    RemoteRegisters,
};
use tokio::time::{sleep, timeout};

use crate::clients::{connect, not_done, now};
use crate::dice::Dice;
use crate::history::{History, Operation, Outcome, Request};
use crate::linearizability::{self, Answer, Call};
use crate::world::World;

const WORKERS: usize = 3;
const HOLDERS: usize = 2;
const WORKER_DICE: u64 = 500;
const HOLDER_DICE: u64 = 600;
const LENDER_DICE: u64 = 700;
/// The numbers of the clients, beside the founder's.
const WATCHER: usize = 10;
const FIRST_HOLDER: usize = 11;
const LENDER: usize = FIRST_HOLDER + HOLDERS;
/// Keys that are in use at a time: few, so that workers meet.
const KEYS: u64 = 3;
/// A key is in use for so long.
const KEY_LIFE: Duration = Duration::from_secs(4);
/// Distinguishes the values that workers put; sums stay far below.
const VALUES_PER_WORKER: i64 = 1_000_000;
/// The keys of workers begin with this.
const PREFIX: &str = "key/";
const LOCK: &str = "lock";
const LOCK_TTL: Duration = Duration::from_secs(2);
/// The watcher looks whether the workers have ended.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What clients saw beside the history. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Seen(Rc<RefCell<Noted>>);

#[derive(Default)]
struct Noted {
    workers_ended: usize,
    /// Everything after this was watched.
    since: Option<u64>,
    events: Vec<RegisterEvent>,
    /// What the watcher missed and was told to have missed: after the first, up to the second.
    gaps: Vec<(u64, u64)>,
    held: Vec<Held>,
    wrong: Vec<String>,
}

/// A time during which a lock was held.
#[derive(Clone, Copy, Debug)]
struct Held {
    token: u64,
    from: Duration,
    to: Duration,
}

/// The clients of a run.
pub(crate) struct Crew {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    pub(crate) end: Duration,
}

impl Crew {
    /// Starts them; gives their names.
    pub(crate) fn start(&self, world: &mut World, seen: &Seen) -> Vec<String> {
        let &Self { seed, nodes, end } = self;
        let mut names = Vec::new();
        for number in 0..WORKERS {
            let dice = Dice::new(seed, WORKER_DICE + number as u64);
            let (history, seen) = (world.history().clone(), seen.clone());
            let worker = Worker { number, nodes, end, dice, history, seen, versions: BTreeMap::new() };
            names.push(format!("client-{number}"));
            world.client(&names[number], worker.run());
        }
        for number in FIRST_HOLDER..FIRST_HOLDER + HOLDERS {
            let name = format!("client-{number}");
            let dice = Dice::new(seed, HOLDER_DICE + number as u64);
            world.client(&name, hold(number, nodes, end, dice, world.history().clone(), seen.clone()));
            names.push(name);
        }
        let (dice, history) = (Dice::new(seed, LENDER_DICE), world.history().clone());
        world.client("lender", leases::lend(LENDER, nodes, end, dice, history, seen.clone()));
        names.push("lender".to_owned());
        world.client("watcher", watch(nodes, world.history().clone(), seen.clone()));
        names.push("watcher".to_owned());
        names
    }
}

struct Worker {
    number: usize,
    nodes: usize,
    end: Duration,
    dice: Dice,
    history: History,
    seen: Seen,
    /// The versions that keys had when this worker last heard of them.
    versions: BTreeMap<String, u64>,
}

impl Worker {
    async fn run(mut self) -> turmoil::Result {
        let client = connect(self.number, self.nodes).await?;
        let registers = client.registers();
        let mut value = self.number as i64 * VALUES_PER_WORKER;
        while now() < self.end {
            value += 1;
            let (key, call) = self.draw(value);
            let began = now();
            let outcome = match carry_out(&registers, &key, &call).await {
                Ok(answer) => {
                    self.learn(&key, &answer);
                    Outcome::Answered(answer)
                }
                Err(error) => not_done(&error),
            };
            let (ended, request) = (now(), Request::Register { key, call });
            self.history.answered(Operation { client: self.number, began, ended, request, outcome });
            sleep(self.dice.milliseconds(1, 30)).await;
        }
        client.close().await;
        self.seen.0.borrow_mut().workers_ended += 1;
        Ok(())
    }

    fn draw(&mut self, value: i64) -> (String, Call) {
        let life = now().as_millis() / KEY_LIFE.as_millis();
        let key = format!("{PREFIX}{life}/{}", self.dice.below(KEYS));
        let expected = self.versions.get(&key).copied().unwrap_or(0);
        let call = match self.dice.below(16) {
            0..5 => Call::Get,
            5..7 => Call::Put { value },
            7..11 => Call::CompareAndSet { expected, value },
            11..14 => Call::Increment { delta: 1 },
            14 => Call::Delete,
            _ => Call::CompareAndDelete { expected: expected.max(1) },
        };
        (key, call)
    }

    fn learn(&mut self, key: &str, answer: &Answer) {
        let version = match answer {
            Answer::Found(found) => found.map_or(0, |(_, version)| version),
            Answer::Written { version } | Answer::Conflict { version, .. } | Answer::Sum { version, .. } => {
                *version
            }
            Answer::Deleted { .. } => 0,
        };
        self.versions.insert(key.to_owned(), version);
    }
}

async fn carry_out(registers: &RemoteRegisters, key: &str, call: &Call) -> Result<Answer, Error> {
    let key = key.as_bytes();
    Ok(match *call {
        Call::Get => Answer::Found(
            registers.get(key).await?.map(|register| (number(&register.value), register.version)),
        ),
        Call::Put { value } => {
            Answer::Written { version: registers.put(key, value.to_string().as_bytes()).await? }
        }
        Call::CompareAndSet { expected, value } => {
            match registers.compare_and_set(key, expected, value.to_string().as_bytes()).await? {
                Ok(version) => Answer::Written { version },
                Err(found) => conflict(&found),
            }
        }
        Call::Delete => Answer::Deleted { version: registers.delete(key).await?.unwrap_or(0) },
        Call::CompareAndDelete { expected } => match registers.compare_and_delete(key, expected).await? {
            Ok(()) => Answer::Deleted { version: expected },
            Err(found) => conflict(&found),
        },
        Call::Increment { delta } => {
            let sum = registers.increment(key, delta).await?;
            Answer::Sum { value: sum.value, version: sum.version }
        }
    })
}

fn conflict(found: &Conflict) -> Answer {
    Answer::Conflict { version: found.version, value: found.value.as_deref().map(number) }
}

fn number(value: &[u8]) -> i64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(i64::MIN)
}

/// Watches until the workers have ended and everything they wrote was told. Then reads every key once more.
async fn watch(nodes: usize, history: History, seen: Seen) -> turmoil::Result {
    let client = connect(WATCHER, nodes).await?;
    let registers = client.registers();
    let mut watch = loop {
        match registers.watch(PREFIX.as_bytes(), None).await {
            Ok(watch) => break watch,
            Err(error) => explained(&seen, &error),
        }
    };
    seen.0.borrow_mut().since = Some(watch.revision());
    while seen.0.borrow().workers_ended < WORKERS {
        take(&mut watch, &seen, LOOK_AGAIN).await;
    }
    let last = loop {
        match registers.put(format!("{PREFIX}last").as_bytes(), b"0").await {
            Ok(version) => break version,
            Err(error) => explained(&seen, &error),
        }
    };
    while watch.revision() < last {
        take(&mut watch, &seen, LOOK_AGAIN).await;
    }
    read_all(&registers, &history, &seen).await;
    client.close().await;
    Ok(())
}

async fn take(watch: &mut RegisterWatch, seen: &Seen, patience: Duration) {
    let before = watch.revision();
    match timeout(patience, watch.next()).await {
        Ok(Some(Ok(RegisterEvent::Lagged { revision }))) => {
            seen.0.borrow_mut().gaps.push((before, revision));
        }
        Ok(Some(Ok(event))) => seen.0.borrow_mut().events.push(event),
        Ok(Some(Err(error))) => seen.0.borrow_mut().wrong.push(format!("the watch gave {error}")),
        Ok(None) => {
            seen.0.borrow_mut().wrong.push("the watch has ended".to_owned());
            // Nothing more will come: do not spin.
            sleep(patience).await;
        }
        Err(_) => {}
    }
}

/// Reads what is there at the end, as an operation on every key that was used.
async fn read_all(registers: &RemoteRegisters, history: &History, seen: &Seen) {
    let began = now();
    let mut found: BTreeMap<String, Register> = BTreeMap::new();
    let mut options = RegisterListOptions { limit: Some(7), after: None };
    loop {
        match registers.list(PREFIX.as_bytes(), options.clone()).await {
            Ok(page) => {
                let keyed =
                    |register: Register| (String::from_utf8_lossy(&register.key).into_owned(), register);
                found.extend(page.registers.into_iter().map(keyed));
                options.after = page.next;
                if options.after.is_none() {
                    break;
                }
            }
            Err(error) => explained(seen, &error),
        }
    }
    let ended = now();
    let keys: BTreeSet<String> = keyed(&history.operations()).into_keys().collect();
    for key in keys {
        let read = found.get(&key).map(|register| (number(&register.value), register.version));
        let request = Request::Register { key, call: Call::Get };
        let outcome = Outcome::Answered(Answer::Found(read));
        history.answered(Operation { client: WATCHER, began, ended, request, outcome });
    }
}

/// Takes turns at the lock until `end`.
async fn hold(
    client_number: usize,
    nodes: usize,
    end: Duration,
    mut dice: Dice,
    history: History,
    seen: Seen,
) -> turmoil::Result {
    let client: Client = connect(client_number, nodes).await?;
    let lock = Lock::new(Arc::new(client.registers()), LOCK, LOCK_TTL);
    while now() < end {
        let left = end.saturating_sub(now());
        let guard = match timeout(left, lock.acquire(client_number.to_string().as_bytes())).await {
            Ok(Ok(guard)) => guard,
            Ok(Err(error)) => {
                explained(&seen, &error);
                continue;
            }
            Err(_) => break,
        };
        let (token, from) = (guard.token(), now());
        let pause = dice.milliseconds(1, 1500);
        let _ = timeout(pause, guard.lost()).await;
        let held = Held { token, from, to: now() };
        history.note(held.from, &format!("client {client_number} held the lock: {held:?}"));
        seen.0.borrow_mut().held.push(held);
        if dice.once_in(3) {
            drop(guard);
        } else if let Err(error) = guard.release().await {
            explained(&seen, &error);
        }
    }
    client.close().await;
    Ok(())
}

/// Notes an error that no fault explains.
fn explained(seen: &Seen, error: &Error) {
    if let Outcome::Broken(text) = not_done(error) {
        seen.0.borrow_mut().wrong.push(format!("an error that no fault explains: {text}"));
    }
}

type Asked = (Call, Operation);

/// The operations on each key.
fn keyed(operations: &[Operation]) -> BTreeMap<String, Vec<Asked>> {
    let mut keys: BTreeMap<String, Vec<Asked>> = BTreeMap::new();
    for operation in operations {
        if let Request::Register { key, call } = &operation.request {
            keys.entry(key.clone()).or_default().push((call.clone(), operation.clone()));
        }
    }
    keys
}

/// Everything that is wrong; empty when the run is as it should be.
pub(crate) fn judge(operations: &[Operation], seen: &Seen) -> Vec<String> {
    let seen = seen.0.borrow();
    let mut wrong = seen.wrong.clone();
    for operation in operations {
        if let Outcome::Broken(error) = &operation.outcome {
            wrong.push(format!("an error that no fault explains: {error} for {:?}", operation.request));
        }
    }
    for (key, asked) in keyed(operations) {
        let history: Vec<_> = asked.iter().filter_map(|(call, operation)| one(call, operation)).collect();
        if let Err(reason) = linearizability::check(&history) {
            wrong.push(format!("{key} is not linearizable: {reason}"));
        }
    }
    told(operations, &seen, &mut wrong);
    locked(&seen.held, &mut wrong);
    wrong
}

/// An operation as the checker takes it; none for one that had no effect, for certain.
fn one(call: &Call, operation: &Operation) -> Option<linearizability::Operation> {
    let answered = match &operation.outcome {
        Outcome::Answered(answer) => Some((operation.ended, answer.clone())),
        Outcome::Unknown(_) if *call != Call::Get => None,
        _ => return None,
    };
    Some(linearizability::Operation { began: operation.began, answered, call: call.clone() })
}

/// What the watcher was told: in order, by somebody's hand, and complete.
fn told(operations: &[Operation], seen: &Noted, wrong: &mut Vec<String>) {
    let Some(since) = seen.since else {
        wrong.push("no watch ever stood".to_owned());
        return;
    };
    let mut last = since;
    let mut puts: BTreeMap<u64, (String, i64)> = BTreeMap::new();
    for event in &seen.events {
        let version = match event {
            RegisterEvent::Put(register) => {
                let key = String::from_utf8_lossy(&register.key).into_owned();
                puts.insert(register.version, (key, number(&register.value)));
                register.version
            }
            RegisterEvent::Deleted { version, .. } => *version,
            RegisterEvent::Lagged { .. } => continue,
        };
        if version <= last {
            wrong.push(format!("the watch told of {event:?} after {last}"));
        }
        last = last.max(version);
    }
    for operation in operations {
        let (Request::Register { key, call }, Outcome::Answered(answer)) =
            (&operation.request, &operation.outcome)
        else {
            continue;
        };
        let Some((version, value)) = written(call, answer) else { continue };
        let missed = seen.gaps.iter().any(|(after, upto)| version > *after && version <= *upto);
        match puts.get(&version) {
            Some(put) if *put == (key.clone(), value) => {}
            Some(put) => wrong
                .push(format!("the watch told of {put:?} as version {version}, which is {key} = {value}")),
            None if version <= since || missed => {}
            None => wrong.push(format!("the watch never told of version {version}: {key} = {value}")),
        }
    }
}

/// Version and value that an operation gave a key.
fn written(call: &Call, answer: &Answer) -> Option<(u64, i64)> {
    match (call, answer) {
        (Call::Put { value } | Call::CompareAndSet { value, .. }, Answer::Written { version }) => {
            Some((*version, *value))
        }
        (_, Answer::Sum { value, version }) => Some((*version, *value)),
        _ => None,
    }
}

/// Never two at a time, and each with a greater token.
fn locked(held: &[Held], wrong: &mut Vec<String>) {
    let mut held = held.to_vec();
    held.sort_by_key(|held| held.token);
    for pair in held.windows(2) {
        if pair[1].from < pair[0].to || pair[1].token == pair[0].token {
            wrong.push(format!("two held the lock: {:?} and {:?}", pair[0], pair[1]));
        }
    }
}

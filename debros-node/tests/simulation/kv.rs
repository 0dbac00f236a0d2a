//! Scenario `kv`: a storage whose nodes join, leave and stay away for longer than deletions are remembered,
//! while clients work on few keys and the seed lets whatever it likes go wrong.

mod checker;
mod clients;
mod convergence;
mod history;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use debros_node::pubsub::PubSubOptions;

use crate::dice::Dice;
use crate::faults::{CLOCKS_AHEAD_MS, Faults};
use crate::hooks;
use crate::machine::{StorageTuning, Tuning, name};
use crate::planted::Bug;
use crate::report::Report;
use crate::sql::Options;
use crate::world::{Action, World};

use clients::{Notes, Worker, keys, read_all, wait_for_storage};
use history::Operations;

pub(crate) use checker::known_histories_are_told_apart;
pub(crate) use clients::Operator;

/// Nodes at the beginning, which everybody knows.
const NODES: usize = 3;
/// Nodes that join.
const JOIN_MAX: u64 = 2;
const CLIENTS: usize = 4;
const CLIENT_DICE: u64 = 410;
const PLAN_DICE: u64 = 420;
/// The cluster forms and takes a first write within this.
const FORMED_WITHIN: Duration = Duration::from_secs(30);
/// The clients and the operator end within this after the last fault.
const ENDED_WITHIN: Duration = Duration::from_secs(150);
/// The observer ends within this: longer than it waits for the storage to be whole.
const OBSERVED_WITHIN: Duration = Duration::from_secs(90);
/// Violations that are told; the first is the one to look at.
const VIOLATIONS_TOLD: usize = 5;
/// What takes hours in production, in the time of a run. Collections come more often than comparisons, so
/// that a replica which comes back is met by those that have forgotten what it missed.
const TUNING: StorageTuning = StorageTuning {
    repair_interval: Duration::from_millis(1500),
    tombstone_life: Duration::from_millis(1500),
    collect_interval: Duration::from_millis(300),
    layout_settles_after: Duration::from_millis(300),
    lost_after: Duration::from_secs(5),
    acknowledge_before_fsync: false,
};
/// How long a node stays away: lost for the layout, and its deletions forgotten.
const AWAY_MS: (u64, u64) = (7000, 10_000);
/// How long a clock goes wrong, beside other faults.
const WRONG_MS: (u64, u64) = (2000, 10_000);
/// A node hears of a layout so much later than the others.
const LATE_MS: (u64, u64) = (1000, 4000);

/// Runs one seed; the thread's randomness and the bug are in place.
pub(crate) fn run(options: Options) -> Report {
    let early = options.planted == Some(Bug::StoreAcknowledgesEarly);
    let tuning = Tuning {
        bootstrap_nodes: NODES,
        durable_after_entries: 100,
        kept_entries: 20,
        show_interval: Duration::from_millis(25),
        step: Duration::from_millis(1),
        may_die: true,
        acknowledge_before_fsync: false,
        storage: StorageTuning { acknowledge_before_fsync: early, ..TUNING },
        pubsub: PubSubOptions::default(),
    };
    let started = hooks::wall_clock();
    let world = World::new(options.seed, NODES, tuning);
    let notes = Notes { operations: Operations::default(), history: world.history().clone() };
    let mut run = Run { options, world, notes, faults: 0, layouts: 0, converged: Duration::ZERO };
    let mut violations = run.through();
    violations.truncate(VIOLATIONS_TOLD);
    let operations = run.notes.operations.all();
    Report {
        seed: options.seed,
        hash: run.world.history().hash(),
        operations: operations.len(),
        acknowledged: operations.iter().filter(|operation| operation.is_done()).count(),
        faults: run.faults,
        beside: ("layouts", run.layouts),
        simulated: run.world.elapsed(),
        converged: run.converged,
        wall: hooks::wall_clock() - started,
        verdict: if violations.is_empty() { Ok(()) } else { Err(violations) },
        history: run.world.history().to_text(),
    }
}

/// Who comes and goes, and when.
struct Plan {
    joins: BTreeMap<Duration, Late>,
    leaver: usize,
    leaves: Duration,
    /// A node that stays away, and a clock that goes wrong, whatever else happens meanwhile.
    beside: BTreeMap<Duration, Action>,
}

/// Whoever hears of a join late.
#[derive(Clone, Copy)]
enum Late {
    Nobody,
    /// Its disk is slow.
    Slow(usize, Duration),
    /// It hears nothing from the leader of the map.
    CutOff(usize, Duration),
}

impl Plan {
    fn new(seed: u64, begin: Duration, work: Duration) -> Self {
        let mut dice = Dice::new(seed, PLAN_DICE);
        let mut between = |from: u32, to: u32| {
            let (from, to) = (work * from / 100, work * to / 100);
            begin + dice.milliseconds(from.as_millis() as u64, to.as_millis() as u64)
        };
        let (first, second, leaves, gone, wrong) =
            (between(5, 35), between(10, 50), between(30, 75), between(10, 60), between(5, 70));
        let mut joins = BTreeMap::new();
        for number in 0..1 + dice.below(JOIN_MAX) {
            let lasts = dice.milliseconds(LATE_MS.0, LATE_MS.1);
            let node = dice.below(NODES as u64) as usize;
            let late = match dice.below(3) {
                0 => Late::Nobody,
                1 => Late::Slow(node, lasts),
                _ => Late::CutOff(node, lasts),
            };
            // Two that come together are one change, in which some keys move to new nodes alone.
            let together = number > 0 && dice.once_in(2);
            let apart = if number == 0 { first } else { second };
            joins.insert(if together { first + Duration::from_millis(50) } else { apart }, late);
        }
        let leaver = dice.below(NODES as u64) as usize;
        let mut beside = BTreeMap::new();
        if dice.once_in(2) {
            let node = dice.below(NODES as u64) as usize;
            beside.insert(gone, Action::Kill(node));
            beside.insert(gone + dice.milliseconds(AWAY_MS.0, AWAY_MS.1), Action::Start(node));
        }
        if dice.once_in(2) {
            let (node, ahead) = (dice.below(NODES as u64) as usize, *dice.pick(&CLOCKS_AHEAD_MS));
            beside.insert(wrong, Action::SetClock(node, ahead));
            beside.insert(wrong + dice.milliseconds(WRONG_MS.0, WRONG_MS.1), Action::SetClock(node, 0));
        }
        Self { joins, leaver, leaves, beside }
    }
}

struct Run {
    options: Options,
    world: World,
    notes: Notes,
    faults: usize,
    /// The version of the layout at the end.
    layouts: u64,
    converged: Duration,
}

impl Run {
    /// Gives the violations.
    fn through(&mut self) -> Vec<String> {
        let whole = self.come_to_the_end();
        let judged = checker::judge(&self.notes.operations.all());
        whole.err().into_iter().chain(judged).collect()
    }

    fn come_to_the_end(&mut self) -> Result<(), String> {
        self.world.client("founder", wait_for_storage(CLIENTS, NODES));
        self.until(FORMED_WITHIN)?;
        self.world.board().formed();
        let begin = self.world.elapsed();
        let end = begin + self.options.work;
        let plan = Plan::new(self.options.seed, begin, self.options.work);
        let (leaver, left) = (plan.leaver, Rc::new(Cell::new(false)));
        let clients = self.start_clients(end, &plan, &left);
        self.work(plan, (begin, end), &clients, &left)?;
        let mut everyone: Vec<String> = self.world.present().into_iter().map(name).collect();
        everyone.extend(clients);
        self.world.heal(&everyone);
        let healed = self.world.elapsed();
        self.until(ENDED_WITHIN)?;
        self.world.act(&Action::Retire(leaver));
        self.observe()?;
        self.converged = self.world.elapsed() - healed;
        self.world.client("reader", read_all(CLIENTS + 2, NODES, self.notes.clone()));
        self.until(OBSERVED_WITHIN)
    }

    fn start_clients(&mut self, end: Duration, plan: &Plan, left: &Rc<Cell<bool>>) -> Vec<String> {
        let mut names = Vec::new();
        for number in 0..CLIENTS {
            let dice = Dice::new(self.options.seed, CLIENT_DICE + number as u64);
            let worker = Worker { number, nodes: NODES, end, dice, keys: keys(), notes: self.notes.clone() };
            names.push(format!("client-{number}"));
            self.world.client(&names[number], worker.run());
        }
        let operator = Operator {
            client: CLIENTS + 1,
            nodes: NODES,
            leaver: plan.leaver,
            at: plan.leaves,
            board: self.world.board().clone(),
            history: self.world.history().clone(),
            left: left.clone(),
        };
        self.world.client("operator", operator.run());
        names
    }

    fn work(
        &mut self,
        mut plan: Plan,
        (begin, end): (Duration, Duration),
        clients: &[String],
        left: &Cell<bool>,
    ) -> Result<(), String> {
        let first = begin + Duration::from_secs(1);
        let mut faults = Faults::new(self.options.seed, NODES, clients.to_vec(), first).of_storage();
        while self.world.elapsed() < end {
            let now = self.world.elapsed();
            for late in due(&mut plan.joins, now) {
                self.world.add_machine();
                faults.node_joins();
                match late {
                    Late::Nobody => {}
                    Late::Slow(node, lasts) => faults.stalled_disk(now, now + lasts, node),
                    Late::CutOff(node, lasts) => {
                        faults.cut_off_from_the_map(now, now + lasts, node, self.world.board());
                    }
                }
            }
            for action in due(&mut plan.beside, now) {
                self.world.act(&action);
            }
            for action in faults.due(now, self.world.board()) {
                self.world.act(&action);
            }
            if left.take() {
                faults.node_leaves(plan.leaver);
                self.world.act(&Action::Retire(plan.leaver));
            }
            self.faults = faults.count();
            self.world.step()?;
        }
        Ok(())
    }

    fn observe(&mut self) -> Result<(), String> {
        let verdict =
            convergence::Verdict::new(std::cell::RefCell::new(Err("nothing was looked at".to_owned())));
        let (machines, board) = (self.world.present(), self.world.board().clone());
        self.world.client("observer", convergence::observe(machines, board, verdict.clone()));
        self.until(OBSERVED_WITHIN)?;
        let looked = verdict.borrow().clone();
        self.layouts = looked.map_err(|reason| format!("the storage is not whole again: {reason}"))?;
        self.world.history().note(self.world.elapsed(), &format!("whole under layout {}", self.layouts));
        Ok(())
    }

    /// Steps until every client has come to its end.
    fn until(&mut self, limit: Duration) -> Result<(), String> {
        let deadline = self.world.elapsed() + limit;
        while !self.world.step()? {
            if self.world.elapsed() > deadline {
                return Err(format!("the clients did not come to their end within {limit:?}"));
            }
        }
        Ok(())
    }
}

/// Takes out what is due.
fn due<T>(plan: &mut BTreeMap<Duration, T>, now: Duration) -> Vec<T> {
    let later = plan.split_off(&(now + Duration::from_nanos(1)));
    std::mem::replace(plan, later).into_values().collect()
}

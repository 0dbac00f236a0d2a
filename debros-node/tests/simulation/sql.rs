//! Scenario `sql`: three nodes, clients with exactly-once sessions, and whatever the seed lets go wrong. What
//! the clients ask for is SQL, or [`registers`](crate::registers). Also what all scenarios are run with.

use std::time::Duration;

use debros_node::pubsub::PubSubOptions;

use crate::checker::judge;
use crate::clients::{Worker, connect, set_up};
use crate::convergence::{observe, undecided};
use crate::dice::Dice;
use crate::faults::Faults;
use crate::machine::{StorageTuning, Tuning, name};
use crate::planted::Bug;
use crate::registers::{self, Seen};
use crate::report::Report;
use crate::world::World;
use crate::{hooks, kv, pubsub};

const NODES: usize = 3;
const CLIENTS: usize = 3;
const CLIENT_DICE: u64 = 400;
/// The cluster forms and the tables are made within this.
const FORMED_WITHIN: Duration = Duration::from_secs(20);
/// The observer ends within this: longer than it waits for the cluster to be whole.
const OBSERVED_WITHIN: Duration = Duration::from_secs(90);
/// Violations that are told; the first is the one to look at.
const VIOLATIONS_TOLD: usize = 5;

/// What the clients ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Scenario {
    #[default]
    Sql,
    Registers,
    Kv,
    Pubsub,
}

impl Scenario {
    /// As it is named on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sql => "sql",
            Self::Registers => "registers",
            Self::Kv => "kv",
            Self::Pubsub => "pubsub",
        }
    }

    /// The scenario with that name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Sql, Self::Registers, Self::Kv, Self::Pubsub]
            .into_iter()
            .find(|scenario| scenario.name() == name)
    }
}

/// What is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// What the clients ask for.
    pub(crate) scenario: Scenario,
    /// Everything follows from it.
    pub(crate) seed: u64,
    /// How long the clients work, in simulated time.
    pub(crate) work: Duration,
    /// The bug that was planted.
    pub(crate) planted: Option<Bug>,
}

/// Runs one seed on this thread, which must be fresh.
pub(crate) fn run(options: Options) -> Report {
    hooks::seed_randomness(options.seed);
    if let Some(bug) = options.planted {
        bug.plant();
    }
    match options.scenario {
        Scenario::Sql | Scenario::Registers => {}
        Scenario::Kv => return kv::run(options),
        Scenario::Pubsub => return pubsub::run(options),
    }
    let tuning = Tuning {
        bootstrap_nodes: NODES,
        durable_after_entries: 100,
        kept_entries: 20,
        show_interval: Duration::from_millis(25),
        step: Duration::from_millis(1),
        may_die: true,
        acknowledge_before_fsync: options.planted == Some(Bug::AcknowledgeBeforeFsync),
        storage: StorageTuning::default(),
        pubsub: PubSubOptions::default(),
    };
    let started = hooks::wall_clock();
    let mut run = Run {
        options,
        world: World::new(options.seed, NODES, tuning),
        seen: Seen::default(),
        faults: 0,
        converged: Duration::ZERO,
    };
    let verdict = run.through();
    let verdict = verdict
        .map_err(|violation| vec![violation])
        .and_then(|violations| if violations.is_empty() { Ok(()) } else { Err(violations) });
    let operations = run.world.history().operations();
    Report {
        seed: options.seed,
        hash: run.world.history().hash(),
        operations: operations.len(),
        acknowledged: operations.iter().filter(|operation| operation.is_done()).count(),
        faults: run.faults,
        beside: ("installs", (0..NODES).map(|node| installs(&run.world, node)).sum()),
        simulated: run.world.elapsed(),
        converged: run.converged,
        wall: hooks::wall_clock() - started,
        verdict: verdict.map_err(|mut violations| {
            violations.truncate(VIOLATIONS_TOLD);
            violations
        }),
        history: run.world.history().to_text(),
    }
}

struct Run {
    options: Options,
    world: World,
    /// What clients saw beside the history.
    seen: Seen,
    faults: usize,
    converged: Duration,
}

impl Run {
    /// Gives the violations; an error when the run could not come to its end.
    fn through(&mut self) -> Result<Vec<String>, String> {
        self.form()?;
        let begin = self.world.elapsed();
        let end = begin + self.options.work;
        let names = self.start_workers(end);
        self.work(begin, end, &names)?;
        let mut everyone: Vec<String> = (0..NODES).map(name).collect();
        everyone.extend(names);
        self.world.heal(&everyone);
        let healed = self.world.elapsed();
        self.until(OBSERVED_WITHIN)?;
        let verdict = undecided();
        let (board, told) = (self.world.board().clone(), verdict.clone());
        self.world.client("observer", observe(NODES, board, told));
        self.until(OBSERVED_WITHIN)?;
        self.converged = self.world.elapsed() - healed;
        let state =
            verdict.borrow().clone().map_err(|reason| format!("the cluster is not whole again: {reason}"))?;
        let operations = self.world.history().operations();
        Ok(match self.options.scenario {
            Scenario::Sql => judge(&operations, &state),
            Scenario::Registers => registers::judge(&operations, &self.seen),
            Scenario::Kv | Scenario::Pubsub => unreachable!("it has a run of its own"),
        })
    }

    fn form(&mut self) -> Result<(), String> {
        self.world.client("founder", async {
            let client = connect(CLIENTS, NODES).await?;
            set_up(&client.database()).await;
            client.close().await;
            Ok(())
        });
        self.until(FORMED_WITHIN)?;
        self.world.board().formed();
        Ok(())
    }

    fn start_workers(&mut self, end: Duration) -> Vec<String> {
        if self.options.scenario == Scenario::Registers {
            let crew = registers::Crew { seed: self.options.seed, nodes: NODES, end };
            return crew.start(&mut self.world, &self.seen);
        }
        let mut names = Vec::new();
        for number in 0..CLIENTS {
            let dice = Dice::new(self.options.seed, CLIENT_DICE + number as u64);
            let worker = Worker { number, nodes: NODES, end, dice, history: self.world.history().clone() };
            names.push(format!("client-{number}"));
            self.world.client(&names[number], worker.run());
        }
        names
    }

    fn work(&mut self, begin: Duration, end: Duration, clients: &[String]) -> Result<(), String> {
        let mut faults =
            Faults::new(self.options.seed, NODES, clients.to_vec(), begin + Duration::from_secs(1));
        if self.options.scenario == Scenario::Registers {
            faults = faults.of_registers();
        }
        while self.world.elapsed() < end {
            for action in faults.due(self.world.elapsed(), self.world.board()) {
                self.world.act(&action);
            }
            self.faults = faults.count();
            self.world.step()?;
        }
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

/// How often a node has installed a snapshot of another, as far as it is in use at the end.
fn installs(world: &World, node: usize) -> u64 {
    let folders = std::fs::read_dir(world.folder(node).join("database")).into_iter().flatten().flatten();
    let current = folders.filter_map(|folder| std::fs::read_to_string(folder.path().join("CURRENT")).ok());
    current.filter_map(|text| text.trim().parse::<u64>().ok()).map(|generation| generation - 1).sum()
}

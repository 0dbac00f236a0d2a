//! The simulated world: machines, the network between them, and time.
//!
//! It does what it is told ([`Action`]); what is done and when is [`faults`]' business.
//!
//! [`faults`]: crate::faults

use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::dice::Dice;
use crate::disk::{self, PowerLoss};
use crate::history::History;
use crate::hooks;
use crate::loss::Loss;
use crate::machine::{Board, EPOCH, Machine, Skew, Storage, Tuning, name};

/// No message is faster.
const LATENCY_MIN: Duration = Duration::from_millis(1);
/// None is slower, but while it is held.
const LATENCY_MAX: Duration = Duration::from_millis(10);
/// Longer than any run.
const DURATION_MAX: Duration = Duration::from_secs(3600);
/// Packets on their way on one connection.
const CONNECTION_PACKETS_MAX: usize = 1 << 16;

/// Purposes of [`Dice`]: each has its own sequence of numbers.
const STORAGE_DICE: u64 = 100;
const DISK_DICE: u64 = 200;

/// Something that happens to the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing gets from one to the other, either way.
    Partition(String, String),
    /// Nothing gets from the first to the second.
    PartitionOneWay(String, String),
    /// Everything gets through again.
    Repair(String, String),
    /// From now on one packet in twenty is lost, either way, and sent again; or none is any more.
    Lose(String, String, bool),
    /// Everything waits.
    Hold(String, String),
    /// What waited arrives at once.
    Release(String, String),
    /// The disk answers late, or in time again.
    Stall(usize, bool),
    /// The process dies.
    Kill(usize),
    /// The machine loses power.
    LosePower(usize, PowerLoss),
    /// A part of its disk is gone for good; it must be down.
    LoseFolder(usize, Option<&'static str>),
    /// The node is asked to stop.
    AskToStop(usize),
    /// The machine starts.
    Start(usize),
    /// Its clock is so many milliseconds ahead from now on.
    SetClock(usize, i64),
    /// The machine is switched off for good.
    Retire(usize),
}

/// A running simulation.
pub(crate) struct World {
    sim: turmoil::Sim<'static>,
    machines: Vec<Machine>,
    running: Vec<bool>,
    stopping: Vec<bool>,
    retired: Vec<bool>,
    seed: u64,
    board: Board,
    history: History,
    dice: Dice,
    loss: Loss,
    /// Of all machines; it goes with the world.
    root: tempfile::TempDir,
}

impl World {
    /// A world of machines that all start now.
    pub(crate) fn new(seed: u64, nodes: usize, tuning: Tuning) -> Self {
        hooks::set_clocks(EPOCH);
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(seed)
            .epoch(SystemTime::UNIX_EPOCH + EPOCH)
            .tick_duration(tuning.step)
            .simulation_duration(DURATION_MAX)
            .min_message_latency(LATENCY_MIN)
            .max_message_latency(LATENCY_MAX)
            .tcp_capacity(CONNECTION_PACKETS_MAX)
            .enable_random_order();
        let folder = folder();
        let (board, history) = (Board::default(), History::default());
        let machine = |number: usize| Machine {
            number,
            folder: folder.path().join(name(number)),
            tuning,
            board: board.clone(),
            storage: Storage::new(Dice::new(seed, STORAGE_DICE + number as u64)),
            skew: Skew::default(),
        };
        let machines: Vec<Machine> = (0..nodes).map(machine).collect();
        let mut sim = builder.build();
        machines.iter().cloned().for_each(|machine| install(&mut sim, machine));
        let dice = Dice::new(seed, DISK_DICE);
        Self {
            sim,
            running: vec![true; nodes],
            stopping: vec![false; nodes],
            retired: vec![false; nodes],
            seed,
            machines,
            board,
            history,
            dice,
            loss: Loss::default(),
            root: folder,
        }
    }

    /// One more machine starts now; gives its number.
    pub(crate) fn add_machine(&mut self) -> usize {
        let number = self.machines.len();
        let machine = Machine {
            number,
            folder: self.root.path().join(name(number)),
            storage: Storage::new(Dice::new(self.seed, STORAGE_DICE + number as u64)),
            skew: Skew::default(),
            ..self.machines[0].clone()
        };
        self.history.note(self.sim.elapsed(), &format!("machine {number} is added"));
        self.machines.push(machine.clone());
        self.running.push(true);
        self.stopping.push(false);
        self.retired.push(false);
        install(&mut self.sim, machine);
        number
    }

    /// The machines that were not switched off for good.
    pub(crate) fn present(&self) -> Vec<usize> {
        (0..self.machines.len()).filter(|node| !self.retired[*node]).collect()
    }

    /// How the nodes are.
    pub(crate) fn board(&self) -> &Board {
        &self.board
    }

    /// What was seen.
    pub(crate) fn history(&self) -> &History {
        &self.history
    }

    /// Simulated time since the beginning.
    pub(crate) fn elapsed(&self) -> Duration {
        self.sim.elapsed()
    }

    /// Adds a machine that runs this to its end.
    pub(crate) fn client(&mut self, name: &str, work: impl Future<Output = turmoil::Result> + 'static) {
        self.sim.client(name, work);
    }

    /// One step; says whether every client has come to its end.
    pub(crate) fn step(&mut self) -> Result<bool, String> {
        hooks::set_clocks(EPOCH + self.sim.elapsed());
        self.loss.pass_on(&self.sim);
        let done = self.sim.step().map_err(|error| format!("at {:?}: {error}", self.sim.elapsed()))?;
        match self.board.failures().first() {
            Some(failure) => Err(failure.clone()),
            None => Ok(done),
        }
    }

    /// Where a node keeps its files.
    pub(crate) fn folder(&self, node: usize) -> &Path {
        &self.machines[node].folder
    }

    /// Does it now. What makes no sense at the moment, such as killing what is down, does nothing.
    pub(crate) fn act(&mut self, action: &Action) {
        self.history.note(self.sim.elapsed(), &format!("{action:?}"));
        match action {
            Action::Partition(one, other) => self.sim.partition(one.as_str(), other.as_str()),
            Action::PartitionOneWay(from, to) => self.sim.partition_oneway(from.as_str(), to.as_str()),
            Action::Repair(one, other) => {
                self.sim.repair(one.as_str(), other.as_str());
                self.loss.goes_on(&self.sim, one, other);
            }
            Action::Lose(one, other, loses) => self.loss.set(&self.sim, one, other, *loses),
            Action::Hold(one, other) => {
                self.sim.hold(one.as_str(), other.as_str());
                self.loss.pause(&self.sim, one, other);
            }
            Action::Release(one, other) => {
                self.sim.release(one.as_str(), other.as_str());
                self.loss.goes_on(&self.sim, one, other);
            }
            Action::Stall(node, stalled) => self.machines[*node].storage.stall(*stalled),
            Action::AskToStop(node) => {
                self.stopping[*node] = self.running[*node];
                self.board.ask_to_stop(*node);
            }
            Action::Kill(node) => self.stop(*node, None),
            Action::LosePower(node, loss) => self.stop(*node, Some(*loss)),
            Action::LoseFolder(node, folder) if !self.running[*node] => {
                disk::lose_folder(&self.machines[*node].folder, *folder);
            }
            Action::LoseFolder(..) => {}
            Action::Start(node) => self.start(*node),
            Action::SetClock(node, ahead) => self.machines[*node].skew.set(*ahead),
            Action::Retire(node) => {
                self.stop(*node, None);
                self.retired[*node] = true;
            }
        }
    }

    fn stop(&mut self, node: usize, power: Option<PowerLoss>) {
        if !std::mem::replace(&mut self.running[node], false) {
            return;
        }
        let (sim, folder) = (&mut self.sim, &self.machines[node].folder);
        let crash = || sim.crash(name(node));
        match power {
            None => disk::kill(folder, crash),
            Some(loss) => disk::lose_power(folder, loss, &mut self.dice, crash),
        }
        self.stopping[node] = false;
        self.board.clear(node);
    }

    fn start(&mut self, node: usize) {
        if !self.retired[node] && !std::mem::replace(&mut self.running[node], true) {
            self.sim.bounce(name(node));
        }
    }

    /// Ends every fault: all links work, all machines run.
    pub(crate) fn heal(&mut self, names: &[String]) {
        self.history.note(self.sim.elapsed(), "heal");
        self.loss = Loss::default();
        for (index, one) in names.iter().enumerate() {
            for other in &names[index + 1..] {
                self.sim.release(one.as_str(), other.as_str());
                self.sim.repair(one.as_str(), other.as_str());
            }
        }
        for node in 0..self.machines.len() {
            self.machines[node].storage.stall(false);
            self.machines[node].skew.set(0);
            // Whoever was asked to stop does not stay for the end.
            if self.stopping[node] {
                self.stop(node, None);
            }
            self.start(node);
        }
    }
}

fn install(sim: &mut turmoil::Sim<'static>, machine: Machine) {
    std::fs::create_dir(&machine.folder).expect("the folder of the run can be written");
    if machine.tuning.may_die {
        disk::watch(&machine.folder);
    }
    sim.host(name(machine.number), move || machine.clone().run());
}

/// In memory where there is such a place: the simulated disk is durable by its books alone. Named by the
/// process, without the randomness of the run.
fn folder() -> tempfile::TempDir {
    let name = format!("debros-simulation-{}", std::process::id());
    let mut builder = tempfile::Builder::new();
    builder.prefix(&name).rand_bytes(0);
    builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir()).expect("a folder for the run")
}

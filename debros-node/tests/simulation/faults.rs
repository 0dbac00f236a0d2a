//! What goes wrong and when, by the seed alone and who leads at the moment.
//!
//! One fault at a time, some of several steps, each healed after a while. A replica's data is lost for
//! good at most once in a run: more would be data loss by right.

mod kv;
mod pubsub;

pub(crate) use kv::{CLOCKS_AHEAD_MS, META};

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clients::APPLICATION;
use crate::dice::Dice;
use crate::disk::PowerLoss;
use crate::machine::{Board, name};
use crate::world::Action;

const FAULT_DICE: u64 = 300;
/// Quiet time between faults, so that the cluster is mostly whole when the next one comes.
const QUIET_MS: (u64, u64) = (200, 1200);
/// How long a fault lasts.
const LASTS_MS: (u64, u64) = (200, 2200);
/// Now and then one lasts long enough for clients to give up on a leader that was cut off.
const LASTS_LONG_MS: (u64, u64) = (3000, 6000);
/// A node that was asked to stop is dead after this.
const STOP_MS: (u64, u64) = (100, 2500);
/// What a replaced drive takes with it: the log and the databases, or all there is.
const FOLDERS: [Option<&str>; 2] = [Some("database"), None];

/// The faults of a run.
pub(crate) struct Faults {
    dice: Dice,
    nodes: usize,
    clients: Vec<String>,
    script: BTreeMap<Duration, Vec<Action>>,
    next: Duration,
    forgot: bool,
    count: usize,
    gone: Option<usize>,
    draw: Draw,
}

/// Draws the next fault, which begins now.
type Draw = fn(&mut Faults, Duration, &Board);

impl Faults {
    /// Faults from `begin` on.
    pub(crate) fn new(seed: u64, nodes: usize, clients: Vec<String>, begin: Duration) -> Self {
        let dice = Dice::new(seed, FAULT_DICE);
        Self {
            dice,
            nodes,
            clients,
            script: BTreeMap::new(),
            next: begin,
            forgot: false,
            count: 0,
            gone: None,
            draw: Self::draw,
        }
    }

    /// Those of the key-value storage instead.
    pub(crate) fn of_storage(self) -> Self {
        Self { draw: Self::draw_of_storage, ..self }
    }

    /// Also those of clocks, by which leases must not go.
    pub(crate) fn of_registers(self) -> Self {
        Self { draw: Self::draw_of_registers, ..self }
    }

    /// A node is there no more.
    pub(crate) fn node_leaves(&mut self, node: usize) {
        self.gone = Some(node);
    }

    /// There is one more node.
    pub(crate) fn node_joins(&mut self) {
        self.nodes += 1;
    }

    /// How many there were.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// What happens now.
    pub(crate) fn due(&mut self, now: Duration, board: &Board) -> Vec<Action> {
        if self.script.is_empty() && now >= self.next {
            self.count += 1;
            (self.draw)(self, now, board);
        }
        let mut due = Vec::new();
        while let Some(entry) = self.script.first_entry()
            && *entry.key() <= now
        {
            due.extend(entry.remove());
            let quiet = self.dice.milliseconds(QUIET_MS.0, QUIET_MS.1);
            self.next = now + quiet;
        }
        due
    }

    fn at(&mut self, when: Duration, action: Action) {
        self.script.entry(when).or_default().push(action);
    }

    fn others(&self, node: usize) -> Vec<String> {
        (0..self.nodes).filter(|other| *other != node).map(name).collect()
    }

    fn everyone_else(&self, node: usize) -> Vec<String> {
        let mut others = self.others(node);
        others.extend(self.clients.iter().cloned());
        others
    }

    fn power_loss(&mut self) -> PowerLoss {
        if self.dice.once_in(2) { PowerLoss::Torn } else { PowerLoss::Clean }
    }

    fn draw(&mut self, now: Duration, board: &Board) {
        let anyone = self.dice.below(self.nodes as u64) as usize;
        let leader = board.leader(&format!("{APPLICATION}/default")).unwrap_or(anyone);
        let victim = if self.dice.once_in(2) { leader } else { anyone };
        let (least, most) = if self.dice.once_in(4) { LASTS_LONG_MS } else { LASTS_MS };
        let end = now + self.dice.milliseconds(least, most);
        match self.dice.below(15) {
            0..2 => self.partition(now, end, victim, &self.others(victim)),
            2 => self.partition(now, end, victim, &self.everyone_else(victim)),
            3 => self.one_way(now, end, victim),
            4 => {
                let client = self.dice.pick(&self.clients).clone();
                self.partition(now, end, victim, &[client]);
            }
            5..7 => self.down(now, end, victim, None),
            7 => {
                let loss = self.power_loss();
                self.down(now, end, victim, Some(loss));
            }
            8..10 => self.all_down(now),
            10 => self.pause(now, end, victim),
            11 => self.ordered_stop(now, end, victim),
            12 => self.silent_death(now, end, victim),
            13 => self.two_down(now, end, victim),
            _ if !self.forgot => self.forget(now, leader),
            _ => self.stalled_disk(now, end, victim),
        }
    }

    fn draw_of_registers(&mut self, now: Duration, board: &Board) {
        if !self.dice.once_in(3) {
            return self.draw(now, board);
        }
        let anyone = self.dice.below(self.nodes as u64) as usize;
        let leader = board.leader(&format!("{APPLICATION}/default")).unwrap_or(anyone);
        let node = if self.dice.once_in(4) { anyone } else { leader };
        let end = now + self.dice.milliseconds(LASTS_LONG_MS.0, LASTS_LONG_MS.1);
        self.wrong_clock(now, end, node);
        // Half of them hand over, or die, while their clock is wrong.
        let gone = now + self.dice.milliseconds(LASTS_MS.0, LASTS_MS.1);
        match self.dice.below(4) {
            0 => self.ordered_stop(gone, end, node),
            1 => self.down(gone, end, node, None),
            _ => {}
        }
    }

    fn partition(&mut self, now: Duration, end: Duration, node: usize, from: &[String]) {
        for other in from {
            self.at(now, Action::Partition(name(node), other.clone()));
            self.at(end, Action::Repair(name(node), other.clone()));
        }
    }

    fn one_way(&mut self, now: Duration, end: Duration, node: usize) {
        let outwards = self.dice.once_in(2);
        for other in self.others(node) {
            let (from, to) = if outwards { (name(node), other) } else { (other, name(node)) };
            self.at(now, Action::PartitionOneWay(from.clone(), to.clone()));
            self.at(end, Action::Repair(from, to));
        }
    }

    fn down(&mut self, now: Duration, end: Duration, node: usize, power: Option<PowerLoss>) {
        self.at(now, power.map_or(Action::Kill(node), |loss| Action::LosePower(node, loss)));
        self.at(end, Action::Start(node));
    }

    /// All at once, and back in any order.
    fn all_down(&mut self, now: Duration) {
        let power = !self.dice.once_in(4);
        for node in 0..self.nodes {
            let loss = power.then(|| self.power_loss());
            let end = now + self.dice.milliseconds(LASTS_MS.0, LASTS_MS.1);
            self.down(now, end, node, loss);
        }
    }

    /// As a process that is not scheduled: nothing gets in, out or to the disk, then all of it does.
    fn pause(&mut self, now: Duration, end: Duration, node: usize) {
        self.at(now, Action::Stall(node, true));
        self.at(end, Action::Stall(node, false));
        for other in self.everyone_else(node) {
            self.at(now, Action::Hold(name(node), other.clone()));
            self.at(end, Action::Release(name(node), other));
        }
    }

    pub(crate) fn stalled_disk(&mut self, now: Duration, end: Duration, node: usize) {
        self.at(now, Action::Stall(node, true));
        self.at(end, Action::Stall(node, false));
    }

    /// Hands over what it leads; killed all the same if it takes too long.
    fn ordered_stop(&mut self, now: Duration, end: Duration, node: usize) {
        let dead = now + self.dice.milliseconds(STOP_MS.0, STOP_MS.1);
        self.at(now, Action::AskToStop(node));
        self.down(dead, dead.max(end), node, None);
    }

    /// Dies without a last packet: the others find out by silence alone.
    fn silent_death(&mut self, now: Duration, end: Duration, node: usize) {
        for other in self.everyone_else(node) {
            self.at(now, Action::Partition(name(node), other.clone()));
            self.at(end, Action::Repair(name(node), other));
        }
        let loss = self.dice.once_in(2).then(|| self.power_loss());
        self.down(now, end, node, loss);
    }

    fn two_down(&mut self, now: Duration, end: Duration, node: usize) {
        self.down(now, end, node, None);
        let other = (node + 1 + self.dice.below(self.nodes as u64 - 1) as usize) % self.nodes;
        let loss = self.power_loss();
        let again = now + self.dice.milliseconds(LASTS_MS.0, LASTS_MS.1);
        let soon = now + self.dice.milliseconds(0, 50);
        self.down(soon, again.max(soon), other, Some(loss));
    }

    /// A node loses its log while another lags, and the two are left alone: if the first still had its
    /// vote, they would elect a leader that lacks acknowledged writes.
    fn forget(&mut self, now: Duration, leader: usize) {
        self.forgot = true;
        let (forgetful, lagging) = ((leader + 1) % self.nodes, (leader + 2) % self.nodes);
        let lost = now + self.dice.milliseconds(500, 1500);
        let alone = lost + self.dice.milliseconds(50, 300);
        let end = alone + self.dice.milliseconds(1500, 4000);
        self.partition(now, alone, lagging, &[name(leader), name(forgetful)]);
        let folder = *self.dice.pick(&FOLDERS);
        self.at(lost, Action::Kill(forgetful));
        self.at(lost, Action::LoseFolder(forgetful, folder));
        self.at(alone, Action::Start(forgetful));
        self.partition(alone, end, leader, &[name(forgetful), name(lagging)]);
    }
}

//! What goes wrong in scenario `kv`: as with SQL, and clocks that are off, storages that are lost, and nodes
//! that hear of a new layout long after the others.

use std::time::Duration;

use debros_proto::layout::Phase;

use super::{Faults, LASTS_LONG_MS, LASTS_MS};
use crate::machine::{Board, name};
use crate::world::Action;

/// The group that decides on layouts: the only one that is no database's.
pub(crate) const META: &str = "meta";
/// How far a clock may be off, in milliseconds: hardly noticed, clearly wrong, an hour.
pub(crate) const CLOCKS_AHEAD_MS: [i64; 6] = [-200, 200, -1500, 1500, -3_600_000, 3_600_000];
/// Replicas of each key.
const REPLICAS: usize = 3;
/// What a replaced drive takes with it.
const STORAGE: &str = "storage";

impl Faults {
    pub(super) fn draw_of_storage(&mut self, now: Duration, board: &Board) {
        let mut victim = self.dice.below(self.nodes as u64) as usize;
        if self.gone == Some(victim) {
            victim = (victim + 1) % self.nodes;
        }
        let (least, most) = if self.dice.once_in(3) { LASTS_LONG_MS } else { LASTS_MS };
        let end = now + self.dice.milliseconds(least, most);
        match self.dice.below(18) {
            0..3 => self.partition(now, end, victim, &self.others(victim)),
            3 => self.partition(now, end, victim, &self.everyone_else(victim)),
            4 => self.one_way(now, end, victim),
            5 => {
                let client = self.dice.pick(&self.clients).clone();
                self.partition(now, end, victim, &[client]);
            }
            6..8 => self.down(now, end, victim, None),
            8 => {
                let loss = self.power_loss();
                self.down(now, end, victim, Some(loss));
            }
            9..11 => self.all_down(now),
            11 => self.pause(now, end, victim),
            12 => self.stalled_disk(now, end, victim),
            13 => self.silent_death(now, end, victim),
            14 => self.two_down(now, end, victim),
            15 => self.wrong_clock(now, end, victim),
            16 => self.cut_off_from_the_map(now, end, victim, board),
            _ if !self.forgot && self.others_have_it(board) => self.lose_storage(now, end, victim),
            _ => self.ordered_stop(now, end, victim),
        }
    }

    /// Whether all nodes act under a settled layout in which each key has its replicas.
    fn others_have_it(&self, board: &Board) -> bool {
        let layouts = (0..self.nodes).filter_map(|node| Some(board.engine(node)?.layout));
        let settled = layouts.map(|layout| {
            layout.phase() == Phase::Stable && layout.current.is_some_and(|set| set.nodes.len() >= REPLICAS)
        });
        let settled: Vec<bool> = settled.collect();
        settled.len() >= REPLICAS && !settled.contains(&false)
    }

    pub(super) fn wrong_clock(&mut self, now: Duration, end: Duration, node: usize) {
        let ahead = *self.dice.pick(&CLOCKS_AHEAD_MS);
        self.at(now, Action::SetClock(node, ahead));
        self.at(end, Action::SetClock(node, 0));
    }

    /// The node hears nothing from whoever decides on layouts, but from all others.
    pub(crate) fn cut_off_from_the_map(&mut self, now: Duration, end: Duration, node: usize, board: &Board) {
        let leader = board.leader(META).unwrap_or_default();
        if leader == node {
            return self.stalled_disk(now, end, node);
        }
        self.partition(now, end, node, &[name(leader)]);
    }

    /// A node comes back without its storage. Once in a run, and not before every key has three replicas:
    /// more would be data loss by right.
    fn lose_storage(&mut self, now: Duration, end: Duration, node: usize) {
        self.forgot = true;
        self.at(now, Action::Kill(node));
        self.at(now, Action::LoseFolder(node, Some(STORAGE)));
        self.at(end, Action::Start(node));
    }
}

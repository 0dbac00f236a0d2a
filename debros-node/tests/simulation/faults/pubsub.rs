//! What goes wrong in scenario `pubsub`: as with SQL, but no disk, and packets that are lost. In a calm run no
//! process dies: what an origin had taken in is never gone.

use std::time::Duration;

use super::{Faults, LASTS_LONG_MS, LASTS_MS};
use crate::machine::{Board, name};
use crate::world::Action;

/// A short break, after which connections that look alive are not.
const BLINK_MS: (u64, u64) = (1, 40);

impl Faults {
    /// Those of pub/sub instead.
    pub(crate) fn of_messages(self, calm: bool) -> Self {
        Self { draw: if calm { Self::draw_without_deaths } else { Self::draw_of_messages }, ..self }
    }

    fn victim(&mut self) -> usize {
        let victim = self.dice.below(self.nodes as u64) as usize;
        if self.gone == Some(victim) { (victim + 1) % self.nodes } else { victim }
    }

    fn end(&mut self, now: Duration) -> Duration {
        let (least, most) = if self.dice.once_in(3) { LASTS_LONG_MS } else { LASTS_MS };
        now + self.dice.milliseconds(least, most)
    }

    fn draw_of_messages(&mut self, now: Duration, board: &Board) {
        let (victim, end) = (self.victim(), self.end(now));
        match self.dice.below(14) {
            0..3 => self.down(now, end, victim, None),
            3 => self.two_down(now, end, victim),
            4..6 => self.ordered_stop(now, end, victim),
            6..8 => self.silent_death(now, end, victim),
            8 if self.dice.once_in(3) => self.all_down(now),
            _ => self.draw_without_deaths(now, board),
        }
    }

    fn draw_without_deaths(&mut self, now: Duration, _board: &Board) {
        let (victim, end) = (self.victim(), self.end(now));
        match self.dice.below(10) {
            0..2 => self.partition(now, end, victim, &self.others(victim)),
            2 => {
                let other = (victim + 1 + self.dice.below(self.nodes as u64 - 1) as usize) % self.nodes;
                self.partition(now, end, victim, &[name(other)]);
            }
            3 => {
                let blink = now + self.dice.milliseconds(BLINK_MS.0, BLINK_MS.1);
                self.partition(now, blink, victim, &self.everyone_else(victim));
            }
            4 => self.partition(now, end, victim, &self.everyone_else(victim)),
            5 => self.one_way(now, end, victim),
            6 => {
                let client = self.dice.pick(&self.clients).clone();
                self.partition(now, end, victim, &[client]);
            }
            7 => self.packet_loss(now, end, victim),
            _ => self.pause(now, end, victim),
        }
    }

    fn packet_loss(&mut self, now: Duration, end: Duration, node: usize) {
        for other in self.everyone_else(node) {
            self.at(now, Action::Lose(name(node), other.clone(), true));
            self.at(end, Action::Lose(name(node), other, false));
        }
    }
}

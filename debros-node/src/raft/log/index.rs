//! What the written records of one group add up to: its hard state, and where its entries lie.
//!
//! The writer folds every record in here after it is durable, and recovery folds the same records in
//! the same order. A checkpoint is a copy of this, so it never says more than the log before it.

use std::collections::VecDeque;

use debros_proto::v1;
use openraft::type_config::alias::LeaderIdOf;

use super::record::HardState;
use crate::raft::codec::{log_id_from_wire, log_id_to_wire, vote_from_wire, vote_to_wire};
use crate::raft::types::{LogId, TypeConfig, Vote};

/// Where the record of an entry lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// Sequence of the segment; segments count from 1.
    pub(super) segment: u64,
    pub(super) offset: u32,
    pub(super) bytes: u32,
}

impl Location {
    /// A checkpoint promises the entry, its record has not come yet. Only during recovery.
    pub(super) const PROMISED: Self = Self { segment: 0, offset: 0, bytes: 0 };
}

/// The fold of a group's written records.
#[derive(Clone, Debug, Default)]
pub(super) struct Written {
    pub(super) node_id: u64,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    first: u64,
    locations: VecDeque<Location>,
}

impl Written {
    /// Index of the first entry.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Index after the last entry.
    pub(super) fn next(&self) -> u64 {
        self.first + self.locations.len() as u64
    }

    /// Whether nothing was ever written of the group.
    pub(super) fn is_blank(&self) -> bool {
        self.node_id == 0 && self.vote.is_none() && self.purged.is_none() && self.locations.is_empty()
    }

    pub(super) fn location(&self, index: u64) -> Option<Location> {
        let slot = index.checked_sub(self.first)?;
        self.locations.get(usize::try_from(slot).ok()?).copied()
    }

    /// Index and location of every entry from `start` on.
    pub(super) fn locations(&self, start: u64) -> impl Iterator<Item = (u64, Location)> {
        let skipped = usize::try_from(start.saturating_sub(self.first)).unwrap_or(usize::MAX);
        (self.first..).zip(self.locations.iter().copied()).skip(skipped)
    }

    /// Folds in an entry; `false` when it does not continue the log.
    #[must_use]
    pub(super) fn entry(&mut self, index: u64, location: Location) -> bool {
        if self.locations.is_empty() && (index >= self.first || self.purged.is_none()) {
            self.first = index;
        }
        let continues = index == self.next();
        if continues {
            self.locations.push_back(location);
        }
        continues
    }

    /// Folds in a moved entry; `false` when the log has no such entry.
    #[must_use]
    pub(super) fn moved(&mut self, index: u64, location: Location) -> bool {
        let slot = index.checked_sub(self.first).and_then(|slot| usize::try_from(slot).ok());
        match slot.and_then(|slot| self.locations.get_mut(slot)) {
            Some(known) => {
                *known = location;
                true
            }
            None => false,
        }
    }

    pub(super) fn truncate(&mut self, next: u64) {
        let kept = usize::try_from(next.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.locations.truncate(kept);
    }

    pub(super) fn purge(&mut self, upto: LogId) {
        let first = upto.index + 1;
        if first > self.first {
            let gone = usize::try_from(first - self.first).unwrap_or(usize::MAX).min(self.locations.len());
            self.locations.drain(..gone);
            // After a large purge the memory goes back; small ones reuse it.
            if self.locations.len() * 4 < self.locations.capacity() {
                self.locations.shrink_to(self.locations.len() * 2);
            }
            self.first = first;
        }
        self.purged = self.purged.take().max(Some(upto));
    }

    /// What is committed may have been written beside entries that were not: everything the log still
    /// has before it is committed too. `leader_of` gives the leader of an entry that the log has.
    pub(super) fn clamp_committed(&mut self, leader_of: impl Fn(u64) -> Option<LeaderIdOf<TypeConfig>>) {
        let Some(committed) = self.committed else { return };
        let entries = self.first..self.next();
        let last = match entries.clone().next_back() {
            Some(last) => leader_of(last).map(|leader| LogId::new(leader, last)),
            None => self.purged,
        };
        if Some(committed.index) > last.map(|id| id.index) {
            self.committed = last;
        } else if entries.contains(&committed.index)
            && leader_of(committed.index) != Some(committed.leader_id)
        {
            // Another entry than the committed one: nothing is known of those before it.
            self.committed = self.purged;
        }
    }

    pub(super) fn to_checkpoint(&self) -> HardState {
        HardState {
            node_id: self.node_id,
            vote: self.vote.as_ref().map(vote_to_wire),
            committed: self.committed.as_ref().map(log_id_to_wire),
            purged: self.purged.as_ref().map(log_id_to_wire),
            first: self.first,
            next: self.next(),
        }
    }

    /// Takes over a checkpoint. Entries it has and this fold has not are promised by it.
    pub(super) fn restore(&mut self, checkpoint: &HardState) {
        let log_id = |id: &Option<v1::LogId>| id.as_ref().map(log_id_from_wire);
        let HardState { node_id, vote, committed, purged, first, next } = checkpoint;
        self.node_id = *node_id;
        self.vote = vote.as_ref().map(vote_from_wire);
        self.committed = log_id(committed);
        self.purged = log_id(purged);
        self.locations =
            (*first..*next).map(|index| self.location(index).unwrap_or(Location::PROMISED)).collect();
        self.first = *first;
    }
}

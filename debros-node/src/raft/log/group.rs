//! A group's log as its callers see it: what was asked for, written or not. The written part is
//! [`Written`], which only the writer changes.
//!
//! The tail is the end of the log in memory, without holes. It has every entry that is not written
//! yet, so an entry outside it can be read at its written location. A ticket per append tells whether
//! an entry is written, because an index alone may name a truncated one.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use debros_proto::GroupId;
use openraft::type_config::alias::LeaderIdOf;

use super::error::LogError;
use super::index::{Location, Written};
use super::record;
use crate::raft::types::{Entry, LogId, TypeConfig};

/// Counted for an entry in memory beside its own bytes.
pub(super) const TAIL_ENTRY_OVERHEAD_BYTES: usize = 128;

pub(super) struct Group {
    pub(super) id: GroupId,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) written: Written,
    /// Log ids are derived from here: the leader of each run of entries, by the run's first index.
    runs: VecDeque<(u64, LeaderIdOf<TypeConfig>)>,
    first: u64,
    next: u64,
    purged: Option<LogId>,
    pub(super) committed: Option<LogId>,
    /// A job that writes `committed` waits already.
    pub(super) committed_queued: bool,
    tail: VecDeque<TailEntry>,
    ticket: u64,
    written_ticket: u64,
    removed: bool,
}

struct TailEntry {
    entry: Entry,
    bytes: u32,
    ticket: u64,
}

/// An entry with the size of its record.
pub(super) struct Sized {
    pub(super) entry: Entry,
    pub(super) bytes: u32,
}

/// A part of the log: first what has to be read from disk, then what is in memory.
pub(super) struct Cut {
    pub(super) start: u64,
    pub(super) on_disk: Vec<Location>,
    pub(super) in_memory: Vec<Entry>,
}

impl Group {
    pub(super) fn new(id: GroupId, state: State) -> Self {
        Self { id, state: Mutex::new(state) }
    }

    /// Never held across an await, nor over a read or write of a file.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }
}

impl State {
    /// The state after recovery: everything is written, nothing is in memory.
    pub(super) fn recovered(written: Written, runs: VecDeque<(u64, LeaderIdOf<TypeConfig>)>) -> Self {
        Self {
            runs,
            first: written.first(),
            next: written.next(),
            purged: written.purged,
            committed: written.committed,
            written,
            ..Self::default()
        }
    }

    pub(super) fn check_not_removed(&self, id: GroupId) -> Result<(), LogError> {
        if self.removed { Err(LogError::Removed(id)) } else { Ok(()) }
    }

    pub(super) fn remove(&mut self) {
        self.removed = true;
        self.tail.clear();
    }

    /// Whether the caller may append at this index.
    pub(super) fn check_continues(&self, id: GroupId, index: u64) -> Result<(), LogError> {
        // An empty log that was never purged begins where its first entry says.
        let begins = self.first == self.next && self.purged.is_none();
        if index == self.next || begins {
            Ok(())
        } else {
            Err(LogError::Gap { group: id, expected: self.next, found: index })
        }
    }

    /// The ticket of the next append.
    pub(super) fn next_ticket(&self) -> u64 {
        self.ticket + 1
    }

    pub(super) fn append(&mut self, entries: Vec<Sized>) {
        self.ticket += 1;
        let ticket = self.ticket;
        for Sized { entry, bytes } in entries {
            let LogId { leader_id, index } = entry.log_id;
            if self.first == self.next {
                self.first = index;
                self.next = index;
                self.runs.clear();
            }
            debug_assert_eq!(index, self.next, "entries of one append are consecutive");
            if self.runs.back().is_none_or(|(_, leader)| *leader != leader_id) {
                self.runs.push_back((index, leader_id));
            }
            self.next = index + 1;
            self.tail.push_back(TailEntry { entry, bytes, ticket });
        }
    }

    /// Entries of this append, and of all before it, may leave memory now.
    pub(super) fn mark_written(&mut self, ticket: u64) {
        self.written_ticket = ticket;
    }

    /// Lets go of written entries up to an index.
    pub(super) fn evict(&mut self, upto: u64) {
        while let Some(entry) = self.tail.front()
            && entry.entry.log_id.index <= upto
            && entry.ticket <= self.written_ticket
        {
            self.tail.pop_front();
        }
        if self.tail.is_empty() {
            self.tail.shrink_to_fit();
        }
    }

    pub(super) fn truncate(&mut self, next: u64) {
        let next = next.max(self.first);
        if next >= self.next {
            return;
        }
        let gone = usize::try_from(self.next - next).unwrap_or(usize::MAX).min(self.tail.len());
        self.tail.truncate(self.tail.len() - gone);
        self.runs.retain(|(start, _)| *start < next);
        self.next = next;
    }

    pub(super) fn purge(&mut self, upto: &LogId) {
        let first = upto.index + 1;
        if first > self.first {
            while self.tail.front().is_some_and(|entry| entry.entry.log_id.index < first) {
                self.tail.pop_front();
            }
            self.first = first;
            self.next = self.next.max(first);
            // The run that `first` is in goes on; if nothing is left, none does.
            while self.runs.get(1).is_some_and(|(start, _)| *start <= first) {
                self.runs.pop_front();
            }
            if self.first == self.next {
                self.runs.clear();
            } else if let Some((start, _)) = self.runs.front_mut() {
                *start = (*start).max(first);
            }
        }
        self.purged = self.purged.take().max(Some(*upto));
    }

    pub(super) fn purged(&self) -> Option<LogId> {
        self.purged
    }

    /// The last entry's log id, or that of the last purged one.
    pub(super) fn last(&self) -> Option<LogId> {
        if self.first == self.next { self.purged() } else { self.log_id(self.next - 1) }
    }

    fn log_id(&self, index: u64) -> Option<LogId> {
        let after = self.runs.partition_point(|(start, _)| *start <= index);
        let (_, leader) = self.runs.get(after.checked_sub(1)?)?;
        Some(LogId::new(*leader, index))
    }

    /// The last log id of each leader within the range, which openraft asks for at start. Its
    /// documentation says the first, its code and its test suite want the last.
    pub(super) fn key_log_ids(&self, start: u64, end: u64) -> Vec<LogId> {
        let (start, end) = (start.max(self.first), end.min(self.next.saturating_sub(1)));
        if self.first == self.next || start > end {
            return Vec::new();
        }
        let ends = self.runs.iter().skip(1).map(|(begin, _)| begin - 1);
        let inside = ends.filter(|last| *last >= start && *last < end);
        inside.chain([end]).filter_map(|index| self.log_id(index)).collect()
    }

    /// The entries of `start..end` that the log has, from the begin up to `bytes_max`, but one at
    /// least.
    pub(super) fn cut(&self, start: u64, end: u64, bytes_max: usize) -> Cut {
        let (start, end) = (start.max(self.first), end.min(self.next));
        let mut cut = Cut { start, on_disk: Vec::new(), in_memory: Vec::new() };
        let tail_start = self.next - self.tail.len() as u64;
        let mut bytes = 0;
        for index in start..end {
            let in_memory = index.checked_sub(tail_start).map(|at| &self.tail[at as usize]);
            let location = match in_memory {
                Some(_) => None,
                None => self.written.location(index),
            };
            bytes += in_memory.map_or(0, |entry| entry.bytes as usize)
                + location.map_or(0, |location| location.bytes as usize);
            if bytes > bytes_max && index > start {
                break;
            }
            match (in_memory, location) {
                (Some(entry), _) => cut.in_memory.push(entry.entry.clone()),
                (None, Some(location)) => cut.on_disk.push(location),
                (None, None) => unreachable!("an entry outside the tail is written"),
            }
        }
        cut
    }
}

/// The size that an entry has in memory and on disk, as limits count it.
pub(super) fn entry_bytes(payload_bytes: usize) -> u32 {
    u32::try_from(payload_bytes + record::OVERHEAD_BYTES).expect("entries are limited")
}

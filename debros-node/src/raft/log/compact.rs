//! Copying live entries out of the oldest segment, so that a group that lags does not hold back all
//! segments after it.
//!
//! Decided when a segment begins: with more than `segments_max` of them, and less than half of their
//! bytes live. The copying rides with the following batches, a little each, so nobody waits for it. It
//! writes at most one old segment per new one, and each frees at least one.

use std::sync::Arc;

use debros_proto::GroupId;

use super::error::LogError;
use super::group::Group;
use super::index::Location;
use super::record::{self, Kind};
use super::store::Shared;

/// Copied with one batch: small beside what a flush costs.
const MOVED_BYTES_PER_BATCH: u64 = 256 << 10;

/// An entry copied into the batch that is being built.
pub(super) struct Move {
    pub(super) group: Arc<Group>,
    pub(super) index: u64,
    /// Place of its record in the batch.
    pub(super) at: usize,
}

/// The copying under way.
#[derive(Default)]
pub(super) struct Compaction {
    /// The segment to empty, and where to go on.
    target: Option<(u64, GroupId, u64)>,
}

impl Compaction {
    /// Decides whether to empty the oldest segment.
    pub(super) fn plan(&mut self, shared: &Shared, oldest: u64, live_bytes: u64) {
        let (count, newest, bytes) = {
            let segments = shared.segments();
            let newest = segments.keys().next_back().copied().unwrap_or(oldest);
            (segments.len(), newest, segments.values().map(|segment| segment.bytes).sum::<u64>())
        };
        let worthwhile = count > shared.options.segments_max && live_bytes * 2 <= bytes && oldest < newest;
        self.target = worthwhile.then_some((oldest, GroupId(0), 0));
    }

    /// Copies some entries into the batch.
    pub(super) fn fill(
        &mut self,
        shared: &Shared,
        buffer: &mut Vec<u8>,
        moves: &mut Vec<Move>,
    ) -> Result<(), LogError> {
        let Some((target, from_group, from_index)) = self.target.take() else { return Ok(()) };
        // A small segment is not swamped by what moves into it.
        let mut budget = MOVED_BYTES_PER_BATCH.min(shared.spares.file_bytes() / 4);
        for group in shared.all_groups() {
            if group.id < from_group {
                continue;
            }
            let from_index = if group.id == from_group { from_index } else { 0 };
            let (chosen, rest) = choose(&group, target, from_index, &mut budget);
            for (index, location) in chosen {
                let segment = shared.segments().get(&target).cloned().expect("it has live entries");
                let record = segment.read_record(location)?;
                moves.push(Move { group: group.clone(), index, at: buffer.len() });
                record::push_payload(buffer, Kind::Moved, group.id.0, &record.payload);
            }
            if let Some(index) = rest {
                self.target = Some((target, group.id, index));
                return Ok(());
            }
        }
        Ok(())
    }
}

/// The live entries of a group in a segment, from an index on and up to the budget, and where to go on.
fn choose(group: &Group, target: u64, from: u64, budget: &mut u64) -> (Vec<(u64, Location)>, Option<u64>) {
    let state = group.state();
    let mut chosen = Vec::new();
    for (index, location) in state.written.locations(from).filter(|(_, at)| at.segment == target) {
        if *budget == 0 {
            return (chosen, Some(index));
        }
        *budget = budget.saturating_sub(u64::from(location.bytes));
        chosen.push((index, location));
    }
    (chosen, None)
}

//! The writer: turns what is queued into batches, makes each durable, folds it into the groups, and
//! answers. It alone changes the files and the written part of a group's state.

use std::collections::VecDeque;
use std::sync::Arc;

use debros_proto::GroupId;

use super::compact::{Compaction, Move};
use super::error::{Failure, LogError};
use super::group::{Group, TAIL_ENTRY_OVERHEAD_BYTES};
use super::index::Location;
use super::queue::Job;
use super::record::{self, BATCH_BYTES, HardState, Kind, OVERHEAD_BYTES, Position};
use super::segment::Segment;
use super::store::{Flush, Shared, begin_segment};
use super::traces::Traces;
use crate::blocking::Jobs;
use crate::metrics::Stopwatch;
use crate::raft::codec::{log_id_to_wire, vote_to_wire};
use crate::raft::types::LogId;
use crate::trace::Moment;

/// Every segment keeps room for the batch that seals it and the one that a clean close leaves.
const RESERVED_BYTES: usize = 2 * BATCH_BYTES + OVERHEAD_BYTES;
/// The buffer of an unusually large batch is not kept.
const BUFFER_KEPT_BYTES: usize = 4 << 20;

pub(super) struct Writer {
    shared: Arc<Shared>,
    order_spare: Jobs<()>,
    active: Arc<Segment>,
    offset: u64,
    buffer: Vec<u8>,
    compaction: Compaction,
    in_memory: Tail,
}

/// A batch as it is built: the buffer, and what its parts are.
struct Batch {
    jobs: Vec<Placed>,
    moves: Vec<Move>,
    entries: u64,
}

/// A job with the place of its first record in the buffer.
struct Placed {
    job: Job,
    at: usize,
    committed: Option<LogId>,
}

/// Which written entries are still in memory, oldest first, so that all groups share one limit.
#[derive(Default)]
struct Tail {
    appends: VecDeque<(Arc<Group>, u64, usize)>,
    bytes: usize,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, order_spare: Jobs<()>, offset: u64) -> Self {
        let active = shared.segments().values().next_back().expect("a store has a segment").clone();
        Self {
            shared,
            order_spare,
            active,
            offset,
            buffer: Vec::new(),
            compaction: Compaction::default(),
            in_memory: Tail::default(),
        }
    }

    /// Does all the work that waits; `false` ends the worker.
    pub(super) fn run(this: &mut Option<Self>) -> bool {
        let Some(writer) = this else { return false };
        let shared = writer.shared.clone();
        let mut jobs = Vec::new();
        loop {
            shared.queue.take(&mut jobs);
            if jobs.is_empty() {
                break;
            }
            if let Err((error, unanswered)) = writer.write(std::mem::take(&mut jobs)) {
                fail(&shared, error, unanswered);
                *this = None;
                return false;
            }
        }
        let Some(closed) = shared.queue.take_closing() else { return true };
        if let Err(error) = writer.finish() {
            fail(&shared, error, Vec::new());
        }
        // Close the files first: whoever waits may open them again.
        *this = None;
        shared.segments().clear();
        let _ = closed.send(());
        false
    }

    /// Makes these jobs durable and answers them. On failure, gives back those not answered.
    fn write(&mut self, jobs: Vec<Job>) -> Result<(), (LogError, Vec<Job>)> {
        let mut batch = self.build(jobs);
        let moved = self.compaction.fill(&self.shared, &mut self.buffer, &mut batch.moves);
        self.encode(&mut batch);
        if let Err(error) = moved.and_then(|()| self.make_room()) {
            return Err((error, batch.into_jobs()));
        }
        let base = self.offset;
        let began = batch.traces().next().map(|_| Moment::now());
        match self.flush(batch.entries) {
            Ok(()) => {
                self.tell_traces(&batch, began);
                self.complete(batch, base);
                Ok(())
            }
            Err(error) => Err((error, batch.into_jobs())),
        }
    }

    /// Records what the batch was for those whose requests are traced.
    fn tell_traces(&self, batch: &Batch, began: Option<Moment>) {
        let Some(began) = began else { return };
        let took = began.elapsed();
        batch
            .traces()
            .for_each(|(group, traces)| traces.tell(group, &self.shared.options.tracer, began, took));
    }

    fn build(&mut self, jobs: Vec<Job>) -> Batch {
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_KEPT_BYTES);
        // The place of the batch record.
        self.buffer.resize(BATCH_BYTES, 0);
        let jobs = jobs.into_iter().map(|job| Placed { job, at: 0, committed: None }).collect::<Vec<_>>();
        let entries = jobs.iter().map(|placed: &Placed| placed.job.entries()).sum();
        Batch { jobs, moves: Vec::new(), entries }
    }

    /// Appends the jobs' records. They come after moved entries, which are as the fold has them now.
    fn encode(&mut self, batch: &mut Batch) {
        let buffer = &mut self.buffer;
        for placed in &mut batch.jobs {
            placed.at = buffer.len();
            match &placed.job {
                Job::Append { records, .. } => buffer.extend_from_slice(records),
                Job::Vote { group, vote, .. } => {
                    record::push_message(buffer, Kind::Vote, group.id.0, &vote_to_wire(vote));
                }
                Job::NodeId { group, node_id, .. } => {
                    record::push_numbers(buffer, Kind::NodeId, group.id.0, &[*node_id]);
                }
                Job::Committed { group } => {
                    let mut state = group.state();
                    state.committed_queued = false;
                    placed.committed = state.committed;
                    drop(state);
                    push_position(buffer, Kind::Committed, group, placed.committed.as_ref());
                }
                Job::Truncate { group, next, .. } => {
                    record::push_numbers(buffer, Kind::TruncateAfter, group.id.0, &[*next]);
                }
                Job::Purge { group, upto } => push_position(buffer, Kind::Purge, group, Some(upto)),
                Job::Remove { group, .. } => record::push_numbers(buffer, Kind::Remove, group.id.0, &[]),
            }
        }
    }

    /// Goes on to the next segment when the buffer does not fit into this one.
    fn make_room(&mut self) -> Result<(), LogError> {
        let end = self.offset + (self.buffer.len() + RESERVED_BYTES) as u64;
        if end > self.active.bytes {
            self.rotate()?;
        } else if end > self.active.bytes / 2 && self.shared.spares.is_wanted() {
            // Full or closed: the writer makes its own file when it needs one.
            let _ = self.order_spare.try_send(());
        }
        Ok(())
    }

    /// Seals the segment and begins the next one with a checkpoint. Once that is durable, segments
    /// without live entries go.
    fn rotate(&mut self) -> Result<(), LogError> {
        let batch = std::mem::take(&mut self.buffer);
        self.buffer.resize(BATCH_BYTES, 0);
        record::push_numbers(&mut self.buffer, Kind::Seal, 0, &[]);
        self.flush(0)?;

        let sequence = self.active.sequence + 1;
        let usage = Usage::of(&self.shared, sequence);
        let mut checkpoint = checkpoint(&hard_states(&self.shared), usage.oldest);
        let needed = (batch.len() + RESERVED_BYTES) as u64;
        let identity = (sequence, self.shared.incarnation);
        let (segment, offset) =
            begin_segment(&self.shared.folder, &self.shared.spares, identity, &mut checkpoint, needed)?;
        self.active = Arc::new(segment);
        self.offset = offset;
        self.buffer = batch;
        self.shared.segments().insert(sequence, self.active.clone());

        self.retire(usage.oldest)?;
        self.compaction.plan(&self.shared, usage.oldest, usage.live_bytes);
        Ok(())
    }

    /// Lets go of the segments before `oldest`.
    fn retire(&self, oldest: u64) -> Result<(), LogError> {
        let retired = {
            let mut segments = self.shared.segments();
            let kept = segments.split_off(&oldest);
            std::mem::replace(&mut *segments, kept)
        };
        for segment in retired.into_values() {
            let path = segment.path.clone();
            // A read that is under way must not see the file's next life.
            let file = Arc::into_inner(segment).map(|segment| segment.file);
            self.shared.spares.keep(&path, file)?;
        }
        Ok(())
    }

    /// Writes the buffer as one batch and makes it durable.
    fn flush(&mut self, entries: u64) -> Result<(), LogError> {
        let Segment { salt, seed, .. } = *self.active;
        let records = record::seal_batch(&mut self.buffer, salt, seed, self.offset);
        let stopwatch = Stopwatch::start();
        let write = || self.active.write(&self.buffer, self.offset);
        let sync = || self.active.file.sync_data();
        let written = match self.shared.options.acknowledges_early() {
            false => write().and_then(|()| sync()),
            // The planted bug: this batch is flushed with the next one.
            true => sync().and_then(|()| write()),
        };
        written.map_err(LogError::io("write", &self.active.path))?;
        let bytes = self.buffer.len() as u64;
        self.offset += bytes;
        self.shared.count(&Flush { duration: stopwatch.took(), bytes, records, entries });
        Ok(())
    }

    /// Folds a durable batch into its groups and answers.
    fn complete(&mut self, batch: Batch, base: u64) {
        for moved in batch.moves {
            let location = self.location(base, moved.at);
            let mut state = moved.group.state();
            assert!(state.written.moved(moved.index, location), "only live entries are moved");
        }
        let mut released = 0;
        for placed in batch.jobs {
            released += placed.job.reserved_bytes();
            self.fold(&placed, base);
            placed.job.answer(Ok(()));
        }
        self.shared.queue.release(released);
        self.in_memory.evict(self.shared.options.tail_bytes_max);
    }

    fn fold(&mut self, placed: &Placed, base: u64) {
        match &placed.job {
            Job::Append { group, first, ticket, records, .. } => {
                let mut state = group.state();
                let (mut at, mut index) = (0, *first);
                while at < records.len() {
                    let location = self.location(base, placed.at + at);
                    assert!(state.written.entry(index, location), "appends continue the log");
                    at += record::record_bytes(records, at);
                    index += 1;
                }
                state.mark_written(*ticket);
                drop(state);
                let overhead = (index - first) as usize * TAIL_ENTRY_OVERHEAD_BYTES;
                self.in_memory.push(group.clone(), index - 1, records.len() + overhead);
            }
            Job::Vote { group, vote, .. } => group.state().written.vote = Some(*vote),
            Job::NodeId { group, node_id, .. } => group.state().written.node_id = *node_id,
            Job::Committed { group } => group.state().written.committed = placed.committed,
            Job::Truncate { group, next, .. } => group.state().written.truncate(*next),
            Job::Purge { group, upto } => group.state().written.purge(*upto),
            Job::Remove { group, .. } => self.shared.forget_group(group),
        }
    }

    /// The location of the record at this place of the buffer.
    fn location(&self, base: u64, at: usize) -> Location {
        let offset = u32::try_from(base + at as u64).expect("segments are limited");
        let bytes = u32::try_from(record::record_bytes(&self.buffer, at)).expect("records are limited");
        Location { segment: self.active.sequence, offset, bytes }
    }

    /// Leaves a last, empty batch: the proof that everything before it is durable, so that damage in
    /// a cleanly closed store is never taken for a torn write.
    fn finish(&mut self) -> Result<(), LogError> {
        self.buffer.clear();
        self.buffer.resize(BATCH_BYTES, 0);
        if self.offset + BATCH_BYTES as u64 > self.active.bytes {
            return Ok(());
        }
        self.flush(0)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Nobody may wait for a writer that is gone.
            fail(&self.shared, LogError::WriterPanicked, Vec::new());
        }
    }
}

impl Batch {
    /// The traced entries of its jobs, with their groups.
    fn traces(&self) -> impl Iterator<Item = (GroupId, &Traces)> {
        self.jobs.iter().filter_map(|placed| match &placed.job {
            Job::Append { group, traces, .. } if !traces.is_empty() => Some((group.id, traces)),
            _ => None,
        })
    }

    fn into_jobs(self) -> Vec<Job> {
        self.jobs.into_iter().map(|placed| placed.job).collect()
    }
}

impl Tail {
    fn push(&mut self, group: Arc<Group>, last: u64, bytes: usize) {
        self.bytes += bytes;
        self.appends.push_back((group, last, bytes));
    }

    fn evict(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max
            && let Some((group, last, bytes)) = self.appends.pop_front()
        {
            self.bytes -= bytes;
            group.state().evict(last);
        }
    }
}

/// What the groups' live entries hold.
struct Usage {
    /// The oldest segment with a live entry.
    oldest: u64,
    live_bytes: u64,
}

impl Usage {
    fn of(shared: &Shared, newest: u64) -> Self {
        let mut usage = Self { oldest: newest, live_bytes: 0 };
        for group in shared.all_groups() {
            for (_, location) in group.state().written.locations(0) {
                usage.oldest = usage.oldest.min(location.segment);
                usage.live_bytes += u64::from(location.bytes);
            }
        }
        usage
    }
}

/// A batch with the hard state of all groups.
pub(super) fn checkpoint(groups: &[(u64, HardState)], oldest: u64) -> Vec<u8> {
    let mut buffer = vec![0; BATCH_BYTES];
    for (group, state) in groups {
        record::push_message(&mut buffer, Kind::Checkpoint, *group, state);
    }
    record::push_numbers(&mut buffer, Kind::CheckpointEnd, 0, &[oldest]);
    buffer
}

fn hard_states(shared: &Shared) -> Vec<(u64, HardState)> {
    let groups = shared.all_groups();
    let state = |group: &Arc<Group>| {
        let state = group.state();
        (!state.written.is_blank()).then(|| (group.id.0, state.written.to_checkpoint()))
    };
    groups.iter().filter_map(state).collect()
}

fn push_position(buffer: &mut Vec<u8>, kind: Kind, group: &Group, log_id: Option<&LogId>) {
    record::push_message(buffer, kind, group.id.0, &Position { log_id: log_id.map(log_id_to_wire) });
}

/// Ends the store: whoever waits, or comes later, is told why.
fn fail(shared: &Shared, error: LogError, unanswered: Vec<Job>) {
    let failure = Failure(Arc::new(error));
    tracing::error!(%failure, "the raft log failed: the node must end");
    shared.failed.send_replace(Some(failure.clone()));
    let waiting = shared.queue.fail(&failure);
    for job in unanswered.into_iter().chain(waiting) {
        job.answer(Err(LogError::Failed(failure.clone())));
    }
}

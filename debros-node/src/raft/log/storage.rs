//! One group's log as openraft and the node use it.
//!
//! A change takes effect in memory and is queued under the group's lock, so that both orders agree.
//! Only votes, node ids and removals are awaited; appends report through their callback; the rest
//! rides with the next flush, which is safe because whatever relies on it is flushed after it.

use std::fmt;
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::sync::Arc;

use debros_proto::{GroupId, NodeId, limits};
use futures::stream::{self, Stream};
use openraft::OptionalSend;
use openraft::errors::LeaderChanged;
use openraft::storage::{
    IOFlushed, LeaderBoundedStreamError, LeaderBoundedStreamResult, LogState, RaftLogStorage,
};
use openraft::type_config::alias::LeaderIdOf;
use openraft::{LogIdOptionExt, RaftLogReader};
use prost::Message;
use tokio::sync::oneshot;

use super::error::LogError;
use super::group::{Group, Sized, State, entry_bytes};
use super::queue::{Done, Job};
use super::reader;
use super::record::{self, Kind};
use super::store::Handle;
use super::traces::Traces;
use crate::raft::codec::entry_to_wire;
use crate::raft::types::{Entry, LogId, TypeConfig, Vote};

/// One limited read gives at most this much: enough to fill a link, little enough to hold many.
const READ_BYTES_MAX: usize = 4 << 20;

/// The log of one Raft group. Cheap to clone; clones see the same log.
#[derive(Clone)]
pub struct GroupLog {
    handle: Arc<Handle>,
    group: Arc<Group>,
}

impl GroupLog {
    pub(super) fn new(handle: Arc<Handle>, group: Arc<Group>) -> Self {
        Self { handle, group }
    }

    /// Whose log this is.
    pub fn id(&self) -> GroupId {
        self.group.id
    }

    /// The Raft node id that was minted for this log; `None` as long as there is none.
    pub fn node_id(&self) -> Option<NodeId> {
        let node_id = self.group.state().written.node_id;
        (node_id != 0).then_some(NodeId(node_id))
    }

    /// Keeps the Raft node id that was minted for this log; durable when it returns.
    ///
    /// # Errors
    /// [`LogError::Failed`], [`LogError::Closed`], [`LogError::Removed`].
    pub async fn set_node_id(&self, node_id: NodeId) -> Result<(), LogError> {
        let group = self.group.clone();
        self.durably(|done| Job::NodeId { group, node_id: node_id.0, done }, |_| ()).await
    }

    /// Queues a job and waits until it is durable.
    async fn durably(
        &self,
        job: impl FnOnce(Done) -> Job,
        change: impl FnOnce(&mut State),
    ) -> Result<(), LogError> {
        let (done, answer) = oneshot::channel();
        self.change(job(done), change)?;
        answer.await.unwrap_or(Err(LogError::Closed))
    }

    /// Queues a job and, if it is taken, changes the state, both under the group's lock.
    fn change(&self, job: Job, change: impl FnOnce(&mut State)) -> Result<(), LogError> {
        let mut state = self.group.state();
        state.check_not_removed(self.group.id)?;
        self.handle.push(job)?;
        change(&mut state);
        Ok(())
    }

    async fn append_encoded(
        &self,
        Encoded { entries, records }: Encoded,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), LogError> {
        let shared = &self.handle.shared;
        let reserved = records.len();
        shared.queue.reserve(reserved).await?;
        let first = entries[0].entry.log_id.index;
        let mut state = self.group.state();
        let checked =
            state.check_not_removed(self.group.id).and_then(|()| state.check_continues(self.group.id, first));
        if let Err(error) = checked {
            shared.queue.release(reserved);
            return Err(error);
        }
        let count = entries.len() as u64;
        let ticket = state.next_ticket();
        let traces = Traces::of(&shared.options.tracer, &entries);
        self.handle.push(Job::Append {
            group: self.group.clone(),
            first,
            count,
            ticket,
            records,
            traces,
            callback,
        })?;
        state.append(entries);
        Ok(())
    }

    /// Entries of `start..end`, from the begin up to a size, but one at least if the log has it. With
    /// a leader: only while the vote is that leader's and committed.
    async fn read(
        &self,
        (start, end): (u64, u64),
        bytes_max: usize,
        leader: Option<&LeaderIdOf<TypeConfig>>,
    ) -> Result<Vec<Entry>, ReadError> {
        let (cut, segments) = {
            let state = self.group.state();
            check_leader(&state, leader)?;
            let cut = state.cut(start, end, bytes_max);
            let segments = self.handle.shared.segments_of(&cut.on_disk).map_err(io::Error::from)?;
            (cut, segments)
        };
        if cut.on_disk.is_empty() {
            return Ok(cut.in_memory);
        }
        let group = self.group.id;
        let work = move || reader::read_entries(&segments, group, cut.start, &cut.on_disk);
        let mut entries = self.handle.shared.blocking.run(work).await.map_err(io::Error::from)?;
        check_leader(&self.group.state(), leader)?;
        entries.extend(cut.in_memory);
        Ok(entries)
    }

    /// Reads a range piece by piece, so that its size does not matter.
    fn stream(
        &self,
        (start, end): (u64, u64),
        leader: Option<LeaderIdOf<TypeConfig>>,
    ) -> impl Stream<Item = Result<Entry, ReadError>> + Send + 'static {
        let pieces = stream::try_unfold((self.clone(), start), move |(log, start)| async move {
            let entries = log.read((start, end), READ_BYTES_MAX, leader.as_ref()).await?;
            let next = entries.last().map(|entry| entry.log_id.index + 1);
            Ok::<_, ReadError>(next.map(|next| (stream::iter(entries.into_iter().map(Ok)), (log, next))))
        });
        futures::TryStreamExt::try_flatten(pieces)
    }
}

/// Why a read gave no entries.
enum ReadError {
    Io(io::Error),
    LeaderChanged(Option<Vote>),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn without_leader(error: ReadError) -> io::Error {
    match error {
        ReadError::Io(error) => error,
        ReadError::LeaderChanged(_) => unreachable!("no leader was asked for"),
    }
}

fn check_leader(state: &State, leader: Option<&LeaderIdOf<TypeConfig>>) -> Result<(), ReadError> {
    let vote = state.written.vote;
    match leader {
        None => Ok(()),
        Some(leader) if vote.is_some_and(|vote| vote.committed && vote.leader_id == *leader) => Ok(()),
        Some(_) => Err(ReadError::LeaderChanged(vote)),
    }
}

/// Entries with their records, ready to be written.
struct Encoded {
    entries: Vec<Sized>,
    records: Vec<u8>,
}

/// Encodes outside of all locks, on the caller's thread.
fn encode(group: GroupId, entries: impl Iterator<Item = Entry>) -> Result<Encoded, LogError> {
    let mut encoded = Encoded { entries: Vec::with_capacity(entries.size_hint().0), records: Vec::new() };
    let mut expected = None;
    for entry in entries {
        let found = entry.log_id.index;
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            return Err(LogError::Gap { group, expected, found });
        }
        expected = Some(found + 1);
        let wire = entry_to_wire(&entry);
        let bytes = wire.encoded_len();
        if bytes > limits::LOG_ENTRY_BYTES_MAX {
            return Err(LogError::EntryTooLarge { bytes });
        }
        encoded.records.reserve(bytes + record::OVERHEAD_BYTES);
        record::push_message(&mut encoded.records, Kind::Entry, group.0, &wire);
        encoded.entries.push(Sized { entry, bytes: entry_bytes(bytes) });
    }
    Ok(encoded)
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for GroupLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + fmt::Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(bounds(&range), usize::MAX, None).await.map_err(without_leader)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read((start, end), READ_BYTES_MAX, None).await.map_err(without_leader)
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + fmt::Debug + OptionalSend,
    {
        futures::TryStreamExt::map_err(Box::pin(self.stream(bounds(&range), None)), without_leader)
    }

    async fn leader_bounded_stream<RB>(
        &mut self,
        leader: LeaderIdOf<TypeConfig>,
        range: RB,
    ) -> impl Stream<Item = LeaderBoundedStreamResult<TypeConfig>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + fmt::Debug + OptionalSend,
    {
        let entries = self.stream(bounds(&range), Some(leader));
        futures::TryStreamExt::map_err(Box::pin(entries), move |error| match error {
            ReadError::Io(error) => LeaderBoundedStreamError::IoError(error),
            ReadError::LeaderChanged(vote) => {
                LeaderBoundedStreamError::LeaderChanged(LeaderChanged::new(leader, vote))
            }
        })
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.group.state().written.vote)
    }

    async fn get_key_log_ids(&mut self, range: RangeInclusive<LogId>) -> Result<Vec<LogId>, io::Error> {
        Ok(self.group.state().key_log_ids(range.start().index, range.end().index))
    }
}

impl RaftLogStorage<TypeConfig> for GroupLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.group.state();
        Ok(LogState { last_purged_log_id: state.purged(), last_log_id: state.last() })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (group, vote) = (self.group.clone(), *vote);
        Ok(self.durably(|done| Job::Vote { group, vote, done }, |_| ()).await?)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let mut state = self.group.state();
        state.check_not_removed(self.group.id)?;
        if !state.committed_queued {
            self.handle.push(Job::Committed { group: self.group.clone() })?;
            state.committed_queued = true;
        }
        state.committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.group.state().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let encoded = encode(self.group.id, entries.into_iter())?;
        if encoded.entries.is_empty() {
            callback.io_completed(Ok(()));
            return Ok(());
        }
        Ok(self.append_encoded(encoded, callback).await?)
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let next = last_log_id.next_index();
        let group = self.group.clone();
        let job = |done| Job::Truncate { group, next, done };
        Ok(self.durably(job, |state| state.truncate(next)).await?)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let group = self.group.clone();
        let job = Job::Purge { group, upto: log_id };
        Ok(self.change(job, |state| state.purge(&log_id))?)
    }
}

impl fmt::Debug for GroupLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GroupLog").field(&self.group.id).finish()
    }
}

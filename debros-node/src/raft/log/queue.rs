//! What waits for the writer. The wake-up goes through the blocking seam; the jobs themselves wait
//! here, in the order in which their groups' states changed: a job is queued under its group's lock.
//!
//! Bounded by bytes: an append waits for room before it changes anything.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use openraft::storage::IOFlushed;
use tokio::sync::{Semaphore, oneshot};

use super::error::{Failure, LogError};
use super::group::Group;
use super::traces::Traces;
use crate::raft::types::{LogId, TypeConfig, Vote};

/// Bytes of appended entries that wait for the writer: four of the largest.
pub const PENDING_BYTES_MAX: usize = 64 << 20;
/// One flush writes at most about this much, so that a burst does not delay the first callbacks.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Jobs that nobody waits for ride with the next flush, but never more than this many of them.
const PENDING_JOBS_MAX: usize = 1024;
/// Counted for a job beside its entries.
const JOB_BYTES: usize = 128;

pub(super) type Done = oneshot::Sender<Result<(), LogError>>;

pub(super) enum Job {
    Append {
        group: Arc<Group>,
        first: u64,
        count: u64,
        ticket: u64,
        records: Vec<u8>,
        traces: Traces,
        callback: IOFlushed<TypeConfig>,
    },
    Vote {
        group: Arc<Group>,
        vote: Vote,
        done: Done,
    },
    NodeId {
        group: Arc<Group>,
        node_id: u64,
        done: Done,
    },
    /// Writes the group's committed log id as it is when the batch is built.
    Committed {
        group: Arc<Group>,
    },
    /// Urgent: what is appended next may be committed and applied before it is durable, and must not meet
    /// the old entries after a crash.
    Truncate {
        group: Arc<Group>,
        next: u64,
        done: Done,
    },
    Purge {
        group: Arc<Group>,
        upto: LogId,
    },
    Remove {
        group: Arc<Group>,
        done: Done,
    },
}

impl Job {
    /// Answers whoever waits.
    pub(super) fn answer(self, result: Result<(), LogError>) {
        match self {
            Self::Append { callback, .. } => callback.io_completed(result.map_err(Into::into)),
            Self::Vote { done, .. }
            | Self::NodeId { done, .. }
            | Self::Truncate { done, .. }
            | Self::Remove { done, .. } => {
                // Whoever asked may be gone: the work is done all the same.
                let _ = done.send(result);
            }
            Self::Committed { .. } | Self::Purge { .. } => {}
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Append { records, .. } => records.len() + JOB_BYTES,
            _ => JOB_BYTES,
        }
    }

    /// The room that [`Queue::reserve`] took for it.
    pub(super) fn reserved_bytes(&self) -> usize {
        match self {
            Self::Append { records, .. } => records.len().min(PENDING_BYTES_MAX),
            _ => 0,
        }
    }

    /// Log entries in it.
    pub(super) fn entries(&self) -> u64 {
        match self {
            Self::Append { count, .. } => *count,
            _ => 0,
        }
    }

    fn is_urgent(&self) -> bool {
        !matches!(self, Self::Committed { .. } | Self::Purge { .. })
    }
}

/// Why the queue takes nothing any more.
#[derive(Clone)]
enum End {
    Closed,
    Failed(Failure),
}

impl End {
    fn error(&self) -> LogError {
        match self {
            Self::Closed => LogError::Closed,
            Self::Failed(failure) => LogError::Failed(failure.clone()),
        }
    }
}

#[derive(Default)]
struct Pending {
    jobs: VecDeque<Job>,
    /// How many of them somebody waits for.
    urgent: usize,
    end: Option<End>,
    /// Whoever closed the store waits here.
    closing: Option<oneshot::Sender<()>>,
}

impl Pending {
    /// Whether what waits is worth a flush: somebody waits for it, it has become much, or the store is
    /// being closed.
    fn is_due(&self) -> bool {
        self.urgent > 0
            || self.jobs.len() >= PENDING_JOBS_MAX
            || (self.end.is_some() && !self.jobs.is_empty())
    }
}

pub(super) struct Queue {
    pending: Mutex<Pending>,
    room: Semaphore,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self { pending: Mutex::default(), room: Semaphore::new(PENDING_BYTES_MAX) }
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().expect("no panic under this lock")
    }

    /// Waits until there is room for these bytes, and takes it. [`Self::release`] gives it back.
    pub(super) async fn reserve(&self, bytes: usize) -> Result<(), LogError> {
        let permits = u32::try_from(bytes.min(PENDING_BYTES_MAX)).expect("the limit fits");
        match self.room.acquire_many(permits).await {
            Ok(permit) => {
                permit.forget();
                Ok(())
            }
            Err(_) => Err(self.ended()),
        }
    }

    pub(super) fn release(&self, bytes: usize) {
        self.room.add_permits(bytes);
    }

    /// Bytes of entries that wait or are being written.
    pub(super) fn reserved_bytes(&self) -> usize {
        PENDING_BYTES_MAX.saturating_sub(self.room.available_permits())
    }

    fn ended(&self) -> LogError {
        self.pending().end.as_ref().map_or(LogError::Closed, End::error)
    }

    /// Queues a job; says whether the writer has to be woken for it.
    pub(super) fn push(&self, job: Job) -> Result<bool, LogError> {
        let mut pending = self.pending();
        if let Some(end) = &pending.end {
            return Err(end.error());
        }
        let urgent = job.is_urgent();
        pending.urgent += usize::from(urgent);
        pending.jobs.push_back(job);
        Ok(urgent || pending.jobs.len() >= PENDING_JOBS_MAX)
    }

    /// The next batch, appended to `jobs`; nothing when no job is worth a flush of its own.
    pub(super) fn take(&self, jobs: &mut Vec<Job>) {
        let mut pending = self.pending();
        if !pending.is_due() {
            return;
        }
        let mut bytes = 0;
        while let Some(job) = pending.jobs.front() {
            bytes += job.bytes();
            if bytes > BATCH_BYTES_MAX && !jobs.is_empty() {
                break;
            }
            pending.urgent -= usize::from(job.is_urgent());
            jobs.extend(pending.jobs.pop_front());
        }
    }

    /// Takes nothing new; `closed` is answered once the writer has stopped.
    pub(super) fn close(&self, closed: oneshot::Sender<()>) {
        let mut pending = self.pending();
        if pending.end.is_none() {
            pending.end = Some(End::Closed);
            pending.closing = Some(closed);
        }
        drop(pending);
        self.room.close();
    }

    /// Who waits for the writer to stop.
    pub(super) fn take_closing(&self) -> Option<oneshot::Sender<()>> {
        self.pending().closing.take()
    }

    /// Takes nothing new, and gives back everything that waits so that it can be answered.
    pub(super) fn fail(&self, failure: &Failure) -> VecDeque<Job> {
        let mut pending = self.pending();
        pending.end = Some(End::Failed(failure.clone()));
        // Dropped: whoever closes the store looks at the failure next.
        pending.closing = None;
        self.room.close();
        std::mem::take(&mut pending.jobs)
    }
}

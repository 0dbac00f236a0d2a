//! The store as the node sees it: opening, groups, closing, and what it tells about itself.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use debros_proto::GroupId;
use tokio::sync::{oneshot, watch};

use super::error::{Failure, LogError};
use super::group::{Group, State};
use super::index::Location;
use super::queue::{Job, Queue};
use super::record;
use super::recovery::{self, Recovered};
use super::segment::{self, Segment};
use super::spare::Spares;
use super::storage::GroupLog;
use super::writer::Writer;
use crate::blocking::{Blocking, Jobs};
use crate::trace::Tracer;

/// A segment must hold a checkpoint and some entries.
const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// Places in a segment are 32-bit numbers; this leaves room for an oversized batch.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// Told of every flush.
pub type OnFlush = Arc<dyn Fn(&Flush) + Send + Sync>;

/// How a log store works.
#[derive(Clone)]
pub struct Options {
    /// Size of a segment file, between 64 KiB and 1 GiB. A new segment costs three flushes and a copy of
    /// every group's hard state; a small one holds less disk space. An entry that does not fit gets a
    /// segment of its own size.
    pub segment_bytes: u64,
    /// With more segments than this, and less than half of their bytes live, the entries that hold
    /// back the oldest one are copied forward.
    pub segments_max: usize,
    /// The most recently written entries stay in memory up to this many bytes, all groups together.
    pub tail_bytes_max: usize,
    /// Told of every flush, on the writer's thread: it must not block.
    pub on_flush: Option<OnFlush>,
    /// Records what is done for entries that sampled requests proposed.
    pub tracer: Tracer,
    /// Planted bug: a batch is flushed with the next one, so power loss loses acknowledged entries.
    #[cfg(feature = "planted-bugs")]
    pub acknowledge_before_fsync: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            segments_max: 8,
            tail_bytes_max: 64 << 20,
            on_flush: None,
            tracer: Tracer::off(),
            #[cfg(feature = "planted-bugs")]
            acknowledge_before_fsync: false,
        }
    }
}

impl Options {
    #[cfg(feature = "planted-bugs")]
    pub(super) fn acknowledges_early(&self) -> bool {
        self.acknowledge_before_fsync
    }

    #[cfg(not(feature = "planted-bugs"))]
    pub(super) fn acknowledges_early(&self) -> bool {
        false
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("segment_bytes", &self.segment_bytes)
            .field("segments_max", &self.segments_max)
            .field("tail_bytes_max", &self.tail_bytes_max)
            .finish_non_exhaustive()
    }
}

/// One batch that has become durable.
#[derive(Clone, Copy, Debug)]
pub struct Flush {
    /// Writing and flushing took this long.
    pub duration: Duration,
    /// Bytes written.
    pub bytes: u64,
    /// Records of all kinds.
    pub records: u64,
    /// Log entries among them.
    pub entries: u64,
}

/// Sums since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Batches made durable, each by one `fdatasync`.
    pub flushes: u64,
    /// Bytes written, framing included.
    pub bytes: u64,
    /// Log entries made durable.
    pub entries: u64,
}

/// Which log store this is: 128 random bits, minted when it was created. A node whose log is not the
/// one it had is another voter.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Incarnation([u8; 16]);

impl Incarnation {
    pub(super) fn mint() -> Self {
        Self(rand::random())
    }

    pub(super) fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 128 bits.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the writer and the callers share. It holds no sender to the writer, which ends with the last
/// handle.
pub(super) struct Shared {
    pub(super) folder: PathBuf,
    pub(super) incarnation: Incarnation,
    pub(super) blocking: Blocking,
    pub(super) options: Options,
    pub(super) queue: Queue,
    pub(super) spares: Spares,
    pub(super) failed: watch::Sender<Option<Failure>>,
    groups: Mutex<BTreeMap<GroupId, Arc<Group>>>,
    segments: Mutex<BTreeMap<u64, Arc<Segment>>>,
    flushes: AtomicU64,
    bytes: AtomicU64,
    entries: AtomicU64,
}

impl Shared {
    fn groups(&self) -> MutexGuard<'_, BTreeMap<GroupId, Arc<Group>>> {
        self.groups.lock().expect("no panic under this lock")
    }

    /// Every group of the store, in order of their ids.
    pub(super) fn all_groups(&self) -> Vec<Arc<Group>> {
        self.groups().values().cloned().collect()
    }

    /// Forgets a removed group, unless a new one has its id already.
    pub(super) fn forget_group(&self, group: &Arc<Group>) {
        let mut groups = self.groups();
        if groups.get(&group.id).is_some_and(|known| Arc::ptr_eq(known, group)) {
            groups.remove(&group.id);
        }
    }

    /// May be taken under a group's lock, never the other way round.
    pub(super) fn segments(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Segment>>> {
        self.segments.lock().expect("no panic under this lock")
    }

    /// The segments of these locations. Call it under the group's lock that gave the locations: it
    /// keeps the files from being reused.
    pub(super) fn segments_of(
        &self,
        locations: &[Location],
    ) -> Result<BTreeMap<u64, Arc<Segment>>, LogError> {
        let mut found = BTreeMap::new();
        if locations.is_empty() {
            return Ok(found);
        }
        let segments = self.segments();
        for Location { segment, .. } in locations {
            if !found.contains_key(segment) {
                // A segment with live entries is kept, until the store is closed.
                found.insert(*segment, segments.get(segment).ok_or(LogError::Closed)?.clone());
            }
        }
        Ok(found)
    }

    pub(super) fn count(&self, flush: &Flush) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(flush.bytes, Ordering::Relaxed);
        self.entries.fetch_add(flush.entries, Ordering::Relaxed);
        if let Some(observe) = &self.options.on_flush {
            observe(flush);
        }
    }
}

/// The log of all Raft groups of a node. Cheap to clone.
#[derive(Clone)]
pub struct LogStore {
    handle: Arc<Handle>,
}

/// The writer ends when the last of these is gone.
pub(super) struct Handle {
    pub(super) shared: Arc<Shared>,
    wake: Jobs<()>,
}

impl Handle {
    /// Queues a job: call it under the lock of the job's group, so that the order of the jobs is the
    /// order of the changes.
    pub(super) fn push(&self, job: Job) -> Result<(), LogError> {
        if self.shared.queue.push(job)? {
            self.wake();
        }
        Ok(())
    }

    fn wake(&self) {
        // Full: a wake-up is on its way already, and it finds this job too. Closed: the queue has
        // been told why, and answers its callers.
        let _ = self.wake.try_send(());
    }
}

impl LogStore {
    /// Opens the store in this folder, or creates it there.
    ///
    /// # Errors
    /// [`LogError::Corrupt`], [`LogError::MissingSegment`] and [`LogError::Foreign`] when the folder
    /// is not what the last durable write left; [`LogError::Io`].
    pub async fn open(folder: PathBuf, blocking: Blocking, options: Options) -> Result<Self, LogError> {
        let mut options = options;
        options.segment_bytes = options.segment_bytes.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        let spares = Spares::new(folder.clone(), options.segment_bytes);
        let work = {
            let (folder, spares) = (folder.clone(), spares.clone());
            move || recovery::recover(&folder, &spares)
        };
        let Recovered { incarnation, groups, segments, offset } = blocking.run(work).await?;
        let group = |(id, state): (GroupId, State)| (id, Arc::new(Group::new(id, state)));
        let shared = Arc::new(Shared {
            folder,
            incarnation,
            blocking: blocking.clone(),
            options,
            queue: Queue::new(),
            spares: spares.clone(),
            failed: watch::Sender::new(None),
            groups: Mutex::new(groups.into_iter().map(group).collect()),
            segments: Mutex::new(segments),
            flushes: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            entries: AtomicU64::new(0),
        });
        let writer = Writer::new(shared.clone(), spares.start(&blocking), offset);
        // One place: a wake-up that waits serves everything queued before it is taken.
        let wake = blocking.worker("raft-log", (1, 1), Some(writer), |writer, _| Writer::run(writer));
        Ok(Self { handle: Arc::new(Handle { shared, wake }) })
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    /// Which log store this is.
    pub fn incarnation(&self) -> Incarnation {
        self.shared().incarnation
    }

    /// The log of a group; a new one is empty and leaves no trace until something is written.
    pub fn group(&self, id: GroupId) -> GroupLog {
        let new = || Arc::new(Group::new(id, State::default()));
        let group = self.shared().groups().entry(id).or_insert_with(new).clone();
        GroupLog::new(self.handle.clone(), group)
    }

    /// The groups of which something is stored, in order of their ids.
    pub fn groups(&self) -> Vec<GroupId> {
        let groups = self.shared().all_groups();
        groups.iter().filter(|group| !group.state().written.is_blank()).map(|group| group.id).collect()
    }

    /// Removes all of a group, durably. Handles to its log give [`LogError::Removed`] from now on.
    ///
    /// # Errors
    /// [`LogError::Failed`], [`LogError::Closed`].
    pub async fn remove_group(&self, id: GroupId) -> Result<(), LogError> {
        let Some(group) = self.shared().groups().get(&id).cloned() else {
            return Ok(());
        };
        let (done, answer) = oneshot::channel();
        {
            let mut state = group.state();
            if state.check_not_removed(id).is_err() {
                return Ok(());
            }
            self.handle.push(Job::Remove { group: group.clone(), done })?;
            state.remove();
        }
        answer.await.unwrap_or(Err(LogError::Closed))
    }

    /// Resolves when a write or flush has failed: the node must end, and says why.
    pub fn failed(&self) -> impl Future<Output = Failure> + Send + 'static {
        let mut failed = self.shared().failed.subscribe();
        async move {
            let failure = match failed.wait_for(Option::is_some).await {
                Ok(failure) => failure.clone(),
                // The store is gone without a failure, so there never will be one.
                Err(_) => None,
            };
            match failure {
                Some(failure) => failure,
                None => std::future::pending().await,
            }
        }
    }

    /// Bytes of all files of the store, those waiting for reuse included.
    pub fn bytes_on_disk(&self) -> u64 {
        let segments: u64 = self.shared().segments().values().map(|segment| segment.bytes).sum();
        segments + self.shared().spares.bytes()
    }

    /// Bytes of entries that wait for the writer or are being written.
    pub fn pending_bytes(&self) -> usize {
        self.handle.shared.queue.reserved_bytes()
    }

    /// What was written since the store was opened.
    pub fn statistics(&self) -> Statistics {
        let shared = self.shared();
        Statistics {
            flushes: shared.flushes.load(Ordering::Relaxed),
            bytes: shared.bytes.load(Ordering::Relaxed),
            entries: shared.entries.load(Ordering::Relaxed),
        }
    }

    /// Refuses new work, makes durable what waits, and ends the writer. The files are closed when this
    /// returns, but for reads under way.
    ///
    /// # Errors
    /// [`LogError::Failed`] when the store failed, then or before.
    pub async fn close(&self) -> Result<(), LogError> {
        let (closing, closed) = oneshot::channel();
        self.shared().queue.close(closing);
        self.handle.wake();
        // An error means that the writer was gone before.
        let _ = closed.await;
        match &*self.shared().failed.borrow() {
            Some(failure) => Err(LogError::Failed(failure.clone())),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for LogStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogStore")
            .field("folder", &self.shared().folder)
            .field("incarnation", &self.incarnation())
            .finish_non_exhaustive()
    }
}

/// Begins a segment: takes a spare file or makes one, and writes header and checkpoint. All of it,
/// and the file's name, is durable when this returns. Gives the offset after the checkpoint.
pub(super) fn begin_segment(
    folder: &std::path::Path,
    spares: &Spares,
    (sequence, incarnation): (u64, Incarnation),
    checkpoint: &mut [u8],
    bytes_min: u64,
) -> Result<(Segment, u64), LogError> {
    let path = segment::path(folder, sequence);
    let needed = segment::DATA_START + checkpoint.len() as u64 + bytes_min;
    let (file, bytes) = if needed <= spares.file_bytes() {
        let spare = spares.take().map_or_else(|| spares.create(), Ok)?;
        std::fs::rename(&spare.path, &path).map_err(LogError::io("rename", &spare.path))?;
        (spare.file, spares.file_bytes())
    } else {
        (segment::create_zeroed(&path, needed).map_err(LogError::io("create", &path))?, needed)
    };
    let header = segment::Header { incarnation: *incarnation.as_bytes(), salt: rand::random() };
    let segment = Segment::new(folder, sequence, file, bytes, &header);
    record::seal_batch(checkpoint, segment.salt, segment.seed, segment::DATA_START);
    segment::write_header(&segment.file, sequence, &header)
        .and_then(|()| segment.write(checkpoint, segment::DATA_START))
        .and_then(|()| segment.file.sync_data())
        .map_err(LogError::io("write", &segment.path))?;
    segment::sync_folder(folder)?;
    Ok((segment, segment::DATA_START + checkpoint.len() as u64))
}

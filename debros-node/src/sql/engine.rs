//! The state machine of a database's group: SQLite behind a worker of its own.
//!
//! ```text
//! raft -> Engine::apply -> worker (owns the writer: one transaction per batch) -> outcomes
//! Database::query -> reader pool, through the blocking seam
//! ```
//!
//! The worker is the only one that writes, so nothing in here locks across a write. A fault is
//! given to raft, which stops the replica; nothing of the batch was kept then.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use debros_proto::{ErrorCode, Failure, limits, v1};
use debros_sqlite::{
    Batch, BatchEntry, EntryEnvironment, EntryOutcome, Fault, Generations, Options, PageStatistics,
    PoolError, Reader, ReaderPool, Writer, inspect_snapshot,
};
use prost::Message;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::Instant;

use super::metrics::SqlMetrics;
use super::watchers::{Changes, Recorder};
use super::{convert, registers};
use crate::blocking::{Blocking, Jobs};
use crate::metrics::Stopwatch;
use crate::raft::{CommittedCommand, Engine, EngineFault, Position};

/// Batches waiting for the writer: openraft hands over one at a time.
const JOBS_MAX: usize = 64;
/// A database that is written to looks at its files this often.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Connections for reads of one database.
const READERS: usize = 4;

/// A database's engine.
pub struct SqlEngine {
    jobs: Jobs<Job>,
    readers: Readers,
    reading: Semaphore,
    blocking: Blocking,
    size: Arc<Size>,
    changes: Changes,
}

/// What the worker tells of the database's size.
#[derive(Default)]
struct Size {
    bytes: AtomicU64,
    bytes_max: AtomicU64,
    wal_bytes: AtomicU64,
    pages: AtomicU64,
    free_pages: AtomicU64,
}

/// What is told of a database's files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Bytes of the database, without what is only in the write-ahead log.
    pub bytes: u64,
    /// Bytes of the write-ahead log; it is kept and written over.
    pub wal_bytes: u64,
    /// Pages.
    pub pages: u64,
    /// Pages among them that hold nothing.
    pub free_pages: u64,
}

/// The pool over the current generation's file; replaced when a snapshot is installed.
type Readers = Arc<RwLock<ReaderPool>>;

type Reply<T> = oneshot::Sender<Result<T, EngineFault>>;

enum Job {
    Apply { batch: Vec<CommittedCommand>, position: Position, reply: Reply<Vec<Bytes>> },
    Position(Reply<Position>),
    MakeDurable(Reply<Position>),
    CopyTo(PathBuf, Reply<Position>),
    Install(PathBuf, Position, Reply<()>),
}

/// Opens engines, all with the same options.
pub struct SqlEngines {
    metrics: SqlMetrics,
    options: Options,
    blocking: Blocking,
    failed: watch::Sender<Option<FailedFlush>>,
}

/// A database could not be flushed to the disk: what it holds is unknown from now on, and the node must end.
#[derive(Clone, Debug, thiserror::Error)]
#[error("a database could not be flushed to the disk: {0}")]
pub struct FailedFlush(String);

impl SqlEngines {
    /// Engines whose work goes through this seam.
    pub fn new(blocking: Blocking, metrics: SqlMetrics) -> Self {
        Self { metrics, options: options(), blocking, failed: watch::Sender::new(None) }
    }

    /// Resolves when a flush of any database has failed.
    pub fn failed(&self) -> impl Future<Output = FailedFlush> + Send + use<> {
        let mut failed = self.failed.subscribe();
        async move {
            match failed.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone()) {
                Some(failure) => failure,
                // The engines are gone without one.
                None => std::future::pending().await,
            }
        }
    }

    /// Opens the database in a folder, or makes a new one.
    ///
    /// # Errors
    /// When the folder cannot be used, or what is in it is not a database of ours.
    pub async fn open(&self, folder: PathBuf) -> Result<Arc<SqlEngine>, EngineFault> {
        let (options, failed, metrics) = (self.options.clone(), self.failed.clone(), self.metrics.clone());
        let worker = self.blocking.run(move || Worker::open(folder, options, failed, metrics)).await;
        let worker = worker.map_err(|fault| EngineFault::new("open the database", fault))?;
        let (readers, size) = (worker.readers.clone(), worker.size.clone());
        let changes = worker.recorder.changes();
        let jobs = self.blocking.worker("sql", (JOBS_MAX, JOBS_MAX), worker, |worker, jobs| {
            jobs.drain(..).for_each(|job| worker.handle(job));
            true
        });
        let reading = Semaphore::new(READERS);
        Ok(Arc::new(SqlEngine { jobs, readers, reading, blocking: self.blocking.clone(), size, changes }))
    }
}

/// The platform's limits, where they decide what a write gives; equal on every node of a version.
fn options() -> Options {
    let milliseconds = |duration: Duration| duration.as_millis() as u64;
    Options {
        value_bytes_max: limits::VALUE_BYTES_MAX,
        statement_bytes_max: limits::STATEMENT_BYTES_MAX,
        parameters_max: limits::PARAMETERS_MAX,
        result_rows_max: limits::RESULT_ROWS_MAX,
        result_bytes_max: limits::RESPONSE_BYTES_MAX,
        log_time_step_max_ms: milliseconds(limits::LOG_TIME_STEP_MAX),
        sessions_max: limits::SESSIONS_MAX,
        session_results_max: limits::SESSION_RESULTS_MAX as u64,
        session_result_bytes_max: limits::SESSION_RESULT_BYTES_MAX,
        session_lifetime_max_ms: milliseconds(limits::SESSION_LIFETIME),
        leases_max: limits::LEASES_MAX,
        registers_per_lease_max: limits::REGISTERS_PER_LEASE_MAX,
        leases_ended_per_entry_max: limits::LEASES_ENDED_PER_ENTRY_MAX,
        conflict_value_bytes_max: limits::CONFLICT_VALUE_BYTES_MAX,
        ..Options::default()
    }
}

impl SqlEngine {
    /// Bytes of the database on disk, as of its last look at them.
    pub fn bytes(&self) -> u64 {
        self.size.bytes.load(Ordering::Relaxed)
    }

    /// How its files are, as of its last look at them: up to a second before its last write.
    pub fn files(&self) -> Files {
        let Size { bytes, bytes_max: _, wal_bytes, pages, free_pages } = &*self.size;
        Files {
            bytes: bytes.load(Ordering::Relaxed),
            wal_bytes: wal_bytes.load(Ordering::Relaxed),
            pages: pages.load(Ordering::Relaxed),
            free_pages: free_pages.load(Ordering::Relaxed),
        }
    }

    /// What the database may grow to, as its log says; 0 is no limit.
    pub(super) fn bytes_max(&self) -> u64 {
        self.size.bytes_max.load(Ordering::Relaxed)
    }

    /// Reads. A statement that fails is a result; only trouble of this node is an error.
    ///
    /// # Errors
    /// `INTERNAL` for trouble of this node.
    pub(super) async fn read(
        &self,
        statements: Vec<v1::Statement>,
        unix_ms: u64,
        deadline: Instant,
    ) -> Result<Vec<v1::StatementResult>, Failure> {
        let environment = EntryEnvironment { unix_ms, seed: rand::random(), step_budget: 0 };
        self.with_reader(deadline, move |reader, left| {
            let statements: Vec<_> = statements.into_iter().map(convert::statement).collect();
            let started = std::time::Instant::now();
            let read = reader.query(&statements, &environment, &|| started.elapsed() > left)?;
            Ok(read.outcomes.into_iter().map(convert::result).collect())
        })
        .await
    }

    /// What this replica remembers of changed registers.
    pub(super) fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Runs a read on a reader of the pool.
    ///
    /// # Errors
    /// `BUSY` when there is none in time, `INTERNAL` for trouble of this node.
    pub(super) async fn with_reader<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&mut Reader, Duration) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Failure> {
        let permit = tokio::time::timeout_at(deadline, self.reading.acquire()).await;
        let _permit =
            permit.map_err(|_| Failure::new(ErrorCode::Busy, "all readers of the database are busy"))?;
        let pool = self.readers.read().expect("not poisoned").clone();
        let left = deadline.saturating_duration_since(Instant::now()).min(limits::READ_TIMEOUT);
        let read = self.blocking.run(move || work(&mut *pool.take()?, left).map_err(PoolError::from)).await;
        read.map_err(|error| match error {
            PoolError::Busy(_) => Failure::new(ErrorCode::Busy, error.to_string()),
            PoolError::Fault(fault) => {
                Failure::new(ErrorCode::Internal, format!("the read failed on this node: {fault}"))
            }
        })
    }

    async fn ask<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, EngineFault> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).await.map_err(|stopped| EngineFault::new("reach the writer", stopped))?;
        answer.await.map_err(|gone| EngineFault::new("hear from the writer", gone))?
    }
}

#[async_trait]
impl Engine for SqlEngine {
    async fn position(&self) -> Result<Position, EngineFault> {
        self.ask(Job::Position).await
    }

    async fn apply(
        &self,
        batch: Vec<CommittedCommand>,
        position: Position,
    ) -> Result<Vec<Bytes>, EngineFault> {
        self.ask(|reply| Job::Apply { batch, position, reply }).await
    }

    async fn make_durable(&self) -> Result<Position, EngineFault> {
        self.ask(Job::MakeDurable).await
    }

    async fn copy_to(&self, file: &Path) -> Result<Position, EngineFault> {
        self.ask(|reply| Job::CopyTo(file.to_owned(), reply)).await
    }

    async fn install(&self, file: &Path, position: Position) -> Result<(), EngineFault> {
        self.ask(|reply| Job::Install(file.to_owned(), position, reply)).await
    }
}

struct Worker {
    generations: Generations,
    options: Options,
    /// `None` after a replacement of the database that failed halfway: the replica is opened again.
    writer: Option<Writer>,
    durable: Position,
    readers: Readers,
    size: Arc<Size>,
    recorder: Recorder,
    failed: watch::Sender<Option<FailedFlush>>,
    metrics: SqlMetrics,
    looked: Instant,
}

impl Worker {
    fn open(
        folder: PathBuf,
        options: Options,
        failed: watch::Sender<Option<FailedFlush>>,
        metrics: SqlMetrics,
    ) -> Result<Self, Fault> {
        let generations = Generations::open(folder)?;
        let path = generations.database_path();
        let mut writer = Writer::open(&path, options.clone())?;
        let recorder = Recorder::default();
        restart(&recorder, &mut writer)?;
        let readers = Arc::new(RwLock::new(ReaderPool::new(path, options.clone(), READERS)));
        let size = Arc::new(Size::default());
        size.bytes_max.store(writer.max_bytes(), Ordering::Relaxed);
        let (writer, durable, looked) = (Some(writer), Position::default(), Instant::now());
        let mut worker =
            Self { generations, options, writer, durable, readers, size, recorder, failed, metrics, looked };
        worker.look();
        Ok(worker)
    }

    /// Nobody waits any more where the replica was closed, so answers may go nowhere.
    fn handle(&mut self, job: Job) {
        match job {
            Job::Apply { batch, position, reply } => drop(reply.send(self.apply(batch, &position))),
            Job::Position(reply) => {
                drop(reply.send(self.writer("read the position").map(|writer| position(writer))))
            }
            Job::MakeDurable(reply) => drop(reply.send(self.make_durable())),
            Job::CopyTo(file, reply) => drop(reply.send(self.copy_to(&file))),
            Job::Install(file, position, reply) => drop(reply.send(self.install(&file, position))),
        }
    }

    fn writer(&mut self, doing: &str) -> Result<&mut Writer, EngineFault> {
        self.writer
            .as_mut()
            .ok_or_else(|| EngineFault::new(doing, "the database was being replaced when it failed"))
    }

    fn apply(
        &mut self,
        batch: Vec<CommittedCommand>,
        position: &Position,
    ) -> Result<Vec<Bytes>, EngineFault> {
        let writer = self.writer("apply")?;
        let applied_index =
            position.index().map_err(|error| EngineFault::new("read the log's position", error))?;
        let mut answers = vec![Bytes::new(); batch.len()];
        let mut places = Vec::with_capacity(batch.len());
        let mut entries: Vec<BatchEntry> = Vec::with_capacity(batch.len());
        for (place, CommittedCommand { index, command }) in batch.into_iter().enumerate() {
            if let Some(entry) = convert::entry(index, command) {
                places.push(place);
                entries.push(entry);
            }
        }
        let encode = |outcome: &EntryOutcome| convert::outcome(outcome.clone()).encode_to_vec();
        let batch = Batch { entries: &entries, applied_index, bookkeeping: &position.0 };
        let failed = |fault| EngineFault::new("apply committed writes", fault);
        let stopwatch = Stopwatch::start();
        let applied = writer.apply_batch(batch, &encode).map_err(failed)?;
        let now = Instant::now();
        let (bytes_max, revision) = (writer.max_bytes(), writer.revision());
        let leases = (writer.next_lease_due_ms().map_err(failed)?, writer.lease_time());
        self.size.bytes_max.store(bytes_max, Ordering::Relaxed);
        let mut changes = Vec::new();
        for (place, applied) in places.into_iter().zip(applied) {
            changes.extend(applied.changes.into_iter().map(registers::change));
            answers[place] = match (applied.encoded, applied.outcome) {
                (Some(encoded), _) | (None, EntryOutcome::Repeated(Some(encoded))) => encoded.into(),
                (None, outcome) => convert::outcome(outcome).encode_to_vec().into(),
            };
        }
        self.recorder.record(revision, leases, changes);
        self.metrics.applied(stopwatch.until(now));
        if now - self.looked >= LOOK_INTERVAL {
            self.look();
        }
        Ok(answers)
    }

    /// Looks at the files, for whoever asks how large they are.
    fn look(&mut self) {
        self.looked = Instant::now();
        let Some(writer) = &mut self.writer else { return };
        match writer.page_statistics() {
            Ok(PageStatistics { pages, free, cache }) => {
                self.size.pages.store(pages, Ordering::Relaxed);
                self.size.free_pages.store(free, Ordering::Relaxed);
                self.metrics.accessed(cache);
            }
            Err(fault) => tracing::warn!(%fault, "the size of a database cannot be told"),
        }
        let path = self.generations.database_path();
        let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        self.size.bytes.store(bytes(&path), Ordering::Relaxed);
        let mut wal = path.into_os_string();
        wal.push("-wal");
        self.size.wal_bytes.store(bytes(wal.as_ref()), Ordering::Relaxed);
    }

    fn make_durable(&mut self) -> Result<Position, EngineFault> {
        let writer = self.writer("checkpoint")?;
        // Read before the checkpoint: what is applied while it runs is not in it.
        let position = position(writer);
        let stopwatch = Stopwatch::start();
        let complete = writer.checkpoint().map_err(|fault| self.heed("checkpoint the database", fault))?;
        self.metrics.checkpointed(stopwatch.took());
        if complete.is_some() {
            self.durable = position;
            self.look();
        }
        Ok(self.durable.clone())
    }

    /// Ends the node where the fault leaves no way on; the replica in any case.
    fn heed(&self, doing: &str, fault: Fault) -> EngineFault {
        if fault.is_failed_flush() {
            self.failed.send_replace(Some(FailedFlush(fault.to_string())));
        }
        EngineFault::new(doing, fault)
    }

    fn copy_to(&mut self, file: &Path) -> Result<Position, EngineFault> {
        let writer = self.writer("copy")?;
        let info = writer.snapshot_to(file).map_err(|fault| EngineFault::new("copy the database", fault))?;
        Ok(Position(info.bookkeeping.into()))
    }

    fn install(&mut self, file: &Path, position: Position) -> Result<(), EngineFault> {
        let failed = |fault: Fault| EngineFault::new("install a received database", fault);
        let found = inspect_snapshot(file).map_err(failed)?;
        if found.bookkeeping != position.0[..] {
            let reason =
                format!("it holds the state at index {}, not the announced one", found.applied_index);
            return Err(EngineFault::new("install a received database", reason));
        }
        let incoming = self.generations.prepare().map_err(failed)?;
        move_file(file, incoming.path())
            .map_err(|error| EngineFault::new("move a received database into place", error))?;
        self.writer = None;
        self.generations.install(incoming).map_err(failed)?;
        let path = self.generations.database_path();
        let mut writer = Writer::open(&path, self.options.clone()).map_err(failed)?;
        restart(&self.recorder, &mut writer).map_err(failed)?;
        self.writer = Some(writer);
        *self.readers.write().expect("not poisoned") = ReaderPool::new(path, self.options.clone(), READERS);
        self.generations.remove_others().map_err(failed)?;
        self.durable = position;
        Ok(())
    }
}

/// Nothing is known of how the database became what it is.
fn restart(recorder: &Recorder, writer: &mut Writer) -> Result<(), Fault> {
    let leases = (writer.next_lease_due_ms()?, writer.lease_time());
    recorder.restart(writer.revision(), leases);
    Ok(())
}

fn position(writer: &Writer) -> Position {
    Position(Bytes::copy_from_slice(writer.bookkeeping()))
}

/// Moves a file, also to another file system.
fn move_file(from: &Path, to: &Path) -> std::io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
            std::fs::copy(from, to).map(|_| ())
        }
        moved => moved,
    }
}

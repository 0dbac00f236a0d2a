//! Writing: one version, at a quorum of every placement in force.
//!
//! A version is stamped above what the client has seen and sent to all replicas. A replica that holds a
//! newer one says so; then the write is stamped again above it, once: whatever is newer still was written
//! at the same time, and to be superseded by it is as good as being stored. Replicas that were absent get
//! what they missed later ([`super::hints`]); that never counts towards the quorum.
//!
//! The reading half is in [`super::read`] and [`super::list`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytes::Bytes;
use debros_proto::layout::{Placement, majority, partition_of};
use debros_proto::{ErrorCode, Failure, NodeId, v1};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use v1::replica_call::Operation;
use v1::replica_reply::Outcome;

use super::asks::Asks;
use super::budget::Budget;
use super::clock::VersionClock;
use super::layouts::{Layouts, View};
use super::links::{Links, NoAnswer};
use super::metrics::KvMetrics;
use super::record::{Entry, Record, Version};
use super::replica::Replica;
use crate::planted::{Bug, is_planted};
use crate::trace::{self, SpanKind};

/// How many replicas of each placement must have answered.
pub use v1::Quorum;

pub(super) fn needed(quorum: Quorum, placement: &Placement) -> usize {
    match quorum {
        Quorum::One => 1,
        Quorum::Unspecified | Quorum::Majority => majority(placement.replicas()),
        Quorum::All => placement.replicas(),
    }
}

/// Carries out requests on behalf of clients. Cheap to clone.
#[derive(Clone)]
pub(super) struct Coordinator {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) node: NodeId,
    pub(super) replica: Replica,
    pub(super) clock: Arc<VersionClock>,
    pub(super) layouts: Layouts,
    pub(super) links: Links,
    pub(super) tracker: TaskTracker,
    pub(super) metrics: KvMetrics,
    /// Where reads begin, so that they spread over the replicas.
    pub(super) turn: AtomicUsize,
    /// Namespaces whose writes are acknowledged before they are flushed.
    pub(super) relaxed: BTreeSet<String>,
    /// The memory for listings.
    pub(super) lists: Budget,
}

impl Inner {
    fn is_relaxed(&self, namespace: &str) -> bool {
        self.relaxed.contains(namespace)
    }
}

/// What is to be written.
#[derive(Clone, Debug)]
pub struct Write {
    /// Whose key.
    pub namespace: String,
    /// The key.
    pub key: String,
    /// The value; `None` deletes.
    pub value: Option<Bytes>,
    /// The value is gone after this.
    pub ttl: Option<Duration>,
    /// How many replicas must have it.
    pub quorum: Quorum,
    /// The highest clock that the client has seen.
    pub seen_clock: u64,
    /// When the client gives up.
    pub deadline: Instant,
}

/// What one replica said to a write.
enum Said {
    Stored,
    Superseded(Version),
    /// It may have forgotten newer versions up to this clock.
    Collected(u64),
    No(NoAnswer),
}

/// How one round over the replicas ended.
enum Round {
    Done,
    /// A quorum answered, and knows of this clock.
    Restamp(u64),
    /// A replica knows a newer layout.
    NewerLayout,
    /// Replicas have not adopted the layout yet.
    Behind,
    /// Too few replicas answered.
    TooFew,
}

impl Coordinator {
    /// Writes or deletes a key.
    ///
    /// # Errors
    /// Says whether the write may have been applied.
    pub(super) async fn write(&self, write: Write) -> Result<Version, Failure> {
        let partition = partition_of(&write.namespace, &write.key);
        let mut course = Course { seen: write.seen_clock, restamped: false, touched: false, full: None };
        loop {
            let view = self.inner.layouts.current()?;
            let others = view.peers().len() - usize::from(view.peers().contains_key(&self.inner.node));
            let stamped = self.inner.clock.check(others).and_then(|()| self.inner.clock.stamp(course.seen));
            let version = stamped.map_err(|failure| course.failed(failure))?;
            let entry = Entry {
                partition,
                namespace: write.namespace.clone(),
                key: write.key.clone(),
                record: self.record(&write, version),
            };
            let round = self.round(&view, entry, write.quorum, &mut course);
            let round = tokio::time::timeout_at(write.deadline, round).await;
            // Whoever was asked and did not answer in time may have stored it.
            course.touched |= round.is_err();
            match round.unwrap_or(Round::TooFew) {
                Round::Done => return Ok(version),
                Round::Restamp(clock) => {
                    self.inner.metrics.restamped();
                    course.seen = course.seen.max(clock);
                    course.restamped = true;
                }
                Round::NewerLayout => {
                    self.inner.layouts.newer_than(view.version(), write.deadline).await;
                }
                Round::Behind => tokio::time::sleep(super::read::BEHIND_PAUSE).await,
                Round::TooFew => {
                    let failure = course.full.take().unwrap_or_else(|| too_few(&view, partition));
                    return Err(course.failed(failure));
                }
            }
            if Instant::now() >= write.deadline {
                return Err(course.failed(too_few(&view, partition)));
            }
        }
    }

    fn record(&self, write: &Write, version: Version) -> Record {
        match &write.value {
            None => Record::tombstone(version),
            Some(value) => Record {
                version,
                expires_unix_ms: write.ttl.map_or(0, |ttl| {
                    let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
                    super::clock::unix_ms_of(version.clock).saturating_add(ttl)
                }),
                tombstone: false,
                value: value.clone(),
            },
        }
    }

    async fn round(&self, view: &Arc<View>, entry: Entry, quorum: Quorum, course: &mut Course) -> Round {
        let partition = entry.partition;
        let mut tally = Tally::new(view, partition, quorum, course.restamped);
        let mut absent = Vec::new();
        let mut asks = Asks::new();
        for node in view.writers_of(partition) {
            asks.push(self.ask_write(view.clone(), node, entry.clone()));
        }
        let mut behind = false;
        while let Some((node, said)) = asks.next().await {
            course.touched |= match &said {
                Said::Stored => true,
                Said::Superseded(_) | Said::Collected(_) => false,
                Said::No(no) => no.maybe_applied(),
            };
            match &said {
                Said::No(NoAnswer::NewerLayout(layout)) => {
                    self.inner.layouts.learn((**layout).clone());
                    course.touched |= !asks.is_empty();
                    return Round::NewerLayout;
                }
                Said::No(no) => {
                    behind |= no.is_behind();
                    course.full = no.no_room().or(course.full.take());
                    absent.push(node);
                    if is_planted(Bug::HintCountsTowardsQuorum) {
                        tally.answered(view, partition, node, &Said::Stored);
                    }
                }
                _ => {}
            }
            tally.answered(view, partition, node, &said);
            if tally.is_acknowledged() {
                self.look_after(entry, asks, absent);
                return Round::Done;
            }
            if let Some(clock) = tally.must_restamp() {
                course.touched |= !asks.is_empty();
                return Round::Restamp(clock);
            }
        }
        if behind { Round::Behind } else { Round::TooFew }
    }

    fn ask_write(
        &self,
        view: Arc<View>,
        node: NodeId,
        entry: Entry,
    ) -> impl Future<Output = (NodeId, Said)> + Send + use<> {
        let coordinator = self.clone();
        async move {
            let version = entry.record.version;
            let outcome = coordinator.write_at(&view, node, entry).await;
            (node, said(version, outcome))
        }
    }

    async fn write_at(&self, view: &View, node: NodeId, entry: Entry) -> Result<Outcome, NoAnswer> {
        if node == self.inner.node {
            let relaxed = self.inner.is_relaxed(&entry.namespace);
            let _part = trace::child("own replica", SpanKind::Internal);
            return local(self.inner.replica.write(view.version(), relaxed, entry).await);
        }
        let peer = view.peer(node).ok_or(NoAnswer::NotAsked)?;
        let Entry { partition, namespace, key, record } = entry;
        let relaxed = self.inner.is_relaxed(&namespace);
        let write = v1::ReplicaWrite {
            partition: u32::from(partition),
            namespace,
            key,
            record: Some(record.into_wire()),
            relaxed,
        };
        self.inner.links.ask(peer, view.version(), Operation::Write(write)).await
    }

    /// Waits for the replicas that have not answered yet, and keeps what the absent ones miss.
    fn look_after<A>(&self, entry: Entry, mut asks: Asks<A>, mut absent: Vec<NodeId>)
    where
        A: Future<Output = (NodeId, Said)> + Send + 'static,
    {
        if asks.is_empty() && absent.is_empty() {
            return;
        }
        let coordinator = self.clone();
        self.inner.tracker.spawn(async move {
            while let Some((node, said)) = asks.next().await {
                if matches!(said, Said::No(_)) {
                    absent.push(node);
                }
            }
            for node in absent {
                coordinator.keep_hint(node, entry.clone()).await;
            }
        });
    }

    async fn keep_hint(&self, node: NodeId, entry: Entry) {
        // What this node itself refused it will not take from itself either.
        if node == self.inner.node {
            return;
        }
        match self.inner.replica.store().hint(node, entry, self.inner.clock.unix_ms()).await {
            Ok(true) => self.inner.metrics.hint_kept(),
            Ok(false) => self.inner.metrics.hints_dropped(1),
            Err(error) => tracing::debug!(%error, "a hint could not be kept"),
        }
    }
}

/// What is remembered between the rounds of one write.
struct Course {
    seen: u64,
    /// The write is stamped above all that was acknowledged before it began.
    restamped: bool,
    /// A replica may have stored it.
    touched: bool,
    /// A replica has no room for it.
    full: Option<Failure>,
}

impl Course {
    fn failed(&self, failure: Failure) -> Failure {
        if self.touched { failure.maybe_applied() } else { failure }
    }
}

fn said(version: Version, outcome: Result<Outcome, NoAnswer>) -> Said {
    match outcome {
        Ok(Outcome::Written(v1::ReplicaWritten { holds, collected_to })) => match holds.map(Version::from) {
            _ if collected_to != 0 => Said::Collected(collected_to),
            Some(holds) if holds > version => Said::Superseded(holds),
            Some(_) => Said::Stored,
            None => Said::No(NoAnswer::Unknown),
        },
        Ok(_) => Said::No(NoAnswer::Unknown),
        Err(no) => Said::No(no),
    }
}

/// The answer of this node's own replica.
pub(super) fn local(outcome: Outcome) -> Result<Outcome, NoAnswer> {
    match outcome {
        Outcome::Failure(failure) => Err(NoAnswer::Refused(Failure::from_call(failure))),
        Outcome::NewerLayout(layout) => Err(NoAnswer::NewerLayout(Box::new(layout))),
        outcome => Ok(outcome),
    }
}

pub(super) fn too_few(view: &View, partition: u16) -> Failure {
    let replicas = view.readers().nodes_of(partition).len();
    Failure::new(
        ErrorCode::Unavailable,
        format!("too few of the key's {replicas} replicas are in reach: retry, others may be back soon"),
    )
}

/// The answers to one round, counted for each placement.
struct Tally {
    placements: Vec<Count>,
    superseded_counts: bool,
    newest: u64,
}

#[derive(Clone, Copy)]
struct Count {
    needed: usize,
    stored: usize,
    answered: usize,
}

impl Tally {
    fn new(view: &View, partition: u16, quorum: Quorum, superseded_counts: bool) -> Self {
        let count = |placement: &Placement| Count {
            needed: needed(quorum, placement).min(placement.nodes_of(partition).len()),
            stored: 0,
            answered: 0,
        };
        Self { placements: view.writers().map(count).collect(), superseded_counts, newest: 0 }
    }

    fn answered(&mut self, view: &View, partition: u16, node: NodeId, said: &Said) {
        let stored = match said {
            Said::Stored => true,
            Said::Superseded(version) => {
                self.newest = self.newest.max(version.clock);
                self.superseded_counts
            }
            Said::Collected(clock) => {
                self.newest = self.newest.max(*clock);
                false
            }
            Said::No(_) => return,
        };
        for (count, placement) in self.placements.iter_mut().zip(view.writers()) {
            if placement.holds(node, partition) {
                count.answered += 1;
                count.stored += usize::from(stored);
            }
        }
    }

    fn is_acknowledged(&self) -> bool {
        self.placements.iter().all(|count| count.stored >= count.needed)
    }

    /// The clock to stamp above, once so many have answered that nothing acknowledged earlier is missed.
    fn must_restamp(&self) -> Option<u64> {
        let enough = self.placements.iter().all(|count| count.answered >= count.needed);
        (enough && self.newest > 0).then_some(self.newest)
    }
}

//! What this node remembers of the messages it took in as their origin, bounded by bytes and by time.
//! Links read it from where their destination stands, and clients that moved ask it for what they missed.
//!
//! Invariant: sequences grow by one with every message, over all namespaces, and entries are in their order.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use debros_proto::NodeId;
use debros_proto::packed::RunHead;
use tokio::time::Instant;

/// What an entry costs beside its messages and segments.
const ENTRY_BYTES: usize = 192;
/// What a segment costs.
const SEGMENT_BYTES: usize = 64;
/// Links stand near the newest entry: these are looked at before the ring is searched.
const LOOKED_BACK: usize = 8;

/// Messages of one batch that go to the same nodes.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    /// Where in the entry's messages.
    pub(super) from: usize,
    /// Where it ends.
    pub(super) to: usize,
    /// The first message of the batch.
    pub(super) index: u32,
    /// How many.
    pub(super) count: u32,
    /// Whom it goes to.
    pub(super) to_nodes: Nodes,
}

/// Whom messages go to.
#[derive(Clone, Debug)]
pub(super) enum Nodes {
    /// Every node with a subscription of its own.
    All(Arc<[NodeId]>),
    /// The one node that was chosen for a queue group.
    One(NodeId, Arc<str>),
}

impl Nodes {
    /// Whether a node is among them.
    pub(super) fn contains(&self, node: NodeId) -> bool {
        match self {
            Self::All(nodes) => nodes.contains(&node),
            Self::One(one, _) => *one == node,
        }
    }

    /// The queue group, if it is for one.
    pub(super) fn group(&self) -> &str {
        match self {
            Self::All(_) => "",
            Self::One(_, group) => group,
        }
    }
}

/// What is to be remembered.
#[derive(Debug)]
pub(super) struct Batch {
    /// Of its first message; the sequence is the next one of the ring.
    pub(super) head: RunHead,
    pub(super) namespace: Arc<str>,
    pub(super) messages: Bytes,
    pub(super) segments: Vec<Segment>,
    /// Somebody waits until the nodes have it.
    pub(super) confirm: bool,
    /// It is for its destinations alone, not for those who ask later.
    pub(super) hidden: bool,
}

/// A batch in the ring.
#[derive(Debug)]
pub(super) struct Entry {
    batch: Batch,
    /// Bytes that were ever added, up to the end of this one.
    pub(super) offset: u64,
    at: Instant,
}

impl Deref for Entry {
    type Target = Batch;

    fn deref(&self) -> &Batch {
        &self.batch
    }
}

impl Entry {
    /// The sequence of its last message.
    pub(super) fn last(&self) -> u64 {
        self.head.sequence + u64::from(self.head.count) - 1
    }

    fn bytes(&self) -> usize {
        self.messages.len() + ENTRY_BYTES + self.segments.len() * SEGMENT_BYTES
    }
}

pub(super) struct Ring {
    bytes_max: usize,
    life: Duration,
    entries: VecDeque<Entry>,
    bytes: usize,
    offset: u64,
    last: u64,
}

impl Ring {
    /// Nothing yet.
    pub(super) fn new(bytes_max: usize, life: Duration) -> Self {
        Self { bytes_max, life, entries: VecDeque::new(), bytes: 0, offset: 0, last: 0 }
    }

    /// The sequence of the last message.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Bytes that are remembered.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that were ever added.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Adds a batch behind the last message.
    pub(super) fn add(&mut self, batch: Batch) {
        debug_assert_eq!(batch.head.sequence, self.last + 1);
        let mut entry = Entry { batch, offset: 0, at: Instant::now() };
        self.last = entry.last();
        self.bytes += entry.bytes();
        self.offset += entry.bytes() as u64;
        entry.offset = self.offset;
        self.entries.push_back(entry);
    }

    /// The oldest entry, if it is past the bounds.
    pub(super) fn drop_oldest(&mut self, now: Instant) -> Option<Entry> {
        let oldest = self.entries.front()?;
        let old = now.duration_since(oldest.at) > self.life;
        if self.bytes <= self.bytes_max && !old {
            return None;
        }
        let oldest = self.entries.pop_front()?;
        self.bytes -= oldest.bytes();
        Some(oldest)
    }

    /// The entries with messages behind a sequence.
    pub(super) fn after(&self, sequence: u64) -> impl Iterator<Item = &Entry> {
        let behind = |entry: &&Entry| entry.last() > sequence;
        let near = self.entries.iter().rev().take(LOOKED_BACK).take_while(behind).count();
        let at = match near < LOOKED_BACK {
            true => self.entries.len() - near,
            false => self.entries.partition_point(|entry| entry.last() <= sequence),
        };
        self.entries.range(at..)
    }

    /// The offset behind a sequence.
    pub(super) fn offset_at(&self, sequence: u64) -> u64 {
        self.after(sequence).next().map_or(self.offset, |entry| entry.offset - entry.bytes() as u64)
    }

    /// The entry with a message.
    pub(super) fn entry_of(&self, sequence: u64) -> Option<&Entry> {
        self.after(sequence.checked_sub(1)?).next().filter(|entry| entry.head.sequence <= sequence)
    }
}

//! The latest changes, for those who listen: one ring for all of them, of a bounded size, so that a listener that
//! does not go on costs no more than one that does. It is told that it missed some, and goes on with what comes
//! then. Nothing is kept while nobody listens.

use std::collections::VecDeque;
use std::mem::size_of;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use debros_proto::limits;
use tokio::sync::watch;

use crate::kv::record::Entry;

/// Changes that were made durable together.
pub(in crate::kv) type Changes = Arc<Vec<Entry>>;

/// The writer's end. Cheap to clone.
#[derive(Clone)]
pub(super) struct ChangeRing {
    kept: Arc<Mutex<Kept>>,
    /// The number of the last batch.
    latest: watch::Sender<u64>,
}

#[derive(Default)]
struct Kept {
    batches: VecDeque<(Changes, usize)>,
    bytes: usize,
    /// The number of the last one.
    last: u64,
    listeners: usize,
}

/// Hears what happens from when it was made.
pub(in crate::kv) struct Listener {
    kept: Arc<Mutex<Kept>>,
    latest: watch::Receiver<u64>,
    /// The number of the next batch.
    next: u64,
}

/// What a listener hears.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::kv) enum Heard {
    Changes(Changes),
    /// More has happened than is kept. Whatever comes after this moment will be heard.
    Missed,
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ChangeRing {
    pub(super) fn new() -> Self {
        Self { kept: Arc::default(), latest: watch::Sender::new(0) }
    }

    /// Whether anybody listens.
    pub(super) fn is_heard(&self) -> bool {
        self.latest.receiver_count() > 0
    }

    pub(super) fn tell(&self, changed: Vec<Entry>) {
        let mut kept = lock(&self.kept);
        kept.last += 1;
        if kept.listeners == 0 {
            return;
        }
        let bytes = changed.iter().map(bytes_of).sum();
        kept.bytes += bytes;
        kept.batches.push_back((Arc::new(changed), bytes));
        while kept.batches.len() > limits::WATCH_EVENTS_MAX
            || (kept.bytes > limits::WATCH_RING_BYTES_MAX && kept.batches.len() > 1)
        {
            let oldest = kept.batches.pop_front();
            kept.bytes -= oldest.map_or(0, |(_, bytes)| bytes);
        }
        self.latest.send_replace(kept.last);
    }

    pub(super) fn listen(&self) -> Listener {
        let mut kept = lock(&self.kept);
        kept.listeners += 1;
        Listener { kept: self.kept.clone(), latest: self.latest.subscribe(), next: kept.last + 1 }
    }
}

fn bytes_of(entry: &Entry) -> usize {
    size_of::<Entry>() + entry.namespace.len() + entry.key.len() + entry.record.value.len()
}

impl Listener {
    /// The next that happens; `None` when the store has stopped.
    pub(in crate::kv) async fn next(&mut self) -> Option<Heard> {
        loop {
            if let Some(heard) = self.take() {
                return Some(heard);
            }
            self.latest.changed().await.ok()?;
        }
    }

    fn take(&mut self) -> Option<Heard> {
        let kept = lock(&self.kept);
        let oldest = kept.last + 1 - kept.batches.len() as u64;
        let Some(place) = self.next.checked_sub(oldest) else {
            self.next = kept.last + 1;
            return Some(Heard::Missed);
        };
        let (changes, _) = kept.batches.get(place as usize)?;
        self.next += 1;
        Some(Heard::Changes(changes.clone()))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut kept = lock(&self.kept);
        kept.listeners -= 1;
        // Whoever comes next begins after these.
        if kept.listeners == 0 {
            kept.batches.clear();
            kept.bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use debros_proto::limits;

    use super::{ChangeRing, Heard};
    use crate::kv::record::{Entry, Record, Version};

    fn entry(clock: u64, value_bytes: usize) -> Entry {
        let value = Bytes::from(vec![0; value_bytes]);
        let version = Version { clock, node: 1 };
        let record = Record { version, expires_unix_ms: 0, tombstone: false, value };
        Entry { partition: 1, namespace: "app".into(), key: "key".into(), record }
    }

    fn clock(heard: Option<Heard>) -> Option<u64> {
        match heard? {
            Heard::Changes(changes) => Some(changes[0].record.version.clock),
            Heard::Missed => None,
        }
    }

    #[tokio::test]
    async fn a_listener_that_stands_still_keeps_a_bounded_number_of_bytes() {
        let ring = ChangeRing::new();
        let (mut stands, mut goes_on) = (ring.listen(), ring.listen());
        for number in 0..100 {
            ring.tell(vec![entry(number, 1 << 20)]);
            assert_eq!(clock(goes_on.next().await), Some(number));
            assert!(super::lock(&ring.kept).bytes <= limits::WATCH_RING_BYTES_MAX);
        }
        assert_eq!(stands.next().await, Some(Heard::Missed));
        ring.tell(vec![entry(100, 1)]);
        assert_eq!(clock(stands.next().await), Some(100));
        // A single batch is told whatever its size.
        ring.tell(vec![entry(101, limits::WATCH_RING_BYTES_MAX + 1)]);
        assert_eq!((clock(stands.next().await), goes_on.next().await), (Some(101), Some(Heard::Missed)));
    }

    #[tokio::test]
    async fn nothing_is_kept_for_nobody_and_nothing_comes_after_the_end() {
        let ring = ChangeRing::new();
        assert!(!ring.is_heard());
        let (first, mut second) = (ring.listen(), ring.listen());
        assert!(ring.is_heard());
        ring.tell(vec![entry(1, 1)]);
        drop(first);
        assert_eq!(clock(second.next().await), Some(1));
        drop(second);
        assert!(!ring.is_heard() && super::lock(&ring.kept).batches.is_empty());
        let mut third = ring.listen();
        ring.tell(vec![entry(2, 1)]);
        drop(ring);
        assert_eq!((clock(third.next().await), third.next().await), (Some(2), None));
    }
}

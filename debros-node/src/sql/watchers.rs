//! What a replica remembers of changed registers, and those who watch it.
//!
//! ```text
//! worker, after each commit -> Recorder -> memory (bounded) <- Watcher, at its own pace
//! ```
//!
//! There is no queue per watcher: each has a place in the one memory, and one that falls out of it is told so.
//! Changes of one entry stay together, so a place is a revision: the number of an entry.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use debros_proto::{limits, v1};
use debros_sqlite::LeaseTime;
use tokio::sync::watch;

/// What is remembered.
#[derive(Default)]
struct Memory {
    changes: VecDeque<v1::RegisterChange>,
    bytes: usize,
    /// Every change after this revision is remembered.
    since: u64,
    /// Everything up to this revision has been taken in.
    revision: u64,
    leases: Leases,
}

/// The lease time at which the next lease is due, and where it stood with the last entry.
pub(super) type Leases = (Option<u64>, LeaseTime);

type Shared = Arc<Mutex<Memory>>;

/// The writing half, for the one that applies. When it goes, watchers are told of the end.
#[derive(Default)]
pub(super) struct Recorder {
    memory: Shared,
    newest: watch::Sender<u64>,
}

/// The reading half.
#[derive(Clone)]
pub(super) struct Changes {
    memory: Shared,
    newest: watch::Receiver<u64>,
}

/// A place in the memory.
pub struct Watcher {
    memory: Shared,
    newest: watch::Receiver<u64>,
    prefix: Bytes,
    after: u64,
    /// What came before can never be told.
    lost: bool,
}

fn lock(memory: &Shared) -> MutexGuard<'_, Memory> {
    memory.lock().expect("not poisoned")
}

fn bytes_of(change: &v1::RegisterChange) -> usize {
    size_of::<v1::RegisterChange>() + change.key.len() + change.value.as_ref().map_or(0, Bytes::len)
}

impl Recorder {
    /// The reading half.
    pub(super) fn changes(&self) -> Changes {
        Changes { memory: self.memory.clone(), newest: self.newest.subscribe() }
    }

    /// Takes in what a batch changed, once it is committed.
    pub(super) fn record(&self, revision: u64, leases: Leases, changes: Vec<v1::RegisterChange>) {
        let mut memory = lock(&self.memory);
        memory.revision = revision;
        memory.leases = leases;
        if changes.is_empty() {
            return;
        }
        for change in changes {
            memory.bytes += bytes_of(&change);
            memory.changes.push_back(change);
        }
        memory.forget_excess();
        drop(memory);
        self.newest.send_replace(revision);
    }

    /// Forgets everything: the state was replaced as a whole.
    pub(super) fn restart(&self, revision: u64, leases: Leases) {
        let changes = VecDeque::new();
        *lock(&self.memory) = Memory { changes, bytes: 0, since: revision, revision, leases };
        self.newest.send_replace(revision);
    }
}

impl Memory {
    /// Forgets the oldest entries, each with all its changes.
    fn forget_excess(&mut self) {
        while self.changes.len() > limits::CHANGES_REMEMBERED_MAX
            || self.bytes > limits::CHANGES_REMEMBERED_BYTES_MAX
        {
            let Some(oldest) = self.changes.front().map(|change| change.version) else { return };
            while let Some(change) = self.changes.front().filter(|change| change.version == oldest) {
                self.bytes -= bytes_of(change);
                self.changes.pop_front();
            }
            self.since = oldest;
        }
    }
}

impl Changes {
    /// A place after this revision; `None` for what comes from now on.
    pub(super) fn watch(&self, prefix: Bytes, after: Option<u64>) -> Watcher {
        let (memory, newest) = (self.memory.clone(), self.newest.clone());
        let after = after.unwrap_or_else(|| lock(&memory).revision);
        Watcher { memory, newest, prefix, after, lost: false }
    }

    /// A place for somebody who knows a state that never was here.
    pub(super) fn watch_lost(&self, prefix: Bytes) -> Watcher {
        Watcher { lost: true, ..self.watch(prefix, None) }
    }

    /// Everything up to here has been taken in.
    pub(super) fn revision(&self) -> u64 {
        lock(&self.memory).revision
    }

    /// When the next lease is due, and what time it was.
    pub(super) fn leases(&self) -> Leases {
        lock(&self.memory).leases
    }
}

impl Watcher {
    /// What has changed since the last call, perhaps nothing.
    pub fn take(&mut self) -> v1::RegisterWatchResponse {
        self.newest.mark_unchanged();
        let memory = lock(&self.memory);
        let lagged = std::mem::take(&mut self.lost) || self.after < memory.since;
        let mut changes = Vec::new();
        if !lagged {
            let begin = memory.changes.partition_point(|change| change.version <= self.after);
            let wanted = |change: &&v1::RegisterChange| change.key.starts_with(&self.prefix);
            changes.extend(memory.changes.range(begin..).filter(wanted).cloned());
        }
        self.after = self.after.max(memory.revision);
        v1::RegisterWatchResponse { changes, revision: self.after, lagged }
    }

    /// Waits for something to tell; `None` when the replica was closed. Nothing is lost when it is given up.
    pub async fn next(&mut self) -> Option<v1::RegisterWatchResponse> {
        loop {
            self.newest.changed().await.ok()?;
            let told = self.take();
            if told.lagged || !told.changes.is_empty() {
                return Some(told);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use debros_proto::{limits, v1};

    use super::{Leases, Recorder, Watcher};

    fn change(key: &str, version: u64) -> v1::RegisterChange {
        v1::RegisterChange { key: key.to_owned().into(), value: None, version, lease: 0 }
    }

    fn versions(told: &v1::RegisterWatchResponse) -> Vec<u64> {
        told.changes.iter().map(|change| change.version).collect()
    }

    fn watcher(recorder: &Recorder, after: u64) -> Watcher {
        recorder.changes().watch("a".into(), Some(after))
    }

    #[test]
    fn a_place_is_a_revision_and_goes_on_behind_it() {
        let recorder = Recorder::default();
        recorder.record(3, Leases::default(), vec![change("a1", 2), change("b", 2), change("a2", 3)]);
        let mut watcher = watcher(&recorder, 2);
        assert_eq!(versions(&watcher.take()), [3]);
        recorder.record(9, Leases::default(), Vec::new());
        let told = watcher.take();
        assert_eq!((versions(&told), told.revision, told.lagged), (vec![], 9, false));
        // A place ahead of this replica waits for it.
        let mut ahead = self::watcher(&recorder, 20);
        recorder.record(21, Leases::default(), vec![change("a", 19), change("a", 21)]);
        let told = ahead.take();
        assert_eq!((versions(&told), told.revision, told.lagged), (vec![21], 21, false));
    }

    #[test]
    fn whoever_falls_out_of_the_memory_is_told_so() {
        let recorder = Recorder::default();
        recorder.restart(10, Leases::default());
        assert!(watcher(&recorder, 9).take().lagged);
        assert!(!watcher(&recorder, 10).take().lagged);
        let mut slow = watcher(&recorder, 10);
        for version in 11..=11 + limits::CHANGES_REMEMBERED_MAX as u64 {
            recorder.record(version, Leases::default(), vec![change("a", version)]);
        }
        let told = slow.take();
        assert!(told.lagged && told.changes.is_empty());
        assert_eq!(told.revision, 11 + limits::CHANGES_REMEMBERED_MAX as u64);
        assert!(!slow.take().lagged, "it is told once");
        assert_eq!(watcher(&recorder, 11).take().changes.len(), limits::CHANGES_REMEMBERED_MAX);
    }

    #[test]
    fn changes_of_one_entry_are_forgotten_together() {
        let recorder = Recorder::default();
        let many = |version| vec![change("a", version); limits::CHANGES_REMEMBERED_MAX / 2 + 1];
        recorder.record(1, Leases::default(), many(1));
        recorder.record(2, Leases::default(), many(2));
        assert!(watcher(&recorder, 0).take().lagged);
        assert_eq!(watcher(&recorder, 1).take().changes.len(), limits::CHANGES_REMEMBERED_MAX / 2 + 1);
        recorder.record(3, Leases::default(), [many(3), many(3)].concat());
        assert!(watcher(&recorder, 2).take().lagged, "an entry larger than the memory");
    }

    #[tokio::test]
    async fn a_watcher_hears_of_changes_and_of_the_end() {
        let recorder = Recorder::default();
        let mut watcher = watcher(&recorder, 0);
        recorder.record(1, Leases::default(), vec![change("a", 1)]);
        assert_eq!(versions(&watcher.next().await.unwrap()), [1]);
        drop(recorder);
        assert!(watcher.next().await.is_none());
    }
}

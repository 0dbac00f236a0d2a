//! Watching keys: the changes of all replicas of a namespace's partitions, each told once.
//!
//! Every replica is listened to, because a write is acknowledged by a majority of them only. A watch tells
//! the newest version of a key when it first hears of it; versions that were superseded before that are
//! passed by. It goes on from a clock: what the store still holds that is younger is told again, so a watch
//! that breaks and goes on tells everything at least once, until the deletions of that time are forgotten.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use debros_net::{Lane, PeerId};
use debros_proto::layout::{majority, partitions_of};
use debros_proto::{Failure, NodeId, limits, v1};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use v1::storage_event::Kind;

use super::clock::{stamp_of, unix_ms_of};
use super::coordinator::{Coordinator, Quorum};
use super::layouts::View;
use super::list::List;
use super::record::{Entry, Record, Version};
use super::store::{Heard as Happened, Listener};

/// Events in one message.
const EVENTS_PER_MESSAGE_MAX: usize = 256;
/// Messages that wait for the watcher; past it the watch waits, and then lags.
const MESSAGES_MAX: usize = limits::WATCH_EVENTS_MAX / EVENTS_PER_MESSAGE_MAX;
/// A write becomes known to a replica within this time of its stamp, or through repair.
const LATE_MAX: Duration = Duration::from_secs(30);
/// A replica that cannot be listened to is tried again after this.
const RETRY_AFTER: Duration = Duration::from_millis(250);
/// Keys read at a time to catch up.
const CATCH_UP_KEYS: usize = 1000;
/// Reading them is given up after this, and begun again.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(10);
/// Keys whose last told version is remembered.
const TOLD_MAX: usize = 64 << 10;

/// What is to be watched.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Whose keys.
    pub namespace: String,
    /// Literal; empty for all.
    pub prefix: String,
    /// The clock from which an earlier watch goes on; `None` from now.
    pub resume: Option<u64>,
}

/// A watch under way: ends when it is dropped.
pub struct Watching {
    events: ReceiverStream<v1::StorageEvents>,
}

impl Watching {
    /// The events, in messages.
    pub fn into_events(self) -> impl Stream<Item = v1::StorageEvents> + Send {
        self.events
    }
}

/// The form in which a watcher keeps where it was.
pub(super) fn resume_token(clock: u64) -> Vec<u8> {
    clock.to_be_bytes().to_vec()
}

/// The changes of some keys as this node's replica makes them.
pub(super) fn changes(
    changes: Listener,
    namespace: String,
    prefix: String,
) -> impl Stream<Item = v1::ReplicaChanges> + Send {
    futures::stream::unfold(changes, move |mut changes| {
        let (namespace, prefix) = (namespace.clone(), prefix.clone());
        async move {
            loop {
                match changes.next().await? {
                    Happened::Changes(changed) => {
                        let of_it =
                            |entry: &&Entry| entry.namespace == namespace && entry.key.starts_with(&prefix);
                        let entries: Vec<v1::ReplicaEntry> =
                            changed.iter().filter(of_it).map(|entry| entry.clone().into_wire()).collect();
                        if !entries.is_empty() {
                            return Some((v1::ReplicaChanges { entries, lagged: false }, changes));
                        }
                    }
                    Happened::Missed => {
                        return Some((v1::ReplicaChanges { entries: Vec::new(), lagged: true }, changes));
                    }
                }
            }
        }
    })
}

/// Begins to watch.
pub(super) fn start(
    coordinator: Coordinator,
    watch: Watch,
    tombstone_life: Duration,
) -> Result<Watching, Failure> {
    coordinator.inner.layouts.current()?;
    let (events, receiver) = mpsc::channel(MESSAGES_MAX);
    let now = coordinator.inner.clock.unix_ms();
    let begin_unix_ms = if watch.resume.is_some() { 0 } else { now };
    let told_to = watch.resume.unwrap_or(stamp_of(now));
    // Deletions from then on may be forgotten by now.
    let lags = unix_ms_of(told_to) + (tombstone_life.as_millis() as u64) < now;
    let tracker = coordinator.inner.tracker.clone();
    let mut watcher = Watcher {
        coordinator,
        watch,
        events,
        told: Told::default(),
        told_to,
        sent_to: told_to,
        newest: told_to,
        complete: false,
        waiting: VecDeque::new(),
        begin_unix_ms,
        caught_up: false,
        expiring: BTreeSet::new(),
    };
    tracker.spawn(async move {
        if lags {
            watcher.waiting.push_back(Kind::Lagged(v1::WatchLagged {}));
        }
        if watcher.send().await {
            watcher.run().await;
        }
    });
    Ok(Watching { events: ReceiverStream::new(receiver) })
}

/// What a replica tells, and that it can be listened to again.
enum Heard {
    Changes(v1::ReplicaChanges),
    /// The replica is listened to from now on: what it did before may have been missed.
    Attached(NodeId),
    /// It is not any more.
    Detached(NodeId),
    /// A value has gone by itself.
    Expired,
}

struct Watcher {
    coordinator: Coordinator,
    watch: Watch,
    events: mpsc::Sender<v1::StorageEvents>,
    told: Told,
    /// Once what waits is told, everything up to this clock was, but for what replicas hear of late.
    told_to: u64,
    /// The same without what waits: where another watch goes on.
    sent_to: u64,
    /// The youngest that was told. It says nothing of older changes while some may have been missed.
    newest: u64,
    /// Every change is heard, and those from before are told.
    complete: bool,
    /// What waits to be told.
    waiting: VecDeque<Kind>,
    /// Nothing older is told.
    begin_unix_ms: u64,
    caught_up: bool,
    /// Values that will go by themselves, by the time of that.
    expiring: BTreeSet<(u64, String, Version)>,
}

/// The versions told last, so that no replica's change is told twice.
#[derive(Default)]
struct Told {
    versions: BTreeMap<String, Version>,
    order: VecDeque<String>,
}

impl Told {
    /// Whether nothing newer is known of the key.
    fn is_newest(&self, key: &str, version: Version) -> bool {
        self.versions.get(key).is_none_or(|known| *known <= version)
    }

    /// Whether this is news; remembers it.
    fn is_news(&mut self, key: &str, version: Version) -> bool {
        match self.versions.get_mut(key) {
            Some(known) if *known >= version => false,
            Some(known) => {
                *known = version;
                true
            }
            None => {
                self.versions.insert(key.to_owned(), version);
                self.order.push_back(key.to_owned());
                if self.order.len() > TOLD_MAX
                    && let Some(oldest) = self.order.pop_front()
                {
                    self.versions.remove(&oldest);
                }
                true
            }
        }
    }
}

impl Watcher {
    async fn run(mut self) {
        let mut adopted = self.coordinator.inner.layouts.watch_adopted();
        loop {
            let Some(view) = adopted.borrow_and_update().clone() else { return };
            let events = self.events.clone();
            tokio::select! {
                () = events.closed() => return,
                changed = adopted.changed() => if changed.is_err() { return },
                go_on = self.follow(&view) => if !go_on { return },
            }
        }
    }

    /// Tells what the replicas of one layout do. `false` when nobody watches any more.
    async fn follow(&mut self, view: &Arc<View>) -> bool {
        self.complete = false;
        let mut heard = self.listen(view);
        let mut attached = BTreeSet::from([self.coordinator.inner.node]);
        // What still waits was told by nobody: the layout changed meanwhile.
        if !self.send().await || (self.hears_all(view, &attached) && !self.catch_up().await) {
            return false;
        }
        loop {
            let next = tokio::select! {
                next = heard.next() => next,
                () = self.next_expiry() => Some(Heard::Expired),
            };
            let go_on = match next {
                None => return true,
                Some(Heard::Expired) => self.tell_expired().await,
                Some(Heard::Changes(changes)) => {
                    (!changes.lagged || self.catch_up().await) && self.tell(changes.entries).await
                }
                Some(Heard::Attached(node)) => {
                    attached.insert(node);
                    !self.hears_all(view, &attached) || self.catch_up().await
                }
                Some(Heard::Detached(node)) => {
                    attached.remove(&node);
                    self.complete &= self.hears_all(view, &attached);
                    true
                }
            };
            if !go_on {
                return false;
            }
        }
    }

    /// Resolves when a value has gone by itself.
    async fn next_expiry(&self) {
        match self.expiring.first() {
            None => std::future::pending().await,
            Some((expires_unix_ms, ..)) => {
                let left = expires_unix_ms.saturating_sub(self.coordinator.inner.clock.unix_ms());
                tokio::time::sleep(Duration::from_millis(left)).await;
            }
        }
    }

    async fn tell_expired(&mut self) -> bool {
        let now = self.coordinator.inner.clock.unix_ms();
        while let Some((expires_unix_ms, ..)) = self.expiring.first()
            && *expires_unix_ms <= now
            && let Some((expires_unix_ms, key, version)) = self.expiring.pop_first()
        {
            // One that was overwritten meanwhile has not gone.
            if self.told.is_newest(&key, version) {
                let entry = v1::StorageEntry {
                    key,
                    version: Some(version.into()),
                    expires_unix_ms,
                    ..Default::default()
                };
                self.waiting.push_back(Kind::Deleted(entry));
            }
        }
        self.send().await
    }

    /// Remembers when a value goes. Past the limit the watcher hears of it when the key is next changed.
    fn expect_expiry(&mut self, key: &str, record: &Record) {
        if record.expires_unix_ms > 0 && !record.tombstone && self.expiring.len() < TOLD_MAX {
            self.expiring.insert((record.expires_unix_ms, key.to_owned(), record.version));
        }
    }

    /// Whether no write can be acknowledged without one of these nodes.
    fn hears_all(&self, view: &View, attached: &BTreeSet<NodeId>) -> bool {
        partitions_of(&self.watch.namespace).into_iter().all(|partition| {
            let placement = view.readers();
            let heard = placement.nodes_of(partition).iter().filter(|node| attached.contains(node)).count();
            heard > placement.replicas() - majority(placement.replicas())
        })
    }

    /// Listens to every replica of the namespace's partitions.
    fn listen(&self, view: &Arc<View>) -> futures::stream::SelectAll<BoxStream<'static, Heard>> {
        let partitions = partitions_of(&self.watch.namespace);
        let mut nodes: Vec<NodeId> =
            partitions.iter().flat_map(|partition| view.writers_of(*partition)).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let streams = nodes.into_iter().map(|node| {
            if node == self.coordinator.inner.node {
                let store = self.coordinator.inner.replica.store();
                let (namespace, prefix) = (self.watch.namespace.clone(), self.watch.prefix.clone());
                return changes(store.watch(), namespace, prefix).map(Heard::Changes).boxed();
            }
            match view.peer(node) {
                Some(peer) => self.listen_to(node, peer),
                None => futures::stream::pending().boxed(),
            }
        });
        futures::stream::select_all(streams)
    }

    /// Listens to a peer, again and again.
    fn listen_to(&self, node: NodeId, peer: PeerId) -> BoxStream<'static, Heard> {
        let links = self.coordinator.inner.links.clone();
        let header =
            v1::RequestHeader { namespace: super::SYSTEM_NAMESPACE.to_owned(), ..Default::default() };
        let request = v1::WatchReplicaRequest {
            header: Some(header),
            namespace: self.watch.namespace.clone(),
            prefix: self.watch.prefix.clone(),
        };
        let closed: Option<tonic::Streaming<v1::ReplicaChanges>> = None;
        futures::stream::unfold(closed, move |open| {
            let (links, request) = (links.clone(), request.clone());
            async move {
                if let Some(mut changes) = open {
                    return Some(match changes.message().await {
                        Ok(Some(changed)) => (Heard::Changes(changed), Some(changes)),
                        Ok(None) | Err(_) => (Heard::Detached(node), None),
                    });
                }
                loop {
                    match links.client(peer, Lane::Kv).watch(request.clone()).await {
                        Ok(changes) => return Some((Heard::Attached(node), Some(changes.into_inner()))),
                        Err(_) => tokio::time::sleep(RETRY_AFTER).await,
                    }
                }
            }
        })
        .boxed()
    }

    /// Tells what the store holds that is younger than what was told. `false` when nobody watches any more.
    async fn catch_up(&mut self) -> bool {
        let since = unix_ms_of(self.told_to).saturating_sub(LATE_MAX.as_millis() as u64);
        let since = since.max(self.begin_unix_ms);
        let mut after = String::new();
        loop {
            let list = List {
                namespace: self.watch.namespace.clone(),
                prefix: self.watch.prefix.clone(),
                after: after.clone(),
                limit: CATCH_UP_KEYS,
                with_values: true,
                quorum: Quorum::Majority,
                deadline: Instant::now() + CATCH_UP_TIMEOUT,
            };
            let part = tokio::select! {
                () = self.events.closed() => return false,
                part = self.coordinator.list_part_with_tombstones(&list, CATCH_UP_KEYS) => part,
            };
            let Ok((records, scanned_to)) = part else {
                tokio::time::sleep(RETRY_AFTER).await;
                continue;
            };
            let now = self.coordinator.inner.clock.unix_ms();
            for (key, record) in records.iter().filter(|(_, record)| !record.is_gone(now)) {
                self.expect_expiry(key, record);
            }
            let young = records.into_iter().filter(|(_, record)| unix_ms_of(record.version.clock) >= since);
            let namespace = self.watch.namespace.clone();
            let entries = young.map(|(key, record)| v1::ReplicaEntry {
                namespace: namespace.clone(),
                key,
                record: Some(record.into_wire()),
            });
            if !self.tell(entries.collect()).await {
                return false;
            }
            match scanned_to {
                Some(next) => after = next,
                None => {
                    self.complete = true;
                    self.told_to = self.newest;
                    if !std::mem::replace(&mut self.caught_up, true) {
                        self.waiting.push_back(Kind::CaughtUp(v1::WatchCaughtUp {}));
                    }
                    return self.send().await;
                }
            }
        }
    }

    async fn tell(&mut self, entries: Vec<v1::ReplicaEntry>) -> bool {
        let now = self.coordinator.inner.clock.unix_ms();
        for v1::ReplicaEntry { namespace: _, key, record } in entries {
            let Some(record) = record.and_then(Record::from_wire) else { continue };
            if self.told.is_news(&key, record.version) {
                self.newest = self.newest.max(record.version.clock);
                self.expect_expiry(&key, &record);
                self.waiting.push_back(kind(key, record, now));
            }
        }
        if self.complete {
            self.told_to = self.newest;
        }
        self.send().await
    }

    /// Tells what waits; `false` when nobody watches any more. What was not told when this is cancelled waits on.
    async fn send(&mut self) -> bool {
        while !self.waiting.is_empty() {
            let Ok(permit) = self.events.reserve().await else { return false };
            let mut bytes = 0;
            let fits = |kind: &&Kind| {
                bytes += event_bytes(kind);
                bytes <= limits::STORAGE_PAGE_BYTES_MAX
            };
            let count = self.waiting.iter().take(EVENTS_PER_MESSAGE_MAX).take_while(fits).count().max(1);
            let kinds = self.waiting.drain(..count);
            let events = kinds.map(|kind| v1::StorageEvent { kind: Some(kind) }).collect();
            if self.waiting.is_empty() {
                self.sent_to = self.told_to;
            }
            permit.send(v1::StorageEvents { events, resume: resume_token(self.sent_to).into() });
        }
        true
    }
}

fn event_bytes(kind: &Kind) -> usize {
    match kind {
        Kind::Put(entry) | Kind::Deleted(entry) => entry.key.len() + entry.value.len(),
        Kind::Lagged(_) | Kind::CaughtUp(_) => 0,
    }
}

fn kind(key: String, record: Record, now_unix_ms: u64) -> Kind {
    let gone = record.is_gone(now_unix_ms);
    let entry = v1::StorageEntry {
        key,
        value: if gone { Bytes::new() } else { record.value },
        version: Some(record.version.into()),
        expires_unix_ms: record.expires_unix_ms,
    };
    if gone { Kind::Deleted(entry) } else { Kind::Put(entry) }
}

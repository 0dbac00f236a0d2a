//! Reading one key: the newest of what a quorum of replicas holds, which a quorum holds before it is given.
//!
//! While one layout replaces another, a quorum of each set holds it, so that no later read shows less:
//!
//! - A version that one old replica had alone reaches another by repair, a hint or a retried write after that
//!   was copied from. Both are a quorum of the old set, and the next set's readers would miss it.
//! - A write that failed reached a quorum of the next set alone, and that is read from: a coordinator that has
//!   not heard of this would read less from the old set, until so many old replicas refuse it that it cannot.
//!
//! Replicas look at the layout before and after they read, so what one of them shows under a layout was there
//! before it adopted the next one, and with that before it was copied from.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use debros_proto::layout::{Placement, partition_of};
use debros_proto::{Failure, NodeId, v1};
use futures::future::BoxFuture;
use tokio::time::Instant;
use v1::replica_call::Operation;
use v1::replica_reply::Outcome;

use super::asks::Asks;
use super::coordinator::{Coordinator, Quorum, local, needed, too_few};
use super::layouts::View;
use super::links::NoAnswer;
use super::record::{Entry, Place, Record, Version};
use super::replica::Read;
use crate::planted::{Bug, is_planted};

/// A replica that takes longer gets company: the next one is asked as well.
const HEDGE_AFTER: Duration = Duration::from_millis(20);
/// Reads in a row that prefer the same replica: what goes there at the same time travels together.
const TURN_READS: usize = 64;
/// Pause before replicas that have not adopted the layout yet are asked again.
pub(super) const BEHIND_PAUSE: Duration = Duration::from_millis(5);

/// A key to be read.
#[derive(Clone, Debug)]
pub struct Get {
    /// Whose key.
    pub namespace: String,
    /// The key.
    pub key: String,
    /// Whether the value itself is wanted.
    pub with_value: bool,
    /// How many replicas must answer.
    pub quorum: Quorum,
    /// When the client gives up.
    pub deadline: Instant,
}

/// What one replica holds, and how far it has collected the partition.
#[derive(Clone, Debug)]
struct Held {
    node: NodeId,
    record: Option<Record>,
    with_value: bool,
    collected_to: u64,
}

/// How a round over the replicas ended.
enum Round {
    Held(Vec<Held>),
    NewerLayout,
    Behind,
    TooFew,
}

/// Who was asked, whether for the value, and what it said.
type Answer = (NodeId, bool, Result<v1::ReplicaReadResult, NoAnswer>);

impl Coordinator {
    /// The newest record of a key, also when it is a tombstone; `None` when no replica knows the key.
    ///
    /// # Errors
    /// Nothing was changed.
    pub(super) async fn get(&self, get: &Get) -> Result<Option<Record>, Failure> {
        let partition = partition_of(&get.namespace, &get.key);
        loop {
            let view = self.inner.layouts.current()?;
            let round = tokio::time::timeout_at(get.deadline, self.read_round(&view, partition, get)).await;
            match round.unwrap_or(Round::TooFew) {
                Round::Held(held) => return self.resolve(&view, partition, get, held).await,
                Round::NewerLayout => {
                    self.inner.layouts.newer_than(view.version(), get.deadline).await;
                }
                Round::Behind => tokio::time::sleep(BEHIND_PAUSE).await,
                Round::TooFew => return Err(too_few(&view, partition)),
            }
            if Instant::now() >= get.deadline {
                return Err(too_few(&view, partition));
            }
        }
    }

    /// The replicas to ask, the best first: this node, then those in reach, taking turns.
    pub(super) fn reading_order(&self, view: &View, partition: u16) -> Vec<NodeId> {
        let mut nodes = view.readers().nodes_of(partition).to_vec();
        let turn = self.inner.turn.fetch_add(1, Ordering::Relaxed) / TURN_READS;
        let count = nodes.len().max(1);
        nodes.rotate_left(turn % count);
        let reach = |node: &NodeId| match view.peer(*node) {
            _ if *node == self.inner.node => 0,
            Some(peer) if self.inner.links.is_connected(peer) => 1,
            _ => 2,
        };
        nodes.sort_by_cached_key(reach);
        nodes
    }

    async fn read_round(&self, view: &Arc<View>, partition: u16, get: &Get) -> Round {
        let wanted = needed(get.quorum, view.readers());
        let mut order = self.reading_order(view, partition).into_iter();
        let mut asks = Asks::new();
        // The value is wanted once; of the others their versions are enough.
        for (index, node) in order.by_ref().take(wanted).enumerate() {
            asks.push(self.ask_read(view.clone(), node, partition, get, get.with_value && index == 0));
        }
        let (mut held, mut behind) = (Vec::with_capacity(wanted), false);
        loop {
            let next = tokio::time::timeout(HEDGE_AFTER, asks.next()).await;
            match next {
                Ok(Some((node, with_value, Ok(found)))) => {
                    let v1::ReplicaReadResult { record, collected_to } = found;
                    held.push(Held {
                        node,
                        record: record.and_then(Record::from_wire),
                        with_value,
                        collected_to,
                    });
                    if held.len() == wanted {
                        return Round::Held(held);
                    }
                    continue;
                }
                Ok(Some((_, _, Err(NoAnswer::NewerLayout(layout))))) => {
                    self.inner.layouts.learn(*layout);
                    return Round::NewerLayout;
                }
                Ok(Some((_, _, Err(no)))) => behind |= no.is_behind(),
                Ok(None) => return if behind { Round::Behind } else { Round::TooFew },
                // Nobody has answered for a while.
                Err(_) => {}
            }
            if let Some(node) = order.next() {
                asks.push(self.ask_read(view.clone(), node, partition, get, get.with_value));
            } else if asks.is_empty() {
                return if behind { Round::Behind } else { Round::TooFew };
            }
        }
    }

    fn ask_read(
        &self,
        view: Arc<View>,
        node: NodeId,
        partition: u16,
        get: &Get,
        with_value: bool,
    ) -> impl Future<Output = Answer> + Send + use<> {
        let coordinator = self.clone();
        let (namespace, key) = (get.namespace.clone(), get.key.clone());
        async move {
            let found = coordinator.read_at(&view, node, partition, &namespace, &key, with_value).await;
            (node, with_value, found)
        }
    }

    async fn read_at(
        &self,
        view: &View,
        node: NodeId,
        partition: u16,
        namespace: &str,
        key: &str,
        with_value: bool,
    ) -> Result<v1::ReplicaReadResult, NoAnswer> {
        let outcome = if node == self.inner.node {
            let read = Read { place: Place::new(partition, namespace, key), partition, with_value };
            local(self.inner.replica.read(view.version(), read).await.unwrap_or_else(|refused| refused))?
        } else {
            let read = v1::ReplicaRead {
                partition: u32::from(partition),
                namespace: namespace.to_owned(),
                key: key.to_owned(),
                without_value: !with_value,
            };
            let peer = view.peer(node).ok_or(NoAnswer::NotAsked)?;
            self.inner.links.ask(peer, view.version(), Operation::Read(read)).await?
        };
        match outcome {
            Outcome::Read(found) => Ok(found),
            _ => Err(NoAnswer::Unknown),
        }
    }

    async fn resolve(
        &self,
        view: &Arc<View>,
        partition: u16,
        get: &Get,
        held: Vec<Held>,
    ) -> Result<Option<Record>, Failure> {
        let Some((newest, collected_to)) = newest(&held) else { return Ok(None) };
        self.inner.clock.observe(newest.clock);
        let is_newest = |held: &&Held| held.record.as_ref().is_some_and(|record| record.version == newest);
        let mut holders: Vec<NodeId> = held.iter().filter(is_newest).map(|held| held.node).collect();
        let alike = holders.len() == held.len();
        if alike && get.quorum != Quorum::One && !self.is_settled(view, partition, &holders) {
            self.add_holders(view, partition, get, newest, &mut holders).await;
        }
        let agree = alike && self.is_settled(view, partition, &holders);
        let complete = held.iter().filter(is_newest).find(|held| held.with_value || held.tombstone());
        let mut record = complete.and_then(|held| held.record.clone());
        let repairs = !agree && get.quorum != Quorum::One && !is_planted(Bug::ReadRepairOff);
        if record.is_none() && (get.with_value || repairs) {
            record = self.fetch(view, partition, get, &holders, newest).await?;
        }
        if repairs && let Some(record) = &record {
            let entry = Entry {
                partition,
                namespace: get.namespace.clone(),
                key: get.key.clone(),
                record: record.clone(),
            };
            self.write_back(view, entry, holders, collected_to, get.deadline).await?;
        }
        Ok(record.or_else(|| held.into_iter().filter_map(|held| held.record).find(|r| r.version == newest)))
    }

    /// Whether every later read at a quorum meets one of these nodes, whichever set it reads.
    pub(super) fn is_settled(&self, view: &View, partition: u16, holders: &[NodeId]) -> bool {
        let held = |placement: &Placement| {
            let here = holders.iter().filter(|node| placement.holds(**node, partition)).count();
            here >= needed(Quorum::Majority, placement)
        };
        match view.next() {
            None => held(view.current()),
            Some(next) => {
                held(next) && (held(view.current()) || self.inner.layouts.old_reads_refused(view, partition))
            }
        }
    }

    /// Finds out who else holds a version, or a newer one, until enough do. Most often those of the other set have
    /// it already, and the value need not travel.
    async fn add_holders(
        &self,
        view: &Arc<View>,
        partition: u16,
        get: &Get,
        version: Version,
        holders: &mut Vec<NodeId>,
    ) {
        let mut asks = Asks::new();
        for node in view.writers_of(partition).into_iter().filter(|node| !holders.contains(node)) {
            asks.push(self.ask_read(view.clone(), node, partition, get, false));
        }
        while let Ok(Some((node, _, found))) = tokio::time::timeout(HEDGE_AFTER, asks.next()).await {
            let record = found.ok().and_then(|found| found.record).and_then(Record::from_wire);
            if record.is_some_and(|record| record.version >= version) {
                holders.push(node);
                if self.is_settled(view, partition, holders) {
                    return;
                }
            }
        }
    }

    /// The whole record from one that holds it.
    async fn fetch(
        &self,
        view: &View,
        partition: u16,
        get: &Get,
        holders: &[NodeId],
        version: Version,
    ) -> Result<Option<Record>, Failure> {
        for node in holders {
            let found = self.read_at(view, *node, partition, &get.namespace, &get.key, true).await;
            let record = found.ok().and_then(|found| found.record).and_then(Record::from_wire);
            // A newer one that came meanwhile is as good: it was written at the same time.
            if let Some(record) = record.filter(|record| record.version >= version) {
                return Ok(Some(record));
            }
        }
        Err(too_few(view, partition))
    }

    /// Has a quorum of every set that may be read hold the record.
    async fn write_back(
        &self,
        view: &Arc<View>,
        entry: Entry,
        mut holders: Vec<NodeId>,
        collected_to: u64,
        deadline: Instant,
    ) -> Result<(), Failure> {
        self.inner.metrics.read_repaired();
        let partition = entry.partition;
        let mut asks = Asks::new();
        for node in view.writers_of(partition).into_iter().filter(|node| !holders.contains(node)) {
            asks.push(self.store_at(view.clone(), node, partition, vec![entry.clone()], collected_to, false));
        }
        while !self.is_settled(view, partition, &holders) {
            match tokio::time::timeout_at(deadline, asks.next()).await {
                Ok(Some((node, Ok(_)))) => holders.push(node),
                Ok(Some((_, Err(NoAnswer::NewerLayout(layout))))) => self.inner.layouts.learn(*layout),
                Ok(Some((_, Err(_)))) => {}
                Ok(None) | Err(_) => return Err(too_few(view, partition)),
            }
        }
        Ok(())
    }

    /// Gives a replica records that others have.
    pub(super) fn store_at(
        &self,
        view: Arc<View>,
        node: NodeId,
        partition: u16,
        entries: Vec<Entry>,
        collected_to: u64,
        hints: bool,
    ) -> BoxFuture<'static, (NodeId, Result<u32, NoAnswer>)> {
        let coordinator = self.clone();
        Box::pin(async move {
            let entries = entries.into_iter().map(Entry::into_wire).collect();
            let store = v1::ReplicaStore { partition: u32::from(partition), entries, collected_to, hints };
            let operation = Operation::Store(store);
            let outcome = coordinator.ask_any(&view, node, operation).await;
            let applied = outcome.and_then(|outcome| match outcome {
                Outcome::Stored(v1::ReplicaStored { applied }) => Ok(applied),
                _ => Err(NoAnswer::Unknown),
            });
            (node, applied)
        })
    }

    /// Asks a replica, this node's own or another.
    pub(super) async fn ask_any(
        &self,
        view: &View,
        node: NodeId,
        operation: Operation,
    ) -> Result<Outcome, NoAnswer> {
        if node == self.inner.node {
            let outcome = self.inner.replica.carry_out(view.version(), operation).await;
            return local(outcome.unwrap_or_else(|refused| refused));
        }
        let peer = view.peer(node).ok_or(NoAnswer::NotAsked)?;
        self.inner.links.ask(peer, view.version(), operation).await
    }
}

impl Held {
    fn tombstone(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.tombstone)
    }
}

/// The newest version that counts, and how far those that hold it have collected. What is older than the
/// furthest collection and unknown where that was made has been deleted, whoever still has it.
fn newest(held: &[Held]) -> Option<(Version, u64)> {
    let collected = held.iter().map(|held| held.collected_to).max().unwrap_or_default();
    let counts = |held: &&Held| {
        let version = held.record.as_ref().map(|record| record.version.clock);
        held.collected_to == collected || version.is_some_and(|clock| clock > collected)
    };
    let versions = held.iter().filter(counts).filter_map(|held| held.record.as_ref());
    Some((versions.map(|record| record.version).max()?, collected))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use debros_proto::NodeId;

    use super::{Held, newest};
    use crate::kv::record::{Record, Version};

    fn held(clock: Option<u64>, collected_to: u64) -> Held {
        let record = clock.map(|clock| Record {
            version: Version { clock, node: 1 },
            expires_unix_ms: 0,
            tombstone: false,
            value: Bytes::new(),
        });
        Held { node: NodeId(1), record, with_value: true, collected_to }
    }

    fn clock(held: &[Held]) -> Option<u64> {
        newest(held).map(|(version, _)| version.clock)
    }

    #[test]
    fn the_newest_wins() {
        assert_eq!(clock(&[held(Some(3), 0), held(Some(5), 0), held(None, 0)]), Some(5));
        assert_eq!(clock(&[held(None, 0), held(None, 0)]), None);
    }

    #[test]
    fn what_was_collected_elsewhere_is_gone() {
        assert_eq!(clock(&[held(Some(10), 0), held(None, 20)]), None);
        assert_eq!(clock(&[held(Some(21), 0), held(None, 20)]), Some(21), "younger than the collection");
        assert_eq!(clock(&[held(Some(10), 20), held(None, 20)]), Some(10), "alive where it was collected");
        assert_eq!(clock(&[held(Some(15), 0), held(Some(10), 20)]), Some(10));
    }
}

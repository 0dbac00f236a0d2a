//! Anti-entropy: pairs of replicas compare the trees of the partitions they share and exchange what differs.
//!
//! Every node does this with every peer it shares partitions with, round after round. A replica that finds
//! a peer which has collected a partition further takes that peer's word for everything up to there: what
//! the peer lacks was deleted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use debros_proto::layout::PARTITIONS;
use debros_proto::{NodeId, limits, v1};
use tokio_util::sync::CancellationToken;
use v1::replica_call::Operation;
use v1::replica_reply::Outcome;

use super::clock::unix_ms_of;
use super::coordinator::Coordinator;
use super::layouts::View;
use super::links::NoAnswer;
use super::record::{Entry, Place, Version};
use super::replica::KEYS_PER_ANSWER_MAX;
use super::store::{Applied, Durability, Origin, Put, ScanLimits, StoreError};

/// What is younger than a round may be on its way still: under load some write always is.
const UNDER_WAY_MS: u64 = 10_000;
/// Partitions in one question.
const ROOTS_PER_QUESTION: usize = 128;

/// Why a comparison was not finished; the next round begins anew.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfinished {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the peer gave no answer: {0:?}")]
    Peer(NoAnswer),
    #[error("the peer's answer makes no sense")]
    Malformed,
    #[error("this node has adopted another layout meanwhile")]
    LayoutChanged,
}

/// Compares with all peers in turn until the token is cancelled; one round takes at least `interval`.
pub(super) async fn run(coordinator: Coordinator, interval: Duration, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = round(&coordinator) => {}
        }
    }
}

async fn round(coordinator: &Coordinator) {
    let inner = &coordinator.inner;
    let Some(view) = inner.layouts.adopted() else { return };
    if view.peers().len() == 1 {
        count_alone(coordinator, &view).await;
    }
    let mut divergent = 0;
    for (node, peer) in view.peers() {
        if *node == inner.node || !inner.links.is_connected(*peer) {
            continue;
        }
        let shared: Vec<u16> =
            (0..PARTITIONS).filter(|partition| shares(&view, inner.node, *node, *partition)).collect();
        for some in shared.chunks(ROOTS_PER_QUESTION) {
            match compare(coordinator, &view, *node, some).await {
                Ok(count) => divergent += count,
                Err(error) => {
                    tracing::debug!(node = node.0, %error, "a comparison was not finished");
                    break;
                }
            }
        }
    }
    inner.metrics.set_divergent(divergent);
    inner.metrics.repair_round();
}

/// A node without peers compares with nobody, and counts its partitions for itself.
async fn count_alone(coordinator: &Coordinator, view: &View) {
    let inner = &coordinator.inner;
    for partition in (0..PARTITIONS).filter(|partition| view.readers().holds(inner.node, *partition)) {
        if inner.replica.store().count(partition).await.is_err() {
            return;
        }
    }
}

/// Both hold the partition in a set from which is read.
fn shares(view: &View, one: NodeId, other: NodeId, partition: u16) -> bool {
    view.readers().holds(one, partition) && view.readers().holds(other, partition)
}

/// Compares some partitions with a peer and exchanges what differs; gives how many differed, but for writes under way.
async fn compare(
    coordinator: &Coordinator,
    view: &Arc<View>,
    node: NodeId,
    partitions: &[u16],
) -> Result<usize, Unfinished> {
    let asked = v1::ReplicaRoots { partitions: partitions.iter().copied().map(u32::from).collect() };
    let Outcome::Roots(theirs) = ask(coordinator, view, node, Operation::Roots(asked)).await? else {
        return Err(Unfinished::Malformed);
    };
    if theirs.roots.len() != partitions.len() || theirs.collected_to.len() != partitions.len() {
        return Err(Unfinished::Malformed);
    }
    let store = coordinator.inner.replica.store();
    let mut differed = 0;
    for ((partition, root), collected) in partitions.iter().zip(theirs.roots).zip(theirs.collected_to) {
        let mine = store.tree(*partition).await?;
        if mine.root()[..] == root[..] && store.collected(*partition) >= collected {
            continue;
        }
        differed += usize::from(exchange(coordinator, view, node, *partition).await?);
    }
    Ok(differed)
}

/// Makes a partition equal here and at a peer, as far as this node may; tells whether anything but writes under way differed.
pub(super) async fn exchange(
    coordinator: &Coordinator,
    view: &Arc<View>,
    node: NodeId,
    partition: u16,
) -> Result<bool, Unfinished> {
    let asked = v1::ReplicaLeaves { partition: u32::from(partition) };
    let Outcome::Leaves(theirs) = ask(coordinator, view, node, Operation::Leaves(asked)).await? else {
        return Err(Unfinished::Malformed);
    };
    let store = coordinator.inner.replica.store();
    let leaves = store.tree(partition).await?.differing(&theirs.leaves);
    let (mut after, mut differed) = (Bytes::new(), false);
    loop {
        let asked = v1::ReplicaKeys {
            partition: u32::from(partition),
            leaves: leaves.iter().map(|leaf| *leaf as u32).collect(),
            after: after.clone(),
            with_values: true,
        };
        let Outcome::Keys(theirs) = ask(coordinator, view, node, Operation::Keys(asked)).await? else {
            return Err(Unfinished::Malformed);
        };
        let (complete, next, collected_to) =
            (theirs.complete, theirs.scanned_to.clone(), theirs.collected_to);
        let page = Page { partition, leaves: leaves.clone(), after, theirs };
        differed |= merge(coordinator, view, node, page).await?;
        if complete {
            if collected_to > store.collected(partition) {
                store.set_collected(view.version(), partition, collected_to).await?;
                coordinator.inner.replica.drop_collected(partition).await?;
            }
            return Ok(differed);
        }
        if next.is_empty() {
            return Err(Unfinished::Malformed);
        }
        after = next;
    }
}

/// A peer's entries of some leaves in one stretch of a partition.
struct Page {
    partition: u16,
    leaves: Vec<usize>,
    after: Bytes,
    theirs: v1::ReplicaKeysResult,
}

/// Exchanges what differs in a stretch; tells whether any of it is older than what may be under way.
async fn merge(
    coordinator: &Coordinator,
    view: &Arc<View>,
    node: NodeId,
    page: Page,
) -> Result<bool, Unfinished> {
    let Page { partition, leaves, after, theirs } = page;
    let v1::ReplicaKeysResult { entries, complete, scanned_to, collected_to } = theirs;
    let entries = entries.into_iter().map(|entry| Entry::from_wire(partition, entry));
    let theirs = entries.collect::<Option<Vec<Entry>>>().ok_or(Unfinished::Malformed)?;
    let store = coordinator.inner.replica.store();
    let collected_here = store.collected(partition);
    let end = (!complete).then_some(scanned_to);
    let mine = own(coordinator, partition, leaves, after, end).await?;
    let differences = differences(mine, theirs, collected_here, collected_to);
    let settled = differences.any_before(coordinator.inner.clock.unix_ms().saturating_sub(UNDER_WAY_MS));
    let Differences { newer_there, newer_here, deleted_there } = differences;
    if !deleted_there.is_empty() {
        store.drop_exactly(deleted_there).await?;
    }
    if !newer_there.is_empty() {
        let count = newer_there.len() as u64;
        let puts = newer_there.into_iter().map(|entry| Put { entry }).collect();
        let origin = Origin::Replica { layout: view.version(), collected_to };
        if let Applied::Fenced(_) = store.put(origin, Durability::Flushed, puts).await?.all_kept()? {
            return Err(Unfinished::LayoutChanged);
        }
        coordinator.inner.metrics.repaired(count);
    }
    // By size, so that no message grows past its limit.
    let mut waiting = newer_here;
    while !waiting.is_empty() {
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry.record.value.len() + entry.key.len();
            bytes <= limits::STORAGE_PAGE_BYTES_MAX
        };
        let count = waiting.iter().take(KEYS_PER_ANSWER_MAX).take_while(fits).count().max(1);
        let rest = waiting.split_off(count);
        let given = coordinator.store_at(view.clone(), node, partition, waiting, collected_here, false).await;
        given.1.map_err(Unfinished::Peer)?;
        waiting = rest;
    }
    Ok(settled)
}

/// This node's entries of some leaves, after one place and up to another.
async fn own(
    coordinator: &Coordinator,
    partition: u16,
    leaves: Vec<usize>,
    after: Bytes,
    end: Option<Bytes>,
) -> Result<Vec<Entry>, Unfinished> {
    let limits =
        ScanLimits { entries: KEYS_PER_ANSWER_MAX, bytes: limits::STORAGE_PAGE_BYTES_MAX, with_values: true };
    let (mut entries, mut after) = (Vec::new(), after);
    loop {
        let (from, of) = (after, leaves.clone());
        let work =
            move |snapshot: &super::store::Snapshot<'_>| snapshot.partition(partition, &from, &of, limits);
        let scanned = coordinator.inner.replica.store().read(work).await?;
        let past = |entry: &Entry| end.as_ref().is_some_and(|end| entry.place().as_bytes() > &end[..]);
        let ended = scanned.complete || scanned.entries.last().is_some_and(past);
        entries.extend(scanned.entries.into_iter().filter(|entry| !past(entry)));
        if ended || end.as_ref().is_some_and(|end| scanned.scanned_to >= *end) {
            return Ok(entries);
        }
        after = scanned.scanned_to;
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Differences {
    newer_there: Vec<Entry>,
    newer_here: Vec<Entry>,
    /// The peer has collected further and does not know them.
    deleted_there: Vec<(Place, Version)>,
}

impl Differences {
    /// Whether one of them was written before this time.
    fn any_before(&self, unix_ms: u64) -> bool {
        let entries = self.newer_there.iter().chain(&self.newer_here).map(|entry| entry.record.version);
        let versions = entries.chain(self.deleted_there.iter().map(|(_, version)| *version));
        versions.into_iter().any(|version| unix_ms_of(version.clock) < unix_ms)
    }
}

fn differences(
    mine: Vec<Entry>,
    theirs: Vec<Entry>,
    collected_here: u64,
    collected_there: u64,
) -> Differences {
    let version = |entry: &Entry| (entry.place(), entry.record.version);
    let here: std::collections::BTreeMap<Place, Version> = mine.iter().map(version).collect();
    let there: std::collections::BTreeMap<Place, Version> = theirs.iter().map(version).collect();
    let mut differences = Differences::default();
    for entry in theirs {
        let (place, version) = version(&entry);
        let forgotten_here = collected_here > collected_there && version.clock <= collected_here;
        if !forgotten_here && here.get(&place).is_none_or(|mine| *mine < version) {
            differences.newer_there.push(entry);
        }
    }
    for entry in mine {
        let (place, version) = version(&entry);
        let forgotten_there = collected_there > collected_here && version.clock <= collected_there;
        match there.get(&place) {
            Some(theirs) if *theirs >= version => {}
            None if forgotten_there => differences.deleted_there.push((place, version)),
            Some(_) | None if forgotten_there => {}
            Some(_) | None => differences.newer_here.push(entry),
        }
    }
    differences
}

async fn ask(
    coordinator: &Coordinator,
    view: &View,
    node: NodeId,
    operation: Operation,
) -> Result<Outcome, Unfinished> {
    coordinator.ask_any(view, node, operation).await.map_err(|no| {
        if let NoAnswer::NewerLayout(layout) = &no {
            coordinator.inner.layouts.learn((**layout).clone());
        }
        Unfinished::Peer(no)
    })
}

#[cfg(test)]
mod tests {
    use super::{Differences, differences};
    use crate::kv::clock::stamp_of;
    use crate::kv::record::{Entry, Record, Version};

    fn entry(key: &str, clock: u64) -> Entry {
        let record = Record::tombstone(Version { clock, node: 1 });
        Entry { partition: 1, namespace: "app".into(), key: key.into(), record }
    }

    #[test]
    fn each_side_gets_what_is_newer_at_the_other() {
        let found = differences(
            vec![entry("a", 2), entry("b", 1)],
            vec![entry("a", 1), entry("b", 3), entry("c", 1)],
            0,
            0,
        );
        assert_eq!(found.newer_here, [entry("a", 2)]);
        assert_eq!(found.newer_there, [entry("b", 3), entry("c", 1)]);
        assert_eq!(found.deleted_there, []);
    }

    #[test]
    fn writes_that_may_be_under_way_are_no_divergence() {
        let clock = |unix_ms| stamp_of(unix_ms);
        let found = differences(vec![entry("a", clock(500))], vec![entry("b", clock(900))], 0, 0);
        assert!(found.any_before(501));
        assert!(!found.any_before(500));
        let collected = differences(vec![entry("old", clock(5))], vec![], 0, clock(10));
        assert!(collected.any_before(6), "a peer that knows of a deletion is ahead");
        assert!(!Differences::default().any_before(u64::MAX));
    }

    #[test]
    fn a_peer_that_has_collected_further_is_believed_up_to_there() {
        let found = differences(vec![entry("old", 5), entry("young", 15)], vec![], 0, 10);
        assert_eq!(found.deleted_there, [(entry("old", 5).place(), entry("old", 5).record.version)]);
        assert_eq!(found.newer_here, [entry("young", 15)]);
        let found = differences(vec![], vec![entry("old", 5), entry("young", 15)], 10, 0);
        assert_eq!(found, Differences { newer_there: vec![entry("young", 15)], ..Default::default() });
    }
}

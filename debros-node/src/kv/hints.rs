//! What absent replicas missed, delivered when they are back. Hints make replicas equal sooner; nothing
//! relies on them.

use std::time::Duration;

use debros_proto::{NodeId, limits};
use tokio_util::sync::CancellationToken;

use super::coordinator::Coordinator;
use super::record::{Entry, Place, Version};
use super::store::StoreError;

/// Absent replicas are looked for this often.
const INTERVAL: Duration = Duration::from_secs(1);
/// Hints of one step.
const HINTS_PER_STEP: usize = 512;

/// Delivers hints until the token is cancelled.
pub(super) async fn run(coordinator: Coordinator, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        if coordinator.inner.replica.store().hinted_bytes() == 0 {
            continue;
        }
        let round = tokio::select! {
            () = stop.cancelled() => return,
            round = deliver_all(&coordinator) => round,
        };
        if let Err(error) = round {
            tracing::debug!(%error, "hints could not be read");
        }
    }
}

async fn deliver_all(coordinator: &Coordinator) -> Result<(), StoreError> {
    let store = coordinator.inner.replica.store();
    for node in store.read(|snapshot| snapshot.hinted_nodes()).await? {
        while deliver(coordinator, node).await? {}
    }
    Ok(())
}

/// Delivers the first hints of a node; says whether it is worth going on.
async fn deliver(coordinator: &Coordinator, node: NodeId) -> Result<bool, StoreError> {
    let inner = &coordinator.inner;
    let store = inner.replica.store();
    let Some(view) = inner.layouts.adopted() else { return Ok(false) };
    let hints = store
        .read(move |snapshot| snapshot.hints(node, HINTS_PER_STEP, limits::STORAGE_PAGE_BYTES_MAX))
        .await?;
    if hints.is_empty() {
        return Ok(false);
    }
    let oldest = inner.clock.unix_ms().saturating_sub(limits::HINT_LIFE.as_millis() as u64);
    let names = |entries: &[Entry]| -> Vec<(Place, Version)> {
        entries.iter().map(|entry| (entry.place(), entry.record.version)).collect()
    };
    let useless = |(kept, entry): &(u64, Entry)| *kept < oldest || !view.holds(node, entry.partition);
    let (dropped, mut due): (Vec<_>, Vec<_>) = hints.into_iter().partition(useless);
    let dropped: Vec<Entry> = dropped.into_iter().map(|(_, entry)| entry).collect();
    if !dropped.is_empty() {
        inner.metrics.hints_dropped(dropped.len() as u64);
        store.drop_hints(node, names(&dropped)).await?;
    }
    if view.peer(node).is_none_or(|peer| !inner.links.is_connected(peer)) {
        return Ok(false);
    }
    due.sort_by_key(|(_, entry)| entry.partition);
    for part in due.chunk_by(|(_, one), (_, other)| one.partition == other.partition) {
        let entries: Vec<Entry> = part.iter().map(|(_, entry)| entry.clone()).collect();
        let delivered = names(&entries);
        let asked = coordinator.store_at(view.clone(), node, entries[0].partition, entries, 0, true);
        if asked.await.1.is_err() {
            return Ok(false);
        }
        inner.metrics.hints_delivered(delivered.len() as u64);
        store.drop_hints(node, delivered).await?;
    }
    Ok(true)
}

//! The background task that keeps a client's knowledge of the cluster fresh: who the members are,
//! where they are, who leads the namespace's databases, and which nodes hold the storage's keys once it
//! is used. One task per client; it ends with it.
//!
//! It is woken by time, by an operation that had trouble, and by a lost connection. What it cannot
//! learn it leaves as it was: old knowledge beats none.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use debros_net::{PeerEvent, PeerId};
use debros_proto::v1;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::broadcast;
use tokio::time::{Instant, sleep, timeout};

use crate::call::{Plan, Target};
use crate::rpc;
use crate::shared::Shared;
use crate::storage::routes;

/// Membership changes rarely and hints correct what matters at once.
const REFRESH_INTERVAL: Duration = Duration::from_secs(10);
/// However many operations ask for it.
const REFRESH_INTERVAL_MIN: Duration = Duration::from_millis(250);
/// A refresh that takes longer starts again elsewhere.
pub(crate) const REFRESH_TIMEOUT: Duration = Duration::from_secs(3);
/// Trying a bootstrap address again takes at most this long.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs until the client is closed.
pub(crate) async fn keep_fresh(shared: Arc<Shared>) {
    let mut events = shared.network().watch_peers();
    let mut last = Instant::now();
    loop {
        tokio::select! {
            () = shared.closed() => return,
            () = sleep(REFRESH_INTERVAL) => {}
            () = shared.refresh_wanted() => {}
            lost = next_lost(&mut events) => lose(&shared, lost),
        }
        let since = last.elapsed();
        tokio::select! {
            () = shared.closed() => return,
            () = sleep(REFRESH_INTERVAL_MIN.saturating_sub(since)) => {}
        }
        last = Instant::now();
        tokio::select! {
            () = shared.closed() => return,
            () = refresh(&shared, REFRESH_TIMEOUT) => {}
        }
    }
}

/// The next peer whose last connection is gone. `None` when events were missed.
async fn next_lost(events: &mut broadcast::Receiver<PeerEvent>) -> Option<PeerId> {
    loop {
        match events.recv().await {
            Ok(PeerEvent::Disconnected(peer)) => return Some(peer),
            Ok(PeerEvent::Connected(_) | PeerEvent::Discovered(_)) => {}
            Err(broadcast::error::RecvError::Lagged(_)) => return None,
            // The network is shut down; the client soon is.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// A dead node is not asked first by the next operation.
fn lose(shared: &Shared, lost: Option<PeerId>) {
    let is_lost = |peer: &PeerId| lost.map_or(!shared.network().is_connected(*peer), |lost| lost == *peer);
    let known = shared.nodes().all();
    for peer in known.into_iter().filter(is_lost) {
        shared.nodes().failed(peer, Instant::now());
        shared.forget_channel(peer);
    }
}

/// Learns what can be learnt within this time.
pub(crate) async fn refresh(shared: &Shared, within: Duration) {
    let nobody_connected = shared.nodes().all().into_iter().all(|peer| !shared.network().is_connected(peer));
    if nobody_connected {
        dial_bootstrap(shared).await;
    }
    let plan = Plan { target: Target::Any, deadline: shared.deadline(Some(within)), repeatable: true };
    let members = match shared.call(&plan, &v1::MembersRequest::default(), rpc::members).await {
        Ok(answer) => answer.value.members,
        Err(failed) => {
            tracing::debug!(reason = %failed.failure, "cannot refresh the members");
            return;
        }
    };
    let by_node_id = learn_members(shared, &members);
    match shared.call(&plan, &v1::ListDatabasesRequest::default(), rpc::list_databases).await {
        Ok(answer) => {
            for database in answer.value.databases {
                if let Some(leader) = by_node_id.get(&database.leader) {
                    shared.nodes().set_leader(&database.name, *leader);
                }
            }
        }
        Err(failed) => tracing::debug!(reason = %failed.failure, "cannot refresh the leaders"),
    }
    if shared.storage().is_in_use() {
        routes::refresh(shared, plan.deadline).await;
    }
}

fn learn_members(shared: &Shared, members: &[v1::Member]) -> HashMap<u64, PeerId> {
    let staying = members.iter().filter(|member| member.state() != v1::MemberState::Removed);
    let by_node_id: HashMap<u64, PeerId> = staying
        .filter_map(|member| Some((member.node_id, shared.learn(&member.peer_id, &member.addresses)?)))
        .collect();
    let peers: BTreeSet<PeerId> = by_node_id.values().copied().collect();
    // An answer in which no id can be read must not leave nobody to ask.
    if !peers.is_empty() {
        shared.nodes().retain(&peers);
    }
    by_node_id
}

/// Nobody known is there: perhaps they moved, and the addresses given at first lead to them again.
async fn dial_bootstrap(shared: &Shared) {
    let dials = shared.settings().bootstrap.iter().map(|address| shared.network().connect(address));
    let mut dials: FuturesUnordered<_> = dials.collect();
    let first = async {
        while let Some(dialed) = dials.next().await {
            if let Ok(peer) = dialed {
                return Some(peer);
            }
        }
        None
    };
    if let Ok(Some(peer)) = timeout(DIAL_TIMEOUT, first).await {
        shared.nodes().learn(peer);
    }
}

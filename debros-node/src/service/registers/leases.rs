//! Ends leases whose time is up in the databases that this node leads, and keeps their time going.

use std::collections::HashSet;
use std::time::Duration;

use debros_proto::GroupId;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::replicas::Replicas;
use crate::sql;

/// A lease ends so much later than it is due, and the time that an entry of the log takes.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A proposal without an answer is given up, to be made again.
const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Looks for databases with leases to tend until the token is cancelled. One database that has lost its quorum does not
/// hold up the others.
pub async fn end_leases(replicas: Replicas, stop: CancellationToken) {
    let mut under_way = FuturesUnordered::new();
    let mut busy: HashSet<GroupId> = HashSet::new();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(group) = under_way.next() => {
                busy.remove(&group);
            }
            _ = looks.tick() => {
                for replica in replicas.matching(sql::Database::must_tend_leases) {
                    if busy.insert(replica.group().id()) {
                        under_way.push(expire(replica));
                    }
                }
            }
        }
    }
}

async fn expire(replica: sql::Database) -> GroupId {
    let group = replica.group().id();
    if let Err(failure) = replica.expire_leases(Instant::now() + PROPOSAL_TIMEOUT).await {
        tracing::debug!(%group, %failure, "leases that are due could not be ended; trying again");
    }
    group
}

//! The checks of Raft groups: whether they are led, how many nodes they could still lose, how far replicas lag, and
//! whether databases answer.

use std::time::Duration;

use debros_proto::{GroupId, NodeId, limits, v1};
use futures::future::join_all;
use tokio::time::Instant;

use super::checks::named;
use super::{Check, Finding, Health};
use crate::raft::Group;
use crate::sql::{self, Freshness};

/// A replica that takes longer to answer a read has failed.
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// Databases that are read at once: the rest is told by their groups' state.
const DATABASES_READ_MAX: usize = 16;
/// With fewer voters a group bears no loss, by its operator's choice: that is no finding.
const VOTERS_WITH_SLACK: usize = 3;

/// A group on this node with its name for people.
struct Named {
    group: Group,
    name: String,
}

/// How many voters a group has, and how many of them this node can reach.
struct Votes {
    voters: usize,
    away: Vec<NodeId>,
}

impl Votes {
    /// Voters that may still go before there is no quorum; below 0 there is none.
    fn slack(&self) -> i64 {
        let quorum = self.voters / 2 + 1;
        (self.voters - self.away.len()) as i64 - quorum as i64
    }
}

impl Health {
    pub(super) fn leaders(&self) -> Finding {
        let groups = self.groups();
        let leaderless: Vec<&Named> = groups.iter().filter(|named| !named.group.is_led()).collect();
        if leaderless.is_empty() {
            return Finding::ok(format!("{} groups here have a leader", groups.len()));
        }
        let told = leaderless.iter().map(|named| {
            let votes = self.votes(&named.group);
            let in_reach = votes.voters - votes.away.len();
            format!("{} ({in_reach} of {} voters in reach)", named.name, votes.voters)
        });
        let away = leaderless.iter().flat_map(|named| self.votes(&named.group).away);
        Finding::failed(format!("no leader: {}", named(told)), bring_back(away))
    }

    pub(super) fn quorum(&self) -> Finding {
        let votes: Vec<(String, Votes)> =
            self.groups().into_iter().map(|named| (named.name, self.votes(&named.group))).collect();
        let below = |slack: i64| {
            let short = move |votes: &&(String, Votes)| {
                votes.1.voters >= VOTERS_WITH_SLACK && votes.1.slack() < slack
            };
            votes.iter().filter(short).collect::<Vec<_>>()
        };
        let lost = below(0);
        // A pair that has lost one is as much without a quorum as three that have lost two.
        let lost_small =
            votes.iter().filter(|(_, votes)| votes.voters < VOTERS_WITH_SLACK && votes.slack() < 0);
        let lost: Vec<_> = lost.into_iter().chain(lost_small).collect();
        let told = |groups: &[&(String, Votes)]| {
            named(groups.iter().map(|(name, votes)| {
                format!("{name} ({} of {} voters in reach)", votes.voters - votes.away.len(), votes.voters)
            }))
        };
        let away = |groups: &[&(String, Votes)]| {
            groups.iter().flat_map(|(_, votes)| votes.away.clone()).collect::<Vec<_>>()
        };
        let tight = below(1);
        match (lost.is_empty(), tight.is_empty()) {
            (false, _) => Finding::failed(
                format!("without a quorum as seen from here: {}", told(&lost)),
                bring_back(away(&lost).into_iter()),
            ),
            (true, false) => Finding::warning(
                format!("one node more and these lose their quorum: {}", told(&tight)),
                bring_back(away(&tight).into_iter()),
            ),
            (true, true) => Finding::ok(format!(
                "{} groups here; those of three voters and more can lose another node",
                votes.len()
            )),
        }
    }

    /// What replicas in reach lack of what is in the leader's log, and this one of what is in its own.
    pub(super) fn lag(&self) -> Finding {
        let Ok(cluster) = self.parts.cluster.get() else {
            return Finding::ok("there are no replicas here yet");
        };
        let in_reach =
            |node: &NodeId| cluster.peer_of(*node).is_some_and(|peer| self.parts.network.is_connected(peer));
        let mut behind: Vec<(u64, String, NodeId)> = Vec::new();
        for Named { group, name } in self.groups() {
            let status = group.status();
            let own = status.last_log_index.saturating_sub(status.applied_index);
            if own > limits::REPLICA_LAG_ENTRIES {
                let told = format!("this node has {own} entries of {name} to apply");
                behind.push((own, told, cluster.node()));
            }
            let lags = status.lag.into_iter().filter(|(node, lag)| {
                *lag > limits::REPLICA_LAG_ENTRIES && *node != cluster.node() && in_reach(node)
            });
            behind.extend(
                lags.map(|(node, lag)| (lag, format!("node {node} lacks {lag} entries of {name}"), node)),
            );
        }
        behind.sort_by_key(|(lag, ..)| std::cmp::Reverse(*lag));
        let Some((_, _, node)) = behind.first() else { return Finding::ok("no replica lags") };
        let next = format!(
            "`debros status` twice, asked of node {node} (-b ADDRESS): `applied` must grow; if not, its disk or \
             processor is too slow, or see its log"
        );
        Finding::warning(named(behind.iter().map(|(_, told, _)| told.clone())), next)
    }

    /// Reads from this node's replicas; where they lead, with a confirmation by a quorum.
    pub(super) async fn databases(&self) -> Check {
        let started = Instant::now();
        let (all, names) = (self.wanted_here(), self.names());
        let asked = all.iter().take(DATABASES_READ_MAX);
        let reads = join_all(asked.map(|database| async {
            let name = names(database.group().id());
            read(database).await.err().map(|reason| format!("{name}: {reason}"))
        }));
        let failed: Vec<String> = reads.await.into_iter().flatten().collect();
        let finding = if failed.is_empty() {
            Finding::ok(format!(
                "{} of {} replicas here were read",
                all.len().min(DATABASES_READ_MAX),
                all.len()
            ))
        } else {
            let next =
                "see the checks `leaders` and `quorum`; the node's log tells why a replica has stopped";
            Finding::failed(named(failed.into_iter()), next)
        };
        Check { name: "databases".to_owned(), finding, took: started.elapsed() }
    }

    /// The meta group and the groups of databases that the map puts here.
    fn groups(&self) -> Vec<Named> {
        let Ok(cluster) = self.parts.cluster.get() else { return Vec::new() };
        let names = self.names();
        let databases = self.wanted_here().into_iter().map(|replica| {
            let group = replica.group().clone();
            Named { name: names(group.id()), group }
        });
        let meta = Named { group: cluster.meta().clone(), name: "meta".to_owned() };
        std::iter::once(meta).chain(databases).collect()
    }

    fn names(&self) -> impl Fn(GroupId) -> String + use<> {
        let map = self.parts.cluster.get().ok().map(|cluster| cluster.map());
        move |group| {
            let database = map.as_ref().and_then(|map| map.group(group));
            database.map_or_else(
                || format!("group {group}"),
                |database| format!("{}/{}", database.namespace, database.name),
            )
        }
    }

    fn votes(&self, group: &Group) -> Votes {
        let voters = group.status().voters;
        let Ok(cluster) = self.parts.cluster.get() else {
            return Votes { voters: voters.len(), away: Vec::new() };
        };
        let here = |node: &NodeId| {
            *node == cluster.node()
                || cluster.peer_of(*node).is_some_and(|peer| self.parts.network.is_connected(peer))
        };
        Votes { voters: voters.len(), away: voters.into_iter().filter(|node| !here(node)).collect() }
    }
}

async fn read(database: &sql::Database) -> Result<(), String> {
    let group = database.group();
    let freshness = if group.is_leader() { Freshness::Linearizable } else { Freshness::Any };
    let statement = v1::Statement { sql: "SELECT 1".to_owned(), ..Default::default() };
    let read = database.query(vec![statement], freshness, Instant::now() + READ_TIMEOUT).await;
    read.map(drop).map_err(|failure| failure.message)
}

/// What to do about voters that are away.
fn bring_back(away: impl Iterator<Item = NodeId>) -> String {
    let mut away: Vec<NodeId> = away.collect();
    away.sort_unstable();
    away.dedup();
    let Some(first) = away.first() else {
        return "wait: an election takes about a second; if it goes on, `debros status` on each voter"
            .to_owned();
    };
    let nodes = named(away.iter().map(ToString::to_string));
    let which = if away.len() == 1 { "node" } else { "nodes" };
    format!(
        "start {which} {nodes} again; for one that is gone for good `debros cluster leave {first}`, and add another"
    )
}

//! The whole cluster at a glance: every member with what it says of itself, or why it says nothing. What a dashboard
//! shows each second; whoever asks twice knows the rates between ([`EngineActivity::since`]).

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use debros_proto::v1;
use futures::future::join_all;
use tokio::time::{Instant, timeout};

use crate::call::{Failed, Plan, Target};
use crate::cluster::{Member, MemberState};
use crate::error::Error;
use crate::network_info::{Health, HealthCheck, NetworkInfo, NetworkStatus, RemoteNetwork};
use crate::rpc;

/// A member that has not answered within this time is shown as one that does not: the next look is soon.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(900);

/// Every member of the cluster at one moment.
#[derive(Clone, Debug)]
pub struct Overview {
    /// The cluster.
    pub cluster_id: String,
    /// The version of the cluster map.
    pub epoch: u64,
    /// In the order of their node ids.
    pub nodes: Vec<NodeOverview>,
    /// When the last of them had answered.
    pub at: Instant,
}

/// A member, and what it says of itself.
#[derive(Clone, Debug)]
pub struct NodeOverview {
    /// As the cluster map has it.
    pub member: Member,
    /// What it answered, or why it did not.
    pub answer: Result<NodeAnswer, String>,
    /// When the connected node last heard of it; `None` for never, and for the connected node itself.
    pub last_seen: Option<SystemTime>,
}

/// What a node says of itself.
#[derive(Clone, Debug)]
pub struct NodeAnswer {
    /// Its status.
    pub status: NetworkStatus,
    /// Its verdict over all its checks.
    pub health: Health,
    /// Its checks by name.
    pub checks: BTreeMap<String, HealthCheck>,
}

/// What an engine of a node has done since the node started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineActivity {
    /// `database`, `storage` or `pubsub`.
    pub engine: String,
    /// Requests answered; for `pubsub` messages taken in from clients.
    pub requests: u64,
    /// Those that failed, by whose fault ever.
    pub failed: u64,
    /// Messages handed to clients; `pubsub` only.
    pub delivered: u64,
    /// Requests by how long they took: upper bounds, growing, the last `None`; empty for `pubsub`.
    pub latency: Vec<(Option<Duration>, u64)>,
}

impl EngineActivity {
    /// What was done between an earlier look and this one; all of it when the node has started anew.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        if self.requests < before.requests || self.latency.len() != before.latency.len() {
            return self.clone();
        }
        let latency = self.latency.iter().zip(&before.latency);
        Self {
            engine: self.engine.clone(),
            requests: self.requests - before.requests,
            failed: self.failed.saturating_sub(before.failed),
            delivered: self.delivered.saturating_sub(before.delivered),
            latency: latency.map(|(now, then)| (now.0, now.1.saturating_sub(then.1))).collect(),
        }
    }

    /// The time within which this share of the requests was answered, as an upper bound; `None` without requests.
    /// The outer `None` is for no request, the inner one for longer than the last bound.
    pub fn within(&self, share: f64) -> Option<Option<Duration>> {
        let all: u64 = self.latency.iter().map(|(_, count)| count).sum();
        let wanted = (all as f64 * share).ceil() as u64;
        let mut reached = 0;
        let bucket = self.latency.iter().find(|(_, count)| {
            reached += count;
            reached >= wanted
        });
        bucket.filter(|_| all > 0).map(|(bound, _)| *bound)
    }
}

impl RemoteNetwork {
    /// Asks every member how it is, all at once. One that does not answer is told as such.
    ///
    /// # Errors
    /// When no member answers at all.
    pub async fn overview(&self) -> Result<Overview, Error> {
        let cluster = self.client().cluster();
        let (members, peers) = tokio::join!(cluster.members(), timeout(ANSWER_TIMEOUT, self.get_peers()));
        let members = members?;
        // Without them only the times at which nodes were last seen are missing.
        let seen: BTreeMap<String, SystemTime> = peers
            .ok()
            .and_then(Result::ok)
            .into_iter()
            .flatten()
            .filter_map(|peer| Some((peer.id, peer.last_seen?)))
            .collect();
        let asked = members.members.into_iter().filter(|member| member.state != MemberState::Removed);
        let nodes = asked.map(|member| async {
            let answer = self.ask_node(&member).await;
            NodeOverview { last_seen: seen.get(&member.peer_id).copied(), answer, member }
        });
        let nodes = join_all(nodes).await;
        Ok(Overview { cluster_id: members.cluster_id, epoch: members.epoch, nodes, at: Instant::now() })
    }

    async fn ask_node(&self, member: &Member) -> Result<NodeAnswer, String> {
        let peer = member.peer_id.parse().map_err(|_| "its peer id cannot be read".to_owned())?;
        let shared = self.client().shared();
        let plan =
            Plan { target: Target::Node(peer), deadline: Instant::now() + ANSWER_TIMEOUT, repeatable: true };
        let (status, health) = (v1::StatusRequest::default(), v1::HealthRequest::default());
        let (status, health) =
            tokio::join!(shared.call(&plan, &status, rpc::status), shared.call(&plan, &health, rpc::health));
        let why = |failed: Failed| failed.into_read_error().to_string();
        let (status, health) = (status.map_err(why)?.value, health.map_err(why)?.value);
        Ok(NodeAnswer {
            status: status.into(),
            health: Health::from_wire(&health.status),
            checks: health.checks.into_iter().map(HealthCheck::named).collect(),
        })
    }
}

impl From<v1::EngineActivity> for EngineActivity {
    fn from(activity: v1::EngineActivity) -> Self {
        let v1::EngineActivity { engine, requests, failed, delivered, latency } = activity;
        let bucket = |bucket: v1::LatencyBucket| {
            let bound = Duration::from_micros(u64::from(bucket.up_to_us));
            ((bucket.up_to_us > 0).then_some(bound), bucket.requests)
        };
        Self { engine, requests, failed, delivered, latency: latency.into_iter().map(bucket).collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::EngineActivity;

    fn activity(requests: u64, counts: [u64; 3]) -> EngineActivity {
        let bounds = [Some(Duration::from_millis(1)), Some(Duration::from_millis(8)), None];
        let latency = bounds.into_iter().zip(counts).collect();
        EngineActivity { engine: "database".to_owned(), requests, latency, ..EngineActivity::default() }
    }

    #[test]
    fn what_was_done_between_two_looks_is_their_difference() {
        let (before, now) = (activity(10, [9, 1, 0]), activity(110, [100, 8, 2]));
        assert_eq!(now.since(&before), activity(100, [91, 7, 2]));
        let restarted = activity(3, [3, 0, 0]);
        assert_eq!(restarted.since(&now), restarted, "a node that started anew counts from zero");
    }

    #[test]
    fn shares_of_requests_are_told_by_the_bound_that_holds_them() {
        let told = activity(100, [90, 9, 1]);
        assert_eq!(told.within(0.5), Some(Some(Duration::from_millis(1))));
        assert_eq!(told.within(0.99), Some(Some(Duration::from_millis(8))));
        assert_eq!(told.within(1.0), Some(None), "longer than the last bound");
        assert_eq!(activity(0, [0; 3]).within(0.5), None);
    }
}

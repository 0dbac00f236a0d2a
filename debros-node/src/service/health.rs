//! Probes of what users get: each asks the real thing and takes as long as it takes.

use std::sync::Arc;
use std::time::Duration;

use debros_proto::v1;
use futures::future::join_all;
use tokio::time::Instant;

use super::disk::DiskState;
use super::membership::ClusterSlot;
use super::replicas::Replicas;
use crate::clock::Clock;
use crate::sql::{self, Freshness};

/// A probe that takes longer has failed.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Databases that are probed at once: the rest is told by their groups' state.
const DATABASES_PROBED_MAX: usize = 16;

/// The node's probes.
#[derive(Clone)]
pub struct Health {
    cluster: ClusterSlot,
    replicas: Replicas,
    disk: DiskState,
    clock: Clock,
    network: Arc<dyn debros_net::Network>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Ok,
    Warning,
    Failed,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

struct Check {
    name: String,
    verdict: Verdict,
    message: String,
    took: Duration,
}

impl Health {
    /// Probes of these parts.
    pub fn new(
        cluster: ClusterSlot,
        replicas: Replicas,
        disk: DiskState,
        clock: Clock,
        network: Arc<dyn debros_net::Network>,
    ) -> Self {
        Self { cluster, replicas, disk, clock, network }
    }

    /// Runs every probe.
    pub async fn probe(&self) -> v1::HealthResponse {
        let mut checks = vec![self.membership().await, self.peers(), self.disk()];
        let databases = self.wanted_here();
        checks.extend(
            join_all(databases.iter().take(DATABASES_PROBED_MAX).map(|database| self.database(database)))
                .await,
        );
        let worst = checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok);
        let status = match worst {
            Verdict::Ok => "healthy",
            Verdict::Warning => "degraded",
            Verdict::Failed => "unhealthy",
        };
        v1::HealthResponse {
            status: status.to_owned(),
            checks: checks.into_iter().map(to_wire).collect(),
            checked_unix_ms: self.clock.unix_ms(),
        }
    }

    /// Whether this node can answer requests: it is a member, and its groups know their leaders.
    pub fn ready(&self) -> Result<(), String> {
        let cluster = self.cluster.get().map_err(|failure| failure.message)?;
        if !cluster.meta().is_led() {
            return Err("the meta group has no leader".to_owned());
        }
        for replica in self.wanted_here() {
            let group = replica.group();
            if !group.is_running() {
                return Err(format!("the replica of group {} has stopped", group.id()));
            }
            if !group.is_led() {
                return Err(format!("database group {} has no leader", group.id()));
            }
        }
        Ok(())
    }

    /// The replicas that the map puts on this node. Others run on until their group has let go of them, and hear nothing.
    fn wanted_here(&self) -> Vec<sql::Database> {
        let Ok(cluster) = self.cluster.get() else { return Vec::new() };
        let (map, node) = (cluster.map(), cluster.node());
        let wanted = |replica: &sql::Database| {
            map.group(replica.group().id()).is_some_and(|database| database.replicas.contains(&node))
        };
        self.replicas.all().into_iter().filter(wanted).collect()
    }

    async fn membership(&self) -> Check {
        let started = Instant::now();
        let (verdict, message) = match self.cluster.get() {
            Err(failure) => (Verdict::Failed, failure.message),
            Ok(cluster) => {
                match (cluster.meta().leader().filter(|_| cluster.meta().is_led()), cluster.warnings()) {
                    (None, _) => (Verdict::Failed, "the meta group has no leader".to_owned()),
                    (Some(_), warnings) if !warnings.is_empty() => (Verdict::Warning, warnings.join("; ")),
                    (Some(leader), _) => (Verdict::Ok, format!("node {} leads the meta group", leader.node)),
                }
            }
        };
        Check { name: "cluster".to_owned(), verdict, message, took: started.elapsed() }
    }

    fn peers(&self) -> Check {
        let started = Instant::now();
        let (verdict, message) = match self.cluster.get() {
            Err(_) => (Verdict::Ok, "no members are known yet".to_owned()),
            Ok(cluster) => {
                let map = cluster.map();
                let others: Vec<_> = map.members().filter(|node| node.id != cluster.node()).collect();
                let connected = others
                    .iter()
                    .filter(|node| node.peer_id.parse().is_ok_and(|peer| self.network.is_connected(peer)))
                    .count();
                let verdict = if connected == others.len() { Verdict::Ok } else { Verdict::Warning };
                (verdict, format!("connected to {connected} of {} other members", others.len()))
            }
        };
        Check { name: "peers".to_owned(), verdict, message, took: started.elapsed() }
    }

    fn disk(&self) -> Check {
        let started = Instant::now();
        let (verdict, message) = match self.disk.check() {
            Ok(()) => (Verdict::Ok, "above the reserve".to_owned()),
            Err(failure) => (Verdict::Failed, failure.message),
        };
        Check { name: "disk".to_owned(), verdict, message, took: started.elapsed() }
    }

    /// Reads from the replica; where it leads, with a confirmation by a quorum.
    async fn database(&self, database: &sql::Database) -> Check {
        let started = Instant::now();
        let group = database.group();
        let freshness = if group.is_leader() { Freshness::Linearizable } else { Freshness::Any };
        let statement = v1::Statement { sql: "SELECT 1".to_owned(), ..Default::default() };
        let read = database.query(vec![statement], freshness, started + PROBE_TIMEOUT).await;
        let (verdict, message) = match read {
            Err(failure) => (Verdict::Failed, failure.message),
            Ok(_) if !group.is_led() => (Verdict::Failed, "the database has no leader".to_owned()),
            Ok(_) => (Verdict::Ok, "answers".to_owned()),
        };
        Check { name: format!("database group {}", group.id()), verdict, message, took: started.elapsed() }
    }
}

fn to_wire(check: Check) -> v1::HealthCheck {
    let Check { name, verdict, message, took } = check;
    v1::HealthCheck {
        name,
        status: verdict.as_str().to_owned(),
        message,
        took_us: u32::try_from(took.as_micros()).unwrap_or(u32::MAX),
    }
}

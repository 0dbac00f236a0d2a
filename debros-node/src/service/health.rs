//! How this node is: what the prober found, and what the parts of the node say of themselves. Each check has a
//! verdict, what was found, and what to do about it.
//!
//! Decides how bad a finding is. Finds nothing itself that would cost: probes are the prober's, replicas are read
//! once a second at most, however many ask.

mod checks;
mod groups;

use std::sync::Arc;
use std::time::Duration;

use debros_proto::v1;
use tokio::time::Instant;

use super::disk::DiskState;
use super::membership::ClusterSlot;
use super::prober::Prober;
use super::replicas::Replicas;
use crate::clock::Clock;
use crate::kv::KvSlot;
use crate::sql;

/// One answer serves all who ask within this time.
const REPORT_LIFE: Duration = Duration::from_secs(1);

/// The node's checks. Cheap to clone.
#[derive(Clone)]
pub struct Health {
    parts: Arc<HealthParts>,
    last: Arc<tokio::sync::Mutex<Option<(Instant, v1::HealthResponse)>>>,
}

/// What is looked at.
pub struct HealthParts {
    /// The cluster, once joined.
    pub cluster: ClusterSlot,
    /// This node's replicas of databases.
    pub replicas: Replicas,
    /// The storage, once joined.
    pub kv: KvSlot,
    /// Room on the disks.
    pub disk: DiskState,
    /// For timestamps.
    pub clock: Clock,
    /// Who is connected.
    pub network: Arc<dyn debros_net::Network>,
    /// What users get.
    pub prober: Prober,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// What a check found, and what to do about it: nothing where it is well.
struct Finding {
    verdict: Verdict,
    message: String,
    next_step: String,
}

impl Finding {
    fn ok(message: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, message: message.into(), next_step: String::new() }
    }

    fn warning(message: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, message: message.into(), next_step: next_step.into() }
    }

    fn failed(message: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self { verdict: Verdict::Failed, message: message.into(), next_step: next_step.into() }
    }
}

struct Check {
    name: String,
    finding: Finding,
    took: Duration,
}

impl Check {
    /// A check of what is known already.
    fn at_once(name: &str, look: impl FnOnce() -> Finding) -> Self {
        let started = Instant::now();
        let finding = look();
        Self { name: name.to_owned(), finding, took: started.elapsed() }
    }
}

impl Health {
    /// Checks of these parts.
    pub fn new(parts: HealthParts) -> Self {
        Self { parts: Arc::new(parts), last: Arc::default() }
    }

    /// Every check, at most [`REPORT_LIFE`] old.
    pub async fn report(&self) -> v1::HealthResponse {
        let mut last = self.last.lock().await;
        if let Some((_, report)) = last.as_ref().filter(|(at, _)| at.elapsed() < REPORT_LIFE) {
            return report.clone();
        }
        let report = self.check().await;
        *last = Some((Instant::now(), report.clone()));
        report
    }

    async fn check(&self) -> v1::HealthResponse {
        let (probes, databases) = tokio::join!(self.probes(), self.databases());
        let mut checks = vec![
            Check::at_once("cluster", || self.membership()),
            Check::at_once("peers", || self.peers()),
            Check::at_once("leaders", || self.leaders()),
            Check::at_once("quorum", || self.quorum()),
            Check::at_once("replicas", || self.lag()),
            databases,
            Check::at_once("storage", || self.storage()),
            Check::at_once("clock", || self.clock()),
            Check::at_once("disk", || self.disk()),
        ];
        checks.extend(probes);
        let worst = checks.iter().map(|check| check.finding.verdict).max().unwrap_or(Verdict::Ok);
        let status = match worst {
            Verdict::Ok => "healthy",
            Verdict::Warning => "degraded",
            Verdict::Failed => "unhealthy",
        };
        v1::HealthResponse {
            status: status.to_owned(),
            checks: checks.into_iter().map(to_wire).collect(),
            checked_unix_ms: self.parts.clock.unix_ms(),
        }
    }

    /// Whether this node can answer requests: it is a member, and its groups know their leaders.
    pub fn ready(&self) -> Result<(), String> {
        let cluster = self.parts.cluster.get().map_err(|failure| failure.message)?;
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
        let Ok(cluster) = self.parts.cluster.get() else { return Vec::new() };
        let (map, node) = (cluster.map(), cluster.node());
        let wanted = |replica: &sql::Database| {
            map.group(replica.group().id()).is_some_and(|database| database.replicas.contains(&node))
        };
        self.parts.replicas.all().into_iter().filter(wanted).collect()
    }
}

fn to_wire(check: Check) -> v1::HealthCheck {
    let Check { name, finding: Finding { verdict, message, next_step }, took } = check;
    v1::HealthCheck {
        name,
        status: verdict.as_str().to_owned(),
        message,
        took_us: u32::try_from(took.as_micros()).unwrap_or(u32::MAX),
        next_step,
    }
}

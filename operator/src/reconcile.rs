//! One cluster, once: the five stages in their order. What is kept between two runs is only what saves calls, and is
//! found out again when it is lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use rand::distr::{Alphanumeric, SampleString};
use serde_json::json;
use tokio::time::Instant;

use crate::apply::{self, ApplyError};
use crate::build::{self, Kind, Object, Shape};
use crate::crd::DebrosCluster;
use crate::decide::{Decision, Step, budget, decide};
use crate::dereference::{World, dereference};
use crate::lease::Hold;
use crate::metrics::Metrics;
use crate::names::{BySet, FIELD_MANAGER, SECRET_KEY};
use crate::nodes::Nodes;
use crate::quantity;
use crate::snapshot::{Snapshot, is_owned};
use crate::status::{Outcome, status};
use crate::validate::{Valid, validate};

/// A cluster in which something is under way is looked at again after so long.
pub const BUSY_INTERVAL: Duration = Duration::from_secs(2);
/// A cluster at rest: its nodes are asked, Kubernetes is not.
pub const IDLE_INTERVAL: Duration = Duration::from_secs(15);
/// What cannot be watched is read again after so long.
const RECENT: Duration = Duration::from_secs(300);
/// Characters of a cluster secret: 62 to the power of 48 is more than any key needs.
const SECRET_CHARACTERS: usize = 48;

/// Where objects are read from for the first look.
pub trait Source: Send + Sync {
    /// The objects of a cluster, as they were a moment ago.
    fn snapshot(&self, cluster: &DebrosCluster) -> Snapshot;
}

impl Source for crate::caches::Caches {
    fn snapshot(&self, cluster: &DebrosCluster) -> Snapshot {
        crate::caches::Caches::snapshot(self, &build::names(cluster))
    }
}

/// What reconciling needs.
pub struct Context {
    /// To the API server.
    pub client: Client,
    /// Its objects.
    pub source: Arc<dyn Source>,
    /// The nodes.
    pub nodes: Arc<dyn Nodes>,
    /// What is counted.
    pub metrics: Metrics,
    /// For how long nobody else works.
    pub hold: Hold,
    /// What saves calls, by the resource's uid.
    pub recent: Mutex<HashMap<String, Recent>>,
}

/// What is known of a cluster and would cost calls to find out again.
#[derive(Clone, Default)]
pub struct Recent {
    secret: Option<(Instant, Vec<u8>)>,
    log_levels: HashMap<String, String>,
    refused_growth: HashMap<String, (Instant, String)>,
    monitor: Option<(Instant, String)>,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What was done.
    pub step: Step,
    /// In words, if anything was done or is wrong.
    pub news: Option<News>,
    /// When to look again.
    pub again: Duration,
}

/// Something worth an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// One word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
    /// Whether somebody should look.
    pub warning: bool,
}

/// Why a run was not finished.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Something could not be read.
    #[error("cannot read {what}: {source}")]
    Read {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// Something was refused.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The status could not be written.
    #[error("cannot write the status: {0}")]
    Status(#[source] kube::Error),
}

/// Looks at a cluster, and brings it one step on.
///
/// # Errors
/// [`ReconcileError`]; what was done is found again by the next run.
pub async fn reconcile(cluster: &DebrosCluster, context: &Context) -> Result<Report, ReconcileError> {
    if cluster.metadata.deletion_timestamp.is_some() {
        forget(context, &cluster.uid().unwrap_or_default()).await;
        return Ok(Report { step: Step::None, news: None, again: IDLE_INTERVAL });
    }
    let secret = cluster_secret(cluster, context).await?;
    let snapshot = context.source.snapshot(cluster);
    let world = dereference(cluster, snapshot, secret.clone(), &*context.nodes).await;
    let cluster_id = world.observed.recorded.clone();
    match validate(cluster, cluster_id.as_deref()) {
        Ok(valid) => bring_on(cluster, context, world, valid).await,
        Err(invalid) => {
            let message = invalid.to_string();
            let outcome = Outcome {
                observed: &world.observed,
                wanted: None,
                decision: None,
                cluster_id,
                problems: vec![message.clone()],
            };
            write_status(cluster, context, &outcome).await?;
            let news = News { reason: "Invalid", message, warning: true };
            Ok(Report { step: Step::None, news: Some(news), again: IDLE_INTERVAL })
        }
    }
}

/// Forgets a cluster whose resource is gone.
pub async fn forget(context: &Context, uid: &str) {
    context.recent.lock().expect("not poisoned").remove(uid);
    context.nodes.forget(uid).await;
}

async fn bring_on(
    cluster: &DebrosCluster,
    context: &Context,
    mut world: World,
    mut valid: Valid,
) -> Result<Report, ReconcileError> {
    let mut decision = decide(&valid.wanted, &world.observed);
    if decision.is_disruptive(&world.observed) {
        // Over what is now, and not over what a cache still shows.
        world = read_again(cluster, context, &world).await?;
        let again = decide(&valid.wanted, &world.observed);
        if !is_same(&again.step, &decision.step) {
            tracing::debug!(first = ?decision.step, second = ?again.step, "decided otherwise at the second look");
            decision = Decision { step: Step::None, ..again };
        } else {
            decision = again;
        }
    }
    let mut cluster_id = world.observed.recorded.clone();
    if let Step::Record(id) = &decision.step {
        cluster_id = Some(id.clone());
        valid = validate(cluster, Some(id)).unwrap_or(valid);
    }
    let mut problems: Vec<String> = world.unusable.iter().cloned().collect();
    let written = write_objects(cluster, context, &world, &valid, &decision, cluster_id.as_deref()).await;
    let written = match written {
        Ok(written) => written,
        Err(error) if error.is_conflict() => return Err(error.into()),
        Err(error) => {
            problems.push(error.to_string());
            let outcome = outcome(&world, &valid, &decision, cluster_id, problems);
            write_status(cluster, context, &outcome).await?;
            return Err(error.into());
        }
    };
    problems.extend(written.missing.iter().map(|object| {
        format!("{object}: the Prometheus operator is not installed; install it, or set spec.monitoring.serviceMonitor to false")
    }));
    problems.extend(written.foreign.iter().map(|object| {
        format!("{object} is somebody else's and is left alone: delete or rename it, or make this cluster under another name")
    }));
    let done = if world.unusable.is_none() && written.foreign.is_empty() && !cluster.spec.paused {
        apply::carry_out(&context.client, cluster, &decision.step, &world, &*context.nodes, &context.hold)
            .await
    } else {
        decision.step = Step::None;
        Ok(None)
    };
    let failed = match done {
        Ok(new) => {
            if let Some(id) = new.filter(|_| cluster_id.is_none()) {
                cluster_id = Some(id.clone());
                valid = validate(cluster, Some(&id)).unwrap_or(valid);
                write_objects(cluster, context, &world, &valid, &decision, Some(&id)).await?;
            }
            None
        }
        Err(error) => {
            problems.push(error.to_string());
            Some(error)
        }
    };
    problems.extend(keep_up(cluster, context, &world, &valid).await);
    let outcome = outcome(&world, &valid, &decision, cluster_id, problems);
    write_status(cluster, context, &outcome).await?;
    let news = news(&decision, &outcome);
    if let Some(error) = failed {
        return Err(error.into());
    }
    context.metrics.step(&decision.step);
    let rests = decision.step == Step::None && decision.progress.is_none();
    let again = if rests { IDLE_INTERVAL } else { BUSY_INTERVAL };
    Ok(Report { step: decision.step, news, again })
}

fn outcome<'a>(
    world: &'a World,
    valid: &'a Valid,
    decision: &'a Decision,
    cluster_id: Option<String>,
    problems: Vec<String>,
) -> Outcome<'a> {
    Outcome {
        observed: &world.observed,
        wanted: Some(&valid.wanted),
        decision: Some(decision),
        cluster_id,
        problems,
    }
}

fn news(decision: &Decision, outcome: &Outcome<'_>) -> Option<News> {
    if let Some(problem) = outcome.problems.first() {
        return Some(News { reason: "Refused", message: problem.clone(), warning: true });
    }
    let progress = decision.progress.clone().unwrap_or_default();
    let reason = match &decision.step {
        Step::Initialise(_) => "Initialised",
        Step::Record(_) => "Found",
        Step::TakeOut { .. } => "Leaving",
        Step::Restart { .. } => "Restarted",
        Step::None => {
            let blocked = decision.blocked.first()?;
            return Some(News { reason: "Blocked", message: blocked.reason.clone(), warning: true });
        }
    };
    Some(News { reason, message: progress, warning: false })
}

/// Whether two looks led to the same step: the version of a pod's object may have moved on between them.
fn is_same(one: &Step, other: &Step) -> bool {
    match (one, other) {
        (Step::Restart { pod, uid, .. }, Step::Restart { pod: other, uid: other_uid, .. }) => {
            pod == other && uid == other_uid
        }
        (one, other) => one == other,
    }
}

async fn read_again(
    cluster: &DebrosCluster,
    context: &Context,
    world: &World,
) -> Result<World, ReconcileError> {
    let read = Snapshot::read(&context.client, &build::names(cluster)).await;
    let snapshot = read.map_err(|source| ReconcileError::Read { what: "the cluster's objects", source })?;
    Ok(dereference(cluster, snapshot, world.place.secret.clone(), &*context.nodes).await)
}

async fn write_objects(
    cluster: &DebrosCluster,
    context: &Context,
    world: &World,
    valid: &Valid,
    decision: &Decision,
    cluster_id: Option<&str>,
) -> Result<apply::Written, ApplyError> {
    if cluster.spec.paused {
        return Ok(apply::Written::default());
    }
    let missing = build::secret_name(cluster).is_some() && world.place.secret.is_none();
    // A secret that was lost must not be replaced by another one: nodes that run would not know each other any more.
    let may_make = cluster.spec.admission.secret_name.is_none()
        && cluster_id.is_none()
        && world.observed.pods.is_empty();
    let new_secret =
        (missing && may_make).then(|| Alphanumeric.sample_string(&mut rand::rng(), SECRET_CHARACTERS));
    let shape = Shape {
        cluster_id: cluster_id.map(str::to_owned),
        replicas: decision.replicas,
        template_sizes: world.template_sizes.clone(),
        budget: budget(&world.observed),
        former_revisions: BySet::default(),
        new_secret: new_secret.clone(),
    };
    let mut objects = build::build(cluster, &valid.plan, &shape);
    leave_out_what_was_written(cluster, context, &mut objects);
    let written = apply::apply(&context.client, cluster, &objects, &world.snapshot).await?;
    if let Some(secret) = new_secret {
        let known = (Instant::now(), secret.into_bytes());
        with_recent(context, cluster, |recent| recent.secret = Some(known));
    }
    apply::prune(&context.client, cluster, &objects, world).await?;
    Ok(written)
}

/// A ServiceMonitor cannot be watched where its kind is not known, so it is looked at now and then.
fn leave_out_what_was_written(cluster: &DebrosCluster, context: &Context, objects: &mut Vec<Object>) {
    objects.retain(|object| {
        let hash = build::hash(&[&object.value.to_string()]);
        object.kind != Kind::ServiceMonitor
            || with_recent(context, cluster, |recent| {
                let known =
                    recent.monitor.as_ref().is_some_and(|(at, of)| *of == hash && at.elapsed() < RECENT);
                if !known {
                    recent.monitor = Some((Instant::now(), hash.clone()));
                }
                !known
            })
    });
}

/// What is kept up beside the steps, since it disturbs nobody: volumes grow, and nodes log what they should. Gives what
/// was refused.
async fn keep_up(cluster: &DebrosCluster, context: &Context, world: &World, valid: &Valid) -> Vec<String> {
    if cluster.spec.paused {
        return Vec::new();
    }
    let mut refused = grow_volumes(cluster, context, world).await;
    for (pod, _) in world.observed.answering() {
        let level = &valid.plan.configs.of(pod.id.role).log_level;
        let told = with_recent(context, cluster, |recent| recent.log_levels.get(&pod.uid) == Some(level));
        if told {
            continue;
        }
        match context.nodes.set_log_level(&world.place, pod.id, level).await {
            Ok(()) => with_recent(context, cluster, |recent| {
                recent.log_levels.insert(pod.uid.clone(), level.clone());
            }),
            Err(error) => refused.push(format!("{}: {error}", pod.name)),
        }
    }
    with_recent(context, cluster, |recent| {
        recent.log_levels.retain(|uid, _| world.observed.pods.iter().any(|pod| pod.uid == *uid));
    });
    refused
}

async fn grow_volumes(cluster: &DebrosCluster, context: &Context, world: &World) -> Vec<String> {
    let names = build::names(cluster);
    let mut refused = Vec::new();
    for pod in &world.observed.pods {
        let size = match pod.id.role {
            crate::names::Role::Bootstrap => &cluster.spec.bootstrap.storage.size,
            crate::names::Role::Peer => &cluster.spec.peers.storage.size,
        };
        let name = names.claim(pod.id.role, pod.id.ordinal);
        let claim = world.snapshot.claims.iter().find(|claim| claim.name_any() == name);
        let requests = claim.and_then(|claim| claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref());
        let Some(has) = requests.and_then(|requests| requests.get("storage")) else { continue };
        if !pod.claim.bound || quantity::bytes(&has.0) >= quantity::bytes(size) {
            continue;
        }
        let before = with_recent(context, cluster, |recent| recent.refused_growth.get(&name).cloned());
        if let Some((_, why)) = before.filter(|(at, _)| at.elapsed() < RECENT) {
            refused.push(why);
            continue;
        }
        if let Err(error) = apply::grow(&context.client, names.namespace, &name, size).await {
            let why = format!(
                "{name} does not grow from {} to {size}: {error}; set allowVolumeExpansion in its storage class if the \
                 driver can, or add nodes with larger volumes to the other set",
                has.0
            );
            with_recent(context, cluster, |recent| {
                recent.refused_growth.insert(name.clone(), (Instant::now(), why.clone()));
            });
            refused.push(why);
        }
    }
    refused
}

fn with_recent<T>(context: &Context, cluster: &DebrosCluster, work: impl FnOnce(&mut Recent) -> T) -> T {
    let mut recent = context.recent.lock().expect("not poisoned");
    work(recent.entry(cluster.uid().unwrap_or_default()).or_default())
}

/// The cluster secret; `None` with open admission, and while there is none.
async fn cluster_secret(
    cluster: &DebrosCluster,
    context: &Context,
) -> Result<Option<Vec<u8>>, ReconcileError> {
    let Some(name) = build::secret_name(cluster) else { return Ok(None) };
    let known = with_recent(context, cluster, |recent| recent.secret.clone());
    if let Some((at, secret)) = known
        && at.elapsed() < RECENT
    {
        return Ok(Some(secret));
    }
    let secrets = Api::<Secret>::namespaced(context.client.clone(), build::names(cluster).namespace);
    let secret = secrets.get_opt(&name).await;
    let secret = secret.map_err(|source| ReconcileError::Read { what: "the cluster secret", source })?;
    let given = cluster.spec.admission.secret_name.is_some();
    // One with the name that the operator would give, and not ours, is somebody else's.
    let ours = secret.filter(|secret| given || is_owned(secret, &cluster.uid().unwrap_or_default()));
    let bytes = ours.and_then(|secret| secret.data?.remove(SECRET_KEY)).map(|bytes| bytes.0);
    if let Some(bytes) = &bytes {
        let known = (Instant::now(), bytes.clone());
        with_recent(context, cluster, |recent| recent.secret = Some(known));
    }
    Ok(bytes)
}

async fn write_status(
    cluster: &DebrosCluster,
    context: &Context,
    outcome: &Outcome<'_>,
) -> Result<(), ReconcileError> {
    let mut outcome = outcome.clone();
    let pods_wait = build::secret_name(cluster).is_some()
        && with_recent(context, cluster, |recent| recent.secret.is_none());
    if pods_wait && (outcome.cluster_id.is_some() || cluster.spec.admission.secret_name.is_some()) {
        let name = build::secret_name(cluster).unwrap_or_default();
        outcome.problems.insert(0, format!(
            "the Secret {name} with the cluster secret under `{SECRET_KEY}` is missing: make it again from a backup; nodes \
             that run still have it, as `kubectl exec` shows under /etc/debros/secret"
        ));
    }
    let status = status(cluster, &outcome, Timestamp::now());
    context.metrics.cluster(cluster, &status);
    if cluster.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let names = build::names(cluster);
    let clusters = Api::<DebrosCluster>::namespaced(context.client.clone(), names.namespace);
    let patch = json!({
        "apiVersion": "debros.network/v1alpha1",
        "kind": "DebrosCluster",
        "metadata": { "uid": cluster.metadata.uid },
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patched = clusters.patch_status(names.cluster, &params, &Patch::Apply(&patch)).await;
    patched.map(drop).map_err(ReconcileError::Status)
}

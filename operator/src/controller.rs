//! Runs [`crate::reconcile`] for every resource that changed, whose objects changed, or whose time has come. A run that
//! failed is repeated after a pause that doubles, for each resource on its own, so that one that cannot succeed costs
//! little and the others nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{StreamExt, stream};
use kube::runtime::controller::{Action, Config, applier};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Resource, ResourceExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::caches::Changes;
use crate::crd::DebrosCluster;
use crate::reconcile::{Context, News, ReconcileError, forget, reconcile};

/// The first pause after a failure.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// The longest one.
const PAUSE_MAX: Duration = Duration::from_secs(120);
/// Changes that come within this are one.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// Clusters that are looked at at a time: a look waits for nodes most of its time.
const CONCURRENT_MAX: u16 = 16;
/// The longest note that Kubernetes takes is 1024 bytes.
const NOTE_CHARACTERS_MAX: usize = 900;

/// What the loop remembers between runs.
struct Loop {
    context: Context,
    recorder: Recorder,
    failures: Mutex<HashMap<String, u32>>,
    told: Mutex<HashMap<String, News>>,
    known: Mutex<HashMap<ObjectRef<DebrosCluster>, String>>,
}

/// Works until it is stopped, beginning with all clusters that there are; runs that have begun are finished.
pub async fn run(
    context: Context,
    recorder: Recorder,
    clusters: Store<DebrosCluster>,
    changes: Changes,
    stop: CancellationToken,
) {
    let state = Arc::new(Loop {
        context,
        recorder,
        failures: Mutex::default(),
        told: Mutex::default(),
        known: Mutex::default(),
    });
    let config = Config::default().debounce(DEBOUNCE).concurrency(CONCURRENT_MAX);
    let all: Vec<_> = clusters.state().iter().map(|cluster| Ok(ObjectRef::from_obj(&**cluster))).collect();
    let queue = stream::iter(all).chain(changes).take_until(stop.cancelled_owned());
    let work = |cluster: Arc<DebrosCluster>, state: Arc<Loop>| Box::pin(run_once(cluster, state));
    let runs = applier(work, pause, Arc::clone(&state), clusters.clone(), queue, config);
    runs.for_each(|run| {
        let state = Arc::clone(&state);
        let clusters = clusters.clone();
        async move {
            if let Err(error) = run {
                tracing::debug!(%error, "a run ended early");
            }
            state.forget_gone(&clusters).await;
        }
    })
    .await;
}

async fn run_once(cluster: Arc<DebrosCluster>, state: Arc<Loop>) -> Result<Action, ReconcileError> {
    let (started, uid) = (Instant::now(), cluster.uid().unwrap_or_default());
    state.known.lock().expect("not poisoned").insert(ObjectRef::from_obj(&*cluster), uid.clone());
    let done = reconcile(&cluster, &state.context).await;
    let outcome = match &done {
        Ok(_) => "ok",
        Err(ReconcileError::Apply(error)) if error.is_conflict() => "conflict",
        Err(_) => "failed",
    };
    state.context.metrics.run(outcome, started.elapsed());
    let report = done?;
    state.failures.lock().expect("not poisoned").remove(&uid);
    state.tell(&cluster, &uid, report.news).await;
    Ok(Action::requeue(report.again))
}

fn pause(cluster: Arc<DebrosCluster>, error: &ReconcileError, state: Arc<Loop>) -> Action {
    let uid = cluster.uid().unwrap_or_default();
    let mut failures = state.failures.lock().expect("not poisoned");
    let failed = failures.entry(uid).or_default();
    *failed += 1;
    let pause = PAUSE_MIN.saturating_mul(1 << (*failed - 1).min(10)).min(PAUSE_MAX);
    let conflict = matches!(error, ReconcileError::Apply(error) if error.is_conflict());
    if conflict {
        tracing::debug!(cluster = cluster.name_any(), %error, "what was read has changed meanwhile");
    } else {
        tracing::warn!(cluster = cluster.name_any(), %error, ?pause, "a cluster is looked at again later");
    }
    Action::requeue(pause)
}

impl Loop {
    /// Tells once what is new.
    async fn tell(&self, cluster: &DebrosCluster, uid: &str, news: Option<News>) {
        let Some(news) = news else {
            self.told.lock().expect("not poisoned").remove(uid);
            return;
        };
        let before = self.told.lock().expect("not poisoned").insert(uid.to_owned(), news.clone());
        if before.as_ref() == Some(&news) {
            return;
        }
        let event = Event {
            type_: if news.warning { EventType::Warning } else { EventType::Normal },
            reason: news.reason.to_owned(),
            note: Some(news.message.chars().take(NOTE_CHARACTERS_MAX).collect()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &cluster.object_ref(&())).await {
            tracing::debug!(%error, "an event was not taken");
        }
    }

    /// Forgets resources that are gone.
    async fn forget_gone(&self, clusters: &Store<DebrosCluster>) {
        let gone: Vec<(ObjectRef<DebrosCluster>, String)> = {
            let mut known = self.known.lock().expect("not poisoned");
            let current = |known: &ObjectRef<DebrosCluster>, uid: &str| {
                clusters.get(known).is_some_and(|cluster| cluster.metadata.uid.as_deref() == Some(uid))
            };
            let gone: Vec<_> = known
                .iter()
                .filter(|(known, uid)| !current(known, uid))
                .map(|(known, uid)| (known.clone(), uid.clone()))
                .collect();
            for (cluster, _) in &gone {
                known.remove(cluster);
            }
            gone
        };
        for (cluster, uid) in gone {
            forget(&self.context, &uid).await;
            self.failures.lock().expect("not poisoned").remove(&uid);
            self.told.lock().expect("not poisoned").remove(&uid);
            if clusters.get(&cluster).is_none() {
                self.context.metrics.forget(cluster.namespace.as_deref().unwrap_or_default(), &cluster.name);
            }
        }
    }
}

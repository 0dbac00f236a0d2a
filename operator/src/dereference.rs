//! Reads what there is: the objects of a cluster, its secret, and what its nodes say; and makes one picture of it.
//! Decides nothing, and leaves out what is not ours.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ContainerStatus, PersistentVolumeClaim, Pod as KubePod};
use kube::ResourceExt;

use crate::build::{self, Kind};
use crate::crd::DebrosCluster;
use crate::names::{BySet, CLAIM, Names, P2P_PORT, REVISION, Role};
use crate::nodes::{Answers, NodeError, Nodes, Place, PodAddress};
use crate::observed::{Claim, Observed, Pod, PodId, SpareClaim};
use crate::snapshot::{Snapshot, is_owned};

/// Waiting reasons that mean more than "not yet".
const WAITING_TROUBLES: [&str; 8] = [
    "CrashLoopBackOff",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

/// A cluster as it is.
#[derive(Clone, Debug)]
pub struct World {
    /// Its objects.
    pub snapshot: Snapshot,
    /// The picture that decisions are made of.
    pub observed: Observed,
    /// Whom to ask.
    pub place: Place,
    /// Why the nodes could not be asked at all.
    pub unusable: Option<String>,
    /// Sizes of the StatefulSets' claim templates.
    pub template_sizes: BySet<Option<String>>,
    /// Revisions that pods run.
    pub revisions: BySet<BTreeSet<String>>,
}

/// Looks at a cluster.
pub async fn dereference(
    cluster: &DebrosCluster,
    snapshot: Snapshot,
    secret: Option<Vec<u8>>,
    nodes: &dyn Nodes,
) -> World {
    let (names, uid) = (build::names(cluster), cluster.uid().unwrap_or_default());
    let sets = BySet::make(|role| stateful_set(&snapshot, &names, role, &uid));
    let pods = our_pods(&snapshot, &names, &sets);
    let addresses = pods.iter().filter_map(|(id, pod)| {
        Some(PodAddress { id: *id, uid: pod.uid().unwrap_or_default(), address: address(pod)? })
    });
    let place = Place { uid, secret, pods: addresses.collect() };
    let missing_secret = build::secret_name(cluster).is_some() && place.secret.is_none();
    let asked = if missing_secret { Ok(Answers::default()) } else { nodes.look(&place).await };
    let (answers, unusable) = match asked {
        Ok(answers) => (answers, None),
        Err(error @ NodeError::Unusable(_)) => (Answers::default(), Some(error.to_string())),
        Err(error) => {
            tracing::warn!(%error, "the nodes were not asked");
            (Answers::default(), None)
        }
    };
    let observed = observe(cluster, &snapshot, &sets, &pods, answers);
    let mut revisions: BySet<BTreeSet<String>> = BySet::default();
    for pod in &observed.pods {
        revisions.of_mut(pod.id.role).insert(pod.revision.clone());
    }
    let template_sizes = BySet::make(|role| sets.of(role).as_ref().and_then(template_size));
    World { snapshot, observed, place, unusable, template_sizes, revisions }
}

fn observe(
    cluster: &DebrosCluster,
    snapshot: &Snapshot,
    sets: &BySet<Option<StatefulSet>>,
    pods: &[(PodId, Arc<KubePod>)],
    mut answers: Answers,
) -> Observed {
    let names = build::names(cluster);
    let mut seen: Vec<Pod> = Vec::new();
    for (id, pod) in pods {
        let claim_name = names.claim(id.role, id.ordinal);
        let claim = snapshot.claims.iter().find(|claim| claim.name_any() == claim_name);
        seen.push(Pod { node: answers.nodes.remove(id), ..pod_of(cluster, *id, pod, claim) });
    }
    let spare = snapshot.claims.iter().filter_map(|claim| {
        let name = claim.name_any();
        let (role, ordinal) = names.parse_pod(name.strip_prefix(CLAIM)?.strip_prefix('-')?)?;
        let id = PodId { role, ordinal };
        let used = pods.iter().any(|(pod, _)| *pod == id);
        (!used).then(|| SpareClaim { bound: is_bound(claim), name, id })
    });
    let status = cluster.status.as_ref();
    let known = status.iter().flat_map(|status| &status.members).filter_map(|member| {
        let (role, ordinal) = names.parse_pod(&member.pod)?;
        (!member.peer_id.is_empty()).then(|| (PodId { role, ordinal }, member.peer_id.clone()))
    });
    Observed {
        recorded: recorded(cluster, snapshot),
        sets: BySet::make(|role| {
            sets.of(role).as_ref().map(|set| set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1))
        }),
        spare_claims: spare.collect(),
        members: answers.members,
        known: known.collect(),
        warnings: answers.warnings,
        pods: seen,
    }
}

/// The id of the cluster as it was written down: apart from the status, which may be lost; and in the status.
fn recorded(cluster: &DebrosCluster, snapshot: &Snapshot) -> Option<String> {
    let uid = cluster.uid().unwrap_or_default();
    let record = snapshot.get(Kind::ConfigMap, &build::names(cluster).record());
    let record = record.filter(|record| is_owned(*record, &uid));
    let told = record.and_then(|record| record.data["data"]["clusterId"].as_str()).map(str::to_owned);
    told.or_else(|| cluster.status.as_ref()?.cluster_id.clone()).filter(|id| !id.is_empty())
}

fn stateful_set(snapshot: &Snapshot, names: &Names<'_>, role: Role, uid: &str) -> Option<StatefulSet> {
    let set = snapshot.get(Kind::StatefulSet, &names.set(role)).filter(|set| is_owned(*set, uid))?;
    serde_json::from_value(crate::snapshot::value(Kind::StatefulSet, set)).ok()
}

fn template_size(set: &StatefulSet) -> Option<String> {
    let template = set.spec.as_ref()?.volume_claim_templates.as_ref()?.first()?;
    let requests = template.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
    Some(requests.get("storage")?.0.clone())
}

/// The pods of our StatefulSets, and those that one of them left behind.
fn our_pods(
    snapshot: &Snapshot,
    names: &Names<'_>,
    sets: &BySet<Option<StatefulSet>>,
) -> Vec<(PodId, Arc<KubePod>)> {
    let mut pods: Vec<(PodId, Arc<KubePod>)> = Vec::new();
    for pod in &snapshot.pods {
        let Some((role, ordinal)) = names.parse_pod(&pod.name_any()) else { continue };
        let owner = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
        let set = sets.of(role).as_ref().and_then(|set| set.metadata.uid.as_deref());
        // Without an owner it waits for its StatefulSet to be made again; with another one it is somebody else's.
        let ours = owner.is_none_or(|owner| {
            owner.kind == "StatefulSet"
                && owner.name == names.set(role)
                && set.is_none_or(|uid| uid == owner.uid)
        });
        if ours {
            pods.push((PodId { role, ordinal }, Arc::clone(pod)));
        }
    }
    pods.sort_by_key(|(id, _)| *id);
    pods
}

/// By its address and not by its name: what answers there is this very pod, and not one that had its name before.
fn address(pod: &KubePod) -> Option<String> {
    let ip: IpAddr = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
    let family = if ip.is_ipv4() { "ip4" } else { "ip6" };
    Some(format!("/{family}/{ip}/tcp/{P2P_PORT}"))
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).is_some_and(|phase| phase != "Pending")
}

fn pod_of(
    cluster: &DebrosCluster,
    id: PodId,
    pod: &KubePod,
    claim: Option<&Arc<PersistentVolumeClaim>>,
) -> Pod {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let ready = conditions.is_some_and(|all| {
        all.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    });
    let container = status.and_then(|status| status.container_statuses.as_ref()?.first());
    let earlier = claim.is_some_and(|claim| {
        let (of_claim, of_cluster) =
            (&claim.metadata.creation_timestamp, &cluster.metadata.creation_timestamp);
        of_claim.as_ref().zip(of_cluster.as_ref()).is_some_and(|(claim, cluster)| claim.0 < cluster.0)
    });
    Pod {
        id,
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        resource_version: pod.resource_version().unwrap_or_default(),
        ready,
        running: container.and_then(|container| container.state.as_ref()?.running.as_ref()).is_some(),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        revision: pod.labels().get(REVISION).cloned().unwrap_or_default(),
        claim: Claim { bound: claim.is_some_and(|claim| is_bound(claim)), earlier },
        trouble: trouble(pod, container, claim),
        node: None,
    }
}

/// What Kubernetes does not get on with, and the next step.
fn trouble(
    pod: &KubePod,
    container: Option<&ContainerStatus>,
    claim: Option<&Arc<PersistentVolumeClaim>>,
) -> Option<String> {
    let name = pod.name_any();
    let status = pod.status.as_ref()?;
    let waiting = container.and_then(|container| container.state.as_ref()?.waiting.as_ref());
    if let Some(reason) = waiting.and_then(|waiting| waiting.reason.as_deref())
        && WAITING_TROUBLES.contains(&reason)
    {
        let message = waiting.and_then(|waiting| waiting.message.as_deref()).unwrap_or_default();
        let next = match reason {
            "CrashLoopBackOff" => format!("see why with `kubectl logs {name} --previous`"),
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                format!("see `kubectl describe pod {name}`")
            }
            _ => "correct spec.image, or make the image available".to_owned(),
        };
        return Some(format!("{reason}: {}; {next}", message.trim_end_matches('.')));
    }
    let unschedulable = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    let unscheduled = unschedulable?;
    let why = unscheduled.message.as_deref().unwrap_or("no machine fits");
    let unbound = claim.is_some_and(|claim| !is_bound(claim));
    let next = match unbound && why.to_lowercase().contains("volume") {
        true => {
            format!("see `kubectl describe pvc data-{name}`: does its storage class exist and have room?")
        }
        false => "add machines, or lower what the set asks for".to_owned(),
    };
    Some(format!("not scheduled: {}; {next}", why.trim_end_matches('.')))
}

//! What objects there must be: pure functions of the resource and of what was decided. They are JSON with exactly the
//! fields that are ours, as server-side apply wants them, and nothing that Kubernetes fills in.

pub mod config;
mod pods;
mod policies;
mod services;
mod sets;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use kube::ResourceExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::crd::{AdmissionMode, DebrosCluster};
use crate::names::{BySet, Names, Role};
use config::{ConfigProblem, Rendered};

/// Characters of a hash in names and labels: enough that no two revisions of a cluster meet.
const HASH_CHARACTERS: usize = 10;

/// The kinds of objects that are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1`
    ServiceAccount,
    /// `v1`
    ConfigMap,
    /// `v1`
    Secret,
    /// `v1`
    Service,
    /// `apps/v1`
    StatefulSet,
    /// `policy/v1`
    PodDisruptionBudget,
    /// `networking.k8s.io/v1`
    NetworkPolicy,
    /// `monitoring.coreos.com/v1`, where the Prometheus operator is.
    ServiceMonitor,
}

impl Kind {
    /// The group; empty for the core.
    pub fn group(self) -> &'static str {
        match self {
            Self::ServiceAccount | Self::ConfigMap | Self::Secret | Self::Service => "",
            Self::StatefulSet => "apps",
            Self::PodDisruptionBudget => "policy",
            Self::NetworkPolicy => "networking.k8s.io",
            Self::ServiceMonitor => "monitoring.coreos.com",
        }
    }

    /// Group and version.
    pub fn api_version(self) -> String {
        match self.group() {
            "" => "v1".to_owned(),
            group => format!("{group}/v1"),
        }
    }

    /// The kind's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ServiceAccount => "ServiceAccount",
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
            Self::Service => "Service",
            Self::StatefulSet => "StatefulSet",
            Self::PodDisruptionBudget => "PodDisruptionBudget",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ServiceMonitor => "ServiceMonitor",
        }
    }

    /// The kind in paths.
    pub fn plural(self) -> &'static str {
        match self {
            Self::ServiceAccount => "serviceaccounts",
            Self::ConfigMap => "configmaps",
            Self::Secret => "secrets",
            Self::Service => "services",
            Self::StatefulSet => "statefulsets",
            Self::PodDisruptionBudget => "poddisruptionbudgets",
            Self::NetworkPolicy => "networkpolicies",
            Self::ServiceMonitor => "servicemonitors",
        }
    }
}

/// An object as it must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// All of it that is ours, without owner and namespace.
    pub value: Value,
}

impl Object {
    fn new(kind: Kind, name: String, mut value: Value) -> Self {
        value["apiVersion"] = Value::String(kind.api_version());
        value["kind"] = Value::String(kind.as_str().to_owned());
        value["metadata"]["name"] = Value::String(name.clone());
        Self { kind, name, value }
    }
}

/// What follows from the resource alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The configurations.
    pub configs: BySet<Rendered>,
    /// The revisions of the pods.
    pub revisions: BySet<String>,
}

/// What of the cluster goes into its objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shape {
    /// The id of the cluster, once there is one.
    pub cluster_id: Option<String>,
    /// Replicas of the StatefulSets.
    pub replicas: BySet<i32>,
    /// Sizes of the claims' templates, where StatefulSets are there: a template cannot be changed.
    pub template_sizes: BySet<Option<String>>,
    /// Pods that may be evicted at a time.
    pub budget: i32,
    /// Revisions besides the wanted one that pods still run.
    pub former_revisions: BySet<Vec<String>>,
    /// The cluster secret, when it is to be made.
    pub new_secret: Option<String>,
}

/// The names of a resource's objects.
pub fn names(cluster: &DebrosCluster) -> Names<'_> {
    Names {
        namespace: cluster.metadata.namespace.as_deref().unwrap_or_default(),
        cluster: cluster.metadata.name.as_deref().unwrap_or_default(),
    }
}

/// The configurations and the revisions that follow from them.
///
/// # Errors
/// When the configuration is not valid.
pub fn plan(cluster: &DebrosCluster, cluster_id: Option<&str>) -> Result<Plan, ConfigProblem> {
    let configs = BySet {
        bootstrap: config::render(cluster, Role::Bootstrap, cluster_id)?,
        peer: config::render(cluster, Role::Peer, cluster_id)?,
    };
    let revisions = BySet::make(|role| {
        let template = pods::template(cluster, role, "");
        hash(&[&configs.of(role).restart_relevant, &template.to_string()])
    });
    Ok(Plan { configs, revisions })
}

/// All objects of a cluster, in the order in which they are written.
pub fn build(cluster: &DebrosCluster, plan: &Plan, shape: &Shape) -> Vec<Object> {
    let names = names(cluster);
    let mut objects = vec![policies::account(&names)];
    if let Some(id) = &shape.cluster_id {
        objects.push(record(&names, id));
    }
    if let Some(secret) = &shape.new_secret {
        objects.push(cluster_secret(&names, secret));
    }
    for role in Role::ALL {
        objects.push(config_map(&names, role, plan.revisions.of(role), plan.configs.of(role)));
        objects.push(services::headless(&names, role));
    }
    objects.push(services::client(cluster));
    objects.push(policies::budget(&names, shape.budget));
    if cluster.spec.network_policy.enabled {
        objects.push(policies::network_policy(cluster));
    }
    if cluster.spec.monitoring.service_monitor {
        objects.push(services::monitor(cluster));
    }
    objects.extend(Role::ALL.map(|role| sets::stateful_set(cluster, role, plan, shape)));
    objects
}

/// The name of the Secret with the cluster secret; `None` with open admission.
pub fn secret_name(cluster: &DebrosCluster) -> Option<String> {
    let admission = &cluster.spec.admission;
    match admission.mode {
        AdmissionMode::Open => None,
        AdmissionMode::Closed => {
            Some(admission.secret_name.clone().unwrap_or_else(|| names(cluster).secret()))
        }
    }
}

/// The name of the cluster's record, and what its data is.
fn record(names: &Names<'_>, cluster_id: &str) -> Object {
    let value = json!({
        "metadata": { "labels": names.labels() },
        "data": { "clusterId": cluster_id },
    });
    Object::new(Kind::ConfigMap, names.record(), value)
}

fn cluster_secret(names: &Names<'_>, secret: &str) -> Object {
    let value = json!({
        "metadata": { "labels": names.labels() },
        "type": "Opaque",
        "stringData": { crate::names::SECRET_KEY: secret },
    });
    Object::new(Kind::Secret, names.secret(), value)
}

fn config_map(names: &Names<'_>, role: Role, revision: &str, rendered: &Rendered) -> Object {
    let value = json!({
        "metadata": { "labels": names.set_labels(role) },
        "data": { config::FILE: rendered.yaml },
    });
    Object::new(Kind::ConfigMap, names.config(role, revision), value)
}

/// A short hash of texts.
pub fn hash(texts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for text in texts {
        digest.update(text.len().to_be_bytes());
        digest.update(text);
    }
    let mut hash = String::new();
    for byte in digest.finalize() {
        let _ = write!(hash, "{byte:02x}");
    }
    hash.truncate(HASH_CHARACTERS);
    hash
}

/// The reference by which Kubernetes deletes an object with the resource.
pub fn owner_reference(cluster: &DebrosCluster) -> Value {
    json!([{
        "apiVersion": "debros.network/v1alpha1",
        "kind": "DebrosCluster",
        "name": cluster.name_any(),
        "uid": cluster.metadata.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    }])
}

//! What the operator found. Nothing in it changes without a cause: no time stamps but those of conditions that turned,
//! and no counters.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The status of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DebrosClusterStatus {
    /// The generation of the spec that this was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What is being done, or what is wrong and what to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Ready members of all that are wanted, as `3/3`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// The cluster's id, once it is initialised; it never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// The revision that all nodes run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_revision: Option<String>,
    /// The revision that all nodes are to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_revision: Option<String>,
    /// Selects the pods of the peers, for the scale subresource.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// The first nodes.
    #[serde(default)]
    pub bootstrap: SetStatus,
    /// The further nodes.
    #[serde(default)]
    pub peers: SetStatus,
    /// Each node.
    #[serde(default)]
    pub members: Vec<Member>,
    /// Available, Progressing, Degraded, QuorumHealthy and Reconciled.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// The status of a set of nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SetStatus {
    /// Pods that there are.
    #[serde(default)]
    pub replicas: i32,
    /// Of them, those that are ready.
    #[serde(default)]
    pub ready: i32,
}

/// The status of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Its pod; a member whose pod is gone is listed without one until it is taken out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// Its PeerId.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub peer_id: String,
    /// Its number in the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<u64>,
    /// `voter` or `learner` in the cluster's own Raft group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub role: String,
    /// `bootstrap` or `peer`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub set: String,
    /// Its version of debros.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// The revision of its pod.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub revision: String,
    /// Its zone.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// How far its replicas are behind: `current` or `behind`. A figure would change at every look.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub lag: String,
    /// Whether it serves.
    #[serde(default)]
    pub ready: bool,
    /// Why it does not get on, and the next step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_reason: Option<String>,
}

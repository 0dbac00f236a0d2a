//! What a user asks for.

#![allow(clippy::duplicated_attributes, reason = "each column has a type of its own")]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, LocalObjectReference, ResourceRequirements, Toleration, TopologySpreadConstraint,
};
use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::node_config::NodeConfig;
use super::status::DebrosClusterStatus;

/// A cluster of debros: SQL databases, a key-value storage and messages, replicated over its nodes.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "debros.network",
    version = "v1alpha1",
    kind = "DebrosCluster",
    plural = "debrosclusters",
    shortname = "dbc",
    category = "all",
    namespaced,
    status = "DebrosClusterStatus",
    derive = "PartialEq",
    doc = "A cluster of debros: SQL databases, a key-value storage and messages, replicated over its nodes.",
    scale(
        spec_replicas_path = ".spec.peers.replicas",
        status_replicas_path = ".status.peers.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.summary",
        description = "Ready members of all"
    ),
    printcolumn(
        name = "Available",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Available\")].status",
        description = "Whether it serves"
    ),
    printcolumn(
        name = "Progressing",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Progressing\")].status",
        description = "Whether something is being changed"
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = ".status.message",
        description = "What is being done, or what is wrong and what to do"
    ),
    printcolumn(name = "Cluster", type_ = "string", json_path = ".status.clusterId", priority = 1),
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.image", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct DebrosClusterSpec {
    /// The image of the nodes. Another one is rolled out node by node, and stops at the first that does not come back.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// When the image is pulled; by Kubernetes' own rule when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<PullPolicy>,
    /// Secrets to pull it with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// The first nodes, which all others find the cluster by: 1, 3 or 5.
    #[serde(default = "NodeSet::bootstrap")]
    pub bootstrap: NodeSet,
    /// Further nodes, as many as wanted. `kubectl scale` changes their number.
    #[serde(default = "NodeSet::peers")]
    pub peers: NodeSet,
    /// The nodes' configuration, by section, with the keys of docs/configuration.md less those that the operator
    /// owns. What is left out has the default of the node's version.
    #[serde(default, skip_serializing_if = "NodeConfig::is_empty")]
    pub config: NodeConfig,
    /// Replicas of a new database, and of every key of the storage.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 7))]
    pub replication_factor: u8,
    /// Who may connect to the cluster.
    #[serde(default)]
    pub admission: Admission,
    /// TLS of the nodes' HTTP listeners. Peer-to-peer connections are always encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// The Service that clients connect to.
    #[serde(default)]
    pub service: ServiceSpec,
    /// Who may reach the pods over the network.
    #[serde(default)]
    pub network_policy: NetworkPolicySpec,
    /// How Prometheus finds the nodes.
    #[serde(default)]
    pub monitoring: Monitoring,
    /// Whether the operator leaves the cluster as it is: it goes on to report, and changes nothing.
    #[serde(default)]
    pub paused: bool,
    /// What becomes of volumes.
    #[serde(default)]
    pub volumes: VolumeSpec,
    /// A node that has been out of reach for so long counts as gone for good: its votes and replicas move to others.
    #[serde(default = "five_minutes")]
    #[schemars(regex(pattern = r"^([0-9]+(ms|s|m|h|d))+$"), length(max = 32))]
    pub node_loss_delay: String,
}

/// One of the two sets of nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeSet {
    /// How many nodes.
    #[serde(default)]
    #[schemars(range(min = 0, max = 200))]
    pub replicas: i32,
    /// The volume of each node.
    #[serde(default)]
    pub storage: StorageSpec,
    /// Processor and memory of each node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Where pods may run; replaces the operator's own preference for different machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Taints that pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<Toleration>,
    /// How pods are spread; replaces the operator's own, over zones and machines. A constraint without a
    /// labelSelector gets that of this set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    /// Further labels of the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub labels: BTreeMap<String, String>,
}

impl NodeSet {
    fn of(replicas: i32) -> Self {
        Self {
            replicas,
            storage: StorageSpec::default(),
            resources: None,
            affinity: None,
            tolerations: Vec::new(),
            topology_spread_constraints: None,
            labels: BTreeMap::new(),
        }
    }

    /// Three nodes.
    pub fn bootstrap() -> Self {
        Self::of(3)
    }

    /// None.
    pub fn peers() -> Self {
        Self::of(0)
    }
}

/// The volume of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageSpec {
    /// Its size. It may grow where the class allows that, and never shrink.
    #[serde(default = "ten_gibibytes")]
    #[schemars(length(min = 1, max = 32))]
    pub size: String,
    /// Its class; the cluster's default when absent. It cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub storage_class_name: Option<String>,
}

impl Default for StorageSpec {
    fn default() -> Self {
        Self { size: ten_gibibytes(), storage_class_name: None }
    }
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// At each start.
    Always,
    /// When the machine does not have it.
    IfNotPresent,
    /// Never: it must be there.
    Never,
}

impl PullPolicy {
    /// Kubernetes' word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Who may connect to the cluster, nodes and clients alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Admission {
    /// `Closed`: whoever proves the cluster secret. `Open`: everybody who can reach a pod. It cannot be changed.
    #[serde(default)]
    pub mode: AdmissionMode,
    /// A Secret of yours with the cluster secret under the key `secret`, at least 32 random bytes. Without one the
    /// operator makes `<name>-cluster-secret`. It cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: Option<String>,
}

/// Whether a secret is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AdmissionMode {
    /// The cluster secret must be proved.
    #[default]
    Closed,
    /// Nothing must be.
    Open,
}

/// TLS of the HTTP listeners.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// A Secret of type `kubernetes.io/tls`, with `tls.crt` and `tls.key`.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// The Service that clients connect to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// How it is reached.
    #[serde(default, rename = "type")]
    pub service_type: ServiceType,
    /// Its annotations, for load balancers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: BTreeMap<String, String>,
}

/// How a Service is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    /// From inside the Kubernetes cluster.
    #[default]
    ClusterIP,
    /// On a port of every machine.
    NodePort,
    /// By a load balancer.
    LoadBalancer,
}

impl ServiceType {
    /// Kubernetes' word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIP => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// Who may reach the pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicySpec {
    /// Whether there is a NetworkPolicy: nodes among themselves, the operator, and the clients below.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Who may use the cluster. Nobody named is every pod of every namespace, held back by admission alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub clients: Vec<NetworkPolicyPeer>,
}

impl Default for NetworkPolicySpec {
    fn default() -> Self {
        Self { enabled: true, clients: Vec::new() }
    }
}

/// How Prometheus finds the nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Monitoring {
    /// Whether pods carry the annotations `prometheus.io/scrape`, `port` and `path`.
    #[serde(default = "yes")]
    pub annotations: bool,
    /// Whether there is a ServiceMonitor, for the Prometheus operator.
    #[serde(default)]
    pub service_monitor: bool,
    /// Labels of the ServiceMonitor, by which a Prometheus chooses it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub service_monitor_labels: BTreeMap<String, String>,
}

impl Default for Monitoring {
    fn default() -> Self {
        Self { annotations: true, service_monitor: false, service_monitor_labels: BTreeMap::new() }
    }
}

/// What becomes of volumes that no node uses any more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSpec {
    /// When the DebrosCluster is deleted.
    #[serde(default)]
    pub when_deleted: Retention,
    /// When a node leaves because there are to be fewer.
    #[serde(default)]
    pub when_scaled: Retention,
}

/// Whether a volume is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Retention {
    /// It is kept until somebody deletes its claim.
    #[default]
    Retain,
    /// It is deleted.
    Delete,
}

impl Retention {
    /// Kubernetes' word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retain => "Retain",
            Self::Delete => "Delete",
        }
    }
}

fn three() -> u8 {
    3
}

fn ten_gibibytes() -> String {
    "10Gi".to_owned()
}

fn five_minutes() -> String {
    "5m".to_owned()
}

fn yes() -> bool {
    true
}

//! The resource `DebrosCluster`: its types, and the definition that a cluster is taught.
//!
//! The types are the schema; what a schema cannot say is in [`rules`], a table of CEL expressions with the message that a
//! user reads. Knows nothing of what is made of a resource.

pub mod node_config;
pub mod rules;
pub mod spec;
pub mod status;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

pub use node_config::NodeConfig;
pub use spec::{
    Admission, AdmissionMode, DebrosCluster, DebrosClusterSpec, Monitoring, NetworkPolicySpec, NodeSet,
    Retention, ServiceSpec, ServiceType, StorageSpec, Tls, VolumeSpec,
};
pub use status::{DebrosClusterStatus, Member, SetStatus};

/// Subtrees that Kubernetes defines: their descriptions are in Kubernetes' own documentation, and would be nine tenths of
/// the definition.
const FOREIGN: [&str; 6] =
    ["affinity", "tolerations", "topologySpreadConstraints", "resources", "imagePullSecrets", "clients"];

/// The definition that is installed, rules included.
pub fn definition() -> CustomResourceDefinition {
    let mut definition = serde_json::to_value(DebrosCluster::crd()).expect("a definition has a JSON form");
    let schema = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    strip(schema, false);
    rules::insert(schema);
    serde_json::from_value(definition).expect("a definition with rules is one")
}

/// The definition as the file that charts carry.
pub fn definition_yaml() -> String {
    let value = serde_json::to_value(definition()).expect("a definition has a JSON form");
    serde_saphyr::to_string(&value).expect("JSON has a YAML form")
}

/// Takes the descriptions out of foreign subtrees.
fn strip(schema: &mut Value, foreign: bool) {
    let Some(fields) = schema.as_object_mut() else { return };
    if foreign {
        fields.remove("description");
    }
    if let Some(properties) = fields.get_mut("properties").and_then(Value::as_object_mut) {
        for (name, property) in properties {
            strip(property, foreign || FOREIGN.contains(&name.as_str()));
        }
    }
    for below in ["items", "additionalProperties"] {
        if let Some(below) = fields.get_mut(below) {
            strip(below, foreign);
        }
    }
}

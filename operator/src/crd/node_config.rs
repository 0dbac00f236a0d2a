//! The part of the nodes' configuration that a user gives: the keys of debros-config, less those that the operator
//! owns. The schema is made from the same table that the node's own help is made from, and the value is read by the
//! node's own reader ([`crate::build::config`]), so nothing is said twice.

use std::borrow::Cow;
use std::collections::BTreeMap;

use debros_config::{Effect, KEYS, KeyDoc, Kind};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Keys that follow from the rest of the resource, or from where a pod runs.
pub const OWNED: &[(&str, &str)] = &[
    ("node.id", "it is the name of the pod"),
    ("node.type", "it follows from the set"),
    ("node.listen_addresses", "the operator chooses the ports"),
    ("node.data_dir", "the operator mounts the volume"),
    ("node.zone", "it is the zone of the machine"),
    ("database.data_dir", "the operator mounts the volume"),
    ("database.replication_factor", "set spec.replicationFactor"),
    ("database.rqlite_port", "the operator chooses the ports"),
    ("database.http_address", "the operator chooses the ports"),
    ("storage.data_dir", "the operator mounts the volume"),
    ("discovery.bootstrap_peers", "they are the pods of the set bootstrap"),
    ("discovery.enable_mdns", "there is no multicast between pods"),
    ("security.enable_tls", "set spec.tls"),
    ("security.certificate_file", "set spec.tls"),
    ("security.private_key_file", "set spec.tls"),
    ("security.cluster_secret_file", "set spec.admission"),
    ("security.allow_insecure_listeners", "set spec.tls"),
    ("logging.output_file", "Kubernetes keeps what a pod writes to standard error"),
    ("admin.address", "the operator chooses the ports"),
    ("admin.port", "the operator chooses the ports"),
    ("cluster.id", "the operator pins the cluster that it initialised"),
    ("cluster.lost_after", "set spec.nodeLossDelay"),
    ("cluster.rejoin", "a pod that is asked for again always joins anew"),
];

/// Sections of keys with their values.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeConfig(pub BTreeMap<String, Map<String, Value>>);

impl NodeConfig {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether a user may set the key.
pub fn is_offered(key: &KeyDoc) -> bool {
    !matches!(key.effect, Effect::Replaced(_)) && OWNED.iter().all(|(owned, _)| *owned != key.path)
}

impl JsonSchema for NodeConfig {
    fn schema_name() -> Cow<'static, str> {
        "NodeConfig".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut sections = Map::new();
        for key in KEYS.iter().filter(|key| is_offered(key)) {
            let section = sections
                .entry(key.section())
                .or_insert_with(|| json!({ "type": "object", "properties": {} }));
            section["properties"][key.name()] = key_schema(key);
        }
        Schema::try_from(json!({ "type": "object", "properties": sections })).expect("an object is a schema")
    }
}

fn key_schema(key: &KeyDoc) -> Value {
    let default = if key.default.is_empty() { "none".to_owned() } else { format!("`{}`", key.default) };
    let not_yet = match key.effect {
        Effect::NotYet(reason) => format!(" Not in effect yet: {reason}."),
        Effect::InEffect | Effect::Replaced(_) => String::new(),
    };
    let expected = key.kind.expected();
    let description = format!("{} Takes {expected}; default {default}.{not_yet}", key.description);
    let mut schema = match key.kind {
        Kind::Boolean => json!({ "type": "boolean" }),
        Kind::Integer { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Choice(words) => json!({ "type": "string", "enum": words }),
        Kind::Ratio => json!({ "type": "number", "minimum": 0, "maximum": 1 }),
        kind if kind.is_list() => {
            json!({ "type": "array", "maxItems": 256, "items": { "type": "string", "maxLength": 256 } })
        }
        _ => json!({ "type": "string", "maxLength": 1024 }),
    };
    schema["description"] = Value::String(description);
    schema
}

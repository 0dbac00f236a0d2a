//! What of the Helm charts is made from code: the definition of the resource, the schemas of both charts' values, and
//! copies of dashboards and rules, since a chart can only carry what lies in its own folder.

use operator::crd;
use serde_json::{Map, Value, json};

/// The definition, as the operator's chart installs it.
pub(crate) const DEFINITION_PATH: &str = "charts/debros-operator/templates/crd.yaml";
/// The schema of the cluster's chart.
pub(crate) const CLUSTER_SCHEMA_PATH: &str = "charts/debros-cluster/values.schema.json";
/// The schema of the operator's chart.
pub(crate) const OPERATOR_SCHEMA_PATH: &str = "charts/debros-operator/values.schema.json";
/// The dashboard of the operator itself.
pub(crate) const DASHBOARD_PATH: &str = "charts/debros-operator/dashboards/operator.json";
const FOLDER: &str = "charts/debros-operator";

/// The definition, which stays when the chart is uninstalled: with it every cluster would go.
pub(crate) fn definition() -> String {
    let mut definition = crd::definition();
    definition
        .metadata
        .annotations
        .get_or_insert_default()
        .insert("helm.sh/resource-policy".to_owned(), "keep".to_owned());
    let value = serde_json::to_value(definition).expect("a definition has a JSON form");
    let yaml = serde_saphyr::to_string(&value).expect("JSON has a YAML form");
    format!("# Written by `cargo xtask gen` from operator/src/crd.\n{yaml}")
}

/// The copies of these files that the operator's chart carries.
pub(crate) fn copies(files: &[(String, String)]) -> Vec<(String, String)> {
    let carried = files.iter().filter_map(|(path, text)| {
        let name = path.rsplit('/').next()?;
        let folder = match path.as_str() {
            path if path.starts_with("dashboards/") => "dashboards",
            "configs/prometheus/rules.yaml" | "configs/prometheus/alerts.yaml" => "rules",
            _ => return None,
        };
        Some((format!("{FOLDER}/{folder}/{name}"), text.clone()))
    });
    carried.collect()
}

/// The values of the cluster's chart: the spec of the resource, and what the chart itself needs.
pub(crate) fn cluster_schema() -> String {
    let definition = serde_json::to_value(crd::definition()).expect("a definition has a JSON form");
    let mut spec =
        definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone();
    plain(&mut spec);
    let mut properties = spec["properties"].as_object().cloned().unwrap_or_default();
    properties.insert(
        "image".to_owned(),
        json!({ "type": "string", "maxLength": 512,
                "description": "The image of the nodes; empty for the one that belongs to this chart." }),
    );
    properties.insert(
        "name".to_owned(),
        json!({ "type": "string", "maxLength": 40,
                "description": "The name of the DebrosCluster; empty for that of the release." }),
    );
    properties.insert("labels".to_owned(), texts("Further labels of the DebrosCluster."));
    properties.insert("annotations".to_owned(), texts("Annotations of the DebrosCluster."));
    properties.insert(
        "test".to_owned(),
        object(json!({
            "image": { "type": "string", "description": "The image with the command `debros` that `helm test` runs; \
                        empty for that of the nodes." },
        })),
    );
    schema("Values of the chart debros-cluster", properties)
}

/// The values of the operator's chart.
pub(crate) fn operator_schema() -> String {
    let text = |description: &str| json!({ "type": "string", "description": description });
    let number = |description: &str| json!({ "type": "integer", "minimum": 1, "maximum": 10, "description": description });
    let free = |description: &str| json!({ "type": "object", "description": description });
    let list = |description: &str| json!({ "type": "array", "description": description });
    let switch =
        || json!({ "enum": ["auto", true, false], "description": "auto: where the Prometheus operator is." });
    let yes = |description: &str| json!({ "type": "boolean", "description": description });
    let Value::Object(properties) = json!({
        "image": object(json!({
            "repository": text("The image of the operator."),
            "tag": text("Its tag; empty for the version of this chart."),
            "pullPolicy": { "enum": ["", "Always", "IfNotPresent", "Never"], "description": "When it is pulled." },
        })),
        "imagePullSecrets": list("Secrets to pull it with."),
        "replicas": number("Replicas: one works, the others stand by."),
        "watchNamespace": text("The only namespace whose clusters are kept; empty for all."),
        "logLevel": text("What is logged: a level, or a list such as info,operator=debug."),
        "logJson": yes("Log one JSON object a line."),
        "resources": free("Processor and memory."),
        "nodeSelector": free("Where it may run."),
        "tolerations": list("Taints that it tolerates."),
        "affinity": free("Where it may run; replaces the preference for different machines."),
        "podLabels": texts("Further labels of its pods."),
        "podAnnotations": texts("Annotations of its pods."),
        "serviceAccount": object(json!({
            "create": yes("Whether the chart makes it."),
            "name": text("Its name; empty for that of the release."),
            "annotations": texts("Its annotations."),
        })),
        "monitoring": object(json!({
            "serviceMonitor": object(json!({ "enabled": switch(), "labels": texts("Its labels, by which a Prometheus chooses it.") })),
            "prometheusRule": object(json!({ "enabled": switch(), "labels": texts("Its labels, by which a Prometheus chooses it.") })),
        })),
        "dashboards": object(json!({
            "enabled": yes("Whether ConfigMaps with the dashboards are made, for Grafana's sidecar."),
            "label": text("The label that the sidecar looks for."),
            "labelValue": text("Its value."),
            "annotations": texts("Annotations of the ConfigMaps, for the sidecar's folder."),
        })),
    }) else {
        unreachable!("it is an object")
    };
    schema("Values of the chart debros-operator", properties)
}

fn texts(description: &str) -> Value {
    json!({ "type": "object", "additionalProperties": { "type": "string" }, "description": description })
}

fn object(properties: Value) -> Value {
    json!({ "type": "object", "additionalProperties": false, "properties": properties })
}

fn schema(title: &str, mut properties: Map<String, Value>) -> String {
    // What Helm itself puts there.
    properties.insert("global".to_owned(), json!({ "type": "object" }));
    let schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": title,
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    });
    format!("{}\n", serde_json::to_string_pretty(&schema).expect("JSON has a text form"))
}

/// JSON Schema as others know it: without Kubernetes' extensions, and strict.
fn plain(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            let either = fields.remove("x-kubernetes-int-or-string").is_some();
            if either {
                fields.remove("anyOf");
                fields.insert("type".to_owned(), json!(["integer", "string"]));
            }
            fields.retain(|key, _| !key.starts_with("x-kubernetes"));
            if fields.remove("nullable") == Some(Value::Bool(true))
                && let Some(Value::String(kind)) = fields.get("type").cloned()
            {
                fields.insert("type".to_owned(), json!([kind, "null"]));
            }
            if fields.contains_key("properties") && !fields.contains_key("additionalProperties") {
                fields.insert("additionalProperties".to_owned(), Value::Bool(false));
            }
            fields.remove("format");
            fields.values_mut().for_each(plain);
        }
        Value::Array(items) => items.iter_mut().for_each(plain),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::{cluster_schema, definition, operator_schema};

    #[test]
    fn the_definition_is_kept_and_no_template() {
        let definition = definition();
        assert!(definition.contains("helm.sh/resource-policy: keep"), "{definition}");
        assert!(!definition.contains("{{"), "Helm would read it as a template");
    }

    #[test]
    fn schemas_speak_plain_json_schema() {
        for schema in [cluster_schema(), operator_schema()] {
            assert!(!schema.contains("x-kubernetes"), "{schema}");
            assert!(schema.contains("\"additionalProperties\": false"));
        }
        assert!(cluster_schema().contains("replicationFactor"));
    }
}

//! Every rule of the resource and its message, as `kubectl apply` shows it on a real API server.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use operator::crd::rules::RULES;
use serde_json::{Value, json};

use crate::scene::{client, define};

/// A resource that is refused, perhaps only as a change of another one, and what is said.
struct Refused {
    before: Option<Value>,
    spec: Value,
    name: &'static str,
    told: &'static str,
}

fn refused(spec: Value, told: &'static str) -> Refused {
    Refused { before: None, spec, name: "rules", told }
}

fn changed(before: Value, spec: Value, told: &'static str) -> Refused {
    Refused { before: Some(before), spec, name: "rules", told }
}

fn cases() -> Vec<Refused> {
    let size = |set: &str, size: &str| json!({ set: { "replicas": 3, "storage": { "size": size } } });
    let class =
        |set: &str, class: &str| json!({ set: { "replicas": 3, "storage": { "storageClassName": class } } });
    let mut cases = vec![
        Refused {
            before: None,
            spec: json!({}),
            name: "a-name-that-is-much-too-long-for-what-is-made-of-it",
            told: "choose a shorter or simpler one",
        },
        Refused { before: None, spec: json!({}), name: "1st", told: "choose a shorter or simpler one" },
        refused(json!({ "bootstrap": { "replicas": 2 } }), "spec.bootstrap.replicas must be 1, 3 or 5"),
        changed(json!({ "tls": { "secretName": "a" } }), json!({}), "spec.tls cannot be taken away"),
        refused(
            json!({ "admission": { "mode": "Open" }, "config": { "security": { "auth_enabled": true } } }),
            "config.security.auth_enabled needs closed admission",
        ),
        changed(json!({}), json!({ "admission": { "mode": "Open" } }), "admission.mode cannot be changed"),
        changed(
            json!({}),
            json!({ "admission": { "secretName": "other" } }),
            "admission.secretName cannot be changed",
        ),
        refused(
            json!({ "admission": { "mode": "Open", "secretName": "a" } }),
            "has no effect with mode Open",
        ),
        // What the schema itself says.
        refused(json!({ "replicationFactor": 9 }), "should be less than or equal to 7"),
        refused(json!({ "image": "" }), "should be at least 1 chars long"),
        refused(json!({ "config": { "logging": { "format": "xml" } } }), "Unsupported value: \"xml\""),
        refused(json!({ "nodeLossDelay": "soon" }), "should match"),
        refused(json!({ "volumes": { "whenScaled": "Keep" } }), "Unsupported value: \"Keep\""),
        refused(json!({ "replicationFaktor": 3 }), "unknown field \"spec.replicationFaktor\""),
        refused(json!({ "config": { "database": { "replication_factor": 3 } } }), "unknown field"),
    ];
    for set in ["bootstrap", "peers"] {
        cases.push(refused(size(set, "much"), "storage.size must be a quantity"));
        cases.push(refused(size(set, "0"), "storage.size must be a quantity"));
        cases.push(changed(size(set, "10Gi"), size(set, "9Gi"), "a volume cannot shrink"));
        cases.push(changed(class(set, "a"), class(set, "b"), "storage.storageClassName cannot be changed"));
    }
    cases
}

/// kubectl, for the API server of the tests.
pub(crate) fn kubectl() -> Command {
    let program = std::env::var("KUBECTL").unwrap_or_else(|_| "kubectl".to_owned());
    let mut command = Command::new(program);
    command.arg("--kubeconfig").arg(std::env::var_os(crate::KUBECONFIG).expect("there was one before"));
    command
}

/// What `kubectl apply` says, and whether it was done.
fn apply(name: &str, spec: &Value) -> (bool, String) {
    let mut all = json!({ "image": "debros/node:0.1.0" });
    for (key, value) in spec.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    let object = json!({
        "apiVersion": "debros.network/v1alpha1", "kind": "DebrosCluster",
        "metadata": { "name": name, "namespace": "default" }, "spec": all,
    });
    let mut child = kubectl()
        .args(["apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl is there; KUBECTL names another one");
    let mut input = child.stdin.take().expect("it is piped");
    input.write_all(object.to_string().as_bytes()).expect("it is taken");
    drop(input);
    let output = child.wait_with_output().expect("kubectl ends");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), said)
}

fn delete(name: &str) {
    let arguments = ["delete", "--ignore-not-found", "--wait=false", "-n", "default", "dbc", name];
    let deleted = kubectl().args(arguments).output().expect("kubectl is there");
    assert!(deleted.status.success(), "{}", String::from_utf8_lossy(&deleted.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_tells_what_to_do() {
    let Some(client) = client().await else { return };
    define(&client).await;
    let mut told_rules = BTreeSet::new();
    for Refused { before, spec, name, told } in cases() {
        delete(name);
        if let Some(before) = before {
            let (done, said) = apply(name, &before);
            assert!(done, "{before}: {said}");
        }
        let (done, said) = apply(name, &spec);
        assert!(!done && said.contains(told), "{spec}: {said}");
        told_rules.extend(
            RULES.iter().filter(|rule| said.contains(rule.message)).map(|rule| (rule.at, rule.message)),
        );
        println!("{}\n", said.trim());
        delete(name);
    }
    let untold: Vec<_> =
        RULES.iter().filter(|rule| !told_rules.iter().any(|(_, message)| *message == rule.message)).collect();
    assert!(untold.is_empty(), "rules whose message nobody has seen: {untold:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn defaults_columns_and_the_scale_subresource_are_there() {
    let Some(client) = client().await else { return };
    define(&client).await;
    let name = "columns";
    delete(name);
    let (done, said) = apply(name, &json!({}));
    assert!(done, "{said}");
    let run = |arguments: &[&str]| {
        let output = kubectl().args(["-n", "default"]).args(arguments).output().expect("kubectl is there");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let columns = run(&["get", "dbc", name]);
    for column in ["READY", "AVAILABLE", "PROGRESSING", "STATUS", "AGE"] {
        assert!(columns.contains(column), "{columns}");
    }
    let spec: Value = serde_json::from_str(&run(&["get", "dbc", name, "-o", "json"])).expect("JSON");
    assert_eq!(spec["spec"]["bootstrap"]["replicas"], 3);
    assert_eq!(spec["spec"]["admission"]["mode"], "Closed");
    assert_eq!(spec["spec"]["volumes"]["whenScaled"], "Retain");
    run(&["scale", "dbc", name, "--replicas=2"]);
    assert_eq!(run(&["get", "dbc", name, "-o", "jsonpath={.spec.peers.replicas}"]), "2");
    delete(name);
}

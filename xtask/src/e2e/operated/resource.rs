//! A DebrosCluster as its status tells of it: whether it has come to rest, who its members are, and waiting for either.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::k8s::{Access, wait_until};

/// The resource on the cluster.
pub(super) struct Resource {
    access: Access,
    namespace: String,
    name: String,
}

/// What of a resource steps look at.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    metadata: Metadata,
    spec: Spec,
    #[serde(default)]
    status: Told,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    generation: i64,
}

#[derive(Debug, Deserialize)]
struct Spec {
    bootstrap: Set,
    peers: Set,
}

#[derive(Debug, Deserialize)]
struct Set {
    replicas: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Told {
    observed_generation: i64,
    message: String,
    summary: String,
    current_revision: String,
    target_revision: String,
    members: Vec<Member>,
    conditions: Vec<Condition>,
}

/// A member of the cluster.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Member {
    pub(super) pod: String,
    pub(super) peer_id: String,
    pub(super) node_id: u64,
    pub(super) revision: String,
}

#[derive(Debug, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    message: String,
}

impl Status {
    /// What is asked for is there, whole, and nothing is being changed.
    pub(super) fn is_settled(&self) -> bool {
        let told = &self.status;
        let wanted = self.spec.bootstrap.replicas + self.spec.peers.replicas;
        told.observed_generation == self.metadata.generation
            && told.summary == format!("{wanted}/{wanted}")
            && told.members.len() == wanted as usize
            && told.current_revision == told.target_revision
            && self.is("Available", true)
            && self.is("Progressing", false)
            && self.is("Degraded", false)
            && self.is("QuorumHealthy", true)
            && self.is("Reconciled", true)
    }

    /// Whether a condition is there and has this status.
    pub(super) fn is(&self, kind: &str, holds: bool) -> bool {
        let wanted = if holds { "True" } else { "False" };
        self.status.conditions.iter().any(|condition| condition.kind == kind && condition.status == wanted)
    }

    /// The message of a condition.
    pub(super) fn says(&self, kind: &str) -> &str {
        let found = self.status.conditions.iter().find(|condition| condition.kind == kind);
        found.map_or("", |condition| condition.message.as_str())
    }

    pub(super) fn message(&self) -> &str {
        &self.status.message
    }

    pub(super) fn members(&self) -> &[Member] {
        &self.status.members
    }
}

impl Resource {
    pub(super) fn new(access: Access, namespace: &str, name: &str) -> Self {
        Self { access, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// What selects the pods and claims of a cluster.
    pub(super) fn selector(name: &str) -> String {
        format!("app.kubernetes.io/name=debros,app.kubernetes.io/instance={name}")
    }

    pub(super) fn status(&self) -> Result<Status> {
        let text = self.kubectl(&["get", "dbc", &self.name, "--output=json"])?;
        serde_json::from_str(&text).context("the resource is not as expected")
    }

    /// Changes fields of the specification.
    pub(super) fn patch(&self, spec: &Value) -> Result<()> {
        let patch = serde_json::json!({ "spec": spec }).to_string();
        self.kubectl(&["patch", "dbc", &self.name, "--type=merge", "--patch", &patch]).map(drop)
    }

    /// Waits until the status is so; what it says on the way is printed.
    pub(super) fn wait(&self, within: Duration, what: &str, holds: impl Fn(&Status) -> bool) -> Result<()> {
        let mut last = String::new();
        let outcome = wait_until(what, within, || {
            let status = self.status()?;
            let line = format!("{}  {}", status.status.summary, status.message());
            if line != last {
                println!("    {line}");
                last.clone_from(&line);
            }
            Ok(holds(&status))
        });
        outcome.with_context(|| format!("the last that `{}` said: {last}", self.name))
    }

    /// All that is known of it, for whoever looks for the fault.
    pub(super) fn tell(&self) -> String {
        let resource = self.kubectl(&["get", "dbc", &self.name, "--output=jsonpath={.status}"]);
        let pods = self.kubectl(&["get", "pods,persistentvolumeclaims", "--output=wide"]);
        [resource, pods].map(|told| told.unwrap_or_else(|error| format!("{error:#}"))).join("\n")
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.access.answer(&[&["--namespace", self.namespace.as_str()], arguments].concat())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Status;

    fn status(change: fn(&mut Value)) -> Status {
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "message": "why"});
        let mut resource = json!({
            "metadata": {"generation": 3},
            "spec": {"bootstrap": {"replicas": 1}, "peers": {"replicas": 1}},
            "status": {
                "observedGeneration": 3, "message": "", "summary": "2/2", "currentRevision": "a", "targetRevision": "a",
                "members": [{"pod": "c-bootstrap-0"}, {"pod": "c-peer-0"}],
                "conditions": [
                    condition("Available", "True"), condition("Progressing", "False"), condition("Degraded", "False"),
                    condition("QuorumHealthy", "True"), condition("Reconciled", "True"),
                ],
            },
        });
        change(&mut resource);
        serde_json::from_value(resource).unwrap()
    }

    #[test]
    fn a_cluster_is_settled_when_all_of_it_is_as_asked_for() {
        assert!(status(|_| {}).is_settled());
        let changes: [fn(&mut Value); 6] = [
            |resource| resource["metadata"]["generation"] = json!(4),
            |resource| resource["spec"]["peers"]["replicas"] = json!(2),
            |resource| resource["status"]["targetRevision"] = json!("b"),
            |resource| resource["status"]["conditions"][2]["status"] = json!("True"),
            |resource| resource["status"]["members"] = json!([{"pod": "c-bootstrap-0"}]),
            |resource| resource["status"] = json!({}),
        ];
        for change in changes {
            assert!(!status(change).is_settled());
        }
    }
}

//! What people ask for that cannot be, and what they do by hand: the status says what is wrong and what to do, what is the operator's is reverted, and the
//! cluster that serves goes on serving.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::super::stage::apply;
use super::resource::{Resource, Status};
use super::{CLUSTER, NAMESPACE, Scene};
use crate::k8s::wait_until;
use crate::steps::step;

/// An image or a claim is tried for a while before Kubernetes says anything.
const TOLD_WITHIN: Duration = Duration::from_secs(120);
/// Watched, so at once; a killed operator has to come back first.
const REVERTED_WITHIN: Duration = Duration::from_secs(60);
/// Another cluster, whose making goes wrong.
const OTHER: &str = "wishful";

/// All of them, one after the other.
pub(super) fn run(scene: &Scene) -> Result<()> {
    step("a bad image", || bad_image(scene))?;
    step("an impossible storage class", || {
        let spec = json!({"bootstrap": {"replicas": 1, "storage": {"storageClassName": "no-such-class"}}});
        wishful(scene, &spec, "no-such-class")
    })?;
    step("too few nodes", || {
        wishful(scene, &json!({"bootstrap": {"replicas": 1}, "replicationFactor": 3}), "replicationFactor")
    })?;
    step("a Service deleted by hand", || {
        scene.kubectl(&["delete", "service", CLUSTER])?;
        wait_until("the Service to be made again", REVERTED_WITHIN, || {
            Ok(!scene
                .kubectl(&["get", "service", CLUSTER, "--ignore-not-found", "--output=name"])?
                .is_empty())
        })?;
        scene.settled()
    })?;
    step("a StatefulSet edited by hand", || edited_set(scene))
}

/// The roll stops at the first pod, all others serve, and another image mends it.
fn bad_image(scene: &Scene) -> Result<()> {
    let image = scene.kubectl(&["get", "dbc", CLUSTER, "--output=jsonpath={.spec.image}"])?;
    scene.resource.patch(&json!({"image": "debros/node:0.1.0-missing"}))?;
    let told = |status: &Status| {
        status.is("Degraded", true)
            && status.says("Degraded").contains("0.1.0-missing")
            && status.is("Available", true)
    };
    scene.resource.wait(TOLD_WITHIN, "the status to say what is wrong", told)?;
    println!("    Degraded: {}", scene.resource.status()?.says("Degraded"));
    let status = scene.resource.status()?;
    let revisions = status.members().iter().map(|member| member.revision.as_str());
    let revisions = revisions.collect::<std::collections::BTreeSet<_>>();
    println!("    {} revisions among {} members", revisions.len(), status.members().len());
    scene.serves()?;
    scene.resource.patch(&json!({ "image": image }))?;
    scene.settled()
}

/// A cluster of its own that says why it does not come, and goes.
fn wishful(scene: &Scene, spec: &Value, expected: &str) -> Result<()> {
    let image = scene.kubectl(&["get", "dbc", CLUSTER, "--output=jsonpath={.spec.image}"])?;
    let mut spec = spec.clone();
    spec["image"] = json!(image);
    spec["volumes"] = json!({"whenDeleted": "Delete"});
    let object = json!({
        "apiVersion": "debros.network/v1alpha1",
        "kind": "DebrosCluster",
        "metadata": {"name": OTHER, "namespace": NAMESPACE},
        "spec": spec,
    });
    apply(&scene.access, &object.to_string())?;
    let other = Resource::new(scene.access.clone(), NAMESPACE, OTHER);
    let told = other.wait(TOLD_WITHIN, "the status to say what is wrong", |status| {
        status.is("Degraded", true) && status.says("Degraded").contains(expected)
    });
    if told.is_ok() {
        println!("    Degraded: {}", other.status()?.says("Degraded"));
    }
    scene.kubectl(&["delete", "dbc", OTHER, "--timeout=60s"])?;
    scene.kubectl(&["delete", "persistentvolumeclaims", "--selector", &Resource::selector(OTHER)])?;
    told?;
    scene.serves()
}

/// The template is written back before any pod is made of it.
fn edited_set(scene: &Scene) -> Result<()> {
    let set = format!("statefulset/{CLUSTER}-bootstrap");
    let image =
        || scene.kubectl(&["get", &set, "--output=jsonpath={.spec.template.spec.containers[0].image}"]);
    let before = image()?;
    scene.kubectl(&["set", "image", &set, "debros-node=debros/node:0.1.0-by-hand"])?;
    wait_until("the StatefulSet to be written back", REVERTED_WITHIN, || Ok(image()? == before))?;
    scene.settled()
}

impl Scene {
    /// A write and a read by the command line client of a pod.
    fn serves(&self) -> Result<()> {
        let command = "export HOME=/tmp DEBROS_CLUSTER_SECRET_FILE=/etc/debros/secret/secret \
                       DEBROS_BOOTSTRAP=/ip4/127.0.0.1/tcp/4001 && debros storage put e2e/serves yes && debros storage get e2e/serves";
        let said = self.kubectl(&["exec", "orders-bootstrap-0", "--", "sh", "-c", command]);
        let said = said.context("the cluster does not serve")?;
        ensure!(said.contains("yes"), "the cluster does not serve: {said}");
        Ok(())
    }
}

//! What is done to a cluster under load, planned and not. The operator is killed in the middle of every one of them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::super::stage::{Promise, Stage};
use super::resource::{Resource, Status};
use super::{CLUSTER, Scene};
use crate::k8s::{freeze, wait_for};

/// What is planned takes writes away for less than this.
const PLANNED: Promise = Promise::GapBelow(Duration::from_secs(5));
/// A leader that is gone without a word must be found out first.
const UNPLANNED: Promise = Promise::GapBelow(Duration::from_secs(10));
/// Nodes join, catch up and leave one after the other.
const SETTLED_WITHIN: Duration = Duration::from_secs(300);
/// The operator is killed so long after something has begun.
const MIDDLE: Duration = Duration::from_secs(2);
/// Longer than it takes to be found out, shorter than Kubernetes needs to call the node lost.
const HANGS_FOR: Duration = Duration::from_secs(20);
/// The machines that something is done to.
const DRAINED_NODE: &str = "node-2";
const HANGING_NODE: &str = "node-3";
/// Whose volume is lost.
const BEREFT: &str = "orders-bootstrap-1";

/// All steps, one after the other.
pub(super) fn run(scene: &Scene, stage: &mut Stage, next: &str) -> Result<()> {
    for (from, to) in [(0, 2), (2, 4), (4, 2)] {
        stage.step(&format!("peers from {from} to {to}"), PLANNED, || {
            scene.kubectl(&["scale", "dbc", CLUSTER, &format!("--replicas={to}")])?;
            scene.settled_without_operator()
        })?;
    }
    stage.step("a new image", PLANNED, || {
        scene.resource.patch(&json!({"image": format!("debros/node:{next}")}))?;
        scene.settled_without_operator()
    })?;
    stage.step("a configuration that needs no restart", PLANNED, || scene.reconfigure())?;
    stage.step("the leader's pod is deleted", PLANNED, || {
        let pod = scene.leader()?;
        scene.kubectl(&["delete", "pod", &pod])?;
        scene.settled_without_operator()
    })?;
    stage.step(&format!("the machine {DRAINED_NODE} is drained"), PLANNED, || {
        let drained = scene.drain();
        scene.kubectl(&["uncordon", DRAINED_NODE])?;
        drained?;
        scene.settled_without_operator()
    })?;
    stage.step(&format!("the machine {HANGING_NODE} hangs for {HANGS_FOR:?}"), UNPLANNED, || {
        freeze(&scene.layout, HANGING_NODE, true)?;
        wait_for(HANGS_FOR);
        freeze(&scene.layout, HANGING_NODE, false)?;
        scene.settled_without_operator()
    })?;
    stage.step("a volume is lost with its pod", PLANNED, || scene.lose_a_volume())?;
    stage.step("all pods are killed at once", Promise::OnlyNothingLost, || {
        let selector = Resource::selector(CLUSTER);
        scene.kubectl(&["delete", "pods", "--selector", &selector, "--grace-period=0", "--force"])?;
        scene.settled_without_operator()
    })
}

impl Scene {
    /// What was begun comes to its end, whatever becomes of the operator.
    fn settled_without_operator(&self) -> Result<()> {
        wait_for(MIDDLE);
        self.kill_operator()?;
        self.settled()
    }

    pub(super) fn settled(&self) -> Result<()> {
        self.resource.wait(SETTLED_WITHIN, "the cluster to be as asked for", Status::is_settled)
    }

    /// The level of the log changes, and no pod does.
    fn reconfigure(&self) -> Result<()> {
        let before = self.pods()?;
        self.resource.patch(&json!({"config": {"logging": {"level": "warn"}}}))?;
        self.settled_without_operator()?;
        ensure!(self.pods()? == before, "pods were made anew for a level of the log");
        Ok(())
    }

    fn pods(&self) -> Result<String> {
        let selector = Resource::selector(CLUSTER);
        self.kubectl(&["get", "pods", "--selector", &selector, "--output=jsonpath={.items[*].metadata.uid}"])
    }

    /// The pod that leads the cluster's own group.
    fn leader(&self) -> Result<String> {
        let command = "HOME=/tmp DEBROS_CLUSTER_SECRET_FILE=/etc/debros/secret/secret debros --format json \
                       --bootstrap /ip4/127.0.0.1/tcp/4001 cluster members";
        let told = self.kubectl(&["exec", "orders-bootstrap-0", "--", "sh", "-c", command])?;
        let told: Value = serde_json::from_str(&told).context("the members are no JSON")?;
        let members = told["members"].as_array().context("there are no members")?;
        let leader = members.iter().find(|member| member["leader"] == true).context("nobody leads")?;
        let status = self.resource.status()?;
        let peer_id = leader["peer_id"].as_str().unwrap_or_default();
        let pod = status.members().iter().find(|member| member.peer_id == peer_id);
        Ok(pod.with_context(|| format!("{peer_id} leads and is no member in the status"))?.pod.clone())
    }

    /// Its volumes are bound to it, so its pods wait until it is back.
    fn drain(&self) -> Result<()> {
        self.kubectl(&[
            "drain",
            DRAINED_NODE,
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            "--force",
            "--timeout=120s",
        ])
        .map(drop)
    }

    /// The pod comes back as somebody else, and who it was is no member any more.
    fn lose_a_volume(&self) -> Result<()> {
        let who = |status: &Status| {
            let found = status.members().iter().find(|member| member.pod == BEREFT);
            found.map(|member| member.peer_id.clone()).unwrap_or_default()
        };
        let before = who(&self.resource.status()?);
        ensure!(!before.is_empty(), "{BEREFT} is no member");
        self.kubectl(&["delete", "persistentvolumeclaim", &format!("data-{BEREFT}"), "--wait=false"])?;
        self.kubectl(&["delete", "pod", BEREFT])?;
        wait_for(MIDDLE);
        self.kill_operator()?;
        self.resource.wait(SETTLED_WITHIN, "another member in its place", |status| {
            status.is_settled() && status.members().iter().all(|member| member.peer_id != before)
        })
    }
}

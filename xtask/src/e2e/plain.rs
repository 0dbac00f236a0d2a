//! The images without an operator: three nodes as a plain StatefulSet on the local cluster, an empty one for each zone, and what befalls pods and machines. It proves
//! the image (no root, read-only root file system), names instead of addresses, and identity on the volume.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use super::stage::{LOAD_IMAGE, Promise, Stage, Target, apply};
use crate::k8s::{Access, DEFAULT_NAME, Layout, freeze, give_image};
use crate::steps::{run as run_program, step};
use crate::{image, k8s};

const OBJECTS: &str = include_str!("../../k8s/plain-nodes.yaml");
const NAMESPACE: &str = "plain";
/// The machine that nothing is done to, and the one that hangs.
const CALM_NODE: &str = "node-1";
const HANGING_NODE: &str = "node-3";
/// What is planned takes writes away for less than this.
const PLANNED: Promise = Promise::GapBelow(Duration::from_secs(5));
/// A leader that hangs must be found out first.
const UNPLANNED: Promise = Promise::GapBelow(Duration::from_secs(10));
/// Longer than it takes to be found out, shorter than Kubernetes needs to call the node lost.
const HANGS_FOR: Duration = Duration::from_secs(20);
const READY_WITHIN: &str = "--timeout=180s";

/// Options of `e2e plain`.
#[derive(Args)]
pub(crate) struct PlainOptions {
    /// The cluster; `cargo xtask k8s up` makes it, with the images that `cargo xtask image` wrote.
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// The image of the nodes, which the cluster must have.
    #[arg(long, default_value = concat!("debros/node:", env!("CARGO_PKG_VERSION")))]
    image: String,
}

/// Runs the steps and prints the table.
pub(crate) fn run(options: &PlainOptions) -> Result<()> {
    let layout = Layout::new(&options.name)?;
    let access = Access::open(&layout)?;
    step("image of the load", || {
        let file = image::folder().join("e2e-load.image");
        image::of_program(LOAD_IMAGE, &std::env::current_exe()?, &file)?;
        give_image(&layout, &file)
    })?;
    step("nodes", || {
        apply(&access, &OBJECTS.replace("@IMAGE@", &options.image))?;
        whole(&access)
    })?;
    let target = Target {
        namespace: NAMESPACE,
        address: "/dns4/node.plain.svc.cluster.local/tcp/4001",
        secret: None,
        node: CALM_NODE,
    };
    let mut stage = step("load", || Stage::start(access.clone(), &target))?;
    for pod in ["node-0", "node-1", "node-2"] {
        stage.step(&format!("the pod {pod} is deleted"), PLANNED, || {
            kubectl(&access, &["delete", "pod", pod])?;
            whole(&access)
        })?;
    }
    stage.step(&format!("the machine {HANGING_NODE} hangs for {HANGS_FOR:?}"), UNPLANNED, || {
        freeze(&layout, HANGING_NODE, true)?;
        k8s::wait_for(HANGS_FOR);
        freeze(&layout, HANGING_NODE, false)?;
        whole(&access)
    })?;
    stage.step("all pods are killed at once", Promise::OnlyNothingLost, || {
        kubectl(&access, &["delete", "pods", "--selector=app=node", "--grace-period=0", "--force"])?;
        whole(&access)
    })?;
    stage.finish()?;
    step("clean", || kubectl(&access, &["delete", "namespace", NAMESPACE]))
}

/// Waits until all pods are ready.
fn whole(access: &Access) -> Result<()> {
    kubectl(access, &["rollout", "status", READY_WITHIN, "statefulset/node"])
}

fn kubectl(access: &Access, arguments: &[&str]) -> Result<()> {
    let mut command = access.kubectl()?;
    command.args(["--namespace", NAMESPACE]).args(arguments);
    run_program(command).context("what kubectl printed above says why")
}

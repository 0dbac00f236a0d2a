//! `cargo xtask k8s status`: what runs, and how to reach it.

use std::path::PathBuf;

use anyhow::Result;
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::Value;

use super::access::{Access, existing};
use super::layout::Layout;
use super::state::{Kind, State};
use super::tools::Tools;

/// A cluster as it is.
#[derive(Serialize)]
struct Status {
    name: String,
    /// `existing`, `cluster`, `control-plane` or `none`.
    kind: &'static str,
    /// True when it was made to its end and all its machines run.
    running: bool,
    kubernetes: Option<String>,
    kubeconfig: Option<String>,
    machines: Vec<MachineStatus>,
    nodes: Vec<NodeStatus>,
    tools: PathBuf,
}

#[derive(Serialize)]
struct MachineStatus {
    name: String,
    pid: u32,
    running: bool,
    logs: PathBuf,
}

#[derive(Serialize)]
struct NodeStatus {
    name: String,
    ready: bool,
    schedulable: bool,
    zone: String,
    version: String,
    runtime: String,
}

/// Prints it, for people or as JSON.
pub(crate) fn run(layout: &Layout, json: bool) -> Result<()> {
    let status = look(layout)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        show(&status);
    }
    Ok(())
}

fn look(layout: &Layout) -> Result<Status> {
    let mut status = Status {
        name: layout.name.clone(),
        kind: "none",
        running: false,
        kubernetes: None,
        kubeconfig: None,
        machines: Vec::new(),
        nodes: Vec::new(),
        tools: Tools::new().folder().to_owned(),
    };
    if let Some(kubeconfig) = existing() {
        status.kind = "existing";
        status.running = true;
        status.kubeconfig = Some(kubeconfig.to_string_lossy().into_owned());
        ask(&mut status, &Access::Existing)?;
        return Ok(status);
    }
    let Some(state) = State::read(layout)? else { return Ok(status) };
    status.kind = match state.kind {
        Kind::Cluster => "cluster",
        Kind::ControlPlane => "control-plane",
    };
    status.running = state.ready && state.all_run();
    status.kubeconfig = Some(layout.kubeconfig().display().to_string());
    status.machines = state
        .machines
        .iter()
        .map(|made| &made.machine)
        .map(|machine| MachineStatus {
            name: machine.name.clone(),
            pid: machine.pid(),
            running: machine.runs(),
            logs: machine.logs.clone(),
        })
        .collect();
    if state.ready && state.answers() {
        ask(&mut status, &Access::local(layout, &state)?)?;
    }
    Ok(status)
}

/// What the API server says.
fn ask(status: &mut Status, access: &Access) -> Result<()> {
    let version: Value = serde_json::from_str(&access.answer(&["get", "--raw", "/version"])?)?;
    status.kubernetes = version["gitVersion"].as_str().map(str::to_owned);
    let nodes: Value = serde_json::from_str(&access.answer(&["get", "nodes", "--output=json"])?)?;
    for node in nodes["items"].as_array().into_iter().flatten() {
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        let mut ready = conditions.filter(|condition| condition["type"] == "Ready");
        status.nodes.push(NodeStatus {
            name: text(&node["metadata"]["name"]),
            ready: ready.any(|condition| condition["status"] == "True"),
            schedulable: node["spec"]["unschedulable"] != true,
            zone: text(&node["metadata"]["labels"]["topology.kubernetes.io/zone"]),
            version: text(&node["status"]["nodeInfo"]["kubeletVersion"]),
            runtime: text(&node["status"]["nodeInfo"]["containerRuntimeVersion"]),
        });
    }
    Ok(())
}

fn show(status: &Status) {
    match (status.kind, status.running) {
        ("none", _) => {
            println!("no cluster `{}`; `cargo xtask k8s up` makes one", status.name);
            return;
        }
        (kind, true) => {
            let version = status.kubernetes.as_deref().unwrap_or("of unknown version");
            println!("`{}` runs: {kind}, Kubernetes {version}", status.name);
        }
        (kind, false) => {
            println!("`{}` does not run whole ({kind}): `cargo xtask k8s up` makes it anew", status.name)
        }
    }
    if !status.nodes.is_empty() {
        println!("{}", nodes_table(&status.nodes));
    }
    if !status.machines.is_empty() {
        println!("{}", machines_table(&status.machines));
    }
    if let Some(kubeconfig) = &status.kubeconfig {
        println!("KUBECONFIG={kubeconfig}");
    }
    println!("{}", how_to_reach(status));
}

fn how_to_reach(status: &Status) -> String {
    let name = if status.name == super::layout::DEFAULT_NAME {
        String::new()
    } else {
        format!(" --name {}", status.name)
    };
    match status.kind {
        "cluster" => format!(
            "its addresses are in a network of its own; inside it run\n  \
             cargo xtask k8s kubectl{name} -- get pods --all-namespaces\n  \
             cargo xtask k8s helm{name} -- list\n  \
             cargo xtask k8s enter{name} -- ANY COMMAND\n  \
             cargo xtask k8s enter{name} --machine node-1   # a shell on a node"
        ),
        _ => format!(
            "  cargo xtask k8s kubectl{name} -- get namespaces    # or any tool, with that KUBECONFIG"
        ),
    }
}

fn nodes_table(nodes: &[NodeStatus]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_header(["node", "status", "zone", "version", "runtime"]);
    for node in nodes {
        let ready = if node.ready { "Ready" } else { "NotReady" };
        let cordoned = if node.schedulable { "" } else { ", cordoned" };
        let status = format!("{ready}{cordoned}");
        table.add_row([&node.name, &status, &node.zone, &node.version, &node.runtime]);
    }
    table
}

fn machines_table(machines: &[MachineStatus]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_header(["machine", "process", "logs"]);
    for machine in machines {
        let process = if machine.running { machine.pid.to_string() } else { "gone".to_owned() };
        table.add_row([machine.name.clone(), process, machine.logs.display().to_string()]);
    }
    table
}

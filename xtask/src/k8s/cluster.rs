//! A cluster with nodes, step by step: what must be there first, machines and the network between them, the control plane, the nodes, DNS and volumes.
//! Each machine is written down when its control groups are made, before anything of it runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::access::Access;
use super::control_plane::{self, Extent, Place};
use super::layout::{Layout, NodeNumber, check_not_hidden};
use super::machine::{Isolation, Machine, Prepared, Spec};
use super::state::{Kind, Made, State};
use super::tools::{EVERY_PROGRAM, Tools};
use super::{addons, certificates, cgroups, images, load, network, node, packages, wait};
use crate::steps::step;

/// Nodes are ready in 10 s on two cores; this is for a machine at its limit.
const NODES_READY_WITHIN: Duration = Duration::from_secs(120);
const LOG_LINES_SHOWN: usize = 15;

/// Makes it whole.
pub(crate) fn make(layout: &Layout, nodes: u8) -> Result<()> {
    let obstacles = packages::obstacles();
    if !obstacles.is_empty() {
        bail!(
            "a cluster with nodes cannot be made here; missing are:\n  - {}\n`--control-plane-only` makes a real API server without any of it but Go, and with KUBECONFIG an existing cluster is used",
            obstacles.join("\n  - ")
        );
    }
    check_not_hidden(&layout.folder, &node::hidden())?;
    let tools = Tools::new();
    step("packages of this machine", packages::install)?;
    step("programs", || tools.set_up(EVERY_PROGRAM))?;
    let images = step("images of DNS, volumes and a shell", || images::make(&tools))?;
    let mut state = State::new(Kind::Cluster, nodes);
    state.save(layout)?;
    let place = Place::of_its_own();
    step("certificates", || certificates::make(&layout.pki(), place.address, place.api_port, nodes))?;
    step("machines and network", || start_machines(layout, &mut state, &tools, place))?;
    let access = Access::local(layout, &state)?;
    step("control plane", || control_plane::ready(state.control_plane()?, &access))?;
    step("images onto the nodes", || {
        state.nodes().try_for_each(|made| node::ready(&made.machine))?;
        images::import(&state, &images)
    })?;
    step("images of this project", || load::all(&state))?;
    step("DNS and volumes", || addons::apply(&access, nodes))?;
    step("nodes", || nodes_ready(&state, &access))?;
    step("DNS and volumes are ready", || addons::ready(&access))?;
    state.ready = true;
    state.save(layout)
}

/// All machines are made, then the network between them is laid, then their programs start.
fn start_machines(layout: &Layout, state: &mut State, tools: &Tools, place: Place) -> Result<()> {
    make_mount_points(layout, state)?;
    for folder in control_plane::folders(&layout.folder) {
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let nodes = state.nodes;
    let mut prepared = vec![prepare(layout, state, control_plane::MACHINE, |groups| {
        let isolation = Isolation { mounts: Vec::new(), cgroup_procs: cgroups::procs(groups) };
        Ok(Spec {
            name: control_plane::MACHINE.to_owned(),
            logs: layout.logs(control_plane::MACHINE),
            isolation: Some(isolation),
            programs: control_plane::programs(tools, &layout.folder, &layout.pki(), place, Extent::Whole)?,
        })
    })?];
    network::bridge(&prepared[0].machine)?;
    for number in NodeNumber::all(nodes) {
        let one = prepare(layout, state, &number.name(), |groups| node::spec(layout, tools, number, groups))?;
        network::connect(&prepared[0].machine, number, &one.machine, nodes)?;
        prepared.push(one);
    }
    for one in prepared {
        let machine = one.go()?;
        println!("    {} runs as process {}", machine.name, machine.pid());
    }
    Ok(())
}

/// The folders at which nodes mount their own, where this host has none.
fn make_mount_points(layout: &Layout, state: &mut State) -> Result<()> {
    for folder in node::mount_points().map(Path::new).filter(|folder| !folder.exists()) {
        state.mount_points.push(folder.to_owned());
        state.save(layout)?;
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    Ok(())
}

/// One machine: its control groups, then its namespaces; each is written down.
fn prepare(
    layout: &Layout,
    state: &mut State,
    name: &str,
    spec: impl FnOnce(&[PathBuf]) -> Result<Spec>,
) -> Result<Prepared> {
    let group = layout.cgroup(name);
    if cgroups::exists(&group)? {
        bail!(
            "control groups `{group}` are there and were not made by this clone: `cargo xtask k8s down` in the one that did, or another --name"
        );
    }
    state.cgroups_begun = cgroups::places(&group)?;
    state.save(layout)?;
    cgroups::make(&state.cgroups_begun)?;
    let prepared = Machine::prepare(&spec(&state.cgroups_begun)?, &layout.folder)?;
    let groups = std::mem::take(&mut state.cgroups_begun);
    state.machines.push(Made { machine: prepared.machine.clone(), cgroups: groups });
    state.save(layout)?;
    Ok(prepared)
}

fn nodes_ready(state: &State, access: &Access) -> Result<()> {
    let wanted = usize::from(state.nodes);
    let waited = wait::until("all nodes to be ready", NODES_READY_WITHIN, || {
        let path = "--output=jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
        let answer = access.answer(&["get", "nodes", path])?;
        Ok(answer.split_whitespace().filter(|status| *status == "True").count() == wanted)
    });
    waited.map_err(|error| match state.nodes().next() {
        Some(made) => error.context(made.machine.log_end("kubelet", LOG_LINES_SHOWN)),
        None => error,
    })
}

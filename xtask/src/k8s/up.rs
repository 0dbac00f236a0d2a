//! `cargo xtask k8s up`: the steps from nothing to a cluster that is ready. What a step makes is written down before the next one begins.

use std::fs;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::access::{Access, existing};
use super::control_plane::{self, Extent, Place};
use super::layout::{DEFAULT_NAME, Layout, NODES_MAX};
use super::machine::{Machine, Spec};
use super::state::{Kind, Made, State};
use super::tools::{Program, Tools};
use super::{certificates, cluster, down, status};
use crate::steps::step;

/// Options of `k8s up`.
#[derive(Args)]
pub(crate) struct UpOptions {
    /// What the cluster is called; several may run beside each other.
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// How many nodes; each is a zone of its own.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(NODES_MAX)))]
    nodes: u8,
    /// Only etcd and the API server, on free ports of this host's loopback: no root, no containers, no nodes.
    #[arg(long)]
    control_plane_only: bool,
    /// With --control-plane-only: the controller manager, too, which makes the pods of a StatefulSet and collects garbage.
    #[arg(long, requires = "control_plane_only")]
    controllers: bool,
}

/// Makes what is asked for, unless it is there.
pub(crate) fn run(options: &UpOptions) -> Result<()> {
    let layout = Layout::new(&options.name)?;
    if let Some(kubeconfig) = existing().filter(|_| !options.control_plane_only) {
        println!("KUBECONFIG names a cluster ({}): it is used, nothing is made", kubeconfig.display());
        return status::run(&layout, false);
    }
    let kind = if options.control_plane_only { Kind::ControlPlane } else { Kind::Cluster };
    if let Some(state) = State::read(&layout)? {
        if state.ready && state.all_run() {
            if state.kind != kind {
                bail!(
                    "`{}` runs and is another kind of cluster: `cargo xtask k8s down`, or another --name",
                    layout.name
                );
            }
            println!("`{}` runs already", layout.name);
            return status::run(&layout, false);
        }
        step("remove what an earlier `up` left", || down::remove(&layout, &state))?;
    }
    match kind {
        Kind::ControlPlane => api_only(&layout, options.controllers)?,
        Kind::Cluster => cluster::make(&layout, options.nodes)?,
    }
    status::run(&layout, false)
}

/// etcd and the API server on loopback.
pub(crate) fn api_only(layout: &Layout, controllers: bool) -> Result<()> {
    let extent = if controllers { Extent::WithControllers } else { Extent::ApiOnly };
    let tools = Tools::new();
    step("programs", || {
        let mut needed = control_plane::programs_needed(extent).to_vec();
        needed.push(Program::Helm);
        tools.set_up(&needed)
    })?;
    let mut state = State::new(Kind::ControlPlane, 0);
    state.save(layout)?;
    let place = Place::loopback()?;
    step("certificates", || certificates::make(&layout.pki(), place.address, place.api_port, 0))?;
    step("control plane", || start_control_plane(layout, &mut state, &tools, place, extent))?;
    state.ready = true;
    state.save(layout)
}

/// Starts it and waits until it answers; on loopback nothing is isolated.
fn start_control_plane(
    layout: &Layout,
    state: &mut State,
    tools: &Tools,
    place: Place,
    extent: Extent,
) -> Result<()> {
    for folder in control_plane::folders(&layout.folder) {
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let spec = Spec {
        name: control_plane::MACHINE.to_owned(),
        logs: layout.logs(control_plane::MACHINE),
        isolation: None,
        programs: control_plane::programs(tools, &layout.folder, &layout.pki(), place, extent)?,
    };
    let prepared = Machine::prepare(&spec, &layout.folder)?;
    state.machines.push(Made { machine: prepared.machine.clone(), cgroups: Vec::new() });
    state.save(layout)?;
    let machine = prepared.go()?;
    control_plane::ready(&machine, &Access::local(layout, state)?)
}

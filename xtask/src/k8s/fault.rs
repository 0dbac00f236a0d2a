//! `cargo xtask k8s fault`: what bad days do to a node, and its end. Freezing stops the whole machine between two instructions, kubelet, containers and all;
//! the network cable can be pulled while everything on the node goes on.

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use super::Named;
use super::cgroups;
use super::layout::{Layout, NodeNumber};
use super::network;
use super::state::{Kind, State};

/// What is done to a node.
#[derive(Subcommand)]
pub(crate) enum Fault {
    /// Stop everything on a node, kubelet and containers, as if the machine hung.
    Freeze(OfNode),
    /// Let a frozen node go on.
    Thaw(OfNode),
    /// Pull a node's network cable; its pods go on among themselves.
    Unplug(OfNode),
    /// Plug it in again.
    Plug(OfNode),
}

/// Which node.
#[derive(Args)]
pub(crate) struct OfNode {
    #[command(flatten)]
    named: Named,
    /// `node-1`, `node-2`, ...
    node: String,
}

/// Does it.
pub(crate) fn run(fault: &Fault) -> Result<()> {
    let (Fault::Freeze(of) | Fault::Thaw(of) | Fault::Unplug(of) | Fault::Plug(of)) = fault;
    let layout = of.named.layout()?;
    match fault {
        Fault::Freeze(of) => freeze(&layout, &of.node, true),
        Fault::Thaw(of) => freeze(&layout, &of.node, false),
        Fault::Unplug(of) => plug(&layout, &of.node, false),
        Fault::Plug(of) => plug(&layout, &of.node, true),
    }
}

/// Stops a whole node, or lets it go on.
pub(crate) fn freeze(layout: &Layout, node: &str, frozen: bool) -> Result<()> {
    let state = of_cluster(layout)?;
    number(&state, node)?;
    cgroups::freeze(&state.made(node)?.cgroups, frozen)
        .with_context(|| format!("cannot {} {node}", if frozen { "freeze" } else { "thaw" }))
}

/// Pulls a node's cable, or plugs it in.
pub(crate) fn plug(layout: &Layout, node: &str, plugged: bool) -> Result<()> {
    let state = of_cluster(layout)?;
    network::plug(state.control_plane()?, number(&state, node)?, plugged)
}

fn of_cluster(layout: &Layout) -> Result<State> {
    let state = State::of_running(layout)?;
    if state.kind != Kind::Cluster {
        bail!("`{}` has no nodes", layout.name);
    }
    Ok(state)
}

fn number(state: &State, node: &str) -> Result<NodeNumber> {
    let found = NodeNumber::all(state.nodes).find(|number| number.name() == node);
    found.with_context(|| format!("there is no node `{node}`: there are node-1 to node-{}", state.nodes))
}

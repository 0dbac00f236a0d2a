//! `cargo xtask k8s`: a real Kubernetes on one Linux machine, from programs built here: a control plane and nodes with kubelets and
//! containers, each on a machine of its own made of namespaces, with DNS, volumes and zones. Or only the API server, or the cluster that
//! `KUBECONFIG` names. This module is the command line; each concern is a module below it.

mod access;
mod addons;
mod certificates;
mod cgroups;
mod cluster;
mod control_plane;
mod down;
mod enter;
mod fault;
mod images;
mod layout;
mod load;
mod machine;
mod namespaces;
mod network;
mod node;
mod operator;
mod packages;
mod process;
mod state;
mod status;
mod tools;
mod up;
mod wait;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::steps;
pub(crate) use access::Access;
pub(crate) use fault::freeze;
pub(crate) use layout::{DEFAULT_NAME, Layout};
pub(crate) use load::give as give_image;
pub(crate) use operator::try_shortly as try_operator;
pub(crate) use wait::{pause as wait_for, until as wait_until};

/// A real Kubernetes on this machine.
#[derive(Subcommand)]
pub(crate) enum Kubernetes {
    /// Make a cluster, unless it runs: programs, machines, network, control plane, nodes, DNS and volumes.
    Up(up::UpOptions),
    /// Remove all that `up` made, and nothing else.
    Down(Named),
    /// What runs, and how to reach it.
    Status {
        #[command(flatten)]
        named: Named,
        /// As JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Run kubectl on the cluster: `cargo xtask k8s kubectl -- get pods`.
    Kubectl(ToolOptions),
    /// Run helm on the cluster: `cargo xtask k8s helm -- list`.
    Helm(ToolOptions),
    /// Run any command in the cluster's network, with its kubeconfig: `cargo xtask k8s enter -- curl ...`.
    Enter(enter::EnterOptions),
    /// Try the operator on a real API server that is made for it: every rule's message, the crash sweep, a hundred clusters. No root.
    Operator(operator::OperatorOptions),
    /// Give the images that `cargo xtask image` wrote to all nodes, again.
    Load {
        #[command(flatten)]
        named: Named,
        /// These files instead of all in `target/image`.
        images: Vec<PathBuf>,
    },
    /// Do to a node what bad days do, or undo it.
    #[command(subcommand)]
    Fault(fault::Fault),
    /// Build the programs, without making a cluster; says where each is.
    Tools {
        /// Resolve the Go modules again for the versions named in the source, and write their pins into the workspace.
        #[arg(long)]
        refresh: bool,
    },
    /// One machine of a cluster: started by `up`.
    #[command(hide = true)]
    Machine { spec: PathBuf },
    /// The first process of a machine: started by `machine`.
    #[command(hide = true)]
    MachineFirst { spec: PathBuf },
}

/// Which cluster is meant.
#[derive(Args)]
pub(crate) struct Named {
    /// What the cluster is called.
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
}

/// A tool's own command line.
#[derive(Args)]
pub(crate) struct ToolOptions {
    #[command(flatten)]
    named: Named,
    /// What the tool is told.
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

/// Runs one of them.
pub(crate) fn run(command: &Kubernetes) -> Result<()> {
    match command {
        Kubernetes::Up(options) => up::run(options),
        Kubernetes::Down(named) => down::run(&named.layout()?),
        Kubernetes::Status { named, json } => status::run(&named.layout()?, *json),
        Kubernetes::Kubectl(options) => options.run(&Access::open(&options.layout()?)?, Access::kubectl),
        // Much of what helm does needs no cluster: `helm lint`, `helm template`.
        Kubernetes::Helm(options) => options.run(&Access::open_or_nowhere(&options.layout()?)?, Access::helm),
        Kubernetes::Enter(options) => enter::run(options),
        Kubernetes::Operator(options) => operator::run(options),
        Kubernetes::Load { named, images } => load::run(&named.layout()?, images),
        Kubernetes::Fault(fault) => fault::run(fault),
        Kubernetes::Tools { refresh } => tools::run(*refresh),
        Kubernetes::Machine { spec } => machine::outer(spec),
        Kubernetes::MachineFirst { spec } => machine::first(spec),
    }
}

impl Named {
    fn layout(&self) -> Result<Layout> {
        Layout::new(&self.name)
    }
}

impl ToolOptions {
    fn layout(&self) -> Result<Layout> {
        self.named.layout()
    }

    fn run(&self, access: &Access, tool: fn(&Access) -> Result<Command>) -> Result<()> {
        let mut command = tool(access)?;
        command.args(&self.arguments);
        steps::run(command)
    }
}

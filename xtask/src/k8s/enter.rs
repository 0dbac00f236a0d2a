//! `cargo xtask k8s enter`: a command in the network of the cluster, with this machine's files; or a shell on one of its machines, with the machine's
//! files and processes.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::Named;
use super::access::{Access, existing};
use super::packages;
use super::state::{Kind, State};
use crate::steps;

/// What is run where nothing is named.
const SHELL: &str = "sh";

/// Options of `k8s enter`.
#[derive(Args)]
pub(crate) struct EnterOptions {
    #[command(flatten)]
    named: Named,
    /// A machine to enter whole, processes and files too: `control-plane`, `node-1`, ...
    #[arg(long)]
    machine: Option<String>,
    /// The command; a shell where none is given.
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// Runs it to its end.
pub(crate) fn run(options: &EnterOptions) -> Result<()> {
    let layout = options.named.layout()?;
    let (program, arguments) = match options.command.split_first() {
        Some((program, arguments)) => (program.clone(), arguments),
        None => (SHELL.into(), options.command.as_slice()),
    };
    let mut command = match &options.machine {
        None => Access::open(&layout)?.command(program)?,
        Some(_) if existing().is_some() => {
            bail!("KUBECONFIG names a cluster that was not made here: it has no machine to enter")
        }
        Some(name) => {
            let state = State::of_running(&layout)?;
            if state.kind != Kind::Cluster {
                bail!("`{}` has no machines of its own: its control plane is on this host", layout.name);
            }
            // Processes are those of a new child only, which nsenter makes.
            let mut nsenter = Command::new(packages::find("nsenter").context("nsenter is not installed")?);
            nsenter.arg(format!("--target={}", state.made(name)?.machine.pid()));
            nsenter.args(["--net", "--mount", "--uts", "--pid", "--"]).arg(program);
            nsenter
        }
    };
    command.args(arguments);
    steps::run(command)
}

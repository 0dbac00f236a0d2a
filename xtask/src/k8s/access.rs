//! How to reach a cluster: the one that `KUBECONFIG` names, or the local one through its control plane's network. Tools run as on any other
//! machine; where they run is decided here.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::layout::Layout;
use super::machine::Machine;
use super::namespaces::{Inside, within};
use super::state::{Kind, State};
use super::tools::{Program, Tools};

/// The variable by which people say which cluster they mean.
const KUBECONFIG: &str = "KUBECONFIG";

/// A cluster that can be reached.
#[derive(Clone)]
pub(crate) enum Access {
    /// Somebody else's, by its kubeconfig.
    Existing,
    /// None: for what a tool does without one. The user's default cluster is not meant.
    Nowhere,
    /// On this host's loopback.
    Loopback(PathBuf),
    /// In the network of this machine.
    Within { kubeconfig: PathBuf, machine: Machine },
}

/// The kubeconfig of a cluster that this project has not made, if one is named.
pub(crate) fn existing() -> Option<OsString> {
    std::env::var_os(KUBECONFIG).filter(|named| !named.is_empty())
}

impl Access {
    /// The cluster that is meant: the existing one where `KUBECONFIG` names it, else the local one of that name.
    pub(crate) fn open(layout: &Layout) -> Result<Self> {
        match existing() {
            Some(_) => Ok(Self::Existing),
            None => Self::local(layout, &State::of_running(layout)?),
        }
    }

    /// As [`Access::open`], or nowhere when there is no cluster of that name.
    pub(crate) fn open_or_nowhere(layout: &Layout) -> Result<Self> {
        let there = existing().is_some() || State::read(layout)?.is_some();
        if there { Self::open(layout) } else { Ok(Self::Nowhere) }
    }

    /// A cluster that was made here.
    pub(crate) fn local(layout: &Layout, state: &State) -> Result<Self> {
        let kubeconfig = layout.kubeconfig();
        Ok(match state.kind {
            Kind::ControlPlane => Self::Loopback(kubeconfig),
            Kind::Cluster => Self::Within { kubeconfig, machine: state.control_plane()?.clone() },
        })
    }

    /// A program that talks to the cluster; it finds the kubeconfig in its environment.
    pub(crate) fn command(&self, program: OsString) -> Result<Command> {
        Ok(match self {
            Self::Existing => Command::new(program),
            Self::Nowhere => {
                let mut command = Command::new(program);
                command.env(KUBECONFIG, "/dev/null");
                command
            }
            Self::Loopback(kubeconfig) => {
                let mut command = Command::new(program);
                command.env(KUBECONFIG, kubeconfig);
                command
            }
            Self::Within { kubeconfig, machine } => {
                let mut command = within(machine, Inside::Network, program)?;
                command.env(KUBECONFIG, kubeconfig);
                command
            }
        })
    }

    /// The `kubectl` of the local cluster's version.
    pub(crate) fn kubectl(&self) -> Result<Command> {
        self.tool(Program::Kubectl)
    }

    /// The pinned `helm`.
    pub(crate) fn helm(&self) -> Result<Command> {
        self.tool(Program::Helm)
    }

    /// What a tool answers; an error holds what it complained of.
    pub(crate) fn answer(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.kubectl()?;
        let output = command.args(arguments).output().context("cannot start kubectl")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`kubectl {}` failed: {}", arguments.join(" "), said.trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Built here, or for an existing cluster the user's own where nothing is built.
    fn tool(&self, program: Program) -> Result<Command> {
        let built = Tools::new().built(program);
        match (self, built) {
            (Self::Existing, Err(_)) => self.command(program.name().into()),
            (_, built) => self.command(built?.into_os_string()),
        }
    }
}

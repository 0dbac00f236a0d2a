//! What was made for a cluster, as a file in its folder: written before the next thing is made, so that `down` knows all of it whatever happens
//! between. It holds no wishes, only facts.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::layout::Layout;
use super::machine::Machine;

/// What there is of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Control plane and nodes on machines of their own.
    Cluster,
    /// etcd and the API server on this host's loopback.
    ControlPlane,
}

/// A machine with what was made for it on this host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Made {
    pub(crate) machine: Machine,
    pub(crate) cgroups: Vec<PathBuf>,
}

/// Everything that was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) kind: Kind,
    pub(crate) nodes: u8,
    /// The control plane first, then the nodes.
    pub(crate) machines: Vec<Made>,
    /// Control groups of a machine that is being made.
    pub(crate) cgroups_begun: Vec<PathBuf>,
    /// Empty folders of this host that were made to mount something at.
    pub(crate) mount_points: Vec<PathBuf>,
    /// True when `up` came to its end.
    pub(crate) ready: bool,
}

impl State {
    /// Nothing was made yet.
    pub(crate) fn new(kind: Kind, nodes: u8) -> Self {
        Self {
            kind,
            nodes,
            machines: Vec::new(),
            cgroups_begun: Vec::new(),
            mount_points: Vec::new(),
            ready: false,
        }
    }

    /// What an earlier command made, if any.
    pub(crate) fn read(layout: &Layout) -> Result<Option<Self>> {
        let file = layout.state_file();
        match fs::read(&file) {
            Ok(text) => Ok(Some(
                serde_json::from_slice(&text)
                    .with_context(|| format!("{} cannot be read as what it was", file.display()))?,
            )),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }

    /// What is there, or what to run to have it. A node may be away: that is what clusters are for.
    pub(crate) fn of_running(layout: &Layout) -> Result<Self> {
        let name = &layout.name;
        let Some(state) = Self::read(layout)? else {
            bail!("there is no cluster `{name}`: `cargo xtask k8s up` makes one");
        };
        if !state.answers() {
            bail!("the control plane of `{name}` does not run: `cargo xtask k8s up` makes the cluster anew");
        }
        Ok(state)
    }

    /// Writes it down.
    pub(crate) fn save(&self, layout: &Layout) -> Result<()> {
        fs::create_dir_all(&layout.folder)
            .with_context(|| format!("cannot create {}", layout.folder.display()))?;
        let (file, written) = (layout.state_file(), layout.folder.join("state.json.new"));
        fs::write(&written, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&written, &file).with_context(|| format!("cannot write {}", file.display()))
    }

    /// True when there is somebody to ask.
    pub(crate) fn answers(&self) -> bool {
        self.control_plane().is_ok_and(Machine::runs)
    }

    /// True when every machine is there.
    pub(crate) fn all_run(&self) -> bool {
        !self.machines.is_empty() && self.machines.iter().all(|made| made.machine.runs())
    }

    /// The machine of the control plane.
    pub(crate) fn control_plane(&self) -> Result<&Machine> {
        let made = self.machines.first().context("the cluster has no machines")?;
        Ok(&made.machine)
    }

    /// The nodes' machines.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Made> {
        self.machines.iter().skip(1)
    }

    /// A machine by its name.
    pub(crate) fn made(&self, name: &str) -> Result<&Made> {
        let found = self.machines.iter().find(|made| made.machine.name == name);
        found.with_context(|| {
            let known = self.machines.iter().map(|made| made.machine.name.as_str()).collect::<Vec<_>>();
            format!("there is no machine `{name}`; there are {}", known.join(", "))
        })
    }
}

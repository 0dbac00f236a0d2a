//! Proof by a program that is not ours: pyrqlite, a client of rqlite, against each of three node
//! processes, so against followers too. It gets its own Python environment under `target/`, so nothing of the machine changes.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::cluster::{Cluster, Layout, node_program};
use crate::python;
use crate::steps::{target_folder, workspace_root};

/// The version the check was written for.
const PYRQLITE: &str = "pyrqlite==2.2.3";

/// Makes a Python environment with the client in it, once; returns its interpreter.
pub(crate) fn set_up() -> Result<PathBuf> {
    python::environment("python-rqlite-client", PYRQLITE)
}

/// Starts three nodes and lets the client create, insert and select at each: whoever leads, two do not.
pub(crate) fn check(python: &Path) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let mut cluster = Cluster::prepare(Layout {
            program: node_program(&target_folder(), "debug"),
            folder: target_folder().join("rqlite-client"),
            nodes: 3,
            keep_data: false,
        })?;
        cluster.start_all().await?;
        let ports = cluster.nodes().iter().map(|node| node.http_port().to_string()).collect::<Vec<_>>();
        let script = workspace_root().join("xtask/python/rqlite_client.py");
        let status = tokio::process::Command::new(python).arg(script).args(&ports).status().await?;
        cluster.stop().await?;
        if !status.success() {
            bail!("pyrqlite did not get what it expects; its own words are above");
        }
        Ok(())
    })
}

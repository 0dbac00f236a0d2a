//! Proof by a program that is not ours: pyrqlite, a client of rqlite, against each of three node
//! processes, so against followers too. It gets its own Python environment under `target/`, so nothing of the machine changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cluster::{Cluster, Layout, node_program};
use crate::steps::{run, target_folder, workspace_root};

/// The version the check was written for.
const PYRQLITE: &str = "pyrqlite==2.2.3";

/// Makes a Python environment with the client in it, once; returns its interpreter.
pub(crate) fn set_up() -> Result<PathBuf> {
    let environment = target_folder().join("python-rqlite-client");
    let python = environment.join("bin/python");
    let stamp = environment.join("installed");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == PYRQLITE) {
        println!("{PYRQLITE} is installed in {}", environment.display());
        return Ok(python);
    }
    let version = Command::new("python3").arg("--version").output();
    let version = version.context(
        "python3 is not on the PATH: install Python 3 with its venv module (Debian: python3-venv)",
    )?;
    println!(
        "{} found; {PYRQLITE} goes into {}",
        String::from_utf8_lossy(&version.stdout).trim(),
        environment.display()
    );
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv", "--clear"]).arg(&environment);
    run(venv)
        .context("cannot make a Python environment: install Python's venv module (Debian: python3-venv)")?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PYRQLITE]);
    run(pip).context("cannot install the client: is the Python package index reachable?")?;
    fs::write(&stamp, PYRQLITE)?;
    Ok(python)
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

//! Python packages for proofs by programs that are not ours: each in an environment of its own below `target/`, so nothing of the
//! machine changes.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::steps::{run, target_folder};

/// Makes an environment with this package in it, once; returns its interpreter.
pub(crate) fn environment(folder: &str, package: &str) -> Result<PathBuf> {
    let environment = target_folder().join(folder);
    let python = environment.join("bin/python");
    let stamp = environment.join("installed");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == package) {
        println!("{package} is installed in {}", environment.display());
        return Ok(python);
    }
    let version = Command::new("python3").arg("--version").output();
    let version = version.context(
        "python3 is not on the PATH: install Python 3 with its venv module (Debian: python3-venv)",
    )?;
    println!(
        "{} found; {package} goes into {}",
        String::from_utf8_lossy(&version.stdout).trim(),
        environment.display()
    );
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv", "--clear"]).arg(&environment);
    run(venv)
        .context("cannot make a Python environment: install Python's venv module (Debian: python3-venv)")?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", package]);
    run(pip).with_context(|| format!("cannot install {package}: is the Python package index reachable?"))?;
    fs::write(&stamp, package)?;
    Ok(python)
}

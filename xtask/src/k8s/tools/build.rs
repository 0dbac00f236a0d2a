//! Running Go: a module is written out, built with its pins, and its programs renamed into place. It shows how it comes along.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::modules::Module;
use crate::steps::{run, workspace_root};

/// A line about progress comes no more often than this.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// Lines of Go's that an error shows.
const LINES_SHOWN: usize = 20;

/// Builds a module's programs into a folder, which appears when all are there.
pub(super) fn build(module: &Module, folder: &Path) -> Result<()> {
    let parent = folder.parent().context("the folder of built programs has no parent")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let work = Scratch::new(parent, module)?;
    let programs = work.0.join("programs");
    fs::create_dir_all(&programs)?;
    write_module(module, &work.0)?;
    for built in module.programs {
        let mut command = go(&work.0);
        command.args(["build", "-v", "-trimpath", "-mod=readonly", "-ldflags"]).arg(module.link_flags());
        command.arg("-o").arg(programs.join(built.program.name())).arg(built.package);
        watched(command, built.program.name())?;
    }
    match fs::rename(&programs, folder) {
        // Somebody else built the same meanwhile.
        Err(_) if folder.is_dir() => Ok(()),
        outcome => outcome.with_context(|| format!("cannot put the programs at {}", folder.display())),
    }
}

/// Resolves a module for the version that is named in the source, and writes its pins into the workspace.
pub(super) fn refresh(module: &Module) -> Result<()> {
    let work = Scratch::new(&crate::steps::target_folder(), module)?;
    fs::write(work.0.join("go.mod"), module.manifest())?;
    fs::write(work.0.join("tools.go"), module.imports())?;
    let mut tidy = go(&work.0);
    tidy.args(["mod", "tidy"]);
    run(tidy)?;
    let kept = workspace_root().join("xtask/k8s/modules").join(module.name);
    for name in ["go.mod", "go.sum"] {
        fs::copy(work.0.join(name), kept.join(name)).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}

fn write_module(module: &Module, folder: &Path) -> Result<()> {
    fs::write(folder.join("go.mod"), module.go_mod)?;
    fs::write(folder.join("go.sum"), module.go_sum)?;
    match module.source {
        Some(source) => fs::write(folder.join("main.go"), source)?,
        None => fs::write(folder.join("tools.go"), module.imports())?,
    }
    Ok(())
}

/// Go in a folder. No C: the programs run in images that have no C library.
fn go(folder: &Path) -> Command {
    let mut command = Command::new("go");
    command.current_dir(folder).env("CGO_ENABLED", "0").env("GOWORK", "off");
    command
}

/// Runs it and tells now and then how far it is; Go prints a line for each module it gets and each package it compiles.
fn watched(mut command: Command, name: &str) -> Result<()> {
    let start = Instant::now();
    let mut child =
        command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("cannot start `go`")?;
    let lines = child.stderr.take().context("go has no output")?;
    let (mut fetched, mut compiled, mut told) = (0, 0, start);
    let mut last = Vec::new();
    for line in BufReader::new(lines).lines() {
        let line = line?;
        if line.starts_with("go: downloading ") {
            fetched += 1;
        } else {
            compiled += 1;
        }
        last.push(line);
        if last.len() > LINES_SHOWN {
            last.remove(0);
        }
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            let seconds = start.elapsed().as_secs();
            println!("    {name}: {fetched} modules fetched, {compiled} packages compiled, {seconds} s");
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`go build` of {name} ended with {status}:\n  {}", last.join("\n  "));
    }
    println!("    {name}: done after {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// A folder that goes when it is dropped.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(parent: &Path, module: &Module) -> Result<Self> {
        let folder = parent.join(format!(".{}-{}", module.name, std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left of it costs room and nothing else.
        let _ = fs::remove_dir_all(&self.0);
    }
}

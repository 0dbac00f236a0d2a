//! Kubernetes' programs, built from Go modules: which modules, which version of each, and where the built programs are kept. It does not
//! know what they are run for.
//!
//! A module's `go.mod` and `go.sum` lie in `xtask/k8s/modules`, so every dependency is pinned with its checksum. What is built goes into a
//! folder whose name holds the version and a digest of everything that decides what comes out; a folder that exists is complete, because it
//! is renamed into place when all its programs are there.

mod build;
mod modules;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::steps::{step, target_folder};
pub(crate) use modules::Program;
use modules::{MODULES, Module};

/// Names the folder of built programs, instead of one of the user's cache.
const FOLDER_VARIABLE: &str = "DEBROS_TOOLS";

/// Everything that is built.
pub(crate) const EVERY_PROGRAM: &[Program] = &[
    Program::Etcd,
    Program::KubeApiserver,
    Program::KubeControllerManager,
    Program::KubeScheduler,
    Program::Kubelet,
    Program::KubeProxy,
    Program::Kubectl,
    Program::Coredns,
    Program::LocalPathProvisioner,
    Program::Pause,
    Program::Helm,
];

/// The built programs.
#[derive(Clone)]
pub(crate) struct Tools {
    folder: PathBuf,
}

impl Tools {
    /// Where this version's programs are, or will be.
    pub(crate) fn new() -> Self {
        Self { folder: cache_folder() }
    }

    /// The folder that holds all modules' folders.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Builds what of these programs is not built yet, visibly.
    pub(crate) fn set_up(&self, programs: &[Program]) -> Result<()> {
        let wanted = |module: &&Module| module.programs.iter().any(|built| programs.contains(&built.program));
        let missing = MODULES.iter().filter(wanted).filter(|module| !self.module_folder(module).is_dir());
        let missing = missing.collect::<Vec<_>>();
        if missing.is_empty() {
            println!("the programs are built: {}", self.folder.display());
            return Ok(());
        }
        go_version()?;
        println!(
            "{} of {} Go modules are to be built into {}; cold this takes minutes and 4 GiB of Go's own caches",
            missing.len(),
            MODULES.iter().filter(wanted).count(),
            self.folder.display()
        );
        for module in missing {
            let name = format!("build {} {}", module.name, module.version);
            step(&name, || build::build(module, &self.module_folder(module)))?;
        }
        Ok(())
    }

    /// Where a program is; it must have been set up.
    pub(crate) fn path(&self, program: Program) -> PathBuf {
        let module = MODULES.iter().find(|module| module.programs.iter().any(|p| p.program == program));
        match module {
            Some(module) => self.module_folder(module).join(program.name()),
            None => self.folder.join(program.name()),
        }
    }

    /// A program that was built before, or what to run to have it.
    pub(crate) fn built(&self, program: Program) -> Result<PathBuf> {
        let path = self.path(program);
        if !path.is_file() {
            bail!("{} is not built yet: run `cargo xtask k8s tools`", program.name());
        }
        Ok(path)
    }

    fn module_folder(&self, module: &Module) -> PathBuf {
        self.folder.join(module.folder_name())
    }
}

/// Builds everything, and says where each program is.
pub(crate) fn run(refresh: bool) -> Result<()> {
    if refresh {
        for module in MODULES.iter().filter(|module| module.is_foreign()) {
            step(&format!("resolve {} {}", module.name, module.version), || build::refresh(module))?;
        }
        println!(
            "\nthe pins are written; the next build of xtask holds them, `cargo xtask k8s tools` builds them"
        );
        return Ok(());
    }
    let tools = Tools::new();
    tools.set_up(EVERY_PROGRAM)?;
    for program in EVERY_PROGRAM {
        println!("{:<26} {}", program.name(), tools.path(*program).display());
    }
    Ok(())
}

/// The user's cache, so that every clone shares what was built; below `target/` where there is none.
fn cache_folder() -> PathBuf {
    if let Some(folder) = std::env::var_os(FOLDER_VARIABLE) {
        return folder.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    match cache.filter(|cache| cache.is_absolute()) {
        Some(cache) => cache.join("debros").join("tools"),
        None => target_folder().join("tools"),
    }
}

/// What `go` says it is; an error that tells what to do where there is none.
pub(crate) fn go_version() -> Result<String> {
    let output = Command::new("go").args(["env", "GOVERSION"]).output();
    let output =
        output.context("`go` is not on the PATH: install Go 1.26 or newer, Kubernetes is built with it")?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() {
        bail!("`go env GOVERSION` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(version)
}

/// True when all of these are built.
pub(crate) fn all_built(programs: &[Program]) -> bool {
    let tools = Tools::new();
    programs.iter().all(|program| fs::exists(tools.path(*program)).unwrap_or(false))
}

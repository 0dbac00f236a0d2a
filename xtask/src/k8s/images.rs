//! The images that a cluster needs before anything of ours runs in it: the pause program, DNS, volumes, and a shell. Made here of programs built here, and
//! given to the containerd of every node, because there is no registry.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::node;
use super::state::{Made, State};
use super::tools::{Program, Tools};
use crate::debian;
use crate::image::oci::{Content, Layer, Settings, write};

/// The image that holds a pod's namespaces.
pub(crate) const PAUSE: &str = "debros.local/pause:1";
pub(crate) const DNS: &str = "debros.local/coredns:1";
pub(crate) const VOLUMES: &str = "debros.local/local-path-provisioner:1";
/// A shell with the small programs, for what makes folders and for whoever looks around.
pub(crate) const SHELL: &str = "debros.local/busybox:1";
/// Debian's package of one static program that is the shell and all small programs.
const SHELL_PACKAGE: &str = "busybox-static";
/// The names under which pods ask for its programs.
const SHELL_PROGRAMS: &[&str] = &[
    "sh", "cat", "chmod", "cp", "date", "dd", "env", "grep", "head", "id", "ls", "mkdir", "mv", "nc",
    "nslookup", "ps", "rm", "rmdir", "sleep", "stat", "sync", "tail", "test", "touch", "true", "wc", "wget",
];

/// Writes the images that are not there yet; returns their files.
pub(crate) fn make(tools: &Tools) -> Result<Vec<PathBuf>> {
    let folder = tools.folder().join("images");
    let single = [(PAUSE, Program::Pause), (DNS, Program::Coredns), (VOLUMES, Program::LocalPathProvisioner)];
    let mut files = Vec::new();
    for (name, program) in single {
        let path = tools.built(program)?;
        // A program is built anew into another folder, so the folder's name is the image's version.
        let version = path.parent().and_then(Path::file_name).context("a program is in a folder")?;
        let file = folder.join(format!("{}.tar", version.to_string_lossy()));
        once(&file, |file| single_program(file, name, program, &path))?;
        files.push(file);
    }
    let file = folder.join(format!("{SHELL_PACKAGE}.tar"));
    once(&file, |file| shell(file, &folder.join(SHELL_PACKAGE)))?;
    files.push(file);
    Ok(files)
}

/// A file that is there is whole: it is renamed into place.
fn once(file: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if file.is_file() {
        return Ok(());
    }
    let name = format!(".{}-{}", std::process::id(), file.file_name().unwrap_or_default().to_string_lossy());
    let begun = file.with_file_name(name);
    make(&begun)?;
    fs::rename(&begun, file).with_context(|| format!("cannot write {}", file.display()))?;
    println!("    made {}", file.display());
    Ok(())
}

/// An image of one static program.
fn single_program(file: &Path, name: &str, program: Program, path: &Path) -> Result<()> {
    let mut layer = Layer::default();
    layer.add(program.name(), 0o755, Content::File(path.to_owned()));
    layer.add("tmp", 0o1777, Content::Folder);
    let settings = Settings { entrypoint: vec![format!("/{}", program.name())], ..Settings::default() };
    write(file, name, &[layer], &settings)?;
    Ok(())
}

fn shell(file: &Path, work: &Path) -> Result<()> {
    debian::unpack_packages(&[SHELL_PACKAGE], work)
        .with_context(|| format!("cannot get Debian's package {SHELL_PACKAGE}"))?;
    let program = ["bin/busybox", "usr/bin/busybox"]
        .map(|path| work.join(path))
        .into_iter()
        .find(|path| path.is_file());
    let mut layer = Layer::default();
    layer.add("bin/busybox", 0o755, Content::File(program.context("the package has no busybox")?));
    for name in SHELL_PROGRAMS {
        layer.add(&format!("bin/{name}"), 0o777, Content::Link("busybox".into()));
    }
    layer.add("etc/passwd", 0o644, Content::Text("root:x:0:0:root:/:/bin/sh\n".into()));
    layer.add("tmp", 0o1777, Content::Folder);
    let settings = Settings {
        command: vec!["/bin/sh".into()],
        environment: vec!["PATH=/bin".into()],
        ..Settings::default()
    };
    write(file, SHELL, &[layer], &settings)?;
    fs::remove_dir_all(work).with_context(|| format!("cannot remove {}", work.display()))
}

/// Gives images to every node, all nodes at the same time.
pub(crate) fn import(state: &State, files: &[PathBuf]) -> Result<()> {
    std::thread::scope(|scope| {
        let imports = state.nodes().map(|Made { machine, .. }| {
            scope.spawn(move || files.iter().try_for_each(|file| node::import(machine, file)))
        });
        let imports = imports.collect::<Vec<_>>();
        imports.into_iter().try_for_each(|import| match import.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

//! Control groups of machines: one for each machine in every hierarchy there is, with a place for the machine's own programs beside that of its
//! pods. Works with cgroup v2, and with v1 where a machine still has it. Freezing one stops a whole machine between two instructions.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const ROOT: &str = "/sys/fs/cgroup";
/// A group with groups below it has no processes of its own in cgroup v2.
const PROGRAMS: &str = "programs";
/// What pods are limited by, in the words of cgroup v2.
const CONTROLLERS: &[&str] = &["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];

/// The folders of a machine's groups, whether they are there or not.
pub(crate) fn places(name: &str) -> Result<Vec<PathBuf>> {
    Ok(hierarchies()?.into_iter().map(|hierarchy| hierarchy.join(name)).collect())
}

/// True when a machine of that name has groups already.
pub(crate) fn exists(name: &str) -> Result<bool> {
    Ok(places(name)?.iter().any(|group| group.exists()))
}

/// Makes a machine's groups.
pub(crate) fn make(groups: &[PathBuf]) -> Result<()> {
    for group in groups {
        let programs = group.join(PROGRAMS);
        fs::create_dir_all(&programs).with_context(|| format!("cannot create {}", programs.display()))?;
        let hierarchy = group.parent().context("a control group is in a hierarchy")?;
        for (above, below) in [(hierarchy, group), (group, &programs)] {
            inherit(above, below)?;
        }
    }
    Ok(())
}

/// The files by which a process enters these groups.
pub(crate) fn procs(groups: &[PathBuf]) -> Vec<PathBuf> {
    groups.iter().map(|group| group.join(PROGRAMS).join("cgroup.procs")).collect()
}

/// The folders in which groups are made: each hierarchy of v1, or the one of v2.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").is_file() {
        return Ok(vec![root.to_owned()]);
    }
    let entries = fs::read_dir(root).with_context(|| format!("no control groups at {ROOT}"))?;
    let mut found = Vec::new();
    for entry in entries {
        // Hierarchies with several controllers have a symbolic link for each.
        let path = fs::canonicalize(entry?.path())?;
        // The v2 hierarchy beside those of v1 has no controllers; runc makes groups in it all the same.
        let serves = path.join("cgroup.procs").is_file();
        if serves && !found.contains(&path) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// What a group needs from the one above it before it can have processes or limits.
fn inherit(above: &Path, below: &Path) -> Result<()> {
    // v1: a cpuset begins without processors or memory.
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (above.join(name), below.join(name));
        if from.is_file() && to.is_file() && fs::read_to_string(&to)?.trim().is_empty() {
            let value = fs::read_to_string(&from)?;
            fs::write(&to, value.trim()).with_context(|| format!("cannot set {}", to.display()))?;
        }
    }
    // v2: each controller is handed down by name; one that this kernel has not is no loss.
    let control = above.join("cgroup.subtree_control");
    if control.is_file() && above.file_name().is_some_and(|name| name != PROGRAMS) {
        for controller in CONTROLLERS {
            let _ = fs::write(&control, format!("+{controller}"));
        }
    }
    Ok(())
}

/// Stops everything on a machine, or lets it go on.
pub(crate) fn freeze(groups: &[PathBuf], frozen: bool) -> Result<()> {
    for group in groups {
        let (v1, v2) = (group.join("freezer.state"), group.join("cgroup.freeze"));
        if v1.is_file() {
            fs::write(&v1, if frozen { "FROZEN" } else { "THAWED" })?;
        } else if v2.is_file() {
            fs::write(&v2, if frozen { "1" } else { "0" })?;
        }
    }
    Ok(())
}

/// Removes groups with all groups below them; no process may be in them any more.
pub(crate) fn remove(groups: &[PathBuf]) -> Result<()> {
    for group in groups.iter().filter(|group| group.is_dir()) {
        remove_one(group)?;
    }
    Ok(())
}

fn remove_one(group: &Path) -> Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_one(&entry.path())?;
        }
    }
    fs::remove_dir(group).with_context(|| format!("cannot remove {}: is a process in it?", group.display()))
}

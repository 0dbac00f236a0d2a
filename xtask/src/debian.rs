//! Programs and libraries of others, as Debian's packages have them: unpacked below `target/` without being installed. No root, no service that
//! starts, nothing of the machine changes.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::steps::run;

/// Whether packages can be had here at all.
pub(crate) fn is_here() -> bool {
    Command::new("apt-get").arg("--version").output().is_ok()
}

/// Downloads a package with lists of packages of its own, which takes no root, and unpacks it into the folder.
pub(crate) fn unpack(package: &str, folder: &Path) -> Result<()> {
    let apt = folder.join("apt");
    for part in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(part))?;
    }
    let apt_get = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.current_dir(folder).args(["--quiet", "--quiet", "-o", "Debug::NoLocking=1"]);
        // Without root there is no other user to download as.
        command.args(["-o", "APT::Sandbox::User="]);
        for (key, part) in [("Dir::State::lists", "lists"), ("Dir::Cache", "cache")] {
            command.arg("-o").arg(format!("{key}={}", apt.join(part).display()));
        }
        command.args(arguments);
        run(command)
    };
    apt_get(&["update"])?;
    apt_get(&["download", package])?;
    let archives = fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    let archive = archives.filter(|path| path.extension().is_some_and(|ending| ending == "deb")).max();
    let archive = archive.context("nothing was downloaded")?;
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.arg("--extract").arg(&archive).arg(folder);
    run(dpkg)?;
    fs::remove_file(archive)?;
    Ok(fs::remove_dir_all(apt)?)
}

//! Debian's packages, got and unpacked without being installed: no root, no service that starts, nothing of the machine changes. It does not
//! know what they are for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::steps::run;

/// True where packages can be had.
pub(crate) fn available() -> bool {
    Command::new("apt-get").arg("--version").output().is_ok()
}

/// Downloads packages into a folder, with lists of packages of its own, which takes no root. Returns their files in order of name.
pub(crate) fn download(packages: &[&str], folder: &Path) -> Result<Vec<PathBuf>> {
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
    apt_get(&[&["download"], packages].concat())?;
    fs::remove_dir_all(apt)?;
    let entries = fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut archives =
        entries.filter(|path| path.extension().is_some_and(|ending| ending == "deb")).collect::<Vec<_>>();
    archives.sort();
    if archives.len() < packages.len() {
        bail!("of {} only {} were downloaded", packages.join(", "), archives.len());
    }
    Ok(archives)
}

/// Unpacks a package's files into a folder.
pub(crate) fn unpack(archive: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.arg("--extract").arg(archive).arg(folder);
    run(dpkg)
}

/// Gets packages and unpacks them all into one folder.
pub(crate) fn unpack_packages(packages: &[&str], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for archive in download(packages, folder)? {
        unpack(&archive, folder)?;
        fs::remove_file(archive)?;
    }
    Ok(())
}

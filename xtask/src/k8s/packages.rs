//! What nodes need of the machine they are on: which programs and files, which Debian packages have them, and installing those visibly. It
//! does not know what they are used for.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::debian;
use crate::steps::run;

/// Where programs of a system are; a user's PATH may leave some out.
const FOLDERS: &[&str] = &["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Where network plugins are: Debian's place and everybody else's.
const NETWORK_PLUGIN_FOLDERS: &[&str] = &["/usr/lib/cni", "/opt/cni/bin"];
/// The plugins that nodes use.
const NETWORK_PLUGINS: &[&str] = &["bridge", "host-local", "loopback", "portmap"];

/// A program and Debian's package that has it.
const PROGRAMS: &[(&str, &str)] = &[
    ("containerd", "containerd"),
    ("containerd-shim-runc-v2", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("conntrack", "conntrack"),
    ("iptables", "iptables"),
    ("ipset", "ipset"),
    ("socat", "socat"),
    ("ip", "iproute2"),
    ("mount", "mount"),
    ("nsenter", "util-linux"),
];
const NETWORK_PLUGINS_PACKAGE: &str = "containernetworking-plugins";

/// The packages whose programs are not there.
pub(crate) fn missing() -> Vec<&'static str> {
    let absent = PROGRAMS.iter().filter(|(program, _)| find(program).is_none());
    let mut packages = absent.map(|(_, package)| *package).collect::<Vec<_>>();
    if network_plugins().is_none() {
        packages.push(NETWORK_PLUGINS_PACKAGE);
    }
    packages.dedup();
    packages
}

/// Installs what is missing.
pub(crate) fn install() -> Result<()> {
    let packages = missing();
    if packages.is_empty() {
        println!("nothing is missing");
        return Ok(());
    }
    let list = packages.join(" ");
    if !debian::available() {
        bail!("missing: {list} (Debian's names), and there is no apt-get: install them as this system does");
    }
    println!("apt-get installs: {list}");
    let apt_get = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["--quiet", "--quiet", "-o", "Dpkg::Use-Pty=0"]).args(arguments);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        run(command)
    };
    apt_get(&["update"])?;
    apt_get(&[&["install", "--yes", "--no-install-recommends"], packages.as_slice()].concat())?;
    let still = missing();
    if !still.is_empty() {
        bail!("installed, and yet not found: {}", still.join(", "));
    }
    Ok(())
}

/// A program of this system.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join(program)).find(|path| path.is_file())
}

/// The folder with all network plugins that nodes use.
pub(crate) fn network_plugins() -> Option<&'static str> {
    let whole = |folder: &&&str| NETWORK_PLUGINS.iter().all(|name| Path::new(folder).join(name).is_file());
    NETWORK_PLUGIN_FOLDERS.iter().find(whole).copied()
}

/// What stands in the way of a cluster with nodes on this machine, each with what to do; what can be installed is not among it.
pub(crate) fn obstacles() -> Vec<String> {
    let mut found = Vec::new();
    if !cfg!(target_os = "linux") {
        found.push("Linux: nodes are made of its namespaces and control groups".to_owned());
        return found;
    }
    // SAFETY: geteuid only returns a number.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        found.push("root: namespaces, control groups and containers need it; run it with sudo".to_owned());
        let packages = missing();
        if !packages.is_empty() {
            found.push(format!(
                "the packages {}: `apt-get install` them, or run this as root",
                packages.join(", ")
            ));
        }
    }
    if let Err(error) = super::tools::go_version()
        && !super::tools::all_built(super::tools::EVERY_PROGRAM)
    {
        found.push(format!("Go: {error}"));
    }
    found
}

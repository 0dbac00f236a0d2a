//! Running a program of this host inside a machine's namespaces. Its network alone, for who talks to the cluster and wants this host's
//! files; or its files, too, for who talks to what runs on the machine.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context, Result};

use super::machine::Machine;

/// Which namespaces a program enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inside {
    Network,
    NetworkAndFiles,
}

/// A command that will run inside a machine.
pub(crate) fn within(machine: &Machine, inside: Inside, program: impl AsRef<OsStr>) -> Result<Command> {
    let names: &[&str] = match inside {
        Inside::Network => &["net"],
        Inside::NetworkAndFiles => &["net", "mnt"],
    };
    let open = |name: &&str| {
        let path = format!("/proc/{}/ns/{name}", machine.pid());
        File::open(path).with_context(|| format!("{} does not run, or is not yours", machine.name))
    };
    let files = names.iter().map(open).collect::<Result<Vec<_>>>()?;
    let mut command = Command::new(program);
    let enter = move || {
        for file in &files {
            // SAFETY: setns takes a descriptor, which the closure keeps open, and reads no memory of ours.
            if unsafe { libc::setns(file.as_raw_fd(), 0) } != 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure only makes system calls: it takes no lock and allocates nothing.
    unsafe { command.pre_exec(enter) };
    Ok(command)
}

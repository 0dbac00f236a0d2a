//! `cargo xtask k8s down`: removes all that `up` made and nothing else. What there is to remove is in the cluster's [`State`]; a machine's
//! death takes its processes, mounts and interfaces with it, so what is left for here are control groups, mount points and the folder.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::cgroups;
use super::layout::Layout;
use super::state::State;
use super::wait;
use std::time::Duration;

/// A group is empty once the kernel has taken down the last process in it.
const GROUPS_EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// Removes a cluster; it is no error when there is none.
pub(crate) fn run(layout: &Layout) -> Result<()> {
    let Some(state) = State::read(layout)? else {
        println!("there is no cluster `{}`: nothing to remove", layout.name);
        return remove_folder(&layout.folder);
    };
    remove(layout, &state)?;
    println!(
        "removed {} machines of `{}` and {}",
        state.machines.len(),
        layout.name,
        layout.folder.display()
    );
    Ok(())
}

/// Removes what this state says; what it says is gone already is no error.
pub(crate) fn remove(layout: &Layout, state: &State) -> Result<()> {
    // The control plane last: whoever looks meanwhile sees nodes go, not an API server.
    for made in state.machines.iter().rev() {
        // A frozen process does not even die.
        cgroups::freeze(&made.cgroups, false)?;
        made.machine.kill()?;
        println!("    ended {}", made.machine.name);
    }
    let groups = state.machines.iter().flat_map(|made| &made.cgroups).chain(&state.cgroups_begun);
    let groups = groups.cloned().collect::<Vec<_>>();
    let mut last = None;
    let emptied = wait::until("empty control groups", GROUPS_EMPTY_WITHIN, || {
        last = cgroups::remove(&groups).err();
        Ok(last.is_none())
    });
    emptied.map_err(|error| last.unwrap_or(error))?;
    for folder in state.mount_points.iter().rev() {
        // Whoever uses it meanwhile keeps it.
        let _ = fs::remove_dir(folder);
    }
    remove_folder(&layout.folder)
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

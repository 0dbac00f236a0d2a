//! `cargo xtask k8s load`: the images that `cargo xtask image` wrote, given to the containerd of every node. A pod that runs keeps the image it
//! was started with.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::access::existing;
use super::images;
use super::layout::Layout;
use super::state::{Kind, State};
use crate::image;
use crate::steps::step;

/// Gives these images, or all that there are, to all nodes.
pub(crate) fn run(layout: &Layout, named: &[PathBuf]) -> Result<()> {
    if existing().is_some() {
        bail!(
            "KUBECONFIG names a cluster that was not made here: push the images to the registry that it pulls from"
        );
    }
    let state = State::of_running(layout)?;
    if state.kind != Kind::Cluster {
        bail!("`{}` has no nodes that could take images", layout.name);
    }
    let files = if named.is_empty() { written()? } else { named.to_vec() };
    if files.is_empty() {
        bail!("no images in {}: `cargo xtask image` writes them", image::folder().display());
    }
    let files = files.iter().map(fs::canonicalize).collect::<std::io::Result<Vec<_>>>();
    let files = files.context("an image is not there")?;
    step("images onto the nodes", || give_all(&state, &files))
}

/// Gives all that there are to a cluster that is being made; it is no error when there are none.
pub(crate) fn all(state: &State) -> Result<()> {
    let files = written()?;
    if files.is_empty() {
        println!(
            "    none in {}: `cargo xtask image` writes them, `cargo xtask k8s load` gives them to the nodes",
            image::folder().display()
        );
    }
    give_all(state, &files)
}

/// Gives one image to all nodes.
pub(crate) fn give(layout: &Layout, file: &Path) -> Result<()> {
    give_all(&State::of_running(layout)?, &[file.to_owned()])
}

fn give_all(state: &State, files: &[PathBuf]) -> Result<()> {
    for file in files {
        println!("    {}", file.display());
    }
    images::import(state, files)
}

/// The images that were written, in order of name.
fn written() -> Result<Vec<PathBuf>> {
    let folder = image::folder();
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    let mut files = files
        .into_iter()
        .filter(|file| file.extension().is_some_and(|ending| ending == "tar"))
        .collect::<Vec<_>>();
    files.sort();
    Ok(files)
}

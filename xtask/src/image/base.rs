//! What is below the programs: the C library, the authorities that TLS trusts, a shell for who looks around, and names of users. Taken from Debian's
//! packages of this system's release, which programs built here fit; not installed, so it takes no root. It is kept until `target/image/base` is removed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::oci::{Content, Layer};
use super::{USER, folder};
use crate::debian;

const PACKAGES: &[&str] = &["base-files", "ca-certificates", "dash", "libc6", "libgcc-s1"];
/// What of them programs need while they run; the rest is for people and for building. Licences stay.
const KEPT: &[&str] = &["usr/lib/", "usr/lib64/", "usr/bin/dash", "etc/os-release", "usr/share/doc/"];
const LICENCE: &str = "/copyright";
/// Parts of the C library that only other languages and old programs ask for.
const DROPPED: &[&str] = &["/gconv/", "/audit/", "/libmemusage.so", "/libpcprofile.so"];
const AUTHORITIES: &str = "usr/share/ca-certificates/mozilla";
/// Where programs look for authorities.
const AUTHORITIES_FILE: &str = "etc/ssl/certs/ca-certificates.crt";
const VERSIONS_FILE: &str = "versions";

/// The layer below the programs.
#[derive(Clone)]
pub(super) struct Base {
    pub(super) layer: Layer,
    /// Packages with their versions.
    pub(super) packages: String,
}

/// The base, from packages that are got where they are not there.
pub(super) fn layer() -> Result<Base> {
    let base = folder().join("base");
    if !base.is_dir() {
        if !debian::available() {
            bail!(
                "the base is made of Debian's packages, and there is no apt-get: build the Dockerfile instead"
            );
        }
        get(&base)?;
    }
    let packages = fs::read_to_string(base.join(VERSIONS_FILE))?;
    println!("    {packages}");
    Ok(Base { layer: of_files(&base.join("files"))?, packages })
}

fn get(base: &Path) -> Result<()> {
    let work = folder().join(format!(".base-{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let archives = debian::download(PACKAGES, &work)?;
    let mut versions = Vec::new();
    for archive in &archives {
        versions.push(version(archive)?);
        debian::unpack(archive, &work.join("files"))?;
        fs::remove_file(archive)?;
    }
    fs::write(work.join(VERSIONS_FILE), versions.join(", "))?;
    fs::rename(&work, base).with_context(|| format!("cannot write {}", base.display()))
}

fn version(archive: &Path) -> Result<String> {
    let mut command = Command::new("dpkg-deb");
    command.args(["--showformat=${Package} ${Version}", "--show"]).arg(archive);
    let output = command.output()?;
    if !output.status.success() {
        bail!("{} is no package: {}", archive.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A layer of what is kept of unpacked packages.
fn of_files(files: &Path) -> Result<Layer> {
    let mut layer = Layer::default();
    add_folder(&mut layer, files, "")?;
    // Debian has one folder for each of these now, under `usr`; the names of old stay.
    for (link, target) in [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        layer.add(link, 0o777, Content::Link(target.into()));
    }
    layer.add("usr/bin/sh", 0o777, Content::Link("dash".into()));
    layer.add(AUTHORITIES_FILE, 0o644, Content::Text(authorities(&files.join(AUTHORITIES))?));
    let users = format!("root:x:0:0:root:/:/bin/false\ndebros:x:{USER}:{USER}:debros:/tmp:/bin/sh\n");
    layer.add("etc/passwd", 0o644, Content::Text(users));
    layer.add("etc/group", 0o644, Content::Text(format!("root:x:0:\ndebros:x:{USER}:\n")));
    layer.add("etc/nsswitch.conf", 0o644, Content::Text("hosts: files dns\n".into()));
    layer.add("tmp", 0o1777, Content::Folder);
    Ok(layer)
}

fn add_folder(layer: &mut Layer, files: &Path, below: &str) -> Result<()> {
    let folder = files.join(below);
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().into_string().map_err(|name| anyhow::anyhow!("{name:?} is no text"))?;
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        let place = under_usr(&path);
        let kind = entry.file_type()?;
        if kind.is_dir() {
            add_folder(layer, files, &path)?;
        } else if !is_kept(&place) {
            continue;
        } else if kind.is_symlink() {
            let target = fs::read_link(entry.path())?;
            layer.add(&place, 0o777, Content::Link(target.to_string_lossy().into_owned()));
        } else {
            let mode = entry.metadata()?.permissions().mode() & 0o777;
            layer.add(&place, mode, Content::File(entry.path()));
        }
    }
    Ok(())
}

/// Packages of older releases still have files beside `usr` that are below it now.
fn under_usr(path: &str) -> String {
    let old = ["bin/", "lib/", "lib64/"];
    if old.iter().any(|folder| path.starts_with(folder)) { format!("usr/{path}") } else { path.to_owned() }
}

fn is_kept(place: &str) -> bool {
    let wanted = KEPT.iter().any(|kept| place.starts_with(kept));
    let documentation = place.starts_with("usr/share/doc/") && !place.ends_with(LICENCE);
    wanted && !documentation && !DROPPED.iter().any(|dropped| place.contains(dropped))
}

/// All authorities in one file, in order of name.
fn authorities(folder: &Path) -> Result<String> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    files.sort();
    files.iter().try_fold(String::new(), |all, file| Ok(all + &fs::read_to_string(file)?))
}

#[cfg(test)]
mod tests {
    use super::{is_kept, under_usr};

    #[test]
    fn libraries_and_licences_are_kept_and_the_rest_is_not() {
        let kept =
            ["usr/lib/x/libc.so.6", "usr/lib64/ld.so", "usr/bin/dash", "usr/share/doc/libc6/copyright"];
        assert!(kept.iter().all(|path| is_kept(path)), "{kept:?}");
        let dropped = [
            "usr/lib/x/gconv/a.so",
            "usr/share/doc/libc6/changelog.gz",
            "usr/bin/bashbug",
            "usr/share/man/man1/dash.1.gz",
        ];
        assert!(!dropped.iter().any(|path| is_kept(path)), "{dropped:?}");
    }

    #[test]
    fn files_of_older_packages_are_where_those_of_newer_ones_are() {
        assert_eq!(under_usr("lib/x/libc.so.6"), "usr/lib/x/libc.so.6");
        assert_eq!(under_usr("lib64/ld.so"), "usr/lib64/ld.so");
        assert_eq!(under_usr("usr/lib/x"), "usr/lib/x");
        assert_eq!(under_usr("library/x"), "library/x");
    }
}

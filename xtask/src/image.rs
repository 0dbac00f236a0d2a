//! `cargo xtask image`: images of the node (with the command line client in it) and of the operator, made here of programs built here on a base of Debian's
//! libraries. It decides what is in them and what they say about themselves; [`oci`] decides the bytes.
//!
//! Invariants: the same programs and packages give the same digest; nothing in an image is written to while it runs; its user is not root.

mod base;
pub(crate) mod oci;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::steps::{cargo, run as run_program, step, target_folder, workspace_root};
use oci::{Content, Layer, Settings};

/// Who the programs run as: the number that is nobody's in particular, as in other images without a root.
pub(crate) const USER: u64 = 65532;
/// Where names without a host are looked for, and so what containerd knows an image by.
const DEFAULT_HOST: &str = "docker.io";
/// Where a node keeps its data; in a cluster a volume is mounted there.
const DATA_FOLDER: &str = "var/lib/debros";
const PREFIX: &str = "debros";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The operator's crate is not in every checkout.
const OPERATOR_PACKAGE: &str = "operator";

/// Options of `image`.
#[derive(Args)]
pub(crate) struct ImageOptions {
    /// The images' tag, which is also the version that the operator takes them for.
    #[arg(long, default_value = VERSION)]
    tag: String,
    /// The first part of the images' names: `PREFIX/node:TAG`, `PREFIX/operator:TAG`.
    #[arg(long, default_value = PREFIX)]
    prefix: String,
    /// Without optimisation: faster to build, slower to run.
    #[arg(long)]
    debug: bool,
}

impl ImageOptions {
    /// Images of the usual names under this tag.
    pub(crate) fn tagged(tag: &str, debug: bool) -> Self {
        Self { tag: tag.to_owned(), prefix: PREFIX.to_owned(), debug }
    }
}

/// An image as it should be.
struct Image {
    name: &'static str,
    title: &'static str,
    description: &'static str,
    package_programs: &'static [(&'static str, &'static str)],
    ports: &'static [&'static str],
}

const IMAGES: &[Image] = &[
    Image {
        name: "node",
        title: "debros node",
        description: "A node of debros (debros-node) and its command line client (debros).",
        package_programs: &[("debros-node", "debros-node"), ("debros-cli", "debros")],
        ports: &["4001/tcp", "4001/udp"],
    },
    Image {
        name: "operator",
        title: "debros operator",
        description: "Keeps clusters of debros on Kubernetes (debros-operator).",
        package_programs: &[(OPERATOR_PACKAGE, "debros-operator")],
        ports: &["8080/tcp"],
    },
];

/// Builds the programs and writes the images; returns their files.
pub(crate) fn run(options: &ImageOptions) -> Result<Vec<PathBuf>> {
    check_tag(&options.tag)?;
    let images = IMAGES.iter().filter(|image| image.is_in_this_workspace()).collect::<Vec<_>>();
    step("programs", || build(&images, options.debug))?;
    let base = step("base", base::layer)?;
    let profile = if options.debug { "debug" } else { "release" };
    let mut files = Vec::new();
    for image in images {
        let name = full_name(&format!("{}/{}:{}", options.prefix, image.name, options.tag));
        let file = folder().join(format!("{}-{}.tar", image.name, options.tag));
        let written = step(&name, || {
            let layers = [base.layer.clone(), programs_layer(image, &target_folder().join(profile))?];
            oci::write(&file, &name, &layers, &settings(image, &base.packages)?)
        })?;
        println!(
            "{name}\n    {}\n    {}, {:.1} MiB",
            written.digest,
            file.display(),
            mebibytes(written.bytes)
        );
        files.push(file);
    }
    Ok(files)
}

/// Where images are written.
pub(crate) fn folder() -> PathBuf {
    target_folder().join("image")
}

/// As containerd knows an image: a first part that is no host means the usual one.
fn full_name(name: &str) -> String {
    let is_host = |part: &str| part.contains(['.', ':']) || part == "localhost";
    match name.split_once('/') {
        Some((first, _)) if is_host(first) => name.to_owned(),
        Some(_) => format!("{DEFAULT_HOST}/{name}"),
        None => format!("{DEFAULT_HOST}/library/{name}"),
    }
}

/// What a registry takes as a tag (distribution-spec 1.1).
fn check_tag(tag: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if tag.is_empty() || tag.len() > 128 || !tag.bytes().all(plain) || tag.starts_with(['.', '-']) {
        bail!(
            "a tag has 1 to 128 of letters, digits, `_`, `.` and `-`, and begins with none of the last two: `{tag}` does not"
        );
    }
    Ok(())
}

impl Image {
    fn is_in_this_workspace(&self) -> bool {
        let there = workspace_root().join(OPERATOR_PACKAGE).join("Cargo.toml").is_file();
        let needed = self.package_programs.iter().any(|(package, _)| *package == OPERATOR_PACKAGE);
        if needed && !there {
            println!("skipped: the image {}, whose crate is not in this workspace", self.name);
        }
        there || !needed
    }
}

fn build(images: &[&Image], debug: bool) -> Result<()> {
    let mut arguments = vec!["build", "--bins"];
    if !debug {
        arguments.push("--release");
    }
    for (package, _) in images.iter().flat_map(|image| image.package_programs) {
        arguments.extend(["--package", package]);
    }
    run_program(cargo(&arguments))
}

/// The programs of an image, and where a node's data is mounted.
fn programs_layer(image: &Image, built: &Path) -> Result<Layer> {
    let mut layer = Layer::default();
    for (_, program) in image.package_programs {
        layer.add(&format!("usr/bin/{program}"), 0o755, Content::File(stripped(&built.join(program))?));
    }
    layer.add_owned(DATA_FOLDER, 0o700, USER, Content::Folder);
    Ok(layer)
}

/// A program without what only debuggers read.
fn stripped(program: &Path) -> Result<PathBuf> {
    let folder = folder().join("stripped");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let to = folder.join(program.file_name().context("a program is a file")?);
    let mut strip = Command::new("strip");
    strip.arg("--strip-debug").arg("-o").arg(&to).arg(program);
    run_program(strip).context("`strip` comes with binutils")?;
    Ok(to)
}

/// Writes an image of one program that is no part of the product, on the same base and as the same user.
pub(crate) fn of_program(name: &str, program: &Path, file: &Path) -> Result<()> {
    let base = base::layer()?;
    let stripped = stripped(program)?;
    let place = format!("usr/bin/{}", stripped.file_name().unwrap_or_default().to_string_lossy());
    let mut layer = Layer::default();
    layer.add(&place, 0o755, Content::File(stripped));
    let settings =
        Settings { entrypoint: vec![format!("/{place}")], user: Some(USER), ..Settings::default() };
    oci::write(file, name, &[base.layer, layer], &settings)?;
    Ok(())
}

fn settings(image: &Image, packages: &str) -> Result<Settings> {
    let (_, first) = image.package_programs.first().context("an image has a program")?;
    let labels = [
        ("title", image.title.to_owned()),
        ("description", image.description.to_owned()),
        ("version", VERSION.to_owned()),
        ("revision", revision()),
        ("licenses", "MIT OR Apache-2.0".to_owned()),
        ("base.name", packages.to_owned()),
    ];
    let labels = labels.map(|(key, value)| (format!("org.opencontainers.image.{key}"), value));
    Ok(Settings {
        entrypoint: vec![format!("/usr/bin/{first}")],
        command: Vec::new(),
        user: Some(USER),
        ports: image.ports.iter().map(|port| (*port).to_owned()).collect(),
        environment: vec!["PATH=/usr/bin:/bin".to_owned(), "HOME=/tmp".to_owned()],
        labels: BTreeMap::from(labels),
    })
}

/// The commit that is built, and whether anything differs from it; empty outside of a repository.
fn revision() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).current_dir(workspace_root()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "HEAD"]) else { return String::new() };
    let clean =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| changes.is_empty());
    if clean { commit } else { format!("{commit}-changed") }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::{IMAGES, check_tag, full_name, settings};

    #[test]
    fn names_are_those_that_containerd_knows() {
        let cases = [
            ("debros/node:1", "docker.io/debros/node:1"),
            ("node:1", "docker.io/library/node:1"),
            ("example.test/debros/node:1", "example.test/debros/node:1"),
            ("localhost/node:1", "localhost/node:1"),
            ("host:5000/node:1", "host:5000/node:1"),
        ];
        for (given, expected) in cases {
            assert_eq!(full_name(given), expected);
        }
    }

    #[test]
    fn a_tag_that_no_registry_takes_is_refused_with_what_it_may_be() {
        for tag in ["", "a b", "a/b", ".a", "-a", "ä"] {
            assert!(check_tag(tag).unwrap_err().to_string().contains("1 to 128"), "{tag}");
        }
        assert!(check_tag("0.1.0-rc_1").is_ok());
    }

    #[test]
    fn no_image_runs_as_root_and_each_says_what_it_is() {
        for image in IMAGES {
            let settings = settings(image, "libc6 1").unwrap();
            assert_eq!(settings.user, Some(65532));
            assert!(settings.entrypoint[0].starts_with("/usr/bin/debros"));
            for key in ["title", "description", "version", "licenses", "revision"] {
                assert!(settings.labels.contains_key(&format!("org.opencontainers.image.{key}")), "{key}");
            }
        }
    }
}

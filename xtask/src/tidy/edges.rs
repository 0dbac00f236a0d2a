//! Which crate of ours may use which: the table of DESIGN.md section 2. Anything unlisted is forbidden.
//! What only tests use is free: dev-dependencies are not edges.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Finding;

/// A crate and what it may use; `None` means everything.
type Edge = (&'static str, Option<&'static [&'static str]>);

const EDGES: &[Edge] = &[
    ("debros-proto", Some(&[])),
    ("debros-topics", Some(&["debros-proto"])),
    ("debros-config", Some(&[])),
    ("debros-sqlite", Some(&[])),
    ("debros-net", Some(&["debros-proto"])),
    ("debros-sdk", Some(&["debros-proto", "debros-topics", "debros-net", "debros-sqlite"])),
    ("debros-node", Some(&["debros-proto", "debros-topics", "debros-config", "debros-net", "debros-sqlite"])),
    ("debros-cli", Some(&["debros-sdk"])),
    ("anchat", Some(&["debros-sdk"])),
    ("operator", Some(&["debros-config", "debros-sdk"])),
    ("xtask", None),
];

/// Edges that exist only while a feature is on, so the dependency must be optional.
const EDGES_OPTIONAL: &[(&str, &str)] = &[("debros-sdk", "debros-sqlite")];

/// Asks cargo which crates there are and what they use, and compares it with the table.
pub(super) fn check(root: &Path) -> Result<Vec<Finding>> {
    let metadata = metadata(root)?;
    let packages = array(&metadata, "packages")?;
    let ours = packages.iter().filter_map(|package| package["name"].as_str()).collect::<Vec<_>>();
    let mut findings = Vec::new();
    for package in packages {
        let name = text(package, "name")?;
        let manifest = Path::new(text(package, "manifest_path")?);
        let mut report = |needle: &str, message: String| {
            let path = manifest.strip_prefix(root).unwrap_or(manifest).to_string_lossy().into_owned();
            findings.push(Finding::new(&path, line_of(manifest, needle), message));
        };
        let Some((_, allowed)) = EDGES.iter().find(|(known, _)| *known == name) else {
            report(
                &format!("\"{name}\""),
                format!("crate `{name}` has no row in xtask/src/tidy/edges.rs: say what it may use"),
            );
            continue;
        };
        for dependency in array(package, "dependencies")? {
            let used = text(dependency, "name")?;
            if dependency["kind"] == "dev" || !ours.contains(&used) {
                continue;
            }
            if allowed.is_some_and(|allowed| !allowed.contains(&used)) {
                report(used, forbidden(name, used, *allowed));
            } else if EDGES_OPTIONAL.contains(&(name, used)) && dependency["optional"] != true {
                report(
                    used,
                    format!("`{name}` may use `{used}` only behind a feature: make it `optional = true`"),
                );
            }
        }
    }
    Ok(findings)
}

fn forbidden(name: &str, used: &str, allowed: Option<&[&str]>) -> String {
    let may = match allowed {
        Some([]) | None => "none of our crates".to_owned(),
        Some(allowed) => allowed.join(", "),
    };
    format!("`{name}` must not use `{used}`; it may use {may}. Move the code to where the edge exists")
}

fn metadata(root: &Path) -> Result<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("cannot start `cargo metadata`")?;
    if !output.status.success() {
        bail!("`cargo metadata` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("`cargo metadata` did not print JSON")
}

fn array<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    value[key].as_array().with_context(|| format!("`cargo metadata` gave no list `{key}`"))
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().with_context(|| format!("`cargo metadata` gave no text `{key}`"))
}

/// The first line that starts with, or else holds, the words.
fn line_of(manifest: &Path, needle: &str) -> usize {
    let manifest = fs::read_to_string(manifest).unwrap_or_default();
    let starts = manifest.lines().position(|line| line.trim_start().starts_with(needle));
    starts.or_else(|| manifest.lines().position(|line| line.contains(needle))).map_or(0, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::tree::plant;
    use super::check;

    fn crate_of(root: &Path, name: &str, dependencies: &str) {
        let manifest =
            format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n{dependencies}");
        plant(root, &format!("{name}/Cargo.toml"), &manifest);
        plant(root, &format!("{name}/src/lib.rs"), "//! Planted.\n");
    }

    fn findings(crates: &[(&str, &str)]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let members = crates.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        plant(root, "Cargo.toml", &format!("[workspace]\nresolver = \"3\"\nmembers = [{members}]\n"));
        for (name, dependencies) in crates {
            crate_of(root, name, dependencies);
        }
        check(&root.canonicalize().unwrap()).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_edge_outside_the_table_is_found_at_its_line() {
        let found = findings(&[
            ("debros-proto", "[dependencies]\ndebros-net = { path = \"../debros-net\" }\n"),
            ("debros-net", ""),
        ]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with("debros-proto/Cargo.toml:6: `debros-proto` must not use `debros-net`"),
            "{found:?}"
        );
    }

    #[test]
    fn listed_edges_and_dev_dependencies_are_free() {
        let found = findings(&[
            ("debros-net", "[dependencies]\ndebros-proto = { path = \"../debros-proto\" }\n"),
            ("debros-proto", "[dev-dependencies]\ndebros-net = { path = \"../debros-net\" }\n"),
        ]);
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn the_sdk_has_sqlite_only_behind_a_feature() {
        let sdk = "[dependencies]\ndebros-sqlite = { path = \"../debros-sqlite\" }\n";
        let found = findings(&[("debros-sdk", sdk), ("debros-sqlite", "")]);
        assert!(found[0].contains("make it `optional = true`"), "{found:?}");
    }

    #[test]
    fn an_unknown_crate_asks_for_its_row() {
        let found = findings(&[("debros-novelty", "")]);
        assert!(found[0].contains("has no row in xtask/src/tidy/edges.rs"), "{found:?}");
    }
}

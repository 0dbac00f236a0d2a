//! `cargo xtask tidy`: the rules of the house that the compiler does not check. Each rule is a module
//! that reads the [`tree::Tree`] and reports [`Finding`]s; this one decides which rules there are and
//! how a finding is shown. Rules never change a file.

mod dependencies;
mod doors;
mod edges;
mod engines;
mod links;
mod metrics;
mod modules;
mod rust_code;
mod tree;
mod words;

use std::fmt;
use std::path::Path;

use anyhow::{Result, bail};

use crate::steps;
use tree::Tree;

/// A broken rule, at a place, with what to do about it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    path: String,
    /// From 1; 0 means the file as a whole.
    line: usize,
    message: String,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line.max(1), self.message)
    }
}

/// Checks this workspace and prints every finding.
pub(crate) fn run() -> Result<()> {
    let root = steps::workspace_root();
    let (files, findings) = check(&root)?;
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy found {} places to mend (listed above) in {files} files", findings.len());
    }
    println!("tidy: {files} files, nothing to mend");
    Ok(())
}

/// The number of files read, and the findings in order of place.
fn check(root: &Path) -> Result<(usize, Vec<Finding>)> {
    let tree = Tree::read(root)?;
    let mut findings = edges::check(root)?;
    for rule in [
        dependencies::check,
        doors::check,
        engines::check,
        modules::check,
        words::check,
        links::check,
        metrics::check,
    ] {
        findings.extend(rule(&tree));
    }
    findings.sort();
    findings.dedup();
    Ok((tree.files().len(), findings))
}

#[cfg(test)]
mod tests {
    use super::check;
    use super::tree::plant;

    #[test]
    fn a_clean_workspace_has_nothing_to_mend_and_a_planted_fault_shows_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        plant(root, "Cargo.toml", "[workspace]\nresolver = \"3\"\nmembers = [\"crates/debros-proto\"]\n");
        let manifest = "[package]\nname = \"debros-proto\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
        plant(root, "crates/debros-proto/Cargo.toml", manifest);
        plant(root, "crates/debros-proto/src/lib.rs", "//! The contract.\n");
        assert_eq!(check(root).unwrap().1, []);

        plant(root, "crates/debros-proto/src/lib.rs", "//! The contract.\nuse std::fmt::*;\n");
        let findings = check(root).unwrap().1;
        let shown = findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(shown.starts_with("crates/debros-proto/src/lib.rs:2: "), "{shown}");
    }
}

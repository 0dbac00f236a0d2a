//! Every dependency is declared once, at the workspace; a member says `name.workspace = true`. Reads the
//! manifests line by line, because a finding needs its line.

use super::Finding;
use super::tree::{File, Tree};

/// A dependency as a manifest spells it.
pub(super) struct Dependency<'a> {
    pub(super) line: usize,
    pub(super) name: &'a str,
    /// Only tests, examples and benchmarks see it.
    pub(super) dev: bool,
    workspace: bool,
}

/// The dependencies of one manifest.
pub(super) fn dependencies(manifest: &File) -> Vec<Dependency<'_>> {
    let mut section = Section::Other;
    let mut found = Vec::new();
    for (line, text) in manifest.lines() {
        if let Some(header) = text.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            section = Section::of(header);
            if let Section::Own(name, dev) = section {
                found.push(Dependency { line, name, dev, workspace: false });
            }
            continue;
        }
        let entry = text.split_once('=').filter(|_| text.starts_with(|c: char| c.is_alphanumeric()));
        let Some((key, value)) = entry.map(|(key, value)| (key.trim(), value.trim())) else { continue };
        match section {
            Section::List(dev) => {
                let name = key.split('.').next().unwrap_or(key);
                let workspace = key.ends_with(".workspace") || value.contains("workspace = true");
                found.push(Dependency { line, name, dev, workspace });
            }
            Section::Own(..) if key == "workspace" => {
                if let Some(last) = found.last_mut() {
                    last.workspace = value == "true";
                }
            }
            Section::Own(..) | Section::Other => {}
        }
    }
    found
}

#[derive(Clone, Copy)]
enum Section<'a> {
    /// `[dependencies]` and its kin: an entry a line.
    List(bool),
    /// `[dependencies.name]`: one dependency.
    Own(&'a str, bool),
    Other,
}

impl<'a> Section<'a> {
    fn of(header: &'a str) -> Self {
        // `target.'cfg(unix)'.dependencies`: what stands before does not matter here.
        let kinds = [("dev-dependencies", true), ("build-dependencies", false), ("dependencies", false)];
        for (kind, dev) in kinds {
            if header == kind || header.ends_with(&format!(".{kind}")) {
                return Self::List(dev);
            }
            if let Some((before, name)) = header.split_once(&format!("{kind}."))
                && (before.is_empty() || before.ends_with('.'))
            {
                return Self::Own(name, dev);
            }
        }
        Self::Other
    }
}

/// Finds dependencies that a member declares for itself.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for manifest in tree.crate_manifests() {
        for dependency in dependencies(manifest).iter().filter(|dependency| !dependency.workspace) {
            let name = dependency.name;
            let message = format!(
                "declare `{name}` once, in the root Cargo.toml under [workspace.dependencies], and write `{name}.workspace = true` (or `{name} = {{ workspace = true, .. }}`) here"
            );
            findings.push(Finding::new(&manifest.path, dependency.line, message));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::{check, dependencies};

    fn manifest(text: &str) -> Tree {
        Tree::planted(&[("debros-node/Cargo.toml", text)])
    }

    #[test]
    fn a_version_in_a_member_is_found() {
        for entry in ["tokio = \"1\"", "tokio = { version = \"1\" }", "tokio.version = \"1\""] {
            for section in
                ["dependencies", "dev-dependencies", "build-dependencies", "target.'cfg(unix)'.dependencies"]
            {
                let found = check(&manifest(&format!("[package]\nname = \"x\"\n[{section}]\n{entry}\n")));
                assert_eq!(found.len(), 1, "[{section}] {entry}");
                assert_eq!(found[0].line, 4);
            }
        }
        let found = check(&manifest("[dependencies.tokio]\nversion = \"1\"\n"));
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn what_comes_from_the_workspace_is_free() {
        let text = "[dependencies]\na.workspace = true\nb = { workspace = true, features = [\n    \"x\",\n] }\n\
                    [dependencies.c]\nworkspace = true\n[features]\nmemory = [\"dep:b\"]\n";
        let tree = manifest(text);
        assert_eq!(check(&tree), []);
        let names = dependencies(&tree.files()[0]).iter().map(|d| d.name).collect::<Vec<_>>();
        assert_eq!(names, ["a", "b", "c"]);
    }
}

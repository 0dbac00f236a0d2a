//! The files that tidy reads: every text file of the workspace, with its path relative to the root.
//! It knows what a source, a test and a manifest is; it knows no rule.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::rust_code;

/// Folders that hold nothing of the project's own.
const FOLDERS_SKIPPED: &[&str] = &[".git", "target", "data", "node_modules"];
/// Endings of the text files that people write.
const ENDINGS_READ: &[&str] =
    &["rs", "toml", "md", "yaml", "yml", "proto", "py", "sh", "json", "css", "js", "ts", "html", "tpl"];

/// One text file.
pub(super) struct File {
    /// Relative to the root, with forward slashes.
    pub(super) path: String,
    /// As it is on disk.
    pub(super) text: String,
    /// A Rust source with comments and literals blanked, line by line; empty for other files.
    pub(super) code: String,
}

impl File {
    fn new(path: String, text: String) -> Self {
        let code = if path.ends_with(".rs") { rust_code::without_words(&text) } else { String::new() };
        Self { path, text, code }
    }

    /// True for a Rust source.
    pub(super) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// True for a file under a `tests` or `benches` folder.
    pub(super) fn is_test(&self) -> bool {
        self.path.split('/').any(|part| part == "tests" || part == "benches")
    }

    /// Lines with their numbers from 1.
    pub(super) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// Lines of code only, with their numbers from 1.
    pub(super) fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().map(|(index, line)| (index + 1, line))
    }
}

/// All text files under a root, in order of path.
pub(super) struct Tree {
    files: Vec<File>,
    /// Paths of the files that are not read.
    others: Vec<String>,
}

impl Tree {
    /// Reads every text file under `root`.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let mut tree = Self { files: Vec::new(), others: Vec::new() };
        tree.read_folder(root, "")?;
        tree.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(tree)
    }

    /// The files in order of path.
    pub(super) fn files(&self) -> &[File] {
        &self.files
    }

    /// The Rust sources.
    pub(super) fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.is_rust())
    }

    /// The manifests of crates, not the workspace's own.
    pub(super) fn crate_manifests(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.path.ends_with("/Cargo.toml"))
    }

    /// A tree that exists only in a test.
    #[cfg(test)]
    pub(super) fn planted(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(path, text)| File::new((*path).into(), (*text).into())).collect();
        Self { files, others: Vec::new() }
    }

    /// True for a file, or a folder with a file in it.
    pub(super) fn holds(&self, path: &str) -> bool {
        let folder = format!("{path}/");
        let mut paths = self.files.iter().map(|file| &file.path).chain(&self.others);
        path.is_empty() || paths.any(|known| known == path || known.starts_with(&folder))
    }

    fn read_folder(&mut self, folder: &Path, prefix: &str) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
            let kind = entry.file_type()?;
            if kind.is_dir() {
                if !FOLDERS_SKIPPED.contains(&name.as_str()) {
                    self.read_folder(&entry.path(), &path)?;
                }
            } else if is_text(&path) {
                let text = fs::read_to_string(entry.path()).with_context(|| format!("cannot read {path}"))?;
                self.files.push(File::new(path, text));
            } else {
                self.others.push(path);
            }
        }
        Ok(())
    }
}

fn is_text(path: &str) -> bool {
    path == ".ci/run"
        || Path::new(path).extension().is_some_and(|e| ENDINGS_READ.iter().any(|known| e == *known))
}

/// Writes a file of a test's workspace, with its folders.
#[cfg(test)]
pub(super) fn plant(root: &Path, path: &str, text: &str) {
    let file = root.join(path);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

#[cfg(test)]
mod tests {
    use super::{Tree, plant};

    #[test]
    fn build_results_and_binaries_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["a/src/lib.rs", "target/debug/x.rs", ".git/x.md", "logo.png", ".ci/run"] {
            plant(folder.path(), path, "text");
        }
        let tree = Tree::read(folder.path()).unwrap();
        let paths = tree.files().iter().map(|file| file.path.as_str()).collect::<Vec<_>>();
        assert_eq!(paths, [".ci/run", "a/src/lib.rs"]);
    }
}

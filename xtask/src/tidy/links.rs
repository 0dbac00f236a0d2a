//! Relative links in documents lead somewhere: to a file or folder that exists, and to a heading of it.

use super::Finding;
use super::tree::{File, Tree};

/// Finds links that lead nowhere.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files().iter().filter(|file| file.path.ends_with(".md")) {
        for (line, target) in links(&file.text) {
            if let Some(message) = broken(tree, file, &target) {
                findings.push(Finding::new(&file.path, line, message));
            }
        }
    }
    findings
}

/// The targets of `[text](target)` outside code, with their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (line, words) in prose(text) {
        let mut rest = words.as_str();
        while let Some(at) = rest.find("](") {
            rest = &rest[at + 2..];
            let end = rest.find(')').unwrap_or(rest.len());
            let target = rest[..end].split_whitespace().next().unwrap_or_default();
            found.push((line, target.to_owned()));
            rest = &rest[end..];
        }
    }
    found
}

/// The lines outside fenced code, with inline code taken out.
fn prose(text: &str) -> Vec<(usize, String)> {
    let mut fenced = false;
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            found.push((index + 1, line.split('`').step_by(2).collect::<Vec<_>>().join("`")));
        }
    }
    found
}

fn broken(tree: &Tree, file: &File, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, heading) = target.split_once('#').unwrap_or((target, ""));
    let path = if path.is_empty() { file.path.clone() } else { resolve(&file.path, path) };
    let Some(found) = tree.files().iter().find(|other| other.path == path) else {
        let exists = tree.holds(&path);
        return (!exists).then(|| format!("the link `{target}` leads nowhere: there is no {path}"));
    };
    let headings = prose_headings(&found.text);
    let leads = heading.is_empty() || !path.ends_with(".md") || headings.iter().any(|known| known == heading);
    (!leads).then(|| format!("the link `{target}` names a heading that {path} does not have"))
}

/// A path relative to a document, from the root of the tree.
fn resolve(document: &str, target: &str) -> String {
    let mut parts = document.split('/').collect::<Vec<_>>();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The anchors that a document's headings get.
fn prose_headings(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut found = Vec::new();
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        if let Some(title) = line.strip_prefix('#').filter(|_| !fenced) {
            let title = title.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            found.push(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::check;

    #[test]
    fn a_link_that_leads_nowhere_is_found() {
        let tree = Tree::planted(&[
            (
                "docs/adr/0001-x.md",
                "# One\n\n[up](../../README.md) [gone](../gone.md)\n[part](../../README.md#nope)\n",
            ),
            ("README.md", "# Hello, world\n"),
        ]);
        let found = check(&tree);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].message.contains("there is no docs/gone.md"), "{found:?}");
        assert!(found[1].message.contains("names a heading"), "{found:?}");
    }

    #[test]
    fn good_links_code_and_the_web_are_free() {
        let text = "# Hello, `world`\n[a](docs/) [b](#hello-world) [c](https://example.org/x) `[d](gone)`\n```\n[e](gone)\n```\n";
        let tree = Tree::planted(&[("README.md", text), ("docs/x.md", "# X\n")]);
        assert_eq!(check(&tree), []);
    }
}

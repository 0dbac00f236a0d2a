//! Inside the node, engines never import each other, nor what stands above them (`service`, `rpc`, `http`):
//! what needs two engines is composed in `service`.

use super::Finding;
use super::rust_code::word_positions;
use super::tree::{File, Tree};

const NODE: &str = "debros-node/src/";
const ENGINES: &[&str] = &["sql", "kv", "pubsub", "cluster"];
const ABOVE: &[&str] = &["service", "rpc", "http"];

/// Finds paths from one engine to another module it must not know.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        let Some(module) = file.path.strip_prefix(NODE) else { continue };
        let top = module.split(['/', '.']).next().unwrap_or_default();
        let Some(engine) = ENGINES.iter().find(|engine| **engine == top) else { continue };
        for (offset, name) in roots_used(file, depth(module)) {
            if name != *engine && (ENGINES.contains(&name) || ABOVE.contains(&name)) {
                let line = 1 + file.code[..offset].matches('\n').count();
                let message = format!(
                    "the engine `{engine}` must not use `crate::{name}`: compose the two in `service`, or move what both need below them"
                );
                findings.push(Finding::new(&file.path, line, message));
            }
        }
    }
    findings
}

/// How many `super::` lead from a file's module to the crate's root.
fn depth(module: &str) -> usize {
    let parts = module.trim_end_matches("/mod.rs").trim_end_matches(".rs");
    parts.split('/').count()
}

/// The modules of the crate's root that the code names, with the place of each.
fn roots_used(file: &File, depth: usize) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for at in word_positions(&file.code, "crate") {
        first_names(&file.code, at + "crate".len(), &mut found);
    }
    let climb = "super::".repeat(depth);
    for (at, _) in file.code.match_indices(&climb) {
        // The last `::` of the climb is read again as the separator of what follows.
        first_names(&file.code, at + climb.len() - "::".len(), &mut found);
    }
    found
}

/// After `crate`, `::name` names one module and `::{a::b, c}` several.
fn first_names<'a>(code: &'a str, at: usize, found: &mut Vec<(usize, &'a str)>) {
    let Some(path) = code[at..].strip_prefix("::") else { return };
    let start = at + "::".len();
    if !path.starts_with('{') {
        found.push((start, leading_name(path)));
        return;
    }
    let (mut depth, mut expects_name) = (0, false);
    for (index, c) in path.char_indices() {
        match c {
            '{' => (depth, expects_name) = (depth + 1, depth == 0),
            '}' => depth -= 1,
            ',' => expects_name = depth == 1,
            c if expects_name && !c.is_whitespace() => {
                found.push((start + index, leading_name(&path[index..])));
                expects_name = false;
            }
            _ => {}
        }
        if depth == 0 {
            return;
        }
    }
}

fn leading_name(path: &str) -> &str {
    let end = path.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(path.len());
    &path[..end]
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::check;

    fn lines(path: &str, code: &str) -> Vec<usize> {
        check(&Tree::planted(&[(path, code)])).iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn an_engine_that_reaches_sideways_or_up_is_found() {
        assert_eq!(lines("debros-node/src/sql/apply.rs", "\nuse crate::kv::Store;\n"), [2]);
        assert_eq!(lines("debros-node/src/cluster.rs", "fn f() { crate::service::g() }\n"), [1]);
        assert_eq!(
            lines(
                "debros-node/src/kv/store.rs",
                "use crate::{\n    raft::Log,\n    rpc::{Server, sql},\n};\n"
            ),
            [3]
        );
        assert_eq!(lines("debros-node/src/pubsub/ring.rs", "use super::super::http::Json;\n"), [1]);
    }

    #[test]
    fn itself_and_what_is_below_are_free() {
        let code = "use crate::{raft::sql, sql::apply};\nuse super::kv_like;\nuse crate::sql::cluster;\nuse other_crate::kv;\n";
        assert_eq!(lines("debros-node/src/sql/apply.rs", code), [0; 0]);
        assert_eq!(lines("debros-node/src/service/batch.rs", "use crate::{kv, sql};\n"), [0; 0]);
    }
}

//! The shape of a module: it opens with its `//!`, stays below the length at which it should be split,
//! imports by name, and its queues are bounded.

use super::Finding;
use super::rust_code::names;
use super::tree::{File, Tree};

/// Above this a file is split by responsibility.
const FILE_LINES_MAX: usize = 600;

/// Finds modules out of shape.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        let mut report = |line, message: &str| findings.push(Finding::new(&file.path, line, message));
        if !opens_with_purpose(&file.text) {
            report(
                1,
                "open the module with `//!`: what it decides, what it deliberately does not know, its invariants",
            );
        }
        let lines = file.text.lines().count();
        if lines > FILE_LINES_MAX {
            report(
                FILE_LINES_MAX,
                &format!("{lines} lines, {FILE_LINES_MAX} is the most: split it by responsibility"),
            );
        }
        for (line, code) in file.code_lines() {
            if names(code, "unbounded_channel") || code.contains("unbounded()") {
                report(line, "a queue without a bound: give it a named limit with its reason");
            }
            if sleeps_in_a_test(file, line, code) {
                report(
                    line,
                    "a sleep in a test: wait for the condition, with a deadline (or say `// poll: what` beside it)",
                );
            }
            for refused in ["todo!", "unimplemented!"] {
                if names(code, refused.trim_end_matches('!')) && code.contains(refused) {
                    report(line, &format!("`{refused}` is unfinished work: finish it or take it out"));
                }
            }
            if code.contains("#[ignore") {
                report(line, "a test that is never run proves nothing: run it, or take it out");
            }
        }
        for line in glob_imports(&file.code) {
            report(line, "a glob import: name what is used");
        }
    }
    findings
}

fn opens_with_purpose(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("#!["));
    lines.next().is_some_and(|line| line.starts_with("//!"))
}

/// In a simulation, time is simulated and a sleep is a step of it. A loop that looks for a condition pauses between two
/// looks, and says so on the line.
fn sleeps_in_a_test(file: &File, line: usize, code: &str) -> bool {
    let explained = |text: &str| ["// poll: ", "// simulated time: "].iter().any(|mark| text.contains(mark));
    file.path.split('/').any(|part| part == "tests")
        && !file.path.contains("/simulation")
        && !file.text.lines().nth(line - 1).is_some_and(explained)
        && (names(code, "sleep") || names(code, "sleep_until"))
        && code.contains('(')
}

/// The lines of `use` statements with a `*`.
fn glob_imports(code: &str) -> Vec<usize> {
    let mut found = Vec::new();
    let (mut line, mut inside_use) = (1, false);
    for statement in code.split_inclusive([';', '\n']) {
        let words = statement.trim_start();
        if !inside_use {
            let after = words
                .strip_prefix("pub")
                .map_or(words, |rest| rest.split_once(' ').map_or(rest, |(_, rest)| rest));
            inside_use = after.starts_with("use ");
        }
        // A unit test is about all of its module.
        if inside_use && statement.contains('*') && words.trim_end() != "use super::*;" {
            found.push(line);
        }
        if statement.ends_with(';') {
            inside_use = false;
        }
        line += usize::from(statement.ends_with('\n'));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::check;

    fn messages(path: &str, text: &str) -> Vec<(usize, String)> {
        check(&Tree::planted(&[(path, text)])).into_iter().map(|found| (found.line, found.message)).collect()
    }

    /// Each text breaks one rule, at the given line, and the message holds the given words.
    #[test]
    fn each_rule_fires_at_its_line() {
        let long = format!("//! x\n{}", "\n".repeat(600));
        let cases = [
            ("a/src/x.rs", "use std::fmt;\n", 1, "open the module"),
            ("a/src/x.rs", long.as_str(), 600, "split it"),
            ("a/src/x.rs", "//! x\nlet (a, b) = mpsc::unbounded_channel();\n", 2, "without a bound"),
            ("a/src/x.rs", "//! x\nuse std::fmt::*;\n", 2, "glob import"),
            ("a/src/x.rs", "//! x\npub(crate) use a::{\n    b,\n    c::*,\n};\n", 4, "glob import"),
            ("a/src/x.rs", concat!("//! x\nfn f() { to", "do!() }\n"), 2, "unfinished"),
            ("a/src/x.rs", concat!("//! x\n#[ign", "ore = \"slow\"]\nfn f() {}\n"), 2, "never run"),
            ("a/tests/x.rs", "//! x\ntokio::time::sleep(SECOND).await;\n", 2, "sleep in a test"),
        ];
        for (path, text, line, words) in cases {
            let found = messages(path, text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert_eq!(found[0].0, line, "{text}");
            assert!(found[0].1.contains(words), "{found:?}");
        }
    }

    #[test]
    fn good_modules_are_left_alone() {
        let good = "#![forbid(unsafe_code)]\n\n//! x\nuse std::fmt;\nlet a = b * c;\nlet x: *const u8 = p; // use x::*;\n";
        assert_eq!(messages("a/src/x.rs", good), []);
        assert_eq!(messages("a/src/x.rs", "//! x\ntokio::time::sleep(pause).await;\n"), []);
        assert_eq!(messages("a/src/x.rs", "//! x\nmod tests {\n    use super::*;\n}\n"), []);
        assert_eq!(messages("a/tests/x.rs", "//! x\nsleep(LOOK).await; // poll: until it is there\n"), []);
        assert_eq!(messages("a/tests/simulation.rs", "//! x\ntokio::time::sleep(pause).await;\n"), []);
    }
}

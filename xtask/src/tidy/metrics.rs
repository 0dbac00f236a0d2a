//! Metrics that are named exist, and metrics that exist are of use. What exists is what `docs/metrics.md` lists: it
//! is written from the registry of a real node, and a test compares the two. Of use is what a dashboard, a rule or
//! an alert asks for, or what another document tells people to look at.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;
use super::tree::{File, Tree};

/// The page with a row for each metric.
const PAGE: &str = "docs/metrics.md";
/// What all our names begin with.
const PREFIX: &str = "debros_";
/// What those begin with that all clients of Prometheus have.
const COMMON_PREFIX: &str = "process_";
/// What a histogram's series end with.
const HISTOGRAM_ENDS: [&str; 3] = ["_bucket", "_sum", "_count"];

/// A metric of the page.
struct Row {
    line: usize,
    is_histogram: bool,
}

/// Finds names of metrics that nothing registers, and metrics that nobody asks for.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let Some(page) = tree.files().iter().find(|file| file.path == PAGE) else { return Vec::new() };
    let rows = rows(page);
    let (mut findings, mut used) = (Vec::new(), BTreeSet::new());
    let mut panels = false;
    for file in tree.files().iter().filter(|file| asks(file) || tells(file)) {
        panels |= asks(file);
        for (line, text) in file.lines() {
            for name in names(text) {
                match metric_of(name, &rows) {
                    Some(known) => drop(used.insert(known)),
                    // In a sentence: anybody's word may begin like that, and crates are called so.
                    None if tells(file) && (name.starts_with(COMMON_PREFIX) || is_crate(name)) => {}
                    None => findings.push(unknown(file, line, name)),
                }
            }
        }
    }
    // Before there are any, there is nothing to compare with.
    if panels {
        for (name, Row { line, .. }) in rows.iter().filter(|(name, _)| !used.contains(*name)) {
            let message = format!(
                "nothing asks for `{name}`: put it on a dashboard or into an alert, tell in docs/ when to look at it, or \
                 do not count it"
            );
            findings.push(Finding::new(PAGE, *line, message));
        }
    }
    findings
}

/// Dashboards, rules, alerts and their tests.
fn asks(file: &File) -> bool {
    let in_folder = |folder, ending| file.path.starts_with(folder) && file.path.ends_with(ending);
    in_folder("dashboards/", ".json") || in_folder("configs/prometheus/", ".yaml")
}

/// Documents that people write. Decisions and changes may speak of what is gone.
fn tells(file: &File) -> bool {
    let excluded = file.path == PAGE || file.path.starts_with("docs/adr/");
    file.path.starts_with("docs/") && file.path.ends_with(".md") && !excluded
}

fn unknown(file: &File, line: usize, name: &str) -> Finding {
    let message = format!(
        "no code registers `{name}`: {PAGE} lists what there is (`cargo xtask metrics page` writes it)"
    );
    Finding::new(&file.path, line, message)
}

/// Rows look like `` | `name` | kind | labels | help | ``.
fn rows(page: &File) -> BTreeMap<&str, Row> {
    let mut rows = BTreeMap::new();
    for (line, text) in page.lines() {
        let mut cells = text.split('|').map(str::trim).skip(1);
        let name = cells.next().and_then(|cell| cell.strip_prefix('`')?.strip_suffix('`'));
        if let (Some(name), Some(kind)) = (name, cells.next()) {
            rows.insert(name, Row { line, is_histogram: kind == "histogram" });
        }
    }
    rows
}

/// The words of a text that look like names of ours. What recording rules make has a colon in it.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    let is_ours = |word: &&str| [PREFIX, COMMON_PREFIX].iter().any(|prefix| word.starts_with(prefix));
    words.filter(is_ours).filter(|word| !word.contains(':') && !word.ends_with('_'))
}

/// Metrics have a part for what they belong to and one for what they tell.
fn is_crate(name: &str) -> bool {
    name.matches('_').count() < 2
}

/// The metric that a series is of.
fn metric_of<'r>(series: &str, rows: &'r BTreeMap<&str, Row>) -> Option<&'r str> {
    let known = |name: &str| rows.get_key_value(name).map(|(name, row)| (*name, row));
    if let Some((name, _)) = known(series) {
        return Some(name);
    }
    let bases = HISTOGRAM_ENDS.iter().filter_map(|end| series.strip_suffix(end));
    bases.filter_map(known).find(|(_, row)| row.is_histogram).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::check;

    const PAGE: &str = "# Metrics\n\n| name | type | labels | what it tells |\n|---|---|---|---|\n\
                        | `debros_a_total` | counter |  | How many |\n\
                        | `debros_b_seconds` | histogram |  | How long |\n";

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<_> = [&[("docs/metrics.md", PAGE)], files].concat();
        check(&Tree::planted(&files)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_that_no_code_registers_are_found_where_they_are_asked_for() {
        let rule =
            "expr: rate(debros_a_total[5m]) + debros_c_total\nquantile: debros_b_seconds_bucket{le=\"1\"}\n";
        let findings = found(&[("configs/prometheus/alerts.yaml", rule)]);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(
            findings[0].starts_with("configs/prometheus/alerts.yaml:1: no code registers `debros_c_total`")
        );
        let panel = "{\"expr\": \"debros_a\"}";
        assert!(found(&[("dashboards/x.json", panel)])[0].contains("`debros_a`"), "a counter ends in _total");
        let runbook = found(&[("docs/runbooks/x.md", "see `debros_a_count`\n")]);
        assert!(runbook[0].contains("`debros_a_count`"), "a counter has no _count: {runbook:?}");
    }

    #[test]
    fn metrics_that_nobody_asks_for_are_found_on_their_page() {
        let panel = ("dashboards/x.json", "{\"expr\": \"rate(debros_b_seconds_sum[1m])\"}");
        let findings = found(&[panel]);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(
            findings[0].starts_with("docs/metrics.md:5: nothing asks for `debros_a_total`"),
            "{findings:?}"
        );
        assert_eq!(found(&[panel, ("docs/operating.md", "Look at debros_a_total.\n")]), [""; 0]);
    }

    #[test]
    fn recorded_series_code_and_a_tree_without_panels_are_free() {
        let rule = "record: debros_x:errors:rate5m\nexpr: debros_a_total / debros_b_seconds_count\n";
        assert_eq!(found(&[("configs/prometheus/rules.yaml", rule)]), [""; 0]);
        assert_eq!(
            found(&[("docs/x.md", "`debros_sdk::Client`, debros-node, debros_node=debug\n")]),
            [""; 0]
        );
        assert_eq!(found(&[("docs/adr/0001.md", "debros_gone_total\n")]), [""; 0]);
    }
}

//! `cargo xtask gen`: files that are made from code and committed, so that people can read them without
//! building. `--check` compares instead of writing; CI runs that. Each file is one function from code to text.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use debros_config::{Effect, KEYS, KeyDoc};

use crate::rules::Tempo;
use crate::slo::Slo;
use crate::{charts, dashboards, rules, steps};

/// A file as it should be.
struct Generated {
    /// From the root of the workspace.
    path: String,
    text: String,
}

/// Every file that is made from code, or from `configs/slo.yaml`.
fn generated() -> Result<Vec<Generated>> {
    let slo = Slo::read(&steps::workspace_root())?;
    let mut all = vec![
        ("docs/configuration.md".to_owned(), configuration_document()),
        (charts::DEFINITION_PATH.to_owned(), charts::definition()),
        (charts::CLUSTER_SCHEMA_PATH.to_owned(), charts::cluster_schema()),
        (charts::OPERATOR_SCHEMA_PATH.to_owned(), charts::operator_schema()),
        (rules::RULES_PATH.to_owned(), rules::rules_file(&slo, Tempo::REAL)?),
        (rules::ALERTS_PATH.to_owned(), rules::alerts_file(&slo, Tempo::REAL)?),
    ];
    all.extend(rules::test_files(&slo)?);
    all.extend(dashboards::files(&slo)?);
    all.extend(charts::copies(&all));
    all.push((charts::DASHBOARD_PATH.to_owned(), dashboards::of_operator(&slo)?));
    Ok(all.into_iter().map(|(path, text)| Generated { path, text }).collect())
}

/// Writes the generated files, or with `check` only compares them.
pub(crate) fn run(check: bool) -> Result<()> {
    let generated = generated()?;
    let stale = stale(&steps::workspace_root(), &generated)?;
    if stale.is_empty() {
        println!("gen: {} generated files are as they should be", generated.len());
        return Ok(());
    }
    if check {
        let names = stale.iter().map(|file| file.path.as_str()).collect::<Vec<_>>().join(", ");
        bail!("not what the code says: {names}. Run `cargo xtask gen` and commit what it writes");
    }
    for file in stale {
        let path = steps::workspace_root().join(&file.path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, &file.text).with_context(|| format!("cannot write {}", file.path))?;
        println!("gen: wrote {}", file.path);
    }
    Ok(())
}

/// The files that are missing or differ from what the code says.
fn stale<'a>(root: &Path, generated: &'a [Generated]) -> Result<Vec<&'a Generated>> {
    let mut stale = Vec::new();
    for file in generated {
        match fs::read_to_string(root.join(&file.path)) {
            Ok(text) if text == file.text => {}
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot read {}", file.path));
            }
            Ok(_) | Err(_) => stale.push(file),
        }
    }
    Ok(stale)
}

const CONFIGURATION_HEAD: &str = "\
# Configuration of a node

<!-- Written by `cargo xtask gen` from debros-config; edit the descriptions there. -->

`debros-node --config FILE` reads one YAML file; every key may be left out. The environment overrides the
file: `DEBROS_<SECTION>__<KEY>`, lists separated by commas, and `LOG_LEVEL` for `logging.level`.
`debros-node config validate --config FILE` checks a file and names keys that have no effect yet;
`debros-node config print` shows every key with the value in force. An unknown key is an error.
";

fn configuration_document() -> String {
    let mut text = CONFIGURATION_HEAD.to_owned();
    let mut section = "";
    for key in KEYS {
        if key.section() != section {
            section = key.section();
            let _ = write!(
                text,
                "\n## {section}\n\n| key | value | default | what it does |\n|---|---|---|---|\n"
            );
        }
        let _ = writeln!(text, "{}", configuration_row(key));
    }
    text
}

fn configuration_row(key: &KeyDoc) -> String {
    let expected = if key.kind.is_list() {
        format!("a list; each item {}", key.kind.expected())
    } else {
        key.kind.expected()
    };
    let default = if key.default.is_empty() {
        "none".to_owned()
    } else {
        key.default.split(',').map(|item| format!("`{item}`")).collect::<Vec<_>>().join(" ")
    };
    let effect = match key.effect {
        Effect::InEffect => String::new(),
        Effect::NotYet(reason) => format!(" **Not in effect yet:** {reason}."),
        Effect::Replaced(by) => format!(" **Replaced:** {by}."),
    };
    format!("| `{}` | {expected} | {default} | {}{effect} |", key.name(), key.description)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use debros_config::KEYS;

    use super::{configuration_document, generated, stale};

    #[test]
    fn every_key_has_its_row() {
        let text = configuration_document();
        let rows = text.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(rows, KEYS.len());
        assert!(text.contains("## discovery"), "{text}");
        assert!(text.lines().all(|line| line.matches('|').count() <= 5), "a value breaks the table:\n{text}");
    }

    #[test]
    fn a_file_is_stale_when_it_is_missing_or_changed() {
        let folder = tempfile::tempdir().unwrap();
        let generated = generated().unwrap();
        let stale = || stale(folder.path(), &generated).unwrap().len();
        assert_eq!(stale(), generated.len());
        for file in &generated {
            let path = folder.path().join(&file.path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &file.text).unwrap();
        }
        assert_eq!(stale(), 0);
        fs::write(folder.path().join(&generated[0].path), "changed").unwrap();
        assert_eq!(stale(), 1);
    }
}

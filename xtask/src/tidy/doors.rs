//! A foreign library has one door: the only place whose code may name it. Tests may name everything.

use super::Finding;
use super::dependencies::dependencies;
use super::rust_code::names;
use super::tree::Tree;

/// A library and the folder or file that is its door.
struct Door {
    library: &'static str,
    place: &'static str,
    instead: &'static str,
}

const DOORS: &[Door] = &[
    Door {
        library: "libp2p",
        place: "crates/debros-net/",
        instead: "use what debros-net offers, or widen it",
    },
    Door {
        library: "rusqlite",
        place: "crates/debros-sqlite/",
        instead: "use what debros-sqlite offers, or widen it",
    },
    Door { library: "heed", place: "debros-node/src/kv/store/", instead: "ask the KV engine's store" },
    Door {
        library: "openraft",
        place: "debros-node/src/raft/",
        instead: "use what `crate::raft` offers, or widen it",
    },
    Door {
        library: "opentelemetry_sdk",
        place: "debros-node/src/trace/",
        instead: "use what `crate::trace` offers, or widen it",
    },
    Door {
        library: "opentelemetry_otlp",
        place: "debros-node/src/trace/",
        instead: "use what `crate::trace` offers, or widen it",
    },
];

/// The module file of a door's folder is part of the door: `raft.rs` beside `raft/`.
fn is_inside(door: &Door, path: &str) -> bool {
    path.starts_with(door.place)
        || door.place.strip_suffix('/').is_some_and(|folder| path == format!("{folder}.rs"))
}

/// Finds libraries named outside their door, in code and in manifests.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for door in DOORS {
        let message = |what: &str| {
            format!("{what} `{}`, whose one door is {}: {}", door.library, door.place, door.instead)
        };
        for file in tree.rust().filter(|file| !file.is_test() && !is_inside(door, &file.path)) {
            for (line, code) in file.code_lines().filter(|(_, code)| names(code, door.library)) {
                // A module of ours may carry the library's name; only a path into the library counts.
                if code.contains(&format!("{}::", door.library)) || code.trim_start().starts_with("use ") {
                    findings.push(Finding::new(&file.path, line, message("this code names")));
                }
            }
        }
        for manifest in tree.crate_manifests() {
            let folder = manifest.path.trim_end_matches("Cargo.toml");
            if door.place.starts_with(folder) {
                continue;
            }
            let here = dependencies(manifest);
            for dependency in here.iter().filter(|found| found.name == door.library && !found.dev) {
                findings.push(Finding::new(
                    &manifest.path,
                    dependency.line,
                    message("this crate depends on"),
                ));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::{DOORS, check};

    #[test]
    fn every_library_outside_its_door_is_found() {
        for door in DOORS {
            let code = format!("//! x\nuse {}::Thing;\n", door.library);
            let found = check(&Tree::planted(&[("debros-cli/src/main.rs", &code)]));
            assert_eq!(found.len(), 1, "{}", door.library);
            assert_eq!(found[0].line, 2);
            assert!(found[0].message.contains(door.place));

            let manifest = format!("[dependencies]\n{}.workspace = true\n", door.library);
            let found = check(&Tree::planted(&[("debros-cli/Cargo.toml", &manifest)]));
            assert_eq!(found.len(), 1, "{}", door.library);

            let home = format!("{}lib.rs", door.place.trim_end_matches("store.rs"));
            let inside = if door.library == "heed" { door.place.to_owned() } else { home };
            assert_eq!(check(&Tree::planted(&[(&inside, &code)])), [], "{inside}");
        }
    }

    #[test]
    fn words_and_tests_and_other_names_are_free() {
        let tree = Tree::planted(&[
            (
                "debros-cli/src/main.rs",
                "//! libp2p::Swarm\nlet x = \"libp2p::x\"; // libp2p::y\nmy_libp2p::z();\n",
            ),
            ("debros-node/tests/garbage.rs", "use libp2p::PeerId;\n"),
            ("debros-node/src/raft.rs", "use openraft::Raft;\n"),
            ("debros-cli/Cargo.toml", "[dev-dependencies]\nlibp2p.workspace = true\n"),
        ]);
        assert_eq!(check(&tree), []);
    }

    #[test]
    fn a_path_in_the_middle_of_code_is_found() {
        let tree = Tree::planted(&[("debros-node/src/sql.rs", "fn f() -> rusqlite::Result<()> {}\n")]);
        assert_eq!(check(&tree).len(), 1);
    }
}

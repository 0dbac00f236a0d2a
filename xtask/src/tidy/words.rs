//! Words that no file of the project holds, wherever they stand: marks of unfinished work, paths of one
//! machine, hosts of package registries. The words are spelled in halves here, so that this file passes.

use super::Finding;
use super::tree::Tree;

struct Refused {
    word: &'static str,
    message: &'static str,
}

const UNFINISHED: &str = "finish it, or file it where work is tracked";
const MACHINE: &str = "a path of one machine: make it relative, or take it from the environment";
const REGISTRY: &str = "a package registry's host: the package's name is enough";

const REFUSED: &[Refused] = &[
    Refused { word: concat!("TO", "DO"), message: UNFINISHED },
    Refused { word: concat!("FIX", "ME"), message: UNFINISHED },
    Refused { word: concat!("/ro", "ot/"), message: MACHINE },
    Refused { word: concat!("/wo", "rk/"), message: MACHINE },
    Refused { word: concat!("/ho", "me/"), message: MACHINE },
    Refused { word: concat!("/tmp/ba", "sh_jobs"), message: MACHINE },
    Refused { word: concat!("crates", ".io"), message: REGISTRY },
    Refused { word: concat!("pypi", ".org"), message: REGISTRY },
    Refused { word: concat!("pythonhosted", ".org"), message: REGISTRY },
    Refused { word: concat!("npmjs", ".org"), message: REGISTRY },
    Refused { word: concat!("proxy.golang", ".org"), message: REGISTRY },
    Refused { word: concat!("deb.debian", ".org"), message: REGISTRY },
];

/// Finds refused words in every text file.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files() {
        for (line, text) in file.lines() {
            for refused in REFUSED.iter().filter(|refused| holds(text, refused.word)) {
                let message = format!("`{}`: {}", refused.word, refused.message);
                findings.push(Finding::new(&file.path, line, message));
            }
        }
    }
    findings
}

/// The word stands by itself: a path at its own root, a mark not inside a longer name.
fn holds(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || (word.starts_with('/') && ".-_/}".contains(c)))
    })
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::{REFUSED, check};

    #[test]
    fn each_word_is_found_in_code_comments_and_documents() {
        for refused in REFUSED {
            let text = format!("first\nsee {}x\n", refused.word);
            for path in ["a/src/x.rs", "README.md", "configs/node.yaml", ".ci/run"] {
                let found = check(&Tree::planted(&[(path, &text)]));
                assert_eq!(found.len(), 1, "{} in {path}", refused.word);
                assert_eq!(found[0].line, 2);
            }
        }
    }

    #[test]
    fn a_word_inside_a_longer_one_is_free() {
        let text = concat!("target/wo", "rk/x\nMASTO", "DON\n./ho", "me/x\n");
        assert_eq!(check(&Tree::planted(&[("a.md", text)])), []);
    }
}

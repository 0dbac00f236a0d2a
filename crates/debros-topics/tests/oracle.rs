//! The trie and the pattern against an oracle that is too simple to be wrong, on random topics and
//! patterns; and the grammar's refusals.
//!
//! `DEBROS_TOPIC_CASES` sets the number of cases; ten million take some seconds.

use std::collections::BTreeSet;

use debros_topics::{InvalidTopic, Pattern, Topic, TopicTrie};
use proptest::prelude::{ProptestConfig, Strategy, prop, prop_assert_eq, proptest};

/// Cases of an ordinary run.
const CASES: u64 = 200_000;

/// By the definition: level for level, with every way to read `>` tried.
fn oracle(pattern: &[&str], topic: &[&str]) -> bool {
    match (pattern, topic) {
        ([], []) => true,
        ([">"], rest) => !rest.is_empty(),
        (["*", pattern @ ..], [_, topic @ ..]) => oracle(pattern, topic),
        ([literal, pattern @ ..], [level, topic @ ..]) => literal == level && oracle(pattern, topic),
        _ => false,
    }
}

fn levels(text: &str) -> Vec<&str> {
    text.split('.').collect()
}

/// A generator that needs nothing: what matters is that the cases differ (xorshift, Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// Few words and few levels, so that matches are frequent.
    fn text(&mut self, words: &[&str], rest: bool) -> String {
        let mut levels: Vec<&str> =
            (0..=self.below(4)).map(|_| words[self.below(words.len() as u64) as usize]).collect();
        if rest && self.below(3) == 0 {
            levels.push(">");
        }
        levels.join(".")
    }
}

#[test]
fn the_trie_finds_what_the_oracle_finds() {
    let cases = std::env::var("DEBROS_TOPIC_CASES").map_or(CASES, |text| text.parse().expect("a number"));
    let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
    let mut trie = TopicTrie::new();
    let mut present: Vec<(u64, Pattern)> = Vec::new();
    let mut done = 0;
    let mut number = 0;
    while done < cases {
        number += 1;
        // Patterns come and go: removal is tried as much as insertion.
        if present.len() < 24 || dice.below(2) == 0 {
            let pattern = Pattern::new(&dice.text(&["a", "b", "*", "a*", "ü b"], true)).unwrap();
            trie.insert(&pattern, number);
            present.push((number, pattern));
        } else {
            let (gone, pattern) = present.swap_remove(dice.below(present.len() as u64) as usize);
            assert_eq!(trie.remove(&pattern, |value| *value == gone), Some(gone));
            assert_eq!(trie.remove(&pattern, |value| *value == gone), None);
        }
        assert_eq!(trie.len(), present.len());
        let topic = Topic::new(&dice.text(&["a", "b", "c", "a*", "ü b"], false)).unwrap();
        let found: BTreeSet<u64> = trie.matches(topic.as_str()).into_iter().copied().collect();
        let topic_levels = levels(topic.as_str());
        for (value, pattern) in &present {
            let wanted = oracle(&levels(pattern.as_str()), &topic_levels);
            assert_eq!(found.contains(value), wanted, "trie: {pattern} and {topic}");
            assert_eq!(pattern.matches(&topic), wanted, "pattern: {pattern} and {topic}");
            done += 1;
        }
    }
    for (value, pattern) in present {
        assert_eq!(trie.remove(&pattern, |found| *found == value), Some(value));
    }
    assert!(trie.is_empty());
    assert!(trie.matches("a").is_empty());
}

/// Arbitrary text with many separators and wildcards.
fn texts() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "*", ">", ".", "é", " ", "/", "\u{0}"]), 0..12)
        .prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn what_the_grammar_admits_matches_as_the_oracle_says(pattern in texts(), topic in texts()) {
        let (Ok(pattern), Ok(topic)) = (Pattern::new(&pattern), Topic::new(&topic)) else { return Ok(()) };
        let wanted = oracle(&levels(pattern.as_str()), &levels(topic.as_str()));
        prop_assert_eq!(pattern.matches(&topic), wanted);
        let mut trie = TopicTrie::new();
        trie.insert(&pattern, ());
        prop_assert_eq!(!trie.matches(topic.as_str()).is_empty(), wanted);
    }

    #[test]
    fn every_topic_is_a_pattern_of_itself(text in texts()) {
        if let Ok(topic) = Topic::new(&text) {
            let pattern = Pattern::new(&text).unwrap();
            prop_assert_eq!(pattern.is_wildcard(), false);
            prop_assert_eq!(pattern.matches(&topic), true);
        }
    }
}

#[test]
fn what_breaks_a_rule_is_refused_by_its_name() {
    let long = "a".repeat(1025);
    let deep = ["a"; 65].join(".");
    assert_eq!(Topic::new(""), Err(InvalidTopic::Empty));
    assert_eq!(Topic::new(&long), Err(InvalidTopic::Bytes { found: 1025 }));
    assert_eq!(Topic::new(&deep), Err(InvalidTopic::Levels { found: 65 }));
    for (text, level) in [(".a", 1), ("a.", 2), ("a..b", 2), (".", 1)] {
        let refused = InvalidTopic::EmptyLevel { topic: text.to_owned(), level };
        assert_eq!(Topic::new(text), Err(refused.clone()));
        assert_eq!(Pattern::new(text), Err(refused));
    }
    for text in ["*", "a.*", ">", "a.>", "*.b"] {
        assert_eq!(Topic::new(text), Err(InvalidTopic::Wildcard { topic: text.to_owned() }));
        assert!(Pattern::new(text).is_ok());
    }
    for text in [">.a", "a.>.b", "*.>.>"] {
        assert_eq!(Pattern::new(text), Err(InvalidTopic::RestNotLast { pattern: text.to_owned() }));
    }
    assert_eq!(Topic::try_from(&[0xff][..]), Err(InvalidTopic::NotText));
}

#[test]
fn other_characters_are_literal() {
    for text in ["chat/room 1", "a*", "*a", "a>b", "prix €", "#", "+", "$SYS"] {
        let topic = Topic::new(text).unwrap();
        let pattern = Pattern::new(text).unwrap();
        assert!(!pattern.is_wildcard());
        assert!(pattern.matches(&topic));
        assert!(!pattern.matches(&Topic::new("chat/room 2").unwrap()));
    }
}

#[test]
fn values_of_one_pattern_are_removed_at_once_and_no_others() {
    let (news, rest) = (Pattern::new("news.*").unwrap(), Pattern::new("news.>").unwrap());
    let mut trie = TopicTrie::new();
    for value in 0..100 {
        trie.insert(&news, value);
        trie.insert(&rest, value);
    }
    assert_eq!(trie.remove_all(&news, |value| value % 3 == 0), 34);
    assert_eq!(trie.remove_all(&Pattern::new("news.x").unwrap(), |_| true), 0);
    assert_eq!((trie.len(), trie.matches("news.x").len(), trie.matches("news.x.y").len()), (166, 166, 100));
    assert_eq!(trie.remove_all(&news, |_| true) + trie.remove_all(&rest, |_| true), 166);
    assert!(trie.is_empty());
}

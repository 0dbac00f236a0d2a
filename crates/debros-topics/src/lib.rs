//! Topics, patterns, and which patterns match a topic. No I/O, no clock, no randomness.
//!
//! A topic is levels split by `.`. In a pattern the level `*` stands for exactly one level and the level
//! `>`, which comes last, for one or more. Every other character is literal, also in a level that holds
//! `*` or `>` beside others. A topic that is published to has no wildcards.
//!
//! Invariants: a [`Topic`] and a [`Pattern`] satisfy the grammar and the limits; [`TopicTrie`] finds exactly
//! the values whose pattern [`Pattern::matches`] the topic.

mod grammar;
mod trie;

pub use grammar::{InvalidTopic, Pattern, Topic, check_pattern, check_topic};
pub use trie::TopicTrie;

/// Splits topics and patterns into levels.
pub const SEPARATOR: char = '.';
/// The level of a pattern that stands for exactly one level.
pub const ANY_LEVEL: &str = "*";
/// The last level of a pattern that stands for one or more levels.
pub const ANY_REST: &str = ">";

//! Patterns by their levels, so that the cost of finding those that match a topic depends on its levels
//! and not on how many patterns there are.
//!
//! Invariants: no node without values or children is kept; values of one pattern come in the order of their
//! insertion.

use std::collections::HashMap;

use crate::grammar::Pattern;
use crate::{ANY_LEVEL, ANY_REST, SEPARATOR};

/// Values by pattern. A pattern may have any number of values.
#[derive(Clone, Debug)]
pub struct TopicTrie<T> {
    root: Node<T>,
    values: usize,
}

#[derive(Clone, Debug)]
struct Node<T> {
    literal: HashMap<Box<str>, Node<T>>,
    /// Behind the level `*`.
    any: Option<Box<Node<T>>>,
    /// Of patterns that end here.
    here: Vec<T>,
    /// Of patterns that end here with `>`.
    rest: Vec<T>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { literal: HashMap::new(), any: None, here: Vec::new(), rest: Vec::new() }
    }
}

impl<T> Node<T> {
    fn is_empty(&self) -> bool {
        self.literal.is_empty() && self.any.is_none() && self.here.is_empty() && self.rest.is_empty()
    }
}

impl<T> Default for TopicTrie<T> {
    fn default() -> Self {
        Self { root: Node::default(), values: 0 }
    }
}

impl<T> TopicTrie<T> {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.values
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values == 0
    }

    /// Adds a value of a pattern.
    pub fn insert(&mut self, pattern: &Pattern, value: T) {
        let mut node = &mut self.root;
        self.values += 1;
        for level in pattern.as_str().split(SEPARATOR) {
            node = match level {
                ANY_REST => return node.rest.push(value),
                ANY_LEVEL => node.any.get_or_insert_default(),
                literal => {
                    if !node.literal.contains_key(literal) {
                        node.literal.insert(literal.into(), Node::default());
                    }
                    node.literal.get_mut(literal).expect("it is there by now")
                }
            };
        }
        node.here.push(value);
    }

    /// Removes the first value of a pattern for which `wanted` holds, and gives it.
    pub fn remove(&mut self, pattern: &Pattern, wanted: impl FnMut(&T) -> bool) -> Option<T> {
        let levels: Vec<&str> = pattern.as_str().split(SEPARATOR).collect();
        let removed = remove(&mut self.root, &levels, |values| take(values, wanted))??;
        self.values -= 1;
        Some(removed)
    }

    /// Removes every value of a pattern for which `wanted` holds, at the cost of looking at each once. Gives how many.
    pub fn remove_all(&mut self, pattern: &Pattern, mut wanted: impl FnMut(&T) -> bool) -> usize {
        let levels: Vec<&str> = pattern.as_str().split(SEPARATOR).collect();
        let removed = remove(&mut self.root, &levels, |values| {
            let before = values.len();
            values.retain(|value| !wanted(value));
            values.shrink_to(values.len() * 2);
            before - values.len()
        });
        let removed = removed.unwrap_or(0);
        self.values -= removed;
        removed
    }

    /// Shows every value whose pattern matches the topic. The order depends on the patterns and the order
    /// of insertion alone. Gives how many levels of patterns were looked at, which is what it cost.
    pub fn for_each_match<'t>(&'t self, topic: &str, mut show: impl FnMut(&'t T)) -> usize {
        matches(&self.root, Some(topic), &mut show)
    }

    /// The values whose pattern matches the topic.
    pub fn matches(&self, topic: &str) -> Vec<&T> {
        let mut found = Vec::new();
        self.for_each_match(topic, |value| found.push(value));
        found
    }
}

/// `rest` is what follows of the topic; `None` when all of it was walked. Gives how many nodes were visited.
fn matches<'t, T>(node: &'t Node<T>, rest: Option<&str>, show: &mut impl FnMut(&'t T)) -> usize {
    let Some(rest) = rest else {
        node.here.iter().for_each(show);
        return 1;
    };
    node.rest.iter().for_each(&mut *show);
    let (level, rest) = match rest.split_once(SEPARATOR) {
        Some((level, rest)) => (level, Some(rest)),
        None => (rest, None),
    };
    let any = node.any.as_ref().map_or(0, |any| matches(any, rest, show));
    let literal = node.literal.get(level).map_or(0, |literal| matches(literal, rest, show));
    1 + any + literal
}

/// Lets values be taken from those of a pattern, if it has any.
fn remove<T, R>(node: &mut Node<T>, levels: &[&str], take: impl FnOnce(&mut Vec<T>) -> R) -> Option<R> {
    let Some((level, rest)) = levels.split_first() else { return Some(take(&mut node.here)) };
    match *level {
        ANY_REST => Some(take(&mut node.rest)),
        ANY_LEVEL => {
            let any = node.any.as_mut()?;
            let removed = remove(any, rest, take);
            if any.is_empty() {
                node.any = None;
            }
            removed
        }
        literal => {
            let child = node.literal.get_mut(literal)?;
            let removed = remove(child, rest, take);
            if child.is_empty() {
                node.literal.remove(literal);
            }
            removed
        }
    }
}

fn take<T>(values: &mut Vec<T>, wanted: impl FnMut(&T) -> bool) -> Option<T> {
    let at = values.iter().position(wanted)?;
    let value = values.remove(at);
    values.shrink_to(values.len() * 2);
    Some(value)
}

//! The grammar: what is a topic, what is a pattern, and whether one matches the other. Parsed once at
//! the edge; the rest of the system trusts the types.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use debros_proto::limits::{TOPIC_BYTES_MAX, TOPIC_LEVELS_MAX};

use crate::{ANY_LEVEL, ANY_REST, SEPARATOR};

/// Why a topic or a pattern was refused. The message names the rule, so it can be shown as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTopic {
    /// Nothing was given.
    #[error("a topic has at least one character")]
    Empty,
    /// Longer than [`TOPIC_BYTES_MAX`].
    #[error("TOPIC_BYTES_MAX is at most {TOPIC_BYTES_MAX}, this topic has {found}")]
    Bytes {
        /// What was given.
        found: usize,
    },
    /// More levels than [`TOPIC_LEVELS_MAX`].
    #[error("TOPIC_LEVELS_MAX is at most {TOPIC_LEVELS_MAX}, this topic has {found}")]
    Levels {
        /// What was given.
        found: usize,
    },
    /// A level without a character.
    #[error(
        "level {level} of {topic:?} is empty: a topic neither begins nor ends with '.', nor has two in a row"
    )]
    EmptyLevel {
        /// The topic.
        topic: String,
        /// Which level, from 1.
        level: usize,
    },
    /// Something follows `>`.
    #[error(
        "in the pattern {pattern:?} something follows '>': it stands for all that follows, so it comes last"
    )]
    RestNotLast {
        /// The pattern.
        pattern: String,
    },
    /// A pattern where a topic is wanted.
    #[error("{topic:?} is a pattern: '*' and '>' as levels are for subscribing; publish to a literal topic")]
    Wildcard {
        /// What was given.
        topic: String,
    },
    /// Bytes that are no text.
    #[error("a topic is UTF-8 text")]
    NotText,
}

fn check_levels(text: &str) -> Result<(), InvalidTopic> {
    if text.is_empty() {
        return Err(InvalidTopic::Empty);
    }
    if text.len() > TOPIC_BYTES_MAX {
        return Err(InvalidTopic::Bytes { found: text.len() });
    }
    if let Some(empty) = text.split(SEPARATOR).position(str::is_empty) {
        return Err(InvalidTopic::EmptyLevel { topic: text.to_owned(), level: empty + 1 });
    }
    let levels = text.split(SEPARATOR).count();
    if levels > TOPIC_LEVELS_MAX {
        return Err(InvalidTopic::Levels { found: levels });
    }
    Ok(())
}

/// Whether this text is a topic that can be published to.
///
/// # Errors
/// [`InvalidTopic`], by the rule that is broken.
pub fn check_topic(text: &str) -> Result<(), InvalidTopic> {
    check_levels(text)?;
    if text.split(SEPARATOR).any(|level| level == ANY_LEVEL || level == ANY_REST) {
        return Err(InvalidTopic::Wildcard { topic: text.to_owned() });
    }
    Ok(())
}

/// Whether this text is a pattern that can be subscribed to; every topic is one.
///
/// # Errors
/// [`InvalidTopic`], by the rule that is broken.
pub fn check_pattern(text: &str) -> Result<(), InvalidTopic> {
    check_levels(text)?;
    let mut levels = text.split(SEPARATOR);
    if levels.any(|level| level == ANY_REST) && levels.next().is_some() {
        return Err(InvalidTopic::RestNotLast { pattern: text.to_owned() });
    }
    Ok(())
}

macro_rules! text {
    ($(#[$doc:meta])* $type:ident, $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Parses it.
            ///
            /// # Errors
            /// [`InvalidTopic`], by the rule that is broken.
            pub fn new(text: &str) -> Result<Self, InvalidTopic> {
                $check(text)?;
                Ok(Self(text.into()))
            }
            /// As text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $type {
            type Err = InvalidTopic;
            fn from_str(text: &str) -> Result<Self, InvalidTopic> {
                Self::new(text)
            }
        }
        impl TryFrom<&[u8]> for $type {
            type Error = InvalidTopic;
            fn try_from(bytes: &[u8]) -> Result<Self, InvalidTopic> {
                Self::new(std::str::from_utf8(bytes).map_err(|_| InvalidTopic::NotText)?)
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text!(
    /// What is published to: levels without wildcards.
    Topic,
    check_topic
);
text!(
    /// What is subscribed to: a topic, or levels with wildcards.
    Pattern,
    check_pattern
);

impl From<Topic> for Pattern {
    fn from(topic: Topic) -> Self {
        Self(topic.0)
    }
}

impl Pattern {
    /// Whether it stands for more than one topic.
    pub fn is_wildcard(&self) -> bool {
        self.0.split(SEPARATOR).any(|level| level == ANY_LEVEL || level == ANY_REST)
    }

    /// Whether it stands for this topic.
    pub fn matches(&self, topic: &Topic) -> bool {
        self.matches_text(topic.as_str())
    }

    /// The same for a topic that was checked before.
    pub fn matches_text(&self, topic: &str) -> bool {
        let mut levels = topic.split(SEPARATOR);
        for wanted in self.0.split(SEPARATOR) {
            match (wanted, levels.next()) {
                (_, None) => return false,
                // It comes last, and the level just taken is the one that it needs.
                (ANY_REST, Some(_)) => return true,
                (ANY_LEVEL, Some(_)) => {}
                (wanted, Some(level)) if wanted == level => {}
                (_, Some(_)) => return false,
            }
        }
        levels.next().is_none()
    }
}

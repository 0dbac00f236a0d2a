//! The names and numbers that identify things in a cluster, parsed once at the edge.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits;

/// Why a name was refused. The message names the rule, so it can be shown as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Empty, or longer than its limit.
    #[error("{what} must be 1 to {max} bytes long, this one has {found}")]
    Length {
        /// What was being named.
        what: &'static str,
        /// The limit in bytes.
        max: usize,
        /// What was given.
        found: usize,
    },
    /// A character outside the grammar.
    #[error(
        "{what} may hold lower-case letters, digits, '-', '_' and '.', and starts with a letter or digit; found {found:?}"
    )]
    Character {
        /// What was being named.
        what: &'static str,
        /// The first offending character.
        found: char,
    },
    /// Reserved for the system.
    #[error("{what} {name:?} is reserved for debros itself; choose another")]
    Reserved {
        /// What was being named.
        what: &'static str,
        /// The reserved name.
        name: String,
    },
    /// Not the number or hex string it should be.
    #[error("{what} {found:?} is not valid: {expected}")]
    Malformed {
        /// What was being parsed.
        what: &'static str,
        /// The text given.
        found: String,
        /// The form it should have.
        expected: &'static str,
    },
}

fn check(what: &'static str, name: &str, max: usize) -> Result<(), InvalidName> {
    if name.is_empty() || name.len() > max {
        return Err(InvalidName::Length { what, max, found: name.len() });
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    if let Some(found) = name.chars().find(|c| !allowed(*c)) {
        return Err(InvalidName::Character { what, found });
    }
    if let Some(found) = name.chars().next().filter(|c| !c.is_ascii_alphanumeric()) {
        return Err(InvalidName::Character { what, found });
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $max:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(std::sync::Arc<str>);

        impl $type {
            /// Parses a name.
            ///
            /// # Errors
            /// [`InvalidName`] when the grammar or the length limit is violated.
            pub fn new(name: &str) -> Result<Self, InvalidName> {
                check($what, name, $max)?;
                Ok(Self(name.into()))
            }
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $type {
            type Err = InvalidName;
            fn from_str(name: &str) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }
        impl TryFrom<String> for $type {
            type Error = InvalidName;
            fn try_from(name: String) -> Result<Self, InvalidName> {
                Self::new(&name)
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.as_str().to_owned()
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// An application's namespace: the unit of isolation, credentials and quotas.
    Namespace,
    "a namespace",
    limits::NAMESPACE_BYTES_MAX
);
name!(
    /// A database within a namespace.
    DatabaseName,
    "a database name",
    limits::DATABASE_NAME_BYTES_MAX
);

impl DatabaseName {
    /// The database that every namespace has without asking.
    pub const DEFAULT: &'static str = "default";

    /// Parses the database of a request, where empty means the namespace's default one.
    ///
    /// # Errors
    /// [`InvalidName`] when the grammar or the length limit is violated.
    pub fn or_default(name: &str) -> Result<Self, InvalidName> {
        Self::new(if name.is_empty() { Self::DEFAULT } else { name })
    }
}

/// The namespace in which nodes probe the engines. Only they use it: it is refused to everybody else.
pub const CANARY_NAMESPACE: &str = "debros-canary";

macro_rules! number {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(pub u64);

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl From<u64> for $type {
            fn from(number: u64) -> Self {
                Self(number)
            }
        }
    };
}

number!(
    /// A Raft node id: minted by the meta group per (PeerId, log-store incarnation), never reused.
    NodeId
);
number!(
    /// A Raft group: the index of the meta log entry that created it; 0 is the meta group itself.
    GroupId
);
number!(
    /// The version of the cluster map.
    Epoch
);

impl GroupId {
    /// The group that holds the cluster map.
    pub const META: Self = Self(0);

    /// What a database of this group adds to log indexes to give numbers that its clients keep: ids of sessions and
    /// leases, versions. A group of the same name comes later, so it has a greater id, and no client takes its
    /// numbers for those of the dropped one. Below 2^63 with the index, as SQLite wants it.
    pub fn numbers_from(self) -> u64 {
        self.0.min(limits::NUMBERED_GROUPS_MAX) * limits::NUMBERS_PER_GROUP
    }
}

/// The identity of a cluster: 128 random bits, minted once when it is initialised.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterId([u8; 16]);

impl ClusterId {
    /// Wraps freshly drawn random bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
    /// The bytes, as the cluster map stores them.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}
impl TryFrom<&[u8]> for ClusterId {
    type Error = InvalidName;
    fn try_from(bytes: &[u8]) -> Result<Self, InvalidName> {
        bytes.try_into().map(Self).map_err(|_| InvalidName::Malformed {
            what: "a cluster id",
            found: format!("{} bytes", bytes.len()),
            expected: "16 bytes",
        })
    }
}
impl FromStr for ClusterId {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let malformed = || InvalidName::Malformed {
            what: "a cluster id",
            found: text.to_owned(),
            expected: "32 hexadecimal digits",
        };
        if text.len() != 32 || !text.is_ascii() {
            return Err(malformed());
        }
        let mut bytes = [0; 16];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| malformed())?;
        }
        Ok(Self(bytes))
    }
}
impl TryFrom<String> for ClusterId {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}
impl From<ClusterId> for String {
    fn from(id: ClusterId) -> String {
        id.to_string()
    }
}
impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::{ClusterId, DatabaseName, InvalidName, Namespace};

    #[test]
    fn a_name_outside_the_grammar_is_refused_by_its_rule() {
        assert!(matches!(Namespace::new(""), Err(InvalidName::Length { .. })));
        assert!(matches!(
            Namespace::new(&"a".repeat(64)),
            Err(InvalidName::Length { max: 63, found: 64, .. })
        ));
        assert!(matches!(Namespace::new("My-App"), Err(InvalidName::Character { found: 'M', .. })));
        assert!(matches!(DatabaseName::new("../etc"), Err(InvalidName::Character { .. })));
        assert!(matches!(DatabaseName::new("-x"), Err(InvalidName::Character { found: '-', .. })));
        assert_eq!(DatabaseName::or_default("").unwrap().as_str(), "default");
    }

    proptest! {
        #[test]
        fn a_cluster_id_survives_its_text_form(bytes in any::<[u8; 16]>()) {
            let id = ClusterId::from_bytes(bytes);
            prop_assert_eq!(id.to_string().parse::<ClusterId>().unwrap(), id);
        }

        #[test]
        fn a_malformed_cluster_id_is_an_error_and_never_a_panic(text in "\\PC{0,40}") {
            let _ = text.parse::<ClusterId>();
        }
    }
}

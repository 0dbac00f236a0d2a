//! What is wrong with a configuration, and what a user should know about one that is valid.
//!
//! A problem carries where it stands (a line or an environment variable) and its key, and its message says what
//! to write instead. All problems of a configuration travel together in one [`ConfigError`].

use std::{fmt, path::PathBuf};

/// Where a value or a key stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A line of the file, the first being 1.
    Line(u64),
    /// An environment variable.
    Variable(String),
    /// Nowhere in particular: a default, or a relation between several keys.
    Unknown,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands.
    pub origin: Origin,
    /// The key it concerns, `section.key`; empty where the text is not YAML.
    pub key: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Line(line) => write!(f, "line {line}: {}", self.message),
            Origin::Variable(name) => write!(f, "environment variable {name}: {}", self.message),
            Origin::Unknown => f.write_str(&self.message),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}; check that the path is right and the file readable", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is no configuration, to judge by its size.
    #[error("the configuration file {} is larger than {} bytes; give the path of a YAML configuration",
        path.display(), crate::CONFIG_BYTES_MAX)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not text.
    #[error("the configuration file {} is not UTF-8 text; give the path of a YAML configuration", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// The values are wrong.
    #[error("{}", listed(file.as_deref(), problems))]
    Invalid {
        /// The file, if the configuration was read from one.
        file: Option<PathBuf>,
        /// Everything that is wrong, in the order it stands in the file; the environment comes after it.
        problems: Vec<Problem>,
    },
}

impl ConfigError {
    /// Everything that is wrong with the values; empty if the file could not be read.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Invalid { problems, .. } => problems,
            Self::Read { .. } | Self::TooLarge { .. } | Self::NotText { .. } => &[],
        }
    }
}

fn listed(file: Option<&std::path::Path>, problems: &[Problem]) -> String {
    let mut text = match file {
        Some(path) => format!("the configuration {} is not valid:", path.display()),
        None => "the configuration is not valid:".to_owned(),
    };
    for problem in problems {
        text.push_str("\n  ");
        text.push_str(&problem.to_string());
    }
    text
}

/// Something a valid configuration does that its writer may not have meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The key it concerns.
    pub key: &'static str,
    /// What happens, and what to write if that is not meant.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// A key that is set although its capability is not there yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotInEffect {
    /// The key.
    pub key: &'static str,
    /// What does not happen.
    pub reason: &'static str,
}

impl fmt::Display for NotInEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not in effect: {}", self.key, self.reason)
    }
}

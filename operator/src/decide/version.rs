//! Versions of debros that run together: the same major, and at most one minor apart.

use std::fmt;
use std::str::FromStr;

/// A version, without what stands behind its third number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Another one speaks another language.
    pub major: u64,
    /// One apart is understood.
    pub minor: u64,
    /// Makes no difference between nodes.
    pub patch: u64,
}

/// A text that is no version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a version is three numbers, as in 1.4.0")]
pub struct InvalidVersion;

impl FromStr for Version {
    type Err = InvalidVersion;

    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        let core = text.split(['-', '+']).next().unwrap_or_default();
        let mut numbers = core.trim_start_matches('v').split('.').map(|number| number.parse().ok());
        let mut next = || numbers.next().flatten().ok_or(InvalidVersion);
        let version = Self { major: next()?, minor: next()?, patch: next()? };
        if numbers.next().is_some() { Err(InvalidVersion) } else { Ok(version) }
    }
}

impl Version {
    /// The version that an image's tag names, if it does.
    pub fn of_image(image: &str) -> Option<Self> {
        let without_digest = image.split('@').next()?;
        let (_, tag) = without_digest.rsplit_once(':')?;
        tag.parse().ok()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, patch } = self;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// Why this version must not run beside those.
pub(super) fn refused(wanted: Option<Version>, running: impl Iterator<Item = Version>) -> Option<String> {
    let wanted = wanted?;
    for version in running {
        if version.major != wanted.major || version.minor.abs_diff(wanted.minor) > 1 {
            let step = match version < wanted {
                true => format!("{}.{}", version.major, version.minor + 1),
                false => format!("{}.{}", version.major, version.minor.saturating_sub(1)),
            };
            return Some(format!(
                "not rolled: nodes run {version}, and {wanted} is more than one minor version away; go to {step} first, \
                 and roll each version in turn"
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Version, refused};

    #[test]
    fn a_tag_names_a_version_or_none() {
        let version = |image| Version::of_image(image).map(|version| version.to_string());
        assert_eq!(version("registry:5000/debros/node:v1.4.2-rc1").as_deref(), Some("1.4.2"));
        assert_eq!(version("debros/node:0.1.0@sha256:00").as_deref(), Some("0.1.0"));
        for image in ["debros/node", "debros/node:latest", "registry:5000/debros/node", "debros/node:1.4"] {
            assert_eq!(version(image), None, "{image}");
        }
    }

    #[test]
    fn one_minor_version_at_a_time() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        let refused = |to: &str, from: &str| refused(Some(version(to)), [version(from)].into_iter());
        assert_eq!(refused("1.5.0", "1.4.9"), None);
        assert_eq!(refused("1.4.0", "1.5.2"), None);
        let reason = refused("1.6.0", "1.4.9").unwrap();
        assert!(reason.contains("go to 1.5 first"), "{reason}");
        assert!(refused("2.0.0", "1.4.9").is_some());
    }
}

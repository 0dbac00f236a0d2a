//! Which key was meant by one that does not exist.
//!
//! Looks in the same section first, then for the same name elsewhere (a key under the wrong section), then for
//! a near one elsewhere. What is too far from everything gets the list of what there is.

use strsim::osa_distance;

use crate::keys::{self, KEYS};

/// A third of the letters may be wrong: enough for two slips in a word, too little to turn one key into another.
const DISTANCE_DIVISOR: usize = 3;

fn closest<'a>(wanted: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = wanted.to_ascii_lowercase();
    known
        .map(|name| (osa_distance(&wanted, name), name))
        .filter(|(distance, name)| *distance <= (wanted.len().max(name.len()) / DISTANCE_DIVISOR).max(1))
        .min()
        .map(|(_, name)| name)
}

/// The path of the key that was probably meant.
pub(crate) fn key(section: &str, name: &str) -> Option<&'static keys::KeyDoc> {
    let within = KEYS.iter().filter(|key| key.section() == section);
    let near = closest(name, within.clone().map(|key| key.name()));
    if let Some(near) = near {
        return within.into_iter().find(|key| key.name() == near);
    }
    let near = closest(name, KEYS.iter().map(|key| key.name()))?;
    KEYS.iter().find(|key| key.name() == near)
}

/// The section that was probably meant.
pub(crate) fn section(name: &str) -> Option<&'static str> {
    closest(name, keys::sections().into_iter())
}

/// The sentence for a key that a section does not have.
pub(crate) fn advice_for_key(section: &str, name: &str) -> String {
    match key(section, name) {
        Some(near) if near.section() == section => format!("did you mean `{}`?", near.name()),
        Some(near) => format!("did you mean `{}`?", near.path),
        None => {
            let names = KEYS.iter().filter(|key| key.section() == section).map(|key| key.name());
            format!("the keys of `{section}` are {}", names.collect::<Vec<_>>().join(", "))
        }
    }
}

/// The sentence for a section that does not exist.
pub(crate) fn advice_for_section(name: &str) -> String {
    if let Some(near) = section(name) {
        return format!("did you mean `{near}`?");
    }
    match key("", name) {
        Some(near) => format!("did you mean `{}`?", near.path),
        None => format!("the sections are {}", keys::sections().join(", ")),
    }
}

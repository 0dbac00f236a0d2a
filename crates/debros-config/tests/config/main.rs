//! The configuration as its users meet it: the files of this repository, the messages they get, the environment.

mod environment;
mod files;
mod keys;
mod messages;
mod relations;
mod round_trip;

use debros_config::{Config, Loaded};

/// The problems of a YAML text, as they are printed.
fn problems(text: &str) -> Vec<String> {
    match Config::from_yaml(text) {
        Ok(loaded) => panic!("expected problems, but it is valid: {loaded:?}"),
        Err(error) => error.problems().iter().map(ToString::to_string).collect(),
    }
}

/// A YAML text that has to be valid.
fn valid(text: &str) -> Loaded {
    Config::from_yaml(text).unwrap_or_else(|error| panic!("{error}"))
}

/// The warnings of a valid YAML text, as they are printed.
fn warnings(text: &str) -> Vec<String> {
    valid(text).warnings.iter().map(ToString::to_string).collect()
}

//! The log: level, form and place as the configuration says.

use std::fs::File;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Mutex;

use debros_config::{Config, LogFormat};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// Not a level or a list of `target=level`.
    #[error(
        "logging.level: {level:?} is not a level: use error, warn, info, debug or trace, or a list like info,debros_node=debug"
    )]
    Level {
        /// What was given.
        level: String,
        /// Why.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// The file cannot be written.
    #[error("logging.output_file: {path} cannot be written")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Starts logging; once per process.
///
/// # Errors
/// [`LoggingError`]; nothing is logged then.
pub fn start(config: &Config) -> Result<(), LoggingError> {
    let logging = &config.logging;
    // openraft warns at every heartbeat to a node that is away; the node itself tells of that once.
    let filter = EnvFilter::try_new(format!("openraft=error,{}", logging.level))
        .map_err(|source| LoggingError::Level { level: logging.level.clone(), source })?;
    let writer = match &logging.output_file {
        None => BoxMakeWriter::new(std::io::stderr),
        Some(path) => {
            let file = File::options().create(true).append(true).open(path);
            let file = file.map_err(|source| LoggingError::File { path: path.clone(), source })?;
            BoxMakeWriter::new(Mutex::new(file))
        }
    };
    // Colours are for people, not for files and collectors.
    let colours = logging.output_file.is_none() && std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match logging.format {
        LogFormat::Text => log.with_ansi(colours).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

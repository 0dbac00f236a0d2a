//! The log: level, form and place as the configuration says, and the node's name in every line.

use std::fmt;
use std::fs::File;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Mutex;

use debros_config::{Config, LogFormat};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

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
    let name = config.node.id.clone();
    match logging.format {
        LogFormat::Text => log.with_ansi(colours).with_timer(NamedTime(name)).init(),
        LogFormat::Json => log.json().map_event_format(|json| NamedJson { name, json }).init(),
    }
    Ok(())
}

/// The time and, where the node has one, its name.
struct NamedTime(Option<String>);

impl FormatTime for NamedTime {
    fn format_time(&self, to: &mut Writer<'_>) -> fmt::Result {
        SystemTime.format_time(to)?;
        self.0.as_ref().map_or(Ok(()), |name| write!(to, " {name}"))
    }
}

/// An object per line, with the node's name where it has one.
struct NamedJson<F> {
    name: Option<String>,
    json: F,
}

impl<S, N, F> FormatEvent<S, N> for NamedJson<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut to: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(name) = &self.name else { return self.json.format_event(context, to, event) };
        let mut line = String::new();
        self.json.format_event(context, Writer::new(&mut line), event)?;
        // A name has no character that JSON would escape.
        match line.strip_prefix('{') {
            Some(rest) => write!(to, "{{\"node\":\"{name}\",{rest}"),
            None => to.write_str(&line),
        }
    }
}

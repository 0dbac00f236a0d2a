//! The log: level, form and place as the configuration says, and the node's name in every line, with trace and span
//! where the line is of a traced request. The level can be changed while the process runs.

use std::fmt;
use std::fs::File;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use debros_config::{Config, Kind, LogFormat};
use debros_proto::TraceContext;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, reload};

use crate::trace;

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
        source: ParseError,
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

/// What is logged, and what was before it was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// In force now.
    pub now: String,
    /// In force before.
    pub before: String,
}

/// Why what is logged could not be shown or changed. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum SetLevelError {
    /// Not a level or a list of `target=level`.
    #[error("{0}")]
    Level(String),
    /// The process has not started a log.
    #[error("this process keeps no log of its own: ask the program that the node runs in")]
    NoLog,
    /// The log has ended.
    #[error("the log cannot be changed any more")]
    Gone(#[source] reload::Error),
}

/// The log of this process, once it was started.
static LOG: OnceLock<Log> = OnceLock::new();

struct Log {
    level: Mutex<String>,
    set: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
}

impl Log {
    fn level(&self) -> MutexGuard<'_, String> {
        self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is logged.
///
/// # Errors
/// [`SetLevelError::NoLog`].
pub fn level() -> Result<Level, SetLevelError> {
    let now = LOG.get().ok_or(SetLevelError::NoLog)?.level().clone();
    Ok(Level { before: now.clone(), now })
}

/// Changes what is logged, until the process ends.
///
/// # Errors
/// [`SetLevelError`]; nothing was changed.
pub fn set_level(text: &str) -> Result<Level, SetLevelError> {
    let log = LOG.get().ok_or(SetLevelError::NoLog)?;
    let now = Kind::log_filter(text).map_err(SetLevelError::Level)?;
    let filter = filter(&now).map_err(|error| SetLevelError::Level(error.to_string()))?;
    let mut level = log.level();
    (log.set)(filter).map_err(SetLevelError::Gone)?;
    let before = std::mem::replace(&mut *level, now.clone());
    drop(level);
    tracing::info!(before, now, "the log's level was changed");
    Ok(Level { now, before })
}

fn filter(level: &str) -> Result<EnvFilter, ParseError> {
    // openraft warns at every heartbeat to a node that is away; the node itself tells of that once.
    EnvFilter::try_new(format!("openraft=error,{level}"))
}

/// Starts logging; once per process.
///
/// # Errors
/// [`LoggingError`]; nothing is logged then.
pub fn start(config: &Config) -> Result<(), LoggingError> {
    let logging = &config.logging;
    let filter = filter(&logging.level)
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
    let log = tracing_subscriber::fmt().with_writer(writer);
    let name = config.node.id.clone();
    let set: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync> = match logging.format {
        LogFormat::Text => {
            let log = log.with_ansi(colours).with_timer(NamedTime(name));
            let log = log.with_env_filter(filter).with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            Box::new(move |filter| handle.reload(filter))
        }
        LogFormat::Json => {
            let log = log.json().map_event_format(|json| NamedJson { name, json });
            let log = log.with_env_filter(filter).with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            Box::new(move |filter| handle.reload(filter))
        }
    };
    // A second log would have ended the process above.
    let _ = LOG.set(Log { level: Mutex::new(logging.level.clone()), set });
    Ok(())
}

/// The time, where the node has one its name, and within a traced request trace and span.
struct NamedTime(Option<String>);

impl FormatTime for NamedTime {
    fn format_time(&self, to: &mut Writer<'_>) -> fmt::Result {
        SystemTime.format_time(to)?;
        if let Some(name) = &self.0 {
            write!(to, " {name}")?;
        }
        match trace::recorded() {
            Some(TraceContext { trace, span, .. }) => {
                write!(to, " trace_id={trace:032x} span_id={span:016x}")
            }
            None => Ok(()),
        }
    }
}

/// An object per line, with the node's name where it has one, and trace and span within a traced request.
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
        let recorded = trace::recorded();
        if self.name.is_none() && recorded.is_none() {
            return self.json.format_event(context, to, event);
        }
        let mut line = String::new();
        self.json.format_event(context, Writer::new(&mut line), event)?;
        let Some(rest) = line.strip_prefix('{') else { return to.write_str(&line) };
        to.write_char('{')?;
        // Neither has a character that JSON would escape.
        if let Some(name) = &self.name {
            write!(to, "\"node\":\"{name}\",")?;
        }
        if let Some(TraceContext { trace, span, .. }) = recorded {
            write!(to, "\"trace_id\":\"{trace:032x}\",\"span_id\":\"{span:016x}\",")?;
        }
        to.write_str(rest)
    }
}

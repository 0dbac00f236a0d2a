//! How a command fails: its exit code, and a message that says what happened, why, and what to do
//! next. The exit codes are documented in `--help`; this is the only place that gives them.

use std::process::ExitCode;

use debros_sdk::{Error, ErrorKind};

use crate::format::Format;
use crate::json;

/// The exit code of a failed command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Failed = 1,
    Usage = 2,
    Unreachable = 3,
    Unhealthy = 4,
    UnknownOutcome = 5,
}

/// A failed command.
#[derive(Debug)]
pub(crate) enum Failure {
    /// An operation of the SDK failed.
    Operation {
        /// What was being done, as in "cannot …".
        action: String,
        exit: Exit,
        error: Error,
    },
    /// No node was named, and none runs on this machine.
    NoLocalNode { message: String, error: Error },
    /// Nothing is stored under that key.
    NoSuchKey { key: String },
    /// What was written on the command line, or at the prompt, makes no sense.
    Usage { message: String, next: String },
    /// All was printed already; only the exit code is left to say it.
    Told(Exit),
    /// This machine got in the way.
    Local { message: String },
}

impl Failure {
    /// An operation on a connected cluster failed.
    pub(crate) fn operation(action: impl Into<String>, error: Error) -> Self {
        let exit = if error.maybe_applied() {
            Exit::UnknownOutcome
        } else if error.kind() == ErrorKind::Unreachable {
            Exit::Unreachable
        } else {
            Exit::Failed
        };
        Self::Operation { action: action.into(), exit, error }
    }

    /// The first connection failed: whatever the reason, no node can be used.
    pub(crate) fn connecting(error: Error) -> Self {
        let exit = if error.kind() == ErrorKind::InvalidArgument { Exit::Usage } else { Exit::Unreachable };
        Self::Operation { action: "connect".to_owned(), exit, error }
    }

    pub(crate) fn no_local_node(message: String, error: Error) -> Self {
        Self::NoLocalNode { message, error }
    }

    pub(crate) fn usage(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), next: next.into() }
    }

    /// Prints the failure and gives the exit code.
    pub(crate) fn report(&self, format: Format) -> ExitCode {
        if let Some(text) = self.text() {
            eprintln!("{text}");
            if format == Format::Json {
                println!("{}", self.json());
            }
        }
        ExitCode::from(self.exit() as u8)
    }

    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Operation { exit, .. } | Self::Told(exit) => *exit,
            Self::NoLocalNode { .. } => Exit::Unreachable,
            Self::Usage { .. } => Exit::Usage,
            Self::NoSuchKey { .. } | Self::Local { .. } => Exit::Failed,
        }
    }

    /// What happened, why, and what to do next.
    pub(crate) fn text(&self) -> Option<String> {
        match self {
            Self::Operation { action, error, exit } => {
                let next = match error.sqlite_code() {
                    Some(_) if error.kind() == ErrorKind::PermissionDenied => REFUSED_STATEMENT,
                    _ => next_step(error.kind(), *exit),
                };
                Some(format!("error: cannot {action}\n  why:  {error}\n  next: {next}"))
            }
            Self::NoLocalNode { message, .. } => {
                let next = next_step(ErrorKind::Unreachable, Exit::Unreachable);
                Some(format!("error: cannot find a node on this machine\n  why:  {message}\n  next: {next}"))
            }
            Self::NoSuchKey { key } => Some(format!("error: there is no key {key:?}\n  next: {LIST_KEYS}")),
            Self::Usage { message, next } => Some(format!("error: {message}\n  next: {next}")),
            Self::Local { message } => Some(format!("error: {message}")),
            Self::Told(_) => None,
        }
    }

    fn json(&self) -> serde_json::Value {
        match self {
            Self::Operation { error, .. } | Self::NoLocalNode { error, .. } => json::error(error),
            Self::NoSuchKey { key } => json::plain_error("not_found", &format!("there is no key {key:?}")),
            Self::Usage { message, .. } => json::plain_error("invalid_argument", message),
            Self::Local { message } => json::plain_error("local", message),
            Self::Told(_) => serde_json::Value::Null,
        }
    }
}

const LIST_KEYS: &str = "list what is there: `debros storage list`";

/// SQLite's own refusal has nothing to do with who asks.
const REFUSED_STATEMENT: &str =
    "no node runs such a statement, whoever sends it; write it without what the message names";

fn next_step(kind: ErrorKind, exit: Exit) -> &'static str {
    if exit == Exit::UnknownOutcome {
        return "read what is there before writing again; a second write would be another one";
    }
    match kind {
        ErrorKind::InvalidArgument => {
            "correct the command; `debros help` and `debros help query` have examples"
        }
        ErrorKind::Sql => "correct the statement; `.schema` in `debros shell` shows the tables",
        ErrorKind::NotFound => "list what exists: `debros database list`, `debros cluster members`",
        ErrorKind::AlreadyExists => "use the existing one, or choose another name",
        ErrorKind::PermissionDenied => "check the namespace (-n) and the credentials of this client",
        ErrorKind::LimitExceeded => "send less at once; the message names the limit",
        ErrorKind::Unreachable => {
            "check that a node runs and name one with -b, like -b /ip4/10.0.0.1/tcp/4001; \
             `debros-node dev` starts a cluster on this machine"
        }
        ErrorKind::Unavailable | ErrorKind::NotReady => {
            "run `debros health` to see which nodes are missing; try again, or wait longer with -t 30s"
        }
        ErrorKind::NoResponders => {
            "see who is subscribed: `debros pubsub topics`; a request goes to a topic of this namespace (-n)"
        }
        ErrorKind::Busy => "try again in a moment",
        ErrorKind::DeadlineExceeded => {
            "try again, or wait longer with -t 30s; `debros health` shows what is slow"
        }
        ErrorKind::WrongCluster => {
            "give the cluster's secret with --cluster-secret-file, or name a node of the right cluster with -b"
        }
        ErrorKind::BudgetExceeded => "let the statement do less: add a LIMIT or an index, or split it",
        ErrorKind::DiskFull => "free disk space on the node that the message names, or add a node",
        _ => "look at the node's log; `debros status` shows the connected node",
    }
}

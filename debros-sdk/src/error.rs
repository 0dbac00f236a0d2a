//! The one error of the SDK. It decides how a wire failure, a transport failure and a misuse of
//! the API appear to an application: a kind to match on, whether trying again can help, and whether
//! the operation may have taken effect. It does not decide whether to retry: that is `call`.
//!
//! Invariant: a write whose outcome nobody knows has `maybe_applied() == true`, whatever its kind.

use std::fmt;

use debros_proto::{ErrorCode, Failure, RetryHint};

/// What kind of thing went wrong. Match on it; new kinds may be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The input is wrong: fix it, a retry unchanged cannot succeed.
    InvalidArgument,
    /// SQLite rejected the statement; see [`Error::sqlite_code`].
    Sql,
    /// The database, table or node does not exist.
    NotFound,
    /// What should be created is there already.
    AlreadyExists,
    /// This client may not do that.
    PermissionDenied,
    /// A named limit was exceeded; the message names it and its value.
    LimitExceeded,
    /// Nobody is subscribed to the topic of a request.
    NoResponders,
    /// No node could be reached.
    Unreachable,
    /// Nodes answer, but the database has no leader or no quorum.
    Unavailable,
    /// A bounded queue is full.
    Busy,
    /// The write may or may not have been applied: read before writing again.
    UnknownOutcome,
    /// The operation did not complete within its deadline, and did not take effect.
    DeadlineExceeded,
    /// The node belongs to another cluster, or refused this client's cluster secret.
    WrongCluster,
    /// The statement used up its budget of time or of virtual-machine steps.
    BudgetExceeded,
    /// A replica is below its disk reserve; reads go on.
    DiskFull,
    /// The cluster is not initialised, or the node has not joined it yet.
    NotReady,
    /// A row or a value does not have the shape of the type it was to become.
    Decode,
    /// A stored value is encrypted with a key that the keyring does not hold.
    UnknownKey,
    /// What is stored is not what was written: tampered with, damaged, or a part of it is missing.
    Corrupt,
    /// The application's own reader or file failed.
    Io,
    /// The client was closed.
    Closed,
    /// A bug or a broken disk on a node; its log has the details.
    Internal,
}

impl ErrorKind {
    /// The kind as one stable lower-case word, as the CLI's JSON output shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::Sql => "sql",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::PermissionDenied => "permission_denied",
            Self::LimitExceeded => "limit_exceeded",
            Self::NoResponders => "no_responders",
            Self::Unreachable => "unreachable",
            Self::Unavailable => "unavailable",
            Self::Busy => "busy",
            Self::UnknownOutcome => "unknown_outcome",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::WrongCluster => "wrong_cluster",
            Self::BudgetExceeded => "budget_exceeded",
            Self::DiskFull => "disk_full",
            Self::NotReady => "not_ready",
            Self::Decode => "decode",
            Self::UnknownKey => "unknown_key",
            Self::Corrupt => "corrupt",
            Self::Io => "io",
            Self::Closed => "closed",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

type Source = Box<dyn std::error::Error + Send + Sync>;

/// A failed operation.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    retryable: bool,
    maybe_applied: bool,
    sqlite_code: Option<i32>,
    statement: Option<usize>,
    source: Option<Source>,
}

impl Error {
    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same call may succeed later. The SDK has retried already, until the operation's
    /// deadline; an application that can wait longer may call again. For a write check
    /// [`Error::maybe_applied`] first: a new call is a new write.
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }

    /// Whether the operation may have taken effect although it failed.
    pub fn maybe_applied(&self) -> bool {
        self.0.maybe_applied
    }

    /// SQLite's extended result code, when SQLite rejected the statement.
    pub fn sqlite_code(&self) -> Option<i32> {
        self.0.sqlite_code
    }

    /// Which statement of a transaction failed, counted from 0.
    pub fn statement(&self) -> Option<usize> {
        self.0.statement
    }

    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let retryable = matches!(
            kind,
            ErrorKind::Unreachable
                | ErrorKind::Unavailable
                | ErrorKind::Busy
                | ErrorKind::UnknownOutcome
                | ErrorKind::DeadlineExceeded
                | ErrorKind::NotReady
        );
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            retryable,
            maybe_applied: kind == ErrorKind::UnknownOutcome,
            sqlite_code: None,
            statement: None,
            source: None,
        }))
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    pub(crate) fn closed() -> Self {
        Self::new(ErrorKind::Closed, "the client was closed; build a new one")
    }

    pub(crate) fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    pub(crate) fn at_statement(mut self, statement: usize) -> Self {
        self.0.statement = Some(statement);
        self
    }

    /// The outcome of a write is not known: says so in kind and message, and keeps the cause.
    pub(crate) fn unknown_outcome(cause: Failure) -> Self {
        let message = format!(
            "the write may or may not have been applied; read before writing again ({})",
            cause.message
        );
        Self::new(ErrorKind::UnknownOutcome, message).with_source(cause)
    }

    /// The error of one statement as a node reported it. It was applied to no data.
    pub(crate) fn from_sql(error: debros_proto::v1::SqlError) -> Self {
        let kind = match error.code() {
            ErrorCode::Unspecified => ErrorKind::Sql,
            code => kind_of(code),
        };
        let mut converted = Self::new(kind, error.message);
        converted.0.sqlite_code = (error.sqlite_code != 0).then_some(error.sqlite_code);
        converted.0.maybe_applied = false;
        converted
    }
}

fn kind_of(code: ErrorCode) -> ErrorKind {
    match code {
        ErrorCode::InvalidArgument => ErrorKind::InvalidArgument,
        ErrorCode::Sql => ErrorKind::Sql,
        ErrorCode::NotFound => ErrorKind::NotFound,
        ErrorCode::AlreadyExists => ErrorKind::AlreadyExists,
        ErrorCode::PermissionDenied => ErrorKind::PermissionDenied,
        ErrorCode::LimitExceeded => ErrorKind::LimitExceeded,
        ErrorCode::NotLeader | ErrorCode::Unavailable | ErrorCode::ShuttingDown | ErrorCode::StaleEpoch => {
            ErrorKind::Unavailable
        }
        ErrorCode::Busy => ErrorKind::Busy,
        ErrorCode::UnknownOutcome | ErrorCode::SessionExpired => ErrorKind::UnknownOutcome,
        ErrorCode::WrongCluster => ErrorKind::WrongCluster,
        ErrorCode::BudgetExceeded => ErrorKind::BudgetExceeded,
        ErrorCode::DiskFull => ErrorKind::DiskFull,
        ErrorCode::NotReady => ErrorKind::NotReady,
        ErrorCode::DeadlineExceeded => ErrorKind::DeadlineExceeded,
        ErrorCode::Internal | ErrorCode::Unspecified => ErrorKind::Internal,
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let mut error = Self::new(kind_of(failure.code), failure.message.clone());
        error.0.maybe_applied = failure.maybe_applied;
        error.0.retryable |= failure.retry != RetryHint::RetryNever;
        error.with_source(failure)
    }
}

impl From<debros_proto::InvalidName> for Error {
    fn from(error: debros_proto::InvalidName) -> Self {
        Self::invalid(error.to_string()).with_source(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(statement) = self.0.statement {
            write!(f, "statement {}: ", statement + 1)?;
        }
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // A failure's message is this error's own message: the chain goes on below it.
        match &self.0.source {
            Some(source) if source.is::<Failure>() => source.source(),
            Some(source) => Some(&**source),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use debros_proto::{ErrorCode, Failure, v1};

    use super::{Error, ErrorKind};

    #[test]
    fn every_code_of_the_wire_has_a_kind_and_keeps_its_retry_hint() {
        let cases = [
            (ErrorCode::InvalidArgument, ErrorKind::InvalidArgument, false, false),
            (ErrorCode::Sql, ErrorKind::Sql, false, false),
            (ErrorCode::NotLeader, ErrorKind::Unavailable, true, false),
            (ErrorCode::Busy, ErrorKind::Busy, true, false),
            (ErrorCode::UnknownOutcome, ErrorKind::UnknownOutcome, true, true),
            (ErrorCode::SessionExpired, ErrorKind::UnknownOutcome, true, true),
            (ErrorCode::DeadlineExceeded, ErrorKind::DeadlineExceeded, true, false),
            (ErrorCode::DiskFull, ErrorKind::DiskFull, false, false),
            (ErrorCode::NotReady, ErrorKind::NotReady, true, false),
            (ErrorCode::Internal, ErrorKind::Internal, false, false),
        ];
        for (code, kind, retryable, maybe_applied) in cases {
            let error = Error::from(Failure::new(code, "words"));
            assert_eq!(error.kind(), kind, "{code:?}");
            assert_eq!(error.is_retryable(), retryable, "{code:?}");
            assert_eq!(error.maybe_applied(), maybe_applied, "{code:?}");
            assert_eq!(error.to_string(), "words");
        }
    }

    #[test]
    fn a_rejected_statement_is_certain_not_to_have_been_applied() {
        let error = Error::from_sql(v1::SqlError {
            message: "UNIQUE constraint failed: t.id".into(),
            sqlite_code: 1555,
            code: ErrorCode::Sql as i32,
        })
        .at_statement(2);
        assert_eq!(
            (error.kind(), error.sqlite_code(), error.statement()),
            (ErrorKind::Sql, Some(1555), Some(2))
        );
        assert!(!error.maybe_applied());
        assert_eq!(error.to_string(), "statement 3: UNIQUE constraint failed: t.id");
    }
}

//! Failures of whole requests as rqlite's clients are told of them. One statement's error is no
//! failure of the request: it is a result, and the status is 200.
//!
//! The body is `{"error": .., "code": .., "maybe_applied": ..}`. The one exception is rqlite's own
//! answer without a leader: status 503 and the words `leader not found`.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use debros_proto::{ErrorCode, Failure, v1};

/// The stable error code, of every refusal.
const CODE_HEADER: HeaderName = HeaderName::from_static("x-debros-error-code");
/// The message, where the body is rqlite's own words.
const MESSAGE_HEADER: HeaderName = HeaderName::from_static("x-debros-error");
/// What rqlite answers when there is no leader.
const LEADER_NOT_FOUND: &str = "leader not found\n";

/// A failure of a whole request.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal(pub Failure);

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

impl Refusal {
    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        match self.0.code {
            ErrorCode::InvalidArgument | ErrorCode::Sql => StatusCode::BAD_REQUEST,
            ErrorCode::PermissionDenied => StatusCode::FORBIDDEN,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::DeadlineExceeded => StatusCode::REQUEST_TIMEOUT,
            ErrorCode::AlreadyExists | ErrorCode::SessionExpired => StatusCode::CONFLICT,
            ErrorCode::LimitExceeded => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::BudgetExceeded => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorCode::NotLeader
            | ErrorCode::Unavailable
            | ErrorCode::Busy
            | ErrorCode::StaleEpoch
            | ErrorCode::ShuttingDown
            | ErrorCode::NotReady => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::UnknownOutcome => StatusCode::GATEWAY_TIMEOUT,
            ErrorCode::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
            ErrorCode::Unspecified | ErrorCode::WrongCluster | ErrorCode::Internal => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    fn lacks_a_leader(&self) -> bool {
        matches!(self.0.code, ErrorCode::NotLeader | ErrorCode::Unavailable) && !self.0.maybe_applied
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Failure { code, message, maybe_applied, retry_after, .. } = &self.0;
        if *code == ErrorCode::Internal {
            tracing::error!(failure = message, "an HTTP request failed on an internal error");
        }
        let mut response = if self.lacks_a_leader() {
            (self.status(), LEADER_NOT_FOUND).into_response()
        } else {
            let body = serde_json::json!({
                "error": message,
                "code": code.as_str_name(),
                "maybe_applied": maybe_applied,
            });
            (self.status(), axum::Json(body)).into_response()
        };
        let headers = response.headers_mut();
        headers.insert(CODE_HEADER, HeaderValue::from_static(code.as_str_name()));
        headers.insert(MESSAGE_HEADER, header_text(message));
        if let Some(after) = retry_after {
            // The header counts whole seconds.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        response
    }
}

/// Longer messages are cut in the header.
const HEADER_CHARACTERS_MAX: usize = 512;

fn header_text(message: &str) -> HeaderValue {
    let printable = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    let text: String = message.chars().take(HEADER_CHARACTERS_MAX).map(printable).collect();
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("see the body"))
}

/// A failure that SQLite is the author of is the result of a statement, as in rqlite; others are
/// refusals.
pub(super) fn as_result(failure: Failure) -> Result<Vec<v1::StatementResult>, Refusal> {
    match failure.code {
        ErrorCode::Sql | ErrorCode::BudgetExceeded => {
            let Failure { code, message, .. } = failure;
            let error = v1::SqlError { message, sqlite_code: 0, code: code as i32 };
            Ok(vec![v1::StatementResult { outcome: Some(v1::statement_result::Outcome::Error(error)) }])
        }
        _ => Err(Refusal(failure)),
    }
}

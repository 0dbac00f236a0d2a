//! The error contract: a stable code, what the caller can do about it, whether the operation may
//! have taken effect, and perhaps who leads. [`Failure`] is what crosses the wire: a gRPC status
//! with an encoded [`v1::ErrorDetail`] in its details.

use std::time::Duration;

use prost::Message;
use tonic::Status;

use crate::v1;
pub use crate::v1::{ErrorCode, LeaderHint, RetryHint};

/// A failed operation as the other side is told of it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The stable code.
    pub code: ErrorCode,
    /// For people: what went wrong and what to do next.
    pub message: String,
    /// What a program should do next.
    pub retry: RetryHint,
    /// The operation may have taken effect although it failed.
    pub maybe_applied: bool,
    /// Who leads, where that is known and matters.
    pub leader: Option<LeaderHint>,
    /// How long to wait before a retry.
    pub retry_after: Option<Duration>,
    /// The receiver's epoch, with [`ErrorCode::StaleEpoch`].
    pub epoch: u64,
}

impl Failure {
    /// A failure with the retry hint that its code implies.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retry: default_retry(code),
            maybe_applied: matches!(code, ErrorCode::UnknownOutcome | ErrorCode::SessionExpired),
            leader: None,
            retry_after: None,
            epoch: 0,
        }
    }

    /// The caller's input is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// A named limit was exceeded.
    pub fn limit(name: &str, limit: impl std::fmt::Display, found: impl std::fmt::Display) -> Self {
        Self::new(ErrorCode::LimitExceeded, format!("{name} is at most {limit}, this has {found}"))
    }

    /// Adds who leads.
    #[must_use]
    pub fn with_leader(mut self, leader: Option<LeaderHint>) -> Self {
        self.leader = leader;
        self
    }

    /// Another node can do at once what this one cannot.
    #[must_use]
    pub fn elsewhere(mut self) -> Self {
        self.retry = RetryHint::RetryElsewhere;
        self
    }

    /// Adds how long to wait.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Says that the operation may have taken effect.
    #[must_use]
    pub fn maybe_applied(mut self) -> Self {
        self.maybe_applied = true;
        self
    }

    /// Says that the operation has had no effect: it was one that changes nothing.
    #[must_use]
    pub fn without_effect(mut self) -> Self {
        self.maybe_applied = false;
        if self.code == ErrorCode::UnknownOutcome {
            self.code = ErrorCode::Unavailable;
        }
        self
    }

    /// The failure of one call among many on a stream.
    pub fn into_call(self) -> v1::CallFailure {
        let (detail, message) = self.into_detail();
        v1::CallFailure { detail: Some(detail), message }
    }

    /// Reads the failure of one call back.
    pub fn from_call(failure: v1::CallFailure) -> Self {
        let v1::CallFailure { detail, message } = failure;
        Self::from_detail(detail.unwrap_or_default(), message)
    }

    fn from_detail(detail: v1::ErrorDetail, message: String) -> Self {
        Self {
            code: detail.code(),
            retry: detail.retry(),
            message,
            maybe_applied: detail.maybe_applied,
            leader: detail.leader,
            retry_after: (detail.retry_after_ms > 0)
                .then(|| Duration::from_millis(u64::from(detail.retry_after_ms))),
            epoch: detail.epoch,
        }
    }

    fn into_detail(self) -> (v1::ErrorDetail, String) {
        let detail = v1::ErrorDetail {
            code: self.code as i32,
            retry: self.retry as i32,
            maybe_applied: self.maybe_applied,
            leader: self.leader,
            retry_after_ms: self
                .retry_after
                .map_or(0, |after| u32::try_from(after.as_millis()).unwrap_or(u32::MAX)),
            epoch: self.epoch,
        };
        (detail, self.message)
    }

    /// Reads the failure back from a status. A status without details came from the transport:
    /// the connection broke or the deadline passed, so the outcome of a write is unknown.
    pub fn from_status(status: &Status) -> Self {
        if let Ok(detail) = v1::ErrorDetail::decode(status.details())
            && detail.code != ErrorCode::Unspecified as i32
        {
            return Self::from_detail(detail, status.message().to_owned());
        }
        let (code, maybe_applied) = match status.code() {
            tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => (ErrorCode::UnknownOutcome, true),
            tonic::Code::OutOfRange | tonic::Code::ResourceExhausted => (ErrorCode::LimitExceeded, false),
            tonic::Code::InvalidArgument | tonic::Code::Unimplemented => (ErrorCode::InvalidArgument, false),
            _ => (ErrorCode::Unavailable, true),
        };
        let mut failure = Self::new(code, status.message());
        failure.maybe_applied = maybe_applied;
        failure
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Status {
        let code = grpc_code(failure.code);
        let (detail, message) = failure.into_detail();
        Status::with_details(code, message, detail.encode_to_vec().into())
    }
}

fn default_retry(code: ErrorCode) -> RetryHint {
    match code {
        ErrorCode::NotLeader | ErrorCode::Unavailable | ErrorCode::ShuttingDown | ErrorCode::NotReady => {
            RetryHint::RetryElsewhere
        }
        ErrorCode::Busy | ErrorCode::StaleEpoch | ErrorCode::UnknownOutcome | ErrorCode::DeadlineExceeded => {
            RetryHint::RetrySame
        }
        ErrorCode::Unspecified
        | ErrorCode::InvalidArgument
        | ErrorCode::Sql
        | ErrorCode::NotFound
        | ErrorCode::AlreadyExists
        | ErrorCode::PermissionDenied
        | ErrorCode::LimitExceeded
        | ErrorCode::SessionExpired
        | ErrorCode::WrongCluster
        | ErrorCode::BudgetExceeded
        | ErrorCode::DiskFull
        | ErrorCode::Internal => RetryHint::RetryNever,
    }
}

fn grpc_code(code: ErrorCode) -> tonic::Code {
    match code {
        ErrorCode::InvalidArgument | ErrorCode::Sql => tonic::Code::InvalidArgument,
        ErrorCode::NotFound => tonic::Code::NotFound,
        ErrorCode::AlreadyExists => tonic::Code::AlreadyExists,
        ErrorCode::PermissionDenied | ErrorCode::WrongCluster => tonic::Code::PermissionDenied,
        ErrorCode::LimitExceeded | ErrorCode::Busy | ErrorCode::BudgetExceeded | ErrorCode::DiskFull => {
            tonic::Code::ResourceExhausted
        }
        ErrorCode::NotLeader | ErrorCode::StaleEpoch | ErrorCode::SessionExpired | ErrorCode::NotReady => {
            tonic::Code::FailedPrecondition
        }
        ErrorCode::Unavailable | ErrorCode::ShuttingDown => tonic::Code::Unavailable,
        ErrorCode::UnknownOutcome | ErrorCode::DeadlineExceeded => tonic::Code::DeadlineExceeded,
        ErrorCode::Internal | ErrorCode::Unspecified => tonic::Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::{Code, Status};

    use super::{ErrorCode, Failure, LeaderHint, RetryHint};

    #[test]
    fn a_failure_survives_the_wire() {
        let hint = LeaderHint { peer_id: "12D3".into(), addresses: vec!["/ip4/127.0.0.1/tcp/1".into()] };
        let failure = Failure::new(ErrorCode::NotLeader, "ask the leader")
            .with_leader(Some(hint))
            .with_retry_after(Duration::from_millis(20));
        let status = Status::from(failure.clone());
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(Failure::from_status(&status), failure);
        assert_eq!(failure.retry, RetryHint::RetryElsewhere);
    }

    #[test]
    fn a_status_of_the_transport_leaves_a_write_unknown() {
        let broken = Failure::from_status(&Status::unavailable("connection closed"));
        assert!(broken.maybe_applied);
        let late = Failure::from_status(&Status::deadline_exceeded("late"));
        assert_eq!(late.code, ErrorCode::UnknownOutcome);
        assert!(late.maybe_applied);
    }

    #[test]
    fn garbage_in_the_details_is_not_trusted() {
        let status = Status::with_details(Code::Internal, "x", vec![0xff; 9].into());
        assert_eq!(Failure::from_status(&status).code, ErrorCode::Unavailable);
    }
}

//! What the node logs, shown and changed while it runs. The log is the process's, so this knows no node.

use debros_proto::{ErrorCode, Failure, HasHeader, limits, v1};

use super::authorise::{Action, Principal, authorise};
use crate::logging::{self, SetLevelError};

/// Shows what is logged, or changes it until the process is started again.
///
/// # Errors
/// `INVALID_ARGUMENT` for what is no level, `NOT_READY` where the process keeps no log of its own. Nothing was changed.
pub fn log_level(
    principal: &Principal,
    request: &v1::LogLevelRequest,
) -> Result<v1::LogLevelResponse, Failure> {
    let changes = !request.level.is_empty();
    let action = if changes { Action::Operate } else { Action::Observe };
    authorise(principal, action, request.header())?;
    let found = request.level.len();
    if found > limits::LOG_LEVEL_BYTES_MAX {
        return Err(Failure::limit("LOG_LEVEL_BYTES_MAX", limits::LOG_LEVEL_BYTES_MAX, found));
    }
    let answer = if changes { logging::set_level(&request.level) } else { logging::level() };
    let logging::Level { now, before } = answer.map_err(|error| match error {
        SetLevelError::Level(_) => Failure::invalid(error.to_string()),
        SetLevelError::NoLog | SetLevelError::Gone(_) => Failure::new(ErrorCode::NotReady, error.to_string()),
    })?;
    Ok(v1::LogLevelResponse { level: now, before })
}

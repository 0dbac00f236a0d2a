//! Checks requests at the edge, so that nothing malformed is ever written to a log.

use debros_proto::{Failure, limits, v1};

/// Refuses statements that break a limit or mix positional and named parameters.
///
/// # Errors
/// `INVALID_ARGUMENT` or `LIMIT_EXCEEDED`, with the number of the statement.
pub fn check_statements(statements: &[v1::Statement]) -> Result<(), Failure> {
    if statements.is_empty() {
        return Err(Failure::invalid("the request has no statement"));
    }
    if statements.len() > limits::STATEMENTS_MAX {
        return Err(Failure::limit("STATEMENTS_MAX", limits::STATEMENTS_MAX, statements.len()));
    }
    let mut bytes = 0;
    for (number, statement) in statements.iter().enumerate() {
        bytes += check_statement(statement).map_err(|mut failure| {
            failure.message = format!("statement {}: {}", number + 1, failure.message);
            failure
        })?;
    }
    if bytes > limits::REQUEST_BYTES_MAX {
        return Err(Failure::limit("REQUEST_BYTES_MAX", limits::REQUEST_BYTES_MAX, bytes));
    }
    Ok(())
}

fn check_statement(statement: &v1::Statement) -> Result<usize, Failure> {
    if statement.sql.len() > limits::STATEMENT_BYTES_MAX {
        return Err(Failure::limit("STATEMENT_BYTES_MAX", limits::STATEMENT_BYTES_MAX, statement.sql.len()));
    }
    if !statement.positional.is_empty() && !statement.named.is_empty() {
        return Err(Failure::invalid("parameters are either positional or named, not both"));
    }
    let count = statement.positional.len() + statement.named.len();
    if count > limits::PARAMETERS_MAX {
        return Err(Failure::limit("PARAMETERS_MAX", limits::PARAMETERS_MAX, count));
    }
    let mut bytes = statement.sql.len();
    bytes += statement.named.iter().map(|named| named.name.len()).sum::<usize>();
    let named = statement.named.iter().filter_map(|named| named.value.as_ref());
    for value in statement.positional.iter().chain(named) {
        let size = value_bytes(value);
        if size > limits::VALUE_BYTES_MAX {
            return Err(Failure::limit("VALUE_BYTES_MAX", limits::VALUE_BYTES_MAX, size));
        }
        bytes += size;
    }
    Ok(bytes)
}

fn value_bytes(value: &v1::Value) -> usize {
    match &value.kind {
        Some(v1::value::Kind::Text(text)) => text.len(),
        Some(v1::value::Kind::Blob(bytes)) => bytes.len(),
        Some(v1::value::Kind::Integer(_) | v1::value::Kind::Real(_)) | None => 8,
    }
}

#[cfg(test)]
mod tests {
    use debros_proto::{ErrorCode, limits, v1};

    use super::check_statements;

    fn statement(sql: &str) -> v1::Statement {
        v1::Statement { sql: sql.into(), ..Default::default() }
    }

    #[test]
    fn a_request_beyond_a_limit_is_told_which_limit() {
        let code = |statements: &[v1::Statement]| check_statements(statements).unwrap_err();
        assert_eq!(code(&[]).code, ErrorCode::InvalidArgument);
        let long = code(&[statement("SELECT 1"), statement(&" ".repeat(limits::STATEMENT_BYTES_MAX + 1))]);
        assert_eq!(long.code, ErrorCode::LimitExceeded);
        assert!(long.message.starts_with("statement 2: STATEMENT_BYTES_MAX"), "{}", long.message);
        let many = vec![statement("SELECT 1"); limits::STATEMENTS_MAX + 1];
        assert_eq!(code(&many).code, ErrorCode::LimitExceeded);
    }

    #[test]
    fn positional_and_named_parameters_do_not_mix() {
        let mut mixed = statement("SELECT ?1, :a");
        mixed.positional.push(v1::Value::default());
        mixed.named.push(v1::NamedValue { name: "a".into(), value: None });
        assert_eq!(check_statements(&[mixed]).unwrap_err().code, ErrorCode::InvalidArgument);
    }
}

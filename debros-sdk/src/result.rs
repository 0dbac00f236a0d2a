//! What statements give back. Converts wire results; an error of one statement becomes an
//! [`Error`] here and nowhere else.

use debros_proto::v1;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind};
use crate::rows;
use crate::value::Value;

/// The rows of a statement, or what it changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueryResult {
    /// Column names, in order.
    pub columns: Vec<String>,
    /// Declared column types, lower case; empty where an expression has none.
    pub types: Vec<String>,
    /// The rows; each has as many values as there are columns.
    pub rows: Vec<Vec<Value>>,
    /// How many rows there are.
    pub count: usize,
    /// Rows changed by a statement that gives none back.
    pub rows_affected: u64,
    /// The rowid of the last insert by a statement that gives no rows back; 0 when it inserted none.
    pub last_insert_id: i64,
}

impl QueryResult {
    /// Every row as `T`: a struct by column names, a tuple by position, or a single value.
    ///
    /// # Errors
    /// [`ErrorKind::Decode`] names the row and column that does not fit.
    pub fn rows_as<T: DeserializeOwned>(&self) -> Result<Vec<T>, Error> {
        self.rows
            .iter()
            .enumerate()
            .map(|(index, row)| rows::decode(&self.columns, row).map_err(|error| error.at_row(index)))
            .collect()
    }

    /// The first row as `T`, `None` when there is no row.
    ///
    /// # Errors
    /// [`ErrorKind::Decode`] names the column that does not fit.
    pub fn first_as<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        self.rows
            .first()
            .map(|row| rows::decode(&self.columns, row).map_err(|error| error.at_row(0)))
            .transpose()
    }

    fn from_rows(rows: v1::Rows) -> Self {
        let v1::Rows { columns, types, rows } = rows;
        let rows: Vec<Vec<Value>> =
            rows.into_iter().map(|row| row.values.into_iter().map(Value::from_wire).collect()).collect();
        Self { columns, types, count: rows.len(), rows, ..Self::default() }
    }

    fn from_counts(counts: v1::Counts) -> Self {
        Self { rows_affected: counts.rows_affected, last_insert_id: counts.last_insert_id, ..Self::default() }
    }
}

/// What a write changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecuteResult {
    /// Rows inserted, updated or deleted.
    pub rows_affected: u64,
    /// The rowid of the last insert; 0 when nothing was inserted.
    pub last_insert_id: i64,
}

/// Every statement's result; the first that failed is the error of all.
pub(crate) fn all(results: Vec<v1::StatementResult>, expected: usize) -> Result<Vec<QueryResult>, Error> {
    // The results end with the error, so its place says which statement failed.
    let several = expected > 1;
    let mut converted = Vec::with_capacity(results.len());
    for (index, result) in results.into_iter().enumerate() {
        match result.outcome {
            Some(v1::statement_result::Outcome::Rows(rows)) => converted.push(QueryResult::from_rows(rows)),
            Some(v1::statement_result::Outcome::Counts(counts)) => {
                converted.push(QueryResult::from_counts(counts));
            }
            Some(v1::statement_result::Outcome::Error(error)) => {
                let error = Error::from_sql(error);
                return Err(if several { error.at_statement(index) } else { error });
            }
            None => converted.push(QueryResult::default()),
        }
    }
    if converted.len() != expected {
        let found = converted.len();
        return Err(Error::new(
            ErrorKind::Internal,
            format!(
                "the node answered {expected} statements with {found} results; is it of another version?"
            ),
        ));
    }
    Ok(converted)
}

/// The result of a request with a single statement.
pub(crate) fn one(results: Vec<v1::StatementResult>) -> Result<QueryResult, Error> {
    Ok(all(results, 1)?.remove(0))
}

#[cfg(test)]
mod tests {
    use debros_proto::{ErrorCode, v1};

    use super::{all, one};
    use crate::error::ErrorKind;
    use crate::value::Value;

    fn outcome(outcome: v1::statement_result::Outcome) -> v1::StatementResult {
        v1::StatementResult { outcome: Some(outcome) }
    }

    #[test]
    fn rows_and_counts_keep_their_meaning() {
        let rows = v1::Rows {
            columns: vec!["n".into()],
            types: vec!["integer".into()],
            rows: vec![v1::Row { values: vec![Value::Integer(5).into_wire()] }],
        };
        let result = one(vec![outcome(v1::statement_result::Outcome::Rows(rows))]).unwrap();
        assert_eq!((result.count, result.rows[0][0].clone()), (1, Value::Integer(5)));
        assert_eq!(result.first_as::<i64>().unwrap(), Some(5));
        let counts = v1::Counts { last_insert_id: 9, rows_affected: 2 };
        let result = one(vec![outcome(v1::statement_result::Outcome::Counts(counts))]).unwrap();
        assert_eq!((result.rows_affected, result.last_insert_id, result.count), (2, 9, 0));
    }

    #[test]
    fn the_first_failed_statement_of_several_is_named() {
        let failed_at = |index: usize| {
            let error = v1::SqlError {
                message: "no such table: t".into(),
                sqlite_code: 1,
                code: ErrorCode::Sql as i32,
            };
            let mut results = vec![v1::StatementResult::default(); index];
            results.push(outcome(v1::statement_result::Outcome::Error(error)));
            results
        };
        for index in [0, 1] {
            let error = all(failed_at(index), 2).unwrap_err();
            assert_eq!((error.kind(), error.statement()), (ErrorKind::Sql, Some(index)));
        }
        assert_eq!(one(failed_at(0)).unwrap_err().statement(), None, "there is no other");
        assert_eq!(all(vec![], 1).unwrap_err().kind(), ErrorKind::Internal);
    }
}

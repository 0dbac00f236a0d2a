//! A statement with its bound parameters, and the ways to write parameters down. Values are only
//! ever bound, never pasted into the SQL text. Limits that need no node are checked here.

use debros_proto::{limits, v1};

use crate::error::Error;
use crate::value::Value;

/// The parameters of one statement: all positional (`?`, `?1`) or all named (`:name`).
#[derive(Clone, Debug, PartialEq)]
pub enum Parameters {
    /// For `?` and `?NNN`, in order.
    Positional(Vec<Value>),
    /// For `:name`, `@name` and `$name`; names are given without that first character.
    Named(Vec<(String, Value)>),
}

impl Default for Parameters {
    fn default() -> Self {
        Self::Positional(Vec::new())
    }
}

/// What can be turned into [`Parameters`]: `()`, tuples, arrays, slices and vectors of values,
/// `[("name", value)]` for named ones, and what [`params!`](crate::params) makes.
pub trait IntoParameters {
    /// The parameters.
    fn into_parameters(self) -> Parameters;
}

impl IntoParameters for Parameters {
    fn into_parameters(self) -> Parameters {
        self
    }
}
impl IntoParameters for () {
    fn into_parameters(self) -> Parameters {
        Parameters::default()
    }
}
impl IntoParameters for Vec<Value> {
    fn into_parameters(self) -> Parameters {
        Parameters::Positional(self)
    }
}
impl IntoParameters for &[Value] {
    fn into_parameters(self) -> Parameters {
        Parameters::Positional(self.to_vec())
    }
}
impl<const N: usize> IntoParameters for [Value; N] {
    fn into_parameters(self) -> Parameters {
        Parameters::Positional(self.into())
    }
}
impl<V: Into<Value>, const N: usize> IntoParameters for [(&str, V); N] {
    fn into_parameters(self) -> Parameters {
        Parameters::Named(self.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect())
    }
}
impl<V: Into<Value>> IntoParameters for Vec<(String, V)> {
    fn into_parameters(self) -> Parameters {
        Parameters::Named(self.into_iter().map(|(name, value)| (name, value.into())).collect())
    }
}

macro_rules! tuple_parameters {
    ($($type:ident),+) => {
        impl<$($type: Into<Value>),+> IntoParameters for ($($type,)+) {
            fn into_parameters(self) -> Parameters {
                #[allow(non_snake_case)]
                let ($($type,)+) = self;
                Parameters::Positional(vec![$($type.into()),+])
            }
        }
    };
}
tuple_parameters!(A);
tuple_parameters!(A, B);
tuple_parameters!(A, B, C);
tuple_parameters!(A, B, C, D);
tuple_parameters!(A, B, C, D, E);
tuple_parameters!(A, B, C, D, E, F);
tuple_parameters!(A, B, C, D, E, F, G);
tuple_parameters!(A, B, C, D, E, F, G, H);

/// Bound parameters of mixed types: `params![1, "two", None::<i64>]`, or named ones:
/// `params! { "id" => 1, "name" => "two" }`.
#[macro_export]
macro_rules! params {
    () => { $crate::Parameters::default() };
    ($($name:expr => $value:expr),+ $(,)?) => {
        $crate::Parameters::Named(vec![$((String::from($name), $crate::Value::from($value))),+])
    };
    ($($value:expr),+ $(,)?) => {
        $crate::Parameters::Positional(vec![$($crate::Value::from($value)),+])
    };
}

/// One SQL statement with its bound parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    pub(crate) sql: String,
    pub(crate) parameters: Parameters,
}

impl Statement {
    /// A statement and what is bound to it.
    pub fn new(sql: impl Into<String>, parameters: impl IntoParameters) -> Self {
        Self { sql: sql.into(), parameters: parameters.into_parameters() }
    }

    /// The SQL text.
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// The bound parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Checks the limits that need no node, so that a mistake costs no round trip.
    pub(crate) fn into_wire(self) -> Result<v1::Statement, Error> {
        let Self { sql, parameters } = self;
        if sql.len() > limits::STATEMENT_BYTES_MAX {
            return Err(too_large("STATEMENT_BYTES_MAX", limits::STATEMENT_BYTES_MAX, sql.len()));
        }
        if sql.trim().is_empty() {
            return Err(Error::invalid("the statement is empty; give one SQL statement"));
        }
        let mut statement = v1::Statement { sql, ..Default::default() };
        match parameters {
            Parameters::Positional(values) => {
                check_count(values.len())?;
                statement.positional = values.into_iter().map(checked).collect::<Result<_, _>>()?;
            }
            Parameters::Named(values) => {
                check_count(values.len())?;
                statement.named = values
                    .into_iter()
                    .map(|(name, value)| {
                        let name = name.trim_start_matches([':', '@', '$']).to_owned();
                        Ok(v1::NamedValue { name, value: Some(checked(value)?) })
                    })
                    .collect::<Result<_, Error>>()?;
            }
        }
        Ok(statement)
    }
}

impl From<&str> for Statement {
    fn from(sql: &str) -> Self {
        Self::new(sql, ())
    }
}
impl From<String> for Statement {
    fn from(sql: String) -> Self {
        Self::new(sql, ())
    }
}
impl<P: IntoParameters> From<(&str, P)> for Statement {
    fn from((sql, parameters): (&str, P)) -> Self {
        Self::new(sql, parameters)
    }
}

pub(crate) fn too_large(name: &str, limit: usize, found: usize) -> Error {
    debros_proto::Failure::limit(name, limit, found).into()
}

fn check_count(count: usize) -> Result<(), Error> {
    if count > limits::PARAMETERS_MAX {
        return Err(too_large("PARAMETERS_MAX", limits::PARAMETERS_MAX, count));
    }
    Ok(())
}

fn checked(value: Value) -> Result<v1::Value, Error> {
    let bytes = match &value {
        Value::Text(text) => text.len(),
        Value::Blob(bytes) => bytes.len(),
        Value::Null | Value::Integer(_) | Value::Real(_) => 0,
    };
    if bytes > limits::VALUE_BYTES_MAX {
        return Err(too_large("VALUE_BYTES_MAX", limits::VALUE_BYTES_MAX, bytes));
    }
    Ok(value.into_wire())
}

#[cfg(test)]
mod tests {
    use debros_proto::limits;

    use super::{IntoParameters, Parameters, Statement};
    use crate::error::ErrorKind;
    use crate::value::Value;

    #[test]
    fn every_way_to_write_parameters_gives_the_same_ones() {
        let expected =
            Parameters::Positional(vec![Value::Integer(1), Value::Text("two".into()), Value::Null]);
        assert_eq!(crate::params![1, "two", None::<i64>], expected);
        assert_eq!((1, "two", None::<i64>).into_parameters(), expected);
        let Parameters::Positional(values) = expected.clone() else { unreachable!() };
        assert_eq!(values.as_slice().into_parameters(), expected);
        let named = Parameters::Named(vec![("id".into(), Value::Integer(1))]);
        assert_eq!(crate::params! { "id" => 1 }, named);
        assert_eq!([("id", 1)].into_parameters(), named);
        assert_eq!(crate::params![], ().into_parameters());
    }

    #[test]
    fn a_named_parameter_may_be_given_with_its_sigil() {
        let statement = Statement::new("SELECT :id", [(":id", 1)]).into_wire().unwrap();
        assert_eq!(statement.named[0].name, "id");
    }

    #[test]
    fn what_breaks_a_limit_is_refused_by_its_name() {
        let long = Statement::from(" ".repeat(limits::STATEMENT_BYTES_MAX + 1)).into_wire().unwrap_err();
        assert_eq!(long.kind(), ErrorKind::LimitExceeded);
        assert!(long.to_string().contains("STATEMENT_BYTES_MAX"), "{long}");
        let many = vec![Value::Null; limits::PARAMETERS_MAX + 1];
        let many = Statement::new("SELECT 1", many).into_wire().unwrap_err();
        assert!(many.to_string().contains("PARAMETERS_MAX"), "{many}");
        assert_eq!(Statement::from("  ").into_wire().unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

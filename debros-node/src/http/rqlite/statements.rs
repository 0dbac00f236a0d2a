//! Reads statements from a request's body: `["SQL", ["SQL", 1, "two"], ["SQL", {"name": 3}]]`.
//!
//! Read straight into the wire's types and within their limits, so that a body never grows into a
//! tree of values many times its size. As in rqlite: an array of numbers is a BLOB, and so is a
//! string of the form `x'0a1b'`; `true` and `false` are 1 and 0; an integer beyond 64 bits is a REAL.

use std::fmt;

use debros_proto::{Failure, limits, v1};
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use v1::value::Kind;

/// Reads the statements of a body.
///
/// # Errors
/// `INVALID_ARGUMENT` in rqlite's words (`invalid JSON body`, `invalid request`, `no statements`),
/// with the place and what is expected there.
pub fn parse_statements(body: &[u8]) -> Result<Vec<v1::Statement>, Failure> {
    let Statements(statements) = serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Failure::invalid(format!("invalid request: {error}")),
        _ => Failure::invalid(format!("invalid JSON body: {error}")),
    })?;
    if statements.is_empty() {
        return Err(Failure::invalid("no statements: the body is an array with at least one"));
    }
    Ok(statements)
}

/// Reads a body of type `text/plain`: one statement without parameters.
///
/// # Errors
/// `INVALID_ARGUMENT` when it is not UTF-8.
pub fn parse_text(body: &[u8]) -> Result<Vec<v1::Statement>, Failure> {
    let sql = std::str::from_utf8(body)
        .map_err(|error| Failure::invalid(format!("the statement is not UTF-8: {error}")))?;
    Ok(vec![statement(sql.to_owned())])
}

/// A statement without parameters.
pub fn statement(sql: String) -> v1::Statement {
    v1::Statement { sql, positional: Vec::new(), named: Vec::new() }
}

/// Whether statements of a unified request are certainly reads, by their first words. Others go
/// through the log, which is right for reads as well.
pub fn certainly_reads(statements: &[v1::Statement]) -> bool {
    statements.iter().all(|statement| {
        let sql = skip_blank(&statement.sql);
        let word = sql.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
        ["SELECT", "VALUES"].iter().any(|reading| word.eq_ignore_ascii_case(reading))
    })
}

/// What follows white space and comments.
fn skip_blank(mut sql: &str) -> &str {
    loop {
        sql = sql.trim_start();
        let rest = if let Some(comment) = sql.strip_prefix("--") {
            comment.split_once('\n').map(|(_, rest)| rest)
        } else if let Some(comment) = sql.strip_prefix("/*") {
            comment.split_once("*/").map(|(_, rest)| rest)
        } else {
            return sql;
        };
        sql = rest.unwrap_or_default();
    }
}

struct Statements(Vec<v1::Statement>);

impl<'de> Deserialize<'de> for Statements {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Statements;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an array of statements")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Statements, A::Error> {
                let mut statements = Vec::new();
                while let Some(OneStatement(statement)) = items.next_element()? {
                    if statements.len() == limits::STATEMENTS_MAX {
                        return Err(over("STATEMENTS_MAX", limits::STATEMENTS_MAX));
                    }
                    statements.push(statement);
                }
                Ok(Statements(statements))
            }
        }
        deserializer.deserialize_seq(Reader)
    }
}

struct OneStatement(v1::Statement);

impl<'de> Deserialize<'de> for OneStatement {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = OneStatement;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a statement: SQL as a string, or an array of SQL and its parameters")
            }
            fn visit_str<E: de::Error>(self, sql: &str) -> Result<OneStatement, E> {
                Ok(OneStatement(statement(sql.to_owned())))
            }
            fn visit_string<E: de::Error>(self, sql: String) -> Result<OneStatement, E> {
                Ok(OneStatement(statement(sql)))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<OneStatement, A::Error> {
                let Some(sql) = items.next_element::<String>()? else {
                    return Err(de::Error::custom("a statement's array is empty: its first item is the SQL"));
                };
                let mut read = statement(sql);
                while let Some(parameter) = items.next_element()? {
                    match parameter {
                        Parameter::Positional(value) => read.positional.push(value),
                        Parameter::Named(values) => read.named.extend(values),
                    }
                    if read.positional.len() + read.named.len() > limits::PARAMETERS_MAX {
                        return Err(over("PARAMETERS_MAX", limits::PARAMETERS_MAX));
                    }
                }
                Ok(OneStatement(read))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

enum Parameter {
    Positional(v1::Value),
    Named(Vec<v1::NamedValue>),
}

impl<'de> Deserialize<'de> for Parameter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ParameterReader { may_be_named: true })
    }
}

struct OneValue(v1::Value);

impl<'de> Deserialize<'de> for OneValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_any(ParameterReader { may_be_named: false })? {
            Parameter::Positional(value) => Ok(Self(value)),
            Parameter::Named(_) => Err(de::Error::custom("a named parameter's value is not an object")),
        }
    }
}

struct ParameterReader {
    may_be_named: bool,
}

fn one<E>(kind: Kind) -> Result<Parameter, E> {
    Ok(Parameter::Positional(v1::Value { kind: Some(kind) }))
}

impl<'de> Visitor<'de> for ParameterReader {
    type Value = Parameter;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a number, a string, true, false, null, an array of bytes")?;
        if self.may_be_named { formatter.write_str(", or an object of named parameters") } else { Ok(()) }
    }
    fn visit_unit<E: de::Error>(self) -> Result<Parameter, E> {
        Ok(Parameter::Positional(v1::Value { kind: None }))
    }
    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Parameter, E> {
        one(Kind::Integer(i64::from(value)))
    }
    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Parameter, E> {
        one(Kind::Integer(value))
    }
    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Parameter, E> {
        one(i64::try_from(value).map_or(Kind::Real(value as f64), Kind::Integer))
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Parameter, E> {
        one(Kind::Real(value))
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Parameter, E> {
        one(match parse_hex(text) {
            Some(bytes) => Kind::Blob(bytes.into()),
            None => Kind::Text(text.to_owned()),
        })
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Parameter, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = items.next_element::<u8>()? {
            bytes.push(byte);
        }
        one(Kind::Blob(bytes.into()))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Parameter, A::Error> {
        if !self.may_be_named {
            entries.next_entry::<IgnoredAny, IgnoredAny>()?;
            return Err(de::Error::custom("a named parameter's value is not an object"));
        }
        let mut named = Vec::new();
        while let Some((name, OneValue(value))) = entries.next_entry::<String, OneValue>()? {
            if named.len() == limits::PARAMETERS_MAX {
                return Err(over("PARAMETERS_MAX", limits::PARAMETERS_MAX));
            }
            named.push(v1::NamedValue { name, value: Some(value) });
        }
        Ok(Parameter::Named(named))
    }
}

fn over<E: de::Error>(name: &str, limit: usize) -> E {
    E::custom(format!("{name} is at most {limit}, this has more"))
}

/// The bytes of `x'0a1b'`, if it is of that form.
fn parse_hex(text: &str) -> Option<Vec<u8>> {
    let text = text.trim();
    let digits = text.strip_prefix(['x', 'X'])?.strip_prefix('\'')?.strip_suffix('\'')?.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    digits.chunks_exact(2).map(|pair| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8)).collect()
}

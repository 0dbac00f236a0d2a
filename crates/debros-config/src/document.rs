//! A YAML text as a tree of texts, each with its line.
//!
//! The door to the YAML library for reading. Scalars stay as they are written: what `10`, `no` or `007` means is
//! decided by the key that holds it, not by YAML. Anchors, aliases and merge keys work; the library bounds depth
//! and expansion.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use crate::error::{Origin, Problem};

/// A value and the line it stands on.
#[derive(Debug)]
pub(crate) struct Located {
    pub(crate) line: u64,
    pub(crate) value: Value,
}

/// A value as written.
#[derive(Debug)]
pub(crate) enum Value {
    /// Nothing, `null` or `~`.
    Empty,
    Text(String),
    List(Vec<Located>),
    Map(Vec<Entry>),
}

/// A key, the line it stands on, and its value.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) line: u64,
    pub(crate) key: String,
    pub(crate) value: Located,
}

impl Value {
    /// What the value is, in the words of an error message.
    pub(crate) fn describe(&self) -> String {
        match self {
            Value::Empty => "nothing".to_owned(),
            Value::Text(text) => crate::kind::quoted(text),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "keys of its own".to_owned(),
        }
    }
}

/// What the library's inference gives, before the text as written is put back.
enum Inferred {
    Empty,
    Text(String),
    /// A number or a boolean: its text is in the source.
    Scalar,
    List(Vec<Spanned<Inferred>>),
    Map(Vec<(Spanned<String>, Spanned<Inferred>)>),
}

/// Reads one document.
pub(crate) fn parse(source: &str) -> Result<Value, Problem> {
    // A byte order mark is not part of the document; some editors write one.
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    let inferred: Option<Spanned<Inferred>> =
        serde_saphyr::from_str(source).map_err(|error| not_yaml(error.without_snippet()))?;
    Ok(inferred.map_or(Value::Empty, |inferred| as_written(source, inferred).value))
}

fn not_yaml(error: &serde_saphyr::Error) -> Problem {
    let line = error.location().map(|location| location.line()).filter(|line| *line > 0);
    // The library advises its caller where the reader is a user; two cases a user meets get words of their own.
    let reason = match error {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key `{key}` is there twice; remove one")
        }
        serde_saphyr::Error::MultipleDocuments { .. } => {
            "a second document begins here; keep one, without `---` between".to_owned()
        }
        other => {
            let options = serde_saphyr::render_options! {
                formatter: &serde_saphyr::UserMessageFormatter,
                snippets: serde_saphyr::SnippetMode::Off,
            };
            let mut text = other.render_with_options(options);
            // The problem carries the line already.
            if let Some(at) = line.and_then(|line| text.rfind(&format!(" at line {line}, column "))) {
                text.truncate(at);
            }
            text
        }
    };
    Problem {
        origin: line.map_or(Origin::Unknown, Origin::Line),
        key: String::new(),
        message: format!("this is not valid YAML: {reason}"),
    }
}

fn as_written(source: &str, inferred: Spanned<Inferred>) -> Located {
    let value = match inferred.value {
        Inferred::Empty => Value::Empty,
        Inferred::Text(text) => Value::Text(text),
        Inferred::Scalar => {
            let span = inferred.defined.span();
            let start = span.byte_offset().unwrap_or(0) as usize;
            let end = start + span.byte_len().unwrap_or(0) as usize;
            Value::Text(source.get(start..end).unwrap_or_default().trim().to_owned())
        }
        Inferred::List(items) => {
            Value::List(items.into_iter().map(|item| as_written(source, item)).collect())
        }
        Inferred::Map(entries) => {
            let entry = |(key, value): (Spanned<String>, _)| Entry {
                line: key.referenced.line(),
                key: key.value,
                value: as_written(source, value),
            };
            Value::Map(entries.into_iter().map(entry).collect())
        }
    };
    Located { line: inferred.referenced.line(), value }
}

impl<'de> Deserialize<'de> for Inferred {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InferredVisitor)
    }
}

struct InferredVisitor;

impl<'de> Visitor<'de> for InferredVisitor {
    type Value = Inferred;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Inferred, E> {
        Ok(Inferred::Empty)
    }

    fn visit_none<E>(self) -> Result<Inferred, E> {
        Ok(Inferred::Empty)
    }

    fn visit_str<E>(self, text: &str) -> Result<Inferred, E> {
        Ok(Inferred::Text(text.to_owned()))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Inferred, E> {
        Ok(Inferred::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Inferred, E> {
        Ok(Inferred::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Inferred, E> {
        Ok(Inferred::Scalar)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Inferred, E> {
        Ok(Inferred::Scalar)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Inferred, E> {
        Ok(Inferred::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Inferred, E> {
        Ok(Inferred::Scalar)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Inferred, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Inferred::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Inferred, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Inferred::Map(map))
    }
}

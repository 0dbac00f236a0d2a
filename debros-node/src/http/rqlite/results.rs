//! Writes results in rqlite's shape:
//! `{"results":[{"last_insert_id":1,"rows_affected":1},{"columns":[..],"types":[..],"values":[[..]]},{"error":".."}]}`.
//!
//! As in rqlite what is zero or empty is left out. Integers are written exactly, reals so that they
//! are read back as the same number, infinities as `9.0e+999` (as SQLite's JSON functions do), BLOBs
//! in base64 or as arrays of numbers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use debros_proto::v1;
use serde::ser::{Error, Serialize, SerializeMap, SerializeSeq, Serializer};
use v1::statement_result::Outcome;
use v1::value::Kind;

use super::declared::Declared;

/// The form in which results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// Rows as objects.
    pub associative: bool,
    /// BLOBs as arrays of numbers.
    pub blob_array: bool,
    /// For people.
    pub pretty: bool,
}

/// What is written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// What each statement did.
    pub results: Vec<v1::StatementResult>,
    /// Seconds that the whole request took, where asked for.
    pub time: Option<f64>,
    /// With `?queue`: a number that grows with every write.
    pub sequence_number: Option<u64>,
    /// The log index, where asked for.
    pub raft_index: Option<u64>,
}

/// Writes an answer as JSON.
///
/// # Errors
/// Never for the answer of a node: only if a value could not be written at all.
pub fn render(answer: &Answer, form: Form) -> Result<Vec<u8>, serde_json::Error> {
    to_json(&AnswerBody { answer, form }, form.pretty)
}

/// Writes JSON; for people with an indent of four, as rqlite does.
pub(super) fn to_json(body: &impl Serialize, pretty: bool) -> Result<Vec<u8>, serde_json::Error> {
    if !pretty {
        return serde_json::to_vec(body);
    }
    let indent = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut bytes = Vec::new();
    body.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, indent))?;
    Ok(bytes)
}

struct AnswerBody<'a> {
    answer: &'a Answer,
    form: Form,
}

impl Serialize for AnswerBody<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Answer { results, time, sequence_number, raft_index } = self.answer;
        let form = self.form;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("results", &Each(results, |result| OneResult { result, form }))?;
        if let Some(time) = time {
            map.serialize_entry("time", time)?;
        }
        if let Some(number) = sequence_number {
            map.serialize_entry("sequence_number", number)?;
        }
        if let Some(index) = raft_index {
            map.serialize_entry("raft_index", index)?;
        }
        map.end()
    }
}

/// An array of what a function makes of each item.
struct Each<'a, T, F>(&'a [T], F);

impl<'a, T, U: Serialize, F: Fn(&'a T) -> U> Serialize for Each<'a, T, F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut items = serializer.serialize_seq(Some(self.0.len()))?;
        for item in self.0 {
            items.serialize_element(&(self.1)(item))?;
        }
        items.end()
    }
}

struct OneResult<'a> {
    result: &'a v1::StatementResult,
    form: Form,
}

impl Serialize for OneResult<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match &self.result.outcome {
            None => {}
            Some(Outcome::Error(error)) => map.serialize_entry("error", &error.message)?,
            Some(Outcome::Counts(v1::Counts { last_insert_id, rows_affected })) => {
                if *last_insert_id != 0 {
                    map.serialize_entry("last_insert_id", last_insert_id)?;
                }
                if *rows_affected != 0 {
                    map.serialize_entry("rows_affected", rows_affected)?;
                }
                if self.form.associative {
                    map.serialize_entry("rows", &())?;
                }
            }
            Some(Outcome::Rows(rows)) => {
                let table = Table { rows, types: types(rows), form: self.form };
                if self.form.associative { table.associative(&mut map)? } else { table.plain(&mut map)? }
            }
        }
        map.end()
    }
}

/// Declared types, and where a column has none, the type of its value in the first row.
fn types(rows: &v1::Rows) -> Vec<&str> {
    let first = rows.rows.first();
    let of_value = |column: usize| match first.and_then(|row| row.values.get(column)?.kind.as_ref()) {
        Some(Kind::Integer(_)) => "integer",
        Some(Kind::Real(_)) => "real",
        Some(Kind::Text(_)) => "text",
        Some(Kind::Blob(_)) => "blob",
        None => "",
    };
    let declared = |column: usize| rows.types.get(column).map_or("", String::as_str);
    (0..rows.columns.len())
        .map(|column| match declared(column) {
            "" => of_value(column),
            declared => declared,
        })
        .collect()
}

struct Table<'a> {
    rows: &'a v1::Rows,
    types: Vec<&'a str>,
    form: Form,
}

impl Table<'_> {
    fn plain<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        if !self.rows.columns.is_empty() {
            map.serialize_entry("columns", &self.rows.columns)?;
            map.serialize_entry("types", &self.types)?;
        }
        if !self.rows.rows.is_empty() {
            let declared = self.declared();
            let form = self.form;
            let row = |row| PlainRow { row, declared: &declared, form };
            map.serialize_entry("values", &Each(&self.rows.rows, row))?;
        }
        Ok(())
    }

    fn associative<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        let columns = self.distinct_columns();
        if !columns.is_empty() {
            map.serialize_entry("types", &TypesObject { columns: &columns, types: &self.types })?;
        }
        let declared = self.declared();
        let form = self.form;
        let row = |row| AssociativeRow { row, columns: &columns, declared: &declared, form };
        map.serialize_entry("rows", &Each(&self.rows.rows, row))
    }

    fn declared(&self) -> Vec<Declared> {
        let types =
            (0..self.types.len()).map(|column| self.rows.types.get(column).map_or("", String::as_str));
        types.map(Declared::of).collect()
    }

    /// Of columns of the same name the last one counts.
    fn distinct_columns(&self) -> Vec<(usize, &str)> {
        let last: std::collections::HashMap<&str, usize> =
            self.rows.columns.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
        let columns = self.rows.columns.iter().enumerate().map(|(at, name)| (at, name.as_str()));
        columns.filter(|(at, name)| last[name] == *at).collect()
    }
}

struct TypesObject<'a> {
    columns: &'a [(usize, &'a str)],
    types: &'a [&'a str],
}

impl Serialize for TypesObject<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.columns.iter().map(|(at, name)| (name, self.types[*at])))
    }
}

struct PlainRow<'a> {
    row: &'a v1::Row,
    declared: &'a [Declared],
    form: Form,
}

impl Serialize for PlainRow<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut values = serializer.serialize_seq(Some(self.row.values.len()))?;
        for (at, value) in self.row.values.iter().enumerate() {
            let declared = self.declared.get(at).copied().unwrap_or_default();
            values.serialize_element(&OneValue { value, declared, form: self.form })?;
        }
        values.end()
    }
}

struct AssociativeRow<'a> {
    row: &'a v1::Row,
    columns: &'a [(usize, &'a str)],
    declared: &'a [Declared],
    form: Form,
}

impl Serialize for AssociativeRow<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.columns.len()))?;
        for (at, name) in self.columns {
            let declared = self.declared.get(*at).copied().unwrap_or_default();
            match self.row.values.get(*at) {
                Some(value) => map.serialize_entry(name, &OneValue { value, declared, form: self.form })?,
                None => map.serialize_entry(name, &())?,
            }
        }
        map.end()
    }
}

struct OneValue<'a> {
    value: &'a v1::Value,
    declared: Declared,
    form: Form,
}

impl Serialize for OneValue<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.value.kind {
            None => serializer.serialize_unit(),
            Some(Kind::Integer(integer)) => match self.declared {
                Declared::Boolean => serializer.serialize_bool(*integer > 0),
                Declared::Time => match super::declared::unix_time(*integer) {
                    Some(time) => serializer.serialize_str(&time),
                    None => serializer.serialize_i64(*integer),
                },
                Declared::Other => serializer.serialize_i64(*integer),
            },
            Some(Kind::Real(real)) => serialize_real(*real, serializer),
            Some(Kind::Text(text)) => match self.declared {
                Declared::Time => match super::declared::text_time(text) {
                    Some(time) => serializer.serialize_str(&time),
                    None => serializer.serialize_str(text),
                },
                Declared::Boolean | Declared::Other => serializer.serialize_str(text),
            },
            Some(Kind::Blob(bytes)) if self.form.blob_array => serializer.collect_seq(bytes.iter()),
            Some(Kind::Blob(bytes)) => serializer.serialize_str(&STANDARD.encode(bytes)),
        }
    }
}

/// JSON has no infinity; this number is beyond every double, so readers make one of it.
const INFINITY: &str = "9.0e+999";
const MINUS_INFINITY: &str = "-9.0e+999";

fn serialize_real<S: Serializer>(real: f64, serializer: S) -> Result<S::Ok, S::Error> {
    if !real.is_infinite() {
        return serializer.serialize_f64(real);
    }
    let text = if real > 0.0 { INFINITY } else { MINUS_INFINITY };
    let raw = serde_json::value::RawValue::from_string(text.to_owned()).map_err(S::Error::custom)?;
    raw.serialize(serializer)
}

//! Rows into types by serde: a struct by column names, a tuple by position, a single value from a
//! single column. Decides nothing about SQL; numbers are converted only where nothing is lost.

use std::fmt;

use serde::de::value::SeqDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer as _, IntoDeserializer, MapAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use crate::error::{Error, ErrorKind};
use crate::value::Value;

/// By this name [`Value`] asks for a value as it is: a row of one column is one, while a type that
/// takes anything gets a row's columns by name.
const VALUE: &str = "debros_sdk::Value";

/// One row as `T`.
pub(crate) fn decode<T: DeserializeOwned>(columns: &[String], row: &[Value]) -> Result<T, DecodeError> {
    T::deserialize(RowDeserializer { columns, row })
}

/// Why a row did not become a `T`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DecodeError(String);

impl de::Error for DecodeError {
    fn custom<M: fmt::Display>(message: M) -> Self {
        Self(message.to_string())
    }
}

impl DecodeError {
    pub(crate) fn at_row(self, row: usize) -> Error {
        Error::new(ErrorKind::Decode, format!("row {row} does not fit the asked type: {}", self.0))
    }
}

#[derive(Clone, Copy)]
struct RowDeserializer<'r> {
    columns: &'r [String],
    row: &'r [Value],
}

impl<'r> RowDeserializer<'r> {
    fn only(self) -> Result<&'r Value, DecodeError> {
        match self.row {
            [value] => Ok(value),
            row => Err(DecodeError(format!(
                "one column was expected and the row has {}; select one column or use a tuple or a struct",
                row.len()
            ))),
        }
    }

    fn map<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_map(Columns { columns: self.columns.iter(), row: self.row.iter(), current: None })
    }

    fn sequence<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_seq(SeqDeserializer::new(self.row.iter().map(ValueDeserializer)))
    }
}

macro_rules! from_only_column {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            ValueDeserializer(self.only()?).$method(visitor)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for RowDeserializer<'_> {
    type Error = DecodeError;

    from_only_column! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32
        deserialize_f64 deserialize_char deserialize_str deserialize_string deserialize_bytes
        deserialize_byte_buf deserialize_option deserialize_identifier
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.map(visitor)
    }
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.map(visitor)
    }
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.map(visitor)
    }
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.sequence(visitor)
    }
    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, DecodeError> {
        if length != self.row.len() {
            let found = self.row.len();
            return Err(DecodeError(format!("{length} columns were expected and the row has {found}")));
        }
        self.sequence(visitor)
    }
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_tuple(length, visitor)
    }
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        if name == VALUE {
            return ValueDeserializer(self.only()?).deserialize_any(visitor);
        }
        visitor.visit_newtype_struct(self)
    }
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        ValueDeserializer(self.only()?).deserialize_enum(name, variants, visitor)
    }
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }
    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }
}

/// The columns of a row as a map. A name that occurs twice is an error of the type's own
/// (`duplicate field`): name the columns in the SELECT.
struct Columns<'r> {
    columns: std::slice::Iter<'r, String>,
    row: std::slice::Iter<'r, Value>,
    current: Option<(&'r str, &'r Value)>,
}

impl<'de> MapAccess<'de> for Columns<'_> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DecodeError> {
        let (Some(column), Some(value)) = (self.columns.next(), self.row.next()) else { return Ok(None) };
        self.current = Some((column, value));
        seed.deserialize(column.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, DecodeError> {
        let (column, value) = self.current.take().ok_or_else(|| DecodeError("value before key".into()))?;
        seed.deserialize(ValueDeserializer(value))
            .map_err(|error| DecodeError(format!("column {column:?}: {error}")))
    }
}

struct ValueDeserializer<'r>(&'r Value);

impl<'de> IntoDeserializer<'de, DecodeError> for ValueDeserializer<'_> {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

impl ValueDeserializer<'_> {
    fn real<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.0 {
            Value::Integer(integer) => visitor.visit_f64(*integer as f64),
            _ => self.deserialize_any(visitor),
        }
    }
}

impl<'de> de::Deserializer<'de> for ValueDeserializer<'_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Integer(integer) => visitor.visit_i64(*integer),
            Value::Real(real) => visitor.visit_f64(*real),
            Value::Text(text) => visitor.visit_str(text),
            Value::Blob(bytes) => visitor.visit_bytes(bytes),
        }
    }
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.0 {
            Value::Integer(0) => visitor.visit_bool(false),
            Value::Integer(1) => visitor.visit_bool(true),
            _ => self.deserialize_any(visitor),
        }
    }
    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.real(visitor)
    }
    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.real(visitor)
    }
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        if name == VALUE { self.deserialize_any(visitor) } else { visitor.visit_newtype_struct(self) }
    }
    /// A blob as a sequence of bytes, so that `Vec<u8>` works without an attribute.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.0 {
            Value::Blob(bytes) => visitor.visit_seq(SeqDeserializer::new(bytes.iter().copied())),
            _ => self.deserialize_any(visitor),
        }
    }
    fn deserialize_tuple<V: Visitor<'de>>(self, _length: usize, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_seq(visitor)
    }
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.0 {
            Value::Text(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            other => Err(DecodeError(format!(
                "TEXT with a variant's name was expected, found {}",
                other.type_name()
            ))),
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 char str string bytes byte_buf unit unit_struct
        tuple_struct map struct identifier ignored_any
    }
}

/// A value as itself, so that `Vec<Value>` and `HashMap<String, Value>` are row types too.
impl<'de> de::Deserialize<'de> for Value {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ValueVisitor;
        impl<'de> Visitor<'de> for ValueVisitor {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a SQLite value")
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_i64<E>(self, integer: i64) -> Result<Value, E> {
                Ok(Value::Integer(integer))
            }
            fn visit_f64<E>(self, real: f64) -> Result<Value, E> {
                Ok(Value::Real(real))
            }
            fn visit_str<E>(self, text: &str) -> Result<Value, E> {
                Ok(Value::from(text))
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Value, E> {
                Ok(Value::from(bytes))
            }
            fn visit_newtype_struct<D: de::Deserializer<'de>>(self, inner: D) -> Result<Value, D::Error> {
                inner.deserialize_any(self)
            }
        }
        deserializer.deserialize_newtype_struct(VALUE, ValueVisitor)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde::Deserialize;

    use super::decode;
    use crate::value::Value;

    fn columns(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum State {
        Open,
        Closed,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Ticket {
        id: u32,
        title: String,
        price: f64,
        urgent: bool,
        state: State,
        picture: Vec<u8>,
        owner: Option<String>,
    }

    #[test]
    fn a_struct_takes_its_fields_from_columns_by_name() {
        let names = columns(&["owner", "id", "title", "price", "urgent", "state", "picture", "unused"]);
        let row = [
            Value::Null,
            Value::Integer(7),
            "a".into(),
            Value::Integer(3),
            Value::Integer(1),
            "closed".into(),
            Value::from(&[1u8, 2]),
            Value::Real(0.5),
        ];
        let ticket: Ticket = decode(&names, &row).unwrap();
        let expected = Ticket {
            id: 7,
            title: "a".into(),
            price: 3.0,
            urgent: true,
            state: State::Closed,
            picture: vec![1, 2],
            owner: None,
        };
        assert_eq!(ticket, expected);
        assert_ne!(ticket.state, State::Open);
    }

    #[test]
    fn a_tuple_goes_by_position_and_a_scalar_by_its_only_column() {
        let row = [Value::Integer(1), "x".into()];
        assert_eq!(decode::<(i64, String)>(&columns(&["a", "b"]), &row).unwrap(), (1, "x".to_owned()));
        assert_eq!(decode::<i64>(&columns(&["a"]), &row[..1]).unwrap(), 1);
        assert_eq!(decode::<Value>(&columns(&["a"]), &row[1..]).unwrap(), row[1]);
        assert_eq!(decode::<Option<i64>>(&columns(&["a"]), &[Value::Null]).unwrap(), None);
        assert_eq!(decode::<Vec<Value>>(&columns(&["a", "b"]), &row).unwrap(), row.to_vec());
        let map: HashMap<String, Value> = decode(&columns(&["a", "b"]), &row).unwrap();
        assert_eq!(map["b"], Value::from("x"));
    }

    #[test]
    fn what_does_not_fit_is_an_error_that_names_the_column() {
        let error = decode::<Ticket>(&columns(&["id"]), &["x".into()]).unwrap_err().to_string();
        assert!(error.contains("column \"id\""), "{error}");
        assert!(decode::<i64>(&columns(&["a", "b"]), &[Value::Null, Value::Null]).is_err());
        assert!(decode::<(i64,)>(&columns(&["a", "b"]), &[Value::Null, Value::Null]).is_err());
        assert!(decode::<u8>(&columns(&["a"]), &[Value::Integer(256)]).is_err());
    }
}

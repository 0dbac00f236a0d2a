//! One SQLite value and its conversions. Lossless only: there is no conversion from `u64`, because
//! half of its values do not fit SQLite's INTEGER.

use bytes::Bytes;
use debros_proto::v1;

/// A value of one of SQLite's five storage classes.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    /// SQL NULL.
    #[default]
    Null,
    /// A 64-bit signed integer.
    Integer(i64),
    /// A 64-bit float.
    Real(f64),
    /// UTF-8 text.
    Text(String),
    /// Bytes.
    Blob(Bytes),
}

impl Value {
    /// The integer, if it is one.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Integer(integer) => Some(*integer),
            _ => None,
        }
    }

    /// The number, if it is one.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Integer(integer) => Some(*integer as f64),
            Self::Real(real) => Some(*real),
            _ => None,
        }
    }

    /// The text, if it is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The bytes, if it is a blob.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Blob(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Whether it is NULL.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// SQLite's word for the storage class.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "NULL",
            Self::Integer(_) => "INTEGER",
            Self::Real(_) => "REAL",
            Self::Text(_) => "TEXT",
            Self::Blob(_) => "BLOB",
        }
    }

    pub(crate) fn into_wire(self) -> v1::Value {
        use v1::value::Kind;
        let kind = match self {
            Self::Null => None,
            Self::Integer(integer) => Some(Kind::Integer(integer)),
            Self::Real(real) => Some(Kind::Real(real)),
            Self::Text(text) => Some(Kind::Text(text)),
            Self::Blob(bytes) => Some(Kind::Blob(bytes)),
        };
        v1::Value { kind }
    }

    pub(crate) fn from_wire(value: v1::Value) -> Self {
        use v1::value::Kind;
        match value.kind {
            None => Self::Null,
            Some(Kind::Integer(integer)) => Self::Integer(integer),
            Some(Kind::Real(real)) => Self::Real(real),
            Some(Kind::Text(text)) => Self::Text(text),
            Some(Kind::Blob(bytes)) => Self::Blob(bytes),
        }
    }
}

macro_rules! from_integer {
    ($($integer:ty),*) => {$(
        impl From<$integer> for Value {
            fn from(integer: $integer) -> Self {
                Self::Integer(i64::from(integer))
            }
        }
    )*};
}
from_integer!(i8, i16, i32, i64, u8, u16, u32, bool);

impl From<f64> for Value {
    fn from(real: f64) -> Self {
        Self::Real(real)
    }
}
impl From<f32> for Value {
    fn from(real: f32) -> Self {
        Self::Real(f64::from(real))
    }
}
impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}
impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}
impl From<&String> for Value {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}
impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Blob(bytes.into())
    }
}
impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        Self::Blob(Bytes::copy_from_slice(bytes))
    }
}
impl<const N: usize> From<&[u8; N]> for Value {
    fn from(bytes: &[u8; N]) -> Self {
        Self::Blob(Bytes::copy_from_slice(bytes))
    }
}
impl<const N: usize> From<[u8; N]> for Value {
    fn from(bytes: [u8; N]) -> Self {
        Self::Blob(Bytes::copy_from_slice(&bytes))
    }
}
impl From<Bytes> for Value {
    fn from(bytes: Bytes) -> Self {
        Self::Blob(bytes)
    }
}
impl From<()> for Value {
    fn from((): ()) -> Self {
        Self::Null
    }
}
impl From<&Value> for Value {
    fn from(value: &Value) -> Self {
        value.clone()
    }
}
impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};

    use super::Value;

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            proptest::strategy::Just(Value::Null),
            any::<i64>().prop_map(Value::Integer),
            (-1e300..1e300).prop_map(Value::Real),
            ".*".prop_map(Value::Text),
            any::<Vec<u8>>().prop_map(Value::from),
        ]
    }

    proptest! {
        #[test]
        fn a_value_survives_the_wire(value in value()) {
            prop_assert_eq!(Value::from_wire(value.clone().into_wire()), value);
        }
    }

    #[test]
    fn an_absent_option_is_null() {
        assert_eq!(Value::from(None::<i64>), Value::Null);
        assert_eq!(Value::from(Some("a")), Value::Text("a".into()));
    }
}

//! Parameters of a statement as they are typed on a command line. The grammar is documented in
//! `debros help query`.
//!
//! Invariant: what is in quotes is text, whatever it looks like; a mistake within quotes is an error
//! and never silently text.

use debros_sdk::{Parameters, Value};

/// Why a parameter was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadParameter(pub(crate) String);

/// Reads all parameters of a statement: all positional or all named.
pub(crate) fn parse_all(texts: &[String]) -> Result<Parameters, BadParameter> {
    let mut positional = Vec::new();
    let mut named = Vec::new();
    for text in texts {
        match split_name(text) {
            Some((name, value)) => named.push((name.to_owned(), parse(value)?)),
            None => positional.push(parse(text)?),
        }
    }
    match (positional.is_empty(), named.is_empty()) {
        (_, true) => Ok(Parameters::Positional(positional)),
        (true, false) => Ok(Parameters::Named(named)),
        (false, false) => {
            Err(BadParameter("some parameters have names and some have not; name all or none".into()))
        }
    }
}

/// `:name=value` into its parts.
fn split_name(text: &str) -> Option<(&str, &str)> {
    let (name, value) = text.strip_prefix([':', '@', '$'])?.split_once('=')?;
    let identifier = |c: char| c.is_alphanumeric() || c == '_';
    let starts_well = name.chars().next().is_some_and(|c| !c.is_numeric());
    (starts_well && name.chars().all(identifier)).then_some((name, value))
}

/// Reads one value.
pub(crate) fn parse(text: &str) -> Result<Value, BadParameter> {
    let is = |word: &str| text.eq_ignore_ascii_case(word);
    if is("null") {
        return Ok(Value::Null);
    }
    if is("true") || is("false") {
        return Ok(Value::from(is("true")));
    }
    if let Some(quoted) = text.strip_prefix("x'").or_else(|| text.strip_prefix("X'")) {
        return blob(text, quoted);
    }
    if let Some(quoted) = text.strip_prefix('\'') {
        return single_quoted(text, quoted);
    }
    if text.starts_with('"') {
        return serde_json::from_str::<String>(text).map(Value::Text).map_err(|_| {
            BadParameter(format!("{text} is not a JSON string; close the quote and escape as JSON does"))
        });
    }
    Ok(number(text).unwrap_or_else(|| Value::from(text)))
}

/// Reads a key or a value of a register: bytes in hexadecimal like `x'00ff'`, or text as it stands.
pub(crate) fn bytes(text: &str) -> Result<Vec<u8>, BadParameter> {
    let quoted = text.strip_prefix("x'").or_else(|| text.strip_prefix("X'"));
    match quoted.map(|quoted| blob(text, quoted)).transpose()? {
        Some(Value::Blob(bytes)) => Ok(bytes.to_vec()),
        _ => Ok(text.as_bytes().to_vec()),
    }
}

/// A number as JSON writes it. So `007` stays text, and so does what no float can hold.
fn number(text: &str) -> Option<Value> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let number: serde_json::Number = serde_json::from_str(text).ok()?;
    match number.as_i64() {
        Some(integer) => Some(Value::Integer(integer)),
        // Larger than SQLite's INTEGER: REAL, as SQLite reads such a literal.
        None => number.as_f64().filter(|real| real.is_finite()).map(Value::Real),
    }
}

fn single_quoted(text: &str, quoted: &str) -> Result<Value, BadParameter> {
    let unterminated =
        || BadParameter(format!("{text} has no closing quote; a quote within is written twice: ''"));
    let inner = quoted.strip_suffix('\'').ok_or_else(unterminated)?;
    let parts: Vec<&str> = inner.split("''").collect();
    if parts.iter().any(|part| part.contains('\'')) {
        return Err(unterminated());
    }
    Ok(Value::Text(parts.join("'")))
}

fn blob(text: &str, quoted: &str) -> Result<Value, BadParameter> {
    let refused =
        || BadParameter(format!("{text} is not a blob; write pairs of hexadecimal digits, like x'00ff'"));
    let hex = quoted.strip_suffix('\'').ok_or_else(refused)?;
    if hex.len() % 2 != 0 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(refused());
    }
    let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>().map_err(|_| refused())?;
    Ok(Value::from(bytes))
}

#[cfg(test)]
mod tests {
    use debros_sdk::{Parameters, Value};
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::{parse, parse_all};

    #[test]
    fn each_form_has_its_type() {
        let cases: [(&str, Value); 14] = [
            ("null", Value::Null),
            ("TRUE", Value::Integer(1)),
            ("false", Value::Integer(0)),
            ("42", Value::Integer(42)),
            ("-7", Value::Integer(-7)),
            ("2.5e3", Value::Real(2500.0)),
            ("9223372036854775808", Value::Real(9_223_372_036_854_775_808.0)),
            ("x'00Ff'", Value::from(&[0u8, 255])),
            ("'42'", "42".into()),
            ("'it''s'", "it's".into()),
            ("\"a\\n\"", "a\n".into()),
            ("007", "007".into()),
            ("+1", "+1".into()),
            ("", "".into()),
        ];
        for (text, value) in cases {
            assert_eq!(parse(text).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn keys_are_text_as_it_stands_or_bytes_in_hexadecimal() {
        assert_eq!(super::bytes("null").unwrap(), b"null");
        assert_eq!(super::bytes("'a'").unwrap(), b"'a'");
        assert_eq!(super::bytes("x'00Ff'").unwrap(), [0, 255]);
        assert!(super::bytes("x'0'").is_err());
    }

    #[test]
    fn a_mistake_within_quotes_is_an_error() {
        for text in ["'a", "'a'b'", "x'0'", "x'zz'", "x'00", "\"a", "'"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_for_all_or_for_none() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let named = parse_all(&texts(&[":id=1", "$name=a=b"])).unwrap();
        assert_eq!(named, Parameters::Named(vec![("id".into(), 1.into()), ("name".into(), "a=b".into())]));
        assert!(parse_all(&texts(&[":id=1", "2"])).is_err());
        let time = parse_all(&texts(&[":30=x"])).unwrap();
        assert_eq!(time, Parameters::Positional(vec![":30=x".into()]));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn any_text_survives_being_quoted(text in any::<String>()) {
            let quoted = format!("'{}'", text.replace('\'', "''"));
            prop_assert_eq!(parse(&quoted).unwrap(), Value::Text(text));
        }

        #[test]
        fn any_integer_survives(integer in any::<i64>()) {
            prop_assert_eq!(parse(&integer.to_string()).unwrap(), Value::Integer(integer));
        }
    }
}

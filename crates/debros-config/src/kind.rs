//! What the text of a key may look like.
//!
//! One parser a kind, shared by the file, the environment and [`Config::validate`](crate::Config::validate), so
//! that a value means the same wherever it stands. Knows nothing of which key holds it or of other keys.

use std::{net::IpAddr, str::FromStr};

use serde_json::Value;

use crate::{ByteSize, Interval, ListenAddress, PeerAddress, Ratio};

/// A DNS label's length: names end up in DNS names, log fields and metric labels.
const NAME_BYTES_MAX: usize = 63;
/// libp2p bounds a protocol name at 140 bytes; this leaves room for what the node appends.
const PROTOCOL_PREFIX_BYTES_MAX: usize = 100;
/// A message repeats no more of a wrong value than this.
const FOUND_CHARACTERS_MAX: usize = 80;
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The form of a key's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Boolean,
    /// A whole number, both ends included.
    Integer {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A name for people: letters, digits, `-`, `_` and `.`.
    Name,
    /// A path of a file or folder.
    Path,
    /// A duration such as `10s`.
    Duration {
        /// The shortest that makes sense.
        min: Interval,
    },
    /// A size such as `64MiB`.
    Size {
        /// The smallest.
        min: ByteSize,
        /// The largest.
        max: ByteSize,
    },
    /// A number from 0 to 1, such as `0.01`.
    Ratio,
    /// An IPv4 or IPv6 address.
    IpAddress,
    /// A list of multiaddrs to listen on.
    ListenAddresses,
    /// A list of multiaddrs to dial.
    PeerAddresses,
    /// A list of namespaces.
    Namespaces,
    /// The beginning of a protocol name, such as `/debros`.
    ProtocolPrefix,
    /// A log level, or `target=level` separated by commas.
    LogFilter,
    /// An `http` or `https` URL.
    Url,
    /// 32 hexadecimal digits.
    ClusterId,
    /// A key that was replaced: anything may stand there, nothing is made of it.
    Ignored,
}

impl Kind {
    /// Whether the key holds several values, written as a YAML list or, in the environment, with commas.
    pub fn is_list(self) -> bool {
        matches!(self, Kind::ListenAddresses | Kind::PeerAddresses | Kind::Namespaces)
    }

    /// What is expected, in the words of an error message; for a list, of one of its items.
    pub fn expected(self) -> String {
        match self {
            Kind::Boolean => "`true` or `false`".to_owned(),
            Kind::Integer { min, max } => format!("a whole number from {min} to {max}"),
            Kind::Choice(words) => {
                words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(" or ")
            }
            Kind::Name => format!("up to {NAME_BYTES_MAX} letters, digits, `-`, `_` or `.`"),
            Kind::Path => "a path in UTF-8".to_owned(),
            Kind::Duration { min } => format!("a duration of at least {min}, such as 500ms, 10s or 24h"),
            Kind::Size { min, max } => format!("a size from {min} to {max}, such as 64MiB"),
            Kind::Ratio => "a number from 0 to 1 with at most six decimals, such as 0.01".to_owned(),
            Kind::IpAddress => "an IP address, such as 127.0.0.1 or ::1".to_owned(),
            Kind::ListenAddresses => "an address to listen on, such as /ip4/0.0.0.0/tcp/4001".to_owned(),
            Kind::PeerAddresses => "the address of a peer, such as /dns4/host/tcp/4001".to_owned(),
            Kind::Namespaces => format!(
                "a namespace: up to {NAME_BYTES_MAX} lower-case letters, digits, `-`, `_` or `.`, a letter or digit \
                 first"
            ),
            Kind::ProtocolPrefix => "the beginning of a protocol name, such as /debros".to_owned(),
            Kind::LogFilter => {
                "a level (off, error, warn, info, debug, trace) or a list such as info,debros_node=debug"
                    .to_owned()
            }
            Kind::Url => "a URL beginning with http:// or https://".to_owned(),
            Kind::ClusterId => "a cluster id of 32 hexadecimal digits".to_owned(),
            Kind::Ignored => "anything".to_owned(),
        }
    }

    /// The filter of the log that a text stands for, in its normal form, for programs that change it while they run.
    ///
    /// # Errors
    /// What was expected, in words.
    pub fn log_filter(text: &str) -> Result<String, String> {
        let filter = Kind::LogFilter.parse(text)?;
        Ok(filter.as_str().unwrap_or_default().to_owned())
    }

    /// The value that a text stands for, in its normal form, or why it stands for none. For a list, one item.
    pub(crate) fn parse(self, text: &str) -> Result<Value, String> {
        self.normal(text).map_err(|detail| {
            let mut message = format!("expected {}, found {}", self.expected(), quoted(text));
            if let Some(detail) = detail {
                message.push_str(": ");
                message.push_str(&detail);
            }
            message
        })
    }

    fn normal(self, text: &str) -> Result<Value, Option<String>> {
        let when = |valid: bool| if valid { Ok(Value::from(text)) } else { Err(None) };
        match self {
            Kind::Boolean => text.parse::<bool>().map(Value::from).map_err(|_| None),
            Kind::Integer { min, max } => {
                let digits = text.bytes().all(|byte| byte.is_ascii_digit());
                match text.parse::<u64>() {
                    Ok(number) if digits && (min..=max).contains(&number) => Ok(Value::from(number)),
                    _ => Err(None),
                }
            }
            Kind::Choice(words) => when(words.contains(&text)),
            Kind::Name => when(is_name(text)),
            Kind::Path => when(!text.is_empty() && !text.contains(['\0', char::REPLACEMENT_CHARACTER])),
            Kind::Duration { min } => typed(text, |interval: &Interval| *interval >= min),
            Kind::Size { min, max } => typed(text, |size: &ByteSize| (min..=max).contains(size)),
            // The type's reason only repeats what is expected.
            Kind::Ratio => typed(text, |_: &Ratio| true).map_err(|_| None),
            Kind::IpAddress => {
                // The standard library's reason only repeats what is expected.
                text.parse::<IpAddr>().map(|address| Value::from(address.to_string())).map_err(|_| None)
            }
            Kind::ListenAddresses => typed(text, |_: &ListenAddress| true),
            Kind::PeerAddresses => typed(text, |_: &PeerAddress| true),
            Kind::Namespaces => when(is_namespace(text)),
            Kind::ProtocolPrefix => when(is_protocol_prefix(text)),
            Kind::LogFilter => {
                let lower = text.to_ascii_lowercase();
                // Levels are written in any case, as LOG_LEVEL=INFO is; targets are not.
                let normal = if LEVELS.contains(&lower.as_str()) { lower } else { text.to_owned() };
                if is_log_filter(&normal) { Ok(Value::from(normal)) } else { Err(None) }
            }
            Kind::Url => when(is_url(text)),
            Kind::ClusterId => {
                let valid = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
                if valid { Ok(Value::from(text.to_ascii_lowercase())) } else { Err(None) }
            }
            Kind::Ignored => Ok(Value::Null),
        }
    }
}

/// Parses and prints, which is the normal form; a reason only where the text did not parse, since the bounds are
/// in what is expected.
fn typed<T>(text: &str, within: impl Fn(&T) -> bool) -> Result<Value, Option<String>>
where
    T: FromStr<Err: std::fmt::Display> + ToString,
{
    let value = text.parse::<T>().map_err(|reason| Some(reason.to_string()))?;
    if within(&value) { Ok(Value::from(value.to_string())) } else { Err(None) }
}

fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.bytes().all(allowed)
}

/// The grammar of a namespace in requests; one that no request can name would be in a list in vain.
fn is_namespace(text: &str) -> bool {
    is_name(text)
        && !text.bytes().any(|byte| byte.is_ascii_uppercase())
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
}

fn is_protocol_prefix(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic());
    text.len() <= PROTOCOL_PREFIX_BYTES_MAX
        && text.strip_prefix('/').is_some_and(|rest| rest.split('/').all(part))
}

fn is_log_filter(text: &str) -> bool {
    let target = |text: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-:.".contains(&byte);
        !text.is_empty() && text.bytes().all(allowed)
    };
    text.split(',').all(|directive| match directive.trim().split_once('=') {
        Some((name, level)) => target(name) && LEVELS.contains(&level),
        None => LEVELS.contains(&directive.trim()),
    })
}

fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    rest.is_some_and(|rest| {
        !rest.is_empty() && !rest.starts_with('/') && rest.bytes().all(|b| b.is_ascii_graphic())
    })
}

/// A wrong value, as a message repeats it.
pub(crate) fn quoted(text: &str) -> String {
    if text.is_empty() {
        return "nothing".to_owned();
    }
    let shown: String = text.chars().take(FOUND_CHARACTERS_MAX).collect();
    let more = if shown.len() < text.len() { "..." } else { "" };
    format!("`{}{more}`", shown.escape_debug())
}

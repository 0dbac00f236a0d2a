//! What a request's URL and headers ask for. Flags count by their presence, as in rqlite
//! (`?timings` and `?timings=false` are the same); of an argument given twice the first counts.
//!
//! Arguments that have no meaning here are accepted and ignored, so that rqlite's clients need no
//! change: `redirect`, `retries`, `norwrandom`, `norwtime`, `noparse`, `wait`, `bypass`. A value that
//! cannot be read is refused, never guessed.

use std::collections::HashMap;
use std::time::Duration;

use axum::extract::Query;
use axum::http::{HeaderMap, Uri};
use debros_proto::{DatabaseName, Failure, Namespace, limits, v1};

/// The header that names the namespace; `?namespace=` does so too.
pub const NAMESPACE_HEADER: &str = "x-debros-namespace";
/// The namespace of requests that name none.
pub const NAMESPACE_DEFAULT: &str = "default";

/// The arguments of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Arguments {
    /// On whose behalf.
    pub namespace: Namespace,
    /// Which database.
    pub database: DatabaseName,
    /// `?transaction`
    pub transaction: bool,
    /// `?timings`
    pub timings: bool,
    /// `?pretty`
    pub pretty: bool,
    /// `?queue`
    pub queue: bool,
    /// `?associative`
    pub associative: bool,
    /// `?blob_array`
    pub blob_array: bool,
    /// `?raft_index`
    pub raft_index: bool,
    /// `?level=`; rqlite's default is `weak`.
    pub level: v1::Consistency,
    /// `?freshness=`
    pub freshness: Option<Duration>,
    /// `?freshness_strict`
    pub freshness_strict: bool,
    /// `?timeout=`
    pub timeout: Option<Duration>,
    /// `?db_timeout=`: of reads only; what a write may do is bounded by its steps, on all replicas
    /// alike.
    pub db_timeout: Option<Duration>,
    /// `?q=`
    pub query: Option<String>,
    /// `?noleader`
    pub noleader: bool,
    /// `?sync`
    pub sync: bool,
    /// `?nonvoters`
    pub nonvoters: bool,
    /// `?ver=2`
    pub second_version: bool,
    /// `?key=`
    pub key: Option<String>,
}

impl Arguments {
    /// Reads them.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` names the argument and what it may be.
    pub fn read(uri: &Uri, headers: &HeaderMap) -> Result<Self, Failure> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| Failure::invalid(format!("the URL's arguments cannot be read: {error}")))?;
        let mut given = HashMap::new();
        for (name, value) in pairs {
            given.entry(name).or_insert(value);
        }
        let has = |name: &str| given.contains_key(name);
        let text = |name: &str| given.get(name).cloned();
        let duration = |name: &str| given.get(name).map(|value| parse_duration(name, value)).transpose();
        let query = text("q");
        if query.as_deref().is_some_and(str::is_empty) {
            return Err(Failure::invalid("query parameter not set: give the SQL as ?q="));
        }
        let freshness = duration("freshness")?;
        let freshness_strict = has("freshness_strict");
        if freshness_strict && freshness.is_none() {
            return Err(Failure::invalid("freshness_strict requires freshness"));
        }
        duration("linearizable_timeout")?;
        let invalid = |error: debros_proto::InvalidName| Failure::invalid(error.to_string());
        Ok(Self {
            namespace: namespace(given.get("namespace").map(String::as_str), headers)?,
            database: DatabaseName::or_default(&text("db").unwrap_or_default()).map_err(invalid)?,
            transaction: has("transaction"),
            timings: has("timings"),
            pretty: has("pretty"),
            queue: has("queue"),
            associative: has("associative"),
            blob_array: has("blob_array"),
            raft_index: has("raft_index"),
            level: parse_level(&text("level").unwrap_or_default())?,
            freshness,
            freshness_strict,
            timeout: duration("timeout")?,
            db_timeout: duration("db_timeout")?,
            query,
            noleader: has("noleader"),
            sync: has("sync"),
            nonvoters: has("nonvoters"),
            second_version: given.get("ver").is_some_and(|version| version == "2"),
            key: text("key").filter(|key| !key.is_empty()),
        })
    }

    /// The header of a write.
    pub fn write_header(&self) -> v1::RequestHeader {
        self.header(self.timeout)
    }

    /// The header of a read.
    pub fn read_header(&self) -> v1::RequestHeader {
        let timeouts = [self.timeout, self.db_timeout];
        self.header(timeouts.into_iter().flatten().filter(|timeout| !timeout.is_zero()).min())
    }

    fn header(&self, timeout: Option<Duration>) -> v1::RequestHeader {
        let timeout = timeout.unwrap_or_default().min(limits::REQUEST_TIMEOUT_MAX);
        v1::RequestHeader {
            namespace: self.namespace.to_string(),
            timeout_ms: milliseconds_up(timeout),
            ..Default::default()
        }
    }

    /// How fresh a read must be. Strict freshness of a replica is not measured, so who asks for it
    /// reads the leader's state, which is fresher.
    pub fn consistency(&self) -> v1::Consistency {
        match self.level {
            v1::Consistency::None if self.freshness_strict => v1::Consistency::Weak,
            level => level,
        }
    }

    /// The oldest state that a read at level `none` takes; 0 is any.
    pub fn freshness_ms(&self) -> u32 {
        milliseconds_up(self.freshness.unwrap_or_default())
    }
}

fn namespace(argument: Option<&str>, headers: &HeaderMap) -> Result<Namespace, Failure> {
    let header = match headers.get(NAMESPACE_HEADER) {
        None => None,
        Some(value) => Some(value.to_str().map_err(|_| {
            Failure::invalid(format!("the header {NAMESPACE_HEADER} is not text: a namespace is lower-case letters, digits and dashes"))
        })?),
    };
    if let (Some(header), Some(argument)) = (header, argument)
        && header != argument
    {
        return Err(Failure::invalid(format!(
            "the header {NAMESPACE_HEADER} says {header:?} and ?namespace= says {argument:?}: send one of them"
        )));
    }
    let name = header.or(argument).unwrap_or(NAMESPACE_DEFAULT);
    Namespace::new(name).map_err(|error| Failure::invalid(error.to_string()))
}

fn parse_level(level: &str) -> Result<v1::Consistency, Failure> {
    match level.to_ascii_lowercase().as_str() {
        "none" => Ok(v1::Consistency::None),
        "" | "weak" => Ok(v1::Consistency::Weak),
        "linearizable" => Ok(v1::Consistency::Linearizable),
        "strong" => Ok(v1::Consistency::Strong),
        "auto" => Ok(v1::Consistency::Auto),
        _ => Err(Failure::invalid(format!(
            "level {level:?} is not known: use none, weak, linearizable, strong or auto"
        ))),
    }
}

/// The units of Go's `time.ParseDuration`, longest first where one begins another.
const UNITS: [(&str, f64); 8] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("μs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// Reads a duration as Go writes it: `1.5s`, `100ms`, `1h2m3s`.
fn parse_duration(name: &str, text: &str) -> Result<Duration, Failure> {
    let invalid = || {
        Failure::invalid(format!("{name} {text:?} is not a valid duration: write it as 500ms, 10s or 1m30s"))
    };
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let (number, after) = rest.split_at(digits);
        let number: f64 = number.parse().map_err(|_| invalid())?;
        let (unit, factor) =
            UNITS.into_iter().find(|(unit, _)| after.starts_with(unit)).ok_or_else(invalid)?;
        seconds += number * factor;
        rest = &after[unit.len()..];
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| invalid())
}

/// Rounds up, because 0 means that nothing was asked for.
fn milliseconds_up(duration: Duration) -> u32 {
    u32::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

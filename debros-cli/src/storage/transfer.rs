//! All keys with a prefix as JSON lines, and back. A line is what the storage keeps of a key but its
//! version, which is given anew.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use debros_sdk::{Entry, ListOptions, PutOptions, Quorum, Storage, StorageExt, StorageOperation};
use futures::TryStreamExt;
use serde_json::{Value as Json, json};

use super::{failed, local};
use crate::commands::print;
use crate::failure::Failure;
use crate::format::Format;
use crate::json;

/// Lines imported at a time.
const LINES_AT_ONCE: usize = 256;
/// Bytes imported at a time: this much waits in memory.
const BYTES_AT_ONCE: usize = 16 << 20;
/// Progress is told each time so many more keys are done.
const PROGRESS_KEYS: u64 = 1000;

/// Tells people how far it is, when they watch.
struct Progress {
    verb: &'static str,
    watched: bool,
    done: u64,
}

impl Progress {
    fn new(verb: &'static str) -> Self {
        Self { verb, watched: std::io::stderr().is_terminal(), done: 0 }
    }

    fn add(&mut self, keys: u64) {
        let before = self.done / PROGRESS_KEYS;
        self.done += keys;
        if self.watched && self.done / PROGRESS_KEYS > before {
            eprint!("\r{} {} keys", self.verb, self.done);
        }
    }

    fn end(&self) {
        if self.watched && self.done >= PROGRESS_KEYS {
            eprint!("\r");
        }
    }
}

pub(crate) async fn export(
    format: Format,
    storage: &dyn Storage,
    prefix: &str,
    output: Option<&Path>,
    quorum: Quorum,
) -> Result<(), Failure> {
    let exported = match output {
        Some(file) => {
            let opened = File::create(file).map_err(|error| local("write", file, &error))?;
            let mut out = BufWriter::new(opened);
            let exported = write_lines(storage, prefix, quorum, &mut out).await?;
            out.into_inner()
                .map_err(|error| error.into_error())
                .and_then(|file| file.sync_all())
                .map_err(|error| local("write", file, &error))?;
            exported
        }
        None => write_lines(storage, prefix, quorum, &mut BufWriter::new(std::io::stdout())).await?,
    };
    match (format, output) {
        (Format::Json, Some(_)) => print(format, String::new, || json!({"exported": exported})),
        _ => {
            eprintln!("exported {exported} keys");
            Ok(())
        }
    }
}

/// Gives how many. A reader that went away ends the output, not the command.
async fn write_lines(
    storage: &dyn Storage,
    prefix: &str,
    quorum: Quorum,
    out: &mut impl Write,
) -> Result<u64, Failure> {
    let options = ListOptions { values: true, quorum, ..ListOptions::default() };
    let mut entries = storage.list_all(prefix, options);
    let mut progress = Progress::new("exported");
    let mut result = Ok(());
    while let Some(entry) = entries.try_next().await.map_err(failed("export", prefix))? {
        result = writeln!(out, "{}", line(&entry));
        if result.is_err() {
            break;
        }
        progress.add(1);
    }
    progress.end();
    match result.and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Local { message: format!("cannot write the export: {error}") })
        }
        _ => Ok(progress.done),
    }
}

fn line(entry: &Entry) -> Json {
    json!({
        "key": entry.key,
        "value_base64": BASE64.encode(&entry.value),
        "expires_unix_ms": entry.expires_at.map(json::unix_ms),
    })
}

pub(crate) async fn import(
    format: Format,
    storage: &dyn Storage,
    file: &Path,
    quorum: Quorum,
) -> Result<(), Failure> {
    let imported = if file == Path::new("-") {
        read_lines(storage, quorum, std::io::stdin().lock()).await
    } else {
        let opened = File::open(file).map_err(|error| local("read", file, &error))?;
        read_lines(storage, quorum, BufReader::new(opened)).await
    };
    let Imported { imported, skipped } = imported?;
    let for_people = || match skipped {
        0 => format!("imported {imported} keys"),
        _ => format!("imported {imported} keys, skipped {skipped} that have expired"),
    };
    print(format, for_people, || json!({"imported": imported, "skipped": skipped}))
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Imported {
    imported: u64,
    skipped: u64,
}

async fn read_lines(storage: &dyn Storage, quorum: Quorum, input: impl BufRead) -> Result<Imported, Failure> {
    let mut counts = Imported::default();
    let mut progress = Progress::new("imported");
    let (mut waiting, mut waiting_bytes) = (Vec::new(), 0);
    for (index, text) in input.lines().enumerate() {
        let at = |message: String| at_line(index + 1, counts.imported, &message);
        let text = text.map_err(|error| at(format!("cannot be read: {error}")))?;
        if text.trim().is_empty() {
            continue;
        }
        let Some((key, value, ttl)) = parse(&text).map_err(at)? else {
            counts.skipped += 1;
            continue;
        };
        waiting_bytes += value.len();
        let options = PutOptions { ttl, quorum, ..PutOptions::default() };
        waiting.push(StorageOperation::Put { key, value, options });
        if waiting.len() >= LINES_AT_ONCE || waiting_bytes >= BYTES_AT_ONCE {
            put_all(storage, std::mem::take(&mut waiting), &mut counts, &mut progress).await?;
            waiting_bytes = 0;
        }
    }
    put_all(storage, waiting, &mut counts, &mut progress).await?;
    progress.end();
    Ok(counts)
}

fn at_line(number: usize, imported: u64, message: &str) -> Failure {
    let next = "each line is {\"key\", \"value_base64\"}, as `debros storage export` writes it";
    Failure::usage(format!("line {number} {message}; {imported} keys were imported before"), next)
}

/// Puts what waits. Of several failures the first is told.
async fn put_all(
    storage: &dyn Storage,
    waiting: Vec<StorageOperation>,
    counts: &mut Imported,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let keys: Vec<String> = waiting.iter().map(|operation| key_of(operation).to_owned()).collect();
    let mut first_failure = None;
    for (key, outcome) in keys.iter().zip(storage.batch(waiting).await) {
        match outcome {
            Ok(_) => counts.imported += 1,
            Err(error) => first_failure = first_failure.or(Some((key, error))),
        }
    }
    progress.add(keys.len() as u64);
    match first_failure {
        None => Ok(()),
        Some((key, error)) => {
            progress.end();
            eprintln!("{} keys were imported; importing again does no harm", counts.imported);
            Err(failed("import", key)(error))
        }
    }
}

fn key_of(operation: &StorageOperation) -> &str {
    match operation {
        StorageOperation::Put { key, .. }
        | StorageOperation::Get { key, .. }
        | StorageOperation::Delete { key, .. } => key,
    }
}

/// A key, its value, and how long it still lives.
type Line = (String, Bytes, Option<Duration>);

/// `None` for a value that has expired.
fn parse(text: &str) -> Result<Option<Line>, String> {
    let object: Json = serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))?;
    let key = object["key"].as_str().ok_or("has no \"key\"")?;
    let value = object["value_base64"].as_str().ok_or("has no \"value_base64\"")?;
    let value = BASE64.decode(value).map_err(|error| format!("has a wrong \"value_base64\": {error}"))?;
    let ttl = match &object["expires_unix_ms"] {
        Json::Null => None,
        time => {
            let unix_ms = time.as_u64().ok_or("has an \"expires_unix_ms\" that is no number")?;
            let expires = UNIX_EPOCH + Duration::from_millis(unix_ms);
            match expires.duration_since(SystemTime::now()) {
                Ok(left) if !left.is_zero() => Some(left),
                _ => return Ok(None),
            }
        }
    };
    Ok(Some((key.to_owned(), Bytes::from(value), ttl)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use debros_sdk::memory::MemoryStorage;
    use debros_sdk::{GetOptions, PutOptions, Quorum, Storage};

    use super::{Imported, read_lines, write_lines};

    #[tokio::test]
    async fn what_is_exported_is_imported_as_it_was() {
        let from = MemoryStorage::new();
        let all_bytes = Bytes::from((0..=255).collect::<Vec<u8>>());
        let options = PutOptions { ttl: Some(Duration::from_secs(3600)), ..PutOptions::default() };
        from.put_with("a/short", all_bytes.clone(), options).await.unwrap();
        for number in 0..600 {
            from.put(&format!("a/{number} \n\""), Bytes::from(format!("{number}"))).await.unwrap();
        }
        from.put("b", Bytes::new()).await.unwrap();
        let mut lines = Vec::new();
        assert_eq!(write_lines(&from, "a/", Quorum::Majority, &mut lines).await.unwrap(), 601);

        let to = MemoryStorage::new();
        let counts = read_lines(&to, Quorum::Majority, &lines[..]).await.unwrap();
        assert_eq!(counts, Imported { imported: 601, skipped: 0 });
        assert_eq!(to.list("", 1000).await.unwrap(), from.list("a/", 1000).await.unwrap());
        let entry = to.get_with("a/short", GetOptions::default()).await.unwrap().unwrap();
        assert_eq!(entry.value, all_bytes);
        assert!(entry.expires_at.is_some());
    }

    #[tokio::test]
    async fn a_wrong_line_is_named_and_an_expired_one_skipped() {
        let storage = MemoryStorage::new();
        let good = r#"{"key":"a","value_base64":"QQ=="}"#;
        let old = r#"{"key":"b","value_base64":"","expires_unix_ms":1}"#;
        let lines = format!("{good}\n\n{old}\n");
        let counts = read_lines(&storage, Quorum::Majority, lines.as_bytes()).await.unwrap();
        assert_eq!(counts, Imported { imported: 1, skipped: 1 });
        let wrong = [
            ("nonsense", "not JSON"),
            (r#"{"value_base64":""}"#, "no \"key\""),
            (r#"{"key":"a"}"#, "no \"value_base64\""),
            (r#"{"key":"a","value_base64":"*"}"#, "wrong \"value_base64\""),
            (r#"{"key":"a","value_base64":"","expires_unix_ms":"soon"}"#, "no number"),
        ];
        for (line, told) in wrong {
            let lines = format!("{good}\n{line}\n");
            let failure = read_lines(&storage, Quorum::Majority, lines.as_bytes()).await.unwrap_err();
            let text = failure.text().unwrap();
            assert!(text.contains("line 2 ") && text.contains(told), "{text}");
        }
        let empty = r#"{"key":"","value_base64":""}"#;
        let failure = read_lines(&storage, Quorum::Majority, empty.as_bytes()).await.unwrap_err();
        assert!(failure.text().unwrap().contains("at least one character"));
    }
}

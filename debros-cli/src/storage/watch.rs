//! `debros storage watch`: a line for each change, until somebody interrupts it or stops reading.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use debros_sdk::{ResumeToken, Storage, WatchEvent, WatchOptions};
use serde_json::{Value as Json, json};

use super::{failed, write_all};
use crate::failure::Failure;
use crate::format::Format;
use crate::{json, table};

/// A token as it was printed.
pub(crate) fn token(text: &str) -> Result<ResumeToken, Failure> {
    let bytes = BASE64.decode(text).map_err(|_| {
        Failure::usage(
            format!("{text:?} is no resume token"),
            "copy the `resume` of a line of `debros storage watch --format json`",
        )
    })?;
    Ok(ResumeToken::from_bytes(bytes))
}

pub(crate) async fn run(
    format: Format,
    storage: &dyn Storage,
    prefix: &str,
    resume: Option<&str>,
) -> Result<(), Failure> {
    let options = WatchOptions { resume: resume.map(token).transpose()? };
    let mut watch = storage.watch(prefix, options).await.map_err(failed("watch", prefix))?;
    let mut stdout = std::io::stdout();
    loop {
        let event = tokio::select! {
            event = watch.next() => event,
            interrupted = tokio::signal::ctrl_c() => {
                return interrupted.map_err(|error| Failure::Local { message: error.to_string() });
            }
        };
        match event {
            None => return Ok(()),
            Some(Err(error)) if error.is_retryable() => {
                eprintln!("warning: {error}; the watch goes on when a node answers");
            }
            Some(Err(error)) => return Err(failed("watch", prefix)(error)),
            Some(Ok(event)) => {
                let line = match format {
                    Format::Table => for_people(&event),
                    Format::Json => for_programs(&event, watch.resume()).to_string(),
                };
                if !write_all(&mut stdout, format!("{line}\n").as_bytes())? {
                    return Ok(());
                }
            }
        }
    }
}

fn for_people(event: &WatchEvent) -> String {
    match event {
        WatchEvent::Put(entry) => {
            format!("put      {} = {}", table::key(&entry.key), table::bytes(&entry.value))
        }
        WatchEvent::Deleted { key, .. } => format!("deleted  {}", table::key(key)),
        WatchEvent::Lagged => "lagged   changes were missed: list again".to_owned(),
        WatchEvent::CaughtUp => "caught up: what follows happens now".to_owned(),
        _ => "an event of a newer version".to_owned(),
    }
}

fn for_programs(event: &WatchEvent, resume: Option<&ResumeToken>) -> Json {
    let resume = resume.map(|resume| BASE64.encode(resume.as_bytes()));
    let (name, mut object) = match event {
        WatchEvent::Put(entry) => ("put", json::entry(entry, true)),
        WatchEvent::Deleted { key, version } => {
            ("deleted", json!({"key": key, "version": json::version(*version)}))
        }
        WatchEvent::Lagged => ("lagged", json!({})),
        WatchEvent::CaughtUp => ("caught_up", json!({})),
        _ => ("unknown", json!({})),
    };
    object["event"] = json!(name);
    object["resume"] = json!(resume);
    object
}

#[cfg(test)]
mod tests {
    use debros_sdk::{ResumeToken, Version, WatchEvent};

    use super::{for_people, for_programs, token};

    #[test]
    fn an_event_is_a_line_that_can_be_resumed_from() {
        let event = WatchEvent::Deleted { key: "a\nb".into(), version: Version { clock: 1 << 16, node: 2 } };
        let resume = ResumeToken::from_bytes(vec![0, 255]);
        let golden = r#"{"event":"deleted","key":"a\nb","resume":"AP8=","version":{"counter":0,"node":2,"unix_ms":1}}"#;
        assert_eq!(for_programs(&event, Some(&resume)).to_string(), golden);
        assert_eq!(token("AP8=").unwrap(), resume);
        assert!(token("no token").is_err());
        assert_eq!(for_people(&event), "deleted  a\\nb");
    }
}

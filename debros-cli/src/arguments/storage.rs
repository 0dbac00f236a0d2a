//! The command line of `debros storage`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use debros_sdk::{Quorum, STORAGE_TTL_MAX};

/// Keys of a list, unless the command line says otherwise.
const LIST_KEYS_DEFAULT: usize = 1000;

const PUT_HELP: &str = "\
The value is what stands there, byte by byte; `-` reads it from stdin, --file from a file.
JSON: {\"key\", \"version\": {\"unix_ms\", \"counter\", \"node\"}}

Examples:
  debros storage put greeting 'hello, world'
  debros storage put session/7 --file session.bin --ttl 1h
  tar c logs | gzip | debros storage put logs.tgz -";

const GET_HELP: &str = "\
The value goes to stdout as it is, without a line end. Exit code 1 when there is no such key.
JSON: {\"key\", \"value\", \"value_base64\", \"bytes\", \"version\": {\"unix_ms\", \"counter\", \"node\"}, \"expires_unix_ms\"}
`value` is null where the value is no UTF-8; with --output both values are left out.

Examples:
  debros storage get greeting
  debros storage get logs.tgz | tar tz
  debros storage get session/7 --output session.bin";

const LIST_HELP: &str = "\
JSON: {\"entries\": [{\"key\", \"version\": {\"unix_ms\", \"counter\", \"node\"}, \"expires_unix_ms\"}], \"cursor\"}
With --values an entry has \"value\", \"value_base64\" and \"bytes\", too. `cursor` is what --after goes on
from, null at the end.";

const WATCH_HELP: &str = "\
Prints a line for each change until it is interrupted, and goes on at another node when one dies.
JSON: a line each: {\"event\": \"put\" | \"deleted\" | \"lagged\" | \"caught_up\", \"key\", .., \"resume\"}
Give the last `resume` to --resume to miss nothing in between. `lagged`: changes were missed, list again.";

const IMPORT_HELP: &str = "\
Each line is {\"key\", \"value_base64\", \"expires_unix_ms\"}, as `debros storage export` writes it; the last
one may be left out or null. What has expired meanwhile is skipped. Lines before a failure stay imported.
JSON: {\"imported\", \"skipped\"}

Examples:
  debros storage import backup.jsonl
  debros -n old storage export | debros -n new storage import";

const EXPORT_HELP: &str = "\
One JSON line for each key: {\"key\", \"value_base64\", \"expires_unix_ms\"}, whatever --format says. What
changes meanwhile may be exported as it was or as it is.

Examples:
  debros storage export --output backup.jsonl
  debros storage export users/ | gzip > users.jsonl.gz";

#[derive(Debug, Subcommand)]
pub(crate) enum StorageCommand {
    /// Print the value under a key
    #[command(after_help = GET_HELP)]
    Get {
        /// The key
        key: String,
        /// Write the value to this file instead
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        replicas: Replicas,
    },
    /// Store a value under a key, over what was there
    #[command(after_help = PUT_HELP)]
    Put(Put),
    /// Delete a key; it need not be there
    #[command(after_help = "JSON: {\"key\", \"version\": {\"unix_ms\", \"counter\", \"node\"}}")]
    Delete {
        /// The key
        key: String,
        #[command(flatten)]
        replicas: Replicas,
    },
    /// Say whether a key is there; exit code 1 when it is not
    #[command(after_help = "JSON: {\"key\", \"exists\"}")]
    Exists {
        /// The key
        key: String,
        #[command(flatten)]
        replicas: Replicas,
    },
    /// List the keys with a prefix, in the order of their bytes
    #[command(after_help = LIST_HELP)]
    List(List),
    /// Tell of changes to the keys with a prefix
    #[command(after_help = WATCH_HELP)]
    Watch {
        /// Literal; all keys unless given
        #[arg(default_value = "")]
        prefix: String,
        /// Go on where an earlier watch ended: the `resume` of its last line
        #[arg(long, value_name = "TOKEN")]
        resume: Option<String>,
    },
    /// Store what an export wrote
    #[command(after_help = IMPORT_HELP)]
    Import {
        /// The file; stdin unless given
        #[arg(default_value = "-")]
        file: PathBuf,
        #[command(flatten)]
        replicas: Replicas,
    },
    /// Write all keys with a prefix and their values as JSON lines
    #[command(after_help = EXPORT_HELP)]
    Export {
        /// Literal; all keys unless given
        #[arg(default_value = "")]
        prefix: String,
        /// Write to this file instead of stdout
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        replicas: Replicas,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Put {
    /// The key
    pub(crate) key: String,
    /// The value; `-` for stdin
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub(crate) value: Option<OsString>,
    /// Take the value from this file
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// The value goes after this long: like 500ms, 10s, 2m, 12h, 30d
    #[arg(long, value_parser = ttl)]
    pub(crate) ttl: Option<Duration>,
    #[command(flatten)]
    pub(crate) replicas: Replicas,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Literal; all keys unless given
    #[arg(default_value = "")]
    pub(crate) prefix: String,
    /// Keys at most
    #[arg(short, long, default_value_t = LIST_KEYS_DEFAULT)]
    pub(crate) limit: usize,
    /// Only keys after this one
    #[arg(long, value_name = "KEY")]
    pub(crate) after: Option<String>,
    /// Show the values, too
    #[arg(long)]
    pub(crate) values: bool,
    #[command(flatten)]
    pub(crate) replicas: Replicas,
}

/// How many replicas must answer.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Replicas {
    /// How many replicas must answer
    #[arg(short, long, value_enum, default_value_t = AskedQuorum::Majority)]
    quorum: AskedQuorum,
}

impl Replicas {
    pub(crate) fn quorum(self) -> Quorum {
        match self.quorum {
            AskedQuorum::One => Quorum::One,
            AskedQuorum::Majority => Quorum::Majority,
            AskedQuorum::All => Quorum::All,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AskedQuorum {
    /// One: fastest, a later read may not see the write
    One,
    /// More than half: a read sees every write acknowledged before
    Majority,
    /// All of them: fails while one is away
    All,
}

/// Reads `500ms`, `10s`, `2m`, `12h`, `30d`; a bare number is seconds.
pub(crate) fn ttl(text: &str) -> Result<Duration, String> {
    const SHAPE: &str = "use a number with ms, s, m, h or d, such as 10s or 12h";
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds_per_unit = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(SHAPE.to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| SHAPE.to_owned())?;
    match Duration::try_from_secs_f64(number * seconds_per_unit) {
        Ok(Duration::ZERO) => Err("it must be more than nothing".to_owned()),
        Ok(duration) if duration <= STORAGE_TTL_MAX => Ok(duration),
        Ok(_) | Err(_) => Err(format!("no value lives longer than {} d", STORAGE_TTL_MAX.as_secs() / 86_400)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::{StorageCommand, ttl};
    use crate::arguments::{Arguments, Command};

    #[test]
    fn a_time_to_live_has_a_unit_or_means_seconds() {
        assert_eq!(ttl("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(ttl("10"), Ok(Duration::from_secs(10)));
        assert_eq!(ttl("12h"), Ok(Duration::from_secs(12 * 3600)));
        assert_eq!(ttl("3650d"), Ok(Duration::from_secs(3650 * 86_400)));
        for wrong in ["", "s", "0s", "1w", "-1s", "1.2.3s", "3651d"] {
            assert!(ttl(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_value_is_given_in_exactly_one_way() {
        let good = ["put k v", "put k -", "put k --file f", "put k v --ttl 1h -q all", "put k -- --file"];
        for line in good {
            let line = format!("debros storage {line}");
            let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
            assert!(matches!(arguments.command, Command::Storage(StorageCommand::Put(_))), "{line}");
        }
        for line in ["put k", "put k v --file f", "put", "put k v --quorum some"] {
            let line = format!("debros storage {line}");
            assert!(Arguments::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}

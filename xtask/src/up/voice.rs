//! How the demonstration speaks: headlines, lines below them, small tables. Colours only where a person reads.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use debros_sdk::{QueryResult, Value};

/// The speaker.
pub(super) struct Voice {
    colours: bool,
}

impl Voice {
    /// Colours when standard output is a terminal and `NO_COLOR` is not set.
    pub(super) fn new() -> Self {
        Self { colours: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    /// Begins a part.
    pub(super) fn headline(&self, words: &str) {
        if self.colours {
            println!("\n\x1b[1;36m{words}\x1b[0m");
        } else {
            println!("\n{words}");
        }
    }

    /// Says something within a part.
    pub(super) fn line(&self, words: &str) {
        println!("  {words}");
    }

    /// Says the thing that the part was about.
    pub(super) fn point(&self, words: &str) {
        if self.colours {
            println!("  \x1b[1;32m{words}\x1b[0m");
        } else {
            println!("  {words}");
        }
    }

    /// Shows rows under their columns' names.
    pub(super) fn rows(&self, result: &QueryResult) {
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
        table.set_header(&result.columns);
        for row in &result.rows {
            table.add_row(row.iter().map(shown));
        }
        for line in table.to_string().lines() {
            self.line(line);
        }
    }

    /// Waits for something and says how long it took.
    pub(super) async fn timed<T>(&self, work: impl Future<Output = Result<T>>) -> Result<String> {
        let start = Instant::now();
        work.await?;
        Ok(in_words(start.elapsed()))
    }
}

/// A duration with the digits that matter.
pub(super) fn in_words(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.2} s", duration.as_secs_f64())
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Integer(integer) => integer.to_string(),
        Value::Real(real) => real.to_string(),
        Value::Text(text) => text.clone(),
        Value::Blob(bytes) => format!("{} bytes", bytes.len()),
    }
}

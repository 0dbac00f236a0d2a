//! The SQL prompt: reads lines from a terminal or a pipe, runs complete statements, and answers the
//! prompt's own commands. Where statements end is decided in `splitter`.
//!
//! At a terminal an error is shown and the prompt goes on. From a pipe the first error ends the run,
//! because what follows was written for a success.

mod splitter;

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

use debros_sdk::{Database, Parameters, ReadOptions, RemoteDatabase, params};
use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::{Config, Editor};

use crate::arguments::{DatabaseOptions, Global};
use crate::commands::{chosen_database, print};
use crate::connection::Connection;
use crate::failure::Failure;
use crate::{json, table};
use splitter::Splitter;

const HELP: &str = "\
Statements end with `;` and may take several lines. The prompt's own commands:
  .tables           list the tables
  .schema [TABLE]   show the statements that made them
  .help             show this
  .quit             leave; so does Ctrl-D";

/// Lines kept in the history file.
const HISTORY_LINES_MAX: usize = 10_000;

/// Runs the prompt until its input ends.
pub(crate) async fn run(
    global: &Global,
    connection: &Connection,
    options: &DatabaseOptions,
) -> Result<(), Failure> {
    let session = Session {
        global,
        database: chosen_database(connection, options)?,
        options: ReadOptions::consistency(options.consistency.into()),
    };
    if std::io::stdin().is_terminal() { session.interactive(connection).await } else { session.piped().await }
}

struct Session<'g> {
    global: &'g Global,
    database: RemoteDatabase,
    options: ReadOptions,
}

/// Whether the prompt goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Continue,
    Quit,
}

impl Session<'_> {
    async fn interactive(&self, connection: &Connection) -> Result<(), Failure> {
        println!(
            "debros {}: database {} in namespace {}; .help shows the commands",
            env!("CARGO_PKG_VERSION"),
            self.database.name(),
            connection.client.namespace()
        );
        let mut prompt = Prompt::open()?;
        let mut splitter = Splitter::default();
        loop {
            let mark = if splitter.has_begun() { "   ...> " } else { "debros> " };
            let line;
            (prompt, line) = prompt.read(mark).await?;
            match line {
                Line::Text(line) => {
                    let flow = match self.take_line(&mut splitter, &line).await {
                        Ok(flow) => flow,
                        Err(failure) => {
                            eprintln!("{}", failure.text().unwrap_or_default());
                            Flow::Continue
                        }
                    };
                    if flow == Flow::Quit {
                        break;
                    }
                }
                Line::Interrupted => splitter.clear(),
                Line::End => break,
            }
        }
        prompt.save();
        Ok(())
    }

    async fn piped(&self) -> Result<(), Failure> {
        let mut splitter = Splitter::default();
        // Only this task reads, and there is nothing else to do meanwhile.
        for line in std::io::stdin().lock().lines() {
            let line =
                line.map_err(|error| Failure::Local { message: format!("cannot read the input: {error}") })?;
            if self.take_line(&mut splitter, &line).await? == Flow::Quit {
                return Ok(());
            }
        }
        match splitter.take_rest() {
            Some(statement) => self.statement(&statement).await,
            None => Ok(()),
        }
    }

    /// Takes one line in and runs what it completes. After an error the rest of the line is dropped.
    async fn take_line(&self, splitter: &mut Splitter, line: &str) -> Result<Flow, Failure> {
        if !splitter.has_begun() && line.trim_start().starts_with('.') {
            splitter.clear();
            return self.command(line.trim()).await;
        }
        splitter.push_line(line);
        while let Some(statement) = splitter.take() {
            if let Err(failure) = self.statement(&statement).await {
                splitter.clear();
                return Err(failure);
            }
        }
        Ok(Flow::Continue)
    }

    async fn statement(&self, sql: &str) -> Result<(), Failure> {
        self.query("run the statement", sql, Parameters::default()).await
    }

    async fn query(&self, action: &str, sql: &str, parameters: Parameters) -> Result<(), Failure> {
        let result = self.database.query_with(sql, parameters, self.options).await;
        let result = result.map_err(|error| Failure::operation(action, error))?;
        print(self.global.format, || table::query(&result), || json::query(&result))
    }

    async fn command(&self, line: &str) -> Result<Flow, Failure> {
        const SCHEMA: &str = "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL \
            AND tbl_name NOT LIKE '\\_debros\\_%' ESCAPE '\\' AND (?1 IS NULL OR tbl_name = ?1) ORDER BY tbl_name, type DESC";
        const TABLES: &str = "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') \
            AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT LIKE '\\_debros\\_%' ESCAPE '\\' ORDER BY name";
        let mut words = line.split_whitespace();
        match (words.next().unwrap_or_default(), words.next()) {
            (".quit" | ".exit", _) => return Ok(Flow::Quit),
            (".help", _) => println!("{HELP}"),
            (".tables", _) => self.query("list the tables", TABLES, Parameters::default()).await?,
            (".schema", table) => self.query("read the schema", SCHEMA, params![table]).await?,
            (other, _) => {
                return Err(Failure::usage(
                    format!("there is no command {other}"),
                    ".help lists the commands",
                ));
            }
        }
        Ok(Flow::Continue)
    }
}

/// What came from the terminal.
enum Line {
    Text(String),
    Interrupted,
    End,
}

/// The line editor with its history.
struct Prompt {
    editor: Editor<(), DefaultHistory>,
    history: Option<PathBuf>,
}

impl Prompt {
    fn open() -> Result<Self, Failure> {
        let unusable =
            |error: ReadlineError| Failure::Local { message: format!("cannot use the terminal: {error}") };
        let config = Config::builder()
            .max_history_size(HISTORY_LINES_MAX)
            .map_err(unusable)?
            .history_ignore_space(true)
            .auto_add_history(true)
            .build();
        let mut editor = Editor::with_config(config).map_err(unusable)?;
        let history = history_file();
        if let Some(path) = &history {
            // The first run has none yet.
            let _ = editor.load_history(path);
        }
        Ok(Self { editor, history })
    }

    /// Reads one line on a thread of its own, so that connections stay alive meanwhile.
    async fn read(mut self, mark: &'static str) -> Result<(Self, Line), Failure> {
        let read = tokio::task::spawn_blocking(move || {
            let line = self.editor.readline(mark);
            (self, line)
        });
        let (prompt, line) =
            read.await.map_err(|error| Failure::Local { message: format!("the prompt failed: {error}") })?;
        match line {
            Ok(line) => Ok((prompt, Line::Text(line))),
            Err(ReadlineError::Interrupted) => Ok((prompt, Line::Interrupted)),
            Err(ReadlineError::Eof) => Ok((prompt, Line::End)),
            Err(error) => Err(Failure::Local { message: format!("cannot read from the terminal: {error}") }),
        }
    }

    fn save(&mut self) {
        let Some(path) = &self.history else { return };
        let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        if let Err(error) = folder.map_err(ReadlineError::from).and_then(|()| self.editor.save_history(path))
        {
            eprintln!("cannot keep the history in {}: {error}", path.display());
        }
    }
}

/// `$XDG_STATE_HOME/debros/history`, by default under `~/.local/state`.
fn history_file() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = folder("XDG_STATE_HOME").or_else(|| Some(folder("HOME")?.join(".local/state")))?;
    Some(state.join("debros").join("history"))
}

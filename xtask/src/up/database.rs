//! The first act: a table is created and filled at one node and read at another.

use anyhow::{Context, Result};
use debros_sdk::{Consistency, Database, Parameters, ReadOptions, Statement, params};

use super::{APPLICATION, Stage};
use crate::membership;

pub(super) const TABLE: &str =
    "CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, word TEXT NOT NULL, written_by TEXT NOT NULL)";
pub(super) const INSERT: &str = "INSERT INTO notes (word, written_by) VALUES (?, ?)";
pub(super) const LATEST: &str = "SELECT id, word, written_by FROM notes ORDER BY id DESC LIMIT 3";
pub(super) const COUNT: &str = "SELECT count(*) FROM notes";

/// Plays the act.
pub(super) async fn play(stage: &mut Stage) -> Result<()> {
    let voice = &stage.voice;
    voice.headline("A SQL database, replicated by Raft");
    let database = stage.client.database();
    database.execute(TABLE, Parameters::default()).await.context("cannot create a table")?;
    voice.line(TABLE);
    let words = ["quorum", "term", "lease"];
    let insert = |word: &&str| Statement::new(INSERT, params![*word, "a transaction"]);
    database.transaction(words.iter().map(insert).collect()).await.context("cannot insert")?;
    voice.line(&format!("{INSERT}  -- three times, in one transaction"));

    let other = stage.cluster.nodes().len() - 1;
    let reader = membership::client_at(&stage.cluster, other, APPLICATION).await?;
    let options = ReadOptions::consistency(Consistency::Linearizable);
    let rows = reader.database().query_with(LATEST, Parameters::default(), options).await;
    voice.line(&format!("{LATEST}  -- asked at {}, linearizable", stage.cluster.nodes()[other].name()));
    voice.rows(&rows.context("cannot read")?);
    reader.close().await;
    Ok(())
}

//! Clients that write one numbered row after the other, and the books of what became of each: it was
//! acknowledged, or its outcome is unknown, or it certainly failed and was written again.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use debros_sdk::{Client, Database, params};
use tokio::task::JoinHandle;

use crate::pace::{Pace, pause};

/// No key: a write that were applied twice would show.
pub(crate) const TABLE: &str = "CREATE TABLE written (writer INTEGER NOT NULL, number INTEGER NOT NULL)";
const INSERT: &str = "INSERT INTO written (writer, number) VALUES (?, ?)";
/// As many as keep a dev build on two cores busy.
const WRITERS: i64 = 4;

/// A row: who wrote it, and its number.
pub(crate) type Row = (i64, i64);

/// What became of the writes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) acknowledged: BTreeSet<Row>,
    pub(crate) unknown: BTreeSet<Row>,
}

/// The books of all writers.
#[derive(Default)]
pub(crate) struct Books {
    ledger: Mutex<Ledger>,
    /// How the writes come along.
    pub(crate) pace: Pace,
}

impl Books {
    /// The books as they are.
    pub(crate) fn ledger(&self) -> Ledger {
        locked(&self.ledger).clone()
    }

    fn acknowledge(&self, row: Row) {
        locked(&self.ledger).acknowledged.insert(row);
        self.pace.acknowledge();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writers under way.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// Starts the writers, each of which rests for so long between two writes.
    pub(crate) fn start(client: &Client, books: &Arc<Books>, rest: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = |writer| tokio::spawn(write(writer, client.clone(), books.clone(), stop.clone(), rest));
        Self { writers: (0..WRITERS).map(writer).collect(), stop }
    }

    /// Lets every writer finish its write.
    pub(crate) async fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await.context("a writer panicked")??;
        }
        Ok(())
    }
}

async fn write(
    writer: i64,
    client: Client,
    books: Arc<Books>,
    stop: Arc<AtomicBool>,
    rest: Duration,
) -> Result<()> {
    let database = client.database();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        match database.execute(INSERT, params![writer, number]).await {
            Ok(_) => books.acknowledge((writer, number)),
            Err(error) if error.maybe_applied() => {
                locked(&books.ledger).unknown.insert((writer, number));
            }
            // It changed nothing: the same row again.
            Err(error) if error.is_retryable() => continue,
            Err(error) => return Err(error).context("a write failed that no retry can mend"),
        }
        number += 1;
        pause(rest).await;
    }
    Ok(())
}

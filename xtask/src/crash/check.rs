//! Closing the books: what each node holds itself, against what was acknowledged.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use debros_sdk::{Consistency, Database, Parameters, ReadOptions};
use tokio::time::sleep;

use super::load::{Books, Ledger, Row};
use crate::cluster::Cluster;
use crate::membership;

const READ: &str = "SELECT writer, number FROM written";
/// A node that was just started has a log to catch up with.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Holds every node to the books, and the nodes to each other.
pub(super) async fn all(cluster: &Cluster, application: &str, books: &Books) -> Result<()> {
    let ledger = books.ledger();
    let mut first: Option<BTreeSet<Row>> = None;
    for (index, node) in cluster.nodes().iter().enumerate() {
        let rows = held(cluster, index, application, &ledger).await;
        let rows = rows.with_context(|| format!("{} does not hold what it should", node.name()))?;
        match &first {
            Some(first) => {
                ensure!(rows == *first, "{} and {} differ", node.name(), cluster.nodes()[0].name())
            }
            None => first = Some(rows),
        }
    }
    Ok(())
}

async fn held(cluster: &Cluster, index: usize, application: &str, ledger: &Ledger) -> Result<BTreeSet<Row>> {
    let client = membership::client_at(cluster, index, application).await?;
    // With all writers at rest, a linearizable read tells how many rows there are in truth.
    let count = client.database().query("SELECT count(*) FROM written", Parameters::default()).await?;
    let count = count.first_as::<usize>()?.unwrap_or_default();
    let started = Instant::now();
    let rows: Vec<Row> = loop {
        // What this very node holds.
        let options = ReadOptions::consistency(Consistency::None);
        let read = client.database().query_with(READ, Parameters::default(), options).await;
        match read.and_then(|read| read.rows_as()) {
            Ok(rows) if rows.len() == count => break rows,
            found if started.elapsed() > CAUGHT_UP_WITHIN => {
                let found = found.map(|rows| rows.len());
                bail!("not caught up after {CAUGHT_UP_WITHIN:?}: {count} rows expected, and found {found:?}");
            }
            _ => sleep(LOOK_EVERY).await,
        }
    };
    client.close().await;
    compare(&rows, ledger)
}

/// Holds rows to the books; an error tells what is lost, doubled or invented.
pub(crate) fn compare(rows: &[Row], ledger: &Ledger) -> Result<BTreeSet<Row>> {
    let held: BTreeSet<Row> = rows.iter().copied().collect();
    let doubled = rows.len() - held.len();
    let lost: Vec<_> = ledger.acknowledged.difference(&held).take(5).collect();
    let known = |row: &&Row| ledger.acknowledged.contains(row) || ledger.unknown.contains(row);
    let invented: Vec<_> = held.iter().filter(|row| !known(row)).take(5).collect();
    ensure!(lost.is_empty(), "acknowledged writes are lost, the first of them (writer, number) {lost:?}");
    ensure!(doubled == 0, "{doubled} writes were applied twice");
    ensure!(invented.is_empty(), "rows that nobody wrote: {invented:?}");
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::super::load::Ledger;
    use super::compare;

    #[test]
    fn a_lost_a_doubled_and_an_invented_row_are_told_apart() {
        let ledger = Ledger { acknowledged: [(0, 0), (0, 1)].into(), unknown: [(1, 0)].into() };
        assert!(compare(&[(0, 0), (0, 1)], &ledger).is_ok());
        assert!(compare(&[(0, 0), (0, 1), (1, 0)], &ledger).is_ok());
        for (rows, word) in [
            ([(0, 0), (1, 0)].as_slice(), "lost"),
            (&[(0, 0), (0, 1), (0, 1)], "twice"),
            (&[(0, 0), (0, 1), (2, 0)], "nobody"),
        ] {
            let error = compare(rows, &ledger).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}

//! The load, from inside its pod: clients of the SDK that write SQL and storage steadily, remember every acknowledged write, and hold all of it to what is
//! read at the end. It prints a line a second, for who watches from outside, and one at the end. It does not know what is done to the cluster.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;
use debros_sdk::{Client, Database, Parameters, Quorum, params};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::crash::check::compare;
use crate::crash::load::{Books as RowBooks, Load, Row, TABLE};
use crate::pace::Pace;
use crate::puts::{Books as PutBooks, Puts, fill};

const APPLICATION: &str = "e2e";
const SECOND: Duration = Duration::from_secs(1);
/// Steady, and light enough that two cores have time for a Kubernetes.
const REST: Duration = Duration::from_millis(20);
/// So few that every key is put often, so many that they spread over the nodes.
const KEYS: u32 = 500;
/// The cluster may be young, and a step may take all of it away for a while.
const CONNECT_ATTEMPTS: u32 = 30;
const OPERATION_WITHIN: Duration = Duration::from_secs(60);
/// Rows of an answer: far below what a message may have.
const PAGE_ROWS: i64 = 5_000;
const PAGE: &str = "SELECT rowid, writer, number FROM written WHERE rowid > ? ORDER BY rowid LIMIT ?";

/// Options of the load.
#[derive(Args)]
pub(crate) struct LoadOptions {
    /// Where the nodes are, as a multiaddress.
    #[arg(long, env = "DEBROS_BOOTSTRAP")]
    bootstrap: String,
    /// The file of the secret that the cluster admits by.
    #[arg(long, env = "DEBROS_CLUSTER_SECRET_FILE")]
    cluster_secret_file: Option<PathBuf>,
    /// The load ends when this file is there.
    #[arg(long)]
    until: PathBuf,
}

/// A line that the load prints.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Line {
    Second(Second),
    End(End),
}

/// How a second was.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Second {
    /// Of the clock of the day, since 1970.
    pub(super) at_ms: u64,
    pub(super) rows: Progress,
    pub(super) puts: Progress,
}

/// How writes of one kind come along.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Progress {
    pub(super) acknowledged: u64,
    /// The longest time between two acknowledgements that ended in this second.
    pub(super) longest_pause_ms: u64,
}

/// What the books came to.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct End {
    pub(super) rows: u64,
    pub(super) puts: u64,
    /// Writes that may or may not have been applied; neither is wrong.
    pub(super) unknown: u64,
    /// Acknowledged rows that were not found.
    pub(super) lost: u64,
    /// What else the books say is wrong.
    pub(super) problem: Option<String>,
}

/// Writes until it is told to end.
pub(crate) fn run(options: &LoadOptions) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(load(options))
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> Result<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    Ok(u64::try_from(since.as_millis())?)
}

async fn load(options: &LoadOptions) -> Result<()> {
    let client = connect(options).await?;
    client.database().execute(TABLE, Parameters::default()).await.context("cannot create the table")?;
    let (rows, puts) = (Arc::new(RowBooks::default()), Arc::new(PutBooks::default()));
    fill(&client, &puts, KEYS).await?;
    let row_load = Load::start(&client, &rows, REST);
    let put_load = Puts::start(std::slice::from_ref(&client), &puts, KEYS, REST);
    while !options.until.exists() {
        sleep(SECOND).await;
        let second = Second { at_ms: now_ms()?, rows: progress(&rows.pace)?, puts: progress(&puts.pace)? };
        tell(&Line::Second(second))?;
    }
    row_load.stop().await?;
    put_load.stop().await?;
    tell(&Line::End(end(&client, &rows, &puts).await?))?;
    client.close().await;
    Ok(())
}

async fn connect(options: &LoadOptions) -> Result<Client> {
    let mut builder = Client::builder(APPLICATION)
        .bootstrap_peers([options.bootstrap.as_str()])
        .attempts(CONNECT_ATTEMPTS)
        .operation_timeout(OPERATION_WITHIN);
    if let Some(file) = &options.cluster_secret_file {
        builder = builder.cluster_secret_file(file);
    }
    builder.connect().await.with_context(|| format!("cannot connect to {}", options.bootstrap))
}

fn progress(pace: &Pace) -> Result<Progress> {
    let longest = pace.longest_pause();
    pace.begin_round();
    Ok(Progress { acknowledged: pace.acknowledged(), longest_pause_ms: u64::try_from(longest.as_millis())? })
}

fn tell(line: &Line) -> Result<()> {
    println!("{}", serde_json::to_string(line)?);
    Ok(())
}

/// With all writers at rest.
async fn end(client: &Client, rows: &RowBooks, puts: &PutBooks) -> Result<End> {
    let ledger = rows.ledger();
    let held = read_all(client).await?;
    let found = held.iter().copied().collect::<std::collections::BTreeSet<Row>>();
    let lost = ledger.acknowledged.difference(&found).count();
    let wrong_rows = compare(&held, &ledger).err();
    let wrong_puts = puts.read(client, Quorum::Majority, 1).await.err();
    let problem = wrong_rows.or(wrong_puts).map(|error| format!("{error:#}"));
    Ok(End {
        rows: rows.pace.acknowledged(),
        puts: puts.pace.acknowledged(),
        unknown: ledger.unknown.len() as u64,
        lost: lost as u64,
        problem,
    })
}

/// Every row, page by page.
async fn read_all(client: &Client) -> Result<Vec<Row>> {
    let (mut all, mut last) = (Vec::new(), 0);
    loop {
        let page =
            client.database().query(PAGE, params![last, PAGE_ROWS]).await.context("cannot read the rows")?;
        let page = page.rows_as::<(i64, i64, i64)>()?;
        let Some((rowid, _, _)) = page.last() else { return Ok(all) };
        last = *rowid;
        all.extend(page.iter().map(|(_, writer, number)| (*writer, *number)));
    }
}

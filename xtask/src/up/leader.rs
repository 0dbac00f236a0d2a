//! The last act: the leader is killed while writes go on. Shows how long they were away, that nothing acknowledged is
//! lost, that the storage and a subscriber go on, and that the killed node catches up with both when it is started again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use debros_sdk::{Client, Consistency, Database, Parameters, QueryResult, ReadOptions, params};
use tokio::time::sleep;

use super::database::{COUNT, INSERT, LATEST};
use super::voice::in_words;
use super::{APPLICATION, Stage, pubsub, storage};
use crate::{membership, outage};

/// A follower applies what the leader acknowledged within a heartbeat or two.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Plays the act.
pub(super) async fn play(stage: &mut Stage) -> Result<()> {
    let leader = membership::leader(&stage.cluster, &stage.client).await?;
    let name = stage.cluster.nodes()[leader].name().to_owned();
    let pid = stage.cluster.nodes()[leader].pid().unwrap_or_default();
    stage.voice.headline(&format!("{name} leads; kill -9 while a client writes"));
    let database = stage.client.database();
    let before = count(&stage.client).await?;
    let listening = pubsub::Listening::at(stage, leader).await?;
    let write = async || {
        database.execute(INSERT, params!["written", "the client"]).await.context("a write failed")?;
        Ok(())
    };
    let outage = outage::measure(write, stage.cluster.kill(leader)).await?;
    stage.voice.line(&format!("{name} (pid {pid}) is gone"));
    stage.voice.point(&format!("writes were away for {}", in_words(outage.longest)));

    let after = count(&stage.client).await?;
    // The first write of the measurement is not counted by it.
    let written = outage.writes + 1;
    ensure!(
        after == before + written,
        "{written} writes were acknowledged, but there are {} new rows",
        after - before
    );
    stage.voice.line(&format!(
        "{written} writes acknowledged before and after, {written} rows found: none lost, none doubled"
    ));
    read_from_a_follower(stage, after).await?;
    storage::go_on_without(stage, &name).await?;
    listening.goes_on(stage, &name).await?;
    bring_back(stage, leader, after).await?;
    storage::converges(stage, &name).await
}

async fn read_from_a_follower(stage: &Stage, rows: u64) -> Result<()> {
    let leader = membership::leader(&stage.cluster, &stage.client).await?;
    let nodes = stage.cluster.nodes();
    let follower = (0..nodes.len()).find(|index| *index != leader && nodes[*index].pid().is_some());
    let follower = follower.context("no follower runs")?;
    stage.voice.line(&format!(
        "{} leads now; the last rows, read from the follower {}:",
        nodes[leader].name(),
        nodes[follower].name()
    ));
    let reader = membership::client_at(&stage.cluster, follower, APPLICATION).await?;
    await_rows(&reader, rows).await?;
    stage.voice.rows(&stale(&reader, LATEST).await?);
    reader.close().await;
    Ok(())
}

async fn bring_back(stage: &mut Stage, index: usize, rows: u64) -> Result<()> {
    let name = stage.cluster.nodes()[index].name().to_owned();
    stage.voice.headline(&format!("Starting {name} again"));
    let start = Instant::now();
    stage.cluster.start(index)?;
    stage.cluster.ready(index).await?;
    let reader = membership::client_at(&stage.cluster, index, APPLICATION).await?;
    await_rows(&reader, rows).await?;
    reader.close().await;
    stage
        .voice
        .point(&format!("{name} has all {rows} rows again, {} after its start", in_words(start.elapsed())));
    Ok(())
}

async fn count(client: &Client) -> Result<u64> {
    let counted = client.database().query(COUNT, Parameters::default()).await?;
    counted.first_as::<u64>()?.context("a count has a row")
}

/// What the node that the client began at holds itself.
async fn stale(client: &Client, sql: &str) -> Result<QueryResult> {
    let options = ReadOptions::consistency(Consistency::None);
    Ok(client.database().query_with(sql, Parameters::default(), options).await?)
}

async fn await_rows(client: &Client, rows: u64) -> Result<()> {
    let start = Instant::now();
    loop {
        let held =
            stale(client, COUNT).await.and_then(|counted| Ok(counted.first_as::<u64>()?.unwrap_or_default()));
        match held {
            Ok(held) if held == rows => return Ok(()),
            held if start.elapsed() > CAUGHT_UP_WITHIN => {
                bail!("not caught up after {CAUGHT_UP_WITHIN:?}: {rows} rows expected, and found {held:?}")
            }
            _ => sleep(LOOK_EVERY).await,
        }
    }
}

//! The act of the key-value storage: put at one node and read at another, a value that goes by itself, a watch. And its
//! part in the act after it: what works while a node is down, and that the node is like the others when it is back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use debros_sdk::{PutOptions, RemoteStorage, Storage, WatchEvent, WatchOptions};
use tokio::time::{sleep, timeout};

use super::voice::in_words;
use super::{APPLICATION, Stage};
use crate::{membership, storage};

const SHIPS: [(&str, &str); 3] = [("ships/1", "Beagle"), ("ships/2", "Fram"), ("ships/3", "Endurance")];
/// Put while a node is down.
const LATER: (&str, &str) = ("ships/4", "Terra Nova");
const PASSING: &str = "passing/1";
/// Long enough to be read before, on a machine at its limit as well.
const PASSING_FOR: Duration = Duration::from_secs(2);
/// A watch tells within milliseconds; this is for a machine at its limit.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Plays the act.
pub(super) async fn play(stage: &mut Stage) -> Result<()> {
    let voice = &stage.voice;
    voice.headline("A key-value storage, replicated by quorum");
    let nodes = stage.cluster.nodes().len();
    let layout = storage::laid_out(&stage.cluster, APPLICATION, nodes).await?;
    voice.line(&format!("laid out over {nodes} nodes: layout {}, {}", layout.layout_version, layout.phase));
    let (first, last) = (stage.cluster.nodes()[0].name(), stage.cluster.nodes()[nodes - 1].name());
    let writer = membership::client_at(&stage.cluster, 0, APPLICATION).await?;
    let reader = membership::client_at(&stage.cluster, nodes - 1, APPLICATION).await?;

    for (key, value) in SHIPS {
        writer.storage().put(key, value.into()).await.context("cannot put")?;
        voice.line(&format!("put {key} {value}  -- through {first}"));
    }
    read_all(&reader.storage(), &SHIPS).await?;
    let (key, value) = SHIPS[1];
    voice.line(&format!("get {key}: {value}, list ships/: {} keys  -- through {last}", SHIPS.len()));
    watch(stage, &writer.storage(), &reader.storage()).await?;
    let went = passes(&writer.storage(), &reader.storage()).await?;
    let passing_for = in_words(PASSING_FOR);
    voice.line(&format!("put {PASSING} with {passing_for} to live: read, and gone after {}", in_words(went)));
    storage::close(vec![writer, reader]).await;
    Ok(())
}

/// With a node down: what was put is read, and more can be put.
pub(super) async fn go_on_without(stage: &Stage, name: &str) -> Result<()> {
    let storage = stage.client.storage();
    read_all(&storage, &SHIPS).await?;
    let started = Instant::now();
    let (key, value) = LATER;
    storage.put(key, value.into()).await.with_context(|| format!("cannot put without {name}"))?;
    let took = in_words(started.elapsed());
    stage
        .voice
        .line(&format!("storage without {name}: {} keys read, put {key} {value} took {took}", SHIPS.len()));
    Ok(())
}

/// The node that is back holds what the others do, and no node finds a difference.
pub(super) async fn converges(stage: &Stage, name: &str) -> Result<()> {
    let started = Instant::now();
    let clients = storage::at_each_node(&stage.cluster, APPLICATION).await?;
    let held = storage::equal(&clients).await?;
    let took = in_words(started.elapsed());
    let (key, value) = LATER;
    let entry = held.get(key).with_context(|| format!("{key} is lost: it was put without {name}"))?;
    ensure!(entry.value == value.as_bytes(), "{key} holds {:?} instead of {value}", entry.value);
    storage::close(clients).await;
    let nodes = stage.cluster.nodes().len();
    storage::laid_out(&stage.cluster, APPLICATION, nodes).await?;
    storage::nothing_diverges(&stage.cluster).await?;
    stage.voice.point(&format!(
        "{name} has {key} as well: all {nodes} nodes hold the same {} keys, {took} later",
        held.len()
    ));
    Ok(())
}

async fn read_all(storage: &RemoteStorage, expected: &[(&str, &str)]) -> Result<()> {
    for (key, value) in expected {
        let found = storage.get(key).await.with_context(|| format!("cannot get {key}"))?;
        ensure!(found.as_deref() == Some(value.as_bytes()), "{key} holds {found:?} instead of {value}");
    }
    let keys = storage.list("ships/", 100).await.context("cannot list")?;
    let expected: Vec<&str> = expected.iter().map(|(key, _)| *key).collect();
    ensure!(keys == expected, "{keys:?} are listed instead of {expected:?}");
    Ok(())
}

/// A change that is put through one node is told by another.
async fn watch(stage: &Stage, writer: &RemoteStorage, reader: &RemoteStorage) -> Result<()> {
    let mut watch = reader.watch("ships/", WatchOptions::default()).await.context("cannot watch")?;
    let (key, value) = SHIPS[0];
    let started = Instant::now();
    let version = writer.put(key, value.into()).await.context("cannot put")?;
    let told = async {
        while let Some(event) = watch.next().await {
            match event.context("the watch failed")? {
                WatchEvent::Put(entry) if entry.version == version => return Ok(entry),
                _ => {}
            }
        }
        bail!("the watch ended")
    };
    let entry = timeout(TOLD_WITHIN, told).await;
    let entry = entry.with_context(|| format!("a watch tells nothing of a put within {TOLD_WITHIN:?}"))??;
    ensure!(entry.value == value.as_bytes(), "the watch tells {:?} instead of {value}", entry.value);
    let took = in_words(started.elapsed());
    stage.voice.line(&format!("watch ships/: {key} was put again, told {took} after the put began"));
    Ok(())
}

/// A value with a time to live is there before its end and not after it; says when it was gone.
async fn passes(writer: &RemoteStorage, reader: &RemoteStorage) -> Result<Duration> {
    let options = PutOptions { ttl: Some(PASSING_FOR), ..PutOptions::default() };
    let started = Instant::now();
    writer.put_with(PASSING, "soon gone".into(), options).await.context("cannot put with a time to live")?;
    let acknowledged = Instant::now();
    let mut seen = false;
    while reader.get(PASSING).await.context("cannot get")?.is_some() {
        seen = true;
        // All nodes of this machine have one clock.
        ensure!(acknowledged.elapsed() < PASSING_FOR + TOLD_WITHIN, "{PASSING} has outlived its time");
        sleep(LOOK_EVERY).await;
    }
    let went = started.elapsed();
    ensure!(seen, "{PASSING} was never there");
    ensure!(went >= PASSING_FOR, "{PASSING} was gone after {went:?} already");
    Ok(went)
}

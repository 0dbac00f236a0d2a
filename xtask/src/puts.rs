//! Clients that put one value after the other, each of them unlike all others, on a space of keys that they share; and the
//! books of what was acknowledged, to which every reading is held.
//!
//! No put may fail: what a node's death costs is the SDK's to mend. So every put is acknowledged, and a key reads as the
//! newest of its puts, by the version that each returned.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use debros_sdk::{Client, Entry, GetOptions, Quorum, Storage, StorageOperation, StorageOutcome, Version};
use tokio::task::JoinHandle;

use crate::pace::{Pace, pause};

/// The newest acknowledged put of each key.
type Ledger = BTreeMap<String, Put>;

#[derive(Clone, Debug)]
struct Put {
    version: Version,
    value: String,
}

/// The books of one namespace.
#[derive(Default)]
pub(crate) struct Books {
    ledger: Mutex<Ledger>,
    /// How the puts come along.
    pub(crate) pace: Pace,
}

impl Books {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acknowledge(&self, key: &str, put: Put) {
        let mut ledger = self.ledger();
        // Puts of several clients to one key are acknowledged in any order.
        if ledger.get(key).is_none_or(|known| known.version < put.version) {
            ledger.insert(key.to_owned(), put);
        }
        drop(ledger);
        self.pace.acknowledge();
    }

    /// The keys that were put.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.ledger().keys().cloned().collect()
    }

    /// Holds all that was found to the books. No put may be under way.
    pub(crate) fn hold(&self, found: &BTreeMap<String, Entry>) -> Result<()> {
        let ledger = self.ledger();
        ledger.iter().try_for_each(|(key, put)| hold(key, put, found.get(key)))?;
        match found.keys().find(|key| !ledger.contains_key(*key)) {
            Some(invented) => bail!("nobody has put {invented}"),
            None => Ok(()),
        }
    }

    /// Gets one key of so many at this quorum and holds it to the books.
    pub(crate) async fn read(&self, client: &Client, quorum: Quorum, every: usize) -> Result<()> {
        let puts: Ledger = self.ledger().clone().into_iter().step_by(every).collect();
        let get = |key: &String| StorageOperation::Get {
            key: key.clone(),
            options: GetOptions { quorum, ..GetOptions::default() },
        };
        let outcomes = client.storage().batch(puts.keys().map(get).collect()).await;
        for ((key, put), outcome) in puts.iter().zip(outcomes) {
            match outcome.context("a get failed")? {
                StorageOutcome::Found(found) => hold(key, put, found.as_ref())?,
                StorageOutcome::Written(_) => bail!("a get was answered as a put"),
            }
        }
        Ok(())
    }
}

fn hold(key: &str, put: &Put, found: Option<&Entry>) -> Result<()> {
    let Some(entry) = found else { bail!("{key} is lost: {put:?} was acknowledged, and nothing is there") };
    ensure!(entry.version >= put.version, "{key} is lost: {put:?} was acknowledged, and there is {entry:?}");
    // All puts were acknowledged. A newer version can only be the same put, sent twice.
    ensure!(entry.value == put.value.as_bytes(), "{key} holds {entry:?}, last acknowledged was {put:?}");
    Ok(())
}

/// Clients under way.
pub(crate) struct Puts {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Result<()>>>,
}

impl Puts {
    /// Starts a writer for each client, on this many keys; each rests for so long between two puts.
    pub(crate) fn start(clients: &[Client], books: &Arc<Books>, keys: u32, rest: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = |(writer, client): (usize, &Client)| {
            tokio::spawn(write(writer, client.clone(), books.clone(), keys, stop.clone(), rest))
        };
        Self { writers: clients.iter().enumerate().map(writer).collect(), stop }
    }

    /// Lets every writer finish its put; an error when one of all puts failed.
    pub(crate) async fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await.context("a writer panicked")??;
        }
        Ok(())
    }
}

async fn write(
    writer: usize,
    client: Client,
    books: Arc<Books>,
    keys: u32,
    stop: Arc<AtomicBool>,
    rest: Duration,
) -> Result<()> {
    let storage = client.storage();
    while !stop.load(Ordering::Relaxed) {
        let (key, value) = (key(rand::random_range(0..keys)), unique_value(writer));
        let version = storage.put(&key, value.clone().into()).await.context("a put failed")?;
        books.acknowledge(&key, Put { version, value });
        pause(rest).await;
    }
    Ok(())
}

/// Puts every key once.
pub(crate) async fn fill(client: &Client, books: &Books, keys: u32) -> Result<()> {
    let puts: Vec<(String, String)> = (0..keys).map(|number| (key(number), unique_value(0))).collect();
    let put = |(key, value): &(String, String)| StorageOperation::Put {
        key: key.clone(),
        value: value.clone().into(),
        options: Default::default(),
    };
    let outcomes = client.storage().batch(puts.iter().map(put).collect()).await;
    for ((key, value), outcome) in puts.into_iter().zip(outcomes) {
        match outcome.context("a put failed")? {
            StorageOutcome::Written(version) => books.acknowledge(&key, Put { version, value }),
            StorageOutcome::Found(_) => bail!("a put was answered as a get"),
        }
    }
    Ok(())
}

fn key(number: u32) -> String {
    format!("key/{number:05}")
}

fn unique_value(writer: usize) -> String {
    format!("{writer}/{:032x}", rand::random::<u128>())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use debros_sdk::{Entry, Version};

    use super::{Books, Put};

    fn version(clock: u64) -> Version {
        Version { clock, node: 1 }
    }

    fn found(key: &str, clock: u64, value: &str) -> BTreeMap<String, Entry> {
        let value = value.to_owned().into();
        let entry = Entry { key: key.to_owned(), value, version: version(clock), expires_at: None };
        BTreeMap::from([(key.to_owned(), entry)])
    }

    #[test]
    fn a_lost_an_older_a_foreign_and_an_invented_value_are_told_apart() {
        let books = Books::default();
        books.acknowledge("a", Put { version: version(5), value: "five".to_owned() });
        books.acknowledge("a", Put { version: version(3), value: "three".to_owned() });
        assert!(books.hold(&found("a", 5, "five")).is_ok());
        assert!(books.hold(&found("a", 6, "five")).is_ok(), "the same put, sent twice");
        for (found, word) in [
            (BTreeMap::new(), "nothing is there"),
            (found("a", 3, "three"), "a is lost"),
            (found("a", 6, "three"), "last acknowledged was"),
            (found("b", 1, "one"), "is lost"),
        ] {
            let error = books.hold(&found).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let mut more = found("a", 5, "five");
        more.extend(found("b", 1, "one"));
        assert!(books.hold(&more).unwrap_err().to_string().contains("nobody"));
    }
}

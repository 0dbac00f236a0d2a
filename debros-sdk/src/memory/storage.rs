//! The storage in this process's memory: a map, a queue of what expires, and the latest changes for
//! those who watch. Time is tokio's, so that a test may let a value expire at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use debros_proto::{Namespace, limits};
use futures::stream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::MEMORY_NODE_ID;
use crate::error::Error;
use crate::storage::checked;
use crate::storage::watch::{Told, Watch};
use crate::storage::{
    Cursor, DeleteOptions, Entry, GetOptions, ListOptions, Page, PutOptions, ResumeToken, Storage, Version,
    WatchEvent, WatchOptions,
};

/// A key-value storage in memory; clones share it. It goes with its last clone.
#[derive(Clone)]
pub struct MemoryStorage {
    namespace: Namespace,
    state: Arc<Mutex<State>>,
    /// The number of the latest change.
    latest: watch::Sender<u64>,
}

struct State {
    /// Tells one storage's resume tokens from another's.
    instance: u64,
    /// Both at the same moment: the first of them never jumps.
    started: (Instant, u64),
    clock: u64,
    entries: BTreeMap<String, Stored>,
    expiring: BTreeSet<(u64, String)>,
    /// The latest changes, the number of the last one, and nothing of the older ones.
    changes: VecDeque<WatchEvent>,
    last_change: u64,
}

#[derive(Clone)]
struct Stored {
    value: Bytes,
    version: Version,
    /// Milliseconds since the Unix epoch; 0 for never.
    expires: u64,
}

impl Default for MemoryStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStorage {
    /// An empty storage.
    pub fn new() -> Self {
        Self::of_namespace(Namespace::new("memory").expect("the name satisfies the grammar"))
    }

    /// An empty storage that says it is of this namespace.
    ///
    /// # Errors
    /// `InvalidArgument` when the name breaks the grammar.
    pub fn named(namespace: &str) -> Result<Self, Error> {
        Ok(Self::of_namespace(Namespace::new(namespace)?))
    }

    fn of_namespace(namespace: Namespace) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(since.as_millis()).unwrap_or_default();
        let state = State {
            instance: rand::random(),
            started: (Instant::now(), unix_ms),
            clock: 0,
            entries: BTreeMap::new(),
            expiring: BTreeSet::new(),
            changes: VecDeque::new(),
            last_change: 0,
        };
        Self { namespace, state: Arc::new(Mutex::new(state)), latest: watch::Sender::new(0) }
    }

    /// The state without what has expired.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.expire() {
            self.tell(&state);
        }
        state
    }

    fn tell(&self, state: &State) {
        self.latest.send_replace(state.last_change);
    }
}

impl State {
    fn now_ms(&self) -> u64 {
        let (started, unix_ms) = self.started;
        unix_ms + u64::try_from(started.elapsed().as_millis()).unwrap_or_default()
    }

    fn version(&mut self) -> Version {
        self.clock = (self.clock + 1).max(self.now_ms() << 16);
        Version { clock: self.clock, node: MEMORY_NODE_ID }
    }

    fn remove(&mut self, key: &str) -> Option<Stored> {
        let stored = self.entries.remove(key)?;
        self.expiring.remove(&(stored.expires, key.to_owned()));
        Some(stored)
    }

    /// Removes what has expired; says whether there was any.
    fn expire(&mut self) -> bool {
        let now = self.now_ms();
        let mut some = false;
        while let Some((_, key)) = self.expiring.first().filter(|(expires, _)| *expires <= now).cloned() {
            if let Some(stored) = self.remove(&key) {
                self.add_change(WatchEvent::Deleted { key, version: stored.version });
                some = true;
            }
        }
        some
    }

    fn add_change(&mut self, change: WatchEvent) {
        if self.changes.len() >= limits::WATCH_EVENTS_MAX {
            self.changes.pop_front();
        }
        self.changes.push_back(change);
        self.last_change += 1;
    }

    /// When the next value goes.
    fn next_expiry(&self) -> Option<Instant> {
        let (started, unix_ms) = self.started;
        self.expiring.first().map(|(expires, _)| started + Duration::from_millis(expires - unix_ms))
    }

    fn token(&self, change: u64) -> ResumeToken {
        ResumeToken::from_bytes([self.instance.to_be_bytes(), change.to_be_bytes()].concat())
    }

    /// After which change a watch goes on; `None` when that is not known any more.
    fn place(&self, token: &ResumeToken) -> Result<Option<u64>, Error> {
        let wrong = || Error::invalid("this is no resume token of a watch");
        let (instance, change) = token.as_bytes().split_first_chunk::<8>().ok_or_else(wrong)?;
        let change = u64::from_be_bytes(change.try_into().map_err(|_| wrong())?);
        let known = u64::from_be_bytes(*instance) == self.instance && change <= self.last_change;
        Ok(known.then_some(change))
    }

    /// The change after this one; `Err` when it is not kept any more.
    fn change_after(&self, change: u64) -> Result<Option<&WatchEvent>, ()> {
        let kept_from = self.last_change - self.changes.len() as u64;
        let place = change.checked_sub(kept_from).ok_or(())?;
        Ok(self.changes.get(place as usize))
    }
}

fn entry(key: &str, stored: &Stored, with_value: bool) -> Entry {
    Entry {
        key: key.to_owned(),
        value: if with_value { stored.value.clone() } else { Bytes::new() },
        version: stored.version,
        expires_at: checked::expires_at(stored.expires),
    }
}

#[async_trait]
impl Storage for MemoryStorage {
    fn namespace(&self) -> &str {
        self.namespace.as_str()
    }

    async fn put_with(&self, key: &str, value: Bytes, options: PutOptions) -> Result<Version, Error> {
        checked::key(key)?;
        checked::value(&value)?;
        let ttl_ms = checked::ttl_ms(options.ttl)?;
        let mut state = self.state();
        state.remove(key);
        let version = state.version();
        let expires = if ttl_ms > 0 { state.now_ms() + ttl_ms } else { 0 };
        if expires > 0 {
            state.expiring.insert((expires, key.to_owned()));
        }
        let stored = Stored { value, version, expires };
        state.add_change(WatchEvent::Put(entry(key, &stored, true)));
        state.entries.insert(key.to_owned(), stored);
        self.tell(&state);
        Ok(version)
    }

    async fn get_with(&self, key: &str, options: GetOptions) -> Result<Option<Entry>, Error> {
        checked::key(key)?;
        let state = self.state();
        Ok(state.entries.get(key).map(|stored| entry(key, stored, !options.without_value)))
    }

    async fn delete_with(&self, key: &str, _options: DeleteOptions) -> Result<Version, Error> {
        checked::key(key)?;
        let mut state = self.state();
        let version = state.version();
        state.remove(key);
        // Of a key that was not there, too: a cluster's nodes do not ask each other before they tell.
        state.add_change(WatchEvent::Deleted { key: key.to_owned(), version });
        self.tell(&state);
        Ok(version)
    }

    async fn list_with(&self, prefix: &str, options: ListOptions) -> Result<Page, Error> {
        checked::prefix(prefix)?;
        options.after.as_ref().map_or(Ok(()), |after| checked::prefix(after.as_str()))?;
        let limit = checked::page_limit(options.limit)? as usize;
        let after = options.after.as_ref().map(Cursor::as_str).filter(|after| *after >= prefix);
        let from = after.map_or(Bound::Included(prefix), Bound::Excluded);
        let state = self.state();
        let mut page = Page::default();
        let mut bytes = 0;
        let matching = state.entries.range::<str, _>((from, Bound::Unbounded));
        for (key, stored) in matching.take_while(|(key, _)| key.starts_with(prefix)) {
            bytes += key.len() + if options.values { stored.value.len() } else { 0 };
            let too_many = page.entries.len() >= limit || bytes > limits::STORAGE_PAGE_BYTES_MAX;
            if let Some(last) = page.entries.last().filter(|_| too_many) {
                page.cursor = Some(Cursor::after(&last.key));
                break;
            }
            page.entries.push(entry(key, stored, options.values));
        }
        Ok(page)
    }

    async fn watch(&self, prefix: &str, options: WatchOptions) -> Result<Watch, Error> {
        checked::prefix(prefix)?;
        options.resume.as_ref().map_or(Ok(()), checked::resume)?;
        let state = self.state();
        let place = match &options.resume {
            Some(token) => state.place(token)?,
            None => Some(state.last_change),
        };
        let after = place.unwrap_or(state.last_change);
        let resume = state.token(after);
        let watcher = Watcher {
            latest: self.latest.subscribe(),
            storage: self.clone(),
            place: Place {
                prefix: prefix.to_owned(),
                after,
                lagged: place.is_none(),
                caught_up: false,
                caught_up_at: state.last_change,
            },
        };
        drop(state);
        let events = stream::unfold(watcher, |mut watcher| async move {
            let told = watcher.next().await;
            Some((told, watcher))
        });
        Ok(Watch::new(events, Some(resume)))
    }
}

/// One watch.
struct Watcher {
    storage: MemoryStorage,
    latest: watch::Receiver<u64>,
    place: Place,
}

/// Where a watch stands among the changes.
struct Place {
    prefix: String,
    after: u64,
    lagged: bool,
    /// Whether that was told yet.
    caught_up: bool,
    /// The last change from before the watch began.
    caught_up_at: u64,
}

impl Watcher {
    async fn next(&mut self) -> Told {
        loop {
            self.latest.mark_unchanged();
            let next_expiry = {
                let state = self.storage.state();
                if let Some(event) = self.place.take(&state) {
                    return Ok((event, Some(state.token(self.place.after))));
                }
                state.next_expiry()
            };
            let expiry = async {
                match next_expiry {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // The sender is part of `self.storage`: it never goes first.
            tokio::select! {
                _ = self.latest.changed() => {}
                () = expiry => {}
            }
        }
    }
}

impl Place {
    /// What is to be told next of what has happened.
    fn take(&mut self, state: &State) -> Option<WatchEvent> {
        if std::mem::take(&mut self.lagged) {
            return Some(WatchEvent::Lagged);
        }
        while self.caught_up || self.after < self.caught_up_at {
            match state.change_after(self.after) {
                Ok(Some(event)) => {
                    self.after += 1;
                    if key_of(event).is_some_and(|key| key.starts_with(&self.prefix)) {
                        return Some(event.clone());
                    }
                }
                Ok(None) => return None,
                Err(()) => {
                    self.after = state.last_change;
                    return Some(WatchEvent::Lagged);
                }
            }
        }
        self.caught_up = true;
        Some(WatchEvent::CaughtUp)
    }
}

fn key_of(event: &WatchEvent) -> Option<&str> {
    match event {
        WatchEvent::Put(entry) => Some(&entry.key),
        WatchEvent::Deleted { key, .. } => Some(key),
        WatchEvent::Lagged | WatchEvent::CaughtUp => None,
    }
}

//! Requests for the key-value storage: authorised, checked against every limit, and handed to the engine,
//! which any node can ask on behalf of a client.

use std::sync::Arc;
use std::time::Duration;

use debros_proto::{ErrorCode, Failure, HasHeader, limits, v1};
use futures::{Stream, StreamExt};
use tokio::sync::Semaphore;
use v1::storage_request::Operation;
use v1::storage_response::Result as Outcome;

use super::authorise::{Action, Authorised, Principal, authorise};
use super::disk::DiskState;
use crate::kv::{Get, Kv, KvSlot, List, Page, Quorum, Record, Watch, Write};

/// The service for key-value storage.
#[derive(Clone)]
pub struct Storage {
    kv: KvSlot,
    disk: DiskState,
    watches: Arc<Semaphore>,
}

impl Storage {
    /// A service over this node's engine.
    pub fn new(kv: KvSlot, disk: DiskState) -> Self {
        Self { kv, disk, watches: Arc::new(Semaphore::new(limits::STORAGE_WATCHES_MAX)) }
    }

    /// What is left of the watches that this node may serve.
    pub(super) fn watches(&self) -> Arc<Semaphore> {
        self.watches.clone()
    }

    /// Carries out one request.
    ///
    /// # Errors
    /// Says whether a write may have been applied.
    pub async fn operate(
        &self,
        principal: &Principal,
        request: v1::StorageRequest,
    ) -> Result<v1::StorageResponse, Failure> {
        let action = match &request.operation {
            Some(Operation::Put(_) | Operation::Delete(_)) => Action::Write,
            Some(Operation::Get(_) | Operation::List(_)) | None => Action::Read,
        };
        let authorised = authorise(principal, action, request.header())?;
        let quorum = Quorum::try_from(request.quorum).map_err(|_| unknown_quorum(request.quorum))?;
        let kv = self.kv.get()?;
        let seen_clock = request.seen_clock;
        let write = |key, value, ttl| {
            let namespace = authorised.namespace.as_str().to_owned();
            Write { namespace, key, value, ttl, quorum, seen_clock, deadline: authorised.deadline }
        };
        match request.operation {
            Some(Operation::Put(v1::StoragePut { key, value, ttl_ms })) => {
                check_value(&value)?;
                self.write(&kv, write(key, Some(value), check_ttl(ttl_ms)?)).await
            }
            Some(Operation::Delete(v1::StorageDelete { key })) => {
                self.write(&kv, write(key, None, None)).await
            }
            Some(Operation::Get(get)) => found(&kv, authorised, get, quorum).await,
            Some(Operation::List(list)) => listed(&kv, authorised, list, quorum).await,
            None => Err(Failure::invalid("the request names no operation that this version knows")),
        }
    }

    async fn write(&self, kv: &Kv, write: Write) -> Result<v1::StorageResponse, Failure> {
        check_key(&write.key)?;
        // A deletion makes room, in the end.
        if write.value.is_some() {
            self.disk.check()?;
        }
        let version = kv.write(write).await?;
        let written = v1::StorageWritten { version: Some(version.into()) };
        Ok(v1::StorageResponse { clock: version.clock, result: Some(Outcome::Written(written)) })
    }

    /// Which node holds which keys.
    ///
    /// # Errors
    /// `NOT_READY` before there is a layout.
    pub fn layout(
        &self,
        principal: &Principal,
        request: &v1::LayoutRequest,
    ) -> Result<v1::LayoutResponse, Failure> {
        authorise(principal, Action::Read, request.header())?;
        let layout = self.kv.get()?.layout()?;
        // How far each node is concerns nodes alone.
        Ok(v1::LayoutResponse { layout: Some(v1::StorageLayout { progress: Vec::new(), ..layout }) })
    }

    /// Changes of the keys with a prefix.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a resume token that is none, `BUSY` past [`limits::STORAGE_WATCHES_MAX`].
    pub fn watch(
        &self,
        principal: &Principal,
        request: v1::WatchStorageRequest,
    ) -> Result<impl Stream<Item = v1::StorageEvents> + Send + use<>, Failure> {
        let authorised = authorise(principal, Action::Read, request.header())?;
        let v1::WatchStorageRequest { header: _, prefix, resume } = request;
        check_prefix(&prefix)?;
        let resume = match &resume[..] {
            [] => None,
            token => {
                let token = token.try_into().map_err(|_| {
                    Failure::invalid("the resume token of a watch is what an event of it carried")
                })?;
                Some(u64::from_be_bytes(token))
            }
        };
        let permit = self.watches.clone().try_acquire_owned().map_err(|_| {
            let message = format!(
                "this node serves STORAGE_WATCHES_MAX, {}, watches: ask another",
                limits::STORAGE_WATCHES_MAX
            );
            Failure::new(ErrorCode::Busy, message).elsewhere()
        })?;
        let watch = Watch { namespace: authorised.namespace.as_str().to_owned(), prefix, resume };
        let events = self.kv.get()?.watch(watch)?.into_events();
        // Whoever watches goes on at another node.
        let events = events.take_until(self.kv.clone().refused());
        Ok(events.inspect(move |_| {
            // Given back when whoever watches has gone.
            let _held = &permit;
        }))
    }
}

async fn found(
    kv: &Kv,
    authorised: Authorised,
    get: v1::StorageGet,
    quorum: Quorum,
) -> Result<v1::StorageResponse, Failure> {
    let v1::StorageGet { key, without_value } = get;
    check_key(&key)?;
    let get = Get {
        namespace: authorised.namespace.as_str().to_owned(),
        key,
        with_value: !without_value,
        quorum,
        deadline: authorised.deadline,
    };
    let record = kv.get(&get).await.map_err(Failure::without_effect)?;
    let clock = record.as_ref().map_or(0, |record| record.version.clock);
    let entry = record.map(|record| entry(get.key, record));
    Ok(v1::StorageResponse { clock, result: Some(Outcome::Found(v1::StorageFound { entry })) })
}

async fn listed(
    kv: &Kv,
    authorised: Authorised,
    list: v1::StorageList,
    quorum: Quorum,
) -> Result<v1::StorageResponse, Failure> {
    let v1::StorageList { prefix, after, limit, with_values } = list;
    check_prefix(&prefix)?;
    check_prefix(&after)?;
    if limit > limits::STORAGE_PAGE_KEYS_MAX {
        return Err(Failure::limit("STORAGE_PAGE_KEYS_MAX", limits::STORAGE_PAGE_KEYS_MAX, limit));
    }
    let limit = if limit == 0 { limits::STORAGE_PAGE_KEYS_DEFAULT } else { limit };
    let list = List {
        namespace: authorised.namespace.as_str().to_owned(),
        prefix,
        after,
        limit: limit as usize,
        with_values,
        quorum,
        deadline: authorised.deadline,
    };
    let Page { entries, scanned_to, more } = kv.list(list).await.map_err(Failure::without_effect)?;
    let clock = entries.iter().map(|(_, record)| record.version.clock).max().unwrap_or_default();
    let entries = entries.into_iter().map(|(key, record)| entry(key, record)).collect();
    let page = v1::StoragePage { entries, more, scanned_to };
    Ok(v1::StorageResponse { clock, result: Some(Outcome::Page(page)) })
}

fn entry(key: String, record: Record) -> v1::StorageEntry {
    let Record { version, expires_unix_ms, tombstone: _, value } = record;
    v1::StorageEntry { key, value, version: Some(version.into()), expires_unix_ms }
}

fn check_key(key: &str) -> Result<(), Failure> {
    if key.is_empty() {
        return Err(Failure::invalid("a key has at least one byte"));
    }
    check_prefix(key)
}

fn check_prefix(key: &str) -> Result<(), Failure> {
    if key.len() > limits::STORAGE_KEY_BYTES_MAX {
        let max = limits::STORAGE_KEY_BYTES_MAX;
        return Err(Failure::limit("STORAGE_KEY_BYTES_MAX", max, key.len()));
    }
    Ok(())
}

fn check_value(value: &[u8]) -> Result<(), Failure> {
    if value.len() > limits::STORAGE_VALUE_BYTES_MAX {
        let max = limits::STORAGE_VALUE_BYTES_MAX;
        return Err(Failure::limit("STORAGE_VALUE_BYTES_MAX", max, value.len()));
    }
    Ok(())
}

fn check_ttl(ttl_ms: u64) -> Result<Option<Duration>, Failure> {
    let ttl = Duration::from_millis(ttl_ms);
    if ttl > limits::STORAGE_TTL_MAX {
        let (max, found) = (limits::STORAGE_TTL_MAX.as_millis(), ttl_ms);
        return Err(Failure::limit("STORAGE_TTL_MAX", format!("{max} ms"), format!("{found} ms")));
    }
    Ok((ttl_ms > 0).then_some(ttl))
}

fn unknown_quorum(quorum: i32) -> Failure {
    Failure::new(ErrorCode::InvalidArgument, format!("{quorum} is no quorum: ask for one, majority or all"))
}

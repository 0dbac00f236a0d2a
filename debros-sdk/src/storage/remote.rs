//! The storage of a cluster. Builds requests and reads answers; where they go is `routes`, how often is
//! `call`, what changes is `watch`.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use debros_proto::{limits, v1};
use v1::storage_request::Operation;
use v1::storage_response::Result as Answered;

use crate::call::{Failed, Plan, Target};
use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::storage::checked;
use crate::storage::watch::{self, Watch};
use crate::storage::{
    Cursor, DeleteOptions, Entry, GetOptions, ListOptions, Page, PutOptions, Quorum, Storage, Version,
    WatchOptions,
};

/// The key-value storage of a client's namespace. Clones are cheap; all storages of one client share
/// their streams, and see each other's writes.
#[derive(Clone)]
pub struct RemoteStorage {
    client: Client,
}

impl RemoteStorage {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Sends an operation to a replica of the key, or anywhere when it concerns no single key.
    async fn operate(
        &self,
        key: Option<&str>,
        quorum: Quorum,
        timeout: Option<Duration>,
        operation: Operation,
    ) -> Result<Answered, Failed> {
        let shared = self.client.shared();
        let routes = shared.storage();
        let timeout = timeout.map(|timeout| timeout.min(limits::REQUEST_TIMEOUT_MAX));
        let deadline = shared.deadline(timeout);
        let peers = match key {
            Some(key) => routes.replicas(shared, key, deadline).await,
            None => Vec::new(),
        };
        let hedged = matches!(operation, Operation::Get(_) | Operation::List(_));
        let target = Target::Replicas { peers, hedged };
        let plan = Plan { target, deadline, repeatable: true };
        let request = v1::StorageRequest {
            header: None,
            quorum: wire_quorum(quorum) as i32,
            seen_clock: routes.clock(),
            operation: Some(operation),
        };
        let answer = shared.call_peers(&plan, &request, |peer, request| routes.ask(peer, request)).await?;
        routes.saw_clock(answer.value.clock);
        if answer.rough {
            shared.ask_for_refresh();
        }
        answer.value.result.ok_or_else(Failed::incomprehensible)
    }

    async fn write(
        &self,
        key: &str,
        quorum: Quorum,
        timeout: Option<Duration>,
        operation: Operation,
    ) -> Result<Version, Error> {
        match self.operate(Some(key), quorum, timeout, operation).await.map_err(Failed::into_write_error)? {
            Answered::Written(v1::StorageWritten { version: Some(version) }) => Ok(version.into()),
            _ => Err(Failed::incomprehensible().into_write_error()),
        }
    }
}

impl fmt::Debug for RemoteStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteStorage").field("namespace", &self.namespace()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Storage for RemoteStorage {
    fn namespace(&self) -> &str {
        self.client.namespace()
    }

    async fn put_with(&self, key: &str, value: Bytes, options: PutOptions) -> Result<Version, Error> {
        self.client.shared().check_open()?;
        checked::key(key)?;
        checked::value(&value)?;
        let ttl_ms = checked::ttl_ms(options.ttl)?;
        let put = v1::StoragePut { key: key.to_owned(), value, ttl_ms };
        self.write(key, options.quorum, options.timeout, Operation::Put(put)).await
    }

    async fn get_with(&self, key: &str, options: GetOptions) -> Result<Option<Entry>, Error> {
        self.client.shared().check_open()?;
        checked::key(key)?;
        let get = v1::StorageGet { key: key.to_owned(), without_value: options.without_value };
        let answer = self.operate(Some(key), options.quorum, options.timeout, Operation::Get(get)).await;
        match answer.map_err(Failed::into_read_error)? {
            Answered::Found(v1::StorageFound { entry }) => {
                // The key that was asked for need not travel back.
                Ok(entry.map(|entry| Entry { key: key.to_owned(), ..entry.into() }))
            }
            _ => Err(Failed::incomprehensible().into_read_error()),
        }
    }

    async fn delete_with(&self, key: &str, options: DeleteOptions) -> Result<Version, Error> {
        self.client.shared().check_open()?;
        checked::key(key)?;
        let delete = v1::StorageDelete { key: key.to_owned() };
        self.write(key, options.quorum, options.timeout, Operation::Delete(delete)).await
    }

    async fn list_with(&self, prefix: &str, options: ListOptions) -> Result<Page, Error> {
        self.client.shared().check_open()?;
        checked::prefix(prefix)?;
        let after = options.after.map(|Cursor(after)| after).unwrap_or_default();
        checked::prefix(&after)?;
        let list = v1::StorageList {
            prefix: prefix.to_owned(),
            after: after.clone(),
            limit: checked::page_limit(options.limit)?,
            with_values: options.values,
        };
        let answer = self.operate(None, options.quorum, options.timeout, Operation::List(list)).await;
        match answer.map_err(Failed::into_read_error)? {
            Answered::Page(page) => read_page(page, &after),
            _ => Err(Failed::incomprehensible().into_read_error()),
        }
    }

    async fn watch(&self, prefix: &str, options: WatchOptions) -> Result<Watch, Error> {
        self.client.shared().check_open()?;
        checked::prefix(prefix)?;
        options.resume.as_ref().map_or(Ok(()), checked::resume)?;
        watch::follow(self.client.clone(), prefix.to_owned(), options.resume).await
    }
}

fn read_page(page: v1::StoragePage, after: &str) -> Result<Page, Error> {
    let v1::StoragePage { entries, more, scanned_to } = page;
    // Following such a cursor would never end.
    if more && scanned_to.as_str() <= after {
        return Err(Error::new(ErrorKind::Internal, "a node sent a page that leads nowhere; see its log"));
    }
    let cursor = more.then_some(Cursor(scanned_to));
    Ok(Page { entries: entries.into_iter().map(Entry::from).collect(), cursor })
}

fn wire_quorum(quorum: Quorum) -> v1::Quorum {
    match quorum {
        Quorum::One => v1::Quorum::One,
        Quorum::Majority => v1::Quorum::Majority,
        Quorum::All => v1::Quorum::All,
    }
}

impl From<v1::Version> for Version {
    fn from(version: v1::Version) -> Self {
        let v1::Version { clock, node } = version;
        Self { clock, node }
    }
}

impl From<v1::StorageEntry> for Entry {
    fn from(entry: v1::StorageEntry) -> Self {
        let v1::StorageEntry { key, value, version, expires_unix_ms } = entry;
        let version = version.unwrap_or_default().into();
        Self { key, value, version, expires_at: checked::expires_at(expires_unix_ms) }
    }
}

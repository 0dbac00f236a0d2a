//! The key-value storage as an application sees it: the trait, its options and its answers. Says
//! what is promised; who keeps the promise is `remote` (a cluster) and `memory` (this process).
//!
//! Invariant: a key that is not there is `None` or absent from a list, never an error.

pub(crate) mod blobs;
pub(crate) mod checked;
pub(crate) mod encrypted;
pub(crate) mod extension;
pub(crate) mod keyring;
pub(crate) mod remote;
pub(crate) mod routes;
pub(crate) mod watch;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use debros_proto::limits;
use futures::stream::StreamExt;

use crate::error::Error;
use crate::storage::watch::Watch;

/// A value lives this long at most, unless it stays.
pub const STORAGE_TTL_MAX: Duration = limits::STORAGE_TTL_MAX;
/// Keys of one page of a listing.
pub const STORAGE_PAGE_KEYS_MAX: u32 = limits::STORAGE_PAGE_KEYS_MAX;

/// Operations of one batch under way at a time: as many as one message of a stream carries.
const BATCH_UNDER_WAY_MAX: usize = limits::CALLS_PER_FRAME_MAX;

/// How many replicas must have answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Quorum {
    /// One: fastest, and without any guarantee that a later read sees a write.
    One,
    /// More than half. A read sees every write that was acknowledged before it.
    #[default]
    Majority,
    /// All of them: fails while any is away.
    All,
}

/// When a value was written, and by whom. The greater one wins, on every replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// A hybrid logical clock: milliseconds since the Unix epoch in the upper 48 bits, a counter below.
    pub clock: u64,
    /// The node that gave the version.
    pub node: u64,
}

/// A stored value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// The value; empty where it was not asked for.
    pub value: Bytes,
    /// Its version.
    pub version: Version,
    /// When it goes by itself; `None` when it stays.
    pub expires_at: Option<SystemTime>,
}

/// Options of one put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// The value goes after this long; `None` when it stays.
    pub ttl: Option<Duration>,
    /// How many replicas must have it on disk before the put is acknowledged.
    pub quorum: Quorum,
    /// Overrides the client's operation timeout.
    pub timeout: Option<Duration>,
}

/// Options of one get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GetOptions {
    /// Leave the value out: whether it is there, its version and when it goes.
    pub without_value: bool,
    /// How many replicas must have answered.
    pub quorum: Quorum,
    /// Overrides the client's operation timeout.
    pub timeout: Option<Duration>,
}

/// Options of one delete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// How many replicas must know of it on disk before the delete is acknowledged.
    pub quorum: Quorum,
    /// Overrides the client's operation timeout.
    pub timeout: Option<Duration>,
}

/// Options of one page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// Keys of the page at most, up to `STORAGE_PAGE_KEYS_MAX`; a thousand unless given. A page of large
    /// values has fewer.
    pub limit: Option<u32>,
    /// Go on after this.
    pub after: Option<Cursor>,
    /// Give the values, too.
    pub values: bool,
    /// How many replicas of each part must have answered.
    pub quorum: Quorum,
    /// Overrides the client's operation timeout.
    pub timeout: Option<Duration>,
}

/// One page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The entries in the order of their keys' bytes. May be empty although there are more.
    pub entries: Vec<Entry>,
    /// Where the next page begins; `None` at the end.
    pub cursor: Option<Cursor>,
}

/// A place in a listing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cursor(String);

impl Cursor {
    /// Behind this key, whether it exists or not.
    pub fn after(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    /// The key behind which the next page begins.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One operation of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorageOperation {
    /// [`Storage::put_with`].
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Bytes,
        /// The options.
        options: PutOptions,
    },
    /// [`Storage::get_with`].
    Get {
        /// The key.
        key: String,
        /// The options.
        options: GetOptions,
    },
    /// [`Storage::delete_with`].
    Delete {
        /// The key.
        key: String,
        /// The options.
        options: DeleteOptions,
    },
}

/// What one operation of a batch came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorageOutcome {
    /// A put or a delete.
    Written(Version),
    /// A get.
    Found(Option<Entry>),
}

/// Options of a watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchOptions {
    /// Go on where an earlier watch ended, [`Watch::resume`]; from now on unless given.
    pub resume: Option<ResumeToken>,
}

/// Where a watch stands, for another one to go on from there. Opaque; may be kept on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeToken(Bytes);

impl ResumeToken {
    /// A token that was kept.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// The token, to keep.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

/// Something that happened to the watched keys.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WatchEvent {
    /// A value was put.
    Put(Entry),
    /// A key was deleted, whether there was a value or not, or its value expired.
    Deleted {
        /// The key.
        key: String,
        /// The version of the deletion, or of the value that expired.
        version: Version,
    },
    /// Changes were missed: list again. Changes from now on are told.
    Lagged,
    /// Everything from before the watch began, or since its resume token, was told.
    CaughtUp,
}

/// Keys and values, kept by the nodes that the key's hash names.
///
/// Keys are text of 1 to `STORAGE_KEY_BYTES_MAX` bytes, values are bytes, up to
/// `STORAGE_VALUE_BYTES_MAX`; larger ones are [`Blobs`](crate::Blobs). Each operation is on its own: the
/// last writer wins, and there is no transaction over two keys. What needs one is a
/// [`Database`](crate::Database).
///
/// With [`Quorum::Majority`], the default, a read sees every write acknowledged before it, and one
/// client's reads never go back in time.
///
/// A put or delete whose node died or said that it cannot serve is sent again, within its timeout, to
/// another node. Each sending is a write of its own: where the connection broke and the node lived, the
/// first sending may still take effect, until the timeout has passed, over what was put to the same key
/// meanwhile. When no sending was answered, [`Error::maybe_applied`] says so.
#[async_trait]
pub trait Storage: Send + Sync {
    /// Whose keys these are.
    fn namespace(&self) -> &str;

    /// Puts a value under a key, over whatever was there.
    ///
    /// # Errors
    /// `InvalidArgument` for an empty key or a time to live of zero, `LimitExceeded` for a key, value or
    /// time to live that is too large; whatever an unavailable cluster gives.
    async fn put_with(&self, key: &str, value: Bytes, options: PutOptions) -> Result<Version, Error>;

    /// The value under a key; `None` when there is none.
    ///
    /// # Errors
    /// As [`Storage::put_with`].
    async fn get_with(&self, key: &str, options: GetOptions) -> Result<Option<Entry>, Error>;

    /// Deletes a key. Deleting what is not there succeeds, too.
    ///
    /// # Errors
    /// As [`Storage::put_with`].
    async fn delete_with(&self, key: &str, options: DeleteOptions) -> Result<Version, Error>;

    /// One page of the keys that begin with `prefix`, in the order of their bytes. The prefix is literal,
    /// an empty one is all keys.
    ///
    /// # Errors
    /// `InvalidArgument` for a limit of zero, `LimitExceeded` for one that is too large; whatever an
    /// unavailable cluster gives.
    async fn list_with(&self, prefix: &str, options: ListOptions) -> Result<Page, Error>;

    /// Tells of changes to the keys that begin with `prefix`, from when this returns. A change may be told
    /// more than once; of several changes to a key in quick succession only the last may be told.
    ///
    /// # Errors
    /// `LimitExceeded` for a prefix that is too long, `InvalidArgument` for a token that is none; whatever
    /// an unavailable cluster gives.
    async fn watch(&self, prefix: &str, options: WatchOptions) -> Result<Watch, Error>;

    /// [`Storage::put_with`] as usual.
    async fn put(&self, key: &str, value: Bytes) -> Result<Version, Error> {
        self.put_with(key, value, PutOptions::default()).await
    }

    /// The value under a key; `None` when there is none.
    async fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        Ok(self.get_with(key, GetOptions::default()).await?.map(|entry| entry.value))
    }

    /// [`Storage::delete_with`] as usual.
    async fn delete(&self, key: &str) -> Result<Version, Error> {
        self.delete_with(key, DeleteOptions::default()).await
    }

    /// Whether there is a value under a key.
    async fn exists(&self, key: &str) -> Result<bool, Error> {
        let options = GetOptions { without_value: true, ..GetOptions::default() };
        Ok(self.get_with(key, options).await?.is_some())
    }

    /// The first `limit` keys that begin with `prefix`, in the order of their bytes.
    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<String>, Error> {
        let mut keys = Vec::new();
        let mut after = None;
        while keys.len() < limit {
            let left = u32::try_from(limit - keys.len()).unwrap_or(u32::MAX);
            let limit = Some(left.min(limits::STORAGE_PAGE_KEYS_MAX));
            let page = self.list_with(prefix, ListOptions { limit, after, ..ListOptions::default() }).await?;
            keys.extend(page.entries.into_iter().map(|entry| entry.key));
            match page.cursor {
                Some(cursor) => after = Some(cursor),
                None => break,
            }
        }
        Ok(keys)
    }

    /// Carries out many operations at once, each for itself: not all or nothing, in no order among
    /// themselves. Gives each one's outcome, in the order of the operations.
    async fn batch(&self, operations: Vec<StorageOperation>) -> Vec<Result<StorageOutcome, Error>> {
        let each = operations.into_iter().map(|operation| carry_out(self, operation));
        futures::stream::iter(each).buffered(BATCH_UNDER_WAY_MAX).collect().await
    }
}

async fn carry_out<S: Storage + ?Sized>(
    storage: &S,
    operation: StorageOperation,
) -> Result<StorageOutcome, Error> {
    match operation {
        StorageOperation::Put { key, value, options } => {
            storage.put_with(&key, value, options).await.map(StorageOutcome::Written)
        }
        StorageOperation::Get { key, options } => {
            storage.get_with(&key, options).await.map(StorageOutcome::Found)
        }
        StorageOperation::Delete { key, options } => {
            storage.delete_with(&key, options).await.map(StorageOutcome::Written)
        }
    }
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        #[async_trait]
        impl<S: Storage + ?Sized> Storage for $pointer {
            fn namespace(&self) -> &str {
                (**self).namespace()
            }
            async fn put_with(&self, key: &str, value: Bytes, options: PutOptions) -> Result<Version, Error> {
                (**self).put_with(key, value, options).await
            }
            async fn get_with(&self, key: &str, options: GetOptions) -> Result<Option<Entry>, Error> {
                (**self).get_with(key, options).await
            }
            async fn delete_with(&self, key: &str, options: DeleteOptions) -> Result<Version, Error> {
                (**self).delete_with(key, options).await
            }
            async fn list_with(&self, prefix: &str, options: ListOptions) -> Result<Page, Error> {
                (**self).list_with(prefix, options).await
            }
            async fn watch(&self, prefix: &str, options: WatchOptions) -> Result<Watch, Error> {
                (**self).watch(prefix, options).await
            }
        }
    )*};
}

forward!(&S, Arc<S>, Box<S>);

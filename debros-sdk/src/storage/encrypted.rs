//! A storage whose values are encrypted before they leave the application. Keys, sizes, versions and
//! times stay readable: a listing by prefix needs the keys.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Error;
use crate::storage::checked;
use crate::storage::keyring::Keyring;
use crate::storage::watch::Watch;
use crate::storage::{
    DeleteOptions, Entry, GetOptions, ListOptions, Page, PutOptions, Storage, Version, WatchEvent,
    WatchOptions,
};

/// A [`Storage`] with encrypted values, from [`StorageExt::encrypted`](crate::StorageExt::encrypted).
///
/// A value that does not open is an error that names its key: `UnknownKey` when the keyring lacks the key
/// it was encrypted with, `Corrupt` when it was changed, copied from another storage key, or never
/// encrypted. In a watch such an error stands in the place of the event, and the watch goes on. An older
/// value put back under its own key opens: that takes the power to write, and shows in the version.
#[derive(Debug)]
pub struct EncryptedStorage<S> {
    storage: S,
    keys: Arc<Keyring>,
}

/// How far [`EncryptedStorage::rotate`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Values looked at.
    pub seen: u64,
    /// Values that were encrypted anew.
    pub rotated: u64,
}

impl<S: Storage> EncryptedStorage<S> {
    pub(crate) fn new(storage: S, keys: Keyring) -> Self {
        Self { storage, keys: Arc::new(keys) }
    }

    /// Encrypts with the current key what an older one encrypted, for all keys that begin with `prefix`. May be
    /// stopped and run again. `progress` is told after each page.
    ///
    /// The older keys can go once nothing of theirs is left: after the empty prefix, or, where only some keys
    /// are encrypted, after their prefixes and, if there are blobs, [`BLOB_CHUNKS_PREFIX`](crate::BLOB_CHUNKS_PREFIX),
    /// under which the chunks of all blobs lie.
    ///
    /// There is no compare-and-set: a put or delete of somebody else that falls between reading a value
    /// and putting it again is undone. Rotate while nobody writes, or write under other keys meanwhile.
    ///
    /// # Errors
    /// The first value that does not open; whatever an unavailable cluster gives.
    pub async fn rotate(
        &self,
        prefix: &str,
        mut progress: impl FnMut(Rotation) + Send,
    ) -> Result<Rotation, Error> {
        let mut rotation = Rotation::default();
        let mut options = ListOptions { values: true, ..ListOptions::default() };
        loop {
            let page = self.storage.list_with(prefix, options.clone()).await?;
            for entry in page.entries {
                rotation.seen += 1;
                if !self.keys.is_current(&entry.key, &entry.value)? && self.rotate_one(&entry.key).await? {
                    rotation.rotated += 1;
                }
            }
            progress(rotation);
            match page.cursor {
                Some(cursor) => options.after = Some(cursor),
                None => return Ok(rotation),
            }
        }
    }

    /// Reads again first: the page may be old by now.
    async fn rotate_one(&self, key: &str) -> Result<bool, Error> {
        let Some(entry) = self.storage.get_with(key, GetOptions::default()).await? else {
            return Ok(false);
        };
        if self.keys.is_current(key, &entry.value)? {
            return Ok(false);
        }
        let ttl = entry.expires_at.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        if ttl == Some(Duration::ZERO) {
            return Ok(false);
        }
        let value = self.keys.open(self.namespace(), key, &entry.value)?;
        self.put_with(key, value, PutOptions { ttl, ..PutOptions::default() }).await?;
        Ok(true)
    }

    fn open(&self, entry: Entry) -> Result<Entry, Error> {
        let value = self.keys.open(self.namespace(), &entry.key, &entry.value)?;
        Ok(Entry { value, ..entry })
    }
}

#[async_trait]
impl<S: Storage> Storage for EncryptedStorage<S> {
    fn namespace(&self) -> &str {
        self.storage.namespace()
    }

    async fn put_with(&self, key: &str, value: Bytes, options: PutOptions) -> Result<Version, Error> {
        checked::key(key)?;
        let sealed = self.keys.seal(self.namespace(), key, &value)?;
        self.storage.put_with(key, sealed, options).await
    }

    async fn get_with(&self, key: &str, options: GetOptions) -> Result<Option<Entry>, Error> {
        let entry = self.storage.get_with(key, options).await?;
        if options.without_value { Ok(entry) } else { entry.map(|entry| self.open(entry)).transpose() }
    }

    async fn delete_with(&self, key: &str, options: DeleteOptions) -> Result<Version, Error> {
        self.storage.delete_with(key, options).await
    }

    async fn list_with(&self, prefix: &str, options: ListOptions) -> Result<Page, Error> {
        let values = options.values;
        let page = self.storage.list_with(prefix, options).await?;
        if !values {
            return Ok(page);
        }
        let entries = page.entries.into_iter().map(|entry| self.open(entry)).collect::<Result<_, _>>()?;
        Ok(Page { entries, cursor: page.cursor })
    }

    async fn watch(&self, prefix: &str, options: WatchOptions) -> Result<Watch, Error> {
        let watch = self.storage.watch(prefix, options).await?;
        let (keys, namespace) = (Arc::clone(&self.keys), self.namespace().to_owned());
        Ok(watch.try_map(move |event| match event {
            WatchEvent::Put(entry) => {
                let value = keys.open(&namespace, &entry.key, &entry.value)?;
                Ok(WatchEvent::Put(Entry { value, ..entry }))
            }
            other => Ok(other),
        }))
    }
}

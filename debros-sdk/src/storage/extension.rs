//! What every storage can do besides: JSON values, whole listings, encryption, blobs. Built on the
//! trait alone.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind};
use crate::storage::blobs::Blobs;
use crate::storage::encrypted::EncryptedStorage;
use crate::storage::keyring::Keyring;
use crate::storage::{Entry, ListOptions, PutOptions, Storage, Version};

/// More that every [`Storage`] can do.
#[async_trait]
pub trait StorageExt: Storage {
    /// Puts a value as JSON.
    ///
    /// # Errors
    /// `InvalidArgument` when the value cannot be JSON; else as [`Storage::put_with`].
    async fn put_json<T: Serialize + Sync + ?Sized>(&self, key: &str, value: &T) -> Result<Version, Error> {
        self.put_json_with(key, value, PutOptions::default()).await
    }

    /// Puts a value as JSON.
    ///
    /// # Errors
    /// `InvalidArgument` when the value cannot be JSON; else as [`Storage::put_with`].
    async fn put_json_with<T: Serialize + Sync + ?Sized>(
        &self,
        key: &str,
        value: &T,
        options: PutOptions,
    ) -> Result<Version, Error> {
        let json = serde_json::to_vec(value).map_err(|error| {
            Error::invalid(format!("the value cannot be written as JSON: {error}")).with_source(error)
        })?;
        self.put_with(key, Bytes::from(json), options).await
    }

    /// Gets a value that was put as JSON; `None` when there is none.
    ///
    /// # Errors
    /// `Decode` when the value is of another shape; else as [`Storage::get_with`].
    async fn get_json<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key).await? else { return Ok(None) };
        let decoded = serde_json::from_slice(&value).map_err(|error| {
            let message = format!("the value under {key:?} is not JSON of that shape: {error}");
            Error::new(ErrorKind::Decode, message).with_source(error)
        })?;
        Ok(Some(decoded))
    }

    /// All entries whose keys begin with `prefix`, page after page; `options.limit` is that of a page. What
    /// is put or deleted meanwhile may be listed or not. An error ends the stream.
    fn list_all<'s>(&'s self, prefix: &str, options: ListOptions) -> BoxStream<'s, Result<Entry, Error>> {
        let prefix = prefix.to_owned();
        let pages = stream::try_unfold(Some(options), move |options| {
            let prefix = prefix.clone();
            async move {
                let Some(options) = options else { return Ok::<_, Error>(None) };
                let page = self.list_with(&prefix, options.clone()).await?;
                let next = page.cursor.map(|cursor| ListOptions { after: Some(cursor), ..options });
                Ok(Some((page.entries, next)))
            }
        });
        let each = pages.flat_map(|page| match page {
            Ok(entries) => stream::iter(entries.into_iter().map(Ok).collect::<Vec<_>>()),
            Err(error) => stream::iter(vec![Err(error)]),
        });
        each.boxed()
    }

    /// The same storage with values that nobody without the keys can read or change unnoticed.
    fn encrypted(self, keys: Keyring) -> EncryptedStorage<Self>
    where
        Self: Sized,
    {
        EncryptedStorage::new(self, keys)
    }

    /// Values of any size, in chunks.
    fn blobs(self) -> Blobs<Self>
    where
        Self: Sized,
    {
        Blobs::new(self)
    }
}

impl<S: Storage + ?Sized> StorageExt for S {}

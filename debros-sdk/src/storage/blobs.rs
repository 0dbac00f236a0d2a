//! Values of any size: chunks under keys of their own, and under the blob's key a manifest that says
//! what belongs to it. A reader never sees half a blob: the manifest is written after all chunks.
//!
//! ```text
//! KEY                      {"debros_blob": 1, "id", "bytes", "chunk_bytes", "sha256"}
//! .blobs/ID/00000000 ...   the chunks, in order
//! ```
//!
//! Invariant: a chunk belongs to one put of one blob and is never changed; each put has its own id.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::{self, BoxStream, FuturesUnordered, Stream, StreamExt};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::error::{Error, ErrorKind};
use crate::storage::checked;
use crate::storage::{DeleteOptions, Storage, StorageOperation};

/// Bytes of a chunk: some of them are under way at a time on a stream that other operations share.
pub const BLOB_CHUNK_BYTES: usize = 512 << 10;
/// Where chunks lie. Keys that begin so are not for other use.
pub const BLOB_CHUNKS_PREFIX: &str = ".blobs/";
/// Chunks under way at a time, in either direction: this much of a blob is in memory.
const CHUNKS_UNDER_WAY: usize = 4;
/// Chunks deleted at a time.
const DELETES_AT_ONCE: u64 = 256;

/// The only format there is.
const FORMAT: u32 = 1;

/// Values of any size in a storage, from [`StorageExt::blobs`](crate::StorageExt::blobs).
#[derive(Clone, Debug)]
pub struct Blobs<S> {
    storage: S,
}

/// What is known of a blob without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its size.
    pub bytes: u64,
    /// The SHA-256 of all of it.
    pub sha256: [u8; 32],
    /// Chunks it is kept in.
    pub chunks: u64,
}

/// A blob that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobPut {
    /// What was put.
    pub info: BlobInfo,
    /// Chunks of the blob that was there before which could not be deleted. They take up space and do no
    /// other harm.
    pub orphans: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Manifest {
    debros_blob: u32,
    id: String,
    bytes: u64,
    chunk_bytes: u64,
    sha256: String,
}

impl Manifest {
    /// `None` when this is no manifest.
    fn read(value: &[u8]) -> Option<Self> {
        let manifest: Self = serde_json::from_slice(value).ok()?;
        let well_formed = manifest.debros_blob == FORMAT && manifest.chunk_bytes > 0;
        (well_formed && from_hex(&manifest.sha256).is_some()).then_some(manifest)
    }

    fn info(&self) -> BlobInfo {
        let sha256 = from_hex(&self.sha256).expect("a manifest is read with a good hash");
        BlobInfo { bytes: self.bytes, sha256, chunks: self.bytes.div_ceil(self.chunk_bytes) }
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * place..2 * place + 2], 16).ok()?;
    }
    Some(bytes)
}

fn chunk_key(id: &str, number: u64) -> String {
    format!("{BLOB_CHUNKS_PREFIX}{id}/{number:08}")
}

/// A blob's key; not one of its chunks'.
fn check_key(key: &str) -> Result<(), Error> {
    checked::key(key)?;
    if key.starts_with(BLOB_CHUNKS_PREFIX) {
        return Err(Error::invalid(format!("keys that begin with {BLOB_CHUNKS_PREFIX} are for chunks")));
    }
    Ok(())
}

fn corrupt(message: String) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}

impl<S: Storage> Blobs<S> {
    pub(crate) fn new(storage: S) -> Self {
        Self { storage }
    }

    /// Stores all that `reader` gives, over whatever was under the key. `progress` is told how many bytes
    /// are stored. When two put the same key at a time, one wins, and the other's chunks stay behind.
    ///
    /// # Errors
    /// `Io` when the reader fails, and as [`Storage::put_with`]. The key then has what it had, unless
    /// [`Error::maybe_applied`]; chunks stay behind only where they cannot be deleted.
    pub async fn put<R: AsyncRead + Unpin + Send>(
        &self,
        key: &str,
        mut reader: R,
        mut progress: impl FnMut(u64) + Send,
    ) -> Result<BlobPut, Error> {
        check_key(key)?;
        let before = self.storage.get(key).await?.and_then(|value| Manifest::read(&value));
        let id = to_hex(&rand::random::<[u8; 16]>());
        let mut uploaded = 0;
        let uploading = self.upload(&id, &mut reader, &mut uploaded, &mut progress);
        let (bytes, sha256) = match uploading.await {
            Ok(done) => done,
            Err(error) => {
                self.delete_chunks(&id, uploaded).await;
                return Err(error);
            }
        };
        let chunk_bytes = BLOB_CHUNK_BYTES as u64;
        let sha256 = to_hex(&sha256);
        let manifest = Manifest { debros_blob: FORMAT, id, bytes, chunk_bytes, sha256 };
        let json = serde_json::to_vec(&manifest).expect("text and numbers can be JSON");
        if let Err(error) = self.storage.put(key, Bytes::from(json)).await {
            // Where the manifest may be there, so must be what it names.
            if !error.maybe_applied() {
                self.delete_chunks(&manifest.id, uploaded).await;
            }
            return Err(error);
        }
        let orphans = match before {
            Some(before) => self.delete_chunks(&before.id, before.info().chunks).await,
            None => 0,
        };
        Ok(BlobPut { info: manifest.info(), orphans })
    }

    /// Gives the size and the hash; counts in `started` the chunks that may be there.
    async fn upload<R: AsyncRead + Unpin + Send>(
        &self,
        id: &str,
        reader: &mut R,
        started: &mut u64,
        progress: &mut (impl FnMut(u64) + Send),
    ) -> Result<(u64, [u8; 32]), Error> {
        let mut under_way = FuturesUnordered::new();
        let mut hasher = Sha256::new();
        let (mut bytes, mut stored) = (0, 0);
        loop {
            let chunk = read_chunk(reader).await?;
            let at_end = chunk.is_empty();
            if !at_end {
                hasher.update(&chunk);
                bytes += chunk.len() as u64;
                under_way.push(self.put_chunk(chunk_key(id, *started), chunk));
                *started += 1;
            }
            while under_way.len() >= CHUNKS_UNDER_WAY || (at_end && !under_way.is_empty()) {
                if let Some(done) = under_way.next().await {
                    stored += done?;
                    progress(stored);
                }
            }
            if at_end {
                return Ok((bytes, hasher.finalize().into()));
            }
        }
    }

    async fn put_chunk(&self, key: String, chunk: Bytes) -> Result<u64, Error> {
        let bytes = chunk.len() as u64;
        self.storage.put(&key, chunk).await?;
        Ok(bytes)
    }

    /// Gives how many could not be deleted.
    async fn delete_chunks(&self, id: &str, chunks: u64) -> u64 {
        let mut left = 0;
        for first in (0..chunks).step_by(DELETES_AT_ONCE as usize) {
            let numbers = first..chunks.min(first + DELETES_AT_ONCE);
            let deletes = numbers.map(|number| StorageOperation::Delete {
                key: chunk_key(id, number),
                options: DeleteOptions::default(),
            });
            let outcomes = self.storage.batch(deletes.collect()).await;
            left += outcomes.iter().filter(|outcome| outcome.is_err()).count() as u64;
        }
        left
    }

    async fn manifest(&self, key: &str) -> Result<Option<Manifest>, Error> {
        check_key(key)?;
        let Some(value) = self.storage.get(key).await? else { return Ok(None) };
        let manifest = Manifest::read(&value);
        manifest.map(Some).ok_or_else(|| corrupt(format!("the value under {key:?} is no blob")))
    }

    /// Size and hash of a blob; `None` when there is none.
    ///
    /// # Errors
    /// `Corrupt` when something else is under the key; else as [`Storage::get_with`].
    pub async fn info(&self, key: &str) -> Result<Option<BlobInfo>, Error> {
        Ok(self.manifest(key).await?.map(|manifest| manifest.info()))
    }

    /// A blob, to be read chunk by chunk; `None` when there is none. `progress` is told how many bytes were
    /// read.
    ///
    /// # Errors
    /// As [`Blobs::info`]; those of chunks come from the stream.
    pub async fn get<'s>(
        &'s self,
        key: &str,
        progress: impl FnMut(u64) + Send + 's,
    ) -> Result<Option<Blob<'s>>, Error> {
        let Some(manifest) = self.manifest(key).await? else { return Ok(None) };
        let info = manifest.info();
        let chunks = (0..info.chunks).map(move |number| {
            let left = manifest.bytes - number * manifest.chunk_bytes;
            self.get_chunk(chunk_key(&manifest.id, number), left.min(manifest.chunk_bytes))
        });
        let chunks = stream::iter(chunks).buffered(CHUNKS_UNDER_WAY).boxed();
        Ok(Some(Blob { info, chunks, hasher: Sha256::new(), read: 0, progress: Box::new(progress) }))
    }

    async fn get_chunk(&self, key: String, bytes: u64) -> Result<Bytes, Error> {
        match self.storage.get(&key).await? {
            Some(chunk) if chunk.len() as u64 == bytes => Ok(chunk),
            Some(_) => Err(corrupt(format!("the chunk {key} has another size than it had"))),
            None => {
                let why = "the blob was put anew or deleted meanwhile, or is damaged";
                Err(corrupt(format!("the chunk {key} is missing: {why}; read it again")))
            }
        }
    }

    /// Deletes a blob; says whether there was one. Whoever reads it at this moment gets an error.
    ///
    /// # Errors
    /// As [`Blobs::info`]. The blob is then broken but its key still there: delete it again.
    pub async fn delete(&self, key: &str) -> Result<bool, Error> {
        let Some(manifest) = self.manifest(key).await? else { return Ok(false) };
        // The manifest last: it is what leads to the chunks.
        let left = self.delete_chunks(&manifest.id, manifest.info().chunks).await;
        if left > 0 {
            let message = format!("{left} chunks of {key:?} could not be deleted; delete it again");
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        self.storage.delete(key).await?;
        Ok(true)
    }
}

async fn read_chunk(reader: &mut (impl AsyncRead + Unpin + Send)) -> Result<Bytes, Error> {
    let mut chunk = Vec::with_capacity(BLOB_CHUNK_BYTES);
    let read = reader.take(BLOB_CHUNK_BYTES as u64).read_to_end(&mut chunk).await;
    read.map_err(|error| {
        Error::new(ErrorKind::Io, format!("what is to be stored cannot be read: {error}")).with_source(error)
    })?;
    Ok(Bytes::from(chunk))
}

/// A blob that is being read: a stream of its chunks. The last one comes only when the hash of the
/// whole is right; what was read before an error is not to be trusted.
#[must_use = "a blob is read by polling it"]
pub struct Blob<'s> {
    info: BlobInfo,
    chunks: BoxStream<'s, Result<Bytes, Error>>,
    hasher: Sha256,
    read: u64,
    progress: Box<dyn FnMut(u64) + Send + 's>,
}

impl Blob<'_> {
    /// What is known of it before it is read.
    pub fn info(&self) -> BlobInfo {
        self.info
    }

    /// The next chunk; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        StreamExt::next(self).await
    }

    /// Takes in a chunk, the last one only when the whole is right.
    fn accept(&mut self, chunk: Bytes) -> Result<Bytes, Error> {
        self.hasher.update(&chunk);
        self.read += chunk.len() as u64;
        if self.read == self.info.bytes && self.hasher.clone().finalize()[..] != self.info.sha256 {
            return Err(corrupt("the chunks of the blob are not those that were put".to_owned()));
        }
        (self.progress)(self.read);
        Ok(chunk)
    }
}

impl Stream for Blob<'_> {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let chunk = std::task::ready!(self.chunks.poll_next_unpin(context));
        let taken = chunk.map(|chunk| chunk.and_then(|chunk| self.accept(chunk)));
        if matches!(taken, Some(Err(_))) {
            self.chunks = stream::empty().boxed();
        }
        Poll::Ready(taken)
    }
}

impl std::fmt::Debug for Blob<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blob").field("info", &self.info).field("read", &self.read).finish_non_exhaustive()
    }
}

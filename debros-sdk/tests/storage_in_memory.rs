//! What is built on the trait alone, over a storage in memory: JSON, listings, encryption, blobs.
#![cfg(all(feature = "memory", feature = "conformance"))]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use debros_sdk::memory::MemoryStorage;
use debros_sdk::{
    BLOB_CHUNK_BYTES, BLOB_CHUNKS_PREFIX, Blobs, EncryptionKey, ErrorKind, Keyring, ListOptions, PutOptions,
    Storage, StorageExt, WatchEvent, WatchOptions,
};
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Ship {
    name: String,
    masts: u32,
}

#[tokio::test]
async fn json_goes_in_and_comes_out_in_shape() {
    let storage = MemoryStorage::new();
    let ship = Ship { name: "Fram".into(), masts: 3 };
    storage.put_json("ship", &ship).await.unwrap();
    assert_eq!(storage.get_json::<Ship>("ship").await.unwrap(), Some(ship));
    assert_eq!(storage.get_json::<Ship>("none").await.unwrap(), None);
    let error = storage.get_json::<u32>("ship").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Decode);
    assert!(error.to_string().contains("\"ship\""), "{error}");
}

#[tokio::test]
async fn a_whole_listing_crosses_pages_and_ends_at_an_error() {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    for number in 0..25 {
        storage.put(&format!("a/{number:02}"), Bytes::from("v")).await.unwrap();
    }
    let options = ListOptions { limit: Some(4), values: true, ..ListOptions::default() };
    let entries: Vec<_> = storage.list_all("a/", options).try_collect().await.unwrap();
    assert_eq!(entries.len(), 25);
    assert!(entries.iter().all(|entry| entry.value == "v"));
    let wrong = ListOptions { limit: Some(0), ..ListOptions::default() };
    let told: Vec<_> = storage.list_all("a/", wrong).collect().await;
    assert!(told.len() == 1 && told[0].is_err());
}

#[tokio::test]
async fn an_encrypted_storage_shows_values_to_nobody_else() {
    let below = MemoryStorage::new();
    let key = EncryptionKey::generate();
    let storage = below.clone().encrypted(Keyring::new(1, &key));
    let mut watch = storage.watch("", WatchOptions::default()).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap(), WatchEvent::CaughtUp);
    storage.put("a", Bytes::from("secret words")).await.unwrap();
    assert_eq!(storage.get("a").await.unwrap().unwrap(), "secret words");
    let kept = below.get("a").await.unwrap().unwrap();
    assert!(!kept.windows(6).any(|window| window == b"secret"));
    let Some(Ok(WatchEvent::Put(told))) = watch.next().await else { panic!("a put") };
    assert_eq!(told.value, "secret words");
    let values = ListOptions { values: true, ..ListOptions::default() };
    assert_eq!(storage.list_with("", values.clone()).await.unwrap().entries[0].value, "secret words");
    assert_eq!(storage.list("", 10).await.unwrap(), ["a"]);

    // Copied under another key, it does not open, and a watch goes on behind it.
    below.put("b", kept).await.unwrap();
    assert!(storage.exists("b").await.unwrap());
    assert_eq!(storage.get("b").await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(storage.list_with("", values).await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(watch.next().await.unwrap().unwrap_err().kind(), ErrorKind::Corrupt);
    storage.put("c", Bytes::new()).await.unwrap();
    assert!(matches!(watch.next().await.unwrap().unwrap(), WatchEvent::Put(entry) if entry.key == "c"));

    let stranger = below.encrypted(Keyring::new(2, &key));
    let error = stranger.get("a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownKey, "{error}");
    let too_large = Bytes::from(vec![0; 1 << 20]);
    let error = storage.put("d", too_large).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
}

#[tokio::test(start_paused = true)]
async fn after_a_rotation_the_old_key_can_go() {
    let below = MemoryStorage::new();
    let (old, new) = (EncryptionKey::generate(), EncryptionKey::generate());
    let before = below.clone().encrypted(Keyring::new(1, &old));
    for number in 0..30 {
        before.put(&format!("a/{number:02}"), Bytes::from(vec![number; 200 << 10])).await.unwrap();
    }
    let short = PutOptions { ttl: Some(Duration::from_secs(60)), ..PutOptions::default() };
    before.put_with("a/short", Bytes::from("v"), short).await.unwrap();
    let both = below.clone().encrypted(Keyring::new(2, &new).with_older(1, &old).unwrap());
    both.put("a/new", Bytes::from("new")).await.unwrap();
    let mut told = Vec::new();
    let rotation = both.rotate("a/", |rotation| told.push(rotation)).await.unwrap();
    assert_eq!((rotation.seen, rotation.rotated), (32, 31));
    assert!(told.len() > 1 && told.last() == Some(&rotation), "{told:?}");
    assert_eq!(both.rotate("a/", |_| {}).await.unwrap().rotated, 0);

    let after = below.encrypted(Keyring::new(2, &new));
    assert_eq!(after.get("a/07").await.unwrap().unwrap(), vec![7; 200 << 10]);
    assert_eq!(before.get("a/07").await.unwrap_err().kind(), ErrorKind::UnknownKey);
    assert_eq!(after.get("a/short").await.unwrap().unwrap(), "v");
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!(after.get("a/short").await.unwrap(), None);
}

async fn read(blobs: &Blobs<impl Storage>, key: &str) -> Result<Vec<u8>, debros_sdk::Error> {
    let mut blob = blobs.get(key, |_| {}).await?.expect("a blob");
    let mut read = Vec::new();
    while let Some(chunk) = blob.try_next().await? {
        read.extend_from_slice(&chunk);
    }
    Ok(read)
}

fn bytes_of(length: usize) -> Vec<u8> {
    (0..length).map(|place| (place % 251) as u8).collect()
}

#[tokio::test]
async fn a_blob_of_any_size_comes_back_whole() {
    let below = MemoryStorage::new();
    let blobs = below.clone().blobs();
    for length in [0, 1, BLOB_CHUNK_BYTES - 1, BLOB_CHUNK_BYTES, BLOB_CHUNK_BYTES + 1, 6 * BLOB_CHUNK_BYTES] {
        let content = bytes_of(length);
        let mut told = Vec::new();
        let put = blobs.put("blob", &content[..], |bytes| told.push(bytes)).await.unwrap();
        assert_eq!((put.info.bytes, put.orphans), (length as u64, 0));
        assert_eq!(told.last().copied().unwrap_or_default(), length as u64);
        assert_eq!(blobs.info("blob").await.unwrap(), Some(put.info));
        assert!(read(&blobs, "blob").await.unwrap() == content, "{length}");
        // The chunks of the blob before it are gone.
        let chunks = below.list(BLOB_CHUNKS_PREFIX, 100).await.unwrap();
        assert_eq!(chunks.len() as u64, put.info.chunks);
    }
    assert!(blobs.delete("blob").await.unwrap());
    assert!(!blobs.delete("blob").await.unwrap());
    assert_eq!(below.list("", 10).await.unwrap(), [""; 0]);
    assert!(blobs.get("blob", |_| {}).await.unwrap().is_none());
}

#[tokio::test]
async fn a_damaged_blob_is_noticed() {
    let below = MemoryStorage::new();
    let blobs = below.clone().blobs();
    let content = bytes_of(2 * BLOB_CHUNK_BYTES);
    blobs.put("blob", &content[..], |_| {}).await.unwrap();
    let chunks = below.list(BLOB_CHUNKS_PREFIX, 10).await.unwrap();
    below.put(&chunks[1], Bytes::from(vec![0; BLOB_CHUNK_BYTES])).await.unwrap();
    assert_eq!(read(&blobs, "blob").await.unwrap_err().kind(), ErrorKind::Corrupt);
    below.put(&chunks[0], Bytes::from("short")).await.unwrap();
    assert_eq!(read(&blobs, "blob").await.unwrap_err().kind(), ErrorKind::Corrupt);
    below.delete(&chunks[0]).await.unwrap();
    assert_eq!(read(&blobs, "blob").await.unwrap_err().kind(), ErrorKind::Corrupt);
    below.put("other", Bytes::from("{}")).await.unwrap();
    assert_eq!(blobs.info("other").await.unwrap_err().kind(), ErrorKind::Corrupt);
    let error = blobs.put(".blobs/x", &b""[..], |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn a_reader_that_fails_leaves_nothing_behind() {
    let below = MemoryStorage::new();
    let blobs = below.clone().blobs();
    let content = bytes_of(6 * BLOB_CHUNK_BYTES);
    blobs.put("blob", &content[..10], |_| {}).await.unwrap();
    let breaks =
        futures::stream::iter([Ok(Bytes::from(content)), Err(std::io::Error::other("the disk is gone"))]);
    let error = blobs.put("blob", tokio_util::io::StreamReader::new(breaks), |_| {}).await.unwrap_err();
    assert_eq!((error.kind(), error.maybe_applied()), (ErrorKind::Io, false), "{error}");
    assert_eq!(read(&blobs, "blob").await.unwrap(), bytes_of(10));
    assert_eq!(below.list(BLOB_CHUNKS_PREFIX, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn blobs_can_be_encrypted() {
    let below = MemoryStorage::new();
    let key = EncryptionKey::generate();
    let blobs = below.clone().encrypted(Keyring::new(1, &key)).blobs();
    let content = bytes_of(BLOB_CHUNK_BYTES + 5);
    blobs.put("blob", &content[..], |_| {}).await.unwrap();
    assert!(read(&blobs, "blob").await.unwrap() == content);
    assert!(below.blobs().info("blob").await.is_err());
}

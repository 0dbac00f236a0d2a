//! What every [`Storage`] does alike.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use debros_proto::limits;
use tokio::time::{Instant, sleep, timeout};

use crate::error::ErrorKind;
use crate::storage::watch::Watch;
use crate::storage::{
    Cursor, GetOptions, ListOptions, PutOptions, Quorum, ResumeToken, Storage, StorageOperation,
    StorageOutcome, WatchEvent, WatchOptions,
};

/// What does not happen within this time does not happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at something that is bound to happen.
const LOOK: Duration = Duration::from_millis(20);

/// Holds a [`Storage`] to its contract.
///
/// # Panics
/// Where the contract is broken.
pub async fn storage(storage: &dyn Storage) {
    values(storage).await;
    keys(storage).await;
    versions(storage).await;
    deletes(storage).await;
    expiry(storage).await;
    lists(storage).await;
    pages(storage).await;
    batches(storage).await;
    watches(storage).await;
    watched_versions(storage).await;
    resumed_watches(storage).await;
    mistakes(storage).await;
}

async fn get(storage: &dyn Storage, key: &str) -> Option<Bytes> {
    storage.get(key).await.expect("an answer")
}

async fn put(storage: &dyn Storage, key: &str, value: impl Into<Bytes>) {
    storage.put(key, value.into()).await.expect("a put");
}

async fn values(storage: &dyn Storage) {
    let all_bytes: Vec<u8> = (0..=255).collect();
    let largest = vec![7; limits::STORAGE_VALUE_BYTES_MAX];
    for value in [Vec::new(), all_bytes, largest] {
        put(storage, "values/key", value.clone()).await;
        assert!(get(storage, "values/key").await.is_some_and(|found| found == value), "{}", value.len());
        assert!(storage.exists("values/key").await.expect("an answer"));
    }
    for quorum in [Quorum::One, Quorum::Majority, Quorum::All] {
        let options = PutOptions { quorum, ..PutOptions::default() };
        storage.put_with("values/quorum", Bytes::from("v"), options).await.expect("a put");
        let options = GetOptions { quorum, ..GetOptions::default() };
        let found = storage.get_with("values/quorum", options).await.expect("an answer");
        // One replica need not be the one that has it.
        assert!(quorum == Quorum::One || found.is_some_and(|entry| entry.value == "v"));
    }
}

async fn keys(storage: &dyn Storage) {
    let longest = "k".repeat(limits::STORAGE_KEY_BYTES_MAX);
    let odd =
        [" ", "/", "\0", "a\nb", "%", "*", "naïve ключ \u{1F600}", "\u{10ffff}", "keys/.", longest.as_str()];
    for (number, key) in odd.iter().enumerate() {
        assert_eq!(get(storage, key).await, None, "{key:?}");
        put(storage, key, format!("{number}")).await;
    }
    for (number, key) in odd.iter().enumerate() {
        assert_eq!(get(storage, key).await, Some(format!("{number}").into()), "{key:?}");
    }
    for key in odd {
        storage.delete(key).await.expect("a delete");
    }
}

async fn versions(storage: &dyn Storage) {
    let first = storage.put("versions/key", Bytes::from("1")).await.expect("a put");
    let second = storage.put("versions/key", Bytes::from("2")).await.expect("a put");
    assert!(second > first, "{second:?} {first:?}");
    let entry = storage.get_with("versions/key", GetOptions::default()).await.expect("an answer");
    let entry = entry.expect("a value");
    assert_eq!((entry.key.as_str(), entry.value.as_ref()), ("versions/key", b"2".as_slice()));
    assert_eq!((entry.version, entry.expires_at), (second, None));
    let bare = GetOptions { without_value: true, ..GetOptions::default() };
    let bare = storage.get_with("versions/key", bare).await.expect("an answer").expect("a value");
    assert_eq!((bare.value.len(), bare.version), (0, second));
}

async fn deletes(storage: &dyn Storage) {
    storage.delete("deletes/nothing").await.expect("nothing to delete");
    put(storage, "deletes/key", "1").await;
    storage.delete("deletes/key").await.expect("a delete");
    assert_eq!(get(storage, "deletes/key").await, None);
    assert!(!storage.exists("deletes/key").await.expect("an answer"));
    assert_eq!(storage.list("deletes/", 10).await.expect("keys"), [""; 0]);
    put(storage, "deletes/key", "2").await;
    assert_eq!(get(storage, "deletes/key").await, Some("2".into()));
}

async fn expiry(storage: &dyn Storage) {
    let ttl = Duration::from_millis(400);
    let options = PutOptions { ttl: Some(ttl), ..PutOptions::default() };
    let before = SystemTime::now();
    for key in ["expiry/key", "expiry/kept"] {
        storage.put_with(key, Bytes::from("v"), options).await.expect("a put");
    }
    if let Some(entry) = storage.get_with("expiry/key", GetOptions::default()).await.expect("an answer") {
        let expires_at = entry.expires_at.expect("a time");
        // Clocks differ; simulated ones do so most.
        assert!(expires_at + PATIENCE > before, "{expires_at:?}");
    }
    put(storage, "expiry/kept", "stays").await;
    let deadline = Instant::now() + PATIENCE;
    while storage.exists("expiry/key").await.expect("an answer") {
        assert!(Instant::now() < deadline, "a value outlived its time");
        sleep(LOOK).await; // poll: until the value has expired
    }
    assert_eq!(storage.list("expiry/", 10).await.expect("keys"), ["expiry/kept"]);
    assert_eq!(get(storage, "expiry/kept").await, Some("stays".into()));
}

async fn lists(storage: &dyn Storage) {
    let keys = ["lists/%", "lists/*", "lists/.", "lists/a", "lists/a%b", "lists/axb", "lists/é", "listsX"];
    for key in keys {
        put(storage, key, key).await;
    }
    let listed = async |prefix: &str| storage.list(prefix, 100).await.expect("keys");
    assert_eq!(listed("lists/").await, keys[..7]);
    assert_eq!(listed("lists/%").await, ["lists/%"]);
    assert_eq!(listed("lists/*").await, ["lists/*"]);
    assert_eq!(listed("lists/.").await, ["lists/."]);
    assert_eq!(listed("lists/a%").await, ["lists/a%b"]);
    assert_eq!(listed("lists/nothing").await, [""; 0]);
    assert_eq!(storage.list("lists/", 3).await.expect("keys"), keys[..3]);
    assert_eq!(storage.list("lists/", 0).await.expect("keys"), [""; 0]);
    let options = ListOptions { values: true, ..ListOptions::default() };
    let page = storage.list_with("lists", options).await.expect("a page");
    assert_eq!(page.cursor, None);
    assert!(page.entries.iter().all(|entry| entry.value == entry.key.as_bytes()));
    assert_eq!(page.entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), keys);
    let page = storage.list_with("lists/", ListOptions::default()).await.expect("a page");
    assert!(page.entries.iter().all(|entry| entry.value.is_empty()));
}

async fn pages(storage: &dyn Storage) {
    let expected: Vec<String> = (0..57).map(|number| format!("pages/{number:02}")).collect();
    let put = |key: &String| StorageOperation::Put {
        key: key.clone(),
        value: Bytes::from(key.clone()),
        options: PutOptions::default(),
    };
    for written in storage.batch(expected.iter().map(put).collect()).await {
        written.expect("a put");
    }
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let options = ListOptions { limit: Some(10), after, ..ListOptions::default() };
        let page = storage.list_with("pages/", options).await.expect("a page");
        assert!(page.entries.len() <= 10);
        found.extend(page.entries.into_iter().map(|entry| entry.key));
        match page.cursor {
            Some(cursor) => after = Some(cursor),
            None => break,
        }
    }
    assert_eq!(found, expected);
    let options = ListOptions { after: Some(Cursor::after("pages/54x")), ..ListOptions::default() };
    let page = storage.list_with("pages/", options).await.expect("a page");
    assert_eq!(page.entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), expected[55..]);
    let options = ListOptions { after: Some(Cursor::after("p")), ..ListOptions::default() };
    let page = storage.list_with("pages/", options).await.expect("a page");
    assert_eq!(page.entries.len(), 57, "after what comes before all of them");
    let options = ListOptions { after: Some(Cursor::after("q")), ..ListOptions::default() };
    let page = storage.list_with("pages/", options).await.expect("a page");
    assert_eq!((page.entries.len(), page.cursor), (0, None), "after what comes after all of them");
    pages_of_a_key(storage).await;
    large_pages(storage).await;
}

/// A prefix may be a key itself, and comes once.
async fn pages_of_a_key(storage: &dyn Storage) {
    for key in ["page", "page-a", "page-b"] {
        put(storage, key, "v").await;
    }
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let options = ListOptions { limit: Some(1), after, ..ListOptions::default() };
        let page = storage.list_with("page", options).await.expect("a page");
        found.extend(page.entries.into_iter().map(|entry| entry.key));
        match page.cursor {
            Some(cursor) => after = Some(cursor),
            None => break,
        }
    }
    found.retain(|key| !key.starts_with("pages/"));
    assert_eq!(found, ["page", "page-a", "page-b"]);
}

/// A page that would be too large is cut, and goes on.
async fn large_pages(storage: &dyn Storage) {
    let value = Bytes::from(vec![1; limits::STORAGE_VALUE_BYTES_MAX]);
    for number in 0..6 {
        put(storage, &format!("large/{number}"), value.clone()).await;
    }
    let mut after = None;
    let mut found = 0;
    loop {
        let options = ListOptions { values: true, after, ..ListOptions::default() };
        let page = storage.list_with("large/", options).await.expect("a page");
        found += page.entries.iter().filter(|entry| entry.value == value).count();
        match page.cursor {
            Some(cursor) => after = Some(cursor),
            None => break,
        }
    }
    assert_eq!(found, 6);
}

async fn batches(storage: &dyn Storage) {
    put(storage, "batches/old", "old").await;
    put(storage, "batches/gone", "gone").await;
    let outcomes = storage
        .batch(vec![
            StorageOperation::Put {
                key: "batches/new".into(),
                value: Bytes::from("new"),
                options: PutOptions::default(),
            },
            StorageOperation::Get { key: "batches/old".into(), options: GetOptions::default() },
            StorageOperation::Get { key: String::new(), options: GetOptions::default() },
            StorageOperation::Delete { key: "batches/gone".into(), options: Default::default() },
            StorageOperation::Get { key: "batches/nothing".into(), options: GetOptions::default() },
        ])
        .await;
    assert!(matches!(outcomes[0], Ok(StorageOutcome::Written(_))), "{outcomes:?}");
    assert!(matches!(&outcomes[1], Ok(StorageOutcome::Found(Some(entry))) if entry.value == "old"));
    let wrong = outcomes[2].as_ref().expect_err("an empty key");
    assert_eq!(wrong.kind(), ErrorKind::InvalidArgument);
    assert!(matches!(outcomes[3], Ok(StorageOutcome::Written(_))), "{outcomes:?}");
    assert!(matches!(outcomes[4], Ok(StorageOutcome::Found(None))), "{outcomes:?}");
    assert_eq!(storage.list("batches/", 10).await.expect("keys"), ["batches/new", "batches/old"]);
    assert!(storage.batch(Vec::new()).await.is_empty());
}

/// The next event that fits; a change may be told more than once.
async fn await_event(watch: &mut Watch, what: &str, fits: impl Fn(&WatchEvent) -> bool) {
    let found = async {
        loop {
            let event = watch.next().await.expect("a watch without an end").expect("an event");
            if fits(&event) {
                return;
            }
        }
    };
    timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("a watch did not tell: {what}"));
}

fn is_put(event: &WatchEvent, wanted: &str, value: &str) -> bool {
    matches!(event, WatchEvent::Put(entry) if entry.key == wanted && entry.value == value)
}

fn is_delete(event: &WatchEvent, wanted: &str) -> bool {
    matches!(event, WatchEvent::Deleted { key, .. } if key == wanted)
}

async fn watches(storage: &dyn Storage) {
    put(storage, "watches/before", "1").await;
    let mut watch = storage.watch("watches/", WatchOptions::default()).await.expect("a watch");
    put(storage, "elsewhere/key", "1").await;
    put(storage, "watches/a", "1").await;
    await_event(&mut watch, "a put", |event| {
        assert!(!matches!(event, WatchEvent::Put(entry) if !entry.key.starts_with("watches/")), "{event:?}");
        is_put(event, "watches/a", "1")
    })
    .await;
    put(storage, "watches/a", "2").await;
    await_event(&mut watch, "another put", |event| is_put(event, "watches/a", "2")).await;
    storage.delete("watches/a").await.expect("a delete");
    await_event(&mut watch, "a delete", |event| is_delete(event, "watches/a")).await;
    let options = PutOptions { ttl: Some(Duration::from_millis(200)), ..PutOptions::default() };
    storage.put_with("watches/short", Bytes::from("v"), options).await.expect("a put");
    await_event(&mut watch, "an expiry", |event| is_delete(event, "watches/short")).await;
}

/// What is told of a change is what whoever made it was told; a delete is one whether there was a value or not.
async fn watched_versions(storage: &dyn Storage) {
    let mut watch = storage.watch("versioned/", WatchOptions::default()).await.expect("a watch");
    let options = PutOptions { ttl: Some(Duration::from_secs(600)), ..PutOptions::default() };
    let put = storage.put_with("versioned/a", Bytes::from("v"), options).await.expect("a put");
    await_event(
        &mut watch,
        "a put's version and when its value goes",
        |event| matches!(event, WatchEvent::Put(entry) if entry.version == put && entry.expires_at.is_some()),
    )
    .await;
    for key in ["versioned/a", "versioned/nothing"] {
        let gone = storage.delete(key).await.expect("a delete");
        await_event(&mut watch, "a delete's version", |event| {
            matches!(event, WatchEvent::Deleted { key: told, version } if told == key && *version == gone)
        })
        .await;
    }
}

async fn resumed_watches(storage: &dyn Storage) {
    let mut watch = storage.watch("resumed/", WatchOptions::default()).await.expect("a watch");
    await_event(&mut watch, "that it is up to date", |event| *event == WatchEvent::CaughtUp).await;
    put(storage, "resumed/a", "1").await;
    await_event(&mut watch, "a put", |event| is_put(event, "resumed/a", "1")).await;
    let resume = watch.resume().cloned();
    assert!(resume.is_some(), "a watch that has told something says where it stands");
    drop(watch);
    put(storage, "resumed/b", "2").await;
    storage.delete("resumed/a").await.expect("a delete");
    let mut watch = storage.watch("resumed/", WatchOptions { resume }).await.expect("a watch");
    let mut missing = vec!["a put while nobody watched", "a delete while nobody watched"];
    let told = async {
        while !missing.is_empty() {
            let event = watch.next().await.expect("a watch without an end").expect("an event");
            assert_ne!(event, WatchEvent::Lagged);
            missing.retain(|what| match *what {
                "a put while nobody watched" => !is_put(&event, "resumed/b", "2"),
                _ => !is_delete(&event, "resumed/a"),
            });
        }
    };
    let in_time = timeout(PATIENCE, told).await.is_ok();
    assert!(in_time, "a resumed watch did not tell: {missing:?}");
    await_event(&mut watch, "that it is up to date", |event| *event == WatchEvent::CaughtUp).await;
}

async fn mistakes(storage: &dyn Storage) {
    let too_long = "k".repeat(limits::STORAGE_KEY_BYTES_MAX + 1);
    for (key, kind, told) in [
        ("", ErrorKind::InvalidArgument, "at least one"),
        (too_long.as_str(), ErrorKind::LimitExceeded, "STORAGE_KEY_BYTES_MAX"),
    ] {
        let refused = [
            storage.put(key, Bytes::new()).await.err(),
            storage.get(key).await.err(),
            storage.exists(key).await.err(),
            storage.delete(key).await.err(),
        ];
        for error in refused.into_iter().map(|error| error.expect("a refusal")) {
            assert_eq!((error.kind(), error.maybe_applied()), (kind, false), "{error}");
            assert!(error.to_string().contains(told), "{error}");
        }
    }
    let too_large = Bytes::from(vec![0; limits::STORAGE_VALUE_BYTES_MAX + 1]);
    let error = storage.put("mistakes/key", too_large).await.expect_err("a value that is too large");
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    assert!(error.to_string().contains("STORAGE_VALUE_BYTES_MAX"), "{error}");
    let too_late = limits::STORAGE_TTL_MAX + Duration::from_secs(1);
    for (ttl, kind) in [(Duration::ZERO, ErrorKind::InvalidArgument), (too_late, ErrorKind::LimitExceeded)] {
        let options = PutOptions { ttl: Some(ttl), ..PutOptions::default() };
        let error = storage.put_with("mistakes/key", Bytes::new(), options).await.expect_err("a wrong time");
        assert_eq!(error.kind(), kind, "{error}");
    }
    let too_many = limits::STORAGE_PAGE_KEYS_MAX + 1;
    for (limit, kind) in [(0, ErrorKind::InvalidArgument), (too_many, ErrorKind::LimitExceeded)] {
        let options = ListOptions { limit: Some(limit), ..ListOptions::default() };
        let error = storage.list_with("", options).await.expect_err("a wrong limit");
        assert_eq!(error.kind(), kind, "{error}");
    }
    let error = storage.list(&too_long, 1).await.expect_err("a prefix that is too long");
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    let error =
        storage.watch(&too_long, WatchOptions::default()).await.expect_err("a prefix that is too long");
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    let options = ListOptions { after: Some(Cursor::after(too_long.as_str())), ..ListOptions::default() };
    let error = storage.list_with("", options).await.expect_err("a cursor that is too long");
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    for token in ["", "abc"] {
        let options = WatchOptions { resume: Some(ResumeToken::from_bytes(token)) };
        let error = storage.watch("mistakes/", options).await.expect_err("a token that is none");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    assert_eq!(get(storage, "mistakes/key").await, None);
}

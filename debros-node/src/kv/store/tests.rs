use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use debros_proto::layout::{partition_of, partitions_of};
use debros_proto::{NodeId, v1};
use proptest::prelude::{Strategy, any, prop_assert_eq, proptest};
use proptest::test_runner::Config;

use super::reader::ScanLimits;
use super::{Applied, Fence, Options, Origin, Put, PutOutcome, Store};
use crate::blocking::Blocking;
use crate::kv::record::{Entry, Record, Version};

const LAYOUT: u64 = 3;
const PAGE: ScanLimits = ScanLimits { entries: 100, bytes: 1 << 20, with_values: true };

async fn open(folder: &Path) -> Store {
    let options = Options { map_bytes: 1 << 30, ..Default::default() };
    Store::open(folder, Blocking::Threads, options).await.expect("a store")
}

async fn reopen(store: Store, folder: &Path) -> Store {
    store.close(Duration::from_secs(10)).await;
    open(folder).await
}

async fn fresh(folder: &Path) -> Store {
    let store = open(folder).await;
    store.adopt(v1::StorageLayout { version: LAYOUT, ..Default::default() }).await.expect("adopted");
    store
}

fn entry(key: &str, clock: u64, value: &str) -> Entry {
    let version = Version { clock, node: 1 };
    let record =
        Record { version, expires_unix_ms: 0, tombstone: false, value: Bytes::from(value.to_owned()) };
    Entry { partition: partition_of("app", key), namespace: "app".into(), key: key.into(), record }
}

fn gone(key: &str, clock: u64) -> Entry {
    let mut entry = entry(key, clock, "");
    entry.record = Record::tombstone(entry.record.version);
    entry
}

async fn put(store: &Store, origin: Origin, entry: Entry) -> PutOutcome {
    match store.put(origin, vec![Put { entry }]).await.expect("put") {
        Applied::Each(outcomes) => outcomes[0],
        fenced @ Applied::Fenced(_) => panic!("{fenced:?}"),
    }
}

async fn get(store: &Store, key: &str) -> Option<Record> {
    let place = entry(key, 0, "").place();
    store.read(move |snapshot| snapshot.get(&place, true)).await.expect("read")
}

#[tokio::test]
async fn the_greater_version_stays_in_whatever_order_they_come() {
    let folder = tempfile::tempdir().unwrap();
    let store = fresh(folder.path()).await;
    let origin = Origin::Coordinator(LAYOUT);
    assert_eq!(put(&store, origin, entry("a", 10, "ten")).await, PutOutcome::Stored);
    let newer = Version { clock: 10, node: 1 };
    assert_eq!(put(&store, origin, entry("a", 9, "nine")).await, PutOutcome::Superseded(newer));
    assert_eq!(put(&store, origin, entry("a", 10, "ten")).await, PutOutcome::Stored);
    assert_eq!(put(&store, origin, gone("a", 11)).await, PutOutcome::Stored);
    let record = get(&store, "a").await.unwrap();
    assert!(record.tombstone && record.value.is_empty());
    assert_eq!(get(&store, "b").await, None);
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = fresh(folder.path()).await;
    let puts = (0..500).map(|number| Put { entry: entry(&format!("key-{number}"), 5, "value") }).collect();
    store.put(Origin::Coordinator(LAYOUT), puts).await.expect("put");
    store.set_collected(7, 99).await.unwrap();
    store.fence(8, 100).await.unwrap();
    store.hint(NodeId(4), entry("hinted", 6, "for four"), 1000).await.unwrap();
    let hinted = store.hinted_bytes();
    let store = reopen(store, folder.path()).await;
    for number in 0..500 {
        assert!(get(&store, &format!("key-{number}")).await.is_some());
    }
    assert_eq!((store.collected(7), store.fenced(8), store.fence_of(LAYOUT)), (99, 100, Fence::Open));
    assert_eq!(store.hinted_bytes(), hinted);
    let hints = store.read(|snapshot| snapshot.hints(NodeId(4), 10)).await.unwrap();
    assert_eq!(hints, [(1000, entry("hinted", 6, "for four"))]);
    assert_eq!(store.read(|snapshot| snapshot.hinted_nodes()).await.unwrap(), [NodeId(4)]);
}

#[tokio::test]
async fn an_older_layout_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = fresh(folder.path()).await;
    let late = store.put(Origin::Coordinator(LAYOUT - 1), vec![Put { entry: entry("a", 1, "late") }]).await;
    assert_eq!(late.unwrap(), Applied::Fenced(Fence::SenderIsBehind));
    let early = store.put(Origin::Coordinator(LAYOUT + 1), vec![Put { entry: entry("a", 1, "early") }]).await;
    assert_eq!(early.unwrap(), Applied::Fenced(Fence::ReceiverIsBehind));
    assert_eq!(get(&store, "a").await, None);
    store.adopt(v1::StorageLayout { version: LAYOUT - 1, ..Default::default() }).await.unwrap();
    assert_eq!(store.fence_of(LAYOUT), Fence::Open, "what was adopted stays adopted");
}

#[tokio::test]
async fn a_collected_partition_refuses_what_it_may_have_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let store = fresh(folder.path()).await;
    let origin = Origin::Coordinator(LAYOUT);
    put(&store, origin, gone("a", 10)).await;
    put(&store, origin, entry("b", 10, "stays")).await;
    let partition = partition_of("app", "a");
    for partition in partitions_of("app") {
        store.set_collected(partition, 20).await.unwrap();
        let collectable = store.read(move |snapshot| snapshot.collectable(partition, 20, &[], 100)).await;
        let (places, more) = collectable.unwrap();
        assert_eq!(more, None);
        store.drop_collected(partition, 20, places).await.unwrap();
    }
    assert_eq!(get(&store, "a").await, None);
    assert!(get(&store, "b").await.is_some());
    assert_eq!(put(&store, origin, entry("a", 9, "back")).await, PutOutcome::Collected(20));
    assert_eq!(put(&store, Origin::Replica(19), entry("a", 9, "back")).await, PutOutcome::Collected(20));
    assert_eq!(put(&store, Origin::Replica(20), entry("c", 9, "live there")).await, PutOutcome::Stored);
    store.fence(partition, 30).await.unwrap();
    assert_eq!(put(&store, origin, entry("a", 25, "late")).await, PutOutcome::Collected(30));
    assert_eq!(put(&store, Origin::Replica(20), entry("a", 25, "repair")).await, PutOutcome::Stored);
}

#[tokio::test]
async fn a_listing_is_in_key_order_and_goes_on_where_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let store = fresh(folder.path()).await;
    let keys: Vec<String> = (0..200).map(|number| format!("k{number:03}")).collect();
    for key in &keys {
        put(&store, Origin::Coordinator(LAYOUT), entry(key, 1, "v")).await;
    }
    let mut seen = Vec::new();
    for partition in partitions_of("app") {
        let mut after = String::new();
        loop {
            let from = after.clone();
            let limits = ScanLimits { entries: 3, ..PAGE };
            let page = store.read(move |snapshot| snapshot.scan(partition, "app", "k1", &from, limits)).await;
            let page = page.unwrap();
            assert!(page.entries.iter().all(|entry| entry.key > after && entry.key.starts_with("k1")));
            seen.extend(page.entries.iter().map(|entry| entry.key.clone()));
            if page.complete {
                break;
            }
            after = page.entries.last().unwrap().key.clone();
        }
    }
    seen.sort();
    assert_eq!(seen, keys[100..200]);
}

#[tokio::test]
async fn a_cleared_partition_is_empty() {
    let folder = tempfile::tempdir().unwrap();
    let store = fresh(folder.path()).await;
    put(&store, Origin::Coordinator(LAYOUT), entry("a", 1, "v")).await;
    let partition = partition_of("app", "a");
    let before = store.tree(partition).await.unwrap();
    assert!(!store.clear(partition).await.unwrap());
    assert!(store.read(move |snapshot| snapshot.is_empty(partition)).await.unwrap());
    assert_ne!(store.tree(partition).await.unwrap().root(), before.root());
}

proptest! {
    #![proptest_config(Config { cases: 12, ..Config::default() })]

    /// The store against a map, and its trees against trees counted from scratch, over a restart.
    #[test]
    fn it_is_a_map_of_greatest_versions(
        steps in proptest::collection::vec((0u8..20, 1u64..50, any::<bool>()), 1..60),
        restart_at in (0usize..60).prop_map(|at| at),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let mut store = fresh(folder.path()).await;
            let mut model: BTreeMap<String, Record> = BTreeMap::new();
            for (index, (key, clock, deleted)) in steps.into_iter().enumerate() {
                if index == restart_at {
                    store = reopen(store, folder.path()).await;
                }
                let key = format!("key-{key}");
                let entry = if deleted { gone(&key, clock) } else { entry(&key, clock, "v") };
                let partition = entry.partition;
                // Counted before the change, so that it follows it.
                store.tree(partition).await.unwrap();
                put(&store, Origin::Coordinator(LAYOUT), entry.clone()).await;
                let newer = model.get(&key).is_none_or(|known| known.version < entry.record.version);
                if newer {
                    model.insert(key, entry.record);
                }
                let counted = store.read(move |snapshot| snapshot.tree(partition)).await.unwrap();
                prop_assert_eq!(store.tree(partition).await.unwrap(), counted);
            }
            for (key, record) in model {
                prop_assert_eq!(get(&store, &key).await, Some(record));
            }
            Ok(())
        })?;
    }
}

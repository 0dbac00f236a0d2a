//! The store by itself, on real files: against a map of greatest versions, over restarts, layers and
//! collections, and when there is no room.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use debros_proto::layout::{partition_of, partitions_of};
use debros_proto::{NodeId, v1};
use proptest::prelude::{Strategy, any, prop_assert_eq, proptest};
use proptest::test_runner::Config;

use super::reader::ScanLimits;
use super::{Applied, Durability, Fence, Options, Origin, Put, PutOutcome, Store};
use crate::blocking::Blocking;
use crate::kv::record::{Entry, Record, Version};

const LAYOUT: u64 = 3;
const PAGE: ScanLimits = ScanLimits { entries: 100, bytes: 1 << 20, with_values: true };

async fn open(folder: &Path) -> Store {
    Store::open(folder, Blocking::Threads, Options::default().with_map_bytes(1 << 30)).await.expect("a store")
}

async fn reopen(store: Store, folder: &Path) -> Store {
    store.close(Duration::from_secs(10)).await;
    open(folder).await
}

async fn fresh(folder: &Path) -> Store {
    let store = open(folder).await;
    store.adopt(v1::StorageLayout { version: LAYOUT, ..Default::default() }, false).await.expect("adopted");
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
    match store.put(origin, Durability::Flushed, vec![Put { entry }]).await.expect("put") {
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
    store.put(Origin::Coordinator(LAYOUT), Durability::Flushed, puts).await.expect("put");
    store.hint(NodeId(4), entry("hinted", 6, "for four"), 1000).await.unwrap();
    // Hints become durable with whatever goes into LMDB next.
    store.set_collected(LAYOUT, 7, 99).await.unwrap();
    store.fence(8, 100).await.unwrap();
    let hinted = store.hinted_bytes();
    let store = reopen(store, folder.path()).await;
    for number in 0..500 {
        assert!(get(&store, &format!("key-{number}")).await.is_some());
    }
    assert_eq!((store.collected(7), store.fenced(8), store.fence_of(LAYOUT)), (99, 100, Fence::Open));
    assert_eq!(store.hinted_bytes(), hinted);
    let hints = store.read(|snapshot| snapshot.hints(NodeId(4), 10, usize::MAX)).await.unwrap();
    assert_eq!(hints, [(1000, entry("hinted", 6, "for four"))]);
    assert_eq!(store.read(|snapshot| snapshot.hinted_nodes()).await.unwrap(), [NodeId(4)]);
}

#[tokio::test]
async fn what_is_in_the_journal_alone_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = fresh(folder.path()).await;
    for round in 1..5 {
        for (durability, key) in [(Durability::Flushed, "flushed"), (Durability::Relaxed, "relaxed")] {
            let put = Put { entry: entry(key, round, &format!("{key} {round}")) };
            store.put(Origin::Coordinator(LAYOUT), durability, vec![put]).await.expect("put");
        }
        store = reopen(store, folder.path()).await;
        for key in ["flushed", "relaxed"] {
            assert_eq!(get(&store, key).await.unwrap().value, format!("{key} {round}"));
        }
    }
}

#[tokio::test]
async fn layers_go_into_the_tables_while_writes_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = fresh(folder.path()).await;
    let value = "v".repeat(100_000);
    // More than a layer holds, several times over.
    for round in 1..=4u64 {
        for number in 0..50 {
            let key = format!("key-{number}");
            assert_eq!(
                put(&store, Origin::Coordinator(LAYOUT), entry(&key, round, &value)).await,
                PutOutcome::Stored
            );
        }
    }
    let listed = |store: &Store, partition: u16| {
        let limits = ScanLimits { entries: 1000, bytes: usize::MAX, with_values: false };
        let store = store.clone();
        async move { store.read(move |snapshot| snapshot.scan(partition, "app", "", "", limits)).await.unwrap() }
    };
    let store = reopen(store, folder.path()).await;
    let mut clocks = Vec::new();
    for partition in partitions_of("app") {
        let entries = listed(&store, partition).await.entries;
        clocks.extend(entries.iter().map(|entry| entry.record.version.clock));
    }
    assert_eq!(clocks, [4; 50]);
}

#[tokio::test]
async fn an_older_layout_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = fresh(folder.path()).await;
    let late = store
        .put(Origin::Coordinator(LAYOUT - 1), Durability::Flushed, vec![Put { entry: entry("a", 1, "late") }])
        .await;
    assert_eq!(late.unwrap(), Applied::Fenced(Fence::SenderIsBehind));
    let early = store
        .put(
            Origin::Coordinator(LAYOUT + 1),
            Durability::Flushed,
            vec![Put { entry: entry("a", 1, "early") }],
        )
        .await;
    assert_eq!(early.unwrap(), Applied::Fenced(Fence::ReceiverIsBehind));
    assert_eq!(get(&store, "a").await, None);
    store.adopt(v1::StorageLayout { version: LAYOUT - 1, ..Default::default() }, false).await.unwrap();
    assert_eq!(store.fence_of(LAYOUT), Fence::Open, "what was adopted stays adopted");
}

#[tokio::test]
async fn what_an_adoption_overtook_is_not_left_behind_in_a_cleared_partition() {
    let folder = tempfile::tempdir().unwrap();
    let store = fresh(folder.path()).await;
    put(&store, Origin::Replica { layout: LAYOUT, collected_to: 0 }, entry("a", 1, "in time")).await;
    store.adopt(v1::StorageLayout { version: LAYOUT + 1, ..Default::default() }, false).await.unwrap();
    let partition = partition_of("app", "a");
    while store.clear(partition).await.unwrap() {}
    for origin in [Origin::Replica { layout: LAYOUT, collected_to: 9 }, Origin::Hint(LAYOUT)] {
        let late = store.put(origin, Durability::Flushed, vec![Put { entry: entry("a", 2, "late") }]).await;
        assert_eq!(late.unwrap(), Applied::Fenced(Fence::SenderIsBehind));
    }
    store.set_collected(LAYOUT, partition, 9).await.unwrap();
    assert_eq!((get(&store, "a").await, store.collected(partition)), (None, 0));
    assert_eq!(put(&store, Origin::Hint(LAYOUT + 1), entry("a", 2, "again")).await, PutOutcome::Stored);
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
        store.set_collected(LAYOUT, partition, 20).await.unwrap();
        let collectable = store.read(move |snapshot| snapshot.collectable(partition, 20, &[], 100)).await;
        let (places, more) = collectable.unwrap();
        assert_eq!(more, None);
        store.drop_collected(partition, 20, places).await.unwrap();
    }
    assert_eq!(get(&store, "a").await, None);
    assert!(get(&store, "b").await.is_some());
    assert_eq!(put(&store, origin, entry("a", 9, "back")).await, PutOutcome::Collected(20));
    assert_eq!(
        put(&store, Origin::Replica { layout: LAYOUT, collected_to: 19 }, entry("a", 9, "back")).await,
        PutOutcome::Collected(20)
    );
    assert_eq!(
        put(&store, Origin::Replica { layout: LAYOUT, collected_to: 20 }, entry("c", 9, "live there")).await,
        PutOutcome::Stored
    );
    store.fence(partition, 30).await.unwrap();
    assert_eq!(put(&store, origin, entry("a", 25, "late")).await, PutOutcome::Collected(30));
    assert_eq!(
        put(&store, Origin::Replica { layout: LAYOUT, collected_to: 20 }, entry("a", 25, "repair")).await,
        PutOutcome::Stored
    );
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

/// A value of which a small store holds some hundreds.
fn some_value(number: usize) -> String {
    number.to_string().repeat(10_000)[..10_000].to_owned()
}

/// Puts until there is no room any more, also with everything in LMDB; gives how many there are.
async fn fill(store: &Store, clock: u64) -> usize {
    let (mut number, mut settled) = (0, false);
    while number < 5000 {
        let entry = entry(&format!("key-{number}"), clock, &some_value(number));
        match put(store, Origin::Coordinator(LAYOUT), entry).await {
            PutOutcome::NoRoom if settled => return number,
            PutOutcome::NoRoom => {
                store.set_copied(1).await.unwrap();
                settled = true;
            }
            _ => (number, settled) = (number + 1, false),
        }
    }
    panic!("there is room without an end");
}

#[tokio::test]
async fn a_full_store_frees_room_by_deletions_collections_and_dropped_partitions() {
    let folder = tempfile::tempdir().unwrap();
    let small = Options::default().with_map_bytes(8 << 20);
    let mut store = Store::open(folder.path(), Blocking::Threads, small.clone()).await.expect("a store");
    store.adopt(v1::StorageLayout { version: LAYOUT, ..Default::default() }, false).await.expect("adopted");
    let origin = Origin::Coordinator(LAYOUT);
    for round in 1..4 {
        // Each way to free room, from a store that is as full as it gets.
        let full = fill(&store, 10 * round).await;
        assert!(full > 300, "{full}");
        let refused = put(&store, origin, entry("one more", 10 * round, &some_value(1))).await;
        assert_eq!(refused, PutOutcome::NoRoom, "round {round}");
        store.close(Duration::from_secs(10)).await;
        store = Store::open(folder.path(), Blocking::Threads, small.clone()).await.expect("it opens again");
        match round {
            1 | 2 => {
                for number in 0..full {
                    let gone = gone(&format!("key-{number}"), 10 * round + 1);
                    assert_eq!(put(&store, origin, gone).await, PutOutcome::Stored, "{number}");
                }
            }
            _ => {
                for partition in partitions_of("app") {
                    store.fence(partition, 1).await.unwrap();
                    while store.clear(partition).await.unwrap() {}
                }
            }
        }
        if round == 2 {
            for partition in partitions_of("app") {
                store.set_collected(LAYOUT, partition, 21).await.unwrap();
                let found =
                    store.read(move |snapshot| snapshot.collectable(partition, 21, &[], 10_000)).await;
                store.drop_collected(partition, 21, found.unwrap().0).await.unwrap();
            }
        }
        let mut outcome = PutOutcome::NoRoom;
        for _ in 0..1000 {
            store.tick().await.unwrap();
            outcome = put(&store, origin, entry("one more", 10 * round + 2, &some_value(1))).await;
            if outcome == PutOutcome::Stored {
                break;
            }
        }
        assert_eq!(outcome, PutOutcome::Stored, "round {round}");
    }
}

/// Every page of the store is written anew by the deletions of one layer in memory.
#[tokio::test]
async fn a_store_that_is_full_of_small_records_frees_room_too() {
    const BATCH: usize = 500;
    let folder = tempfile::tempdir().unwrap();
    let small = Options::default().with_map_bytes(8 << 20);
    let store = Store::open(folder.path(), Blocking::Threads, small).await.expect("a store");
    store.adopt(v1::StorageLayout { version: LAYOUT, ..Default::default() }, false).await.expect("adopted");
    let put_some = async |made: &dyn Fn(usize) -> Entry, batch: usize| {
        let puts = (batch * BATCH..(batch + 1) * BATCH).map(|number| Put { entry: made(number) }).collect();
        store.put(Origin::Coordinator(LAYOUT), Durability::Flushed, puts).await.expect("an answer").all_kept()
    };
    let value = "v".repeat(100);
    let put = |number: usize| entry(&format!("key-{number}"), 5, &value);
    let mut batches = 0;
    while put_some(&put, batches).await.is_ok() || {
        store.set_copied(1).await.expect("what is in memory has room");
        put_some(&put, batches).await.is_ok()
    } {
        batches += 1;
    }
    assert!(batches > 40, "{batches}");
    for batch in 0..batches {
        put_some(&|number| gone(&format!("key-{number}"), 6), batch).await.expect("deletions have room");
    }
    for partition in partitions_of("app") {
        store.set_collected(LAYOUT, partition, 6).await.unwrap();
        let found = store.read(move |snapshot| snapshot.collectable(partition, 6, &[], usize::MAX)).await;
        store.drop_collected(partition, 6, found.unwrap().0).await.unwrap();
    }
    put_some(&|number| entry(&format!("key-{number}"), 7, "v"), 0).await.expect("there is room again");
}

#[tokio::test]
async fn a_full_store_refuses_and_goes_on_when_it_may_grow() {
    let folder = tempfile::tempdir().unwrap();
    // No multiple of a page, as a size in a configuration may be.
    let small = Options::default().with_map_bytes((1 << 20) + 1);
    let store = Store::open(folder.path(), Blocking::Threads, small.clone()).await.expect("a store");
    store.adopt(v1::StorageLayout { version: LAYOUT, ..Default::default() }, false).await.expect("adopted");
    let value = "v".repeat(1_000_000);
    let origin = Origin::Coordinator(LAYOUT);
    assert_eq!(put(&store, origin, entry("large", 5, &value)).await, PutOutcome::NoRoom);
    let acknowledged = fill(&store, 5).await;
    let all_there = async |store: &Store| {
        for number in 0..acknowledged {
            assert!(get(store, &format!("key-{number}")).await.is_some(), "{number} of {acknowledged}");
        }
        assert!(get(store, &format!("key-{acknowledged}")).await.is_none());
    };
    all_there(&store).await;
    assert_eq!(put(&store, origin, gone("key-0", 6)).await, PutOutcome::Stored, "a deletion has room");
    store.close(Duration::from_secs(10)).await;
    let store = Store::open(folder.path(), Blocking::Threads, small).await.expect("it opens again");
    all_there(&store).await;
    store.close(Duration::from_secs(10)).await;
    let store = open(folder.path()).await;
    all_there(&store).await;
    assert_eq!(put(&store, origin, entry("large", 6, &value)).await, PutOutcome::Stored);
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
                let counted = store.read(move |snapshot| snapshot.tree_up_to(partition, u64::MAX)).await.unwrap();
                prop_assert_eq!(store.tree(partition).await.unwrap(), counted);
            }
            for (key, record) in model {
                prop_assert_eq!(get(&store, &key).await, Some(record));
            }
            Ok(())
        })?;
    }
}

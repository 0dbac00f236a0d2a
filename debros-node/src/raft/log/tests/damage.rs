//! Crash images and damaged files: what was acknowledged is there, or the store does not open.

use std::path::Path;

use debros_proto::GroupId;
use openraft::storage::RaftLogStorage;
use prost::Message;

use super::{
    LogError, Vote, append_durably, copy, entry, newest_segment, open, read_all, small, try_open, vote_of,
};
use crate::raft::codec::entry_to_wire;
use crate::raft::log::record::{BATCH_BYTES, OVERHEAD_BYTES};
use crate::raft::log::segment::DATA_START;

/// Where the written part of a segment ends.
fn used(path: &Path) -> usize {
    std::fs::read(path).unwrap().iter().rposition(|byte| *byte != 0).unwrap() + 1
}

#[tokio::test]
async fn a_crash_image_cut_anywhere_keeps_a_prefix() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let mut log = store.group(GroupId(1));
    let segment = newest_segment(folder.path());
    // After each durable append: how much of the file it needs.
    let mut acknowledged = vec![(used(&segment), 0)];
    for index in 0..12 {
        append_durably(&log, [entry(1, index, 20)]).await;
        acknowledged.push((used(&segment), index + 1));
    }
    log.save_vote(&Vote::new(9, 1)).await.unwrap();
    let with_vote = used(&segment);
    let start = acknowledged[0].0;
    for cut in (start..=with_vote).step_by(7).chain([with_vote]) {
        let image = tempfile::tempdir().unwrap();
        copy(folder.path(), image.path());
        let path = newest_segment(image.path());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[cut..].fill(0);
        std::fs::write(&path, &bytes).unwrap();

        let store = open(image.path()).await;
        let entries = read_all(&store.group(GroupId(1))).await;
        let promised =
            acknowledged.iter().filter(|(end, _)| *end <= cut).map(|(_, count)| *count).max().unwrap();
        assert!(entries.len() as u64 >= promised, "cut at {cut}: {} of {promised}", entries.len());
        assert_eq!(entries, (0..entries.len() as u64).map(|index| entry(1, index, 20)).collect::<Vec<_>>());
        assert_eq!(vote_of(&store.group(GroupId(1))).await.is_some(), cut >= with_vote);

        // What is written after the cut is found again, and nothing of the torn rest.
        let next = entries.len() as u64;
        append_durably(&store.group(GroupId(1)), [entry(2, next, 5)]).await;
        drop(store);
        let again = tempfile::tempdir().unwrap();
        copy(image.path(), again.path());
        let entries = read_all(&open(again.path()).await.group(GroupId(1))).await;
        assert_eq!((entries.len() as u64, entries.last()), (next + 1, Some(&entry(2, next, 5))));
    }
}

/// The size of the record of an entry.
fn record_bytes(bytes: usize) -> usize {
    entry_to_wire(&entry(1, 1, bytes)).encoded_len() + OVERHEAD_BYTES
}

#[tokio::test]
async fn a_batch_torn_in_its_middle_is_cut_there_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    append_durably(&store.group(GroupId(1)), [entry(1, 0, 20)]).await;
    let segment = newest_segment(folder.path());
    let before = used(&segment);
    append_durably(&store.group(GroupId(1)), (1..9).map(|index| entry(1, index, 100))).await;
    drop(store);
    let image = tempfile::tempdir().unwrap();
    copy(folder.path(), image.path());
    // Pages of one unflushed write may reach the disk in any order.
    let path = newest_segment(image.path());
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = (before + used(&path)) / 2;
    bytes[middle..middle + 8].fill(0xff);
    std::fs::write(&path, &bytes).unwrap();

    let store = open(image.path()).await;
    let log = store.group(GroupId(1));
    let kept = read_all(&log).await.len() as u64;
    assert!((2..8).contains(&kept), "{kept} entries");
    // Its batch is as long as the torn record, so the valid ones behind it line up, in place and in
    // index. They must not come back.
    let fits = |bytes: &usize| BATCH_BYTES + record_bytes(*bytes) == record_bytes(100);
    append_durably(&log, [entry(1, kept, (0..100).find(fits).unwrap())]).await;
    let again = tempfile::tempdir().unwrap();
    copy(image.path(), again.path());
    assert_eq!(read_all(&open(again.path()).await.group(GroupId(1))).await.len() as u64, kept + 1);
}

#[tokio::test]
async fn a_flipped_bit_before_a_durable_batch_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    for index in 0..8 {
        append_durably(&store.group(GroupId(1)), [entry(1, index, 20)]).await;
    }
    // Closing leaves a batch record, so even the last entry is protected.
    store.close().await.unwrap();
    let segment = newest_segment(folder.path());
    let end = used(&segment) - BATCH_BYTES;
    for at in (DATA_START as usize..end).step_by(11) {
        let image = tempfile::tempdir().unwrap();
        copy(folder.path(), image.path());
        let path = newest_segment(image.path());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bytes).unwrap();
        let error = try_open(image.path(), small()).await.expect_err("damage is never passed over");
        assert!(matches!(error, LogError::Corrupt { .. }), "flip at {at}: {error}");
    }
}

#[tokio::test]
async fn a_flipped_bit_in_one_header_is_survived_and_in_both_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    append_durably(&store.group(GroupId(1)), [entry(1, 0, 20)]).await;
    store.close().await.unwrap();
    let path = newest_segment(folder.path());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let store = open(folder.path()).await;
    assert_eq!(read_all(&store.group(GroupId(1))).await.len(), 1);
    store.close().await.unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096 + 20] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(try_open(folder.path(), small()).await, Err(LogError::Corrupt { .. })));
}

#[tokio::test]
async fn missing_and_foreign_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    for index in 0..60 {
        append_durably(&store.group(GroupId(1)), [entry(1, index, 4000)]).await;
    }
    store.close().await.unwrap();
    let segments = || {
        let files = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path());
        let mut segments: Vec<_> =
            files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
        segments.sort();
        segments
    };
    assert!(segments().len() > 2);

    let image = tempfile::tempdir().unwrap();
    copy(folder.path(), image.path());
    std::fs::remove_file(image.path().join(segments()[1].file_name().unwrap())).unwrap();
    assert!(matches!(try_open(image.path(), small()).await, Err(LogError::MissingSegment { .. })));

    let image = tempfile::tempdir().unwrap();
    copy(folder.path(), image.path());
    std::fs::remove_file(image.path().join("store")).unwrap();
    assert!(matches!(try_open(image.path(), small()).await, Err(LogError::Foreign { .. })));

    let image = tempfile::tempdir().unwrap();
    open(image.path()).await.close().await.unwrap();
    std::fs::copy(&segments()[0], newest_segment(image.path())).unwrap();
    assert!(matches!(try_open(image.path(), small()).await, Err(LogError::Foreign { .. })));

    for path in segments() {
        std::fs::remove_file(path).unwrap();
    }
    assert!(matches!(try_open(folder.path(), small()).await, Err(LogError::MissingSegment { .. })));
}

#[tokio::test]
async fn a_creation_that_was_cut_short_begins_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let incarnation = store.incarnation();
    drop(store);
    std::fs::remove_file(folder.path().join("store")).unwrap();
    let store = open(folder.path()).await;
    assert_ne!(store.incarnation(), incarnation);
    append_durably(&store.group(GroupId(1)), [entry(1, 0, 20)]).await;
}

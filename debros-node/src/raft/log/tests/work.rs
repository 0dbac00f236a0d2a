//! Ordinary work: what is asked for is there, for one group and for many.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use debros_proto::{GroupId, NodeId};
use futures::StreamExt;
use openraft::storage::{LeaderBoundedStreamError, RaftLogReader, RaftLogStorage};

use super::{
    Blocking, LogError, LogStore, Options, Vote, append, append_durably, copy, entry, log_id, membership,
    open, read_all, small, try_open, vote_of,
};

#[tokio::test]
async fn everything_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let incarnation = store.incarnation();
    let mut log = store.group(GroupId(7));
    assert_eq!((log.node_id(), store.groups()), (None, vec![]));
    log.set_node_id(NodeId(12)).await.unwrap();
    log.save_vote(&Vote::new_committed(3, 12)).await.unwrap();
    append_durably(&log, (0..10).map(|index| entry(2, index, 50))).await;
    append_durably(&log, [membership(3, 10)]).await;
    log.purge(log_id(2, 3)).await.unwrap();
    log.save_committed(Some(log_id(2, 8))).await.unwrap();
    store.close().await.unwrap();

    let store = open(folder.path()).await;
    assert_eq!(store.incarnation(), incarnation);
    assert_eq!(store.groups(), vec![GroupId(7)]);
    let mut log = store.group(GroupId(7));
    assert_eq!(log.node_id(), Some(NodeId(12)));
    assert_eq!(vote_of(&log).await, Some(Vote::new_committed(3, 12)));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(2, 8)));
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(2, 3)), Some(log_id(3, 10))));
    let expected: Vec<_> = (4..10).map(|index| entry(2, index, 50)).chain([membership(3, 10)]).collect();
    assert_eq!(read_all(&log).await, expected);
    let keys = log.get_key_log_ids(log_id(2, 4)..=log_id(3, 10)).await.unwrap();
    assert_eq!(keys, vec![log_id(2, 9), log_id(3, 10)]);
}

#[tokio::test]
async fn a_truncation_is_durable_before_anything_is_appended_behind_it() {
    // Raft commits and applies what follows as soon as others have it. If the old entries came back after a
    // crash, this replica would have applied what its log does not hold.
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let mut log = store.group(GroupId(1));
    append_durably(&log, (0..8).map(|index| entry(1, index, 20))).await;
    log.save_committed(Some(log_id(1, 4))).await.unwrap();
    log.truncate_after(Some(log_id(1, 4))).await.unwrap();
    let image = tempfile::tempdir().unwrap();
    copy(folder.path(), image.path());
    let crashed = open(image.path()).await;
    assert_eq!(read_all(&crashed.group(GroupId(1))).await.len(), 5);
    assert_eq!(crashed.group(GroupId(1)).read_committed().await.unwrap(), Some(log_id(1, 4)));
}

#[tokio::test]
async fn a_commit_that_the_log_does_not_hold_is_not_believed() {
    for (committed, believed) in [
        (log_id(1, 3), Some(log_id(1, 3))),
        (log_id(1, 9), Some(log_id(1, 7))),
        (log_id(2, 6), Some(log_id(1, 1))),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).await;
        let mut log = store.group(GroupId(1));
        append_durably(&log, (0..8).map(|index| entry(1, index, 20))).await;
        log.purge(log_id(1, 1)).await.unwrap();
        log.save_committed(Some(committed)).await.unwrap();
        store.close().await.unwrap();
        let mut log = open(folder.path()).await.group(GroupId(1));
        assert_eq!(log.read_committed().await.unwrap(), believed, "{committed}");
    }
}

#[tokio::test]
async fn entries_are_readable_before_they_are_durable() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let log = store.group(GroupId(1));
    let durable = append(&log, (0..3).map(|index| entry(1, index, 10))).await;
    assert_eq!(read_all(&log).await.len(), 3);
    durable.await.unwrap();
}

#[tokio::test]
async fn reads_come_from_disk_once_memory_has_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let store = try_open(folder.path(), Options { tail_bytes_max: 0, ..small() }).await.unwrap();
    let (log, other) = (store.group(GroupId(1)), store.group(GroupId(2)));
    for index in 0..200 {
        append_durably(&log, [entry(1, index, 3000)]).await;
        append_durably(&other, [entry(1, index, 700)]).await;
    }
    let expected: Vec<_> = (0..200).map(|index| entry(1, index, 3000)).collect();
    assert_eq!(read_all(&log).await, expected);
    let streamed: Vec<_> = log.clone().entries_stream(50..150).await.map(Result::unwrap).collect().await;
    assert_eq!(streamed, expected[50..150]);
}

#[tokio::test]
async fn limited_reads_stop_at_their_size_and_streams_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let mut log = store.group(GroupId(1));
    for index in 0..6 {
        append_durably(&log, [entry(1, index, 1 << 20)]).await;
    }
    assert_eq!(log.limited_get_log_entries(0, 6).await.unwrap().len(), 3);
    assert_eq!(log.entries_stream(..).await.count().await, 6);
}

#[tokio::test]
async fn a_leaders_stream_ends_with_its_vote() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let mut log = store.group(GroupId(1));
    let vote = Vote::new_committed(2, 1);
    log.save_vote(&vote).await.unwrap();
    append_durably(&log, [entry(2, 0, 1)]).await;
    assert_eq!(
        log.leader_bounded_stream(vote.leader_id, 0..1)
            .await
            .filter(|e| std::future::ready(e.is_ok()))
            .count()
            .await,
        1
    );
    log.save_vote(&Vote::new(3, 2)).await.unwrap();
    let entries: Vec<_> = log.leader_bounded_stream(vote.leader_id, 0..1).await.collect().await;
    assert!(matches!(&entries[..], [Err(LeaderBoundedStreamError::LeaderChanged(_))]));
}

#[tokio::test]
async fn one_flush_serves_many_groups() {
    let folder = tempfile::tempdir().unwrap();
    let flushed = Arc::new(AtomicU64::new(0));
    let count = flushed.clone();
    let on_flush = move |flush: &crate::raft::log::Flush| {
        count.fetch_add(flush.entries, Ordering::Relaxed);
    };
    let options = Options { on_flush: Some(Arc::new(on_flush)), ..Options::default() };
    let store = try_open(folder.path(), options).await.unwrap();
    let mut waiting = Vec::new();
    for index in 0..20 {
        for group in 1..=64 {
            waiting.push(append(&store.group(GroupId(group)), [entry(1, index, 200)]).await);
        }
    }
    for durable in waiting {
        durable.await.unwrap();
    }
    let statistics = store.statistics();
    assert_eq!((statistics.entries, flushed.load(Ordering::Relaxed)), (64 * 20, 64 * 20));
    assert!(statistics.flushes < 64 * 20 / 2, "{} flushes", statistics.flushes);
    assert!(store.bytes_on_disk() >= 64 << 20);
}

#[tokio::test(start_paused = true)]
async fn it_works_on_the_reactor_of_a_simulation() {
    let folder = tempfile::tempdir().unwrap();
    let blocking = Blocking::Inline(Arc::new(|| Duration::from_millis(3)));
    let store = LogStore::open(folder.path().to_owned(), blocking, small()).await.unwrap();
    let begin = tokio::time::Instant::now();
    let mut waiting = Vec::new();
    for group in 1..=8 {
        waiting.push(append(&store.group(GroupId(group)), [entry(1, 0, 100)]).await);
    }
    for durable in waiting {
        durable.await.unwrap();
    }
    assert_eq!(begin.elapsed(), Duration::from_millis(3));
    assert_eq!(store.statistics().flushes, 1);
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_removed_group_stays_away() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let mut log = store.group(GroupId(5));
    append_durably(&log, [entry(1, 0, 10)]).await;
    append_durably(&store.group(GroupId(6)), [entry(1, 0, 10)]).await;
    store.remove_group(GroupId(5)).await.unwrap();
    let refused = log.save_vote(&Vote::new(1, 1)).await.unwrap_err();
    assert!(refused.to_string().contains("removed"), "{refused}");
    store.close().await.unwrap();
    let store = open(folder.path()).await;
    assert_eq!(store.groups(), vec![GroupId(6)]);
    assert_eq!(read_all(&store.group(GroupId(5))).await, vec![]);
}

#[tokio::test]
async fn an_append_that_leaves_a_gap_or_is_too_large_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let mut log = store.group(GroupId(1));
    append_durably(&log, [entry(1, 0, 10)]).await;
    let noop = openraft::storage::IOFlushed::noop;
    let gap = log.append([entry(1, 2, 10)], noop()).await.unwrap_err();
    assert!(matches!(gap.downcast::<LogError>().unwrap(), LogError::Gap { expected: 1, found: 2, .. }));
    let large = entry(1, 1, debros_proto::limits::LOG_ENTRY_BYTES_MAX + 1);
    let large = log.append([large], noop()).await.unwrap_err();
    assert!(matches!(large.downcast::<LogError>().unwrap(), LogError::EntryTooLarge { .. }));
    // The largest that is allowed gets a segment of its own size.
    append_durably(&log, [entry(1, 1, debros_proto::limits::REQUEST_BYTES_MAX)]).await;
    append_durably(&log, [entry(1, 2, 10)]).await;
    store.close().await.unwrap();
    let store = open(folder.path()).await;
    assert_eq!(
        read_all(&store.group(GroupId(1))).await[1],
        entry(1, 1, debros_proto::limits::REQUEST_BYTES_MAX)
    );
}

#[tokio::test]
async fn a_closed_store_refuses_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let log = store.group(GroupId(1));
    store.close().await.unwrap();
    store.close().await.unwrap();
    assert!(matches!(log.set_node_id(NodeId(1)).await, Err(LogError::Closed)));
}

#[tokio::test]
async fn many_groups_at_once_keep_their_own_order() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let tasks: Vec<_> = (1..=16)
        .map(|group| {
            let mut log = store.group(GroupId(group));
            tokio::spawn(async move {
                for index in 0..60 {
                    append_durably(&log, [entry(group, index, 100)]).await;
                    if index % 20 == 19 {
                        log.purge(log_id(group, index - 10)).await.unwrap();
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    store.close().await.unwrap();
    let store = open(folder.path()).await;
    assert_eq!(store.groups().len(), 16);
    for group in 1..=16 {
        let expected: Vec<_> = (50..60).map(|index| entry(group, index, 100)).collect();
        assert_eq!(read_all(&store.group(GroupId(group))).await, expected);
    }
}

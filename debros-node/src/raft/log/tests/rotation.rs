//! Segments come and go; what groups rely on stays.

use debros_proto::{GroupId, NodeId};
use openraft::storage::RaftLogStorage;

use super::{Vote, append_durably, copy, entry, log_id, newest_segment, open, read_all, vote_of};

fn segment_count(folder: &std::path::Path) -> usize {
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).count()
}

#[tokio::test]
async fn hard_state_outlives_the_segment_it_was_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let mut quiet = store.group(GroupId(1));
    quiet.set_node_id(NodeId(4)).await.unwrap();
    quiet.save_vote(&Vote::new(6, 4)).await.unwrap();
    quiet.purge(log_id(5, 99)).await.unwrap();
    quiet.save_committed(Some(log_id(5, 99))).await.unwrap();
    let mut busy = store.group(GroupId(2));
    for index in 0..400 {
        append_durably(&busy, [entry(1, index, 2000)]).await;
        if index > 10 {
            busy.purge(log_id(1, index - 10)).await.unwrap();
        }
    }
    assert!(segment_count(folder.path()) <= 3);
    assert!(newest_segment(folder.path()) > folder.path().join("00000000000000000010.log"));
    store.close().await.unwrap();

    let store = open(folder.path()).await;
    let mut quiet = store.group(GroupId(1));
    assert_eq!(quiet.node_id(), Some(NodeId(4)));
    assert_eq!(vote_of(&quiet).await, Some(Vote::new(6, 4)));
    assert_eq!(quiet.get_log_state().await.unwrap().last_log_id, Some(log_id(5, 99)));
    assert_eq!(quiet.read_committed().await.unwrap(), Some(log_id(5, 99)));
    append_durably(&quiet, [entry(6, 100, 10)]).await;
    let busy = store.group(GroupId(2));
    assert_eq!(read_all(&busy).await, (390..400).map(|index| entry(1, index, 2000)).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_lagging_group_does_not_hold_back_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let lagging = store.group(GroupId(1));
    append_durably(&lagging, (0..20).map(|index| entry(1, index, 300))).await;
    let mut busy = store.group(GroupId(2));
    for index in 0..800 {
        append_durably(&busy, [entry(1, index, 2000)]).await;
        if index > 10 {
            busy.purge(log_id(1, index - 10)).await.unwrap();
        }
    }
    assert!(segment_count(folder.path()) <= 6, "{} segments", segment_count(folder.path()));
    let expected: Vec<_> = (0..20).map(|index| entry(1, index, 300)).collect();
    assert_eq!(read_all(&lagging).await, expected);
    let image = tempfile::tempdir().unwrap();
    copy(folder.path(), image.path());
    let store = open(image.path()).await;
    assert_eq!(read_all(&store.group(GroupId(1))).await, expected);
    append_durably(&store.group(GroupId(1)), [entry(1, 20, 10)]).await;
}

#[tokio::test]
async fn a_crash_while_a_segment_begins_is_survived() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let log = store.group(GroupId(1));
    let mut index = 0;
    while segment_count(folder.path()) < 3 {
        append_durably(&log, [entry(1, index, 2000)]).await;
        index += 1;
    }
    let expected = read_all(&log).await;
    drop((store, log));
    // The last append began the third segment: without it, the second one ends with its seal. Its
    // file may be absent, hold a former life's records, or half a header.
    let stale = std::fs::read(folder.path().join("00000000000000000001.log")).unwrap();
    let contents = [None, Some(stale.clone()), Some(vec![0; stale.len()]), Some(vec![0xff; 100])];
    for content in contents {
        let image = tempfile::tempdir().unwrap();
        copy(folder.path(), image.path());
        let path = newest_segment(image.path());
        match content {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let store = open(image.path()).await;
        let log = store.group(GroupId(1));
        assert_eq!(read_all(&log).await, expected[..expected.len() - 1]);
        append_durably(&log, [entry(2, index - 1, 2000)]).await;
        store.close().await.unwrap();
        let last = read_all(&open(image.path()).await.group(GroupId(1))).await.pop();
        assert_eq!(last, Some(entry(2, index - 1, 2000)));
    }
}

#[tokio::test]
async fn records_of_a_files_former_life_do_not_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let mut log = store.group(GroupId(1));
    // Records of one size, so that old ones begin exactly where new ones end.
    for index in 0..300 {
        append_durably(&log, [entry(1, index, 1000)]).await;
        if index % 10 == 9 {
            log.purge(log_id(1, index - 2)).await.unwrap();
        }
        if index % 13 == 0 {
            let image = tempfile::tempdir().unwrap();
            copy(folder.path(), image.path());
            let store = open(image.path()).await;
            let entries = read_all(&store.group(GroupId(1))).await;
            assert_eq!(entries.last(), Some(&entry(1, index, 1000)));
        }
    }
}

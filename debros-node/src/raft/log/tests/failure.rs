//! A failed write ends the store, and everybody hears of it.

use debros_proto::GroupId;
use openraft::storage::RaftLogStorage;

use super::{
    LogError, Options, Vote, append, append_durably, entry, log_id, open, read_all, small, try_open,
};

/// Set in the process that is to meet the limit.
const CHILD: &str = "DEBROS_TEST_FILE_SIZE_LIMIT";

#[test]
fn a_failed_write_fails_everything_that_waits_and_comes() {
    if std::env::var_os(CHILD).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(fail());
    }
    // The limit holds for a whole process, so it needs one of its own.
    let name = "raft::log::tests::failure::a_failed_write_fails_everything_that_waits_and_comes";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// From now on, a write behind this offset of any file is an error.
fn limit_file_size(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: both calls only read what they are given.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
    }
}

async fn fail() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let mut log = store.group(GroupId(1));
    append_durably(&log, [entry(1, 0, 10)]).await;
    limit_file_size(16 << 10);
    let failed = store.failed();
    let refused = append(&log, [entry(1, 1, 20_000)]).await.await.unwrap_err();
    assert!(refused.to_string().contains("must end"), "{refused}");
    let failure = failed.await;
    assert!(failure.to_string().contains("File too large"), "{failure}");
    assert!(log.save_vote(&Vote::new(1, 1)).await.is_err());
    assert!(log.append([entry(1, 2, 1)], openraft::storage::IOFlushed::noop()).await.is_err());
    assert!(log.purge(log_id(1, 0)).await.is_err());
    assert!(matches!(store.remove_group(GroupId(1)).await, Err(LogError::Failed(_))));
    assert!(matches!(store.close().await, Err(LogError::Failed(_))));
    // What was durable before is still there to read.
    assert_eq!(read_all(&log).await[0], entry(1, 0, 10));
}

#[tokio::test]
async fn a_segment_that_cannot_begin_fails_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let log = store.group(GroupId(1));
    // The next segment's name is taken.
    let taken = crate::raft::log::segment::path(folder.path(), 2);
    std::fs::create_dir_all(taken.join("in the way")).unwrap();
    append_durably(&log, [entry(1, 0, 30_000)]).await;
    append(&log, [entry(1, 1, 30_000)]).await.await.unwrap_err();
    let failure = store.failed().await;
    assert!(failure.to_string().contains("cannot rename"), "{failure}");
}

#[tokio::test]
async fn closing_ends_even_if_the_last_flush_fails() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let log = store.group(GroupId(1));
    std::fs::create_dir_all(crate::raft::log::segment::path(folder.path(), 2).join("in the way")).unwrap();
    let waiting = append(&log, [entry(1, 0, 60_000)]).await;
    assert!(matches!(store.close().await, Err(LogError::Failed(_))));
    waiting.await.unwrap_err();
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_an_error_at_open() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, b"not a folder").unwrap();
    let error = try_open(&file, Options { ..small() }).await.unwrap_err();
    assert!(matches!(error, LogError::Io { .. }), "{error}");
}

//! The log store over real files: openraft's own suite, crash images, damage, rotation, failure, and
//! a model that random operations are compared with.

mod damage;
mod failure;
mod model;
mod rotation;
mod suite;
mod work;

use std::path::Path;

use bytes::Bytes;
use debros_proto::v1;
use futures::future::BoxFuture;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::{EntryPayload, Membership};

use super::{GroupLog, LogError, LogStore, Options};
use crate::blocking::Blocking;
use crate::raft::codec::log_id_from_wire;
use crate::raft::types::{Command, Entry, LogId, TypeConfig, Vote};

/// Small, so that tests pass through many segments.
fn small() -> Options {
    Options { segment_bytes: 64 << 10, segments_max: 3, tail_bytes_max: 16 << 10, ..Options::default() }
}

async fn try_open(folder: &Path, options: Options) -> Result<LogStore, LogError> {
    LogStore::open(folder.to_owned(), Blocking::Threads, options).await
}

async fn open(folder: &Path) -> LogStore {
    try_open(folder, small()).await.expect("the folder is in order")
}

fn log_id(term: u64, index: u64) -> LogId {
    log_id_from_wire(&v1::LogId { term, leader: 1, index })
}

fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let fill = u8::try_from((term * 31 + index) % 251).expect("below 251");
    let command = Command::from(Bytes::from(vec![fill; bytes]));
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(command) }
}

fn membership(term: u64, index: u64) -> Entry {
    let voters = Membership::new_with_defaults(vec![[1, 2, 3].into()], []);
    Entry { log_id: log_id(term, index), payload: EntryPayload::Membership(voters) }
}

/// Appends, and gives what tells when it is durable.
async fn append(
    log: &GroupLog,
    entries: impl IntoIterator<Item = Entry>,
) -> BoxFuture<'static, std::io::Result<()>> {
    let (flushed, durable) = TypeConfig::oneshot();
    let entries: Vec<Entry> = entries.into_iter().collect();
    log.clone().append(entries, IOFlushed::signal(flushed)).await.expect("the entries fit");
    Box::pin(async move { durable.await.expect("every callback fires") })
}

async fn append_durably(log: &GroupLog, entries: impl IntoIterator<Item = Entry>) {
    append(log, entries).await.await.expect("the disk works");
}

async fn read_all(log: &GroupLog) -> Vec<Entry> {
    log.clone().try_get_log_entries(0..u64::MAX).await.expect("readable")
}

async fn vote_of(log: &GroupLog) -> Option<Vote> {
    log.clone().read_vote().await.expect("readable")
}

/// The files of a folder, as a process that dies now leaves them.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for file in std::fs::read_dir(from).expect("a folder") {
        let file = file.expect("a file");
        // A spare that is being made may come and go.
        let _ = std::fs::copy(file.path(), to.join(file.file_name()));
    }
}

/// The newest segment file.
fn newest_segment(folder: &Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(folder).expect("a folder").map(|file| file.expect("a file").path());
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .max()
        .expect("a segment")
}

//! A flush that fails ends the node: the kernel may count the lost pages as written, so trying again
//! proves nothing. This test binary answers `fsync` and `fdatasync` itself and fails them on demand.

use std::ffi::{c_int, c_long};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use debros_config::{Config, NodeType};
use debros_node::blocking::Blocking;
use debros_node::launch::launch;
use debros_node::node::NodeFailure;
use debros_node::raft::{CommittedCommand, Engine, Position};
use debros_node::sql::{SqlEngines, SqlMetrics};
use debros_sdk::{Client, Database, params};

/// Everything here ends within this.
const PATIENCE: Duration = Duration::from_secs(30);

/// Flushes of files under these folders fail.
static BROKEN: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn break_disk(folder: &Path) {
    BROKEN.lock().expect("not poisoned").push(folder.canonicalize().expect("it exists"));
}

#[unsafe(no_mangle)]
extern "C" fn fsync(file: RawFd) -> c_int {
    flush(file, libc::SYS_fsync)
}

#[unsafe(no_mangle)]
extern "C" fn fdatasync(file: RawFd) -> c_int {
    flush(file, libc::SYS_fdatasync)
}

fn flush(file: RawFd, call: c_long) -> c_int {
    let path = std::fs::read_link(format!("/proc/self/fd/{file}")).unwrap_or_default();
    if BROKEN.lock().expect("not poisoned").iter().any(|broken| path.starts_with(broken)) {
        // SAFETY: the place of errno is this thread's own.
        unsafe { *libc::__errno_location() = libc::EIO };
        return -1;
    }
    // SAFETY: the call takes any number for a descriptor.
    unsafe { libc::syscall(call, file) as c_int }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_flush_of_the_log_ends_the_node_and_acknowledges_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = Config::default();
    config.node.data_dir = folder.path().to_owned();
    config.node.node_type = NodeType::Bootstrap;
    config.node.listen_addresses = vec!["/ip4/127.0.0.1/tcp/0".parse().expect("an address")];
    config.database.rqlite_port = 0;
    config.admin.port = 0;
    let node = launch(&config).await.expect("it starts");
    let address = node.node.addresses().first().expect("it listens").to_string();
    let client = Client::builder("app").bootstrap_peers([address]).connect().await.expect("connects");
    let database = client.database();
    database.create_table("CREATE TABLE t (a)").await.expect("creates");

    break_disk(folder.path());
    let refused = database.execute("INSERT INTO t VALUES (1)", params![]);
    let (failure, refused) = tokio::time::timeout(PATIENCE, async { tokio::join!(node.failed(), refused) })
        .await
        .expect("the node tells in time");
    assert!(matches!(failure, NodeFailure::Log(_)), "{failure}");
    let refused = refused.expect_err("nothing is on disk");
    assert!(refused.maybe_applied(), "{refused}");
}

#[tokio::test]
async fn a_failed_flush_of_a_database_is_told_to_the_node() {
    let folder = tempfile::tempdir().expect("a folder");
    let engines = SqlEngines::new(Blocking::Threads, SqlMetrics::default());
    let engine = engines.open(folder.path().join("database")).await.expect("opens");
    let command = CommittedCommand { index: 1, command: Bytes::new() };
    engine.apply(vec![command], Position::default()).await.expect("applies");
    let failed = engines.failed();

    break_disk(folder.path());
    let fault = engine.make_durable().await.expect_err("the disk is broken");
    assert!(std::error::Error::source(&fault).is_some(), "{fault}");
    let failure = tokio::time::timeout(PATIENCE, failed).await.expect("the node is told");
    assert!(failure.to_string().contains("flush"), "{failure}");
}

//! Durable appends to the Raft log, one at a time from each of 1, 8 and 64 groups.
//! The folder is beside the build, not in a temporary file system: an fsync must cost what it costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use debros_node::blocking::Blocking;
use debros_node::raft::codec::log_id_from_wire;
use debros_node::raft::log::{GroupLog, LogStore, Options};
use debros_node::raft::types::{Command, Entry, TypeConfig};
use debros_proto::{GroupId, v1};
use openraft::EntryPayload;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;

const PAYLOAD_BYTES: usize = 200;

fn entry(index: u64, payload: bytes::Bytes) -> Entry {
    let log_id = log_id_from_wire(&v1::LogId { term: 1, leader: 1, index });
    Entry { log_id, payload: EntryPayload::Normal(Command::from(payload)) }
}

/// Appends entries one by one, each after the last is durable.
async fn write(mut log: GroupLog, first: u64, count: u64) {
    let payload = bytes::Bytes::from(vec![7; PAYLOAD_BYTES]);
    for index in first..first + count {
        let (flushed, durable) = TypeConfig::oneshot();
        log.append([entry(index, payload.clone())], IOFlushed::signal(flushed)).await.expect("room");
        durable.await.expect("answered").expect("durable");
        if index % 4096 == 4095 {
            log.purge(log_id_from_wire(&v1::LogId { term: 1, leader: 1, index: index - 1024 }))
                .await
                .expect("purged");
        }
    }
}

fn appends(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let mut benchmark = criterion.benchmark_group("raft_log_append");
    benchmark.throughput(Throughput::Elements(1)).measurement_time(Duration::from_secs(5));
    for groups in [1u64, 8, 64] {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let opened = LogStore::open(folder.path().join("log"), Blocking::Threads, Options::default());
        let store = Arc::new(runtime.block_on(opened).expect("an empty folder"));
        let mut next = 0;
        benchmark.bench_function(BenchmarkId::from_parameter(groups), |bencher| {
            bencher.iter_custom(|iterations| {
                let each = iterations.div_ceil(groups);
                let start = Instant::now();
                runtime.block_on(async {
                    let write = |group| tokio::spawn(write(store.group(GroupId(group)), next, each));
                    let writers: Vec<_> = (1..=groups).map(write).collect();
                    for writer in writers {
                        writer.await.expect("no panic");
                    }
                });
                next += each;
                // Measured per append, though a round may have a few more than asked for.
                start.elapsed().mul_f64(iterations as f64 / (each * groups) as f64)
            });
        });
        runtime.block_on(store.close()).expect("closed");
    }
    benchmark.finish();
}

criterion_group!(benches, appends);
criterion_main!(benches);

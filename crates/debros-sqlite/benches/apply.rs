//! How fast single-row inserts are applied, by batch size, with and without a session.

use std::cell::Cell;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use debros_sqlite::{
    Batch, BatchEntry, EntryEnvironment, Operation, Options, SessionWrite, Stamp, Statement, Value, Write,
    Writer,
};

const ROW_BYTES: usize = 32;

fn entry(index: u64, operation: Operation) -> BatchEntry {
    let environment =
        EntryEnvironment { unix_ms: 1_700_000_000_000 + index, seed: [7; 32], step_budget: 500_000_000 };
    BatchEntry { index, environment, stamp: Stamp::default(), operation }
}

fn insert(index: u64, session: Option<u64>) -> BatchEntry {
    let statement =
        Statement::with("INSERT INTO bench (value) VALUES (?)", [Value::Text("x".repeat(ROW_BYTES))]);
    entry(
        index,
        Operation::Write(Write {
            statements: vec![statement],
            session: session.map(|session| SessionWrite { session, sequence: index, acknowledged: index }),
            ..Write::default()
        }),
    )
}

fn apply(bencher: &mut Criterion) {
    let mut group = bencher.benchmark_group("apply_insert");
    for in_session in [false, true] {
        for size in [1u64, 64, 512] {
            let folder = tempfile::tempdir().expect("a folder");
            let mut writer =
                Writer::open(folder.path().join("bench.sqlite"), Options::default()).expect("opens");
            let create = Statement::new("CREATE TABLE bench (id INTEGER PRIMARY KEY, value TEXT)");
            let create = Write { statements: vec![create], ..Write::default() };
            let first = [
                entry(1, Operation::Write(create)),
                entry(2, Operation::OpenSession { lifetime_ms: 0 }),
                entry(3, Operation::SetLimits { max_bytes: 100 << 30 }),
            ];
            let batch = Batch { entries: &first, applied_index: 3, bookkeeping: b"3" };
            writer.apply_batch(batch, &|_| Vec::new()).expect("no fault");

            let next = Cell::new(4);
            let name = if in_session { "session" } else { "plain" };
            group.throughput(Throughput::Elements(size));
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter_batched(
                    || {
                        let from = next.replace(next.get() + size);
                        let session = in_session.then_some(2);
                        (from..from + size).map(|index| insert(index, session)).collect::<Vec<_>>()
                    },
                    |entries| {
                        let applied_index = entries.last().expect("entries").index;
                        let bookkeeping = applied_index.to_le_bytes();
                        let batch = Batch { entries: &entries, applied_index, bookkeeping: &bookkeeping };
                        let applied = writer.apply_batch(batch, &|_| vec![0; 40]).expect("no fault");
                        // As the node does, so that the write-ahead log stays short.
                        if applied_index / 20_000 != (applied_index - size) / 20_000 {
                            writer.checkpoint().expect("no fault");
                        }
                        black_box(applied)
                    },
                    criterion::BatchSize::PerIteration,
                );
            });
        }
    }
    group.finish();
}

criterion_group!(benches, apply);
criterion_main!(benches);

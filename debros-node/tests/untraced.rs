//! What traces cost where nobody records any: nothing is allocated. An allocator that counts is the witness, so this is
//! a program of its own with one test.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use debros_node::trace::{
    Identity, KeyValue, Root, SpanKind, TraceMetrics, TraceOptions, Tracer, child, recorded, under,
};
use futures::FutureExt;
use tokio_util::task::TaskTracker;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: it hands on to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const REQUESTS: u32 = 10_000;

/// A request with one part, as a write has it.
fn request(tracer: &Tracer) {
    let attributes = || vec![KeyValue::new("rpc.method", "Execute")];
    let root = Root { name: "Execute", kind: SpanKind::Server, attributes };
    let work = async {
        let mut part = child("raft propose", SpanKind::Internal);
        part.tell(|| vec![KeyValue::new("debros.group", "7")]);
        assert!(part.sampled().is_none() && recorded().is_none());
    };
    // It waits for nothing.
    under(None, tracer.request(root, work, |()| None)).now_or_never().expect("it ends at once");
}

/// Allocations of one request, and how long it takes.
fn cost(tracer: &Tracer) -> (usize, Duration) {
    request(tracer);
    let (before, started) = (ALLOCATIONS.load(Ordering::Relaxed), Instant::now());
    (0..REQUESTS).for_each(|_| request(tracer));
    let took = started.elapsed() / REQUESTS;
    ((ALLOCATIONS.load(Ordering::Relaxed) - before) / REQUESTS as usize, took)
}

#[tokio::test]
async fn nothing_is_allocated_where_nobody_records() {
    let (allocations, took) = cost(&Tracer::off());
    println!("off: {allocations} allocations, {took:?} a request");
    assert_eq!(allocations, 0);

    let options = TraceOptions {
        endpoint: "http://127.0.0.1:9".to_owned(),
        sampling_ratio: 0.0,
        slow: Duration::from_secs(60),
    };
    let identity = Identity { peer: "peer".to_owned(), zone: String::new() };
    let (tracker, metrics) = (TaskTracker::new(), TraceMetrics::default());
    let tracer = Tracer::start(&options, &identity, metrics, &tracker).expect("it starts");
    let (allocations, took) = cost(&tracer);
    println!("on, not sampled: {allocations} allocations, {took:?} a request");
    // The request, and room for the parts that are remembered until it has ended.
    assert!(allocations <= 2, "{allocations}");
    tracer.stop();
    tracker.close();
    tracker.wait().await;
}

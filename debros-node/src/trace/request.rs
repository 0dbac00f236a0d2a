//! One request: its local root, the spans under it, and what becomes of them when it ends.
//!
//! The request of a task is a task-local, so that whatever works for it can add a span without being handed one. A
//! child may outlive its request: it is then kept if the request was.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use debros_proto::{TraceContext, limits};
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;

use super::parent;
use super::record::{Moment, Record, new_span, new_trace};
use super::tracer::Shared;

tokio::task_local! {
    static CURRENT: Arc<Request>;
}

/// What a request is, as its span tells.
pub struct Root<A> {
    /// One of few names.
    pub name: &'static str,
    /// Which side of a call it is.
    pub kind: SpanKind,
    /// What is told of it; asked for when it is kept.
    pub attributes: A,
}

struct Request {
    shared: Arc<Shared>,
    /// The root's. Sampled is what was decided at its beginning.
    context: TraceContext,
    parent: Option<TraceContext>,
    began: Moment,
    /// It is kept, whatever was decided at its beginning.
    keep: AtomicBool,
    state: Mutex<State>,
}

enum State {
    /// Children that have ended, and how many more than fit.
    UnderWay {
        ended: Vec<Record>,
        dropped: u32,
    },
    Ended {
        kept: bool,
    },
}

impl Request {
    fn begin(shared: Arc<Shared>) -> Self {
        let parent = parent::current();
        let trace = parent.map_or_else(new_trace, |parent| parent.trace);
        let sampled = parent.map_or_else(|| shared.samples(trace), |parent| parent.sampled);
        let context = TraceContext { trace, span: new_span(), sampled };
        let state = Mutex::new(State::UnderWay { ended: Vec::new(), dropped: 0 });
        Self { shared, context, parent, began: Moment::now(), keep: AtomicBool::new(false), state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, child: Record) {
        match &mut *self.state() {
            State::UnderWay { ended, .. } if ended.len() < limits::TRACE_SPANS_PER_REQUEST_MAX => {
                ended.push(child);
            }
            State::UnderWay { dropped, .. } => *dropped += 1,
            State::Ended { kept: true } => self.shared.keep(vec![child]),
            State::Ended { kept: false } => {}
        }
    }

    fn end<A: FnOnce() -> Vec<KeyValue>>(&self, root: Root<A>, error: Option<&'static str>) {
        let took = self.began.elapsed();
        let slow = took >= self.shared.slow();
        let kept = self.context.sampled || slow || error.is_some() || self.keep.load(Ordering::Relaxed);
        let before = std::mem::replace(&mut *self.state(), State::Ended { kept });
        let State::UnderWay { mut ended, dropped } = before else { return };
        if !kept {
            return;
        }
        let Root { name, kind, attributes } = root;
        let mut attributes = attributes();
        if !self.context.sampled {
            attributes.push(KeyValue::new("debros.kept", if error.is_some() { "failed" } else { "slow" }));
        }
        if dropped > 0 {
            attributes.push(KeyValue::new("debros.spans_dropped", i64::from(dropped)));
        }
        ended.push(Record {
            name: name.into(),
            kind,
            context: self.context,
            parent: self.parent.map(|parent| parent.span),
            remote: true,
            began: self.began,
            took,
            attributes,
            links: Vec::new(),
            error,
        });
        self.shared.keep(ended);
    }
}

/// Ends a request also when it is given up.
struct Ending<A: FnOnce() -> Vec<KeyValue>> {
    request: Arc<Request>,
    root: Option<Root<A>>,
    /// What went wrong; given up until it has ended.
    error: Option<&'static str>,
}

impl<A: FnOnce() -> Vec<KeyValue>> Drop for Ending<A> {
    fn drop(&mut self) {
        if let Some(root) = self.root.take() {
            self.request.end(root, self.error);
        }
    }
}

/// Carries out `work` as a request; `failed` gives the code of what went wrong.
pub(super) async fn run<T>(
    shared: Arc<Shared>,
    root: Root<impl FnOnce() -> Vec<KeyValue>>,
    work: impl Future<Output = T>,
    failed: impl FnOnce(&T) -> Option<&'static str>,
) -> T {
    let request = Arc::new(Request::begin(shared));
    let mut ending = Ending { request: request.clone(), root: Some(root), error: Some("cancelled") };
    let result = CURRENT.scope(request, work).await;
    ending.error = failed(&result);
    result
}

/// Says that the request which this task works for is kept: it has failed, and what is logged of it from now on names
/// its trace.
pub fn keep() {
    let _ = CURRENT.try_with(|request| request.keep.store(true, Ordering::Relaxed));
}

/// The request of this task, where it is certain that it can be found by its trace.
pub fn recorded() -> Option<TraceContext> {
    let found = |request: &Arc<Request>| {
        let recorded = request.context.sampled || request.keep.load(Ordering::Relaxed);
        recorded.then_some(request.context)
    };
    CURRENT.try_with(found).ok().flatten()
}

/// Begins a part of the request that this task works for; it ends when it is dropped.
pub fn child(name: &'static str, kind: SpanKind) -> Child {
    let begin = |request: &Arc<Request>| Begun {
        request: request.clone(),
        record: Record::beginning(name, kind, &request.context, request.began.later()),
    };
    Child(CURRENT.try_with(begin).ok())
}

/// A part of a request.
#[must_use = "it ends when it is dropped"]
pub struct Child(Option<Begun>);

struct Begun {
    request: Arc<Request>,
    record: Record,
}

impl Child {
    /// The context to send along with a call that this part is, sampled or not. There is one wherever requests are
    /// traced.
    pub fn context(&self) -> Option<TraceContext> {
        self.0.as_ref().map(|begun| begun.record.context)
    }

    /// The same, only of a sampled request.
    pub fn sampled(&self) -> Option<TraceContext> {
        self.context().filter(|context| context.sampled)
    }

    /// Tells more of it, if the request is sampled: of others only times and names are kept.
    pub fn tell(&mut self, attributes: impl FnOnce() -> Vec<KeyValue>) {
        if let Some(begun) = self.0.as_mut().filter(|begun| begun.record.context.sampled) {
            begun.record.attributes.extend(attributes());
        }
    }

    /// Ends it with the code of what went wrong.
    pub fn fail(mut self, code: &'static str) {
        if let Some(begun) = &mut self.0 {
            begun.record.error = Some(code);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(Begun { request, mut record }) = self.0.take() {
            record.took = record.began.elapsed();
            request.add(record);
        }
    }
}

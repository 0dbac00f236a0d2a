//! What a replica does for sampled requests of other nodes, in their traces.

use debros_proto::{TraceContext, v1};
use futures::FutureExt;
use futures::future::BoxFuture;
use v1::replica_reply::Outcome;

use crate::trace::{Moment, Record, SpanKind, Tracer};

type Replies = BoxFuture<'static, Vec<v1::ReplicaReply>>;

/// The sampled ones among the calls of one message.
pub(super) struct Asked {
    tracer: Tracer,
    arrived: Moment,
    calls: Vec<(u64, TraceContext)>,
}

impl Asked {
    /// Those of these calls; `None` where nobody records any.
    pub(super) fn of(tracer: &Tracer, calls: &[v1::ReplicaCall]) -> Option<Self> {
        let sampled = calls.iter().filter_map(|call| Some((call.id, tracer.sampled(call.trace)?)));
        let calls: Vec<_> = sampled.collect();
        (!calls.is_empty()).then(|| Self { tracer: tracer.clone(), arrived: Moment::now(), calls })
    }

    /// The same work, recorded when it is done.
    pub(super) fn follow(&self, work: Replies) -> Replies {
        let Self { tracer, arrived, calls } = self;
        let (tracer, arrived, calls) = (tracer.clone(), *arrived, calls.clone());
        let work = work.inspect(move |replies| {
            for v1::ReplicaReply { id, outcome } in replies {
                let Some((_, parent)) = calls.iter().find(|(asked, _)| asked == id) else { continue };
                let mut span = Record::ending_now("replica", SpanKind::Server, parent, arrived);
                span.remote = true;
                if let Some(Outcome::Failure(failure)) = outcome {
                    let code = failure.detail.as_ref().map(v1::ErrorDetail::code);
                    span.error = Some(code.unwrap_or_default().as_str_name());
                }
                tracer.record(span);
            }
        });
        work.boxed()
    }
}

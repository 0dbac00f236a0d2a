//! What appending is in the traces of sampled requests: from the queue to the disk, and the flush in it.

use std::time::Duration;

use debros_proto::GroupId;
use openraft::EntryPayload;

use super::group::Sized;
use crate::raft::types::EntryTrace;
use crate::trace::{KeyValue, Moment, Record, SpanKind, Tracer};

/// The traced entries of one append; nearly always none.
#[derive(Default)]
pub(super) struct Traces(Option<Box<Traced>>);

struct Traced {
    queued: Moment,
    /// With their indexes.
    entries: Vec<(u64, EntryTrace)>,
}

impl Traces {
    /// Those among these entries, if anybody records them.
    pub(super) fn of(tracer: &Tracer, entries: &[Sized]) -> Self {
        if !tracer.is_on() {
            return Self(None);
        }
        let traced = entries.iter().filter_map(|Sized { entry, .. }| match &entry.payload {
            EntryPayload::Normal(command) => Some((entry.log_id.index, **command.trace.as_ref()?)),
            _ => None,
        });
        let entries: Vec<_> = traced.collect();
        Self((!entries.is_empty()).then(|| Box::new(Traced { queued: Moment::now(), entries })))
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// They are durable now, by a flush that began at `flush` and took `took`.
    pub(super) fn tell(&self, group: GroupId, tracer: &Tracer, flush: Moment, took: Duration) {
        let Some(Traced { queued, entries }) = self.0.as_deref() else { return };
        for (index, EntryTrace { parent, replicated }) in entries {
            let kind = if *replicated { SpanKind::Server } else { SpanKind::Internal };
            let name = if *replicated { "raft append (replica)" } else { "raft append" };
            let mut append = Record::ending_now(name, kind, parent, *queued);
            append.remote = *replicated;
            append.attributes = vec![
                KeyValue::new("debros.group", group.to_string()),
                // An index past 2^63 takes longer than this software lasts.
                KeyValue::new("debros.log_index", *index as i64),
            ];
            let fsync =
                Record { took, ..Record::ending_now("fsync", SpanKind::Internal, &append.context, flush) };
            tracer.record(fsync);
            tracer.record(append);
        }
    }
}

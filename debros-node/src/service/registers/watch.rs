//! The two kinds of streams behind a watch: of this node's replica, and of another node.

use debros_proto::{ErrorCode, Failure, limits, v1};
use futures::{StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::Watch;
use crate::sql::{self, Watcher};

type Told = Result<v1::RegisterWatchResponse, Failure>;

/// Messages of a forwarded watch that wait for its client; one that lets more come is cut off.
const FORWARDED_WAITING_MAX: usize = 16;

/// A watch of a replica of this node.
struct Local {
    watcher: Watcher,
    replica: sql::Database,
    stopping: CancellationToken,
    begun: bool,
    _permit: OwnedSemaphorePermit,
}

/// Tells of what the replica applies, first of where it begins. Ends when the replica is closed, hears no leader,
/// or the node stops.
pub(super) fn local(
    watcher: Watcher,
    replica: sql::Database,
    stopping: CancellationToken,
    permit: OwnedSemaphorePermit,
) -> Watch {
    let local = Local { watcher, replica, stopping, begun: false, _permit: permit };
    // `None` once the end was told.
    Box::pin(stream::unfold(Some(local), |local| async {
        let mut local = local?;
        let told = local.next().await;
        let goes_on = told.is_ok();
        Some((told, goes_on.then_some(local)))
    }))
}

impl Local {
    async fn next(&mut self) -> Told {
        if !std::mem::replace(&mut self.begun, true) {
            return Ok(self.watcher.take());
        }
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => Err(stopped()),
            told = self.watcher.next() => {
                told.ok_or_else(|| Failure::new(ErrorCode::Unavailable, "the watched replica was closed"))
            }
            () = sleep(limits::WATCH_PROGRESS_INTERVAL) => {
                if !self.replica.group().is_led() {
                    let message = "the watched replica hears no leader: it may miss what is written";
                    return Err(Failure::new(ErrorCode::Unavailable, message));
                }
                Ok(self.watcher.take())
            }
        }
    }
}

/// Hands on what another node tells. The future drains the stream, so that it never holds up others on the
/// connection, and is to be spawned: it ends with the stream, with its client or with the node.
pub(super) fn remote(
    mut stream: tonic::Streaming<v1::RegisterWatchResponse>,
    stopping: CancellationToken,
    permit: OwnedSemaphorePermit,
) -> (Watch, impl Future<Output = ()> + Send) {
    let (sender, receiver) = mpsc::channel::<v1::RegisterWatchResponse>(FORWARDED_WAITING_MAX);
    let (end, ended) = oneshot::channel();
    let drain = async move {
        let _permit = permit;
        let failure = loop {
            let told = tokio::select! {
                biased;
                () = stopping.cancelled() => break stopped(),
                () = sender.closed() => return,
                told = stream.message() => told,
            };
            match told {
                Ok(Some(told)) => {
                    if sender.try_send(told).is_err() {
                        let message = "the watcher takes too long: go on from the last revision";
                        break Failure::new(ErrorCode::Busy, message);
                    }
                }
                Ok(None) => break Failure::new(ErrorCode::Unavailable, "the watch has ended"),
                Err(status) => break Failure::from_status(&status).without_effect(),
            }
        };
        // A client that is gone need not be told.
        let _ = end.send(failure);
    };
    let end = stream::once(ended).filter_map(|failure| async { failure.ok().map(Err) });
    (Box::pin(ReceiverStream::new(receiver).map(Ok).chain(end)), drain)
}

fn stopped() -> Failure {
    Failure::new(ErrorCode::ShuttingDown, "the node is stopping: watch another")
}

//! A request that another node answers in this one's place: one call, as a part of the request's trace.

use std::future::Future;

use debros_net::PeerId;
use debros_net::grpc::open_error;
use debros_proto::{ErrorCode, Failure};

use crate::trace::{self, KeyValue, SpanKind};

/// Makes the call. One that never reached it has certainly had no effect.
pub(super) async fn forwarded<Q, T, F>(
    peer: PeerId,
    request: Q,
    call: impl FnOnce(tonic::Request<Q>) -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
{
    let mut part = trace::child("forward", SpanKind::Client);
    part.tell(|| vec![KeyValue::new("network.peer.address", peer.to_string())]);
    let answer = call(trace::carrying(request, part.context())).await;
    let answer = answer.map(tonic::Response::into_inner).map_err(|status| match open_error(&status) {
        Some(error) => Failure::new(ErrorCode::Unavailable, error.to_string()),
        None => Failure::from_status(&status),
    });
    if let Err(failure) = &answer {
        part.fail(failure.code.as_str_name());
    }
    answer
}

//! What stands in the place of [`crate::otel`] without the feature `otel`: nothing is a span, and no call carries a
//! context.

use debros_proto::v1;
use tonic::Request;
use tracing::Span;

use crate::call::Failed;
use crate::error::Error;
use crate::pubsub::batch::Outgoing;
use crate::pubsub::message::{Headers, Message};

pub(crate) async fn call<T>(
    _message: &'static str,
    _namespace: &str,
    work: impl Future<Output = Result<T, Failed>>,
) -> Result<T, Failed> {
    work.await
}

pub(crate) async fn publishing<T>(
    _topic: &str,
    _namespace: &str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    work.await
}

pub(crate) fn handling(_message: &Message) -> Span {
    Span::none()
}

pub(crate) fn carrying<Q>(request: Q) -> Request<Q> {
    Request::new(request)
}

pub(crate) fn context() -> Option<v1::TraceContext> {
    None
}

pub(crate) fn headers(_message: &Outgoing<'_>) -> Option<Headers> {
    None
}

//! How the caller's context comes in: with the metadata of a unary call, the headers of an HTTP request, or beside a
//! call on a stream. What cannot be read counts as not sent.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::http::{HeaderMap, Request};
use axum::response::Response;
use debros_proto::TraceContext;
use debros_proto::trace::TRACEPARENT;
use tokio::task::futures::TaskLocalFuture;
use tonic::service::Routes;
use tower::{Layer, Service};

tokio::task_local! {
    static PARENT: TraceContext;
}

/// The caller's context of what this task does.
pub(super) fn current() -> Option<TraceContext> {
    PARENT.try_with(|parent| *parent).ok()
}

/// Carries out `work` under its caller's context: a request that begins in it belongs to that trace.
pub async fn under<T>(parent: Option<TraceContext>, work: impl Future<Output = T>) -> T {
    match parent {
        Some(parent) => PARENT.scope(parent, work).await,
        None => work.await,
    }
}

/// The caller's context, where the headers have one.
pub fn from_headers(headers: &HeaderMap) -> Option<TraceContext> {
    TraceContext::parse(headers.get(TRACEPARENT)?.as_bytes())
}

/// A unary call that carries this context.
pub fn carrying<Q>(request: Q, context: Option<TraceContext>) -> tonic::Request<Q> {
    let mut request = tonic::Request::new(request);
    // It is made of digits and dashes.
    if let Some(Ok(text)) = context.map(|context| context.traceparent().parse()) {
        request.metadata_mut().insert(TRACEPARENT, text);
    }
    request
}

/// The same services, whose unary calls are carried out under their callers' contexts.
pub fn route(routes: Routes) -> Routes {
    Routes::from(routes.into_axum_router().layer(ParentLayer))
}

#[derive(Clone)]
struct ParentLayer;

impl<S> Layer<S> for ParentLayer {
    type Service = UnderParent<S>;

    fn layer(&self, inner: S) -> UnderParent<S> {
        UnderParent { inner }
    }
}

#[derive(Clone)]
struct UnderParent<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for UnderParent<S>
where
    S: Service<Request<B>, Response = Response>,
    S::Future: Unpin,
{
    type Response = Response;
    type Error = S::Error;
    type Future = MaybeUnder<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match from_headers(request.headers()) {
            Some(parent) => MaybeUnder::Parent(Box::pin(PARENT.scope(parent, self.inner.call(request)))),
            None => MaybeUnder::None(self.inner.call(request)),
        }
    }
}

/// The work on a call, with a caller's context or without.
enum MaybeUnder<F> {
    Parent(Pin<Box<TaskLocalFuture<TraceContext, F>>>),
    None(F),
}

impl<F: Future + Unpin> Future for MaybeUnder<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        match &mut *self {
            Self::Parent(work) => work.as_mut().poll(context),
            Self::None(work) => Pin::new(work).poll(context),
        }
    }
}

//! `debros.v1.Storage`.

use std::pin::Pin;

use debros_net::calls::Answers;
use debros_proto::{Failure, TraceContext, limits, v1};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use v1::storage_reply::Outcome;
use v1::storage_request::Operation;
use v1::storage_server::StorageServer;

use super::meter::{Asker, RpcMetrics};
use super::principal;
use crate::service::{Principal, Storage};
use crate::trace::under;

struct Service {
    storage: Storage,
    metrics: RpcMetrics,
    stop: CancellationToken,
}

/// The service, to be mounted on the client lane. A client's stream lasts as long as the client: it ends once `stop` is
/// cancelled, or a stop would wait for all of them.
pub fn storage_service(
    storage: Storage,
    metrics: RpcMetrics,
    stop: CancellationToken,
) -> StorageServer<impl v1::storage_server::Storage> {
    StorageServer::new(Service { storage, metrics, stop })
        .max_decoding_message_size(limits::CALLS_FRAME_BYTES_MAX)
        .max_encoding_message_size(limits::CALLS_FRAME_BYTES_MAX)
}

type Frames<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    /// A stream asks at every turn whether it is to end, so each has a token, and with it a lock, of its own.
    fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        self.stop.child_token().cancelled_owned()
    }
}

#[tonic::async_trait]
impl v1::storage_server::Storage for Service {
    type OperateStream = Frames<v1::StorageReplies>;
    type WatchStream = Frames<v1::StorageEvents>;

    async fn operate(
        &self,
        request: Request<Streaming<v1::StorageCalls>>,
    ) -> Result<Response<Self::OperateStream>, Status> {
        let principal = principal(&request)?;
        let (storage, metrics) = (self.storage.clone(), self.metrics.clone());
        let answers = Answers::new(
            request.into_inner(),
            move |calls, under_way: &FuturesUnordered<BoxFuture<'static, Vec<v1::StorageReply>>>| {
                for call in calls {
                    let answer = answer(storage.clone(), metrics.clone(), principal.clone(), call);
                    under_way.push(Box::pin(answer));
                }
            },
        );
        Ok(Response::new(Box::pin(answers.until(self.stopped()))))
    }

    async fn watch(
        &self,
        request: Request<v1::WatchStorageRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let asker = Asker::of(&request);
        let events = async { self.storage.watch(&principal, request) };
        let events = self.metrics.measure("WatchStorage", &asker, events).await?.into_inner();
        Ok(Response::new(events.map(Ok).take_until(self.stopped()).boxed()))
    }

    async fn layout(
        &self,
        request: Request<v1::LayoutRequest>,
    ) -> Result<Response<v1::LayoutResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let answer = async { self.storage.layout(&principal, &request) };
        self.metrics.measure("Layout", &Asker::of(&request), answer).await
    }
}

async fn answer(
    storage: Storage,
    metrics: RpcMetrics,
    principal: Principal,
    call: v1::StorageCall,
) -> Vec<v1::StorageReply> {
    let v1::StorageCall { id, request, trace } = call;
    let outcome = match request {
        None => Err(Failure::invalid("a call without a request")),
        Some(request) => {
            let method = match request.operation {
                Some(Operation::Put(_)) => "StoragePut",
                Some(Operation::Delete(_)) => "StorageDelete",
                Some(Operation::Get(_)) => "StorageGet",
                Some(Operation::List(_)) => "StorageList",
                None => "Storage",
            };
            let asker = Asker::of(&request);
            let parent = trace.and_then(TraceContext::from_wire);
            let operated = metrics.measure_call(method, &asker, storage.operate(&principal, request));
            under(parent, operated).await
        }
    };
    let outcome = match outcome {
        Ok(response) => Outcome::Response(response),
        Err(failure) => Outcome::Failure(failure.into_call()),
    };
    vec![v1::StorageReply { id, outcome: Some(outcome) }]
}

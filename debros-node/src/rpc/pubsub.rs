//! `debros.v1.PubSub`.

use debros_proto::{Failure, limits, v1};
use futures::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};
use v1::pub_sub_server::{PubSub, PubSubServer};
use v1::session_call::Call;

use super::meter::{Asker, RpcMetrics};
use super::principal;
use crate::service::Messages;

struct Service {
    messages: Messages,
    metrics: RpcMetrics,
}

/// The service, to be mounted on the client lane.
pub fn pubsub_service(messages: Messages, metrics: RpcMetrics) -> PubSubServer<impl PubSub> {
    PubSubServer::new(Service { messages, metrics })
        .max_decoding_message_size(limits::PUBSUB_FRAME_BYTES_MAX)
        .max_encoding_message_size(limits::PUBSUB_FRAME_BYTES_MAX)
}

#[tonic::async_trait]
impl PubSub for Service {
    type SessionStream = BoxStream<'static, Result<v1::SessionEvent, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionCall>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (principal, mut calls) = (principal(&request)?, request.into_inner());
        let first = tokio::time::timeout(limits::REQUEST_TIMEOUT_DEFAULT, calls.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("the session was not attached in time"))?;
        let Some(Call::Attach(attach)) = first?.and_then(|call| call.call) else {
            return Err(Failure::invalid("the first call of a session is attach").into());
        };
        let asker = Asker::of(&attach);
        let attached = async { self.messages.attach(&principal, &attach, calls) };
        self.metrics.measure("PubSubSession", &asker, attached).await
    }

    async fn topics(
        &self,
        request: Request<v1::TopicsRequest>,
    ) -> Result<Response<v1::TopicsResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let answer = async { self.messages.topics(&principal, &request) };
        self.metrics.measure("PubSubTopics", &Asker::of(&request), answer).await
    }

    async fn present(
        &self,
        request: Request<v1::PresentRequest>,
    ) -> Result<Response<v1::PresentResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let answer = async { self.messages.present(&principal, &request) };
        self.metrics.measure("PubSubPresent", &Asker::of(&request), answer).await
    }
}

//! `debros.v1.Replica`: what other nodes ask this one.

use std::pin::Pin;
use std::sync::Arc;

use debros_net::PeerId;
use debros_net::calls::Answers;
use debros_proto::{Failure, limits, v1};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use v1::replica_server::ReplicaServer;

use super::KvSlot;
use super::traces::Asked;
use super::watch;
use crate::trace::Tracer;

/// Whether a peer is a node of this cluster.
pub type IsMember = Arc<dyn Fn(PeerId) -> bool + Send + Sync>;

/// The service for nodes.
pub struct ReplicaService {
    kv: KvSlot,
    is_member: IsMember,
    tracer: Tracer,
}

impl ReplicaService {
    /// To be mounted on the lanes `kv` and `bulk`.
    pub fn server(kv: KvSlot, is_member: IsMember, tracer: Tracer) -> ReplicaServer<Self> {
        ReplicaServer::new(Self { kv, is_member, tracer })
            .max_decoding_message_size(limits::CALLS_FRAME_BYTES_MAX)
            .max_encoding_message_size(limits::CALLS_FRAME_BYTES_MAX)
    }

    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let caller = debros_net::grpc::caller(request);
        match caller {
            Some(caller) if (self.is_member)(caller.peer) => Ok(()),
            _ => Err(Status::permission_denied("only nodes of this cluster ask this of one another")),
        }
    }
}

type Frames<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl v1::replica_server::Replica for ReplicaService {
    type OperateStream = Frames<v1::ReplicaReplies>;
    type WatchStream = Frames<v1::ReplicaChanges>;
    type CopyStream = Frames<v1::CopyPart>;

    async fn operate(
        &self,
        request: Request<Streaming<v1::ReplicaCalls>>,
    ) -> Result<Response<Self::OperateStream>, Status> {
        self.check(&request)?;
        let replica = self.kv.get()?.coordinator.inner.replica.clone();
        let tracer = self.tracer.clone();
        let answers = Answers::new(
            request.into_inner(),
            move |calls, under_way: &FuturesUnordered<BoxFuture<'static, Vec<v1::ReplicaReply>>>| {
                let asked = Asked::of(&tracer, &calls);
                for work in replica.answer(calls) {
                    under_way.push(match &asked {
                        Some(asked) => asked.follow(work),
                        None => work,
                    });
                }
            },
        );
        Ok(Response::new(Box::pin(answers)))
    }

    async fn watch(
        &self,
        request: Request<v1::WatchReplicaRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.check(&request)?;
        let v1::WatchReplicaRequest { header: _, namespace, prefix } = request.into_inner();
        let changes = self.kv.get()?.coordinator.inner.replica.store().watch();
        Ok(Response::new(watch::changes(changes, namespace, prefix).map(Ok).boxed()))
    }

    async fn copy(&self, request: Request<v1::CopyRequest>) -> Result<Response<Self::CopyStream>, Status> {
        self.check(&request)?;
        let v1::CopyRequest { header: _, layout, partitions } = request.into_inner();
        let parts = self.kv.get()?.coordinator.inner.replica.copy(layout, partitions);
        let parts = parts.map_err(|failure: Failure| Status::from(failure))?;
        Ok(Response::new(parts.boxed()))
    }
}

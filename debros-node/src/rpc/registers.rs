//! `debros.v1.Registers`.

use std::pin::Pin;

use debros_proto::{limits, v1};
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use v1::registers_server::{Registers, RegistersServer};

use super::meter::{Asker, RpcMetrics};
use super::principal;
use crate::service;

struct Service {
    registers: service::Registers,
    metrics: RpcMetrics,
}

/// The service, to be mounted on the client lane.
pub fn registers_service(
    registers: service::Registers,
    metrics: RpcMetrics,
) -> RegistersServer<impl Registers> {
    RegistersServer::new(Service { registers, metrics })
        .max_decoding_message_size(limits::LOG_ENTRY_BYTES_MAX)
        .max_encoding_message_size(limits::RESPONSE_BYTES_MAX)
}

#[tonic::async_trait]
impl Registers for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::RegisterWatchResponse, Status>> + Send>>;

    async fn write(
        &self,
        request: Request<v1::RegisterWriteRequest>,
    ) -> Result<Response<v1::RegisterWriteResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let asker = Asker::of(&request);
        self.metrics.measure("RegisterWrite", &asker, self.registers.write(&principal, request)).await
    }

    async fn get(
        &self,
        request: Request<v1::RegisterGetRequest>,
    ) -> Result<Response<v1::RegisterGetResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let asker = Asker::of(&request);
        self.metrics.measure("RegisterGet", &asker, self.registers.get(&principal, request)).await
    }

    async fn list(
        &self,
        request: Request<v1::RegisterListRequest>,
    ) -> Result<Response<v1::RegisterListResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let asker = Asker::of(&request);
        self.metrics.measure("RegisterList", &asker, self.registers.list(&principal, request)).await
    }

    async fn list_leases(
        &self,
        request: Request<v1::LeaseListRequest>,
    ) -> Result<Response<v1::LeaseListResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let asker = Asker::of(&request);
        let listed = self.registers.list_leases(&principal, request);
        self.metrics.measure("LeaseList", &asker, listed).await
    }

    async fn watch(
        &self,
        request: Request<v1::RegisterWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let asker = Asker::of(&request);
        // Measured is the time until the watch stands.
        let watch = self.metrics.measure("RegisterWatch", &asker, self.registers.watch(&principal, request));
        let told = watch.await?.into_inner();
        let stream: Self::WatchStream = Box::pin(told.map(|told| told.map_err(Status::from)));
        Ok(Response::new(stream))
    }
}

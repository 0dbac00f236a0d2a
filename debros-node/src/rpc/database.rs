//! `debros.v1.Database`.

use debros_proto::{limits, v1};
use tonic::{Request, Response, Status};
use v1::database_server::{Database, DatabaseServer};

use super::meter::{Asker, RpcMetrics};
use super::principal;
use crate::service::Databases;

struct Service {
    databases: Databases,
    metrics: RpcMetrics,
}

/// The service, to be mounted on the client lane.
pub fn database_service(databases: Databases, metrics: RpcMetrics) -> DatabaseServer<impl Database> {
    DatabaseServer::new(Service { databases, metrics })
        .max_decoding_message_size(limits::LOG_ENTRY_BYTES_MAX)
        .max_encoding_message_size(limits::RESPONSE_BYTES_MAX)
}

#[tonic::async_trait]
impl Database for Service {
    async fn execute(
        &self,
        request: Request<v1::ExecuteRequest>,
    ) -> Result<Response<v1::ExecuteResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let asker = Asker::of(&request);
        self.metrics.measure("Execute", &asker, self.databases.execute(&principal, request)).await
    }

    async fn query(&self, request: Request<v1::QueryRequest>) -> Result<Response<v1::QueryResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let asker = Asker::of(&request);
        self.metrics.measure("Query", &asker, self.databases.query(&principal, request)).await
    }

    async fn open_session(
        &self,
        request: Request<v1::OpenSessionRequest>,
    ) -> Result<Response<v1::OpenSessionResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let asker = Asker::of(&request);
        self.metrics.measure("OpenSession", &asker, self.databases.open_session(&principal, request)).await
    }

    async fn create_database(
        &self,
        request: Request<v1::CreateDatabaseRequest>,
    ) -> Result<Response<v1::CreateDatabaseResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let asker = Asker::of(&request);
        self.metrics.measure("CreateDatabase", &asker, self.databases.create(&principal, request)).await
    }

    async fn drop_database(
        &self,
        request: Request<v1::DropDatabaseRequest>,
    ) -> Result<Response<v1::DropDatabaseResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let asker = Asker::of(&request);
        self.metrics.measure("DropDatabase", &asker, self.databases.drop(&principal, request)).await
    }

    async fn list_databases(
        &self,
        request: Request<v1::ListDatabasesRequest>,
    ) -> Result<Response<v1::ListDatabasesResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let asker = Asker::of(&request);
        let answer = async { self.databases.list(&principal, &request) };
        self.metrics.measure("ListDatabases", &asker, answer).await
    }
}

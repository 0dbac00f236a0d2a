//! `debros.v1.Database`.

use debros_proto::{HasHeader, limits, v1};
use tonic::{Request, Response, Status};
use v1::database_server::{Database, DatabaseServer};

use super::meter::RpcMetrics;
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

pub(super) fn namespace(request: &impl HasHeader) -> String {
    request.header().map(|header| header.namespace.clone()).unwrap_or_default()
}

#[tonic::async_trait]
impl Database for Service {
    async fn execute(
        &self,
        request: Request<v1::ExecuteRequest>,
    ) -> Result<Response<v1::ExecuteResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let namespace = namespace(&request);
        self.metrics.measure("Execute", &namespace, self.databases.execute(&principal, request)).await
    }

    async fn query(&self, request: Request<v1::QueryRequest>) -> Result<Response<v1::QueryResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let namespace = namespace(&request);
        self.metrics.measure("Query", &namespace, self.databases.query(&principal, request)).await
    }

    async fn open_session(
        &self,
        request: Request<v1::OpenSessionRequest>,
    ) -> Result<Response<v1::OpenSessionResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let namespace = namespace(&request);
        self.metrics
            .measure("OpenSession", &namespace, self.databases.open_session(&principal, request))
            .await
    }

    async fn create_database(
        &self,
        request: Request<v1::CreateDatabaseRequest>,
    ) -> Result<Response<v1::CreateDatabaseResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let namespace = namespace(&request);
        self.metrics.measure("CreateDatabase", &namespace, self.databases.create(&principal, request)).await
    }

    async fn drop_database(
        &self,
        request: Request<v1::DropDatabaseRequest>,
    ) -> Result<Response<v1::DropDatabaseResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let namespace = namespace(&request);
        self.metrics.measure("DropDatabase", &namespace, self.databases.drop(&principal, request)).await
    }

    async fn list_databases(
        &self,
        request: Request<v1::ListDatabasesRequest>,
    ) -> Result<Response<v1::ListDatabasesResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let namespace = namespace(&request);
        let answer = async { self.databases.list(&principal, &request) };
        self.metrics.measure("ListDatabases", &namespace, answer).await
    }
}

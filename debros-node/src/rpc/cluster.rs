//! `debros.v1.Cluster` and `debros.v1.Membership`.

use debros_proto::v1;
use tonic::{Request, Response, Status};
use v1::cluster_server::{Cluster, ClusterServer};
use v1::membership_server::{Membership, MembershipServer};

use super::meter::{Asker, RpcMetrics};
use super::principal;
use crate::service::ClusterService;

struct Service {
    cluster: ClusterService,
    metrics: RpcMetrics,
}

/// The service for clients, to be mounted on the client lane.
pub fn cluster_service(cluster: ClusterService, metrics: RpcMetrics) -> ClusterServer<impl Cluster> {
    ClusterServer::new(Service { cluster, metrics })
}

/// The service for nodes, to be mounted on the client lane.
pub fn membership_service(cluster: ClusterService, metrics: RpcMetrics) -> MembershipServer<impl Membership> {
    MembershipServer::new(Service { cluster, metrics })
}

#[tonic::async_trait]
impl Cluster for Service {
    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let answer = async { self.cluster.status(&principal, &request) };
        self.metrics.measure("Status", &Asker::of(&request), answer).await
    }

    async fn peers(&self, request: Request<v1::PeersRequest>) -> Result<Response<v1::PeersResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let answer = async { self.cluster.peers(&principal, &request) };
        self.metrics.measure("Peers", &Asker::of(&request), answer).await
    }

    async fn members(
        &self,
        request: Request<v1::MembersRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let answer = async { self.cluster.members(&principal, &request) };
        self.metrics.measure("Members", &Asker::of(&request), answer).await
    }

    async fn health(
        &self,
        request: Request<v1::HealthRequest>,
    ) -> Result<Response<v1::HealthResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        self.metrics.measure("Health", &Asker::of(&request), self.cluster.health(&principal, &request)).await
    }

    async fn connect_peer(
        &self,
        request: Request<v1::ConnectPeerRequest>,
    ) -> Result<Response<v1::ConnectPeerResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        self.metrics
            .measure("ConnectPeer", &Asker::of(&request), self.cluster.connect(&principal, &request))
            .await
    }

    async fn disconnect_peer(
        &self,
        request: Request<v1::DisconnectPeerRequest>,
    ) -> Result<Response<v1::DisconnectPeerResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let answer = self.cluster.disconnect(&principal, &request);
        self.metrics.measure("DisconnectPeer", &Asker::of(&request), answer).await
    }

    async fn leave(&self, request: Request<v1::LeaveRequest>) -> Result<Response<v1::LeaveResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        self.metrics.measure("Leave", &Asker::of(&request), self.cluster.leave(&principal, &request)).await
    }

    async fn initialise(
        &self,
        request: Request<v1::InitialiseRequest>,
    ) -> Result<Response<v1::InitialiseResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        self.metrics
            .measure("Initialise", &Asker::of(&request), self.cluster.initialise(&principal, &request))
            .await
    }

    async fn hand_over(
        &self,
        request: Request<v1::HandOverRequest>,
    ) -> Result<Response<v1::HandOverResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let answer = self.cluster.hand_over_leaderships(&principal, &request);
        self.metrics.measure("HandOver", &Asker::of(&request), answer).await
    }

    async fn log_level(
        &self,
        request: Request<v1::LogLevelRequest>,
    ) -> Result<Response<v1::LogLevelResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let answer = async { crate::service::log_level(&principal, &request) };
        self.metrics.measure("LogLevel", &Asker::of(&request), answer).await
    }
}

#[tonic::async_trait]
impl Membership for Service {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let asker = Asker::of(&request);
        self.metrics.measure("Join", &asker, self.cluster.join(&principal, request)).await
    }

    async fn propose(
        &self,
        request: Request<v1::ProposeRequest>,
    ) -> Result<Response<v1::ProposeResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let asker = Asker::of(&request);
        self.metrics.measure("Propose", &asker, self.cluster.propose(&principal, request)).await
    }
    async fn canary(
        &self,
        request: Request<v1::CanaryRequest>,
    ) -> Result<Response<v1::CanaryResponse>, Status> {
        let (principal, request) = (principal(&request)?, request.into_inner());
        let asker = Asker::of(&request);
        self.metrics.measure("Canary", &asker, self.cluster.canary(&principal, &request)).await
    }
}

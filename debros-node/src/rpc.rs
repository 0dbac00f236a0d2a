//! The gRPC services of a node: they find the caller's identity, hand over to [`crate::service`]
//! and turn a failure into a status. They decide nothing.

mod activity;
mod cluster;
mod database;
mod meter;
mod pubsub;
mod registers;
mod storage;

use tonic::{Request, Status};

use crate::service::Principal;

pub use cluster::{cluster_service, membership_service};
pub use database::database_service;
pub use meter::RpcMetrics;
pub use pubsub::pubsub_service;
pub use registers::registers_service;
pub use storage::storage_service;

/// Who called: the transport proved it.
fn principal<T>(request: &Request<T>) -> Result<Principal, Status> {
    debros_net::grpc::caller(request)
        .map(|identity| Principal::Peer(identity.peer))
        .ok_or_else(|| Status::unauthenticated("the connection has no peer identity"))
}

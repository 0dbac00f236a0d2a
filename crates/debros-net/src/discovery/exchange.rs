//! One exchange: status and signed records both ways, over the client lane.
//!
//! Decides what is accepted from the other side. Who exchanges with whom, and when, is the task's
//! business.
//!
//! Invariants: the caller's identity is the one its stream proved, whatever its status says; a peer
//! of another cluster is refused by name and teaches nothing; every field is bounded.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use debros_proto::v1::peering_client::PeeringClient;
use debros_proto::v1::peering_server::{Peering, PeeringServer};
use debros_proto::{ErrorCode, Failure, limits, v1};
use libp2p::PeerId;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{PeerStatus, Shared};
use crate::error::OpenError;
use crate::grpc;
use crate::lane::Lane;

/// One round trip and a few hundred signatures at most.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// What fits into an exchange at its limits.
const MESSAGE_BYTES_MAX: usize =
    limits::EXCHANGE_RECORDS_MAX * (limits::PEER_RECORD_BYTES_MAX + 16) + STATUS_BYTES_MAX;
/// A few names and numbers.
const STATUS_BYTES_MAX: usize = 4096;

/// How an exchange that this side began went wrong.
#[derive(Debug)]
pub(super) enum ExchangeError {
    /// The other side does not take part: an SDK client, or something else altogether.
    NotOffered,
    /// It belongs to another cluster.
    OtherCluster(String),
    /// It broke off, or the answer was not acceptable.
    Failed(String),
}

/// Begins an exchange with a connected peer.
pub(super) async fn exchange(shared: &Shared, peer: PeerId) -> Result<(), ExchangeError> {
    let request = v1::ExchangeRequest {
        status: Some((shared.own_status)()),
        signed_records: shared.records_for(peer, &[]),
    };
    let sent = request.signed_records.clone();
    let outcome = tokio::time::timeout(EXCHANGE_TIMEOUT, call(shared, peer, request)).await;
    let outcome = match outcome {
        Ok(Ok(answer)) => shared.take_in(peer, answer.status, &answer.signed_records),
        Ok(Err(status)) => return Err(shared.failed(peer, &status)),
        Err(_) => Err(Failure::new(ErrorCode::Unavailable, "no answer in time")),
    };
    outcome.map_err(|failure| shared.refused(peer, failure))?;
    tracing::trace!(%peer, records = sent.len(), "exchanged");
    Ok(())
}

async fn call(
    shared: &Shared,
    peer: PeerId,
    request: v1::ExchangeRequest,
) -> Result<v1::ExchangeResponse, Status> {
    // A channel of its own: kept ones would send keep-alives to every peer between two exchanges.
    let channel = grpc::channel(Arc::clone(&shared.network), peer, Lane::Client);
    let mut client = PeeringClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    client.exchange(request).await.map(Response::into_inner)
}

impl Shared {
    /// Own record first, then what this peer was not told yet and does not hold.
    fn records_for(&self, peer: PeerId, held: &[Bytes]) -> Vec<Bytes> {
        let mut records: Vec<Bytes> = self.network.own_record().into_iter().map(Bytes::from).collect();
        if self.peer_exchange {
            let room = limits::EXCHANGE_RECORDS_MAX - records.len();
            records.extend(self.ledger().offer(peer, room, held));
        }
        records
    }

    /// Checks and keeps what the other side of an exchange sent.
    fn take_in(
        &self,
        peer: PeerId,
        status: Option<v1::NodeStatus>,
        records: &[Bytes],
    ) -> Result<(), Failure> {
        let status = self.check_status(peer, status)?;
        if records.len() > limits::EXCHANGE_RECORDS_MAX {
            return Err(Failure::limit("an exchange's records", limits::EXCHANGE_RECORDS_MAX, records.len()));
        }
        // Without peer exchange only what the peer says of itself counts: its own record is first.
        let records = if self.peer_exchange { records } else { &records[..records.len().min(1)] };
        let client = status.client;
        let learnt = {
            let mut ledger = self.ledger();
            ledger.set_status(peer, PeerStatus { status, received: Instant::now() });
            let connected = |owner| self.network.is_connected(owner);
            let learnt = ledger
                .absorb(self.network.local_peer(), records, connected)
                .map_err(|error| Failure::invalid(format!("refused a peer record: {error}")))?;
            ledger.confirm(peer);
            learnt
        };
        for (owner, addresses) in learnt {
            if !(client && owner == peer) {
                self.network.learn(owner, &addresses);
            }
        }
        self.changed();
        Ok(())
    }

    fn check_status(&self, peer: PeerId, status: Option<v1::NodeStatus>) -> Result<v1::NodeStatus, Failure> {
        let status = status.ok_or_else(|| Failure::invalid("an exchange carries the sender's status"))?;
        if status.peer_id != peer.to_base58() {
            return Err(Failure::invalid(format!(
                "the status speaks of {}, its sender is {peer}",
                status.peer_id
            )));
        }
        if prost::Message::encoded_len(&status) > STATUS_BYTES_MAX {
            return Err(Failure::limit(
                "a status's bytes",
                STATUS_BYTES_MAX,
                prost::Message::encoded_len(&status),
            ));
        }
        let own = (self.own_status)().cluster_id;
        if !own.is_empty() && !status.cluster_id.is_empty() && own != status.cluster_id {
            let told = format!(
                "cluster {own} is not {}: point discovery.bootstrap_peers at one cluster, or empty the data folder of the node that has to change",
                status.cluster_id
            );
            return Err(Failure::new(ErrorCode::WrongCluster, told));
        }
        Ok(status)
    }

    fn failed(&self, peer: PeerId, status: &Status) -> ExchangeError {
        if status.code() == tonic::Code::Unimplemented
            || matches!(grpc::open_error(status), Some(OpenError::Unsupported(_)))
        {
            // It asks by itself, and has to be told then.
            self.ledger().untold(peer);
            return ExchangeError::NotOffered;
        }
        self.refused(peer, Failure::from_status(status))
    }

    fn refused(&self, peer: PeerId, failure: Failure) -> ExchangeError {
        // What was told may not have arrived.
        self.ledger().untold(peer);
        match failure.code {
            ErrorCode::WrongCluster => ExchangeError::OtherCluster(failure.message),
            _ => ExchangeError::Failed(failure.message),
        }
    }
}

/// The other side of an exchange, to be mounted on the client lane.
#[derive(Clone)]
pub struct PeeringService {
    shared: Arc<Shared>,
}

impl PeeringService {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The gRPC service.
    pub fn into_server(self) -> PeeringServer<Self> {
        PeeringServer::new(self).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl Peering for PeeringService {
    async fn exchange(
        &self,
        request: Request<v1::ExchangeRequest>,
    ) -> Result<Response<v1::ExchangeResponse>, Status> {
        let Some(caller) = grpc::caller(&request) else {
            let refusal = "an exchange comes over a lane, which proves who sends it";
            return Err(Failure::new(ErrorCode::PermissionDenied, refusal).into());
        };
        let v1::ExchangeRequest { status, signed_records } = request.into_inner();
        self.shared.take_in(caller.peer, status, &signed_records)?;
        Ok(Response::new(v1::ExchangeResponse {
            status: Some((self.shared.own_status)()),
            signed_records: self.shared.records_for(caller.peer, &signed_records),
        }))
    }
}

//! What this node asks the other replicas: one stream of calls to each of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use debros_net::calls::{CallError, CallFrames, Calls};
use debros_net::grpc::Channels;
use debros_net::{Lane, PeerId};
use debros_proto::{ErrorCode, Failure, limits, v1};
use tokio_util::task::TaskTracker;
use v1::replica_call::Operation;
use v1::replica_client::ReplicaClient;
use v1::replica_reply::Outcome;

use crate::trace::{self, KeyValue, SpanKind};

type PeerCalls = Calls<v1::ReplicaCalls, v1::ReplicaReplies>;

/// A replica that has not answered for so long counts as absent for this request. Longer than a slow flush,
/// shorter than what a client waits.
pub(super) const REPLICA_TIMEOUT: Duration = Duration::from_secs(2);

/// The streams to all peers. Cheap to clone.
#[derive(Clone)]
pub(super) struct Links {
    channels: Channels,
    tracker: TaskTracker,
    peers: Arc<Mutex<HashMap<PeerId, PeerCalls>>>,
}

/// Why a replica gave no answer.
#[derive(Clone, Debug)]
pub(super) enum NoAnswer {
    /// It knows a newer layout, which this is.
    NewerLayout(Box<v1::StorageLayout>),
    /// It said no.
    Refused(Failure),
    /// It was not asked, for certain.
    NotAsked,
    /// It may have been asked, and may have done it.
    Unknown,
}

impl NoAnswer {
    /// Whether the replica may have done what it was asked all the same.
    pub(super) fn maybe_applied(&self) -> bool {
        match self {
            Self::Unknown => true,
            Self::Refused(failure) => failure.maybe_applied,
            Self::NewerLayout(_) | Self::NotAsked => false,
        }
    }

    /// What the replica said, if it has no room.
    pub(super) fn no_room(&self) -> Option<Failure> {
        match self {
            Self::Refused(failure) if failure.code == ErrorCode::DiskFull => Some(failure.clone()),
            _ => None,
        }
    }

    /// The replica will do it soon: it has not adopted the layout yet.
    pub(super) fn is_behind(&self) -> bool {
        matches!(self, Self::Refused(failure) if failure.code == ErrorCode::NotReady)
    }
}

impl Links {
    /// No stream is opened before it is needed.
    pub(super) fn new(channels: Channels, tracker: TaskTracker) -> Self {
        Self { channels, tracker, peers: Arc::default() }
    }

    /// Whether a peer can be asked now.
    pub(super) fn is_connected(&self, peer: PeerId) -> bool {
        self.channels.network().is_connected(peer)
    }

    /// Asks a peer, if it is connected.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub(super) async fn ask(
        &self,
        peer: PeerId,
        layout: u64,
        operation: Operation,
    ) -> Result<Outcome, NoAnswer> {
        if !self.is_connected(peer) {
            return Err(NoAnswer::NotAsked);
        }
        let calls = self.calls(peer);
        let mut part = trace::child("ask replica", SpanKind::Client);
        part.tell(|| vec![KeyValue::new("network.peer.address", peer.to_string())]);
        let trace = part.sampled().map(|context| context.to_wire());
        let call = v1::ReplicaCall { id: 0, layout, operation: Some(operation), trace };
        let reply = match tokio::time::timeout(REPLICA_TIMEOUT, calls.ask(call)).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(CallError::NotSent(_))) => return Err(NoAnswer::NotAsked),
            Ok(Err(CallError::Broken(_))) | Err(_) => return Err(NoAnswer::Unknown),
        };
        match reply.outcome {
            Some(Outcome::Failure(failure)) => Err(NoAnswer::Refused(Failure::from_call(failure))),
            Some(Outcome::NewerLayout(layout)) => Err(NoAnswer::NewerLayout(Box::new(layout))),
            Some(outcome) => Ok(outcome),
            None => Err(NoAnswer::Unknown),
        }
    }

    /// The client for what is streamed from a peer.
    pub(super) fn client(&self, peer: PeerId, lane: Lane) -> ReplicaClient<tonic::transport::Channel> {
        client(&self.channels, peer, lane)
    }

    fn calls(&self, peer: PeerId) -> PeerCalls {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let open = || {
            let channels = self.channels.clone();
            Calls::new(self.tracker.clone(), move |frames: CallFrames<v1::ReplicaCalls>| {
                let mut client = client(&channels, peer, Lane::Kv);
                async move { client.operate(frames).await }
            })
        };
        peers.entry(peer).or_insert_with(open).clone()
    }
}

fn client(channels: &Channels, peer: PeerId, lane: Lane) -> ReplicaClient<tonic::transport::Channel> {
    ReplicaClient::new(channels.get(peer, lane))
        .max_decoding_message_size(limits::CALLS_FRAME_BYTES_MAX)
        .max_encoding_message_size(limits::CALLS_FRAME_BYTES_MAX)
}

//! The sending side of Raft between replicas: openraft's network over the links.
//!
//! Overrides what openraft's defaults get wrong for us: pre-vote asks the peer instead of granting,
//! leader transfer is sent instead of refused, appends are pipelined instead of one at a time.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use debros_net::{Lane, PeerId};
use debros_proto::{GroupId, limits, v1};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::codec;
use super::commit_pace::pace_commits;
use super::link::Links;
use super::position::Position;
use super::snapshot::{SnapshotData, SnapshotReader};
use super::types::{Replica, TypeConfig, Vote};
use crate::blocking::Blocking;

type RpcError = RPCError<TypeConfig>;

/// A vote or a transfer is answered within this, or the peer counts as unreachable: shorter than
/// the shortest election timeout would make a slow disk look like a dead node.
const VOTE_TIMEOUT: Duration = Duration::from_millis(1000);
/// Snapshot chunks read ahead of the stream.
const SNAPSHOT_CHUNKS_AHEAD: usize = 4;

/// Makes the connections of one group.
#[derive(Clone)]
pub(super) struct GroupNetwork {
    pub(super) group: GroupId,
    pub(super) node: u64,
    pub(super) cluster_id: Arc<str>,
    pub(super) links: Links,
    pub(super) blocking: Blocking,
}

impl RaftNetworkFactory<TypeConfig> for GroupNetwork {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, replica: &Replica) -> Connection {
        self.connection(target, replica)
    }
}

impl GroupNetwork {
    pub(super) fn connection(&self, target: u64, replica: &Replica) -> Connection {
        Connection {
            peer: replica.peer_id.parse().ok(),
            route: v1::Route {
                group: self.group.0,
                from: self.node,
                to: target,
                cluster_id: self.cluster_id.to_string(),
            },
            links: self.links.clone(),
            blocking: self.blocking.clone(),
        }
    }
}

/// What a replica says to "do you still follow this leader?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Confirmation {
    Follows,
    FollowsAnother,
    /// It could not be asked, or gave no answer that counts.
    None,
}

/// From one replica of a group to another.
pub(super) struct Connection {
    /// `None` when the membership holds a peer id that does not parse: never reachable.
    peer: Option<PeerId>,
    route: v1::Route,
    links: Links,
    blocking: Blocking,
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("replica {to} of group {group} has no valid peer id")]
    NoPeer { group: u64, to: u64 },
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Status(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

fn unreachable(error: Failed) -> RpcError {
    RPCError::Unreachable(Unreachable::new(&error))
}

fn refused(refusal: v1::Refusal) -> Failed {
    Failed::Refused(format!("{:?}: {}", refusal.reason(), refusal.message))
}

fn status(status: &tonic::Status) -> Failed {
    Failed::Status(status.message().to_owned())
}

impl Connection {
    fn peer(&self) -> Result<PeerId, Failed> {
        self.peer.ok_or(Failed::NoPeer { group: self.route.group, to: self.route.to })
    }

    async fn ask_vote(
        &self,
        request: VoteRequest<TypeConfig>,
        pre_vote: bool,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let peer = self.peer().map_err(unreachable)?;
        let wire = v1::VoteRequest {
            route: Some(self.route.clone()),
            vote: Some(codec::vote_to_wire(&request.vote)),
            last_log_id: request.last_log_id.as_ref().map(codec::log_id_to_wire),
            pre_vote,
            leadership_transfer: request.leadership_transfer,
        };
        let mut client = self.links.client(peer, Lane::Raft);
        let reply = bounded(VOTE_TIMEOUT, client.vote(wire)).await.map_err(unreachable)?;
        if let Some(refusal) = reply.refused {
            return Err(unreachable(refused(refusal)));
        }
        let vote = reply.vote.as_ref().map(codec::vote_from_wire).unwrap_or(request.vote);
        let last_log_id = reply.last_log_id.as_ref().map(codec::log_id_from_wire);
        Ok(VoteResponse::new(vote, last_log_id, reply.granted))
    }

    /// Asks whether the replica follows the leader of `vote` now: a heartbeat that says nothing of the log.
    pub(super) async fn confirm(&self, vote: Vote) -> Confirmation {
        let heartbeat =
            AppendEntriesRequest { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None };
        let Some(peer) = self.peer else { return Confirmation::None };
        let reply = self.links.ask(peer, self.frame(heartbeat)).await;
        match reply.map(append_result) {
            Ok(Ok(Ok(_))) => Confirmation::Follows,
            Ok(Ok(Err(StreamAppendError::HigherVote(_)))) => Confirmation::FollowsAnother,
            Ok(Ok(Err(StreamAppendError::Conflict(_))) | Err(_)) | Err(_) => Confirmation::None,
        }
    }

    fn frame(&self, request: AppendEntriesRequest<TypeConfig>) -> v1::AppendFrame {
        frame(&self.route, request)
    }
}

fn frame(route: &v1::Route, request: AppendEntriesRequest<TypeConfig>) -> v1::AppendFrame {
    v1::AppendFrame {
        route: Some(route.clone()),
        session: 0,
        vote: Some(codec::vote_to_wire(&request.vote)),
        previous: request.prev_log_id.as_ref().map(codec::log_id_to_wire),
        entries: request.entries.iter().map(codec::entry_to_wire).collect(),
        leader_commit: request.leader_commit.as_ref().map(codec::log_id_to_wire),
        traces: codec::traces_to_wire(&request.entries),
        ..Default::default()
    }
}

async fn bounded<T>(
    timeout: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Failed> {
    match tokio::time::timeout(timeout, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(error)) => Err(status(&error)),
        Err(_) => Err(Failed::Timeout(timeout)),
    }
}

/// The frames of a session of which some were read already.
fn paced<const READ: usize>(
    read: [v1::AppendFrame; READ],
    rest: impl Stream<Item = v1::AppendFrame> + Send + Unpin + 'static,
) -> BoxStream<'static, v1::AppendFrame> {
    pace_commits(futures::stream::iter(read).chain(rest)).boxed()
}

fn append_result(reply: v1::AppendReply) -> Result<StreamAppendResult<TypeConfig>, RpcError> {
    use v1::append_reply::Result as Answer;
    match reply.result {
        Some(Answer::Matched(matched)) => Ok(Ok(matched.upto.as_ref().map(codec::log_id_from_wire))),
        Some(Answer::Conflict(at)) => Ok(Err(StreamAppendError::Conflict(codec::log_id_from_wire(&at)))),
        Some(Answer::HigherVote(vote)) => {
            Ok(Err(StreamAppendError::HigherVote(codec::vote_from_wire(&vote))))
        }
        Some(Answer::Refused(refusal)) => Err(unreachable(refused(refusal))),
        None => Err(RPCError::Network(NetworkError::from_string("an append reply without a result"))),
    }
}

impl RaftNetworkV2<TypeConfig> for Connection {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let peer = self.peer().map_err(unreachable)?;
        let reply = self.links.ask(peer, self.frame(request)).await;
        let reply = reply.map_err(|broke| RPCError::Unreachable(Unreachable::new(&broke)))?;
        Ok(match append_result(reply)? {
            Ok(_) => AppendEntriesResponse::Success,
            Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
            Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        Box::pin(async move {
            let peer = self.peer().map_err(unreachable)?;
            let route = self.route.clone();
            let mut frames = input.map(move |request| frame(&route, request));
            // The session begins with its first frame: openraft's backoff holds back that one, and a
            // session that found a broken link before would fail again and again without it.
            let links = self.links.clone();
            let replies = futures::stream::once(async move {
                let Some(first) = frames.next().await else { return futures::stream::empty().boxed() };
                match frames.next().now_or_never() {
                    // A heartbeat, or an entry that openraft probes with.
                    Some(None) => futures::stream::once(async move { links.ask(peer, first).await }).boxed(),
                    Some(Some(second)) => links.session(peer).run(paced([first, second], frames)).boxed(),
                    None => links.session(peer).run(paced([first], frames)).boxed(),
                }
            });
            let replies = replies.flatten().map(|reply| match reply {
                Ok(reply) => append_result(reply),
                Err(broke) => Err(RPCError::Unreachable(Unreachable::new(&broke))),
            });
            Ok(ends_after_error(replies).boxed())
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.ask_vote(request, false).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.ask_vote(request, true).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let peer = self.peer().map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))?;
        let (file, position) = snapshot
            .snapshot
            .open()
            .await
            .map_err(|error| StreamingError::Network(NetworkError::new(&error)))?;
        let network_error = |error| StreamingError::Network(NetworkError::new(&error));
        let reader = file.reader(self.blocking.clone()).await.map_err(network_error)?;
        let header = snapshot_header(&self.route, &vote, &reader, &position).await.map_err(network_error)?;
        let (sender, frames) = mpsc::channel(SNAPSHOT_CHUNKS_AHEAD);
        let mut client = self.links.client(peer, Lane::Bulk);
        let send = async {
            let call = client.install_snapshot(ReceiverStream::new(frames));
            let (_, reply) = tokio::join!(feed(&reader, header, sender), call);
            reply
        };
        let reply = tokio::select! {
            reply = send => reply,
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        let reply = reply
            .map_err(|error| StreamingError::Unreachable(Unreachable::new(&status(&error))))?
            .into_inner();
        if let Some(refusal) = reply.refused {
            return Err(StreamingError::Unreachable(Unreachable::new(&refused(refusal))));
        }
        Ok(SnapshotResponse::new(reply.vote.as_ref().map(codec::vote_from_wire).unwrap_or(vote)))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let peer = self.peer().map_err(unreachable)?;
        let wire = v1::TransferLeaderRequest {
            route: Some(self.route.clone()),
            from_leader: Some(codec::vote_to_wire(request.from_leader())),
            to: *request.to_node_id(),
            last_log_id: request.last_log_id().map(codec::log_id_to_wire),
        };
        let mut client = self.links.client(peer, Lane::Raft);
        let reply = bounded(VOTE_TIMEOUT, client.transfer_leader(wire)).await.map_err(unreachable)?;
        match reply.refused {
            Some(refusal) => Err(unreachable(refused(refusal))),
            None if reply.accepted => Ok(Ok(())),
            None => Err(unreachable(Failed::Refused("the replica is behind or follows another vote".into()))),
        }
    }
}

/// openraft starts a new session after an error; the old one must not yield anything more.
fn ends_after_error<T, E>(
    stream: impl Stream<Item = Result<Result<T, StreamAppendError<TypeConfig>>, E>> + Send + 'static,
) -> impl Stream<Item = Result<Result<T, StreamAppendError<TypeConfig>>, E>> + Send
where
    T: Send + 'static,
    E: Send + 'static,
{
    futures::stream::unfold(Some(Box::pin(stream)), |stream| async move {
        let mut stream = stream?;
        let item = stream.next().await?;
        let go_on = matches!(&item, Ok(Ok(_)));
        Some((item, go_on.then_some(stream)))
    })
}

async fn snapshot_header(
    route: &v1::Route,
    vote: &Vote,
    reader: &SnapshotReader,
    position: &Position,
) -> std::io::Result<v1::SnapshotHeader> {
    let (last, membership) = position.decode().map_err(std::io::Error::other)?;
    let (bytes, crc32c) = reader.checksum().await?;
    Ok(v1::SnapshotHeader {
        route: Some(route.clone()),
        vote: Some(codec::vote_to_wire(vote)),
        meta: Some(v1::SnapshotMeta {
            last_log_id: last.as_ref().map(codec::log_id_to_wire),
            membership_log_id: membership.log_id().as_ref().map(codec::log_id_to_wire),
            membership: Some(codec::membership_to_wire(membership.membership())),
            bytes,
            crc32c,
        }),
    })
}

/// Sends the header and the file's chunks at no more than
/// [`limits::SNAPSHOT_BYTES_PER_SECOND`]. Ends early when the receiver hangs up or the file cannot
/// be read: the receiver then finds the data incomplete.
async fn feed(reader: &SnapshotReader, header: v1::SnapshotHeader, sender: mpsc::Sender<v1::SnapshotFrame>) {
    let header = v1::SnapshotFrame { part: Some(v1::snapshot_frame::Part::Header(header)) };
    if sender.send(header).await.is_err() {
        return;
    }
    let started = tokio::time::Instant::now();
    let mut sent = 0u64;
    loop {
        let chunk = match reader.chunk(sent).await {
            Ok(chunk) if chunk.is_empty() => return,
            Ok(chunk) => chunk,
            Err(error) => return tracing::warn!(%error, "a snapshot could not be read while it was sent"),
        };
        sent += chunk.len() as u64;
        let part = Some(v1::snapshot_frame::Part::Chunk(chunk.into()));
        if sender.send(v1::SnapshotFrame { part }).await.is_err() {
            return;
        }
        let due = Duration::from_secs_f64(sent as f64 / limits::SNAPSHOT_BYTES_PER_SECOND as f64);
        tokio::time::sleep_until(started + due).await;
    }
}

//! The receiving side of Raft between replicas: a gRPC service that finds the group and hands over.
//!
//! The task that reads an Append stream never awaits anything but the stream: each session has a
//! bounded mailbox and a task of its own, and a frame that finds its mailbox full is refused.

use std::collections::HashMap;
use std::sync::Arc;

use debros_proto::{limits, v1};
use futures::StreamExt;
use openraft::errors::{Fatal, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, VoteRequest,
};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};
use v1::append_reply::Result as Answer;
use v1::raft_server::{Raft, RaftServer};

use super::codec;
use super::group::Group;
use super::groups::{Caller, Groups};
use super::snapshot::SnapshotData;
use super::types::TypeConfig;

/// Replies waiting for the Append stream of one peer.
const REPLIES_MAX: usize = limits::PEER_OUTBOX_FRAMES;
/// Appends of one peer outside of its sessions: heartbeats, a few of each group that it leads.
const SINGLES_MAX: usize = limits::PEER_SESSIONS_MAX;

/// The Raft service of a node, to be mounted on its raft and bulk lanes.
pub struct RaftService {
    groups: Groups,
    tracker: TaskTracker,
}

impl RaftService {
    /// A service over the node's groups.
    pub fn new(groups: Groups, tracker: TaskTracker) -> RaftServer<Self> {
        RaftServer::new(Self { groups, tracker })
            .max_decoding_message_size(limits::APPEND_FRAME_BYTES_MAX)
            .max_encoding_message_size(limits::APPEND_FRAME_BYTES_MAX)
    }

    fn route(&self, caller: &Caller, route: Option<&v1::Route>) -> Result<Group, v1::Refusal> {
        let route =
            route.ok_or_else(|| refusal(v1::RefusalReason::Unspecified, "a request without a route"))?;
        self.groups.route(caller, route)
    }
}

pub(super) fn refusal(reason: v1::RefusalReason, message: impl Into<String>) -> v1::Refusal {
    v1::Refusal { reason: reason as i32, message: message.into() }
}

fn stopped(error: impl std::fmt::Display) -> v1::Refusal {
    refusal(v1::RefusalReason::GroupStopped, error.to_string())
}

fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    debros_net::grpc::caller(request)
        .map(|identity| Caller::from(identity.peer))
        .ok_or_else(|| Status::unauthenticated("raft is spoken between nodes only"))
}

#[tonic::async_trait]
impl Raft for RaftService {
    type AppendStream = ReceiverStream<Result<v1::AppendReply, Status>>;

    async fn append(
        &self,
        request: Request<Streaming<v1::AppendFrame>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let caller = caller(&request)?;
        let (replies, receiver) = mpsc::channel(REPLIES_MAX);
        let demultiplexer = Demultiplexer {
            groups: self.groups.clone(),
            caller,
            replies,
            tracker: self.tracker.clone(),
            sessions: HashMap::new(),
            singles: Arc::new(Semaphore::new(SINGLES_MAX)),
        };
        self.tracker.spawn(demultiplexer.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn vote(&self, request: Request<v1::VoteRequest>) -> Result<Response<v1::VoteReply>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let refused =
            |refused| Ok(Response::new(v1::VoteReply { refused: Some(refused), ..Default::default() }));
        let group = match self.route(&caller, request.route.as_ref()) {
            Ok(group) => group,
            Err(refusal) => return refused(refusal),
        };
        let vote = request.vote.as_ref().map(codec::vote_from_wire);
        let vote = vote.ok_or_else(|| Status::invalid_argument("a vote request without a vote"))?;
        let mut ask = VoteRequest::new(vote, request.last_log_id.as_ref().map(codec::log_id_from_wire));
        ask.leadership_transfer = request.leadership_transfer;
        let answer =
            if request.pre_vote { group.raft().pre_vote(ask).await } else { group.raft().vote(ask).await };
        match answer {
            Ok(answer) => Ok(Response::new(v1::VoteReply {
                vote: Some(codec::vote_to_wire(&answer.vote)),
                last_log_id: answer.last_log_id.as_ref().map(codec::log_id_to_wire),
                granted: answer.vote_granted,
                refused: None,
            })),
            Err(error) => refused(stopped(error)),
        }
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderReply>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let reply = |accepted, refused| Ok(Response::new(v1::TransferLeaderReply { accepted, refused }));
        let group = match self.route(&caller, request.route.as_ref()) {
            Ok(group) => group,
            Err(refusal) => return reply(false, Some(refusal)),
        };
        let from = request.from_leader.as_ref().map(codec::vote_from_wire);
        let from = from.ok_or_else(|| Status::invalid_argument("a transfer without the leader's vote"))?;
        let last = request.last_log_id.as_ref().map(codec::log_id_from_wire);
        match group.raft().handle_transfer_leader(TransferLeaderRequest::new(from, request.to, last)).await {
            Ok(accepted) => reply(accepted.is_ok(), None),
            Err(error) => reply(false, Some(stopped(error))),
        }
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotFrame>>,
    ) -> Result<Response<v1::SnapshotReply>, Status> {
        let caller = caller(&request)?;
        let mut frames = request.into_inner();
        let header = match frames.message().await?.and_then(|frame| frame.part) {
            Some(v1::snapshot_frame::Part::Header(header)) => header,
            _ => return Err(Status::invalid_argument("a snapshot starts with its header")),
        };
        let group = match self.route(&caller, header.route.as_ref()) {
            Ok(group) => group,
            Err(refused) => {
                return Ok(Response::new(v1::SnapshotReply { vote: None, refused: Some(refused) }));
            }
        };
        let (Some(vote), Some(meta)) = (&header.vote, header.meta) else {
            return Err(Status::invalid_argument("a snapshot header without vote or metadata"));
        };
        let vote = codec::vote_from_wire(vote);
        let file = receive(&group, &meta, frames).await?;
        let membership = codec::membership_from_wire(meta.membership.unwrap_or_default())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let snapshot = openraft::storage::Snapshot {
            meta: openraft::storage::SnapshotMeta {
                last_log_id: meta.last_log_id.as_ref().map(codec::log_id_from_wire),
                last_membership: super::types::StoredMembership::new(
                    meta.membership_log_id.as_ref().map(codec::log_id_from_wire),
                    membership,
                ),
            },
            snapshot: SnapshotData::Received(Arc::new(file)),
        };
        match group.raft().install_full_snapshot(vote, snapshot).await {
            Ok(response) => Ok(Response::new(v1::SnapshotReply {
                vote: Some(codec::vote_to_wire(&response.vote)),
                refused: None,
            })),
            Err(error) => Ok(Response::new(v1::SnapshotReply { vote: None, refused: Some(stopped(error)) })),
        }
    }
}

async fn receive(
    group: &Group,
    meta: &v1::SnapshotMeta,
    mut frames: Streaming<v1::SnapshotFrame>,
) -> Result<super::snapshot::SnapshotFile, Status> {
    let failed =
        |error: std::io::Error| Status::internal(format!("the snapshot could not be stored: {error}"));
    let file = group.snapshot_folder().file();
    let mut writer = file.writer(group.blocking().clone()).await.map_err(failed)?;
    while let Some(frame) = frames.message().await? {
        match frame.part {
            Some(v1::snapshot_frame::Part::Chunk(chunk)) => writer.append(chunk).await.map_err(failed)?,
            _ => return Err(Status::invalid_argument("a snapshot has one header, then chunks")),
        }
    }
    let found = writer.finish().await.map_err(failed)?;
    if found != (meta.bytes, meta.crc32c) {
        return Err(Status::data_loss(format!(
            "the snapshot arrived with {} bytes and checksum {:08x}, not {} and {:08x}",
            found.0, found.1, meta.bytes, meta.crc32c
        )));
    }
    Ok(file)
}

struct Demultiplexer {
    groups: Groups,
    caller: Caller,
    replies: mpsc::Sender<Result<v1::AppendReply, Status>>,
    tracker: TaskTracker,
    sessions: HashMap<u64, Mailbox>,
    singles: Arc<Semaphore>,
}

struct Mailbox {
    group: Group,
    requests: mpsc::Sender<AppendEntriesRequest<TypeConfig>>,
}

impl Demultiplexer {
    async fn run(mut self, mut frames: Streaming<v1::AppendFrame>) {
        loop {
            match frames.message().await {
                Ok(Some(frame)) => self.frame(frame),
                Ok(None) => return,
                Err(status) => {
                    tracing::debug!(peer = %self.caller, status = status.message(), "append stream ended");
                    return;
                }
            }
        }
    }

    fn frame(&mut self, frame: v1::AppendFrame) {
        for closed in &frame.closed_sessions {
            self.sessions.remove(closed);
        }
        if frame.route.is_none() {
            return;
        }
        let session = frame.session;
        if let Err(refused) = self.deliver(frame) {
            self.sessions.remove(&session);
            let reply = v1::AppendReply { session, result: Some(Answer::Refused(refused)) };
            // A peer that does not read its replies loses this one; its session then times out.
            let _ = self.replies.try_send(Ok(reply));
        }
    }

    fn deliver(&mut self, frame: v1::AppendFrame) -> Result<(), v1::Refusal> {
        if frame.single {
            return self.deliver_single(frame);
        }
        let session = frame.session;
        if !self.sessions.contains_key(&session) {
            if self.sessions.len() >= limits::PEER_SESSIONS_MAX {
                self.sessions.retain(|_, mailbox| !mailbox.requests.is_closed());
            }
            if self.sessions.len() >= limits::PEER_SESSIONS_MAX {
                return Err(refusal(v1::RefusalReason::MailboxFull, "too many append sessions"));
            }
            let route = frame.route.as_ref().expect("checked by the caller");
            let group = self.groups.route(&self.caller, route)?;
            let (sender, requests) = mpsc::channel(limits::GROUP_MAILBOX_FRAMES);
            self.sessions.insert(session, Mailbox { group: group.clone(), requests: sender });
            self.tracker.spawn(serve_session(group, session, requests, self.replies.clone()));
        }
        let request = append_request(frame)?;
        let mailbox = &self.sessions[&session];
        mailbox.group.heard();
        mailbox.requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                refusal(v1::RefusalReason::MailboxFull, "the session sent more frames than its credit")
            }
            mpsc::error::TrySendError::Closed(_) => {
                refusal(v1::RefusalReason::GroupStopped, "the session has ended")
            }
        })
    }

    fn deliver_single(&mut self, frame: v1::AppendFrame) -> Result<(), v1::Refusal> {
        let room = self.singles.clone().try_acquire_owned();
        let room = room.map_err(|_| refusal(v1::RefusalReason::MailboxFull, "too many appends at a time"))?;
        let route = frame.route.as_ref().expect("checked by the caller");
        let group = self.groups.route(&self.caller, route)?;
        let session = frame.session;
        let request = append_request(frame)?;
        group.heard();
        let replies = self.replies.clone();
        self.tracker.spawn(async move {
            let result = Some(append_once(&group, request).await);
            // A peer that is gone needs no reply.
            let _ = replies.send(Ok(v1::AppendReply { session, result })).await;
            drop(room);
        });
        Ok(())
    }
}

async fn append_once(group: &Group, request: AppendEntriesRequest<TypeConfig>) -> Answer {
    let previous = request.prev_log_id;
    let last = request.entries.last().map(|entry| entry.log_id).or(previous);
    answer(match group.raft().append_entries(request).await {
        Ok(AppendEntriesResponse::Success) => Ok(Ok(last)),
        Ok(AppendEntriesResponse::PartialSuccess(upto)) => Ok(Ok(upto)),
        Ok(AppendEntriesResponse::HigherVote(vote)) => Ok(Err(StreamAppendError::HigherVote(vote))),
        // Nothing precedes an empty log, so nothing can conflict with that.
        Ok(AppendEntriesResponse::Conflict) => {
            Ok(previous.map_or(Ok(None), |at| Err(StreamAppendError::Conflict(at))))
        }
        Err(RaftError::Fatal(fatal)) => Err(fatal),
        Err(RaftError::APIError(never)) => match never {},
    })
}

fn append_request(frame: v1::AppendFrame) -> Result<AppendEntriesRequest<TypeConfig>, v1::Refusal> {
    let malformed = |message: &str| refusal(v1::RefusalReason::Unspecified, message);
    let vote = frame.vote.as_ref().ok_or_else(|| malformed("an append without a vote"))?;
    let entries = frame.entries.into_iter().map(codec::entry_from_wire).collect::<Result<Vec<_>, _>>();
    let mut entries = entries.map_err(|error| malformed(&error.to_string()))?;
    codec::set_traces(&mut entries, &frame.traces);
    Ok(AppendEntriesRequest {
        vote: codec::vote_from_wire(vote),
        prev_log_id: frame.previous.as_ref().map(codec::log_id_from_wire),
        entries,
        leader_commit: frame.leader_commit.as_ref().map(codec::log_id_from_wire),
    })
}

/// Feeds one session into its group, pipelined, and sends its replies in order.
async fn serve_session(
    group: Group,
    session: u64,
    requests: mpsc::Receiver<AppendEntriesRequest<TypeConfig>>,
    replies: mpsc::Sender<Result<v1::AppendReply, Status>>,
) {
    let mut results = std::pin::pin!(group.raft().stream_append(ReceiverStream::new(requests)).map(answer));
    while let Some(answer) = results.next().await {
        let go_on = matches!(answer, Answer::Matched(_));
        let reply = v1::AppendReply { session, result: Some(answer) };
        if replies.send(Ok(reply)).await.is_err() || !go_on {
            return;
        }
    }
}

fn answer(result: Result<StreamAppendResult<TypeConfig>, Fatal<TypeConfig>>) -> Answer {
    match result {
        Ok(Ok(upto)) => Answer::Matched(v1::Matched { upto: upto.as_ref().map(codec::log_id_to_wire) }),
        Ok(Err(StreamAppendError::Conflict(at))) => Answer::Conflict(codec::log_id_to_wire(&at)),
        Ok(Err(StreamAppendError::HigherVote(vote))) => Answer::HigherVote(codec::vote_to_wire(&vote)),
        Err(fatal) => Answer::Refused(stopped(fatal)),
    }
}

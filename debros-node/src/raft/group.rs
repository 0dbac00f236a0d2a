//! One replica of one Raft group on this node, as engines and services see it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use debros_net::PeerId;
use debros_proto::{GroupId, NodeId};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardToLeader, RaftError};
use openraft::{Instant, ServerState};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::metrics::RaftMetrics;
use super::network::GroupNetwork;
use super::read_index::{READS_WAITING_MAX, Read, confirm_reads};
use super::snapshot::SnapshotFolder;
use super::state_machine::{DurableSince, StateMachine};
use super::types::{Command, EntryTrace, Replica, TypeConfig};
use crate::blocking::Blocking;
use crate::metrics::Stopwatch;
use crate::planted::{Bug, is_planted};
use crate::trace::{self, KeyValue, SpanKind};

pub(super) type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// Who leads a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Its node id.
    pub node: NodeId,
    /// Its peer id; `None` when the membership does not say.
    pub peer: Option<PeerId>,
}

/// A command that was committed and applied here.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The index of its log entry.
    pub index: u64,
    /// What the engine gave.
    pub outcome: Bytes,
}

/// Why a command was not committed, or may not have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Not appended, for certain.
    #[error("this replica does not lead the group")]
    NotLeader(Option<Leader>),
    /// Appended under a leadership that has ended: it may be committed by the next leader.
    #[error("the leader changed while the write was under way: it may have been applied")]
    Unknown,
    /// The replica has stopped after a storage fault, or is being closed.
    #[error("the replica has stopped: {0}")]
    Stopped(String),
}

/// Why a read could not be confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadIndexError {
    /// Ask the leader.
    #[error("this replica does not lead the group")]
    NotLeader(Option<Leader>),
    /// No quorum answered.
    #[error("no quorum of replicas confirmed the leadership")]
    NoQuorum,
    /// Too many reads wait already.
    #[error("more than {READS_WAITING_MAX} reads wait for a confirmation of leadership")]
    Busy,
    /// The replica has stopped.
    #[error("the replica has stopped: {0}")]
    Stopped(String),
}

/// Why the members of a group could not be changed.
#[derive(Debug, thiserror::Error)]
#[error("the members of group {group} could not be changed: {reason}")]
pub struct MembershipError {
    group: GroupId,
    reason: String,
}

/// A replica's role in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Leads.
    Leader,
    /// Votes and follows.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Follows without a vote.
    Learner,
    /// Stopped.
    Stopped,
}

impl Role {
    /// As it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
            Self::Stopped => "stopped",
        }
    }
}

/// How a replica is.
#[derive(Clone, Debug)]
pub struct Status {
    /// Its role.
    pub role: Role,
    /// The term it knows.
    pub term: u64,
    /// The leader it follows.
    pub leader: Option<NodeId>,
    /// The last entry of its log.
    pub last_log_index: u64,
    /// The last entry it applied.
    pub applied_index: u64,
    /// Everything up to here is durable in the engine.
    pub durable_index: u64,
    /// The log starts after this entry.
    pub purged_index: u64,
    /// The voters; during a change those of both configurations.
    pub voters: BTreeSet<NodeId>,
    /// The learners.
    pub learners: BTreeSet<NodeId>,
    /// Two configurations are in force.
    pub joint: bool,
    /// Only on the leader: entries that each other replica lacks. One that never answered is not in it.
    pub lag: BTreeMap<NodeId, u64>,
    /// Only on the leader: how long ago a quorum last answered.
    pub quorum_answered: Option<Duration>,
}

/// A cheap handle to a replica.
#[derive(Clone)]
pub struct Group {
    inner: Arc<Inner>,
}

struct Inner {
    id: GroupId,
    node: NodeId,
    raft: Raft,
    applied: watch::Receiver<u64>,
    reads: mpsc::Sender<Read>,
    blocking: Blocking,
    folder: SnapshotFolder,
    heard: Mutex<Option<tokio::time::Instant>>,
    durable_since: DurableSince,
    metrics: RaftMetrics,
    recovered: watch::Receiver<bool>,
    closed: CancellationToken,
}

pub(super) struct GroupParts {
    pub(super) id: GroupId,
    pub(super) node: NodeId,
    pub(super) raft: Raft,
    pub(super) network: GroupNetwork,
    pub(super) applied: watch::Receiver<u64>,
    pub(super) blocking: Blocking,
    pub(super) folder: SnapshotFolder,
    pub(super) durable_since: DurableSince,
    pub(super) metrics: RaftMetrics,
}

/// No other leader is elected so soon after a quorum has answered this one: the shortest election timeout.
const SUCCESSOR_AFTER: Duration = Duration::from_millis(300);
/// A leader is heard ten times a second; on a machine at its limit, less often.
pub(super) const LED_WITHIN: Duration = Duration::from_secs(2);

impl Group {
    /// Gives the handle and the group's own task, to be spawned by the caller.
    pub(super) fn new(parts: GroupParts) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let GroupParts { id, node, raft, network, applied, blocking, folder, durable_since, metrics } = parts;
        let (reads, waiting) = mpsc::channel(READS_WAITING_MAX);
        let closed = CancellationToken::new();
        let (told, recovered) = watch::channel(false);
        let tasks =
            futures::future::join(confirm_reads(raft.clone(), network, waiting), recover(raft.clone(), told));
        let tasks = closed.clone().run_until_cancelled_owned(tasks);
        let tasks = async {
            tasks.await;
        };
        let inner = Inner {
            id,
            node,
            raft,
            applied,
            reads,
            blocking,
            folder,
            heard: Mutex::default(),
            durable_since,
            metrics,
            recovered,
            closed,
        };
        (Self { inner: Arc::new(inner) }, tasks)
    }

    pub(super) fn raft(&self) -> &Raft {
        &self.inner.raft
    }
    pub(super) fn blocking(&self) -> &Blocking {
        &self.inner.blocking
    }
    pub(super) fn snapshot_folder(&self) -> &SnapshotFolder {
        &self.inner.folder
    }

    /// The group.
    pub fn id(&self) -> GroupId {
        self.inner.id
    }
    /// This replica's node id in the group.
    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    /// Appends a command, waits until a quorum has it on disk and this replica has applied it.
    ///
    /// # Errors
    /// [`ProposeError`] says whether the command may still take effect.
    pub async fn propose(&self, command: Bytes) -> Result<Committed, ProposeError> {
        let stopwatch = Stopwatch::start();
        let mut part = trace::child("raft propose", SpanKind::Internal);
        part.tell(|| vec![KeyValue::new("debros.group", self.inner.id.to_string())]);
        let trace = part.sampled().map(|parent| Box::new(EntryTrace { parent, replicated: false }));
        let written = self.inner.raft.client_write(Command { bytes: command, trace }).await;
        drop(part);
        match written {
            Ok(done) => {
                self.inner.metrics.commits.observe(stopwatch.took().as_secs_f64());
                Ok(Committed { index: done.log_id.index, outcome: done.data.0 })
            }
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(ProposeError::NotLeader(leader_of(forward)))
            }
            Err(RaftError::APIError(_)) => Err(ProposeError::Unknown),
            Err(RaftError::Fatal(fatal)) => Err(ProposeError::Stopped(fatal.to_string())),
        }
    }

    /// ReadIndex (Raft dissertation, section 6.4): waits until this replica has applied everything
    /// that was committed when the call was made, and gives that index. Concurrent calls share one
    /// round of heartbeats.
    ///
    /// # Errors
    /// [`ReadIndexError`]; the read has no effect then.
    pub async fn read_index(&self) -> Result<u64, ReadIndexError> {
        if is_planted(Bug::StaleRead) && self.is_leader() {
            return Ok(self.applied_index());
        }
        let (sender, receiver) = oneshot::channel();
        self.inner.reads.try_send(sender).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ReadIndexError::Busy,
            mpsc::error::TrySendError::Closed(_) => ReadIndexError::Stopped("closed".into()),
        })?;
        let index = receiver.await.map_err(|_| ReadIndexError::Stopped("closed".into()))??;
        self.applied_at_least(index).await?;
        Ok(index)
    }

    /// Waits until this replica has applied up to `index`.
    ///
    /// # Errors
    /// [`ReadIndexError::Stopped`] when it never will.
    pub async fn applied_at_least(&self, index: u64) -> Result<(), ReadIndexError> {
        let mut applied = self.inner.applied.clone();
        let reached = applied.wait_for(|applied| *applied >= index).await.map(|_| ());
        reached.map_err(|_| ReadIndexError::Stopped("the state machine has stopped".into()))
    }

    /// The last entry applied here.
    pub fn applied_index(&self) -> u64 {
        *self.inner.applied.borrow()
    }

    /// Waits until this replica has applied everything that its log held when it was opened: a read
    /// before that could see an older state than one before the restart.
    ///
    /// # Errors
    /// [`ReadIndexError::Stopped`] when the replica stops meanwhile.
    pub async fn recovered(&self) -> Result<(), ReadIndexError> {
        let mut recovered = self.inner.recovered.clone();
        let reached = recovered.wait_for(|recovered| *recovered).await.map(|_| ());
        reached.map_err(|_| ReadIndexError::Stopped("closed before it had recovered".into()))
    }

    /// Who leads, as this replica knows it.
    pub fn leader(&self) -> Option<Leader> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let node = metrics.current_leader?;
        let peer = metrics
            .membership_config
            .membership()
            .get_node(&node)
            .and_then(|replica| replica.peer_id.parse().ok());
        Some(Leader { node: NodeId(node), peer })
    }

    /// Whether this replica leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.inner.raft.metrics().borrow_watched().current_leader == Some(self.inner.node.0)
    }

    /// A leader's append has arrived.
    pub(super) fn heard(&self) {
        *self.inner.heard.lock().expect("not poisoned") = Some(tokio::time::Instant::now());
    }

    /// How long ago this replica last heard from a leader; `None` for never. A leader counts from the
    /// last answer of a quorum, once that is so long ago that another can have been elected; until
    /// then it is zero.
    pub fn silence(&self) -> Option<Duration> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.current_leader != Some(self.inner.node.0) {
            return self.inner.heard.lock().expect("not poisoned").map(|at| at.elapsed());
        }
        // It is the quorum, and has nobody to hear from.
        if metrics.membership_config.membership().voter_ids().nth(1).is_none() {
            return Some(Duration::ZERO);
        }
        let answered = metrics.last_quorum_acked.as_ref().map(|at| at.elapsed())?;
        Some(if answered < SUCCESSOR_AFTER { Duration::ZERO } else { answered })
    }

    /// How long ago this replica last made its state durable, or was opened.
    pub(super) fn since_durable(&self) -> Duration {
        self.inner.durable_since.elapsed()
    }

    /// Whether a leader is at work: a quorum has just answered this one, or this replica has just
    /// heard from another. [`Self::leader`] goes on naming one that is long dead.
    pub fn is_led(&self) -> bool {
        self.silence().is_some_and(|ago| ago < LED_WITHIN)
    }

    /// Whether the replica works; one that has stopped must be opened again.
    pub fn is_running(&self) -> bool {
        self.inner.raft.metrics().borrow_watched().running_state.is_ok()
    }

    /// How the replica is.
    pub fn status(&self) -> Status {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let last_log_index = metrics.last_log_index.unwrap_or(0);
        let lag = metrics.replication.iter().flatten().filter_map(|(node, matched)| {
            Some((NodeId(*node), last_log_index.saturating_sub(matched.as_ref()?.index)))
        });
        Status {
            role: match metrics.state {
                _ if metrics.running_state.is_err() => Role::Stopped,
                ServerState::Leader => Role::Leader,
                ServerState::Follower => Role::Follower,
                ServerState::Candidate => Role::Candidate,
                ServerState::Learner => Role::Learner,
                ServerState::Shutdown => Role::Stopped,
            },
            term: metrics.current_term,
            leader: metrics.current_leader.map(NodeId),
            last_log_index,
            applied_index: self.applied_index(),
            durable_index: metrics.snapshot.as_ref().map_or(0, |id| id.index),
            purged_index: metrics.purged.as_ref().map_or(0, |id| id.index),
            voters: membership.voter_ids().map(NodeId).collect(),
            learners: membership.learner_ids().map(NodeId).collect(),
            joint: membership.get_joint_config().len() > 1,
            lag: lag.collect(),
            quorum_answered: metrics.last_quorum_acked.as_ref().map(|at| at.elapsed()),
        }
    }

    /// Whether a member has this peer id; `None` for a node that is not a member.
    pub(super) fn member_is(&self, node: NodeId, peer_id: &str) -> Option<bool> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let replica = metrics.membership_config.membership().get_node(&node.0)?;
        Some(replica.peer_id == peer_id)
    }

    /// Waits until this replica follows a leader that is wanted; for ever when the replica has stopped.
    pub async fn led_by(&self, wanted: impl Fn(NodeId) -> bool) {
        let mut metrics = self.inner.raft.server_metrics();
        loop {
            let leader = metrics.borrow_and_update().current_leader.map(NodeId);
            if leader.is_some_and(&wanted) {
                return;
            }
            if metrics.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until leader, term or members change from what they are now; for ever when the replica has
    /// stopped, so callers set a limit.
    pub async fn changed(&self) {
        let mut metrics = self.inner.raft.server_metrics();
        // A new receiver has seen nothing: without this it would be told of the past, at once, for ever.
        drop(metrics.borrow_and_update());
        if metrics.changed().await.is_err() {
            // The replica has stopped, so nothing will change.
            std::future::pending::<()>().await;
        }
    }

    /// Whether any entry was ever appended or voted for here.
    ///
    /// # Errors
    /// When the replica has stopped.
    pub async fn is_initialised(&self) -> Result<bool, ProposeError> {
        self.inner.raft.is_initialized().await.map_err(|fatal| ProposeError::Stopped(fatal.to_string()))
    }

    /// Gives a pristine group its first voters. Does nothing when it has some.
    ///
    /// # Errors
    /// When the replica has stopped or is not among the voters.
    pub async fn initialise(&self, voters: BTreeMap<NodeId, PeerId>) -> Result<(), MembershipError> {
        let voters: BTreeMap<u64, Replica> =
            voters.into_iter().map(|(node, peer)| (node.0, Replica { peer_id: peer.to_string() })).collect();
        match self.inner.raft.initialize(voters).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(openraft::errors::InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(self.membership_error(error)),
        }
    }

    /// Adds a replica that follows without a vote. Returns when that is committed, not when the
    /// learner has caught up.
    ///
    /// # Errors
    /// When this replica does not lead, or another change is under way.
    pub async fn add_learner(&self, node: NodeId, peer: PeerId) -> Result<(), MembershipError> {
        let replica = Replica { peer_id: peer.to_string() };
        let added = self.inner.raft.add_learner(node.0, replica, false).await;
        added.map(|_| ()).map_err(|error| self.membership_error(error))
    }

    /// Makes exactly these the voters, by joint consensus. They must be learners or voters. Voters
    /// that leave stay as learners with `keep_as_learners`.
    ///
    /// # Errors
    /// When this replica does not lead, or another change is under way.
    pub async fn set_voters(
        &self,
        voters: BTreeSet<NodeId>,
        keep_as_learners: bool,
    ) -> Result<(), MembershipError> {
        let voters: BTreeSet<u64> = voters.into_iter().map(|node| node.0).collect();
        let changed = self.inner.raft.change_membership(voters, keep_as_learners).await;
        changed.map(|_| ()).map_err(|error| self.membership_error(error))
    }

    /// Removes learners.
    ///
    /// # Errors
    /// When this replica does not lead, or another change is under way.
    pub async fn remove_learners(&self, nodes: BTreeSet<NodeId>) -> Result<(), MembershipError> {
        let nodes: BTreeSet<u64> = nodes.into_iter().map(|node| node.0).collect();
        let change = openraft::ChangeMembers::RemoveNodes(nodes);
        let changed = self.inner.raft.change_membership(change, true).await;
        changed.map(|_| ()).map_err(|error| self.membership_error(error))
    }

    /// Hands leadership to another voter, if this replica leads.
    ///
    /// # Errors
    /// When the replica has stopped.
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), MembershipError> {
        let asked = self.inner.raft.trigger().transfer_leader(to.0).await;
        asked.map_err(|error| self.membership_error(error))
    }

    /// Stops the replica; the log keeps what it has.
    pub(super) async fn shutdown(&self) {
        self.inner.closed.cancel();
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(group = %self.inner.id, %error, "a replica ended with an error");
        }
    }

    fn membership_error(&self, error: impl std::fmt::Display) -> MembershipError {
        MembershipError { group: self.inner.id, reason: error.to_string() }
    }
}

fn leader_of(forward: ForwardToLeader<TypeConfig>) -> Option<Leader> {
    let peer = forward.leader_node.and_then(|replica| replica.peer_id.parse().ok());
    forward.leader_id.map(|node| Leader { node: NodeId(node), peer })
}

async fn recover(raft: Raft, told: watch::Sender<bool>) {
    match raft.wait_for_recovery(None).await {
        Ok(_) => drop(told.send_replace(true)),
        Err(error) => tracing::debug!(%error, "a replica stopped before it had recovered"),
    }
    // Whoever waits is told of the end by the group, not by this sender.
    std::future::pending().await
}

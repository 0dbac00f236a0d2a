//! The replicas that this node runs, and what they share: one log store, one link to each peer.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use debros_net::PeerId;
use debros_net::grpc::Channels;
use debros_proto::{ClusterId, GroupId, NodeId, v1};
use openraft::SnapshotPolicy;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::engine::{Engine, EngineFault};
use super::group::{Group, GroupParts};
use super::link::Links;
use super::log::LogStore;
use super::metrics::RaftMetrics;
use super::network::GroupNetwork;
use super::server::refusal;
use super::snapshot::SnapshotFolder;
use super::state_machine::StateMachine;
use crate::blocking::Blocking;

/// The timing of groups and how often they purge their logs.
#[derive(Clone, Debug)]
pub struct RaftOptions {
    /// A leader says that it lives this often.
    pub heartbeat: Duration,
    /// A follower that hears nothing for a time drawn from this range asks for votes.
    pub election: (Duration, Duration),
    /// The engine is made durable, and the log purged, after this many entries.
    pub durable_after_entries: u64,
    /// Entries kept behind the durable point, for followers that lag a little.
    pub kept_entries: u64,
}

impl Default for RaftOptions {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election: (Duration::from_millis(300), Duration::from_millis(500)),
            durable_after_entries: 50_000,
            kept_entries: 10_000,
        }
    }
}

/// Why a group could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenGroupError {
    /// The engine's store cannot be read.
    #[error("the state of group {group} cannot be opened")]
    Engine {
        /// Which group.
        group: GroupId,
        /// Why.
        #[source]
        source: EngineFault,
    },
    /// openraft refused to start over what log and engine hold.
    #[error("group {group} cannot start: {reason}")]
    Raft {
        /// Which group.
        group: GroupId,
        /// Why.
        reason: String,
    },
    /// The cluster id is not set yet.
    #[error("group {0} cannot open before the node belongs to a cluster")]
    NoCluster(GroupId),
}

/// A peer says that it is a node which neither the group nor the meta group here names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The group that it wants to reach.
    pub group: GroupId,
    /// The node that it says it is.
    pub node: NodeId,
    /// Who it is, proved.
    pub caller: PeerId,
    /// The replica here has no members yet: it is new and has nothing to lose.
    pub pristine: bool,
}

/// Who asks, proved by the connection. The text, by which memberships name peers, is made once: every
/// append is checked against it.
pub(super) struct Caller {
    peer: PeerId,
    text: String,
}

impl From<PeerId> for Caller {
    fn from(peer: PeerId) -> Self {
        Self { peer, text: peer.to_string() }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// Whether to believe a claim; given by who knows the cluster map.
pub type Believes = Arc<dyn Fn(Claim) -> bool + Send + Sync>;

/// The registry of this node's replicas. Cheap to clone.
#[derive(Clone)]
pub struct Groups {
    inner: Arc<Inner>,
}

struct Inner {
    open: RwLock<HashMap<GroupId, Group>>,
    log: LogStore,
    links: Links,
    blocking: Blocking,
    folder: SnapshotFolder,
    cluster: OnceLock<ClusterId>,
    options: RaftOptions,
    tracker: TaskTracker,
    believes: Believes,
    metrics: RaftMetrics,
}

/// What groups are made of.
pub struct GroupsParts {
    /// The log that they share.
    pub log: LogStore,
    /// The way to other nodes.
    pub channels: Channels,
    /// Where blocking work runs.
    pub blocking: Blocking,
    /// Where snapshots under way are kept.
    pub snapshot_folder: PathBuf,
    /// Their timing.
    pub options: RaftOptions,
    /// Where their tasks run.
    pub tracker: TaskTracker,
    /// Which peers are heard that no membership names.
    pub believes: Believes,
    /// What they measure.
    pub metrics: RaftMetrics,
}

impl Groups {
    /// No group is open yet.
    ///
    /// # Errors
    /// When the folder for snapshots under way cannot be made.
    pub fn new(parts: GroupsParts) -> std::io::Result<Self> {
        let GroupsParts { log, channels, blocking, snapshot_folder, options, tracker, believes, metrics } =
            parts;
        let folder = SnapshotFolder::open(snapshot_folder)?;
        let links = Links::new(channels, tracker.clone());
        let inner = Inner {
            open: RwLock::default(),
            log,
            links,
            blocking,
            folder,
            cluster: OnceLock::new(),
            options,
            tracker,
            believes,
            metrics,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Says once which cluster the node belongs to; groups of another one are refused from then on.
    pub fn set_cluster(&self, id: ClusterId) {
        let known = self.inner.cluster.get_or_init(|| id);
        assert_eq!(*known, id, "a node never changes its cluster");
    }

    /// Opens a group over its engine. An open group is given as it is.
    ///
    /// # Errors
    /// [`OpenGroupError`]; nothing stays open then.
    pub async fn open(
        &self,
        id: GroupId,
        node: NodeId,
        engine: Arc<dyn Engine>,
    ) -> Result<Group, OpenGroupError> {
        if let Some(group) = self.get(id) {
            return Ok(group);
        }
        let cluster = self.inner.cluster.get().ok_or(OpenGroupError::NoCluster(id))?;
        let (applied_sender, applied) = watch::channel(0);
        let state_machine = StateMachine::open(engine, self.inner.folder.clone(), applied_sender)
            .await
            .map_err(|source| OpenGroupError::Engine { group: id, source })?;
        let durable_since = state_machine.durable_since();
        let network = GroupNetwork {
            group: id,
            node: node.0,
            cluster_id: cluster.to_string().into(),
            links: self.inner.links.clone(),
            blocking: self.inner.blocking.clone(),
        };
        let failed = |reason: String| OpenGroupError::Raft { group: id, reason };
        let config = config(&self.inner.options).map_err(|error| failed(error.to_string()))?;
        let log = self.inner.log.group(id);
        let raft = openraft::Raft::new(node.0, Arc::new(config), network.clone(), log, state_machine)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let (group, tasks) = Group::new(GroupParts {
            durable_since,
            metrics: self.inner.metrics.clone(),
            id,
            node,
            raft,
            network,
            applied,
            blocking: self.inner.blocking.clone(),
            folder: self.inner.folder.clone(),
        });
        self.inner.tracker.spawn(tasks);
        self.inner.open.write().expect("not poisoned").insert(id, group.clone());
        Ok(group)
    }

    /// An open group.
    pub fn get(&self, id: GroupId) -> Option<Group> {
        self.inner.open.read().expect("not poisoned").get(&id).cloned()
    }

    /// Every open group, by id.
    pub fn all(&self) -> Vec<Group> {
        let mut groups: Vec<Group> =
            self.inner.open.read().expect("not poisoned").values().cloned().collect();
        groups.sort_by_key(Group::id);
        groups
    }

    /// Stops a group; its log and its engine's state stay.
    pub async fn close(&self, id: GroupId) {
        let group = self.inner.open.write().expect("not poisoned").remove(&id);
        if let Some(group) = group {
            group.shutdown().await;
        }
    }

    /// Append frames that wait for the peer with most of them.
    pub(super) fn fullest_outbox(&self) -> usize {
        self.inner.links.fullest_outbox()
    }

    /// The log store that all groups share.
    pub fn log(&self) -> &LogStore {
        &self.inner.log
    }

    /// Hands over every leadership that another voter can take, and waits for it, at most `timeout`.
    pub async fn hand_over(&self, timeout: Duration) {
        let deadline = tokio::time::Instant::now() + timeout;
        for group in self.all().into_iter().filter(Group::is_leader) {
            let Some(successor) = successor(&group) else { continue };
            if let Err(error) = group.transfer_leader(successor).await {
                tracing::warn!(%error, "leadership was not handed over");
                continue;
            }
            let handed_over = async {
                // Nobody takes over once a quorum no longer answers: the others are stopping, too.
                while group.is_leader() && self::successor(&group).is_some() {
                    // A change between the look and the wait is found by the next look.
                    let _ = tokio::time::timeout(HAND_OVER_LOOK, group.changed()).await;
                }
            };
            if tokio::time::timeout_at(deadline, handed_over).await.is_err() {
                tracing::warn!(group = %group.id(), "leadership was not handed over in time");
            }
        }
    }

    /// The replica that a request from a peer is meant for.
    pub(super) fn route(&self, caller: &Caller, route: &v1::Route) -> Result<Group, v1::Refusal> {
        use v1::RefusalReason::{NotThisReplica, UnknownGroup};
        let Some(cluster) = self.inner.cluster.get() else {
            return Err(refusal(UnknownGroup, "this node has not joined a cluster yet"));
        };
        if route.cluster_id.parse() != Ok(*cluster) {
            return Err(refusal(NotThisReplica, format!("this node belongs to cluster {cluster}")));
        }
        let Some(group) = self.get(GroupId(route.group)) else {
            return Err(refusal(UnknownGroup, format!("group {} is not open here", route.group)));
        };
        if group.node().0 != route.to {
            let message = format!("this is node {}, not {}: its log was lost", group.node(), route.to);
            return Err(refusal(NotThisReplica, message));
        }
        if !self.speaks_for(&group, NodeId(route.from), caller) {
            let message = format!("{caller} is not known here as node {}", route.from);
            return Err(refusal(NotThisReplica, message));
        }
        Ok(group)
    }

    /// Whoever forges a leader's append or vote truncates logs and deposes leaders, so every caller
    /// must be the node that it says it is. Clients are admitted as peers too.
    fn speaks_for(&self, group: &Group, node: NodeId, caller: &Caller) -> bool {
        // The group's own members may be behind: a new leader is a member of the meta group before.
        let meta = || self.get(GroupId::META)?.member_is(node, &caller.text);
        if let Some(is_caller) = group.member_is(node, &caller.text).or_else(meta) {
            return is_caller;
        }
        let status = group.status();
        let pristine = status.voters.is_empty() && status.learners.is_empty();
        (self.inner.believes)(Claim { group: group.id(), node, caller: caller.peer, pristine })
    }
}

/// How often a leader that hands over looks whether it still leads.
const HAND_OVER_LOOK: Duration = Duration::from_millis(50);
/// A leader whose quorum has not answered for longer has nobody to hand over to.
const QUORUM_SILENCE_MAX: Duration = Duration::from_secs(1);

/// The voter with the least lag, if a quorum is there to elect it.
fn successor(group: &Group) -> Option<NodeId> {
    let status = group.status();
    if status.quorum_answered.is_none_or(|ago| ago > QUORUM_SILENCE_MAX) {
        return None;
    }
    let others: BTreeSet<NodeId> =
        status.voters.iter().copied().filter(|node| *node != group.node()).collect();
    status
        .lag
        .iter()
        .filter(|(node, _)| others.contains(node))
        .min_by_key(|(_, lag)| **lag)
        .map(|(node, _)| *node)
}

fn config(options: &RaftOptions) -> Result<openraft::Config, openraft::ConfigError> {
    let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    openraft::Config {
        cluster_name: "debros".into(),
        heartbeat_interval: milliseconds(options.heartbeat),
        election_timeout_min: milliseconds(options.election.0),
        election_timeout_max: milliseconds(options.election.1),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(options.durable_after_entries),
        max_in_snapshot_log_to_keep: options.kept_entries,
        // Off by default: a node that was cut off would depose a healthy leader when it comes back.
        enable_pre_vote: Some(true),
        // Unsafe over a state machine that is not durable at once: a restarted leader votes again.
        enable_leader_restore: Some(false),
        // Followers write while the leader's own fsync is under way.
        broadcast_submitted_on_append: Some(true),
        ..Default::default()
    }
    .validate()
}

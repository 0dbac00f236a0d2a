//! Members of the cluster, planned leave and one-time initialisation, as an operator sees them.

mod node;

use std::time::Duration;

use debros_proto::v1;

use crate::call::{Failed, Plan, Target};
use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::rpc;

/// Replicas are copied before a member may go: an operation's usual timeout is too short for that.
pub const LEAVE_TIMEOUT_MIN: Duration = Duration::from_secs(60);

pub use node::ClusterNode;

/// A cluster's membership.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

/// The members as the cluster map has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// The cluster.
    pub cluster_id: String,
    /// The version of the cluster map.
    pub epoch: u64,
    /// In the order of their node ids.
    pub members: Vec<Member>,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its node id, never used again by another.
    pub node_id: u64,
    /// Its PeerId.
    pub peer_id: String,
    /// Where it may be found.
    pub addresses: Vec<String>,
    /// Its zone.
    pub zone: String,
    /// Whether it stays.
    pub state: MemberState,
    /// Whether it votes in the meta group.
    pub voter: bool,
    /// Whether it leads the meta group.
    pub leader: bool,
    /// Whether the asked node is connected to it.
    pub connected: bool,
    /// Its version of debros.
    pub version: String,
}

/// What a node logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLevel {
    /// In force now.
    pub level: String,
    /// In force before it was changed.
    pub before: String,
}

/// The state of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MemberState {
    /// It takes part.
    Active,
    /// It hands over its replicas and gets no new ones.
    Leaving,
    /// It left or was removed.
    Removed,
    /// This build does not know the state.
    Unknown,
}

impl MemberState {
    /// The state as one lower-case word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Leaving => "leaving",
            Self::Removed => "removed",
            Self::Unknown => "unknown",
        }
    }
}

impl Cluster {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// The members.
    ///
    /// # Errors
    /// Whatever an unavailable cluster gives.
    pub async fn members(&self) -> Result<Members, Error> {
        let shared = self.client.shared();
        let answer = shared.call(&shared.plan_any(), &v1::MembersRequest::default(), rpc::members).await;
        Ok(answer.map_err(Failed::into_read_error)?.value.into())
    }

    /// Lets a member leave: its replicas move away before this returns, for which it waits at least
    /// [`LEAVE_TIMEOUT_MIN`]. `None` is the node that [`Client::connected_node`] gives at this moment.
    /// Gives the epoch of the map without it.
    ///
    /// # Errors
    /// `NotFound` for no such member; an unknown outcome when the connection broke meanwhile.
    pub async fn leave(&self, node_id: Option<u64>) -> Result<u64, Error> {
        let shared = self.client.shared();
        let node_id = match node_id {
            Some(node_id) => node_id,
            None => self.connected_member().await?,
        };
        // Always by number: "the node that is asked" would be another one after a retry.
        let request = v1::LeaveRequest { header: None, node_id };
        let timeout = shared.settings().operation_timeout.max(LEAVE_TIMEOUT_MIN);
        let plan = Plan { target: Target::Any, deadline: shared.deadline(Some(timeout)), repeatable: false };
        let answer = shared.call(&plan, &request, rpc::leave).await;
        Ok(answer.map_err(Failed::into_write_error)?.value.epoch)
    }

    async fn connected_member(&self) -> Result<u64, Error> {
        let shared = self.client.shared();
        // Whoever would answer for a node that is gone must not be removed in its stead.
        let Some(connected) = shared.nodes().home() else {
            let message = "the connected node does not answer; name the member that is to leave";
            return Err(Error::new(ErrorKind::Unreachable, message));
        };
        let plan = Plan { target: Target::Node(connected), ..shared.plan_any() };
        let answer = shared.call(&plan, &v1::StatusRequest::default(), rpc::status).await;
        match answer.map_err(Failed::into_read_error)?.value.node_id {
            0 => Err(Error::new(ErrorKind::NotReady, "the connected node is not a member of a cluster yet")),
            node_id => Ok(node_id),
        }
    }

    /// Initialises a cluster at the connected node, once. Gives the new cluster's id.
    ///
    /// # Errors
    /// `AlreadyExists` where a member or a log exists.
    pub async fn initialise(&self) -> Result<String, Error> {
        let shared = self.client.shared();
        let plan = shared.plan_connected_node()?;
        let answer = shared.call(&plan, &v1::InitialiseRequest::default(), rpc::initialise).await;
        Ok(answer.map_err(Failed::into_write_error)?.value.cluster_id)
    }
}

impl Cluster {
    /// Shows what the connected node logs, or with a level, or a list such as `info,debros_node=debug`, changes it
    /// until that node is started again.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no level; nothing was changed then.
    pub async fn log_level(&self, level: Option<&str>) -> Result<LogLevel, Error> {
        let shared = self.client.shared();
        if level.is_some_and(str::is_empty) {
            return Err(Error::new(ErrorKind::InvalidArgument, "an empty text is no level"));
        }
        let request = v1::LogLevelRequest { header: None, level: level.unwrap_or_default().to_owned() };
        let answer = shared.call(&shared.plan_about_connected_node()?, &request, rpc::log_level).await;
        let v1::LogLevelResponse { level, before } = answer.map_err(Failed::into_read_error)?.value;
        Ok(LogLevel { level, before })
    }
}

impl From<v1::MembersResponse> for Members {
    fn from(response: v1::MembersResponse) -> Self {
        let v1::MembersResponse { cluster_id, epoch, members } = response;
        let mut members: Vec<Member> = members.into_iter().map(Member::from).collect();
        members.sort_by_key(|member| member.node_id);
        Self { cluster_id, epoch, members }
    }
}

impl From<v1::Member> for Member {
    fn from(member: v1::Member) -> Self {
        let state = match member.state() {
            v1::MemberState::Active => MemberState::Active,
            v1::MemberState::Leaving => MemberState::Leaving,
            v1::MemberState::Removed => MemberState::Removed,
            v1::MemberState::Unspecified => MemberState::Unknown,
        };
        let voter = member.meta_role() == v1::GroupRole::Voter;
        let v1::Member {
            node_id,
            peer_id,
            addresses,
            zone,
            state: _,
            meta_role: _,
            meta_leader,
            connected,
            version,
        } = member;
        Self { node_id, peer_id, addresses, zone, state, voter, leader: meta_leader, connected, version }
    }
}

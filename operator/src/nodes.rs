//! The nodes as the operator sees them: what they say, and the few things that are asked of them. Two implementations:
//! [`remote`] is the SDK; the tests have a cluster in memory that answers alike.

pub mod remote;

use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::observed::{Member, Node, PodId};

/// Whose nodes are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The uid of the resource: a name may come to mean another cluster.
    pub uid: String,
    /// The cluster secret; `None` with open admission.
    pub secret: Option<Vec<u8>>,
    /// The pods that there are.
    pub pods: Vec<PodAddress>,
}

/// Where a pod's node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodAddress {
    /// The pod.
    pub id: PodId,
    /// Its uid: under another one it may be another node.
    pub uid: String,
    /// A multiaddr.
    pub address: String,
}

/// What the nodes said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answers {
    /// Those that answered.
    pub nodes: BTreeMap<PodId, Node>,
    /// The members; `None` when nobody could say.
    pub members: Option<Vec<Member>>,
    /// What they find not well with the cluster as a whole.
    pub warnings: Vec<String>,
}

/// Why a node did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// It is not in reach.
    #[error("{pod} does not answer: {reason}")]
    Unreachable {
        /// Which.
        pod: String,
        /// Why.
        reason: String,
    },
    /// It said no, or not in time.
    #[error("{what}: {source}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        #[source]
        source: debros_sdk::Error,
    },
    /// It does not do it now; asking again may help.
    #[error("{0}")]
    NotNow(String),
    /// The operator's own identity or the secret cannot be used.
    #[error("the nodes cannot be asked: {0}")]
    Unusable(String),
}

/// How a member's leave goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It is out.
    Done,
    /// It hands over what it holds, and goes on by itself.
    UnderWay,
}

/// The admin surface of a cluster's nodes.
#[async_trait]
pub trait Nodes: Send + Sync {
    /// Asks every pod's node how it is, and one that knows for the members.
    async fn look(&self, place: &Place) -> Result<Answers, NodeError>;

    /// Initialises the cluster at a pod's node. Gives the cluster's id.
    async fn initialise(&self, place: &Place, pod: PodId) -> Result<String, NodeError>;

    /// Lets a member leave, or takes it out when it is gone.
    async fn leave(&self, place: &Place, node_id: u64) -> Result<Leave, NodeError>;

    /// Has a pod's node hand over its leaderships.
    async fn hand_over(&self, place: &Place, pod: PodId) -> Result<(), NodeError>;

    /// Tells a pod's node what to log.
    async fn set_log_level(&self, place: &Place, pod: PodId, level: &str) -> Result<(), NodeError>;

    /// Forgets a cluster whose resource is gone.
    async fn forget(&self, uid: &str);
}

//! What was seen of a cluster, as far as decisions depend on it: plain data, in which Kubernetes and the nodes have
//! become one picture. Made by [`crate::dereference`]; a test makes its own.

use std::collections::BTreeSet;

use crate::names::{BySet, Role};

/// A pod by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId {
    /// Its set.
    pub role: Role,
    /// Its number there.
    pub ordinal: i32,
}

/// A cluster at a moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// The id of the cluster as it was written down.
    pub recorded: Option<String>,
    /// Replicas that the StatefulSets ask for; `None` where there is none.
    pub sets: BySet<Option<i32>>,
    /// Every pod that there is, in the order of sets and ordinals.
    pub pods: Vec<Pod>,
    /// Claims without a pod.
    pub spare_claims: Vec<SpareClaim>,
    /// The members as the nodes know them; `None` when none of them could say.
    pub members: Option<Vec<Member>>,
    /// Which pod had which identity when it was last written down.
    pub known: Vec<(PodId, String)>,
    /// What members say is not well with the cluster as a whole.
    pub warnings: Vec<String>,
}

/// A pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// Its place.
    pub id: PodId,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The version of the object that was read.
    pub resource_version: String,
    /// Kubernetes says that it serves.
    pub ready: bool,
    /// Its container runs.
    pub running: bool,
    /// It was told to end.
    pub terminating: bool,
    /// The revision it was made from.
    pub revision: String,
    /// Its volume.
    pub claim: Claim,
    /// Why Kubernetes does not get on with it, with the next step.
    pub trouble: Option<String>,
    /// What its node says; `None` when it does not answer.
    pub node: Option<Node>,
}

/// A pod's claim of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// There is a volume behind it, so a node may have run on it.
    pub bound: bool,
    /// It was there before the resource.
    pub earlier: bool,
}

/// A claim that no pod uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpareClaim {
    /// Its name.
    pub name: String,
    /// Whose it was.
    pub id: PodId,
    /// There is a volume behind it.
    pub bound: bool,
}

/// What a node says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Its identity.
    pub peer_id: String,
    /// Its number; `None` before it has joined.
    pub node_id: Option<u64>,
    /// The cluster that its volume or its configuration names.
    pub belongs_to: Option<String>,
    /// It was removed from its cluster, and joins as another node once it is started again.
    pub begins_anew: bool,
    /// Its version of debros.
    pub version: String,
    /// Its zone.
    pub zone: String,
    /// Its replicas.
    pub groups: Vec<Group>,
    /// Its share of the storage; `None` before it has joined.
    pub storage: Option<Storage>,
}

/// A replica of a Raft group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// The group.
    pub id: u64,
    /// `meta`, or `namespace/database`.
    pub name: String,
    /// Who leads, as this replica knows; 0 for nobody.
    pub leader: u64,
    /// Whether this replica leads.
    pub leads: bool,
    /// The last entry of its log.
    pub last: u64,
    /// The last entry applied.
    pub applied: u64,
    /// Who votes.
    pub voters: BTreeSet<u64>,
    /// Who only follows.
    pub learners: BTreeSet<u64>,
}

/// A node's share of the storage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Storage {
    /// The version of the layout.
    pub layout: u64,
    /// No change of the layout is under way.
    pub stable: bool,
    /// Partitions that it still has to copy.
    pub to_copy: u32,
    /// It keeps writes for replicas that were absent.
    pub hints: bool,
}

/// A member of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub node_id: u64,
    /// Its identity.
    pub peer_id: String,
    /// Whether it stays.
    pub state: State,
    /// Whether it votes in the cluster's own group.
    pub voter: bool,
    /// Whether the node that was asked is connected to it.
    pub connected: bool,
}

/// Whether a member stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It takes part.
    #[default]
    Active,
    /// It hands over what it holds.
    Leaving,
    /// It is none any more.
    Removed,
}

impl Observed {
    /// A pod by its place.
    pub fn pod(&self, id: PodId) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.id == id)
    }

    /// Pods whose node answers.
    pub fn answering(&self) -> impl Iterator<Item = (&Pod, &Node)> {
        self.pods.iter().filter_map(|pod| Some((pod, pod.node.as_ref()?)))
    }

    /// What a node that is a member says.
    pub fn node(&self, node_id: u64) -> Option<&Node> {
        self.answering().map(|(_, node)| node).find(|node| node.node_id == Some(node_id))
    }

    /// Members that have not been taken out.
    pub fn present(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().flatten().filter(|member| member.state != State::Removed)
    }

    /// A member by its identity. One that was taken out and came back is listed twice; what counts is the one that stays.
    pub fn member(&self, peer_id: &str) -> Option<&Member> {
        let of_peer = || self.members.iter().flatten().filter(|member| member.peer_id == peer_id);
        of_peer().find(|member| member.state != State::Removed).or_else(|| of_peer().next())
    }
}

impl Observed {
    /// Who runs in a pod, or did when it was last seen.
    pub fn peer_in(&self, id: PodId) -> Option<&str> {
        let answered = self.pod(id).and_then(|pod| Some(pod.node.as_ref()?.peer_id.as_str()));
        answered.or_else(|| self.known.iter().find(|(known, _)| *known == id).map(|(_, peer)| peer.as_str()))
    }

    /// The number of the member in a pod, also of one that does not answer.
    pub fn member_in(&self, id: PodId) -> Option<u64> {
        let answered = self.pod(id).and_then(|pod| pod.node.as_ref()?.node_id);
        answered.or_else(|| self.member(self.peer_in(id)?).map(|member| member.node_id))
    }
}

impl Pod {
    /// It is there and serves: Kubernetes and its node both say so.
    pub fn serves(&self) -> bool {
        self.ready && !self.terminating && self.node.is_some()
    }
}

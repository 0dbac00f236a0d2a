//! The nodes through the SDK: one client a cluster, kept; one handle a pod, made anew when the pod is another one or
//! does not answer.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use debros_sdk::{Client, ClusterNode, ErrorKind, NetworkStatus};
use futures::future::join_all;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::{Answers, Leave, NodeError, Nodes, Place, PodAddress};
use crate::identity::Identity;
use crate::observed::{Group, Member, Node, PodId, State, Storage};

/// The namespace that the operator's client acts in; it stores nothing there.
const APPLICATION: &str = "debros-operator";
/// A node that runs answers within this, a new connection included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// A leave goes on by itself once it was begun: it is looked at again after so long.
const LEAVE_LOOK: Duration = Duration::from_secs(10);

/// The nodes of all clusters.
pub struct RemoteNodes {
    identity: Identity,
    /// A folder for each cluster, since an identity's folder serves one client at a time.
    folder: PathBuf,
    clusters: Mutex<HashMap<String, Arc<Mutex<Connection>>>>,
}

/// What is kept of a cluster.
#[derive(Default)]
struct Connection {
    client: Option<(Client, Option<Vec<u8>>)>,
    pods: BTreeMap<PodId, (String, ClusterNode)>,
}

impl RemoteNodes {
    /// Nodes that are asked under this identity. The folder holds copies of it.
    pub fn new(identity: Identity, folder: PathBuf) -> Self {
        Self { identity, folder, clusters: Mutex::default() }
    }

    async fn connection(&self, place: &Place) -> Arc<Mutex<Connection>> {
        Arc::clone(self.clusters.lock().await.entry(place.uid.clone()).or_default())
    }

    /// The client of a cluster; `None` when no pod answers.
    async fn client(&self, connection: &mut Connection, place: &Place) -> Result<Option<Client>, NodeError> {
        if let Some((client, secret)) = &connection.client {
            if *secret == place.secret {
                return Ok(Some(client.clone()));
            }
            client.clone().close().await;
            *connection = Connection::default();
        }
        if place.pods.is_empty() {
            return Ok(None);
        }
        let folder = self.folder.join(&place.uid);
        self.identity.write_to(&folder).map_err(|error| NodeError::Unusable(error.to_string()))?;
        let mut builder = Client::builder(APPLICATION)
            .bootstrap_peers(place.pods.iter().map(|pod| pod.address.as_str()))
            .identity_folder(folder)
            .connect_timeout(ANSWER_TIMEOUT)
            .attempts(1);
        if let Some(secret) = &place.secret {
            builder = builder.cluster_secret(secret.clone());
        }
        match builder.connect().await {
            Ok(client) => {
                connection.client = Some((client.clone(), place.secret.clone()));
                Ok(Some(client))
            }
            Err(error) if error.kind() == ErrorKind::Unreachable => {
                tracing::debug!(%error, "no node of the cluster answers");
                Ok(None)
            }
            Err(error) => Err(NodeError::Unusable(error.to_string())),
        }
    }

    /// A handle on the node of a pod.
    async fn node(&self, place: &Place, pod: PodId) -> Result<ClusterNode, NodeError> {
        let connection = self.connection(place).await;
        let mut connection = connection.lock().await;
        let unreachable =
            |reason: String| NodeError::Unreachable { pod: format!("{}-{}", pod.role, pod.ordinal), reason };
        let Some(address) = place.pods.iter().find(|known| known.id == pod) else {
            return Err(unreachable("there is no such pod".to_owned()));
        };
        if let Some((uid, node)) = connection.pods.get(&pod)
            && *uid == address.uid
        {
            return Ok(node.clone());
        }
        let Some(client) = self.client(&mut connection, place).await? else {
            return Err(unreachable("no node of the cluster answers".to_owned()));
        };
        let node = client.cluster().node_at(&address.address, ANSWER_TIMEOUT).await;
        let node = node.map_err(|error| unreachable(error.to_string()))?;
        connection.pods.insert(pod, (address.uid.clone(), node.clone()));
        Ok(node)
    }
}

/// Asks the node of one pod, through its handle or through a new one.
async fn ask(
    client: &Client,
    address: &PodAddress,
    kept: Option<ClusterNode>,
) -> Option<(ClusterNode, NetworkStatus)> {
    if let Some(node) = kept
        && let Ok(status) = node.status(ANSWER_TIMEOUT).await
    {
        return Some((node, status));
    }
    let node = client.cluster().node_at(&address.address, ANSWER_TIMEOUT).await;
    let node = node
        .inspect_err(|error| tracing::debug!(%error, address = address.address, "a node does not answer"));
    let node = node.ok()?;
    let status = node.status(ANSWER_TIMEOUT).await.ok()?;
    Some((node, status))
}

#[async_trait]
impl Nodes for RemoteNodes {
    async fn look(&self, place: &Place) -> Result<Answers, NodeError> {
        let connection = self.connection(place).await;
        let mut connection = connection.lock().await;
        let Some(client) = self.client(&mut connection, place).await? else { return Ok(Answers::default()) };
        let asked = place.pods.iter().map(|address| {
            let kept = connection.pods.get(&address.id).filter(|(uid, _)| *uid == address.uid);
            let kept = kept.map(|(_, node)| node.clone());
            ask(&client, address, kept)
        });
        let answered = join_all(asked).await;
        connection.pods.clear();
        let mut answers = Answers::default();
        let mut knowing: Vec<(bool, ClusterNode)> = Vec::new();
        for (address, answer) in place.pods.iter().zip(answered) {
            let Some((node, status)) = answer else { continue };
            answers.warnings.extend(status.warnings.iter().cloned());
            if let Some(meta) = status.groups.iter().find(|group| group.name == "meta" && group.leader != 0) {
                knowing.push((meta.role == "leader", node.clone()));
            }
            answers.nodes.insert(address.id, node_of(status));
            connection.pods.insert(address.id, (address.uid.clone(), node));
        }
        // Who leads decides who is a member, and is the one whose connections count.
        knowing.sort_by_key(|(leads, _)| !leads);
        for (_, node) in knowing {
            if let Ok(members) = node.members(ANSWER_TIMEOUT).await {
                answers.members = Some(members.members.into_iter().map(Member::from).collect());
                break;
            }
        }
        answers.warnings.sort();
        answers.warnings.dedup();
        Ok(answers)
    }

    async fn initialise(&self, place: &Place, pod: PodId) -> Result<String, NodeError> {
        let node = self.node(place, pod).await?;
        node.initialise()
            .await
            .map_err(|source| NodeError::Refused { what: "the cluster was not initialised", source })
    }

    async fn leave(&self, place: &Place, node_id: u64) -> Result<Leave, NodeError> {
        let connection = self.connection(place).await;
        let client = self.client(&mut *connection.lock().await, place).await?;
        let Some(client) = client else {
            return Err(NodeError::NotNow("no node of the cluster answers".to_owned()));
        };
        let cluster = client.cluster();
        match timeout(LEAVE_LOOK, cluster.leave(Some(node_id))).await {
            Ok(Ok(_)) => Ok(Leave::Done),
            Err(_) => Ok(Leave::UnderWay),
            Ok(Err(error)) if error.maybe_applied() || error.is_retryable() => Ok(Leave::UnderWay),
            Ok(Err(source)) => Err(NodeError::Refused { what: "the member does not leave", source }),
        }
    }

    async fn hand_over(&self, place: &Place, pod: PodId) -> Result<(), NodeError> {
        let node = self.node(place, pod).await?;
        let left = node.hand_over().await;
        let left =
            left.map_err(|source| NodeError::Refused { what: "leaderships were not handed over", source })?;
        if left > 0 {
            tracing::info!(?pod, left, "a node goes on to lead groups that nobody else can");
        }
        Ok(())
    }

    async fn set_log_level(&self, place: &Place, pod: PodId, level: &str) -> Result<(), NodeError> {
        let node = self.node(place, pod).await?;
        let told = node.log_level(Some(level)).await;
        told.map(drop).map_err(|source| NodeError::Refused { what: "the log level was not changed", source })
    }

    async fn forget(&self, uid: &str) {
        let Some(connection) = self.clusters.lock().await.remove(uid) else { return };
        if let Some((client, _)) = connection.lock().await.client.take() {
            client.close().await;
        }
        // A copy of the identity; what is left of it is of no harm.
        let _ = std::fs::remove_dir_all(self.folder.join(uid));
    }
}

fn node_of(status: NetworkStatus) -> Node {
    let group = |group: debros_sdk::GroupInfo| Group {
        id: group.group,
        leads: group.role == "leader",
        name: group.name,
        leader: group.leader,
        last: group.last_log_index,
        applied: group.applied_index,
        voters: group.voters.into_iter().collect(),
        learners: group.learners.into_iter().collect(),
    };
    let storage = |storage: debros_sdk::StorageInfo| Storage {
        layout: storage.layout_version,
        stable: storage.phase == "stable",
        to_copy: storage.partitions_to_copy,
        hints: storage.hinted_bytes > 0,
    };
    Node {
        peer_id: status.node_id,
        node_id: Some(status.member_id).filter(|id| *id != 0),
        belongs_to: Some(status.belongs_to).filter(|id| !id.is_empty()),
        begins_anew: status.begins_anew,
        version: status.version,
        zone: status.zone,
        groups: status.groups.into_iter().map(group).collect(),
        storage: status.storage.map(storage),
    }
}

impl From<debros_sdk::Member> for Member {
    fn from(member: debros_sdk::Member) -> Self {
        let state = match member.state {
            debros_sdk::MemberState::Leaving => State::Leaving,
            debros_sdk::MemberState::Removed => State::Removed,
            // A state of a later version is one of a member that is there.
            _ => State::Active,
        };
        let debros_sdk::Member { node_id, peer_id, voter, connected, .. } = member;
        Self { node_id, peer_id, state, voter, connected }
    }
}

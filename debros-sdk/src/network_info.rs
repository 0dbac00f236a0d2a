//! The network as an application sees it: peers, a node's status, health by real probes. The types
//! are plain data with the fields that users of the original know, and more.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use debros_proto::v1;
use futures::future::join_all;

use crate::call::{Failed, Plan, Target};
use crate::client::Client;
use crate::database::{Database, ReadOptions};
use crate::error::Error;
use crate::overview::EngineActivity;
use crate::refresh;
use crate::rpc;
use crate::statement::Parameters;

/// A node has so long to answer a health probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Nodes asked by one health call; of more, those that were asked stand for all.
const PROBED_NODES_MAX: usize = 32;

/// What to do about a database that does not answer this client.
const DATABASE_NEXT_STEP: &str = "see the nodes' checks `leaders`, `quorum` and `probe database`";
/// What to do about a node that does not answer this client.
const NODE_NEXT_STEP: &str = "see that the node runs and that this machine reaches it; members that are away are named by `debros cluster members`";

/// What a client can learn about the network and do to its links.
#[async_trait]
pub trait NetworkInfo: Send + Sync {
    /// The peers of the node this client is connected to.
    async fn get_peers(&self) -> Result<Vec<PeerInfo>, Error>;

    /// The status of the node this client is connected to.
    async fn get_status(&self) -> Result<NetworkStatus, Error>;

    /// Asks the connected node to connect to the peer at this multiaddr; gives that peer's id.
    async fn connect_to_peer(&self, address: &str) -> Result<String, Error>;

    /// Asks the connected node to close its connections to this peer.
    async fn disconnect_from_peer(&self, peer_id: &str) -> Result<(), Error>;

    /// Probes the nodes and the database, and says how they are. It fails only when the client is
    /// closed: an unreachable cluster is an unhealthy one.
    async fn health(&self) -> Result<HealthStatus, Error>;
}

/// One peer, as a node knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// The PeerId in base58.
    pub id: String,
    /// Multiaddrs at which it may be found.
    pub addresses: Vec<String>,
    /// Whether it is connected now.
    pub connected: bool,
    /// When it was last heard; `None` for never.
    pub last_seen: Option<SystemTime>,
    /// What it offers: `database`, `storage`, `pubsub`.
    pub services: Vec<String>,
    /// Its version of debros.
    pub version: String,
    /// Its zone; empty when it has none.
    pub zone: String,
    /// Its node id in the cluster; 0 before it has joined.
    pub node_id: u64,
    /// Last measured round trip.
    pub round_trip: Option<Duration>,
}

/// A node's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkStatus {
    /// The node's PeerId.
    pub node_id: String,
    /// Whether the node is connected to any other.
    pub connected: bool,
    /// Peers connected to it.
    pub peer_count: usize,
    /// Bytes on disk of its databases.
    pub database_size: u64,
    /// Time since it started.
    pub uptime: Duration,
    /// The node's number in the cluster; 0 before it has joined.
    pub member_id: u64,
    /// The cluster it belongs to; empty before it has joined.
    pub cluster_id: String,
    /// Its version of debros.
    pub version: String,
    /// Its zone.
    pub zone: String,
    /// Its version of the cluster map.
    pub epoch: u64,
    /// Where it listens.
    pub listen_addresses: Vec<String>,
    /// The Raft groups it has a replica of.
    pub groups: Vec<GroupInfo>,
    /// What the operator should know; empty when all is well.
    pub warnings: Vec<String>,
    /// The key-value storage on the node; `None` before it has joined.
    pub storage: Option<StorageInfo>,
    /// What its engines have done since it started.
    pub activity: Vec<EngineActivity>,
    /// Bytes free on the fullest of its disks.
    pub disk_free: u64,
    /// The cluster that its data folder or its configuration names, which it may not have joined yet; empty for none.
    pub belongs_to: String,
    /// It was removed from its cluster, and joins as another node once it is started again.
    pub begins_anew: bool,
}

/// The key-value storage on a node, and how far a change of its layout is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorageInfo {
    /// The version of the layout; 0 before there is one.
    pub layout_version: u64,
    /// `stable`; `write-both` while nodes copy what they gain; `read-next` until nobody reads the old layout.
    pub phase: String,
    /// Nodes that hold the storage, with those that are to.
    pub nodes: u32,
    /// Nodes of the next layout that have copied what they gain.
    pub nodes_copied: u32,
    /// Partitions that this node answers for, of 1024.
    pub partitions: u32,
    /// Partitions that this node still has to copy.
    pub partitions_to_copy: u32,
    /// Bytes on disk.
    pub bytes: u64,
    /// Bytes of writes kept for absent replicas.
    pub hinted_bytes: u64,
    /// Namespaces whose writes the node acknowledges before they are on disk.
    pub relaxed_namespaces: Vec<String>,
}

/// A Raft group on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInfo {
    /// Its number.
    pub group: u64,
    /// `meta`, or `namespace/database`.
    pub name: String,
    /// `leader`, `follower`, `candidate`, `learner`.
    pub role: String,
    /// The leader's node id; 0 when unknown.
    pub leader: u64,
    /// The Raft term.
    pub term: u64,
    /// The last entry of its log.
    pub last_log_index: u64,
    /// The last entry applied.
    pub applied_index: u64,
    /// Node ids of the voters.
    pub voters: Vec<u64>,
    /// Node ids of the learners.
    pub learners: Vec<u64>,
}

/// How well a cluster, a node or a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// All is well.
    Healthy,
    /// It works, and something needs attention.
    Degraded,
    /// It does not work.
    Unhealthy,
}

impl Health {
    /// `healthy`, `degraded` or `unhealthy`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
        }
    }

    /// Reads a node's word for itself or for one of its checks; an unknown one is no good sign.
    pub(crate) fn from_wire(word: &str) -> Self {
        match word {
            "healthy" | "ok" => Self::Healthy,
            "degraded" | "warning" => Self::Degraded,
            _ => Self::Unhealthy,
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One probe's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// How it went.
    pub status: Health,
    /// What was found, for people.
    pub message: String,
    /// How long the probe took.
    pub took: Duration,
    /// What to do about it, for people; empty when there is nothing to do.
    pub next_step: String,
}

impl HealthCheck {
    /// One of a node's checks, with its name.
    pub(crate) fn named(check: v1::HealthCheck) -> (String, Self) {
        let v1::HealthCheck { name, status, message, took_us, next_step } = check;
        let (status, took) = (Health::from_wire(&status), Duration::from_micros(u64::from(took_us)));
        (name, Self { status, message, took, next_step })
    }
}

/// The result of all probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthStatus {
    /// The verdict: unhealthy when the database does not answer a linearizable read, degraded when
    /// any other check is not healthy.
    pub status: Health,
    /// By name: `database`, `node <peer id>`, and what each node itself checked as
    /// `node <peer id>: <check>`.
    pub checks: BTreeMap<String, HealthCheck>,
    /// When the probes ended.
    pub last_updated: SystemTime,
    /// How long the linearizable read took.
    pub response_time: Duration,
}

impl HealthStatus {
    fn of(database: HealthCheck, nodes: BTreeMap<String, HealthCheck>) -> Self {
        let worst = nodes.values().map(|check| check.status).max().unwrap_or(Health::Unhealthy);
        let status = match database.status {
            // One node that is down is a matter of redundancy as long as the database answers.
            Health::Healthy => worst.min(Health::Degraded),
            status => status,
        };
        let response_time = database.took;
        let mut checks = nodes;
        checks.insert("database".to_owned(), database);
        Self { status, checks, last_updated: SystemTime::now(), response_time }
    }
}

/// The network of a cluster.
#[derive(Clone)]
pub struct RemoteNetwork {
    client: Client,
}

impl RemoteNetwork {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    async fn probe_database(&self) -> HealthCheck {
        let started = tokio::time::Instant::now();
        let options = ReadOptions {
            consistency: Some(crate::database::Consistency::Linearizable),
            timeout: Some(PROBE_TIMEOUT),
            ..ReadOptions::default()
        };
        // A read would create the namespace's default database.
        let database = self.client.database();
        let answer = match self.client.list_databases().await {
            Ok(known) if known.iter().all(|known| known.name != database.name()) => {
                Ok("there is no database yet; the cluster's map was read")
            }
            Ok(_) => database
                .query_with("SELECT 1", Parameters::default(), options)
                .await
                .map(|_| "a linearizable read was answered"),
            Err(error) => Err(error),
        };
        let (status, message, next_step) = match answer {
            Ok(message) => (Health::Healthy, message.to_owned(), ""),
            Err(error) => (Health::Unhealthy, error.to_string(), DATABASE_NEXT_STEP),
        };
        HealthCheck { status, message, took: started.elapsed(), next_step: next_step.to_owned() }
    }

    async fn probe_nodes(&self) -> BTreeMap<String, HealthCheck> {
        let shared = self.client.shared();
        let mut peers = shared.nodes().all();
        peers.truncate(PROBED_NODES_MAX);
        let probes = peers.into_iter().map(|peer| async move {
            let started = tokio::time::Instant::now();
            let deadline = shared.deadline(Some(PROBE_TIMEOUT));
            let plan = Plan { target: Target::Node(peer), deadline, repeatable: true };
            let answer = shared.call(&plan, &v1::HealthRequest::default(), rpc::health).await;
            let name = format!("node {peer}");
            match answer {
                Ok(answer) => node_checks(&name, answer.value, started.elapsed()),
                Err(failed) => {
                    let message = failed.into_read_error().to_string();
                    let next_step = NODE_NEXT_STEP.to_owned();
                    let took = started.elapsed();
                    vec![(name, HealthCheck { status: Health::Unhealthy, message, took, next_step })]
                }
            }
        });
        join_all(probes).await.into_iter().flatten().collect()
    }
}

fn node_checks(node: &str, answer: v1::HealthResponse, took: Duration) -> Vec<(String, HealthCheck)> {
    let status = Health::from_wire(&answer.status);
    let message = format!("the node says {}", answer.status);
    let own = HealthCheck { status, message, took, next_step: String::new() };
    let mut checks = vec![(node.to_owned(), own)];
    let named = answer.checks.into_iter().map(HealthCheck::named);
    checks.extend(named.map(|(name, check)| (format!("{node}: {name}"), check)));
    checks
}

#[async_trait]
impl NetworkInfo for RemoteNetwork {
    async fn get_peers(&self) -> Result<Vec<PeerInfo>, Error> {
        let shared = self.client.shared();
        let plan = shared.plan_about_connected_node()?;
        let answer = shared.call(&plan, &v1::PeersRequest::default(), rpc::peers).await;
        let peers = answer.map_err(Failed::into_read_error)?.value.peers;
        Ok(peers.into_iter().map(PeerInfo::from).collect())
    }

    async fn get_status(&self) -> Result<NetworkStatus, Error> {
        let shared = self.client.shared();
        let plan = shared.plan_about_connected_node()?;
        let answer = shared.call(&plan, &v1::StatusRequest::default(), rpc::status).await;
        Ok(answer.map_err(Failed::into_read_error)?.value.into())
    }

    async fn connect_to_peer(&self, address: &str) -> Result<String, Error> {
        let plan = self.client.shared().plan_connected_node()?;
        crate::address::parse(address)?;
        let request = v1::ConnectPeerRequest { header: None, address: address.to_owned() };
        let answer = self.client.shared().call(&plan, &request, rpc::connect_peer).await;
        Ok(answer.map_err(Failed::into_read_error)?.value.peer_id)
    }

    async fn disconnect_from_peer(&self, peer_id: &str) -> Result<(), Error> {
        let plan = self.client.shared().plan_connected_node()?;
        crate::address::parse_peer_id(peer_id)?;
        let request = v1::DisconnectPeerRequest { header: None, peer_id: peer_id.to_owned() };
        let answer = self.client.shared().call(&plan, &request, rpc::disconnect_peer).await;
        answer.map(drop).map_err(Failed::into_read_error)
    }

    async fn health(&self) -> Result<HealthStatus, Error> {
        let shared = self.client.shared();
        shared.check_open()?;
        // Whom to probe: a client that has just connected knows one node only.
        refresh::refresh(shared, refresh::REFRESH_TIMEOUT).await;
        let (database, nodes) = tokio::join!(self.probe_database(), self.probe_nodes());
        Ok(HealthStatus::of(database, nodes))
    }
}

impl From<v1::Peer> for PeerInfo {
    fn from(peer: v1::Peer) -> Self {
        let v1::Peer {
            peer_id,
            addresses,
            connected,
            last_seen_unix_ms,
            services,
            version,
            zone,
            node_id,
            rtt_us,
        } = peer;
        Self {
            id: peer_id,
            addresses,
            connected,
            last_seen: (last_seen_unix_ms > 0).then(|| UNIX_EPOCH + Duration::from_millis(last_seen_unix_ms)),
            services,
            version,
            zone,
            node_id,
            round_trip: (rtt_us > 0).then(|| Duration::from_micros(u64::from(rtt_us))),
        }
    }
}

impl From<v1::StatusResponse> for NetworkStatus {
    fn from(status: v1::StatusResponse) -> Self {
        let v1::StatusResponse {
            peer_id,
            node_id,
            cluster_id,
            version,
            zone,
            uptime_seconds,
            epoch,
            connected_peers,
            database_bytes,
            groups,
            listen_addresses,
            warnings,
            storage,
            activity,
            disk_free_bytes,
            belongs_to,
            begins_anew,
        } = status;
        Self {
            node_id: peer_id,
            connected: connected_peers > 0,
            peer_count: connected_peers as usize,
            database_size: database_bytes,
            uptime: Duration::from_secs(uptime_seconds),
            member_id: node_id,
            cluster_id,
            version,
            zone,
            epoch,
            listen_addresses,
            groups: groups.into_iter().map(GroupInfo::from).collect(),
            warnings,
            storage: storage.map(StorageInfo::from),
            activity: activity.into_iter().map(EngineActivity::from).collect(),
            disk_free: disk_free_bytes,
            belongs_to,
            begins_anew,
        }
    }
}

impl From<v1::StorageStatus> for StorageInfo {
    fn from(status: v1::StorageStatus) -> Self {
        let v1::StorageStatus {
            layout_version,
            phase,
            nodes,
            nodes_copied,
            partitions,
            partitions_to_copy,
            bytes,
            hinted_bytes,
            relaxed_namespaces,
        } = status;
        Self {
            layout_version,
            phase,
            nodes,
            nodes_copied,
            partitions,
            partitions_to_copy,
            bytes,
            hinted_bytes,
            relaxed_namespaces,
        }
    }
}

impl From<v1::GroupStatus> for GroupInfo {
    fn from(status: v1::GroupStatus) -> Self {
        let v1::GroupStatus {
            group,
            name,
            leader,
            term,
            last_log_index,
            applied_index,
            voters,
            learners,
            role,
        } = status;
        Self { group, name, role, leader, term, last_log_index, applied_index, voters, learners }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::{Health, HealthCheck, HealthStatus};

    fn check(status: Health) -> HealthCheck {
        HealthCheck {
            status,
            message: String::new(),
            took: Duration::from_millis(3),
            next_step: String::new(),
        }
    }

    fn verdict(database: Health, nodes: &[Health]) -> Health {
        let nodes: BTreeMap<String, HealthCheck> = nodes
            .iter()
            .enumerate()
            .map(|(index, status)| (format!("node {index}"), check(*status)))
            .collect();
        HealthStatus::of(check(database), nodes).status
    }

    #[test]
    fn a_database_that_answers_makes_a_lost_node_a_degradation() {
        use Health::{Degraded, Healthy, Unhealthy};
        assert_eq!(verdict(Healthy, &[Healthy, Healthy]), Healthy);
        assert_eq!(verdict(Healthy, &[Healthy, Unhealthy]), Degraded);
        assert_eq!(verdict(Healthy, &[Healthy, Degraded]), Degraded);
        assert_eq!(verdict(Unhealthy, &[Healthy]), Unhealthy);
        assert_eq!(verdict(Unhealthy, &[]), Unhealthy);
    }
}

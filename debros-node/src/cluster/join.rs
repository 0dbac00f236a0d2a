//! How a node becomes a member: it was one before, it initialises the cluster, or it asks to join.
//!
//! Exactly one of the three happens, and which one is decided by what the data folder holds, never
//! by who answers first: a node that belonged to a cluster only ever goes back to that one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use debros_net::grpc::Channels;
use debros_net::{Lane, PeerId};
use debros_proto::{ClusterId, ErrorCode, Failure, NodeId, v1};
use tokio::sync::watch;
use v1::membership_client::MembershipClient;
use v1::meta_command::Operation;

use super::engine::MetaEngine;
use super::membership_file::{self, Membership};
use super::{Cluster, META, Registration, SYSTEM_NAMESPACE};
use crate::blocking::Blocking;
use crate::clock::Clock;
use crate::planted::{Bug, is_planted};
use crate::raft::{EngineFault, Group, Groups, MembershipError, OpenGroupError};

/// Pause between rounds of asking everybody in reach.
const RETRY: Duration = Duration::from_millis(200);
/// One peer's answer is awaited for this long: it may have to ask the leader.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Progress is told this often while a node waits to be admitted.
const PROGRESS: Duration = Duration::from_secs(10);

/// What this node is, whichever cluster it enters.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its peer id.
    pub peer: PeerId,
    /// Its failure domain.
    pub zone: String,
    /// What it offers.
    pub services: Vec<String>,
}

/// What entering a cluster needs.
pub struct Entry {
    /// This node.
    pub identity: Identity,
    /// Where it keeps its place in the cluster.
    pub data_folder: PathBuf,
    /// The groups it will run.
    pub groups: Groups,
    /// To the other nodes.
    pub channels: Channels,
    /// For the map's file.
    pub blocking: Blocking,
    /// For the stamps of its commands.
    pub clock: Clock,
    /// It may initialise a cluster, if it has never belonged to one.
    pub may_initialise: bool,
    /// The only cluster it may belong to.
    pub pinned: Option<ClusterId>,
    /// Becomes true when an operator asks this node to initialise a cluster.
    pub initialise_asked: watch::Receiver<bool>,
}

/// Why a node cannot become a member. All of them end the node.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// The data folder belongs to another cluster than the configuration.
    #[error(
        "the data folder belongs to cluster {found}, but the configuration pins cluster {pinned}: \
         correct cluster.id, or use another node.data_dir"
    )]
    OtherCluster {
        /// In the data folder.
        found: ClusterId,
        /// In the configuration.
        pinned: ClusterId,
    },
    /// There is a Raft log, but nothing says whose it is.
    #[error(
        "{folder} holds a Raft log but no member.json, which says to which cluster it belongs: restore that file \
         from a backup, or empty the whole data folder and let the node join anew"
    )]
    Orphaned {
        /// The data folder.
        folder: PathBuf,
    },
    /// Every member in reach refused.
    #[error("{0}")]
    Refused(String),
    /// The data folder cannot be used.
    #[error("the node's place in the cluster cannot be kept in {folder}")]
    Storage {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The cluster map cannot be read or written.
    #[error("the cluster map cannot be opened")]
    Map(#[from] EngineFault),
    /// The meta group cannot start.
    #[error(transparent)]
    Group(#[from] OpenGroupError),
    /// The first voter could not be set.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The new cluster did not take its first commands.
    #[error("the new cluster cannot be initialised: {0}")]
    Initialise(Failure),
}

/// Makes this node a member. Waits as long as it takes to be admitted; `peers` gives the nodes in
/// reach at the moment.
///
/// # Errors
/// [`EnterError`] when waiting cannot help.
pub async fn enter(entry: Entry, peers: impl Fn() -> Vec<PeerId>) -> Result<Cluster, EnterError> {
    let known = entry.read_membership().await?;
    if let (Some(known), Some(pinned)) = (&known, entry.pinned)
        && known.cluster_id != pinned
    {
        return Err(EnterError::OtherCluster { found: known.cluster_id, pinned });
    }
    // Neither a new cluster nor a new node id may ever meet the log of another one.
    if known.is_none() && !entry.groups.log().groups().is_empty() {
        return Err(EnterError::Orphaned { folder: entry.data_folder });
    }
    let incarnation = entry.groups.log().incarnation().to_string();
    match known {
        Some(known) if known.incarnation == incarnation || is_planted(Bug::ForgottenLogVotes) => {
            let first = known.node_id == FIRST_NODE && known.incarnation == incarnation;
            entry.open(known, first).await
        }
        None if entry.may_initialise => entry.initialise(incarnation).await,
        known => {
            let cluster = known.map(|membership| membership.cluster_id).or(entry.pinned);
            let mut asked = entry.initialise_asked.clone();
            tokio::select! {
                membership = entry.ask_to_join(cluster, incarnation.clone(), peers) => {
                    entry.open(membership?, false).await
                }
                () = initialise_was_asked(&mut asked), if cluster.is_none() => {
                    entry.initialise(incarnation).await
                }
            }
        }
    }
}

async fn initialise_was_asked(asked: &mut watch::Receiver<bool>) {
    if asked.wait_for(|asked| *asked).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The node id of the node that initialises a cluster.
const FIRST_NODE: NodeId = NodeId(1);

/// Whether the map may lack what the first commands put there. Only a node that has finished admits
/// others: with others in the group the commands were applied, and a start must not wait for a quorum.
fn may_be_unfinished(meta: &Group) -> bool {
    let status = meta.status();
    status.voters.iter().chain(&status.learners).all(|node| *node == FIRST_NODE)
}

impl Entry {
    async fn read_membership(&self) -> Result<Option<Membership>, EnterError> {
        let folder = self.data_folder.clone();
        let read = self.blocking.run(move || membership_file::read(&folder)).await;
        read.map_err(|source| EnterError::Storage { folder: self.data_folder.clone(), source })
    }

    async fn write_membership(&self, membership: &Membership) -> Result<(), EnterError> {
        let (folder, membership) = (self.data_folder.clone(), membership.clone());
        let written = self.blocking.run(move || membership_file::write(&folder, &membership)).await;
        written.map_err(|source| EnterError::Storage { folder: self.data_folder.clone(), source })
    }

    fn registration(&self, incarnation: String) -> Registration {
        let addresses = self.channels.network().listen_addresses();
        Registration {
            peer_id: self.identity.peer.to_string(),
            incarnation,
            addresses: addresses.iter().map(ToString::to_string).collect(),
            zone: self.identity.zone.clone(),
            services: self.identity.services.clone(),
            version: debros_proto::VERSION.to_owned(),
        }
    }

    /// Opens the meta group. The `first` node may have been killed anywhere after it wrote its file,
    /// whoever had told it to initialise the cluster: what is missing then is made up for. Its log is
    /// the one for which the file was written, so a pristine one never held anything.
    async fn open(&self, membership: Membership, first: bool) -> Result<Cluster, EnterError> {
        self.groups.set_cluster(membership.cluster_id);
        let engine = MetaEngine::open(self.data_folder.join("meta"), self.blocking.clone()).await?;
        let meta = self.groups.open(META, membership.node_id, engine.clone()).await?;
        if first {
            meta.initialise(BTreeMap::from([(membership.node_id, self.identity.peer)])).await?;
        }
        let cluster = Cluster::new(&membership, meta, &engine, self.channels.clone(), self.clock.clone());
        if first && may_be_unfinished(cluster.meta()) {
            self.first_commands(&cluster, &membership).await?;
        }
        tracing::info!(cluster = %cluster.id(), node = %cluster.node(), "member of the cluster");
        Ok(cluster)
    }

    async fn initialise(&self, incarnation: String) -> Result<Cluster, EnterError> {
        let cluster_id = ClusterId::from_bytes(rand::random());
        tracing::info!(cluster = %cluster_id, "initialising a new cluster");
        let membership = Membership { cluster_id, node_id: FIRST_NODE, incarnation };
        self.write_membership(&membership).await?;
        self.open(membership, true).await
    }

    /// What a new cluster's map starts with. Both commands are refused, or do nothing, when they
    /// were applied before.
    async fn first_commands(&self, cluster: &Cluster, membership: &Membership) -> Result<(), EnterError> {
        let cluster_id = membership.cluster_id.as_bytes().to_vec().into();
        match cluster.propose(Operation::Initialise(v1::MetaInitialise { cluster_id })).await {
            Ok(_) => {}
            Err(failure) if failure.code == ErrorCode::AlreadyExists => {}
            Err(failure) => return Err(EnterError::Initialise(failure)),
        }
        let registration = self.registration(membership.incarnation.clone());
        let node = cluster.admit(registration, "").await.map_err(EnterError::Initialise)?;
        assert_eq!(node, FIRST_NODE, "the first registered node gets the first id");
        Ok(())
    }

    async fn ask_to_join(
        &self,
        cluster: Option<ClusterId>,
        incarnation: String,
        peers: impl Fn() -> Vec<PeerId>,
    ) -> Result<Membership, EnterError> {
        let mut told = tokio::time::Instant::now();
        loop {
            let asked = peers();
            let mut refused = None;
            for peer in &asked {
                match self.ask(*peer, cluster, &incarnation).await {
                    Ok(membership) => {
                        self.write_membership(&membership).await?;
                        return Ok(membership);
                    }
                    Err(failure) if failure.code == ErrorCode::WrongCluster => refused = Some(failure),
                    Err(failure) => tracing::debug!(%peer, %failure, "not admitted yet"),
                }
            }
            if let Some(failure) = refused {
                return Err(EnterError::Refused(failure.message));
            }
            if told.elapsed() >= PROGRESS {
                told = tokio::time::Instant::now();
                tracing::info!(
                    peers = asked.len(),
                    "waiting to be admitted to a cluster: is a member reachable at discovery.bootstrap_peers?"
                );
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn ask(
        &self,
        peer: PeerId,
        cluster: Option<ClusterId>,
        incarnation: &str,
    ) -> Result<Membership, Failure> {
        let Registration { peer_id, incarnation, addresses, zone, services, version } =
            self.registration(incarnation.to_owned());
        let header = v1::RequestHeader { namespace: SYSTEM_NAMESPACE.to_owned(), ..Default::default() };
        let request = v1::JoinRequest {
            header: Some(header),
            peer_id,
            incarnation: incarnation.clone(),
            addresses,
            zone,
            services,
            version,
            cluster_id: cluster.map(|id| id.to_string()).unwrap_or_default(),
        };
        let mut client = MembershipClient::new(self.channels.get(peer, Lane::Client));
        let reply = tokio::time::timeout(ANSWER_TIMEOUT, client.join(request)).await;
        let reply = reply
            .map_err(|_| Failure::new(ErrorCode::Unavailable, "no answer"))?
            .map_err(|status| Failure::from_status(&status))?
            .into_inner();
        let cluster_id: ClusterId = reply
            .cluster_id
            .parse()
            .map_err(|_| Failure::new(ErrorCode::Internal, "a malformed cluster id in the answer"))?;
        Ok(Membership { cluster_id, node_id: NodeId(reply.node_id), incarnation })
    }
}

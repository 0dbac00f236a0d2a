//! Requests for databases: find the replica that can answer, here or elsewhere, and hand over.
//!
//! A request that came from a client may be forwarded once; one that was forwarded is answered here
//! or refused with a hint. Between attempts nothing is kept but the last leader that was heard of.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use debros_net::grpc::Channels;
use debros_net::{Lane, PeerId};
use debros_proto::names::CANARY_NAMESPACE;
use debros_proto::{DatabaseName, ErrorCode, Failure, GroupId, HasHeader, LeaderHint, Namespace, limits, v1};
use tokio::time::Instant;
use tonic::transport::Channel;
use v1::database_client::DatabaseClient;
use v1::meta_command::Operation;

use super::authorise::{Action, Authorised, Principal, authorise};
use super::forward::forwarded;
use super::membership::ClusterSlot;
use super::replicas::Replicas;
use crate::cluster::{Cluster, Liveness, map};
use crate::sql::{self, Freshness, Write};

/// Pause before looking for a leader again when nobody could say who it is.
const LEADER_RETRY: Duration = Duration::from_millis(25);

/// The service for SQL.
#[derive(Clone)]
pub struct Databases {
    cluster: ClusterSlot,
    replicas: Replicas,
    channels: Channels,
    leaders: Arc<Mutex<HashMap<GroupId, PeerId>>>,
    replication_factor: u32,
    disk: super::disk::DiskState,
}

/// Where an attempt goes.
pub(super) enum Target {
    Here(sql::Database),
    There(PeerId),
}

impl Databases {
    /// A service over this node's replicas.
    pub fn new(
        cluster: ClusterSlot,
        replicas: Replicas,
        channels: Channels,
        replication_factor: u32,
        disk: super::disk::DiskState,
    ) -> Self {
        Self { cluster, replicas, channels, leaders: Arc::default(), replication_factor, disk }
    }

    /// Applies statements.
    ///
    /// # Errors
    /// Says whether the write may have been applied.
    pub async fn execute(
        &self,
        principal: &Principal,
        mut request: v1::ExecuteRequest,
    ) -> Result<v1::ExecuteResponse, Failure> {
        let authorised = self.authorise(principal, Action::Write, request.header())?;
        sql::check_statements(&request.statements)?;
        let database = self.database(&authorised, &request.database).await?;
        if request.session.is_some_and(|session| session.id == 0 || session.sequence == 0) {
            return Err(Failure::invalid("a write session has an id and sequences from 1"));
        }
        self.forward_header(&mut request, &authorised);
        let (mut response, leader) = self
            .at_leader(&database, &authorised, request.session.is_some(), |target| {
                let request = &request;
                async move {
                    match target {
                        Target::Here(replica) => {
                            self.disk.check()?;
                            let write = Write {
                                statements: request.statements.clone(),
                                transaction: request.transaction,
                                return_rows: request.return_rows,
                                session: request.session,
                            };
                            replica.execute(write, authorised.deadline).await
                        }
                        Target::There(peer) => {
                            let mut client = self.client(peer);
                            forwarded(peer, request.clone(), |request| client.execute(request)).await
                        }
                    }
                }
            })
            .await?;
        response.leader = leader;
        Ok(response)
    }

    /// Reads.
    ///
    /// # Errors
    /// Nothing was changed.
    pub async fn query(
        &self,
        principal: &Principal,
        mut request: v1::QueryRequest,
    ) -> Result<v1::QueryResponse, Failure> {
        let authorised = self.authorise(principal, Action::Read, request.header())?;
        sql::check_statements(&request.statements)?;
        let database = self.database(&authorised, &request.database).await?;
        let freshness = match request.consistency() {
            v1::Consistency::None => return self.stale(&database, &authorised, request).await,
            v1::Consistency::Auto => match self.replicas.get(database.group) {
                Some(_) => Freshness::Leader,
                None => return self.stale(&database, &authorised, request).await,
            },
            v1::Consistency::Weak => Freshness::Leader,
            v1::Consistency::Unspecified | v1::Consistency::Linearizable => Freshness::Linearizable,
            v1::Consistency::Strong => Freshness::ThroughLog,
        };
        self.forward_header(&mut request, &authorised);
        let (mut response, leader) = self
            .at_leader(&database, &authorised, true, |target| {
                let request = &request;
                async move {
                    match target {
                        Target::Here(replica) => {
                            replica.query(request.statements.clone(), freshness, authorised.deadline).await
                        }
                        Target::There(peer) => {
                            let mut client = self.client(peer);
                            // A read has no effect, whatever became of it.
                            let answer = forwarded(peer, request.clone(), |request| client.query(request));
                            answer.await.map_err(Failure::without_effect)
                        }
                    }
                }
            })
            .await
            .map_err(Failure::without_effect)?;
        response.leader = leader;
        Ok(response)
    }

    /// A read of whatever the nearest replica has, unless it is older than asked for.
    async fn stale(
        &self,
        database: &map::Database,
        authorised: &Authorised,
        mut request: v1::QueryRequest,
    ) -> Result<v1::QueryResponse, Failure> {
        if let Some(replica) = self.replicas.get(database.group) {
            let freshness_max = Duration::from_millis(u64::from(request.freshness_ms));
            let age = replica.group().silence();
            if !freshness_max.is_zero() && age.is_none_or(|age| age > freshness_max) {
                return Err(Failure::new(
                    ErrorCode::Unavailable,
                    format!(
                        "this replica has not heard from a leader within {freshness_max:?}: read at another consistency, or elsewhere"
                    ),
                ));
            }
            return replica.query(request.statements, Freshness::Any, authorised.deadline).await;
        }
        if authorised.hops >= limits::FORWARD_HOPS_MAX {
            return Err(Failure::new(
                ErrorCode::Unavailable,
                "this node holds no replica of the database yet",
            ));
        }
        self.forward_header(&mut request, authorised);
        let mut last = Failure::new(ErrorCode::Unavailable, "no replica of the database is in reach");
        for peer in self.replica_peers(database)? {
            let mut client = self.client(peer);
            let answer = forwarded(peer, request.clone(), |request| client.query(request));
            match answer.await.map_err(Failure::without_effect) {
                Err(failure) if failure.code == ErrorCode::Unavailable => last = failure,
                answer => return answer,
            }
        }
        Err(last)
    }

    /// Opens a write session.
    ///
    /// # Errors
    /// A session that may have been opened and is never used expires.
    pub async fn open_session(
        &self,
        principal: &Principal,
        mut request: v1::OpenSessionRequest,
    ) -> Result<v1::OpenSessionResponse, Failure> {
        let authorised = authorise(principal, Action::Write, request.header())?;
        let database = self.database(&authorised, &request.database).await?;
        self.forward_header(&mut request, &authorised);
        let opened = self.at_leader(&database, &authorised, true, |target| {
            let request = &request;
            async move {
                match target {
                    Target::Here(replica) => replica.open_session(authorised.deadline).await,
                    Target::There(peer) => {
                        let mut client = self.client(peer);
                        forwarded(peer, request.clone(), |request| client.open_session(request)).await
                    }
                }
            }
        });
        Ok(opened.await?.0)
    }

    /// Creates a database.
    ///
    /// # Errors
    /// `ALREADY_EXISTS` unless `if_not_exists` was asked for.
    pub async fn create(
        &self,
        principal: &Principal,
        request: v1::CreateDatabaseRequest,
    ) -> Result<v1::CreateDatabaseResponse, Failure> {
        let authorised = authorise(principal, Action::Manage, request.header())?;
        let name =
            DatabaseName::new(&request.database).map_err(|error| Failure::invalid(error.to_string()))?;
        let factor = request.replication_factor;
        if factor > limits::REPLICATION_FACTOR_MAX {
            return Err(Failure::limit("REPLICATION_FACTOR_MAX", limits::REPLICATION_FACTOR_MAX, factor));
        }
        let cluster = self.cluster.get()?;
        let created = self.create_in(&cluster, &authorised.namespace, &name, factor).await;
        match created {
            Ok(()) => {}
            Err(failure) if failure.code == ErrorCode::AlreadyExists && request.if_not_exists => {}
            Err(failure) => return Err(failure),
        }
        let map = cluster.map();
        let database = map.database(&authorised.namespace, &name);
        Ok(v1::CreateDatabaseResponse { database: database.map(|database| self.describe(database)) })
    }

    async fn create_in(
        &self,
        cluster: &Cluster,
        namespace: &Namespace,
        name: &DatabaseName,
        factor: u32,
    ) -> Result<(), Failure> {
        let replication_factor = if factor == 0 { self.replication_factor } else { factor };
        let map = cluster.map();
        let network = self.channels.network();
        let unreachable = map
            .members()
            .filter(|node| node.id != cluster.node())
            .filter(|node| !node.peer_id.parse().is_ok_and(|peer| network.is_connected(peer)))
            .map(|node| node.id)
            .collect();
        let liveness = Liveness { unreachable, ..Default::default() };
        let replicas = cluster.place(replication_factor, &liveness);
        if replicas.is_empty() {
            return Err(Failure::new(
                ErrorCode::NotReady,
                "the cluster has no node that can hold a database yet: retry",
            ));
        }
        let operation = Operation::CreateDatabase(v1::MetaCreateDatabase {
            namespace: namespace.to_string(),
            database: name.to_string(),
            replication_factor,
            replicas: replicas.into_iter().map(|id| id.0).collect(),
        });
        cluster.propose(operation).await.map(|_| ())
    }

    /// Drops a database; its files are kept in quarantine for a while.
    ///
    /// # Errors
    /// `NOT_FOUND` unless `if_exists` was asked for.
    pub async fn drop(
        &self,
        principal: &Principal,
        request: v1::DropDatabaseRequest,
    ) -> Result<v1::DropDatabaseResponse, Failure> {
        let authorised = authorise(principal, Action::Manage, request.header())?;
        let name =
            DatabaseName::new(&request.database).map_err(|error| Failure::invalid(error.to_string()))?;
        let cluster = self.cluster.get()?;
        let map = cluster.current_map().await?;
        let Some(database) = map.database(&authorised.namespace, &name) else {
            if request.if_exists {
                return Ok(v1::DropDatabaseResponse {});
            }
            let message = format!("there is no database {name} in {}", authorised.namespace);
            return Err(Failure::new(ErrorCode::NotFound, message));
        };
        let operation = Operation::DropDatabase(v1::MetaDropDatabase {
            namespace: authorised.namespace.to_string(),
            database: name.to_string(),
            group: database.group.0,
        });
        match cluster.propose(operation).await {
            // It was there a moment ago: an attempt whose outcome was lost has dropped it.
            Err(failure) if failure.code == ErrorCode::NotFound => {}
            outcome => drop(outcome?),
        }
        Ok(v1::DropDatabaseResponse {})
    }

    /// Lists the databases of the namespace.
    ///
    /// # Errors
    /// When the node belongs to no cluster yet.
    pub fn list(
        &self,
        principal: &Principal,
        request: &v1::ListDatabasesRequest,
    ) -> Result<v1::ListDatabasesResponse, Failure> {
        let authorised = authorise(principal, Action::Read, request.header())?;
        let map = self.cluster.get()?.map();
        let databases =
            map.databases_of(&authorised.namespace).map(|database| self.describe(database)).collect();
        Ok(v1::ListDatabasesResponse { databases })
    }

    fn describe(&self, database: &map::Database) -> v1::DatabaseInfo {
        let leader = self.replicas.get(database.group).and_then(|replica| replica.group().leader());
        v1::DatabaseInfo {
            name: database.name.to_string(),
            group: database.group.0,
            replicas: database.replicas.iter().map(|id| id.0).collect(),
            leader: leader.map_or(0, |leader| leader.node.0),
        }
    }

    /// The database of a request; a namespace's default one is created at its first use.
    pub(super) async fn database(
        &self,
        authorised: &Authorised,
        name: &str,
    ) -> Result<map::Database, Failure> {
        let name = DatabaseName::or_default(name).map_err(|error| Failure::invalid(error.to_string()))?;
        let cluster = self.cluster.get()?;
        if let Some(database) = cluster.map().database(&authorised.namespace, &name) {
            return Ok(database.clone());
        }
        let mut exists = false;
        if name.as_str() == DatabaseName::DEFAULT && authorised.hops == 0 {
            match self.create_in(&cluster, &authorised.namespace, &name, 0).await {
                Ok(()) => {}
                Err(failure) if failure.code == ErrorCode::AlreadyExists => exists = true,
                Err(failure) => return Err(failure),
            }
        }
        // Whoever sent this has seen a newer map: a node that was just started has an old one.
        let mut map = cluster.watch();
        let there = |map: &map::ClusterMap| map.database(&authorised.namespace, &name).is_some();
        let newer = map.wait_for(|map| there(map) || (!exists && map.epoch().0 >= authorised.epoch));
        let in_time = tokio::time::timeout_at(authorised.deadline, newer).await.is_ok();
        cluster.map().database(&authorised.namespace, &name).cloned().ok_or_else(|| match in_time {
            true => Failure::new(
                ErrorCode::NotFound,
                format!("there is no database {name} in namespace {}: create it first", authorised.namespace),
            ),
            false => Failure::new(
                ErrorCode::NotReady,
                format!("this node does not know database {name} yet, but others do: retry in a moment"),
            ),
        })
    }

    /// As [`authorise`]; a member that has forwarded its probe here counts as a node that probes.
    fn authorise(
        &self,
        principal: &Principal,
        action: Action,
        header: Option<&v1::RequestHeader>,
    ) -> Result<Authorised, Failure> {
        if let (Principal::Peer(peer), Some(header)) = (principal, header)
            && header.namespace == CANARY_NAMESPACE
            && self.cluster.get()?.map().node_of_peer(&peer.to_string()).is_some()
        {
            return authorise(&Principal::Node(*peer), action, Some(header));
        }
        authorise(principal, action, header)
    }

    /// Runs an attempt where the leader is, again and again until it answers or time is up. Attempts
    /// that may have been applied are repeated only where the request is `repeatable`.
    pub(super) async fn at_leader<T, Attempt>(
        &self,
        database: &map::Database,
        authorised: &Authorised,
        repeatable: bool,
        attempt: impl Fn(Target) -> Attempt,
    ) -> Result<(T, Option<LeaderHint>), Failure>
    where
        Attempt: Future<Output = Result<T, Failure>>,
    {
        let may_forward = authorised.hops < limits::FORWARD_HOPS_MAX;
        let mut hinted = None;
        // An attempt was given up before its answer: whatever a later one says, it may have been applied.
        let mut given_up = false;
        let ended = |failure: Failure, given_up| {
            let failure = self.with_addresses(failure);
            Err(if given_up { failure.maybe_applied() } else { failure })
        };
        for tries in 0.. {
            let target = match self.target(database, may_forward, hinted.take(), tries) {
                Ok(target) => target,
                Err(failure) => return ended(failure, given_up),
            };
            let there = match &target {
                Target::Here(_) => None,
                Target::There(peer) => Some(*peer),
            };
            let moved = self.leader_moved(database.group, there);
            let result = tokio::select! {
                biased;
                result = attempt(target) => result,
                () = moved => {
                    given_up = true;
                    Err(abandoned(repeatable))
                }
            };
            let failure = match result {
                Ok(answer) => return Ok((answer, self.heard_from(database.group, there))),
                Err(failure) => failure,
            };
            let elsewhere = matches!(
                failure.code,
                ErrorCode::NotLeader | ErrorCode::Unavailable | ErrorCode::ShuttingDown | ErrorCode::NotReady
            );
            if failure.maybe_applied || !elsewhere || !may_forward {
                return ended(failure, given_up);
            }
            if Instant::now() + LEADER_RETRY >= authorised.deadline {
                let message = format!(
                    "the database has had no leader until the request's time was up: {}",
                    failure.message
                );
                return ended(Failure::new(ErrorCode::Unavailable, message), given_up);
            }
            hinted = self.hinted(database.group, there, failure.leader.as_ref());
            if hinted.is_none() {
                tokio::time::sleep(LEADER_RETRY).await;
            }
        }
        unreachable!("the loop ends by the deadline")
    }

    /// Waits until this node's replica follows another leader than the one a request was sent to: the
    /// peer may be dead without its connection having noticed.
    async fn leader_moved(&self, group: GroupId, there: Option<PeerId>) {
        let (Some(replica), Some(there)) = (self.replicas.get(group), there) else {
            return std::future::pending().await;
        };
        let before = replica.group().leader();
        // A replica that lags behind the request's own knowledge says nothing about `there`, and one that
        // has never known a leader only guessed: `there` is not dead, and says itself that it does not lead.
        if before.is_none_or(|leader| leader.peer != Some(there)) {
            return std::future::pending().await;
        }
        let elsewhere = |node| {
            let peer = self.cluster.get().ok().and_then(|cluster| cluster.peer_of(node));
            peer.is_some_and(|peer| peer != there)
        };
        replica.group().led_by(elsewhere).await;
    }

    fn target(
        &self,
        database: &map::Database,
        may_forward: bool,
        hinted: Option<PeerId>,
        tries: usize,
    ) -> Result<Target, Failure> {
        let here = self.replicas.get(database.group);
        if let Some(replica) = &here
            && (replica.group().is_leader() || !may_forward)
        {
            return Ok(Target::Here(replica.clone()));
        }
        if !may_forward {
            return Err(Failure::new(ErrorCode::NotReady, "this node holds no replica of the database yet"));
        }
        let local = self.channels.network().local_peer();
        let told = || here.as_ref().filter(|replica| replica.group().is_led())?.group().leader()?.peer;
        let heard = || self.leaders.lock().expect("not poisoned").get(&database.group).copied();
        if let Some(peer) = hinted.or_else(told).or_else(heard).filter(|peer| *peer != local) {
            return Ok(Target::There(peer));
        }
        let peers = self.replica_peers(database)?;
        match peers.get(tries % peers.len().max(1)) {
            Some(peer) => Ok(Target::There(*peer)),
            None => here.map(Target::Here).ok_or_else(|| {
                Failure::new(ErrorCode::Unavailable, "no replica of the database is in reach")
            }),
        }
    }

    /// The peers with a replica, those that are connected first, without this node.
    pub(super) fn replica_peers(&self, database: &map::Database) -> Result<Vec<PeerId>, Failure> {
        let cluster = self.cluster.get()?;
        let network = self.channels.network();
        let mut peers: Vec<PeerId> = database
            .replicas
            .iter()
            .filter_map(|node| cluster.peer_of(*node))
            .filter(|peer| *peer != network.local_peer())
            .collect();
        peers.sort_by_key(|peer| !network.is_connected(*peer));
        Ok(peers)
    }

    fn heard_from(&self, group: GroupId, there: Option<PeerId>) -> Option<LeaderHint> {
        let peer = there?;
        self.leaders.lock().expect("not poisoned").insert(group, peer);
        Some(self.hint(peer))
    }

    /// Forgets who was thought to lead; gives whom a refusal points to instead.
    fn hinted(&self, group: GroupId, there: Option<PeerId>, hint: Option<&LeaderHint>) -> Option<PeerId> {
        self.leaders.lock().expect("not poisoned").remove(&group);
        hint.and_then(|hint| hint.peer_id.parse::<PeerId>().ok()).filter(|peer| Some(*peer) != there)
    }

    fn hint(&self, peer: PeerId) -> LeaderHint {
        let addresses = self.cluster.get().ok().and_then(|cluster| {
            cluster.map().node_of_peer(&peer.to_string()).map(|node| node.addresses.clone())
        });
        LeaderHint { peer_id: peer.to_string(), addresses: addresses.unwrap_or_default() }
    }

    fn with_addresses(&self, mut failure: Failure) -> Failure {
        if let Some(peer) = failure.leader.as_ref().and_then(|hint| hint.peer_id.parse().ok()) {
            failure.leader = Some(self.hint(peer));
        }
        failure
    }

    /// Refuses writes while a replica's disk is full.
    pub(super) fn check_disk(&self) -> Result<(), Failure> {
        self.disk.check()
    }

    /// This node's replica of a database.
    pub(super) fn replica(&self, database: &map::Database) -> Option<sql::Database> {
        self.replicas.get(database.group)
    }

    /// The channel to another node.
    pub(super) fn channel(&self, peer: PeerId, lane: Lane) -> Channel {
        self.channels.get(peer, lane)
    }

    fn client(&self, peer: PeerId) -> DatabaseClient<Channel> {
        DatabaseClient::new(self.channel(peer, Lane::Client))
            .max_decoding_message_size(limits::RESPONSE_BYTES_MAX)
            .max_encoding_message_size(limits::LOG_ENTRY_BYTES_MAX)
    }

    /// The header for the next node: one hop more, the time that is left, and this node's epoch, so
    /// that a node with an older map waits for the one in which the database exists.
    pub(super) fn forward_header(&self, request: &mut impl HasHeader, authorised: &Authorised) {
        let left = authorised.deadline.saturating_duration_since(Instant::now());
        let epoch = self.cluster.get().map_or(0, |cluster| cluster.map().epoch().0);
        if let Some(header) = request.header_mut() {
            header.hops = limits::FORWARD_HOPS_MAX;
            header.timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
            header.epoch = authorised.epoch.max(epoch);
        }
    }
}

/// A request whose leader was replaced while it was under way. Where it may be repeated, nothing is
/// lost by asking the new one.
fn abandoned(repeatable: bool) -> Failure {
    let code = if repeatable { ErrorCode::NotLeader } else { ErrorCode::UnknownOutcome };
    Failure::new(code, "the leader was replaced while the write was under way: it may have been applied")
}

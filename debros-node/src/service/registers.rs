//! Requests for registers: the same way as SQL, to the namespace's default database.
//!
//! Reads and writes are answered by the leader, watches by any node with a replica; a node without one forwards
//! the stream. A forwarded stream is always drained, whatever the client does: streams share one connection, and
//! a slow client must not hold up what others have asked for.

mod leases;
mod watch;

use std::pin::Pin;
use std::sync::Arc;

use debros_net::{Lane, PeerId};
use debros_proto::{ErrorCode, Failure, HasHeader, limits, registers, v1};
use debros_sqlite::{LeaseQuery, RegisterQuery};
use futures::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;
use v1::registers_client::RegistersClient;

use super::authorise::{Action, Authorised, Principal, authorise};
use super::databases::{Databases, Target};
use super::forward::forwarded;
use crate::cluster::map;

pub use leases::end_leases;

/// What a watch gives until it breaks; the last item says why.
pub type Watch = Pin<Box<dyn Stream<Item = Result<v1::RegisterWatchResponse, Failure>> + Send>>;

/// The service for registers.
#[derive(Clone)]
pub struct Registers {
    databases: Databases,
    watches: Arc<Semaphore>,
    stopping: CancellationToken,
    tracker: TaskTracker,
}

impl Registers {
    /// A service beside that for databases. Watches end when `stopping` is cancelled.
    pub fn new(databases: Databases, stopping: CancellationToken, tracker: TaskTracker) -> Self {
        Self { databases, watches: Arc::new(Semaphore::new(limits::REGISTER_WATCHES_MAX)), stopping, tracker }
    }

    /// What is left of the watches that this node may serve.
    pub(super) fn watches(&self) -> Arc<Semaphore> {
        self.watches.clone()
    }

    /// Applies one operation.
    ///
    /// # Errors
    /// Says whether the write may have been applied.
    pub async fn write(
        &self,
        principal: &Principal,
        mut request: v1::RegisterWriteRequest,
    ) -> Result<v1::RegisterWriteResponse, Failure> {
        let authorised = authorise(principal, Action::Write, request.header())?;
        registers::check_operation(request.operation.as_ref())?;
        if request.session.is_some_and(|session| session.id == 0 || session.sequence == 0) {
            return Err(Failure::invalid("a write session has an id and sequences from 1"));
        }
        let database = self.database(&authorised).await?;
        self.databases.forward_header(&mut request, &authorised);
        let repeatable = request.session.is_some();
        let (mut response, leader) = self
            .databases
            .at_leader(&database, &authorised, repeatable, |target| {
                let request = request.clone();
                async move {
                    match target {
                        Target::Here(replica) => {
                            self.databases.check_disk()?;
                            let operation = request.operation.unwrap_or_default();
                            replica.write_register(operation, request.session, authorised.deadline).await
                        }
                        Target::There(peer) => {
                            let mut client = self.client(peer);
                            forwarded(peer, request, |request| client.write(request)).await
                        }
                    }
                }
            })
            .await?;
        response.leader = leader;
        Ok(response)
    }

    /// Reads a key.
    ///
    /// # Errors
    /// Nothing was changed.
    pub async fn get(
        &self,
        principal: &Principal,
        mut request: v1::RegisterGetRequest,
    ) -> Result<v1::RegisterGetResponse, Failure> {
        let authorised = authorise(principal, Action::Read, request.header())?;
        registers::check_key(&request.key)?;
        let database = self.database(&authorised).await?;
        self.databases.forward_header(&mut request, &authorised);
        let (mut response, leader) = self
            .databases
            .at_leader(&database, &authorised, true, |target| {
                let request = request.clone();
                async move {
                    match target {
                        Target::Here(replica) => replica.get_register(request.key, authorised.deadline).await,
                        Target::There(peer) => {
                            let mut client = self.client(peer);
                            let answer = forwarded(peer, request, |request| client.get(request));
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

    /// Reads a page of keys.
    ///
    /// # Errors
    /// Nothing was changed.
    pub async fn list(
        &self,
        principal: &Principal,
        mut request: v1::RegisterListRequest,
    ) -> Result<v1::RegisterListResponse, Failure> {
        let authorised = authorise(principal, Action::Read, request.header())?;
        let query = query(&request)?;
        let database = self.database(&authorised).await?;
        self.databases.forward_header(&mut request, &authorised);
        let (mut response, leader) = self
            .databases
            .at_leader(&database, &authorised, true, |target| {
                let (request, query) = (request.clone(), query.clone());
                async move {
                    match target {
                        Target::Here(replica) => replica.list_registers(query, authorised.deadline).await,
                        Target::There(peer) => {
                            let mut client = self.client(peer);
                            let answer = forwarded(peer, request, |request| client.list(request));
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

    /// Reads a page of leases.
    ///
    /// # Errors
    /// Nothing was changed.
    pub async fn list_leases(
        &self,
        principal: &Principal,
        mut request: v1::LeaseListRequest,
    ) -> Result<v1::LeaseListResponse, Failure> {
        let authorised = authorise(principal, Action::Read, request.header())?;
        let limit = registers::lease_page_limit(request.limit)?;
        let query = LeaseQuery { after: request.after, limit, bytes_max: limits::REGISTER_PAGE_BYTES_MAX };
        let database = self.database(&authorised).await?;
        self.databases.forward_header(&mut request, &authorised);
        let (mut response, leader) = self
            .databases
            .at_leader(&database, &authorised, true, |target| {
                let request = request.clone();
                async move {
                    match target {
                        Target::Here(replica) => replica.list_leases(query, authorised.deadline).await,
                        Target::There(peer) => {
                            let mut client = self.client(peer);
                            let answer = forwarded(peer, request, |request| client.list_leases(request));
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

    /// Tells of changes, from this node's replica or another's.
    ///
    /// # Errors
    /// `BUSY` past [`limits::REGISTER_WATCHES_MAX`]; when no replica is in reach.
    pub async fn watch(
        &self,
        principal: &Principal,
        mut request: v1::RegisterWatchRequest,
    ) -> Result<Watch, Failure> {
        let authorised = authorise(principal, Action::Read, request.header())?;
        registers::check_prefix(&request.prefix)?;
        let database = self.database(&authorised).await?;
        let permit = self.permit()?;
        if let Some(replica) = self.databases.replica(&database) {
            let watcher = replica.watch_registers(request.prefix, request.after, authorised.deadline).await?;
            return Ok(watch::local(watcher, replica, self.stopping.clone(), permit));
        }
        if authorised.hops >= limits::FORWARD_HOPS_MAX {
            return Err(Failure::new(ErrorCode::NotReady, "this node holds no replica of the database yet"));
        }
        self.databases.forward_header(&mut request, &authorised);
        let mut last = Failure::new(ErrorCode::Unavailable, "no replica of the database is in reach");
        for peer in self.databases.replica_peers(&database)? {
            let mut client = self.client(peer);
            let opened = forwarded(peer, request.clone(), |request| client.watch(request));
            match tokio::time::timeout_at(authorised.deadline, opened).await {
                Ok(Ok(stream)) => return Ok(self.hand_on(stream, permit)),
                Ok(Err(failure)) => last = failure.without_effect(),
                Err(_) => break,
            }
        }
        Err(last)
    }

    /// Hands on what another node tells.
    fn hand_on(
        &self,
        stream: tonic::Streaming<v1::RegisterWatchResponse>,
        permit: OwnedSemaphorePermit,
    ) -> Watch {
        let (watch, drain) = watch::remote(stream, self.stopping.clone(), permit);
        self.tracker.spawn(drain);
        watch
    }

    fn permit(&self) -> Result<OwnedSemaphorePermit, Failure> {
        self.watches.clone().try_acquire_owned().map_err(|_| {
            let message = format!(
                "this node serves REGISTER_WATCHES_MAX, {}, watches: ask another",
                limits::REGISTER_WATCHES_MAX
            );
            Failure::new(ErrorCode::Busy, message).elsewhere()
        })
    }

    async fn database(&self, authorised: &Authorised) -> Result<map::Database, Failure> {
        self.databases.database(authorised, "").await
    }

    fn client(&self, peer: PeerId) -> RegistersClient<Channel> {
        RegistersClient::new(self.databases.channel(peer, Lane::Client))
            .max_decoding_message_size(limits::RESPONSE_BYTES_MAX)
            .max_encoding_message_size(limits::LOG_ENTRY_BYTES_MAX)
    }
}

fn query(request: &v1::RegisterListRequest) -> Result<RegisterQuery, Failure> {
    registers::check_prefix(&request.prefix)?;
    registers::check_prefix(&request.after)?;
    Ok(RegisterQuery {
        prefix: request.prefix.to_vec(),
        after: request.after.to_vec(),
        limit: registers::page_limit(request.limit)?,
        bytes_max: limits::REGISTER_PAGE_BYTES_MAX,
    })
}

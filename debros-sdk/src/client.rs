//! The client: a cheap handle on the shared state, from which databases, the storage, the network and
//! the cluster are reached. It starts nothing itself; the builder does. The last clone that goes away
//! ends the background work; [`Client::close`] also waits for it.

use std::fmt;
use std::sync::Arc;

use debros_proto::{DatabaseName, v1};
use prometheus_client::registry::Registry;
use tokio_util::sync::DropGuard;
use tokio_util::task::TaskTracker;

use crate::builder::ClientBuilder;
use crate::call::{Failed, Plan, Target};
use crate::cluster::Cluster;
use crate::database::RemoteDatabase;
use crate::error::Error;
use crate::network_info::RemoteNetwork;
use crate::pubsub::remote::RemotePubSub;
use crate::registers::RemoteRegisters;
use crate::rpc;
use crate::shared::Shared;
use crate::storage::remote::RemoteStorage;

/// A connection to a cluster on behalf of one application. Clones are cheap and share everything.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    life: Arc<Life>,
}

/// What ends with the last clone.
struct Life {
    tasks: TaskTracker,
    owns_network: bool,
    _ends_tasks: DropGuard,
}

/// The node that answers this client where any node will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectedNode {
    /// Its PeerId in base58.
    pub peer_id: String,
    /// Its best known address; empty when none is known.
    pub address: String,
}

/// One database of the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseInfo {
    /// Its name.
    pub name: String,
    /// The Raft group that replicates it.
    pub group: u64,
    /// Node ids of its replicas.
    pub replicas: Vec<u64>,
    /// The leader's node id as the asked node knows it; 0 when unknown.
    pub leader: u64,
}

/// How to create a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// Replicas; `None` for the cluster's default.
    pub replication_factor: Option<u32>,
    /// Succeed when it exists already.
    pub if_not_exists: bool,
}

impl Client {
    /// Starts to build a client. The application's name is its namespace: lower-case letters,
    /// digits, `-`, `_`, `.`; at most 63 bytes.
    pub fn builder(application: impl Into<String>) -> ClientBuilder {
        ClientBuilder::new(application.into())
    }

    pub(crate) fn new(shared: Arc<Shared>, tasks: TaskTracker, owns_network: bool) -> Self {
        let ends_tasks = shared.shutdown().clone().drop_guard();
        Self { shared, life: Arc::new(Life { tasks, owns_network, _ends_tasks: ends_tasks }) }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn shared_handle(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Starts background work that [`Self::close`] waits for: it must end when the client is closed, and must not
    /// hold a client itself.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.life.tasks.spawn(work);
    }

    /// The namespace this client acts in.
    pub fn namespace(&self) -> &str {
        self.shared.namespace().as_str()
    }

    /// Adds what this client and its clones count of their operations to the application's own registry: requests by
    /// how they ended, retries, and durations. They are counted either way; see `docs/metrics.md`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.shared.metrics().register(registry);
    }

    /// The namespace's default database, which exists without being created.
    pub fn database(&self) -> RemoteDatabase {
        let name = DatabaseName::or_default("").expect("the default name satisfies the grammar");
        RemoteDatabase::new(self.clone(), name)
    }

    /// A database by name. Whether it exists shows when it is used.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) when the name breaks the grammar.
    pub fn database_named(&self, name: &str) -> Result<RemoteDatabase, Error> {
        Ok(RemoteDatabase::new(self.clone(), DatabaseName::new(name)?))
    }

    /// Linearizable keys of the namespace. They need no creation.
    pub fn registers(&self) -> RemoteRegisters {
        RemoteRegisters::new(self.clone())
    }

    /// Creates a database in this client's namespace.
    ///
    /// # Errors
    /// `AlreadyExists`, unless asked not to mind; `LimitExceeded`; whatever an unavailable cluster gives.
    pub async fn create_database(&self, name: &str, options: CreateOptions) -> Result<DatabaseInfo, Error> {
        let name = DatabaseName::new(name)?;
        let request = v1::CreateDatabaseRequest {
            header: None,
            database: name.to_string(),
            replication_factor: options.replication_factor.unwrap_or(0),
            if_not_exists: options.if_not_exists,
        };
        let plan = self.plan_definition(options.if_not_exists);
        let answer = self.shared.call(&plan, &request, rpc::create_database).await;
        let created = answer.map_err(Failed::into_write_error)?.value;
        self.shared.ask_for_refresh();
        Ok(created.database.unwrap_or_default().into())
    }

    /// Drops a database and all that is in it.
    ///
    /// # Errors
    /// `NotFound`, unless `if_exists`; whatever an unavailable cluster gives.
    pub async fn drop_database(&self, name: &str, if_exists: bool) -> Result<(), Error> {
        let name = DatabaseName::new(name)?;
        let request = v1::DropDatabaseRequest { header: None, database: name.to_string(), if_exists };
        let plan = self.plan_definition(if_exists);
        let answer = self.shared.call(&plan, &request, rpc::drop_database).await;
        answer.map_err(Failed::into_write_error)?;
        self.shared.forget_writer(&name);
        Ok(())
    }

    /// The databases of this client's namespace.
    ///
    /// # Errors
    /// Whatever an unavailable cluster gives.
    pub async fn list_databases(&self) -> Result<Vec<DatabaseInfo>, Error> {
        let request = v1::ListDatabasesRequest::default();
        let answer = self.shared.call(&self.shared.plan_any(), &request, rpc::list_databases).await;
        let databases = answer.map_err(Failed::into_read_error)?.value.databases;
        Ok(databases.into_iter().map(DatabaseInfo::from).collect())
    }

    fn plan_definition(&self, repeatable: bool) -> Plan {
        Plan { target: Target::Any, deadline: self.shared.deadline(None), repeatable }
    }

    /// The namespace's key-value storage.
    pub fn storage(&self) -> RemoteStorage {
        RemoteStorage::new(self.clone())
    }

    /// Live messages between the clients of the namespace.
    pub fn pubsub(&self) -> RemotePubSub {
        RemotePubSub::new(self.clone())
    }

    /// Peers, status and health.
    pub fn network(&self) -> RemoteNetwork {
        RemoteNetwork::new(self.clone())
    }

    /// Members and membership.
    pub fn cluster(&self) -> Cluster {
        Cluster::new(self.clone())
    }

    /// The node that is asked first where any node will do; `None` while none answers.
    pub fn connected_node(&self) -> Option<ConnectedNode> {
        let peer = self.shared.nodes().home()?;
        let known = self.shared.network().peers().into_iter().find(|known| known.peer == peer);
        let address = known.and_then(|known| known.addresses.first().map(ToString::to_string));
        Some(ConnectedNode { peer_id: peer.to_string(), address: address.unwrap_or_default() })
    }

    /// This client's own PeerId.
    pub fn peer_id(&self) -> String {
        self.shared.network().local_peer().to_string()
    }

    /// Ends operations under way and closes the connections, for all clones.
    pub async fn close(&self) {
        self.shared.shutdown().cancel();
        self.life.tasks.close();
        self.life.tasks.wait().await;
        self.shared.storage().close();
        if self.life.owns_network {
            self.shared.network().shutdown().await;
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("namespace", &self.namespace()).finish_non_exhaustive()
    }
}

impl From<v1::DatabaseInfo> for DatabaseInfo {
    fn from(info: v1::DatabaseInfo) -> Self {
        let v1::DatabaseInfo { name, group, replicas, leader } = info;
        Self { name, group, replicas, leader }
    }
}

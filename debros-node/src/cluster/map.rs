//! The cluster map: who is in the cluster, which databases exist and where their replicas should
//! be. Plain data; changed only by [`ClusterMap::apply`], in the order of the meta group's log, so
//! every node computes the same map.
//!
//! Invariants: a node id is never given twice; a peer has at most one active node id; a group's
//! founders never change; every change of the map raises the epoch.

use std::collections::BTreeMap;

use debros_proto::{ClusterId, DatabaseName, Epoch, ErrorCode, GroupId, Namespace, NodeId, limits, v1};
use v1::meta_command::Operation;

use super::layout;

/// Where a node is in its life.
pub use v1::MemberState as NodeState;

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its Raft node id.
    pub id: NodeId,
    /// Its peer id in base58.
    pub peer_id: String,
    /// The log store it vouches for; another one is another node.
    pub incarnation: String,
    /// Multiaddrs at which it said it listens.
    pub addresses: Vec<String>,
    /// The failure domain; empty when none was named.
    pub zone: String,
    /// What it offers.
    pub services: Vec<String>,
    /// The version it runs.
    pub version: String,
    /// Where it is in its life.
    pub state: NodeState,
}

/// A database and where it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// The namespace it belongs to.
    pub namespace: Namespace,
    /// Its name there.
    pub name: DatabaseName,
    /// The Raft group that replicates it.
    pub group: GroupId,
    /// How many replicas it should have.
    pub replication_factor: u32,
    /// The replicas of the creation record: only they ever initialise the group.
    pub founders: Vec<NodeId>,
    /// Where its replicas should be now. Raft membership is the truth.
    pub replicas: Vec<NodeId>,
    /// A leader has been seen; from now on nobody initialises the group again.
    pub initialised: bool,
    /// Dropped: kept so that late replicas learn it.
    pub dropped: bool,
    /// The proposal that created it; 0 when that had none.
    pub proposal: u64,
}

/// The map. See the module for its invariants.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterMap {
    epoch: Epoch,
    cluster_id: Option<ClusterId>,
    nodes: BTreeMap<NodeId, Node>,
    databases: BTreeMap<GroupId, Database>,
    names: BTreeMap<(Namespace, DatabaseName), GroupId>,
    next_node_id: u64,
    log_time_unix_ms: u64,
    layout: Option<v1::StorageLayout>,
}

/// A map that does not satisfy its own grammar: damaged, or written by a newer version.
#[derive(Debug, thiserror::Error)]
#[error("the cluster map cannot be read: {0}")]
pub struct DamagedMap(String);

type Refusal = (ErrorCode, String);

impl ClusterMap {
    /// The version of the map.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
    /// The cluster's identity; `None` before it was initialised.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.cluster_id
    }
    /// A node by its id.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }
    /// The active or leaving node of a peer.
    pub fn node_of_peer(&self, peer_id: &str) -> Option<&Node> {
        self.members().find(|node| node.peer_id == peer_id)
    }
    /// Every node that was ever registered.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }
    /// The nodes that are in the cluster: active or leaving.
    pub fn members(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|node| node.state != NodeState::Removed)
    }
    /// The databases that exist.
    pub fn databases(&self) -> impl Iterator<Item = &Database> {
        self.databases.values().filter(|database| !database.dropped)
    }
    /// A database by its name.
    pub fn database(&self, namespace: &Namespace, name: &DatabaseName) -> Option<&Database> {
        let group = self.names.get(&(namespace.clone(), name.clone()))?;
        self.databases.get(group)
    }
    /// A database by its group, also a dropped one.
    pub fn group(&self, id: GroupId) -> Option<&Database> {
        self.databases.get(&id)
    }
    /// The databases of a namespace, by name.
    pub fn databases_of(&self, namespace: &Namespace) -> impl Iterator<Item = &Database> {
        self.databases().filter(move |database| database.namespace == *namespace)
    }

    /// The layout of the storage; `None` until there is a node that offers it.
    pub fn layout(&self) -> Option<&v1::StorageLayout> {
        self.layout.as_ref()
    }

    /// Whether a node holds, or is to hold, a share of the storage.
    pub fn holds_storage(&self, id: NodeId) -> bool {
        let sets = self.layout.iter().flat_map(|layout| layout.current.iter().chain(&layout.next));
        sets.flat_map(|set| &set.nodes).any(|node| node.node_id == id.0)
    }

    /// Applies the command of the meta log's entry at `index`. A refused command changes nothing.
    pub fn apply(&mut self, index: u64, command: v1::MetaCommand) -> v1::MetaOutcome {
        let v1::MetaCommand { stamp_unix_ms, operation, proposal } = command;
        self.log_time_unix_ms = self.log_time_unix_ms.max(stamp_unix_ms);
        let result = match operation {
            Some(Operation::Initialise(operation)) => self.initialise(&operation),
            Some(Operation::RegisterNode(operation)) => self.register_node(operation),
            Some(Operation::SetNodeState(operation)) => self.set_node_state(&operation),
            Some(Operation::CreateDatabase(operation)) => {
                self.create_database(GroupId(index), proposal, &operation)
            }
            Some(Operation::DropDatabase(operation)) => self.drop_database(&operation),
            Some(Operation::GroupInitialised(operation)) => self.group_initialised(GroupId(operation.group)),
            Some(Operation::SetReplicas(operation)) => self.set_replicas(&operation),
            Some(Operation::ChangeLayout(operation)) => self.change_layout(operation),
            Some(Operation::LayoutProgress(operation)) => Ok(self.layout_progress(operation)),
            None => Err((ErrorCode::InvalidArgument, "an operation of a newer version".to_owned())),
        };
        let mut outcome = result.unwrap_or_else(|(code, message)| v1::MetaOutcome {
            refused: Some(v1::MetaRefusal { code: code as i32, message }),
            ..Default::default()
        });
        outcome.epoch = self.epoch.0;
        outcome.cluster_id = self.cluster_id.map(|id| id.as_bytes().to_vec().into()).unwrap_or_default();
        outcome
    }

    fn changed(&mut self) -> v1::MetaOutcome {
        self.epoch.0 += 1;
        v1::MetaOutcome::default()
    }

    fn initialise(&mut self, operation: &v1::MetaInitialise) -> Result<v1::MetaOutcome, Refusal> {
        if let Some(id) = self.cluster_id {
            return Err((ErrorCode::AlreadyExists, format!("the cluster is already initialised as {id}")));
        }
        let id = ClusterId::try_from(&operation.cluster_id[..])
            .map_err(|error| (ErrorCode::InvalidArgument, error.to_string()))?;
        self.cluster_id = Some(id);
        self.next_node_id = 1;
        Ok(self.changed())
    }

    fn register_node(&mut self, operation: v1::MetaRegisterNode) -> Result<v1::MetaOutcome, Refusal> {
        let known = self.node_of_peer(&operation.peer_id).map(|node| (node.id, node.incarnation.clone()));
        let id = match known {
            Some((id, incarnation)) if incarnation == operation.incarnation => {
                let node = self.nodes.get_mut(&id).expect("just found");
                let before = node.clone();
                node.addresses = operation.addresses;
                node.zone = operation.zone;
                node.services = operation.services;
                node.version = operation.version;
                let same = *node == before;
                let outcome = if same { v1::MetaOutcome::default() } else { self.changed() };
                return Ok(v1::MetaOutcome { node_id: id.0, ..outcome });
            }
            Some((lost, _)) => {
                // Its log is gone, so what it vouched for is gone: the old id must never vote again.
                self.nodes.get_mut(&lost).expect("just found").state = NodeState::Removed;
                NodeId(self.next_node_id)
            }
            None => NodeId(self.next_node_id),
        };
        self.next_node_id += 1;
        let node = Node {
            id,
            peer_id: operation.peer_id,
            incarnation: operation.incarnation,
            addresses: operation.addresses,
            zone: operation.zone,
            services: operation.services,
            version: operation.version,
            state: NodeState::Active,
        };
        self.nodes.insert(id, node);
        Ok(v1::MetaOutcome { node_id: id.0, ..self.changed() })
    }

    fn set_node_state(&mut self, operation: &v1::MetaSetNodeState) -> Result<v1::MetaOutcome, Refusal> {
        let id = NodeId(operation.node_id);
        let state = NodeState::try_from(operation.state)
            .ok()
            .filter(|state| *state != NodeState::Unspecified)
            .ok_or_else(|| (ErrorCode::InvalidArgument, "an unknown node state".to_owned()))?;
        let node =
            self.nodes.get_mut(&id).ok_or_else(|| (ErrorCode::NotFound, format!("there is no node {id}")))?;
        if node.state == NodeState::Removed && state != NodeState::Removed {
            return Err((
                ErrorCode::InvalidArgument,
                format!("node {id} was removed; it joins again as a new one"),
            ));
        }
        if node.state == state {
            return Ok(v1::MetaOutcome { node_id: id.0, ..Default::default() });
        }
        node.state = state;
        Ok(v1::MetaOutcome { node_id: id.0, ..self.changed() })
    }

    fn create_database(
        &mut self,
        group: GroupId,
        proposal: u64,
        operation: &v1::MetaCreateDatabase,
    ) -> Result<v1::MetaOutcome, Refusal> {
        // A repetition, by a proposer that has not heard of the first outcome. Also one that was dropped
        // since must not come back.
        let made = self.databases.values().find(|made| proposal != 0 && made.proposal == proposal);
        if let Some(made) = made {
            return Ok(v1::MetaOutcome { group: made.group.0, ..Default::default() });
        }
        let invalid = |error: debros_proto::InvalidName| (ErrorCode::InvalidArgument, error.to_string());
        let namespace = Namespace::new(&operation.namespace).map_err(invalid)?;
        let name = DatabaseName::new(&operation.database).map_err(invalid)?;
        let key = (namespace.clone(), name.clone());
        if let Some(existing) = self.names.get(&key) {
            let message = format!("database {name} already exists in namespace {namespace}");
            let refused = v1::MetaRefusal { code: ErrorCode::AlreadyExists as i32, message };
            return Ok(v1::MetaOutcome { group: existing.0, refused: Some(refused), ..Default::default() });
        }
        if self.databases_of(&namespace).count() >= limits::DATABASES_PER_NAMESPACE_MAX {
            let message =
                format!("a namespace has at most {} databases", limits::DATABASES_PER_NAMESPACE_MAX);
            return Err((ErrorCode::LimitExceeded, message));
        }
        if self.names.len() >= limits::DATABASES_MAX {
            let message =
                format!("a cluster has at most {} databases: drop some first", limits::DATABASES_MAX);
            return Err((ErrorCode::LimitExceeded, message));
        }
        let founders: Vec<NodeId> = operation.replicas.iter().copied().map(NodeId).collect();
        if let Some(unknown) = founders.iter().find(|id| !self.nodes.contains_key(id)) {
            return Err((ErrorCode::InvalidArgument, format!("there is no node {unknown}")));
        }
        if founders.is_empty() {
            return Err((ErrorCode::InvalidArgument, "a database needs at least one replica".to_owned()));
        }
        let database = Database {
            namespace,
            name,
            group,
            replication_factor: operation.replication_factor,
            replicas: founders.clone(),
            founders,
            initialised: false,
            dropped: false,
            proposal,
        };
        self.databases.insert(group, database);
        self.names.insert(key, group);
        Ok(v1::MetaOutcome { group: group.0, ..self.changed() })
    }

    fn drop_database(&mut self, operation: &v1::MetaDropDatabase) -> Result<v1::MetaOutcome, Refusal> {
        let found = Namespace::new(&operation.namespace)
            .and_then(|namespace| Ok((namespace, DatabaseName::new(&operation.database)?)))
            .ok()
            .and_then(|key| self.names.get(&key).map(|group| (key, *group)));
        // Under another group it is a younger database than the one that was meant.
        let meant = found.filter(|(_, group)| operation.group == 0 || group.0 == operation.group);
        let Some((key, group)) = meant else {
            let message = format!("there is no database {} in {}", operation.database, operation.namespace);
            return Err((ErrorCode::NotFound, message));
        };
        self.names.remove(&key);
        self.databases.get_mut(&group).expect("every name has its database").dropped = true;
        Ok(v1::MetaOutcome { group: group.0, ..self.changed() })
    }

    fn existing(&mut self, group: GroupId) -> Result<&mut Database, Refusal> {
        self.databases
            .get_mut(&group)
            .filter(|database| !database.dropped)
            .ok_or_else(|| (ErrorCode::NotFound, format!("there is no group {group}")))
    }

    fn group_initialised(&mut self, group: GroupId) -> Result<v1::MetaOutcome, Refusal> {
        let database = self.existing(group)?;
        if database.initialised {
            return Ok(v1::MetaOutcome::default());
        }
        database.initialised = true;
        Ok(self.changed())
    }

    fn set_replicas(&mut self, operation: &v1::MetaSetReplicas) -> Result<v1::MetaOutcome, Refusal> {
        let replicas: Vec<NodeId> = operation.replicas.iter().copied().map(NodeId).collect();
        let known = replicas.iter().all(|id| self.nodes.contains_key(id));
        if replicas.is_empty() || !known {
            return Err((ErrorCode::InvalidArgument, "replicas must be nodes of the cluster".to_owned()));
        }
        let database = self.existing(GroupId(operation.group))?;
        if database.replicas == replicas {
            return Ok(v1::MetaOutcome::default());
        }
        database.replicas = replicas;
        Ok(self.changed())
    }

    fn change_layout(&mut self, operation: v1::MetaChangeLayout) -> Result<v1::MetaOutcome, Refusal> {
        let nodes = operation.next.iter().flat_map(|set| &set.nodes);
        if let Some(unknown) =
            nodes.map(|node| node.node_id).find(|id| !self.nodes.contains_key(&NodeId(*id)))
        {
            return Err((ErrorCode::InvalidArgument, format!("there is no node {unknown}")));
        }
        self.layout = Some(layout::change(self.layout.as_ref(), operation)?);
        Ok(self.changed())
    }

    fn layout_progress(&mut self, operation: v1::MetaLayoutProgress) -> v1::MetaOutcome {
        let told = operation.progress.unwrap_or_default();
        let moved = self.layout.as_ref().and_then(|layout| layout::progress(layout, told));
        match moved {
            Some(moved) => {
                self.layout = Some(moved);
                self.changed()
            }
            None => v1::MetaOutcome::default(),
        }
    }

    /// The map as it is stored and sent.
    pub fn to_wire(&self) -> v1::ClusterMap {
        v1::ClusterMap {
            epoch: self.epoch.0,
            cluster_id: self.cluster_id.map(|id| id.as_bytes().to_vec().into()).unwrap_or_default(),
            nodes: self.nodes.values().map(node_to_wire).collect(),
            databases: self.databases.values().map(database_to_wire).collect(),
            next_node_id: self.next_node_id,
            log_time_unix_ms: self.log_time_unix_ms,
            layout: self.layout.clone(),
        }
    }

    /// Reads a stored map.
    ///
    /// # Errors
    /// [`DamagedMap`] when a part does not satisfy its grammar.
    pub fn from_wire(wire: v1::ClusterMap) -> Result<Self, DamagedMap> {
        let damaged = |error: &dyn std::fmt::Display| DamagedMap(error.to_string());
        let cluster_id = match &wire.cluster_id[..] {
            [] => None,
            bytes => Some(ClusterId::try_from(bytes).map_err(|error| damaged(&error))?),
        };
        let mut map = Self {
            epoch: Epoch(wire.epoch),
            cluster_id,
            next_node_id: wire.next_node_id,
            log_time_unix_ms: wire.log_time_unix_ms,
            layout: wire.layout,
            ..Default::default()
        };
        for node in wire.nodes {
            let state = NodeState::try_from(node.state).unwrap_or(NodeState::Unspecified);
            let node = Node {
                id: NodeId(node.node_id),
                peer_id: node.peer_id,
                incarnation: node.incarnation,
                addresses: node.addresses,
                zone: node.zone,
                services: node.services,
                version: node.version,
                state,
            };
            map.nodes.insert(node.id, node);
        }
        for database in wire.databases {
            let database = database_from_wire(database).map_err(|error| damaged(&error))?;
            if !database.dropped {
                map.names.insert((database.namespace.clone(), database.name.clone()), database.group);
            }
            map.databases.insert(database.group, database);
        }
        Ok(map)
    }
}

fn node_to_wire(node: &Node) -> v1::MapNode {
    v1::MapNode {
        node_id: node.id.0,
        peer_id: node.peer_id.clone(),
        incarnation: node.incarnation.clone(),
        addresses: node.addresses.clone(),
        zone: node.zone.clone(),
        services: node.services.clone(),
        version: node.version.clone(),
        state: node.state as i32,
    }
}

fn database_to_wire(database: &Database) -> v1::MapDatabase {
    v1::MapDatabase {
        namespace: database.namespace.to_string(),
        database: database.name.to_string(),
        group: database.group.0,
        replication_factor: database.replication_factor,
        founders: database.founders.iter().map(|id| id.0).collect(),
        replicas: database.replicas.iter().map(|id| id.0).collect(),
        initialised: database.initialised,
        dropped: database.dropped,
        proposal: database.proposal,
    }
}

fn database_from_wire(wire: v1::MapDatabase) -> Result<Database, debros_proto::InvalidName> {
    Ok(Database {
        namespace: Namespace::new(&wire.namespace)?,
        name: DatabaseName::new(&wire.database)?,
        group: GroupId(wire.group),
        replication_factor: wire.replication_factor,
        founders: wire.founders.into_iter().map(NodeId).collect(),
        replicas: wire.replicas.into_iter().map(NodeId).collect(),
        initialised: wire.initialised,
        dropped: wire.dropped,
        proposal: wire.proposal,
    })
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;

//! Runs the replicas that the cluster map puts on this node: opens and initialises them, keeps
//! their members as the map says where they lead, opens them again after a fault, and puts away
//! those of dropped databases.
//!
//! Everything it does follows from the map and from what is on this node; nothing is remembered.
//!
//! Only what dropped databases left is put away. A replica that the map has moved elsewhere stays on
//! this node: if its group came back without its log, the node would have forgotten its votes under
//! the node id with which it gave them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use debros_net::PeerId;
use debros_proto::{GroupId, NodeId, v1};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use v1::meta_command::Operation;

use super::membership::ClusterSlot;
use crate::blocking::Blocking;
use crate::clock::Clock;
use crate::cluster::{Cluster, map};
use crate::raft::{Desired, Groups};
use crate::sql::{self, FailedFlush, SqlEngines};

/// Looks at least this often, for what no change of the map announces.
const INTERVAL: Duration = Duration::from_millis(250);
/// The founder of rank k initialises a pristine group k times this late, so that one does it alone.
const FOUNDER_STAGGER: Duration = Duration::from_millis(400);
/// What failed for a group, opening it or putting it away, is tried again after this.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Setting a database's limit is tried for this long, then again at the next look.
const LIMIT_TIMEOUT: Duration = Duration::from_millis(500);
/// The quarantine is looked through this often.
const QUARANTINE_INTERVAL: Duration = Duration::from_secs(600);
/// What a dropped database left is kept for this long.
const QUARANTINE: Duration = Duration::from_secs(24 * 3600);

/// This node's replicas of databases. Cheap to clone.
#[derive(Clone)]
pub struct Replicas {
    open: Arc<RwLock<HashMap<GroupId, sql::Database>>>,
    groups: Groups,
    engines: Arc<SqlEngines>,
    clock: Clock,
    folder: PathBuf,
    blocking: Blocking,
    max_database_bytes: u64,
}

/// Since when a group has been waiting for something.
type Since = HashMap<GroupId, Instant>;

impl Replicas {
    /// None is open yet. Databases live in `folder`, one folder each, and grow to
    /// `max_database_bytes`; 0 is no limit.
    pub fn new(
        groups: Groups,
        engines: SqlEngines,
        clock: Clock,
        folder: PathBuf,
        blocking: Blocking,
        max_database_bytes: u64,
    ) -> Self {
        let open = Arc::default();
        Self { open, groups, engines: Arc::new(engines), clock, folder, blocking, max_database_bytes }
    }

    /// Resolves when a database could not be flushed to the disk.
    pub fn failed(&self) -> impl Future<Output = FailedFlush> + Send + use<> {
        self.engines.failed()
    }

    /// The replica of a group, if this node runs one.
    pub fn get(&self, group: GroupId) -> Option<sql::Database> {
        self.open.read().expect("not poisoned").get(&group).cloned()
    }

    /// Every replica that this node runs.
    pub fn all(&self) -> Vec<sql::Database> {
        self.open.read().expect("not poisoned").values().cloned().collect()
    }

    /// The replicas of which this holds.
    pub fn matching(&self, holds: impl Fn(&sql::Database) -> bool) -> Vec<sql::Database> {
        let open = self.open.read().expect("not poisoned");
        open.values().filter(|replica| holds(replica)).cloned().collect()
    }

    /// Follows the map until the token is cancelled.
    pub async fn run(self, cluster: ClusterSlot, stop: CancellationToken) {
        let cluster = tokio::select! {
            () = stop.cancelled() => return,
            cluster = cluster.joined() => cluster,
        };
        let mut changes = cluster.watch();
        let (mut failed, mut pristine) = (Since::new(), Since::new());
        let mut quarantine = tokio::time::interval(QUARANTINE_INTERVAL);
        let mut stored = self.stored().await;
        // Only another map drops more databases.
        let mut settled: Option<Arc<map::ClusterMap>> = None;
        loop {
            let map = changes.borrow_and_update().clone();
            for database in map.databases() {
                let here = database.replicas.contains(&cluster.node()) || stored.contains(&database.group);
                if here {
                    stored.insert(database.group);
                    self.follow(&cluster, database, &mut failed, &mut pristine, &stop).await;
                }
            }
            if !settled.as_ref().is_some_and(|settled| Arc::ptr_eq(settled, &map))
                && self.put_away_dropped(&map, &mut stored, &mut failed).await
            {
                settled = Some(map);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                _ = changes.changed() => {}
                () = tokio::time::sleep(INTERVAL) => {}
                _ = quarantine.tick() => self.empty_quarantine().await,
            }
        }
    }

    /// The groups of which this node has had a replica: one that the map has moved elsewhere serves
    /// on until its group has let go of it.
    async fn stored(&self) -> HashSet<GroupId> {
        let folder = self.folder.clone();
        self.blocking.run(move || stored_groups(&folder)).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the folder of databases cannot be listed");
            HashSet::new()
        })
    }

    async fn follow(
        &self,
        cluster: &Cluster,
        database: &map::Database,
        failed: &mut Since,
        pristine: &mut Since,
        stop: &CancellationToken,
    ) {
        let group = database.group;
        if let Some(replica) = self.get(group) {
            if replica.group().is_running() {
                // It may wait for a majority, which a node that stops will not see again.
                stop.run_until_cancelled(self.tend(cluster, database, &replica, pristine)).await;
                return;
            }
            tracing::error!(%group, "a replica has stopped and will be opened again");
            self.close(group).await;
            failed.insert(group, Instant::now());
        }
        if failed.get(&group).is_some_and(|at| at.elapsed() < RETRY_AFTER) {
            return;
        }
        if let Err(error) = self.open(cluster.node(), group).await {
            let error = error.as_ref() as &dyn std::error::Error;
            tracing::error!(%group, error, "a replica could not be opened; trying again");
            failed.insert(group, Instant::now());
        }
    }

    async fn open(
        &self,
        node: NodeId,
        group: GroupId,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let engine = self.engines.open(self.database_folder(group)).await?;
        let raft = self.groups.open(group, node, engine.clone()).await?;
        let replica = sql::Database::new(raft, engine, self.clock.clone());
        self.open.write().expect("not poisoned").insert(group, replica);
        Ok(())
    }

    /// Closes a replica; its files stay.
    async fn close(&self, group: GroupId) {
        self.open.write().expect("not poisoned").remove(&group);
        self.groups.close(group).await;
    }

    /// What a running replica needs: first members, and later those that the map asks for.
    async fn tend(
        &self,
        cluster: &Cluster,
        database: &map::Database,
        replica: &sql::Database,
        pristine: &mut Since,
    ) {
        let group = replica.group();
        if !database.initialised
            && let Some(rank) = database.founders.iter().position(|id| *id == cluster.node())
            && group.is_initialised().await == Ok(false)
        {
            let since = *pristine.entry(database.group).or_insert_with(Instant::now);
            if since.elapsed() >= FOUNDER_STAGGER * rank as u32 {
                let founders = peers(cluster, &database.founders);
                if let Err(error) = group.initialise(founders).await {
                    tracing::warn!(%error, "a new group could not be initialised; trying again");
                }
            }
            return;
        }
        if !group.is_leader() {
            return;
        }
        if !database.initialised {
            let initialised = v1::MetaGroupInitialised { group: database.group.0 };
            if let Err(failure) = cluster.propose(Operation::GroupInitialised(initialised)).await {
                tracing::debug!(%failure, "the map does not know yet that the group is initialised");
            }
        }
        let deadline = Instant::now() + LIMIT_TIMEOUT;
        if let Err(failure) = replica.limit_bytes(self.max_database_bytes, deadline).await {
            tracing::debug!(%failure, "the limit of a database will be set again");
        }
        let desired = Desired { voters: peers(cluster, &database.replicas), learners: BTreeMap::new() };
        if let Err(error) = group.align(&desired).await {
            tracing::debug!(%error, "the members of a group will be looked at again");
        }
    }

    /// Puts away what dropped databases left, open or not: this node may have been down when they were
    /// dropped, or have been killed half way. Gives whether nothing of them is left.
    async fn put_away_dropped(
        &self,
        map: &map::ClusterMap,
        stored: &mut HashSet<GroupId>,
        failed: &mut Since,
    ) -> bool {
        let mut all = true;
        let mut here: BTreeSet<GroupId> = stored.iter().copied().collect();
        here.extend(self.open.read().expect("not poisoned").keys());
        here.extend(self.groups.log().groups());
        for group in here {
            let dropped = map.group(group).is_some_and(|database| database.dropped);
            if !dropped {
                continue;
            }
            if failed.get(&group).is_some_and(|at| at.elapsed() < RETRY_AFTER) {
                all = false;
                continue;
            }
            match self.put_away(group).await {
                Ok(()) => {
                    tracing::info!(%group, "a dropped database was put into quarantine");
                    stored.remove(&group);
                    failed.remove(&group);
                }
                Err(error) => {
                    let error = error.as_ref() as &dyn std::error::Error;
                    tracing::warn!(%group, error, "a dropped database could not be put away; trying again");
                    // Without its log it is found by nothing else any more.
                    stored.insert(group);
                    failed.insert(group, Instant::now());
                    all = false;
                }
            }
        }
        all
    }

    /// Closes a replica, removes its log and moves its files into quarantine.
    async fn put_away(&self, group: GroupId) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.close(group).await;
        self.groups.log().remove_group(group).await?;
        let (from, folder) = (self.database_folder(group), self.quarantine_folder());
        let to = folder.join(format!("{group}-{}", self.clock.unix_ms()));
        self.blocking.run(move || move_folder(&from, &folder, &to)).await?;
        Ok(())
    }

    /// Removes what was in quarantine long enough.
    async fn empty_quarantine(&self) {
        let (folder, now) = (self.quarantine_folder(), self.clock.unix_ms());
        if let Err(error) = self.blocking.run(move || empty_quarantine(&folder, now)).await {
            tracing::warn!(%error, "the quarantine could not be emptied");
        }
    }

    fn database_folder(&self, group: GroupId) -> PathBuf {
        self.folder.join(format!("{DATABASE_PREFIX}{group}"))
    }

    fn quarantine_folder(&self) -> PathBuf {
        self.folder.join("quarantine")
    }
}

fn peers(cluster: &Cluster, nodes: &[NodeId]) -> BTreeMap<NodeId, PeerId> {
    nodes.iter().filter_map(|node| Some((*node, cluster.peer_of(*node)?))).collect()
}

/// A database's folder is named by this and its group.
const DATABASE_PREFIX: &str = "db-";

fn stored_groups(folder: &Path) -> std::io::Result<HashSet<GroupId>> {
    let mut groups = HashSet::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(DATABASE_PREFIX)?.parse().ok());
        groups.extend(number.map(GroupId));
    }
    Ok(groups)
}

fn move_folder(from: &Path, folder: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        moved => moved,
    }
}

fn empty_quarantine(folder: &Path, now_unix_ms: u64) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let since = name.to_str().and_then(|name| name.rsplit_once('-')?.1.parse::<u64>().ok());
        if since.is_some_and(|since| now_unix_ms.saturating_sub(since) > QUARANTINE.as_millis() as u64) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

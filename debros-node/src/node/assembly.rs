//! The parts of a node in the order in which they are built on each other, and what is read of them by metrics and
//! by the status.

use std::sync::Arc;

use debros_net::Network;
use debros_net::grpc::Channels;
use debros_proto::{limits, v1};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Core, Settings, StartError, metrics};
use crate::blocking::Blocking;
use crate::clock::Clock;
use crate::cluster;
use crate::kv::{self, KvMetrics, KvSlot, Store};
use crate::metrics::{Bounds, Origin};
use crate::pubsub::{self, PubSubMetrics, PubSubOperations, PubSubSlot};
use crate::raft::log::{self, LogStore};
use crate::raft::{self, Groups, GroupsParts, RaftMetrics};
use crate::rpc::RpcMetrics;
use crate::service::{
    Activity, ClusterSlot, Databases, DiskState, Health, HealthParts, Members, Messages, ProbeMetrics,
    Prober, ProberParts, Replicas, Storage, register_disks,
};
use crate::sql::{self, SqlEngines, SqlMetrics};
use crate::trace::Tracer;

/// What the engines count and measure while they work.
pub(super) struct EngineMetrics {
    log: log::Options,
    raft: RaftMetrics,
    sql: SqlMetrics,
    kv: KvMetrics,
    pubsub: PubSubMetrics,
    probe: ProbeMetrics,
}

impl EngineMetrics {
    pub(super) fn register(registry: &mut Registry, rpc: &RpcMetrics, log: &log::Options) -> Self {
        let operations = PubSubOperations {
            publish: rpc.operation("PubSubPublish", Origin::Client),
            subscribe: rpc.operation("PubSubSubscribe", Origin::Client),
        };
        Self {
            log: raft::observe_log(log.clone(), registry),
            raft: RaftMetrics::register(registry),
            sql: SqlMetrics::register(registry),
            kv: KvMetrics::register(registry),
            pubsub: PubSubMetrics::register(registry, operations),
            probe: ProbeMetrics::register(registry),
        }
    }
}

impl Core {
    /// Opens what a node keeps, and makes its services over it.
    pub(super) async fn open(
        settings: &Settings,
        metrics: EngineMetrics,
        network: Arc<dyn Network>,
        (blocking, clock): (Blocking, Clock),
        (tracer, tracker): (Tracer, TaskTracker),
    ) -> Result<Self, StartError> {
        let channels = Channels::new(network.clone());
        let folder = &settings.database_folder;
        let EngineMetrics { log, raft, sql, kv: kv_metrics, pubsub: pubsub_metrics, probe } = metrics;
        let log = LogStore::open(folder.join("raft"), blocking.clone(), log).await?;
        let kv_options = kv::StoreOptions { metrics: kv_metrics.store(), ..settings.kv.store.clone() };
        let kv_store = Store::open(&settings.storage_folder, blocking.clone(), kv_options).await?;
        let snapshots = folder.join("snapshots");
        let cluster = ClusterSlot::default();
        let members = Members::new(cluster.clone());
        let believed = members.clone();
        let groups = Groups::new(GroupsParts {
            log,
            channels: channels.clone(),
            blocking: blocking.clone(),
            snapshot_folder: snapshots.clone(),
            options: settings.raft.clone(),
            tracker: tracker.clone(),
            believes: Arc::new(move |claim| believed.believe(claim)),
            metrics: raft,
        })
        .map_err(|source| StartError::Folder { folder: snapshots, source })?;
        let disk = DiskState::default();
        let replicas = Replicas::new(
            groups.clone(),
            SqlEngines::new(blocking.clone(), sql),
            clock.clone(),
            folder.clone(),
            blocking.clone(),
            settings.max_database_bytes,
        );
        let databases = Databases::new(
            cluster.clone(),
            replicas.clone(),
            channels.clone(),
            settings.replication_factor,
            disk.clone(),
        );
        let (kv, pubsub) = (KvSlot::default(), PubSubSlot::default());
        let prober = Prober::new(ProberParts {
            cluster: cluster.clone(),
            databases: databases.clone(),
            storage: Storage::new(kv.clone(), disk.clone()),
            messages: Messages::new(pubsub.clone()),
            channels: channels.clone(),
            metrics: probe,
            interval: settings.probe_interval,
        });
        let health = Health::new(HealthParts {
            cluster: cluster.clone(),
            replicas: replicas.clone(),
            kv: kv.clone(),
            disk: disk.clone(),
            clock: clock.clone(),
            network: network.clone(),
            prober: prober.clone(),
        });
        let stop = CancellationToken::new();
        Ok(Self {
            network,
            blocking,
            clock,
            channels,
            groups,
            cluster,
            members,
            replicas,
            disk,
            prober,
            health,
            databases,
            kv,
            kv_store,
            kv_metrics,
            pubsub,
            pubsub_metrics,
            stop_clients: CancellationToken::new(),
            stop,
            tracker,
            tracer,
        })
    }

    /// Registers what is read of the parts at each scrape.
    pub(super) fn register_readings(&self, registry: &mut Registry, bounds: &Bounds) {
        metrics::register_network(registry, bounds, &self.network);
        let cluster = self.cluster.clone();
        cluster::register_cluster(registry, bounds, self.network.clone(), move || cluster.get().ok());
        register_disks(registry, self.disk.clone());
        raft::bound_queues(bounds, &self.groups);
        raft::register_groups(registry, self.groups.clone());
        let replicas = self.replicas.clone();
        bounds.queue_items("database_writes", limits::PENDING_WRITES_MAX, move || {
            replicas.all().iter().map(sql::Database::pending_writes).max().unwrap_or(0)
        });
        let replicas = self.replicas.clone();
        sql::register_files(registry, move || replicas.all().iter().map(sql::Database::files).collect());
        kv::register_storage(registry, bounds, &self.kv);
        pubsub::bound_pubsub(bounds, &self.pubsub_metrics, &self.pubsub);
    }

    /// What the engines have answered, as the status tells it.
    pub(super) fn activity(&self, metrics: &RpcMetrics) -> Activity {
        let (metrics, pubsub) = (metrics.clone(), self.pubsub_metrics.clone());
        Arc::new(move || {
            let (published, delivered) = pubsub.totals();
            let messages = v1::EngineActivity {
                engine: "pubsub".to_owned(),
                requests: published,
                delivered,
                ..Default::default()
            };
            metrics.activity().chain([messages]).collect()
        })
    }
}

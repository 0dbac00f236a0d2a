//! From a configuration to a running node in production: threads, the system's clock, libp2p.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use debros_config::{Config, Storage};
use debros_net::identity::{self, IdentityError};
use debros_net::{ClusterSecret, Host, HostConfig, HostError, Multiaddr, SecretError};
use debros_proto::ClusterId;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::blocking::Blocking;
use crate::clock::Clock;
use crate::cluster::{self, ReconcileOptions};
use crate::http::admin::AdminParts;
use crate::http::{self, Listen, ListenError, TlsFiles};
use crate::kv::{KvOptions, StoreOptions};
use crate::metrics::{self, Exposition};
use crate::node::{Environment, Node, NodeFailure, Settings, StartError};
use crate::pubsub::PubSubOptions;
use crate::raft::{RaftOptions, log};
use crate::trace::TraceOptions;

/// Why a node cannot be launched. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A data folder cannot be used.
    #[error("the data folder {folder} cannot be used: check {key} and its permissions")]
    Folder {
        /// The key that names it.
        key: &'static str,
        /// Which.
        folder: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another process uses a data folder.
    #[error("the data folder {folder} is in use by another node: stop it, or give this one another {key}")]
    InUse {
        /// The key that names it.
        key: &'static str,
        /// Which.
        folder: PathBuf,
    },
    /// The identity file cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The cluster secret cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The peer-to-peer listeners cannot be opened.
    #[error(transparent)]
    Host(#[from] HostError),
    /// An HTTP listener cannot be opened.
    #[error(transparent)]
    Http(#[from] ListenError),
    /// The node itself cannot start.
    #[error(transparent)]
    Node(#[from] StartError),
    /// A value passed the configuration's own checks but not this one.
    #[error("{key}: {value:?} cannot be used: {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// Why.
        reason: String,
    },
}

/// A node with its HTTP listeners.
pub struct Launched {
    /// The node.
    pub node: Node,
    /// Where the HTTP API listens.
    pub http: SocketAddr,
    /// Where health and metrics are.
    pub admin: SocketAddr,
    stop_http: CancellationToken,
    servers: Vec<JoinHandle<()>>,
    // Held as long as the node lives.
    _locks: [File; 2],
}

/// The HTTP servers end within this time after they were told to.
const HTTP_STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts a node.
///
/// # Errors
/// [`LaunchError`]; nothing goes on running then.
pub async fn launch(config: &Config) -> Result<Launched, LaunchError> {
    launch_with(config, |_| {}).await
}

/// Starts a node with other timings than the configuration can ask for.
///
/// # Errors
/// As [`launch`].
pub async fn launch_with(
    config: &Config,
    adjust: impl FnOnce(&mut Settings),
) -> Result<Launched, LaunchError> {
    launch_under(config, Clock::system(), adjust).await
}

/// Starts a node under another clock than the system's.
///
/// # Errors
/// As [`launch`].
pub async fn launch_under(
    config: &Config,
    clock: Clock,
    adjust: impl FnOnce(&mut Settings),
) -> Result<Launched, LaunchError> {
    let data = lock_folder("node.data_dir", &config.node.data_dir)?;
    if config.cluster.rejoin {
        begin_anew(config)?;
    }
    let locks = [data, lock_folder("storage.data_dir", &config.storage_dir())?];
    let keypair = identity::load_or_create(&config.node.data_dir)?;
    let secret = config.security.cluster_secret_file.as_deref().map(ClusterSecret::from_file).transpose()?;
    let mut settings = settings(config)?;
    adjust(&mut settings);
    let host = HostConfig {
        secret,
        connections_max: config.node.max_connections,
        dht: config.discovery.enable_dht.then(|| format!("{}/kad/1.0.0", config.discovery.dht_prefix)),
        mdns: config.discovery.enable_mdns,
        ..HostConfig::node(keypair, multiaddrs("node.listen_addresses", &config.node.listen_addresses)?)
    };
    let (network, incoming) = Host::start(host).await?;
    let environment = Environment { network, incoming, blocking: Blocking::Threads, clock };
    let node = Node::start(settings, environment).await?;
    match listen(config, &node).await {
        Ok((http, admin, stop_http, servers)) => {
            Ok(Launched { node, http, admin, stop_http, servers, _locks: locks })
        }
        Err(error) => {
            node.shutdown().await;
            Err(error.into())
        }
    }
}

type Listeners = (SocketAddr, SocketAddr, CancellationToken, Vec<JoinHandle<()>>);

async fn listen(config: &Config, node: &Node) -> Result<Listeners, ListenError> {
    let stop = CancellationToken::new();
    let files = (&config.security.certificate_file, &config.security.private_key_file);
    let tls = match (config.security.enable_tls, files) {
        (true, (Some(certificate), Some(private_key))) => {
            Some(TlsFiles { certificate: certificate.clone(), private_key: private_key.clone() })
        }
        _ => None,
    };
    let http_metrics = node.http_metrics().clone();
    let (databases, cluster, health) = (node.databases(), node.cluster_service(), node.health());
    let api = http::rqlite::router(databases.clone(), cluster.clone(), health.clone(), &http_metrics);
    let process = Arc::new(metrics::process(&Handle::current()));
    let parts = AdminParts {
        cluster: cluster.clone(),
        health: health.clone(),
        metrics: Exposition::new([node.registry().clone(), process]),
        blocking: Blocking::Threads,
        shutdown: node.stopping(),
    };
    let admin = http::admin::router(parts, &http_metrics);
    let listen =
        Listen { name: "http", key: "database.rqlite_port", address: config.http_socket(), tls: tls.clone() };
    let (http, api) = http::serve(listen, api, http_metrics.clone(), stop.clone()).await?;
    let listen = Listen { name: "admin", key: "admin.port", address: config.admin_socket(), tls };
    match http::serve(listen, admin, http_metrics, stop.clone()).await {
        Ok((admin_address, admin)) => Ok((http, admin_address, stop, vec![api, admin])),
        Err(error) => {
            stop.cancel();
            Err(error)
        }
    }
}

impl Launched {
    /// Resolves when the node must end.
    pub async fn failed(&self) -> NodeFailure {
        self.node.failed().await
    }

    /// Stops listeners and node, in that order.
    pub async fn shutdown(self) {
        self.stop_http.cancel();
        for server in self.servers {
            // A server that does not end is dropped with the process.
            let _ = tokio::time::timeout(HTTP_STOP_TIMEOUT, server).await;
        }
        self.node.shutdown().await;
    }
}

/// Sets aside what a node that was removed held. The data folder comes last, since it has the note.
fn begin_anew(config: &Config) -> Result<(), LaunchError> {
    let data = &config.node.data_dir;
    let unusable =
        |key, folder: &Path, source| LaunchError::Folder { key, folder: folder.to_owned(), source };
    let Some(former) = cluster::former(data).map_err(|error| unusable("node.data_dir", data, error))? else {
        return Ok(());
    };
    let others = [("database.data_dir", config.database_dir()), ("storage.data_dir", config.storage_dir())];
    for (key, folder) in others.iter().filter(|(_, folder)| !folder.starts_with(data)) {
        let _lock = lock_folder(key, folder)?;
        cluster::set_aside(folder, &former).map_err(|error| unusable(key, folder, error))?;
    }
    let aside = cluster::set_aside(data, &former).map_err(|error| unusable("node.data_dir", data, error))?;
    tracing::warn!(
        former,
        folder = %aside.display(),
        "this node was removed from its cluster: what it held is set aside, and it joins anew"
    );
    Ok(())
}

fn lock_folder(key: &'static str, folder: &Path) -> Result<File, LaunchError> {
    let failed = |source| LaunchError::Folder { key, folder: folder.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let file = File::options().create(true).append(true).open(folder.join("lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(LaunchError::InUse { key, folder: folder.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn multiaddrs<T: ToString>(key: &'static str, values: &[T]) -> Result<Vec<Multiaddr>, LaunchError> {
    let parse = |value: &T| {
        let value = value.to_string();
        value.parse::<Multiaddr>().map_err(|error| LaunchError::Value {
            key,
            value,
            reason: error.to_string(),
        })
    };
    values.iter().map(parse).collect()
}

fn settings(config: &Config) -> Result<Settings, LaunchError> {
    let pinned = config.cluster.id.as_deref().map(str::parse::<ClusterId>).transpose();
    let pinned = pinned.map_err(|error| LaunchError::Value {
        key: "cluster.id",
        value: config.cluster.id.clone().unwrap_or_default(),
        reason: error.to_string(),
    })?;
    Ok(Settings {
        data_folder: config.node.data_dir.clone(),
        database_folder: config.database_dir(),
        storage_folder: config.storage_dir(),
        bootstrap: multiaddrs("discovery.bootstrap_peers", &config.discovery.bootstrap_peers)?,
        discovery_interval: config.discovery.discovery_interval.as_duration(),
        peer_exchange: config.discovery.enable_peer_exchange,
        saved_peers: config.discovery.enable_saved_peers,
        zone: config.node.zone.clone().unwrap_or_default(),
        replication_factor: u32::from(config.database.replication_factor),
        max_database_bytes: config.database.max_database_size.bytes(),
        may_initialise: config.may_initialise(),
        pinned,
        rejoin: config.cluster.rejoin,
        raft: RaftOptions::default(),
        reconcile: ReconcileOptions {
            lost_after: config.cluster.lost_after.as_duration(),
            storage_replicas: u32::from(config.database.replication_factor),
            ..Default::default()
        },
        log: log::Options::default(),
        kv: kv_options(&config.storage),
        pubsub: PubSubOptions::default(),
        tracing: TraceOptions::new(config, |name| std::env::var(name).ok()),
        probe_interval: Some(config.admin.probe_interval.as_duration()).filter(|every| !every.is_zero()),
    })
}

fn kv_options(storage: &Storage) -> KvOptions {
    // Where they are kept is a setting of the node.
    let Storage { data_dir: _, relaxed_namespaces, max_size, tombstone_life, repair_interval } = storage;
    let map_bytes = usize::try_from(max_size.bytes()).unwrap_or(usize::MAX);
    KvOptions {
        relaxed_namespaces: relaxed_namespaces.iter().cloned().collect(),
        tombstone_life: tombstone_life.as_duration(),
        repair_interval: repair_interval.as_duration(),
        store: StoreOptions::default().with_map_bytes(map_bytes),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use debros_config::Config;

    use super::settings;

    #[test]
    fn every_key_of_the_storage_reaches_it() {
        let yaml = "storage: { data_dir: /large, relaxed_namespaces: [cache, app], max_size: 100MB, \
                    tombstone_life: 2h, repair_interval: 3s }";
        let config = Config::from_yaml(yaml).expect("a configuration").config;
        let settings = settings(&config).expect("settings");
        assert_eq!(settings.storage_folder, Path::new("/large"));
        assert_eq!(settings.kv.relaxed_namespaces, ["app", "cache"].map(str::to_owned).into());
        assert_eq!(settings.kv.store.map_bytes, 100_000_000);
        assert_eq!(settings.kv.tombstone_life, Duration::from_secs(2 * 3600));
        assert_eq!(settings.kv.repair_interval, Duration::from_secs(3));
    }

    #[test]
    fn how_long_a_member_may_be_away_reaches_who_decides() {
        let config = Config::from_yaml("cluster: { lost_after: 90s }").expect("a configuration").config;
        assert_eq!(settings(&config).expect("settings").reconcile.lost_after, Duration::from_secs(90));
        let own = crate::cluster::ReconcileOptions::default().lost_after;
        assert_eq!(settings(&Config::default()).expect("settings").reconcile.lost_after, own);
    }

    #[test]
    fn a_configuration_without_the_storage_is_what_the_engine_has_by_itself() {
        let settings = settings(&Config::default()).expect("settings");
        let (told, own) = (format!("{:?}", settings.kv), format!("{:?}", super::KvOptions::default()));
        assert_eq!(told, own);
        assert_eq!(settings.storage_folder, Path::new("./data/storage"));
    }
}

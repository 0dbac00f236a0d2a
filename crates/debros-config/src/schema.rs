//! The configuration as typed data: one struct a section, one field a key.
//!
//! Decides names, types and defaults, nothing else: what a text of a key may look like is in `kind`, how keys
//! relate to each other in `check`. A relative path is relative to the folder the node is started in.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, Serializer};

use crate::{ByteSize, Interval, ListenAddress, PeerAddress, Ratio, Transport};

/// The port of the peer-to-peer listener, as in every example.
const LISTEN_PORT: u16 = 4001;
/// The folder of a database inside the node's own, unless the configuration names another.
const DATABASE_FOLDER: &str = "database";
/// The folder of the key-value storage inside the node's own, unless the configuration names another.
const STORAGE_FOLDER: &str = "storage";

/// The whole configuration of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who the node is and where it listens.
    pub node: Node,
    /// The SQL database and its HTTP API.
    pub database: Database,
    /// The key-value storage.
    pub storage: Storage,
    /// How other nodes are found.
    pub discovery: Discovery,
    /// Who may join and who may ask.
    pub security: Security,
    /// What is written to the log.
    pub logging: Logging,
    /// Health and metrics.
    pub admin: Admin,
    /// Traces sent elsewhere.
    pub tracing: Tracing,
    /// The cluster this node belongs to.
    pub cluster: Cluster,
}

/// Whether a node may begin a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeType {
    /// Begins a cluster when it is new and has no bootstrap peers; see [`Config::may_initialise`].
    Bootstrap,
    /// Only ever joins.
    #[default]
    Node,
}

/// The section `node`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// A name for people. The node's identity is its key, not this.
    pub id: Option<String>,
    /// Whether it may begin a cluster.
    #[serde(rename = "type")]
    pub node_type: NodeType,
    /// Where other nodes and SDK clients reach it.
    pub listen_addresses: Vec<ListenAddress>,
    /// Where everything of this node is kept.
    #[serde(serialize_with = "path_text")]
    pub data_dir: PathBuf,
    /// Connections kept at once, of nodes and clients together.
    pub max_connections: u32,
    /// The failure domain: replicas are spread over zones.
    pub zone: Option<String>,
}

impl Default for Node {
    fn default() -> Self {
        let socket = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), LISTEN_PORT);
        Self {
            id: None,
            node_type: NodeType::default(),
            // Loopback, because admission is open until a cluster secret is given.
            listen_addresses: vec![
                ListenAddress::new(socket, Transport::Tcp),
                ListenAddress::new(socket, Transport::Quic),
            ],
            data_dir: PathBuf::from("./data"),
            // A full mesh of 200 nodes with two connections each leaves 600 for clients.
            max_connections: 1000,
            zone: None,
        }
    }
}

/// The section `database`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// Where databases and the Raft log are kept; see [`Config::database_dir`].
    #[serde(serialize_with = "optional_path_text")]
    pub data_dir: Option<PathBuf>,
    /// Replicas of a new database.
    pub replication_factor: u8,
    /// The largest a single database may grow.
    pub max_database_size: ByteSize,
    /// How often databases are backed up; `None` is never.
    pub backup_interval: Option<Interval>,
    /// The port of the HTTP API. 0 is any free port.
    pub rqlite_port: u16,
    /// The address of the HTTP API.
    pub http_address: IpAddr,
}

impl Default for Database {
    fn default() -> Self {
        Self {
            data_dir: None,
            replication_factor: 3,
            max_database_size: ByteSize::from_bytes(1 << 30),
            backup_interval: None,
            rqlite_port: 5001,
            http_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        }
    }
}

/// The section `storage`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// Where the key-value storage is kept; see [`Config::storage_dir`].
    #[serde(serialize_with = "optional_path_text")]
    pub data_dir: Option<PathBuf>,
    /// Namespaces whose writes are acknowledged before they are on disk.
    pub relaxed_namespaces: Vec<String>,
    /// The most that it may hold on this node.
    pub max_size: ByteSize,
    /// How long a deletion is remembered at least.
    pub tombstone_life: Interval,
    /// How often replicas compare what they hold.
    pub repair_interval: Interval,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            data_dir: None,
            relaxed_namespaces: Vec::new(),
            max_size: ByteSize::from_bytes(1 << 40),
            tombstone_life: Interval::from_seconds(24 * 3600),
            repair_interval: Interval::from_seconds(10),
        }
    }
}

/// The section `discovery`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Discovery {
    /// Addresses of any members of the cluster to join.
    pub bootstrap_peers: Vec<PeerAddress>,
    /// Whether nodes on the same local network find each other by multicast.
    pub enable_mdns: bool,
    /// Whether nodes find each other through the distributed hash table.
    pub enable_dht: bool,
    /// The beginning of the hash table's protocol name.
    pub dht_prefix: String,
    /// How often the enabled sources are asked.
    pub discovery_interval: Interval,
    /// Whether members tell each other the addresses they know.
    pub enable_peer_exchange: bool,
    /// Whether the addresses known are kept across restarts.
    pub enable_saved_peers: bool,
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            bootstrap_peers: Vec::new(),
            enable_mdns: false,
            enable_dht: true,
            dht_prefix: "/debros".to_owned(),
            discovery_interval: Interval::from_seconds(15),
            enable_peer_exchange: true,
            enable_saved_peers: true,
        }
    }
}

/// The section `security`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Security {
    /// Whether requests need credentials.
    pub auth_enabled: bool,
    /// Whether the HTTP and admin listeners speak TLS.
    pub enable_tls: bool,
    /// The certificate chain, PEM.
    #[serde(serialize_with = "optional_path_text")]
    pub certificate_file: Option<PathBuf>,
    /// The private key, PEM.
    #[serde(serialize_with = "optional_path_text")]
    pub private_key_file: Option<PathBuf>,
    /// The secret that peers prove before anything else; without it admission is open.
    #[serde(serialize_with = "optional_path_text")]
    pub cluster_secret_file: Option<PathBuf>,
    /// Whether the HTTP and admin listeners may be reached from other machines without TLS.
    pub allow_insecure_listeners: bool,
}

/// The form of a line of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line, for programs.
    Json,
}

/// The section `logging`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Logging {
    /// A level, or a list of `target=level`.
    pub level: String,
    /// The form of a line.
    pub format: LogFormat,
    /// The file written to; `None` is standard error.
    #[serde(serialize_with = "optional_path_text")]
    pub output_file: Option<PathBuf>,
}

impl Default for Logging {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::default(), output_file: None }
    }
}

/// The section `admin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// The address of the admin listener.
    pub address: IpAddr,
    /// Its port. 0 is any free port.
    pub port: u16,
    /// How often the node probes what users get. 0 is never.
    pub probe_interval: Interval,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 9001,
            probe_interval: Interval::from_seconds(5),
        }
    }
}

/// The section `tracing`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tracing {
    /// The OTLP/HTTP collector that traces are sent to; `None` is nowhere.
    pub otlp_endpoint: Option<String>,
    /// Of the requests whose caller does not trace, the part that is sampled.
    pub sampling_ratio: Ratio,
    /// A request that takes longer is kept, sampled or not.
    pub slow_threshold: Interval,
}

impl Default for Tracing {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            sampling_ratio: Ratio::from_millionths(10_000),
            slow_threshold: Interval::from_milliseconds(500),
        }
    }
}

/// The section `cluster`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// The only cluster this node belongs to: 32 hexadecimal digits. `None` is whichever it joins first.
    pub id: Option<String>,
    /// A member out of reach for longer counts as gone for good: its votes and replicas move to others.
    pub lost_after: Interval,
    /// A node that was removed from its cluster sets its data aside when it is started again, and joins anew.
    pub rejoin: bool,
}

impl Default for Cluster {
    fn default() -> Self {
        Self { id: None, lost_after: Interval::from_seconds(300), rejoin: false }
    }
}

impl Config {
    /// Whether this node begins a cluster when its data folder is empty: it is of type `bootstrap`, names no
    /// bootstrap peers, and no cluster id is pinned (a pinned cluster exists already).
    pub fn may_initialise(&self) -> bool {
        self.node.node_type == NodeType::Bootstrap
            && self.discovery.bootstrap_peers.is_empty()
            && self.cluster.id.is_none()
    }

    /// Where databases and the Raft log are kept: `database.data_dir`, or a folder inside `node.data_dir`.
    pub fn database_dir(&self) -> PathBuf {
        match &self.database.data_dir {
            Some(folder) => folder.clone(),
            None => self.node.data_dir.join(DATABASE_FOLDER),
        }
    }

    /// Where the key-value storage is kept: `storage.data_dir`, or a folder inside `node.data_dir`.
    pub fn storage_dir(&self) -> PathBuf {
        match &self.storage.data_dir {
            Some(folder) => folder.clone(),
            None => self.node.data_dir.join(STORAGE_FOLDER),
        }
    }

    /// Another `node.data_dir`. Folders that were derived from the former one follow; those that were named stay.
    pub fn move_data_dir(&mut self, folder: PathBuf) {
        let derived = |name: &str| Some(self.node.data_dir.join(name));
        let (database, storage) = (derived(DATABASE_FOLDER), derived(STORAGE_FOLDER));
        if self.database.data_dir == database {
            self.database.data_dir = None;
        }
        if self.storage.data_dir == storage {
            self.storage.data_dir = None;
        }
        self.node.data_dir = folder;
    }

    /// The address and port of the HTTP API.
    pub fn http_socket(&self) -> SocketAddr {
        SocketAddr::new(self.database.http_address, self.database.rqlite_port)
    }

    /// The address and port of the admin listener.
    pub fn admin_socket(&self) -> SocketAddr {
        SocketAddr::new(self.admin.address, self.admin.port)
    }

    /// The same configuration with nothing left to derive.
    pub(crate) fn resolved(mut self) -> Self {
        self.database.data_dir = Some(self.database_dir());
        self.storage.data_dir = Some(self.storage_dir());
        self
    }
}

/// YAML is text, so a path is too. One from a command line that is not UTF-8 gets the replacement character, which
/// `validate` refuses, where serde's own form would fail to print.
fn path_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

#[expect(clippy::ref_option, reason = "the signature that serde calls")]
fn optional_path_text<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => path_text(path, serializer),
        None => serializer.serialize_none(),
    }
}

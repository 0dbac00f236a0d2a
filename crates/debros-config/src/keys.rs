//! The table of all keys: the one place that help, documentation, the environment and the tests read.
//!
//! A key is here and in `schema`, or the tests fail; the same holds for its default. Whether a key has its effect
//! is told here too, so that a capability that arrives changes one line.

use crate::{ByteSize, Interval, Kind};

/// SQLite counts 2^32 pages of 4 KiB.
const DATABASE_BYTES_MAX: ByteSize = ByteSize::from_bytes(1 << 44);
/// A schema and a few rows; below it the first table already fails.
const DATABASE_BYTES_MIN: ByteSize = ByteSize::from_bytes(1 << 20);
/// More replicas than this cost every write and protect against nothing seen in practice.
pub(crate) const REPLICATION_FACTOR_MAX: u64 = 7;
/// Half of what a process can address on today's machines.
const STORAGE_BYTES_MAX: ByteSize = ByteSize::from_bytes(1 << 46);
/// What waits in memory to go into the storage's tables is of this order.
const STORAGE_BYTES_MIN: ByteSize = ByteSize::from_bytes(64 << 20);
/// A deletion that is forgotten sooner only just reaches all replicas.
const TOMBSTONE_LIFE_MIN: Interval = Interval::from_seconds(60);
/// Oftener than this, comparing replicas is itself a load.
const REPAIR_INTERVAL_MIN: Interval = Interval::from_milliseconds(100);
/// Oftener than this, asking for peers is itself a load.
const DISCOVERY_INTERVAL_MIN: Interval = Interval::from_milliseconds(100);
/// Below this nearly every request is slow, and nothing is sampled any more.
const SLOW_THRESHOLD_MIN: Interval = Interval::from_milliseconds(1);
/// A restart and an election take seconds, and are no reason to copy a node's replicas.
const LOST_AFTER_MIN: Interval = Interval::from_seconds(10);
/// A backup copies a whole database.
const BACKUP_INTERVAL_MIN: Interval = Interval::from_seconds(10);
/// One file descriptor each; the usual ceiling of a process.
const CONNECTIONS_MAX: u64 = 65_535;

/// Whether a key does what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It does.
    InEffect,
    /// It is understood, and the capability is not there yet; the text says so to a user who sets it.
    NotYet(&'static str),
    /// It belongs to an older configuration; the text says what took its place.
    Replaced(&'static str),
}

/// A key, as help and documentation show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyDoc {
    /// `section.key`
    pub path: &'static str,
    /// The form of its value.
    pub kind: Kind,
    /// The default as written in a file; empty where there is none. List items are separated by commas.
    pub default: &'static str,
    /// What it does, in one sentence.
    pub description: &'static str,
    /// Whether it does it.
    pub effect: Effect,
}

impl KeyDoc {
    /// The section, the part before the dot.
    pub fn section(&self) -> &'static str {
        self.path.split_once('.').map_or("", |(section, _)| section)
    }

    /// The key's own name, the part behind the dot.
    pub fn name(&self) -> &'static str {
        self.path.split_once('.').map_or(self.path, |(_, name)| name)
    }

    /// The environment variable that overrides it.
    pub fn variable(&self) -> String {
        format!("DEBROS_{}__{}", self.section().to_ascii_uppercase(), self.name().to_ascii_uppercase())
    }

    /// Whether the key may be left without a value, which an empty text says.
    pub(crate) fn is_optional(&self) -> bool {
        self.default.is_empty()
    }
}

const fn key(path: &'static str, kind: Kind, default: &'static str, description: &'static str) -> KeyDoc {
    KeyDoc { path, kind, default, description, effect: Effect::InEffect }
}

impl KeyDoc {
    const fn not_yet(mut self, reason: &'static str) -> Self {
        self.effect = Effect::NotYet(reason);
        self
    }
}

const fn replaced(path: &'static str, by: &'static str) -> KeyDoc {
    let description = "Accepted from older configurations and without effect.";
    KeyDoc { path, kind: Kind::Ignored, default: "", description, effect: Effect::Replaced(by) }
}

const PORT: Kind = Kind::Integer { min: 0, max: u16::MAX as u64 };

/// All keys, in the order a file is printed.
pub const KEYS: &[KeyDoc] = &[
    key(
        "node.id",
        Kind::Name,
        "",
        "A name for people, in every line of the node's log; its identity is the key in its data folder.",
    ),
    key(
        "node.type",
        Kind::Choice(&["bootstrap", "node"]),
        "node",
        "A `bootstrap` node that is new and names no bootstrap peers begins a cluster; any other node only joins.",
    ),
    key(
        "node.listen_addresses",
        Kind::ListenAddresses,
        "/ip4/127.0.0.1/tcp/4001,/ip4/127.0.0.1/udp/4001/quic-v1",
        "Where other nodes and SDK clients reach this node; port 0 is any free port.",
    ),
    key("node.data_dir", Kind::Path, "./data", "Where this node keeps everything, its identity included."),
    key(
        "node.max_connections",
        Kind::Integer { min: 1, max: CONNECTIONS_MAX },
        "1000",
        "Connections kept at once, of nodes and clients together.",
    ),
    key("node.zone", Kind::Name, "", "The failure domain of this node; replicas are spread over zones."),
    key(
        "database.data_dir",
        Kind::Path,
        "",
        "Where databases and the Raft log are kept; without it, the folder `database` inside node.data_dir.",
    ),
    key(
        "database.replication_factor",
        Kind::Integer { min: 1, max: REPLICATION_FACTOR_MAX },
        "3",
        "Replicas of a new database.",
    ),
    key(
        "database.max_database_size",
        Kind::Size { min: DATABASE_BYTES_MIN, max: DATABASE_BYTES_MAX },
        "1GiB",
        "The largest a single database may grow.",
    ),
    key(
        "database.backup_interval",
        Kind::Duration { min: BACKUP_INTERVAL_MIN },
        "",
        "How often databases are backed up.",
    )
    .not_yet("databases are not backed up by the node yet"),
    key("database.rqlite_port", PORT, "5001", "The port of the HTTP API; 0 is any free port."),
    key("database.http_address", Kind::IpAddress, "127.0.0.1", "The address of the HTTP API."),
    replaced(
        "database.rqlite_raft_port",
        "Raft shares the peer-to-peer listener of `node.listen_addresses`; remove this key",
    ),
    replaced(
        "database.rqlite_join_address",
        "nodes join through `discovery.bootstrap_peers`; list the address of any member there and remove this key",
    ),
    key(
        "storage.data_dir",
        Kind::Path,
        "",
        "Where the key-value storage is kept; without it, the folder `storage` inside node.data_dir.",
    ),
    key(
        "storage.relaxed_namespaces",
        Kind::Namespaces,
        "",
        "Namespaces whose writes are acknowledged once a quorum of replicas has them in the memory of its operating \
         system: they survive the end of a process, and are lost if as many replicas as a quorum has lose power within \
         some tenths of a second. Each node decides for the writes that it coordinates: give all nodes the same list.",
    ),
    key(
        "storage.max_size",
        Kind::Size { min: STORAGE_BYTES_MIN, max: STORAGE_BYTES_MAX },
        "1TiB",
        "The most the storage may hold on this node; it takes no disk until it is used, and past it writes are refused.",
    ),
    key(
        "storage.tombstone_life",
        Kind::Duration { min: TOMBSTONE_LIFE_MIN },
        "24h",
        "How long a deletion is remembered at least; it is also how far a watch can go back.",
    ),
    key(
        "storage.repair_interval",
        Kind::Duration { min: REPAIR_INTERVAL_MIN },
        "10s",
        "How often replicas compare what they hold and give each other what is missing.",
    ),
    key(
        "discovery.bootstrap_peers",
        Kind::PeerAddresses,
        "",
        "Addresses of any members of the cluster to join; a /p2p/<peer id> at the end pins who answers there.",
    ),
    key(
        "discovery.enable_mdns",
        Kind::Boolean,
        "false",
        "Find nodes of the same local network by multicast.",
    ),
    key("discovery.enable_dht", Kind::Boolean, "true", "Find nodes through the distributed hash table."),
    key(
        "discovery.dht_prefix",
        Kind::ProtocolPrefix,
        "/debros",
        "The beginning of the hash table's protocol name; nodes with different ones do not find each other by it.",
    ),
    key(
        "discovery.discovery_interval",
        Kind::Duration { min: DISCOVERY_INTERVAL_MIN },
        "15s",
        "How often the enabled sources are asked for nodes.",
    ),
    key("discovery.enable_peer_exchange", Kind::Boolean, "true", "Ask members for the addresses they know."),
    key("discovery.enable_saved_peers", Kind::Boolean, "true", "Keep the addresses known across restarts."),
    key("security.auth_enabled", Kind::Boolean, "false", "Whether requests need credentials.")
        .not_yet("requests are not authenticated yet; whoever is admitted may do everything"),
    key("security.enable_tls", Kind::Boolean, "false", "Whether the HTTP and admin listeners speak TLS."),
    key("security.certificate_file", Kind::Path, "", "The certificate chain of those listeners, PEM."),
    key("security.private_key_file", Kind::Path, "", "The private key of that certificate, PEM."),
    key(
        "security.cluster_secret_file",
        Kind::Path,
        "",
        "The secret all members share and prove when they connect; without it admission is open.",
    ),
    key(
        "security.allow_insecure_listeners",
        Kind::Boolean,
        "false",
        "Let the HTTP and admin listeners be reached from other machines without TLS.",
    ),
    key("logging.level", Kind::LogFilter, "info", "A level, or a list such as info,debros_node=debug."),
    key("logging.format", Kind::Choice(&["text", "json"]), "text", "`text` for people, `json` for programs."),
    key(
        "logging.output_file",
        Kind::Path,
        "",
        "The file the log is appended to; without it, standard error.",
    ),
    key("admin.address", Kind::IpAddress, "127.0.0.1", "The address of health checks and metrics."),
    key("admin.port", PORT, "9001", "The port of health checks and metrics; 0 is any free port."),
    key(
        "admin.probe_interval",
        Kind::Duration { min: Interval::from_milliseconds(0) },
        "5s",
        "How often this node writes, reads and publishes through another one, as users do; 0s is never.",
    ),
    key(
        "tracing.otlp_endpoint",
        Kind::Url,
        "",
        "The OTLP/HTTP collector that traces are sent to, with or without the path; without it, the variables \
         OTEL_EXPORTER_OTLP_TRACES_ENDPOINT and OTEL_EXPORTER_OTLP_ENDPOINT count, and without those nothing is traced.",
    ),
    key(
        "tracing.sampling_ratio",
        Kind::Ratio,
        "0.01",
        "Of the requests whose caller does not trace, the part that is sampled; for all others the caller has decided.",
    ),
    key(
        "tracing.slow_threshold",
        Kind::Duration { min: SLOW_THRESHOLD_MIN },
        "500ms",
        "A request that takes longer is kept whether it was sampled or not, as one that failed is.",
    ),
    key(
        "cluster.id",
        Kind::ClusterId,
        "",
        "The only cluster this node belongs to; without it, the one it joins first.",
    ),
    key(
        "cluster.lost_after",
        Kind::Duration { min: LOST_AFTER_MIN },
        "5m",
        "A member that has been out of reach for so long counts as gone for good: its votes and replicas move to \
         others. The member that leads the cluster decides: give all nodes the same.",
    ),
    key(
        "cluster.rejoin",
        Kind::Boolean,
        "false",
        "Whether a node that was removed from its cluster sets what it held aside when it is started again, in a folder \
         `left-ID` of its data folder, and joins anew. Without it such a node stays out until its data folder is emptied.",
    ),
];

/// The key of a path.
pub(crate) fn find(path: &str) -> Option<&'static KeyDoc> {
    KEYS.iter().find(|key| key.path == path)
}

/// The sections, each once, in order.
pub(crate) fn sections() -> Vec<&'static str> {
    let mut sections: Vec<&'static str> = KEYS.iter().map(KeyDoc::section).collect();
    sections.dedup();
    sections
}

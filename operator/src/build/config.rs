//! The configuration of the nodes: what the user gave and what the operator owns, read together by the same reader that
//! the node has, so that what is wrong is found before any pod sees it.

use debros_config::{Config, ConfigError};
use serde_json::{Value, json};

use super::{names, secret_name};
use crate::crd::DebrosCluster;
use crate::crd::node_config::OWNED;
use crate::names::{ADMIN_PORT, HTTP_PORT, P2P_PORT, Role};

/// The file's name in its folder.
pub(super) const FILE: &str = "node.yaml";
/// Where the configuration is mounted.
pub(super) const FOLDER: &str = "/etc/debros/config";
/// Where the cluster secret is mounted.
pub(super) const SECRET_FOLDER: &str = "/etc/debros/secret";
/// Where the certificate is mounted.
pub(super) const TLS_FOLDER: &str = "/etc/debros/tls";
/// Where the volume is mounted.
pub(super) const DATA_FOLDER: &str = "/var/lib/debros";
/// The node's folder on the volume: a volume's own root may hold `lost+found`, and its mode is the driver's business.
const NODE_FOLDER: &str = "/var/lib/debros/node";

/// A configuration, in force and as text.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    /// For nodes to read.
    pub yaml: String,
    /// What of it needs a restart when it changes.
    pub restart_relevant: String,
    /// What nodes log; changed without a restart.
    pub log_level: String,
    /// What the node's reader thinks its writer should know.
    pub warnings: Vec<String>,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigProblem {
    /// A key that follows from the rest of the resource.
    #[error("spec.config.{key} is owned by the operator: {instead}; remove it")]
    Owned {
        /// Which.
        key: String,
        /// What to do instead.
        instead: &'static str,
    },
    /// The node would refuse it.
    #[error("spec.config is refused: {0}")]
    Refused(#[source] ConfigError),
}

/// The configuration of a set's nodes.
///
/// # Errors
/// When the node would refuse it.
pub fn render(
    cluster: &DebrosCluster,
    role: Role,
    cluster_id: Option<&str>,
) -> Result<Rendered, ConfigProblem> {
    let given = &cluster.spec.config.0;
    for (path, instead) in OWNED {
        let (section, key) = path.split_once('.').unwrap_or_default();
        if given.get(section).is_some_and(|keys| keys.contains_key(key)) {
            return Err(ConfigProblem::Owned { key: (*path).to_owned(), instead });
        }
    }
    let mut all = serde_json::to_value(given).unwrap_or_default();
    merge(&mut all, owned(cluster, role));
    let mut pinned = all.clone();
    if let Some(id) = cluster_id {
        pinned["cluster"]["id"] = json!(id);
    }
    // Only what was said: a key that is new in this version would be unknown to nodes of the one before.
    let yaml = serde_saphyr::to_string(&pinned).expect("JSON has a YAML form");
    let loaded = Config::from_yaml(&yaml).map_err(ConfigProblem::Refused)?;
    // What only counts before a node has joined, and what it can be told while it runs.
    forget(&mut all, "discovery", "bootstrap_peers");
    forget(&mut all, "logging", "level");
    Ok(Rendered {
        yaml,
        restart_relevant: all.to_string(),
        log_level: loaded.config.logging.level,
        warnings: loaded.warnings.into_iter().map(|warning| warning.message).collect(),
    })
}

/// A section that holds nothing else is forgotten, too: whether it was written says nothing.
fn forget(all: &mut Value, section: &str, key: &str) {
    let Some(sections) = all.as_object_mut() else { return };
    let Some(keys) = sections.get_mut(section).and_then(Value::as_object_mut) else { return };
    keys.remove(key);
    if keys.is_empty() {
        sections.remove(section);
    }
}

fn owned(cluster: &DebrosCluster, role: Role) -> Value {
    let (spec, names) = (&cluster.spec, names(cluster));
    let bootstrap_peers: Vec<String> =
        (0..spec.bootstrap.replicas).map(|ordinal| names.address(Role::Bootstrap, ordinal)).collect();
    let node_type = match role {
        Role::Bootstrap => "bootstrap",
        Role::Peer => "node",
    };
    let mut security =
        json!({ "allow_insecure_listeners": spec.tls.is_none(), "enable_tls": spec.tls.is_some() });
    if spec.tls.is_some() {
        security["certificate_file"] = json!(format!("{TLS_FOLDER}/tls.crt"));
        security["private_key_file"] = json!(format!("{TLS_FOLDER}/tls.key"));
    }
    if secret_name(cluster).is_some() {
        security["cluster_secret_file"] = json!(format!("{SECRET_FOLDER}/{}", crate::names::SECRET_KEY));
    }
    json!({
        "node": {
            "type": node_type,
            "data_dir": NODE_FOLDER,
            "listen_addresses": [
                format!("/ip4/0.0.0.0/tcp/{P2P_PORT}"),
                format!("/ip4/0.0.0.0/udp/{P2P_PORT}/quic-v1"),
            ],
        },
        "database": {
            "replication_factor": spec.replication_factor,
            "rqlite_port": HTTP_PORT,
            "http_address": "0.0.0.0",
        },
        "discovery": { "bootstrap_peers": bootstrap_peers, "enable_mdns": false },
        "security": security,
        "admin": { "address": "0.0.0.0", "port": ADMIN_PORT },
        // A pod that is there is wanted, whoever its volume vouches for.
        "cluster": { "lost_after": spec.node_loss_delay, "rejoin": true },
    })
}

/// Lays keys over keys.
fn merge(below: &mut Value, above: Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                merge(below.entry(key).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above,
    }
}

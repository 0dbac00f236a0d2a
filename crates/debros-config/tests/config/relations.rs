//! What cannot stand together, what is allowed but worth a warning, and what programs may not build.

use debros_config::{Config, Interval};

use crate::{problems, valid, warnings};

const PEER: &str = "discovery: { bootstrap_peers: [/ip4/127.0.0.1/tcp/4001] }\n";

fn with_peer(text: &str) -> String {
    format!("{PEER}{text}")
}

#[test]
fn tls_needs_both_files() {
    assert_eq!(
        problems("security:\n  enable_tls: true\n"),
        [
            "`security.certificate_file` is missing: `security.enable_tls` needs the PEM file of a certificate chain",
            "`security.private_key_file` is missing: `security.enable_tls` needs the PEM file of a private key",
        ]
    );
    assert_eq!(problems("security: { enable_tls: true, certificate_file: a }").len(), 1);
    let complete = "security: { enable_tls: true, certificate_file: a, private_key_file: b }";
    assert!(warnings(&with_peer(complete)).is_empty());
    assert_eq!(
        warnings(&with_peer("security: { certificate_file: a }")),
        ["the certificate is not used, because `security.enable_tls` is false; set it to true"]
    );
}

#[test]
fn plain_listeners_stay_on_loopback_unless_switched_off_by_name() {
    let exposed = "database:\n  http_address: 0.0.0.0\nadmin:\n  address: '::'\n";
    assert_eq!(
        problems(exposed),
        [
            "line 2: `database.http_address`: 0.0.0.0 can be reached from other machines, which needs TLS; set \
             `security.enable_tls` with its two files, or 127.0.0.1, or `security.allow_insecure_listeners: true`",
            "line 4: `admin.address`: :: can be reached from other machines, which needs TLS; set \
             `security.enable_tls` with its two files, or 127.0.0.1, or `security.allow_insecure_listeners: true`",
        ]
    );
    let tls = "security: { enable_tls: true, certificate_file: a, private_key_file: b }";
    assert!(warnings(&with_peer(&format!("{exposed}{tls}"))).is_empty());
    assert_eq!(
        warnings(&with_peer(&format!("{exposed}security: {{ allow_insecure_listeners: true }}"))),
        [
            "0.0.0.0:5001 is reachable from other machines and speaks plain HTTP, as was asked for",
            "[::]:9001 is reachable from other machines and speaks plain HTTP, as was asked for",
        ]
    );
    for loopback in ["127.0.0.2", "::1", "::ffff:127.0.0.1"] {
        assert!(warnings(&with_peer(&format!("admin: {{ address: '{loopback}' }}"))).is_empty());
    }
}

#[test]
fn listeners_do_not_share_a_port() {
    assert_eq!(
        problems("admin:\n  port: 5001\n"),
        [
            "line 2: `admin.port`: port 5001 is also that of `database.rqlite_port`; choose another for one of them"
        ]
    );
    assert_eq!(
        problems("node:\n  listen_addresses: [/ip4/127.0.0.1/tcp/5001]\n"),
        [
            "`database.rqlite_port`: port 5001 is also that of `node.listen_addresses`; choose another for one of them"
        ]
    );
    assert_eq!(
        problems("node:\n  listen_addresses: [/ip4/0.0.0.0/tcp/7, /ip4/127.0.0.1/tcp/7]\n"),
        ["line 2: `node.listen_addresses`: port 7 is listed twice for the same address; remove one"]
    );
    // TCP beside QUIC, IPv4 beside IPv6, another address, and any free port.
    valid("node: { listen_addresses: [/ip4/0.0.0.0/tcp/7, /ip4/0.0.0.0/udp/7/quic-v1, '/ip6/::/tcp/7'] }");
    valid("node: { listen_addresses: [/ip4/127.0.0.2/tcp/5001] }");
    valid(
        "node: { listen_addresses: [/ip4/127.0.0.1/tcp/0] }\ndatabase: { rqlite_port: 0 }\nadmin: { port: 0 }",
    );
}

#[test]
fn a_node_listens_somewhere() {
    let expected = "`node.listen_addresses`: at least one address is needed, such as /ip4/127.0.0.1/tcp/4001";
    assert_eq!(problems("node:\n  listen_addresses: []\n"), [format!("line 2: {expected}")]);
    // A wrong item is not a missing one.
    assert_eq!(problems("node:\n  listen_addresses: [x]\n").len(), 1);
}

#[test]
fn relations_wait_until_every_value_is_right() {
    let text = "database:\n  http_address: 0.0.0.0\nsecurity:\n  enable_tsl: true\n";
    assert_eq!(problems(text), ["line 4: unknown key `security.enable_tsl`; did you mean `enable_tls`?"]);
}

#[test]
fn open_admission_is_told() {
    let open = with_peer("node: { listen_addresses: [/ip4/127.0.0.1/tcp/1, /ip4/0.0.0.0/tcp/2] }\n");
    assert_eq!(
        warnings(&open),
        [
            "admission is open: whoever can reach /ip4/0.0.0.0/tcp/2 may join this cluster and read all of it; set \
          `security.cluster_secret_file` to a file that all members share, or listen on 127.0.0.1 only"
        ]
    );
    assert!(warnings(&format!("{open}security: {{ cluster_secret_file: secret }}")).is_empty());
}

#[test]
fn a_node_that_knows_nobody_is_told() {
    assert_eq!(
        warnings(""),
        [
            "this node knows nobody to join and waits until a member dials it; set `discovery.bootstrap_peers` to the \
          address of any member, or `node.type: bootstrap` to begin a cluster"
        ]
    );
    assert!(warnings("node: { type: bootstrap }").is_empty());
    assert!(warnings("discovery: { enable_mdns: true }").is_empty());
    assert!(warnings(PEER).is_empty());
}

#[test]
fn an_even_number_of_replicas_is_told() {
    assert_eq!(
        warnings(&with_peer("database: { replication_factor: 4 }")),
        ["4 replicas survive no more failures than 3; an odd number is better"]
    );
}

#[test]
fn what_relaxed_writes_give_up_is_told_for_each_namespace() {
    assert_eq!(
        warnings(&with_peer("storage: { relaxed_namespaces: [cache, app.sessions] }")),
        ["cache", "app.sessions"].map(|namespace| format!(
            "writes of the namespace `{namespace}` are acknowledged before they are on disk: they survive the end of a \
             process, but are lost if as many replicas as a quorum has lose power within some tenths of a second; list \
             only namespaces whose keys can be made anew"
        ))
    );
    assert!(warnings(&with_peer("storage: { relaxed_namespaces: [] }")).is_empty());
}

#[test]
fn the_storage_has_a_folder_of_its_own() {
    assert_eq!(
        problems("node:\n  data_dir: /data\nstorage:\n  data_dir: /data\n"),
        [
            "line 4: `storage.data_dir`: /data is also that of `node.data_dir`; give the storage a folder of its own"
        ]
    );
    assert_eq!(
        problems("node: { data_dir: /data }\ndatabase: { data_dir: /data/storage }"),
        [
            "`storage.data_dir`: /data/storage is also that of `database.data_dir`; give the storage a folder of its own"
        ]
    );
}

#[test]
fn keys_of_older_configurations_are_answered() {
    let text =
        with_peer("database:\n  rqlite_raft_port: 7001\n  rqlite_join_address: 'http://localhost:5001'\n");
    let loaded = valid(&text);
    assert_eq!(
        loaded.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "`database.rqlite_raft_port` has no effect: Raft shares the peer-to-peer listener of \
             `node.listen_addresses`; remove this key",
            "`database.rqlite_join_address` has no effect: nodes join through `discovery.bootstrap_peers`; list the \
             address of any member there and remove this key",
        ]
    );
    assert!(!loaded.config.to_yaml().contains("rqlite_raft_port"));
}

#[test]
fn only_a_bootstrap_node_without_peers_or_pinned_cluster_initialises() {
    let initialises = |text: &str| valid(text).config.may_initialise();
    assert!(initialises("node: { type: bootstrap }"));
    assert!(!initialises("node: { type: node }"));
    assert!(!initialises(&with_peer("node: { type: bootstrap }")));
    assert!(!initialises("node: { type: bootstrap }\ncluster: { id: 0123456789ABCDEF0123456789abcdef }"));
}

#[test]
fn values_built_by_a_program_are_checked_alike() {
    let mut config = Config::default();
    config.database.replication_factor = 9;
    config.node.zone = Some("a b".to_owned());
    config.discovery.discovery_interval = Interval::from_milliseconds(u64::MAX);
    config.admin.port = 5001;
    assert_eq!(
        config.validate().unwrap_err().to_string(),
        "the configuration is not valid:\n  \
         `node.zone`: expected up to 63 letters, digits, `-`, `_` or `.`, found `a b`\n  \
         `database.replication_factor`: expected a whole number from 1 to 7, found `9`\n  \
         `discovery.discovery_interval`: expected a duration of at least 100ms, such as 500ms, 10s or 24h, found \
         `5124095576030h25m51s615ms`: the longest is 366d\n  \
         `admin.port`: port 5001 is also that of `database.rqlite_port`; choose another for one of them"
    );
    Config::default().validate().unwrap();
}

#[cfg(unix)]
#[test]
fn a_path_that_is_not_text_is_refused_and_prints() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};
    let mut config = Config::default();
    config.node.data_dir = Path::new(OsStr::from_bytes(&[0xff])).to_owned();
    assert!(config.to_yaml().contains("data_dir"));
    let error = config.validate().unwrap_err();
    assert_eq!(error.problems()[0].message, "`node.data_dir`: expected a path in UTF-8, found `\u{fffd}`");
}

//! The files a user starts with, and files that are none.

use std::{collections::BTreeSet, ffi::OsString, fs, net::SocketAddr, path::Path};

use debros_config::{CONFIG_BYTES_MAX, Config, ConfigError, Interval, Loaded, NodeType};

use crate::valid;

fn shipped(name: &str) -> Loaded {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs").join(name);
    Config::load(&path, nothing()).unwrap_or_else(|error| panic!("{error}"))
}

fn nothing() -> impl Iterator<Item = (OsString, OsString)> {
    std::iter::empty()
}

fn listening(config: &Config) -> Vec<String> {
    config.node.listen_addresses.iter().map(ToString::to_string).collect()
}

#[test]
fn the_bootstrap_file_begins_a_cluster() {
    let Loaded { config, warnings } = shipped("bootstrap.yaml");
    assert_eq!(config.node.node_type, NodeType::Bootstrap);
    assert!(config.may_initialise());
    assert_eq!(config.node.data_dir, Path::new("./data/bootstrap"));
    assert_eq!(listening(&config), ["/ip4/0.0.0.0/tcp/4001", "/ip4/0.0.0.0/udp/4001/quic-v1"]);
    assert_eq!(config.database.rqlite_port, 5001);
    assert!(config.not_in_effect().is_empty());
    assert_eq!(
        warnings.iter().map(|warning| warning.key).collect::<Vec<_>>(),
        ["security.cluster_secret_file"]
    );
}

#[test]
fn the_node_file_joins_it() {
    let Loaded { config, warnings } = shipped("node.yaml");
    assert_eq!(config.node.node_type, NodeType::Node);
    assert!(!config.may_initialise());
    assert_eq!(config.node.data_dir, Path::new("./data/node"));
    assert_eq!(listening(&config), ["/ip4/0.0.0.0/tcp/4002"]);
    assert_eq!(config.database.rqlite_port, 5002);
    assert_eq!(config.discovery.discovery_interval, Interval::from_seconds(10));
    let peers: Vec<_> = config.discovery.bootstrap_peers.iter().map(|peer| peer.as_str()).collect();
    assert_eq!(peers, ["/ip4/127.0.0.1/tcp/4001"]);
    assert!(config.not_in_effect().is_empty());
    assert_eq!(
        warnings.iter().map(|warning| warning.key).collect::<Vec<_>>(),
        ["security.cluster_secret_file"]
    );
}

#[test]
fn both_files_run_on_one_machine() {
    let configs = [shipped("bootstrap.yaml").config, shipped("node.yaml").config];
    let ports = |config: &Config| -> Vec<u16> {
        let listen = config.node.listen_addresses.iter().map(|address| address.socket());
        // TCP and QUIC share a number without sharing a port.
        let tcp = listen.take(1).chain([config.http_socket(), config.admin_socket()]);
        tcp.map(|socket: SocketAddr| socket.port()).collect()
    };
    let all: Vec<u16> = configs.iter().flat_map(ports).collect();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "{all:?}");
    assert_ne!(configs[0].database_dir(), configs[1].database_dir());
    assert_ne!(configs[0].storage_dir(), configs[1].storage_dir());
}

#[test]
fn an_empty_file_is_a_node_on_loopback() {
    for text in ["", "\n", "# nothing but a comment\n", "---\n", "node:\n", "{}", "null", "\u{feff}"] {
        let Loaded { config, warnings } = valid(text);
        let mut default = Config::default();
        default.database.data_dir = Some(default.database_dir());
        default.storage.data_dir = Some(default.storage_dir());
        assert_eq!(config, default, "{text:?}");
        assert!(config.node.listen_addresses.iter().all(|address| address.is_loopback()));
        assert!(!config.may_initialise());
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert_eq!(warnings[0].key, "discovery.bootstrap_peers");
    }
}

#[test]
fn the_database_and_the_storage_follow_the_data_folder() {
    let config = valid("node: { data_dir: /var/lib/debros }").config;
    assert_eq!(config.database_dir(), Path::new("/var/lib/debros/database"));
    let config = valid("node: { data_dir: /var/lib/debros }\ndatabase: { data_dir: /fast }").config;
    assert_eq!(config.database_dir(), Path::new("/fast"));
    assert_eq!(config.storage_dir(), Path::new("/var/lib/debros/storage"));
    let config = valid("node: { data_dir: /var/lib/debros }\nstorage: { data_dir: /large }").config;
    assert_eq!(config.storage_dir(), Path::new("/large"));
}

#[test]
fn a_problem_in_a_file_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.yaml");
    fs::write(&path, "node:\n  zon: a\n").unwrap();
    let error = Config::load(&path, nothing()).unwrap_err();
    let expected = format!(
        "the configuration {} is not valid:\n  line 2: unknown key `node.zon`; did you mean `zone`?",
        path.display()
    );
    assert_eq!(error.to_string(), expected);
}

#[test]
fn what_is_no_configuration_file_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.yaml");

    let error = Config::load(&path, nothing()).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }), "{error}");
    assert_eq!(
        error.to_string(),
        format!(
            "cannot read the configuration file {}; check that the path is right and the file readable",
            path.display()
        )
    );
    assert!(error.problems().is_empty());

    let error = Config::load(folder.path(), nothing()).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }), "{error}");

    fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    let error = Config::load(&path, nothing()).unwrap_err();
    assert!(matches!(error, ConfigError::NotText { .. }), "{error}");

    let comment = "#".repeat(CONFIG_BYTES_MAX as usize);
    fs::write(&path, &comment).unwrap();
    Config::load(&path, nothing()).unwrap();
    fs::write(&path, comment + "#").unwrap();
    let error = Config::load(&path, nothing()).unwrap_err();
    assert!(matches!(error, ConfigError::TooLarge { .. }), "{error}");
}

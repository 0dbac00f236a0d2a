//! What the environment overrides, and what it may not contain.

use debros_config::{Config, ConfigError, Loaded};

fn with(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    Config::from_yaml_and_environment(text, variables.iter().copied())
}

fn problems(variables: &[(&str, &str)]) -> Vec<String> {
    with("", variables).unwrap_err().problems().iter().map(ToString::to_string).collect()
}

#[test]
fn the_environment_wins_over_the_file_and_the_file_over_the_default() {
    let text = "database: { rqlite_port: 6001, replication_factor: 5 }";
    let config = with(text, &[("DEBROS_DATABASE__RQLITE_PORT", "7001")]).unwrap().config;
    assert_eq!(config.database.rqlite_port, 7001);
    assert_eq!(config.database.replication_factor, 5);
    assert_eq!(config.admin.port, 9001);
}

#[test]
fn a_list_replaces_the_list_of_the_file() {
    let text = "discovery: { bootstrap_peers: [/ip4/10.0.0.1/tcp/4001] }";
    let value = "/dns4/a.example/tcp/4001, /ip6/::1/udp/4001/quic,";
    let config = with(text, &[("DEBROS_DISCOVERY__BOOTSTRAP_PEERS", value)]).unwrap().config;
    let peers: Vec<_> = config.discovery.bootstrap_peers.iter().map(|peer| peer.as_str()).collect();
    assert_eq!(peers, ["/dns4/a.example/tcp/4001", "/ip6/::1/udp/4001/quic-v1"]);
    let config = with(text, &[("DEBROS_DISCOVERY__BOOTSTRAP_PEERS", "")]).unwrap().config;
    assert!(config.discovery.bootstrap_peers.is_empty());
}

#[test]
fn an_empty_variable_takes_an_optional_value_away() {
    let config = with("node: { zone: a }", &[("DEBROS_NODE__ZONE", "")]).unwrap().config;
    assert_eq!(config.node.zone, None);
    assert_eq!(
        problems(&[("DEBROS_SECURITY__ENABLE_TLS", "")]),
        [
            "environment variable DEBROS_SECURITY__ENABLE_TLS: `security.enable_tls`: expected `true` or `false`, found \
          nothing"
        ]
    );
}

#[test]
fn the_level_of_the_log_has_two_names_and_ours_wins() {
    let text = "logging: { level: warn }";
    assert_eq!(with(text, &[("LOG_LEVEL", "DEBUG")]).unwrap().config.logging.level, "debug");
    assert_eq!(with(text, &[("LOG_LEVEL", "")]).unwrap().config.logging.level, "warn");
    let both = [("LOG_LEVEL", "debug"), ("DEBROS_LOGGING__LEVEL", "trace")];
    assert_eq!(with(text, &both).unwrap().config.logging.level, "trace");
    assert_eq!(
        problems(&[("LOG_LEVEL", "loud")]),
        [
            "environment variable LOG_LEVEL: `logging.level`: expected a level (off, error, warn, info, debug, trace) or a \
          list such as info,debros_node=debug, found `loud`"
        ]
    );
}

#[test]
fn an_unknown_variable_names_the_nearest() {
    assert_eq!(
        problems(&[
            ("DEBROS_DATABASE__REPLICATION_FACTER", "3"),
            ("DEBROS_DATABSE__RQLITE_PORT", "1"),
            ("DEBROS_NODE__ADMIN__PORT", "1"),
            ("DEBROS_XYZZY__FROBNICATE", "1"),
            ("DEBROS_database__rqlite_port", "1"),
        ]),
        [
            "environment variable DEBROS_DATABASE__REPLICATION_FACTER: there is no such key; did you mean \
             DEBROS_DATABASE__REPLICATION_FACTOR?",
            "environment variable DEBROS_DATABSE__RQLITE_PORT: there is no such key; did you mean \
             DEBROS_DATABASE__RQLITE_PORT?",
            "environment variable DEBROS_NODE__ADMIN__PORT: there is no such key; the sections are node, database, \
             storage, discovery, security, logging, admin, tracing, cluster",
            "environment variable DEBROS_XYZZY__FROBNICATE: there is no such key; the sections are node, database, \
             storage, discovery, security, logging, admin, tracing, cluster",
            "environment variable DEBROS_database__rqlite_port: there is no such key; did you mean \
             DEBROS_DATABASE__RQLITE_PORT?",
        ]
    );
}

#[test]
fn variables_of_others_are_left_alone() {
    let others = [
        ("DEBROS_BOOTSTRAP", "/ip4/127.0.0.1/tcp/4001"),
        ("DEBROS_SERVICE_HOST", "10.0.0.1"),
        ("DEBROS_ADMIN_SERVICE_PORT", "9001"),
        ("DEBROS_ADMIN_PORT", "tcp://10.0.0.1:9001"),
        ("DEBROS_CLUSTER_SECRET_FILE", "/secret"),
        ("NODE__ZONE", "a"),
        ("debros_node__zone", "a"),
        ("PATH", "/bin"),
    ];
    assert_eq!(with("", &others).unwrap(), with("", &[]).unwrap());
}

#[test]
fn one_underscore_instead_of_two_is_refused() {
    assert_eq!(
        problems(&[("DEBROS_ADMIN_PORT", "9002"), ("DEBROS_NODE_DATA_DIR", "/data")]),
        [
            "environment variable DEBROS_ADMIN_PORT: there are two underscores behind the section: DEBROS_ADMIN__PORT",
            "environment variable DEBROS_NODE_DATA_DIR: there are two underscores behind the section: \
             DEBROS_NODE__DATA_DIR",
        ]
    );
}

#[test]
fn wrong_values_name_the_variable() {
    assert_eq!(
        problems(&[
            ("DEBROS_DISCOVERY__DISCOVERY_INTERVAL", "10"),
            ("DEBROS_NODE__LISTEN_ADDRESSES", "/ip4/127.0.0.1/tcp/1,4002"),
        ]),
        [
            "environment variable DEBROS_DISCOVERY__DISCOVERY_INTERVAL: `discovery.discovery_interval`: expected a \
             duration of at least 100ms, such as 500ms, 10s or 24h, found `10`: a unit is missing; write `10s` for \
             seconds or `10ms` for milliseconds",
            "environment variable DEBROS_NODE__LISTEN_ADDRESSES: `node.listen_addresses`: expected an address to listen \
             on, such as /ip4/0.0.0.0/tcp/4001, found `4002`: a multiaddr begins with `/`, as in /ip4/0.0.0.0/tcp/4001",
        ]
    );
}

#[test]
fn a_relation_names_the_variable_that_broke_it() {
    assert_eq!(
        problems(&[("DEBROS_ADMIN__PORT", "5001")]),
        [
            "environment variable DEBROS_ADMIN__PORT: `admin.port`: port 5001 is also that of `database.rqlite_port`; \
          choose another for one of them"
        ]
    );
}

#[cfg(unix)]
#[test]
fn a_value_that_is_not_text_is_refused() {
    use std::{ffi::OsString, os::unix::ffi::OsStringExt};
    let value = OsString::from_vec(vec![0xff]);
    let error = Config::from_yaml_and_environment(
        "",
        [("DEBROS_NODE__DATA_DIR".into(), value)] as [(OsString, _); 1],
    );
    assert_eq!(
        error.unwrap_err().problems()[0].to_string(),
        "environment variable DEBROS_NODE__DATA_DIR: `node.data_dir`: the value is not UTF-8 text"
    );
}

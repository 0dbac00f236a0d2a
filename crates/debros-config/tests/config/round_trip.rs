//! What is printed reads as the same configuration, whatever stands in it.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use debros_config::{
    Admin, ByteSize, Cluster, Config, Database, Discovery, Interval, ListenAddress, LogFormat, Logging, Node,
    NodeType, PeerAddress, Ratio, Security, Storage, Tracing, Transport,
};
use proptest::{
    collection::vec,
    option,
    prelude::{Just, Strategy, any, prop, prop_assert_eq, prop_compose, prop_oneof, proptest},
};

fn name() -> impl Strategy<Value = Option<String>> {
    option::of("[A-Za-z0-9._-]{1,63}")
}

/// Words that YAML likes to read as something else come up often enough.
fn path() -> impl Strategy<Value = PathBuf> {
    let odd = prop::sample::select(vec![
        "~", "null", "yes", "1.0", "0x10", "- a", "a: b", "#c", "'", "\"", "*a", "|", " a ",
    ]);
    prop_oneof![odd.prop_map(str::to_owned), "[^\0\u{fffd}]{1,40}"].prop_map(PathBuf::from)
}

/// Loopback, so that TLS is not asked for.
fn loopback() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 3]>().prop_map(|[b, c, d]| IpAddr::from([127, b, c, d])),
        Just(Ipv6Addr::LOCALHOST.into())
    ]
}

fn listen_address(index: u16) -> impl Strategy<Value = ListenAddress> {
    let transport = prop_oneof![Just(Transport::Tcp), Just(Transport::Quic)];
    // A port of its own for each, or two of them may clash.
    let ip = prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u16; 8]>().prop_map(IpAddr::from)];
    (ip, transport)
        .prop_map(move |(ip, transport)| ListenAddress::new(SocketAddr::new(ip, 100 + index), transport))
}

fn peer() -> impl Strategy<Value = PeerAddress> {
    let host = prop_oneof![
        (1..=255_u8, any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| format!("/ip4/{a}.{b}.{c}.{d}")),
        (1..=u16::MAX, any::<[u16; 7]>()).prop_map(|(a, r)| format!(
            "/ip6/{}",
            Ipv6Addr::from([a, r[0], r[1], r[2], r[3], r[4], r[5], r[6]])
        )),
        "/(dns|dns4|dns6)/[a-z0-9]{1,20}(\\.[a-z0-9-]{1,20}){0,3}",
    ];
    let transport = "/(tcp/[1-9][0-9]{0,3}|udp/[1-9][0-9]{0,3}/quic(-v1)?)";
    let pinned = "(/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN)?";
    (host, transport, pinned)
        .prop_map(|(host, transport, pinned)| format!("{host}{transport}{pinned}").parse().unwrap())
}

prop_compose! {
    fn node()(
        id in name(),
        bootstrap in any::<bool>(),
        first in listen_address(0),
        second in option::of(listen_address(1)),
        data_dir in path(),
        max_connections in 1..=65_535_u32,
        zone in name(),
    ) -> Node {
        Node {
            id,
            node_type: if bootstrap { NodeType::Bootstrap } else { NodeType::Node },
            listen_addresses: [first].into_iter().chain(second).collect(),
            data_dir,
            max_connections,
            zone,
        }
    }
}

prop_compose! {
    fn database()(
        data_dir in option::of(path()),
        replication_factor in 1..=7_u8,
        bytes in (1_u64 << 20)..=(1 << 44),
        backup in option::of(10_000..=31_622_400_000_u64),
        rqlite_port in 1_000..2_000_u16,
        http_address in loopback(),
    ) -> Database {
        Database {
            data_dir,
            replication_factor,
            max_database_size: ByteSize::from_bytes(bytes),
            backup_interval: backup.map(Interval::from_milliseconds),
            rqlite_port,
            http_address,
        }
    }
}

prop_compose! {
    fn storage()(
        data_dir in option::of(path()),
        relaxed_namespaces in vec("[a-z0-9][a-z0-9._-]{0,62}", 0..4),
        bytes in (64_u64 << 20)..=(1 << 46),
        tombstone_life in 60_000..=31_622_400_000_u64,
        repair_interval in 100..=31_622_400_000_u64,
    ) -> Storage {
        // A folder of its own.
        let data_dir = data_dir.map(|path| PathBuf::from(format!("storage {}", path.display())));
        Storage {
            data_dir,
            relaxed_namespaces,
            max_size: ByteSize::from_bytes(bytes),
            tombstone_life: Interval::from_milliseconds(tombstone_life),
            repair_interval: Interval::from_milliseconds(repair_interval),
        }
    }
}

prop_compose! {
    fn discovery()(
        bootstrap_peers in vec(peer(), 0..4),
        switches in any::<[bool; 4]>(),
        dht_prefix in "(/[a-z0-9.#:'\"-]{1,20}){1,4}",
        milliseconds in 100..=31_622_400_000_u64,
    ) -> Discovery {
        Discovery {
            bootstrap_peers,
            enable_mdns: switches[0],
            enable_dht: switches[1],
            dht_prefix,
            discovery_interval: Interval::from_milliseconds(milliseconds),
            enable_peer_exchange: switches[2],
            enable_saved_peers: switches[3],
        }
    }
}

prop_compose! {
    fn rest()(
        switches in any::<[bool; 4]>(),
        files in any::<[bool; 3]>(),
        file in path(),
        level in prop::sample::select(vec!["off", "warn", "info,debros_node::raft=trace", "debros_net=debug"]),
        output_file in option::of(path()),
        address in loopback(),
        port in 2_000..3_000_u16,
        probe_interval in 0..=31_622_400_000_u64,
        otlp_endpoint in option::of("https?://[a-z0-9.]{1,20}(:[0-9]{1,4})?(/[a-z?=#&]{0,9})?"),
        (millionths, slow) in (0..=1_000_000_u32, 1..=31_622_400_000_u64),
        id in option::of("[0-9a-f]{32}"),
        (lost_after, rejoin) in (10_000..=31_622_400_000_u64, any::<bool>()),
    ) -> (Security, Logging, Admin, Tracing, Cluster) {
        let [auth_enabled, enable_tls, allow_insecure_listeners, json] = switches;
        let security = Security {
            auth_enabled,
            enable_tls,
            certificate_file: (enable_tls || files[0]).then(|| file.clone()),
            private_key_file: (enable_tls || files[1]).then(|| file.clone()),
            cluster_secret_file: files[2].then_some(file),
            allow_insecure_listeners,
        };
        let format = if json { LogFormat::Json } else { LogFormat::Text };
        let logging = Logging { level: level.to_owned(), format, output_file };
        let admin = Admin { address, port, probe_interval: Interval::from_milliseconds(probe_interval) };
        let tracing = Tracing {
            otlp_endpoint,
            sampling_ratio: Ratio::from_millionths(millionths),
            slow_threshold: Interval::from_milliseconds(slow),
        };
        let cluster = Cluster { id, lost_after: Interval::from_milliseconds(lost_after), rejoin };
        (security, logging, admin, tracing, cluster)
    }
}

proptest! {
    #[test]
    fn a_printed_configuration_reads_as_itself(
        node in node(),
        database in database(),
        storage in storage(),
        discovery in discovery(),
        (security, logging, admin, tracing, cluster) in rest(),
    ) {
        let mut config =
            Config { node, database, storage, discovery, security, logging, admin, tracing, cluster };
        let yaml = config.to_yaml();
        let loaded = Config::from_yaml(&yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
        prop_assert_eq!(&loaded.config.to_yaml(), &yaml);
        config.database.data_dir = Some(config.database_dir());
        config.storage.data_dir = Some(config.storage_dir());
        prop_assert_eq!(loaded.config, config);
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "[ -~\n]{0,200}") {
        drop(Config::from_yaml(&text));
    }

    #[test]
    fn no_value_makes_the_reader_panic(value in any::<String>()) {
        let variables = debros_config::KEYS.iter().map(|key| (key.variable(), value.replace('\0', "")));
        drop(Config::from_yaml_and_environment("", variables));
    }
}

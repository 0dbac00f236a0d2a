//! Every message about a single key or value, word for word: they are what a user has to go by.

use crate::{problems, valid};

#[test]
fn unknown_keys_name_the_nearest() {
    let text = "node:\n  zon: a\n  listen_adresses: []\ndatabase:\n  replication_facter: 3\n  id: x\n  \
                frobnicate: 1\nreplication_factor: 3\ndatabse:\n  rqlite_port: 1\nxyzzy: 1\n";
    assert_eq!(
        problems(text),
        [
            "line 2: unknown key `node.zon`; did you mean `zone`?",
            "line 3: unknown key `node.listen_adresses`; did you mean `listen_addresses`?",
            "line 5: unknown key `database.replication_facter`; did you mean `replication_factor`?",
            "line 6: unknown key `database.id`; did you mean `node.id`?",
            "line 7: unknown key `database.frobnicate`; the keys of `database` are data_dir, replication_factor, \
             max_database_size, backup_interval, rqlite_port, http_address, rqlite_raft_port, rqlite_join_address",
            "line 8: unknown section `replication_factor`; did you mean `database.replication_factor`?",
            "line 9: unknown section `databse`; did you mean `database`?",
            "line 11: unknown section `xyzzy`; the sections are node, database, storage, discovery, security, logging, \
             admin, tracing, cluster",
        ]
    );
}

#[test]
fn wrong_shapes_are_told_with_what_stands_there() {
    let text = "node: [a]\ndatabase: 3\nlogging:\n  level:\n    a: b\n  format: [text]\ndiscovery:\n  \
                bootstrap_peers: /ip4/10.0.0.1/tcp/1\n  dht_prefix: {}\n";
    assert_eq!(
        problems(text),
        [
            "line 1: `node`: expected the keys of a section, found a list",
            "line 2: `database`: expected the keys of a section, found `3`",
            "line 4: `logging.level`: expected a level (off, error, warn, info, debug, trace) or a list such as \
             info,debros_node=debug, found keys of its own",
            "line 6: `logging.format`: expected `text` or `json`, found a list",
            "line 8: `discovery.bootstrap_peers`: expected a list, each item on a line of its own behind `- `, found \
             `/ip4/10.0.0.1/tcp/1`",
            "line 9: `discovery.dht_prefix`: expected the beginning of a protocol name, such as /debros, found keys of \
             its own",
        ]
    );
    assert_eq!(problems("- a\n"), ["line 1: expected sections such as `node:`, found a list"]);
    assert_eq!(problems("hello"), ["line 1: expected sections such as `node:`, found `hello`"]);
    assert_eq!(
        problems("discovery:\n  bootstrap_peers:\n    -\n    - [a]\n"),
        [
            "line 3: `discovery.bootstrap_peers`: expected the address of a peer, such as /dns4/host/tcp/4001, found \
             nothing",
            "line 4: `discovery.bootstrap_peers`: expected the address of a peer, such as /dns4/host/tcp/4001, found a \
             list",
        ]
    );
}

#[test]
fn what_is_not_yaml_is_told_with_its_line() {
    let deep = "[".repeat(5000);
    // The reasons are the library's; the line and that there is one problem are ours.
    let cases = [
        ("node: [a\n", "line 1: "),
        ("node:\n  zone: a\n  zone: b\n", "line 3: "),
        ("node:\n\tzone: a\n", "line 2: "),
        ("node: {}\n---\nadmin: {}\n", "line 3: "),
        ("node: {}\nadmin: *nobody\n", "line 2: "),
        ("? [a]\n: b\n", "line 1: "),
        ("node: \"a\n", "line 1: "),
        ("\0", "line 1: "),
        (deep.as_str(), "line 1: "),
    ];
    for (text, line) in cases {
        let problems = problems(text);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(&format!("{line}this is not valid YAML: ")), "{problems:?}");
        assert!(!problems[0].contains('\n'), "{problems:?}");
    }
    assert_eq!(
        problems("node:\n  zone: a\n  zone: b\n"),
        ["line 3: this is not valid YAML: the key `zone` is there twice; remove one"]
    );
    assert_eq!(
        problems("node: {}\n---\nadmin: {}\n"),
        ["line 3: this is not valid YAML: a second document begins here; keep one, without `---` between"]
    );
}

/// The message for one value of one key, without the part that is the same for all.
fn value_problem(section: &str, key: &str, value: &str) -> String {
    let problems = problems(&format!("{section}:\n  {key}: {value}\n"));
    assert_eq!(problems.len(), 1, "{problems:?}");
    let prefix = format!("line 2: `{section}.{key}`: expected ");
    problems[0].strip_prefix(&prefix).unwrap_or_else(|| panic!("{}", problems[0])).to_owned()
}

#[test]
fn numbers_and_words() {
    let cases = [
        ("security", "enable_tls", "yes", "`true` or `false`, found `yes`"),
        ("security", "enable_tls", "1", "`true` or `false`, found `1`"),
        ("security", "enable_tls", "True", "`true` or `false`, found `True`"),
        ("security", "enable_tls", "''", "`true` or `false`, found nothing"),
        ("database", "replication_factor", "0", "a whole number from 1 to 7, found `0`"),
        ("database", "replication_factor", "8", "a whole number from 1 to 7, found `8`"),
        ("database", "replication_factor", "3.0", "a whole number from 1 to 7, found `3.0`"),
        ("database", "replication_factor", "+3", "a whole number from 1 to 7, found `+3`"),
        ("database", "replication_factor", "0x3", "a whole number from 1 to 7, found `0x3`"),
        ("database", "replication_factor", "-1", "a whole number from 1 to 7, found `-1`"),
        ("database", "rqlite_port", "65536", "a whole number from 0 to 65535, found `65536`"),
        (
            "database",
            "rqlite_port",
            "99999999999999999999999999",
            "a whole number from 0 to 65535, found `99999999999999999999999999`",
        ),
        ("node", "max_connections", "0", "a whole number from 1 to 65535, found `0`"),
        ("node", "type", "leader", "`bootstrap` or `node`, found `leader`"),
        ("logging", "format", "xml", "`text` or `json`, found `xml`"),
        ("node", "zone", "eu west", "up to 63 letters, digits, `-`, `_` or `.`, found `eu west`"),
        ("node", "data_dir", "''", "a path in UTF-8, found nothing"),
        ("admin", "address", "localhost", "an IP address, such as 127.0.0.1 or ::1, found `localhost`"),
        ("cluster", "id", "abc", "a cluster id of 32 hexadecimal digits, found `abc`"),
        (
            "tracing",
            "otlp_endpoint",
            "host:4318",
            "a URL beginning with http:// or https://, found `host:4318`",
        ),
        (
            "tracing",
            "sampling_ratio",
            "2",
            "a number from 0 to 1 with at most six decimals, such as 0.01, found `2`",
        ),
        (
            "discovery",
            "dht_prefix",
            "debros",
            "the beginning of a protocol name, such as /debros, found `debros`",
        ),
        (
            "discovery",
            "dht_prefix",
            "/debros/",
            "the beginning of a protocol name, such as /debros, found `/debros/`",
        ),
    ];
    for (section, key, value, expected) in cases {
        assert_eq!(value_problem(section, key, value), expected);
    }
    let long = "x".repeat(1000);
    let expected = format!("`text` or `json`, found `{}...`", "x".repeat(80));
    assert_eq!(value_problem("logging", "format", &long), expected);
    assert_eq!(value_problem("logging", "format", r#""a\nb\e""#), r"`text` or `json`, found `a\nb\u{1b}`");
}

#[test]
fn durations() {
    let cases = [
        ("10", "`10`: a unit is missing; write `10s` for seconds or `10ms` for milliseconds"),
        ("10 s", "`10 s`: it has to be whole numbers, each with its unit, as in `1h30m`"),
        ("1.5h", "`1.5h`: it has to be whole numbers, each with its unit, as in `1h30m`"),
        ("soon", "`soon`: it has to be whole numbers, each with its unit, as in `1h30m`"),
        ("-1s", "`-1s`: it has to be whole numbers, each with its unit, as in `1h30m`"),
        ("''", "nothing: it has to be whole numbers, each with its unit, as in `1h30m`"),
        ("10sec", "`10sec`: `sec` is not a unit; use ms, s, m, h or d"),
        ("1h30", "`1h30`: a unit is missing; write `30s` for seconds or `30ms` for milliseconds"),
        ("367d", "`367d`: the longest is 366d"),
        ("99999999999999999999d", "`99999999999999999999d`: the longest is 366d"),
        ("99ms", "`99ms`"),
        ("0s", "`0s`"),
    ];
    for (value, expected) in cases {
        let expected = format!("a duration of at least 100ms, such as 500ms, 10s or 24h, found {expected}");
        assert_eq!(value_problem("discovery", "discovery_interval", value), expected);
    }
    let valid_cases =
        [("500ms", 500), ("10s", 10_000), ("24h", 86_400_000), ("1d", 86_400_000), ("1h30m5s7ms", 5_405_007)];
    for (value, milliseconds) in valid_cases {
        let loaded = valid(&format!("discovery: {{ discovery_interval: {value} }}"));
        assert_eq!(loaded.config.discovery.discovery_interval.as_duration().as_millis(), milliseconds);
    }
}

#[test]
fn sizes() {
    let cases = [
        ("1G", "`1G`: `G` is not a unit; use KiB, MiB, GiB or TiB (or KB, MB, GB, TB for powers of 1000)"),
        ("big", "`big`: it has to begin with a whole number"),
        (
            "1.5GiB",
            "`1.5GiB`: `.5GiB` is not a unit; use KiB, MiB, GiB or TiB (or KB, MB, GB, TB for powers of 1000)",
        ),
        ("99999999TiB", "`99999999TiB`: it is larger than any file can be"),
        ("1023KiB", "`1023KiB`"),
        ("17TiB", "`17TiB`"),
        ("0", "`0`"),
    ];
    for (value, expected) in cases {
        let expected = format!("a size from 1MiB to 16TiB, such as 64MiB, found {expected}");
        assert_eq!(value_problem("database", "max_database_size", value), expected);
    }
    let valid_cases = [
        ("64MiB", 64 << 20),
        ("64 mib", 64 << 20),
        ("1GB", 1_000_000_000),
        ("1073741824", 1 << 30),
        ("2000001B", 2_000_001),
    ];
    for (value, bytes) in valid_cases {
        let loaded = valid(&format!("database: {{ max_database_size: {value} }}"));
        assert_eq!(loaded.config.database.max_database_size.bytes(), bytes);
    }
}

#[test]
fn the_storage_within_its_bounds() {
    let size = |found: &str| format!("a size from 64MiB to 64TiB, such as 64MiB, found `{found}`");
    let duration = |min: &str, found: &str| {
        format!("a duration of at least {min}, such as 500ms, 10s or 24h, found `{found}`")
    };
    assert_eq!(value_problem("storage", "max_size", "63MiB"), size("63MiB"));
    assert_eq!(value_problem("storage", "max_size", "65TiB"), size("65TiB"));
    assert_eq!(value_problem("storage", "tombstone_life", "59s"), duration("1m", "59s"));
    assert_eq!(value_problem("storage", "repair_interval", "99ms"), duration("100ms", "99ms"));
    valid("storage: { max_size: 64MiB, tombstone_life: 1m, repair_interval: 100ms }");
}

#[test]
fn namespaces() {
    let long = "n".repeat(64);
    for wrong in ["App", "a b", "-a", ".a", "_a", "a/b", "é", &long] {
        assert_eq!(
            problems(&format!("storage:\n  relaxed_namespaces:\n    - ok\n    - '{wrong}'\n")),
            [format!(
                "line 4: `storage.relaxed_namespaces`: expected a namespace: up to 63 lower-case letters, digits, `-`, `_` \
                 or `.`, a letter or digit first, found `{wrong}`"
            )]
        );
    }
    let loaded = valid(&format!("storage: {{ relaxed_namespaces: [a, 0-b_c.d, {}] }}", &long[1..]));
    assert_eq!(loaded.config.storage.relaxed_namespaces, ["a", "0-b_c.d", &long[1..]]);
}

#[test]
fn addresses_to_listen_on() {
    let cases = [
        ("4001", "a multiaddr begins with `/`, as in /ip4/0.0.0.0/tcp/4001"),
        ("127.0.0.1:4001", "a multiaddr begins with `/`, as in /ip4/0.0.0.0/tcp/4001"),
        ("/dns4/a/tcp/1", "it begins with `/dns4`; use /ip4 or /ip6"),
        ("/ip4/300.0.0.1/tcp/1", "`300.0.0.1` is not an IP address of that family"),
        ("/ip4/::1/tcp/1", "`::1` is not an IP address of that family"),
        ("/ip4/127.0.0.1", "after the host it needs /tcp/<port> or /udp/<port>/quic-v1"),
        ("/ip4/127.0.0.1/sctp/1", "after the host it needs /tcp/<port> or /udp/<port>/quic-v1"),
        ("/ip4/127.0.0.1/udp/1", "after the host it needs /tcp/<port> or /udp/<port>/quic-v1"),
        ("/ip4/127.0.0.1/tcp/66000", "`66000` is not a port; use a number from 0 to 65535"),
        ("/ip4/127.0.0.1/tcp/+80", "`+80` is not a port; use a number from 0 to 65535"),
        ("/ip4/127.0.0.1/tcp/", "`` is not a port; use a number from 0 to 65535"),
        ("/ip4/127.0.0.1/tcp/1/ws", "`/ws` does not belong there"),
        ("/ip4/127.0.0.1/tcp/1/", "`/` does not belong there"),
        ("/ip4/127.0.0.1/tcp/1/p2p/x", "a node's own peer id comes from its identity file; leave /p2p out"),
    ];
    for (value, reason) in cases {
        let expected = format!(
            "line 2: `node.listen_addresses`: expected an address to listen on, such as /ip4/0.0.0.0/tcp/4001, found \
             `{value}`: {reason}"
        );
        assert_eq!(problems(&format!("node: {{ listen_addresses: [\n{value}] }}")), [expected]);
    }
    let loaded = valid("node: { listen_addresses: [/ip4/127.0.0.1/udp/4001/quic, /ip6/::1/tcp/0] }");
    let addresses: Vec<_> = loaded.config.node.listen_addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["/ip4/127.0.0.1/udp/4001/quic-v1", "/ip6/::1/tcp/0"]);
}

const PEER: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

#[test]
fn addresses_of_peers() {
    let not_a_peer = |id: &str| {
        format!(
            "`{id}` is not a peer id; it is 52 characters beginning with 12D3KooW, as the node prints at its start"
        )
    };
    let (short, letter) = (&PEER[1..], PEER.replace('7', "0"));
    let other_key = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N";
    let cases = [
        (
            "localhost:4001".to_owned(),
            "a multiaddr begins with `/`, as in /ip4/192.0.2.1/tcp/4001".to_owned(),
        ),
        (
            "/unix/a".to_owned(),
            "it begins with `/unix`; use /ip4, /ip6, /dns, /dns4, /dns6 or /dnsaddr".to_owned(),
        ),
        ("/dns4/a..b/tcp/1".to_owned(), "`a..b` is not a host name".to_owned()),
        ("/dns//tcp/1".to_owned(), "`` is not a host name".to_owned()),
        (
            "/ip4/10.0.0.1/tcp/0".to_owned(),
            "port 0 cannot be dialled; write the port the peer listens on".to_owned(),
        ),
        (
            "/ip4/0.0.0.0/tcp/1".to_owned(),
            "`0.0.0.0` means every interface and cannot be dialled; write the address of one".to_owned(),
        ),
        (format!("/ip4/10.0.0.1/tcp/1/p2p/{short}"), not_a_peer(short)),
        (format!("/ip4/10.0.0.1/tcp/1/p2p/{letter}"), not_a_peer(&letter)),
        (format!("/ip4/10.0.0.1/tcp/1/p2p/{other_key}"), not_a_peer(other_key)),
        (format!("/ip4/10.0.0.1/tcp/1/p2p/{}", "z".repeat(52)), not_a_peer(&"z".repeat(52))),
        (
            format!("/ip4/10.0.0.1/tcp/1/p2p/{PEER}/p2p-circuit"),
            "`/p2p-circuit` does not belong there".to_owned(),
        ),
        ("/dnsaddr/example.org/tcp/1".to_owned(), "`/tcp` does not belong there".to_owned()),
    ];
    for (value, reason) in cases {
        let shown: String = value.chars().take(80).collect();
        let shown = if shown == value { shown } else { shown + "..." };
        let expected = format!(
            "line 2: `discovery.bootstrap_peers`: expected the address of a peer, such as /dns4/host/tcp/4001, found \
             `{shown}`: {reason}"
        );
        assert_eq!(problems(&format!("discovery: {{ bootstrap_peers: [\n\"{value}\"] }}")), [expected]);
    }
    let given = [
        ("/ip4/10.0.0.1/udp/4001/quic".to_owned(), None),
        (format!("/ip6/2001:db8::1/tcp/4001/p2p/{PEER}"), Some(PEER)),
        ("/dns/node-0.debros.default.svc.cluster.local./tcp/4001".to_owned(), None),
        (format!("/dnsaddr/example.org/p2p/{PEER}"), Some(PEER)),
    ];
    for (value, peer_id) in given {
        let loaded = valid(&format!("discovery: {{ bootstrap_peers: ['{value}'] }}"));
        let peer = &loaded.config.discovery.bootstrap_peers[0];
        assert_eq!(peer.as_str(), value.replace("/quic", "/quic-v1"));
        assert_eq!(peer.peer_id(), peer_id);
    }
}

#[test]
fn a_value_means_what_is_written_not_what_yaml_makes_of_it() {
    let zone = |written: &str| valid(&format!("node:\n  zone: {written}\n")).config.node.zone;
    for (written, expected) in
        [("no", "no"), ("007", "007"), ("1.10", "1.10"), ("1e3", "1e3"), ("true", "true"), ("'null'", "null")]
    {
        assert_eq!(zone(written).as_deref(), Some(expected));
    }
    for empty in ["", "~", "null", "''"] {
        assert_eq!(zone(empty), None);
    }
    assert_eq!(valid("node: { zone: 1.10 # comment\n}").config.node.zone.as_deref(), Some("1.10"));
    let text = "node: &node { zone: 7 }\nadmin: { port: 9100 }\n";
    assert_eq!(valid(text).config.node.zone.as_deref(), Some("7"));
    assert_eq!(valid("node: { zone: &z 7, id: *z }").config.node.id.as_deref(), Some("7"));
    assert_eq!(valid("# é ü 漢字\nnode: { zone: 7 }").config.node.zone.as_deref(), Some("7"));
}

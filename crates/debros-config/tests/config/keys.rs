//! The table of keys against the structs: neither may know a key, or a default, that the other does not.

use std::collections::BTreeSet;

use debros_config::{Config, Effect, KEYS, KeyDoc, Kind};

use crate::valid;

/// A value that every key of the kind accepts and that is no key's default.
fn sample(key: &KeyDoc) -> String {
    match key.kind {
        Kind::Boolean => if key.default == "true" { "false" } else { "true" }.to_owned(),
        Kind::Integer { max, .. } => max.to_string(),
        Kind::Choice(words) => words.iter().find(|word| **word != key.default).unwrap().to_string(),
        Kind::Name => "sample".to_owned(),
        Kind::Path => "/sample".to_owned(),
        Kind::Duration { .. } => "36h5s".to_owned(),
        Kind::Size { .. } => "64MiB".to_owned(),
        Kind::Ratio => "0.25".to_owned(),
        Kind::IpAddress => "127.1.2.3".to_owned(),
        Kind::ListenAddresses => "/ip4/127.0.0.1/tcp/4444".to_owned(),
        Kind::PeerAddresses => "/dnsaddr/example.org".to_owned(),
        Kind::Namespaces => "sample".to_owned(),
        Kind::ProtocolPrefix => "/sample".to_owned(),
        Kind::LogFilter => "warn,debros_node=trace".to_owned(),
        Kind::Url => "http://127.0.0.1:4318".to_owned(),
        Kind::ClusterId => "0123456789abcdef0123456789abcdef".to_owned(),
        Kind::Ignored => "7001".to_owned(),
    }
}

fn text(config: &Config, key: &KeyDoc) -> String {
    let tree = serde_json::to_value(config).unwrap();
    let plain = |value: &serde_json::Value| match value {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match &tree[key.section()][key.name()] {
        serde_json::Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        value => plain(value),
    }
}

fn is_replaced(key: &&KeyDoc) -> bool {
    matches!(key.effect, Effect::Replaced(_))
}

#[test]
fn the_table_and_the_structs_know_the_same_keys_in_the_same_order() {
    let yaml = Config::default().to_yaml();
    let mut section = "";
    let mut printed = Vec::new();
    for line in yaml.lines() {
        let name = line.split(':').next().unwrap();
        if !line.starts_with(' ') {
            section = name;
        } else if line.starts_with("  ") && !line.starts_with("   ") && line.contains(": ")
            || line.ends_with(':')
        {
            printed.push(format!("{section}.{}", name.trim()));
        }
    }
    let table: Vec<_> = KEYS.iter().filter(|key| !is_replaced(key)).map(|key| key.path.to_owned()).collect();
    assert_eq!(printed, table, "{yaml}");
}

#[test]
fn every_key_is_documented_once() {
    let paths: BTreeSet<_> = KEYS.iter().map(|key| key.path).collect();
    assert_eq!(paths.len(), KEYS.len());
    for key in KEYS {
        assert!(key.description.ends_with('.'), "{}", key.path);
        assert_eq!(key.path, format!("{}.{}", key.section(), key.name()));
    }
}

#[test]
fn the_defaults_of_the_table_are_those_of_the_structs() {
    for key in KEYS {
        assert_eq!(text(&Config::default(), key), key.default, "{}", key.path);
    }
}

#[test]
fn every_key_reaches_its_field_from_the_file_and_from_the_environment() {
    for key in KEYS.iter().filter(|key| !is_replaced(key)) {
        let value = sample(key);
        assert_ne!(value, key.default, "{}", key.path);
        let written = if key.kind.is_list() { format!("['{value}']") } else { format!("'{value}'") };
        // `enable_tls` is nothing without its files; its own test covers it.
        let files = "certificate_file: c, private_key_file: k";
        let yaml = match key.path {
            "security.enable_tls" => format!("security: {{ enable_tls: true, {files} }}"),
            _ => format!("{}: {{ {}: {written} }}", key.section(), key.name()),
        };
        assert_eq!(text(&valid(&yaml).config, key), value, "{}", key.path);

        let mut variables = vec![(key.variable(), value.clone())];
        if key.path == "security.enable_tls" {
            variables.push(("DEBROS_SECURITY__CERTIFICATE_FILE".to_owned(), "c".to_owned()));
            variables.push(("DEBROS_SECURITY__PRIVATE_KEY_FILE".to_owned(), "k".to_owned()));
        }
        let loaded =
            Config::from_yaml_and_environment("", variables).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(text(&loaded.config, key), value, "{}", key.path);
    }
}

#[test]
fn a_key_is_in_effect_or_named_when_it_is_set() {
    assert!(Config::default().not_in_effect().is_empty());
    for key in KEYS {
        let value = sample(key);
        let loaded = Config::from_yaml_and_environment("", [(key.variable(), value)]);
        let Ok(loaded) = loaded else {
            assert_eq!(key.path, "security.enable_tls");
            continue;
        };
        let named: Vec<_> = loaded.config.not_in_effect().iter().map(|named| named.key).collect();
        let warned = loaded.warnings.iter().any(|warning| warning.key == key.path);
        match key.effect {
            Effect::InEffect => assert!(named.is_empty(), "{}: {named:?}", key.path),
            Effect::NotYet(_) => assert_eq!(named, [key.path]),
            Effect::Replaced(_) => assert!(named.is_empty() && warned, "{}", key.path),
        }
    }
}

#[test]
fn what_is_not_in_effect_says_what_does_not_happen() {
    let text = "database: { backup_interval: 24h }\nsecurity: { auth_enabled: true }";
    let named: Vec<_> = valid(text).config.not_in_effect().iter().map(ToString::to_string).collect();
    assert_eq!(
        named,
        [
            "`database.backup_interval` is not in effect: databases are not backed up by the node yet",
            "`security.auth_enabled` is not in effect: requests are not authenticated yet; whoever is admitted may do \
             everything",
        ]
    );
}

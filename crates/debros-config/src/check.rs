//! How keys relate to each other: what cannot stand together, and what is allowed but worth saying.
//!
//! Works on the finished configuration, so a node that takes some values from its command line and an operator that
//! builds one in memory get the same answers as a file does. Opens nothing: whether a file exists or a port is free
//! is for the node to find out.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use serde_json::Value as Json;

use crate::{
    Config, ConfigError, Effect, KeyDoc, NodeType, NotInEffect, Origin, Problem, Transport, Warning, address,
    keys::KEYS,
};

impl Config {
    /// Refuses a configuration whose values or their relations are wrong, telling all that is.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match self.problems() {
            problems if problems.is_empty() => Ok(()),
            problems => Err(ConfigError::Invalid { file: None, problems }),
        }
    }

    /// Everything that is wrong: single values first, in the order of [`KEYS`], then relations.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut problems = self.value_problems();
        self.check_listen_addresses(&mut problems);
        self.check_tls(&mut problems);
        self.check_exposure(&mut problems);
        self.check_ports(&mut problems);
        self.check_folders(&mut problems);
        problems
    }

    /// What a valid configuration does that its writer may not have meant.
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let mut warn = |key, message: String| warnings.push(Warning { key, message });
        let exposed = self.node.listen_addresses.iter().find(|address| !address.is_loopback());
        if let (Some(address), None) = (exposed, &self.security.cluster_secret_file) {
            warn(
                "security.cluster_secret_file",
                format!(
                    "admission is open: whoever can reach {address} may join this cluster and read all of it; set \
                     `security.cluster_secret_file` to a file that all members share, or listen on 127.0.0.1 only"
                ),
            );
        }
        let Self { node, database, discovery, security, .. } = self;
        if node.node_type == NodeType::Node && discovery.bootstrap_peers.is_empty() && !discovery.enable_mdns
        {
            warn(
                "discovery.bootstrap_peers",
                "this node knows nobody to join and waits until a member dials it; set `discovery.bootstrap_peers` to \
                 the address of any member, or `node.type: bootstrap` to begin a cluster"
                    .to_owned(),
            );
        }
        let factor = database.replication_factor;
        if factor.is_multiple_of(2) {
            warn(
                "database.replication_factor",
                format!(
                    "{factor} replicas survive no more failures than {}; an odd number is better",
                    factor - 1
                ),
            );
        }
        if !security.enable_tls
            && (security.certificate_file.is_some() || security.private_key_file.is_some())
        {
            warn(
                "security.enable_tls",
                "the certificate is not used, because `security.enable_tls` is false; set it to true"
                    .to_owned(),
            );
        }
        for (key, socket) in self.insecure_listeners() {
            warn(
                key,
                format!("{socket} is reachable from other machines and speaks plain HTTP, as was asked for"),
            );
        }
        warnings.extend(self.relaxed_warnings());
        warnings
    }

    /// What is given up for each namespace whose writes are relaxed.
    fn relaxed_warnings(&self) -> impl Iterator<Item = Warning> {
        self.storage.relaxed_namespaces.iter().map(|namespace| Warning {
            key: "storage.relaxed_namespaces",
            message: format!(
                "writes of the namespace `{namespace}` are acknowledged before they are on disk: they survive the end \
                 of a process, but are lost if as many replicas as a quorum has lose power within some tenths of a \
                 second; list only namespaces whose keys can be made anew"
            ),
        })
    }

    /// The keys that are set to something else than their default although their capability is not there yet.
    pub fn not_in_effect(&self) -> Vec<NotInEffect> {
        let values = self.as_json();
        let set = |key: &&KeyDoc| values_of(&values, key) != Self::default_values(key);
        let keys = KEYS.iter().filter(set);
        keys.filter_map(|key| match key.effect {
            Effect::NotYet(reason) => Some(NotInEffect { key: key.path, reason }),
            Effect::InEffect | Effect::Replaced(_) => None,
        })
        .collect()
    }

    fn as_json(&self) -> Json {
        serde_json::to_value(self).expect("structs of text, numbers and lists always have a JSON form")
    }

    fn default_values(key: &KeyDoc) -> Vec<String> {
        key.default.split(',').filter(|text| !text.is_empty()).map(str::to_owned).collect()
    }

    /// Values that a program put there; those of a file were checked with their line.
    fn value_problems(&self) -> Vec<Problem> {
        let values = self.as_json();
        let mut problems = Vec::new();
        for key in KEYS {
            for text in values_of(&values, key) {
                if let Err(reason) = key.kind.parse(&text) {
                    problems.push(problem(key.path, format!("`{}`: {reason}", key.path)));
                }
            }
        }
        problems
    }

    fn check_listen_addresses(&self, problems: &mut Vec<Problem>) {
        let key = "node.listen_addresses";
        if self.node.listen_addresses.is_empty() {
            problems.push(problem(
                key,
                format!("`{key}`: at least one address is needed, such as /ip4/127.0.0.1/tcp/4001"),
            ));
        }
    }

    fn check_tls(&self, problems: &mut Vec<Problem>) {
        let security = &self.security;
        if !security.enable_tls {
            return;
        }
        let files = [
            ("security.certificate_file", &security.certificate_file, "certificate chain"),
            ("security.private_key_file", &security.private_key_file, "private key"),
        ];
        for (key, _, what) in files.iter().filter(|(_, file, _)| file.is_none()) {
            problems.push(problem(
                key,
                format!("`{key}` is missing: `security.enable_tls` needs the PEM file of a {what}"),
            ));
        }
    }

    fn check_exposure(&self, problems: &mut Vec<Problem>) {
        if self.security.allow_insecure_listeners {
            return;
        }
        for (key, socket) in self.insecure_listeners() {
            problems.push(problem(
                key,
                format!(
                    "`{key}`: {} can be reached from other machines, which needs TLS; set `security.enable_tls` with its \
                     two files, or 127.0.0.1, or `security.allow_insecure_listeners: true`",
                    socket.ip()
                ),
            ));
        }
    }

    fn insecure_listeners(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        let listeners =
            [("database.http_address", self.http_socket()), ("admin.address", self.admin_socket())];
        let tls = self.security.enable_tls;
        listeners.into_iter().filter(move |(_, socket)| !tls && !address::is_loopback(socket.ip()))
    }

    /// The storage's files are its own: it locks its folder, as the node locks the one of everything.
    fn check_folders(&self, problems: &mut Vec<Problem>) {
        let (key, folder) = ("storage.data_dir", self.storage_dir());
        let others =
            [("node.data_dir", self.node.data_dir.clone()), ("database.data_dir", self.database_dir())];
        for (other, _) in others.iter().filter(|(_, other)| *other == folder) {
            let folder = folder.display();
            problems.push(problem(
                key,
                format!("`{key}`: {folder} is also that of `{other}`; give the storage a folder of its own"),
            ));
        }
    }

    /// No two listeners of this node may want the same port.
    fn check_ports(&self, problems: &mut Vec<Problem>) {
        let mut taken: Vec<(&str, Transport, SocketAddr)> = Vec::new();
        let peers = self.node.listen_addresses.iter();
        let peers = peers.map(|address| ("node.listen_addresses", address.transport(), address.socket()));
        let others = [
            ("database.rqlite_port", Transport::Tcp, self.http_socket()),
            ("admin.port", Transport::Tcp, self.admin_socket()),
        ];
        let mut told = BTreeSet::new();
        for (key, transport, socket) in peers.chain(others) {
            let clash = taken.iter().find(|(_, other, taken)| *other == transport && overlap(*taken, socket));
            if let Some((other, ..)) = clash
                && told.insert((key, socket))
            {
                let port = socket.port();
                let message = match key == *other {
                    true => format!("`{key}`: port {port} is listed twice for the same address; remove one"),
                    false => format!(
                        "`{key}`: port {port} is also that of `{other}`; choose another for one of them"
                    ),
                };
                problems.push(problem(key, message));
            }
            taken.push((key, transport, socket));
        }
    }
}

/// Whether binding one makes binding the other fail. IPv6 sockets are bound for IPv6 only, so families never clash.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b): (IpAddr, IpAddr) = (one.ip(), other.ip());
    let same_address = a == b || a.is_unspecified() || b.is_unspecified();
    one.port() != 0 && one.port() == other.port() && a.is_ipv4() == b.is_ipv4() && same_address
}

fn problem(key: &str, message: String) -> Problem {
    Problem { origin: Origin::Unknown, key: key.to_owned(), message }
}

/// The texts of a key's value: none if it is not set, several if it is a list.
fn values_of(values: &Json, key: &KeyDoc) -> Vec<String> {
    let text = |value: &Json| match value {
        Json::Null => None,
        Json::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    match &values[key.section()][key.name()] {
        Json::Array(items) => items.iter().filter_map(text).collect(),
        value => text(value).into_iter().collect(),
    }
}

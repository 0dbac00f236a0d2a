//! `/status`, `/nodes` and `/readyz` in rqlite's shapes, from this node's own status.
//!
//! rqlite has one Raft group; here every database has one. The group shown is that of the request's
//! namespace and database where this node has a replica of it, and the cluster's own otherwise. Of
//! the other nodes' HTTP addresses this node knows nothing, and says so; every node answers every
//! request, so clients need only one.

use debros_proto::v1;
use serde_json::{Map, Value, json};

use super::arguments::Arguments;
use crate::http::LocalAddress;

/// This node as the caller reached it.
pub(super) struct Reached<'a> {
    pub(super) local: Option<LocalAddress>,
    /// The `Host` that the caller used.
    pub(super) host: Option<&'a str>,
}

impl Reached<'_> {
    /// The URL at which the caller reached this node.
    fn url(&self) -> Option<String> {
        let scheme = self.local.as_ref().map_or("http", LocalAddress::scheme);
        let own = || self.local.map(|local| local.address.to_string());
        Some(format!("{scheme}://{}", self.host.map(str::to_owned).or_else(own)?))
    }
}

/// The group of the request's database, or the cluster's.
fn group<'a>(status: &'a v1::StatusResponse, arguments: &Arguments) -> Option<&'a v1::GroupStatus> {
    let name = format!("{}/{}", arguments.namespace, arguments.database);
    let named = status.groups.iter().find(|group| group.name == name);
    named.or_else(|| status.groups.iter().find(|group| group.group == 0))
}

fn address(member: &v1::Member) -> &str {
    member.addresses.first().map_or("", String::as_str)
}

/// The body of `/status`.
pub(super) fn status(
    status: &v1::StatusResponse,
    members: &[v1::Member],
    arguments: &Arguments,
    reached: &Reached<'_>,
) -> Value {
    let uptime = status.uptime_seconds;
    let whole = json!({
        "build": {
            "version": super::RQLITE_VERSION,
            "debros_version": status.version,
            "compiler": "rustc",
        },
        "cluster": { "api_addr": reached.url(), "https": reached.local.is_some_and(|local| local.tls).to_string() },
        "http": {
            "auth": "disabled",
            "bind_addr": reached.local.map(|local| local.address.to_string()),
            "tls": { "enabled": reached.local.is_some_and(|local| local.tls).to_string() },
        },
        "node": { "uptime": format!("{}h{}m{}s", uptime / 3600, uptime / 60 % 60, uptime % 60) },
        "os": { "pid": std::process::id() },
        "store": store(status, members, arguments),
        "debros": crate::http::admin::StatusBody::from(status.clone()),
    });
    match &arguments.key {
        Some(key) => below(whole, key),
        None => whole,
    }
}

fn store(status: &v1::StatusResponse, members: &[v1::Member], arguments: &Arguments) -> Value {
    let group = group(status, arguments);
    let leader = group.map_or(0, |group| group.leader);
    let find = |id: u64| members.iter().find(|member| member.node_id == id);
    let own = find(status.node_id);
    let nodes: Vec<Value> = members
        .iter()
        .filter(|member| member.state() != v1::MemberState::Removed)
        .map(|member| {
            let voter = group.is_some_and(|group| group.voters.contains(&member.node_id));
            let suffrage = if voter { "Voter" } else { "Nonvoter" };
            json!({ "id": member.node_id.to_string(), "addr": address(member), "suffrage": suffrage })
        })
        .collect();
    let leader_id = if leader == 0 { String::new() } else { leader.to_string() };
    json!({
        "open": true,
        "ready": leader != 0,
        "node_id": status.node_id.to_string(),
        "addr": own.map_or("", address),
        "leader": { "node_id": leader_id, "addr": find(leader).map_or("", address) },
        "nodes": nodes,
        "db_applied_index": group.map_or(0, |group| group.applied_index),
        "fsm_index": group.map_or(0, |group| group.applied_index),
        "dir_size": status.database_bytes,
        "raft": {
            "state": group.map_or("Shutdown".to_owned(), |group| capitalised(&group.role)),
            "term": group.map_or(0, |group| group.term),
            "last_log_index": group.map_or(0, |group| group.last_log_index),
            "applied_index": group.map_or(0, |group| group.applied_index),
            "voter": group.is_some_and(|group| group.voters.contains(&status.node_id)),
            "num_peers": nodes.len().saturating_sub(1),
        },
    })
}

fn capitalised(word: &str) -> String {
    let mut characters = word.chars();
    characters.next().map_or(String::new(), |first| first.to_uppercase().chain(characters).collect())
}

/// The value at a path of keys with dots between them; `{}` where there is none.
fn below(value: Value, path: &str) -> Value {
    path.split('.')
        .try_fold(value, |value, key| match value {
            Value::Object(mut object) => object.remove(key),
            other => Some(other),
        })
        .unwrap_or_else(|| json!({}))
}

/// The body of `/nodes`: an object by node id, or with `?ver=2` an array.
pub(super) fn nodes(
    status: &v1::StatusResponse,
    members: &[v1::Member],
    arguments: &Arguments,
    reached: &Reached<'_>,
) -> Value {
    let group = group(status, arguments);
    let (mut object, mut array) = (Map::new(), Vec::new());
    for member in members.iter().filter(|member| member.state() != v1::MemberState::Removed) {
        let own = member.node_id == status.node_id;
        let voter = group.is_some_and(|group| group.voters.contains(&member.node_id));
        // A client must find the node that it has reached, whatever its role.
        if !voter && !own && !arguments.nonvoters {
            continue;
        }
        let id = member.node_id.to_string();
        let mut node = json!({
            "id": id,
            "addr": address(member),
            "version": member.version,
            "voter": voter,
            "reachable": own,
            "leader": group.is_some_and(|group| group.leader == member.node_id),
        });
        if own {
            node["api_addr"] = json!(reached.url());
        } else {
            node["error"] = json!("its HTTP address is not known to this node; any node answers any request");
        }
        array.push(node.clone());
        object.insert(id, node);
    }
    if arguments.second_version { json!({ "nodes": array }) } else { Value::Object(object) }
}

//! Results as JSON. The shapes are documented in each command's `--help`, and held by golden tests:
//! fields are only ever added.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use debros_sdk::{
    Conflict, ConnectedNode, DatabaseInfo, Entry, Error, GroupInfo, HealthStatus, LeaseInfo, LeasePage,
    Members, NetworkStatus, PeerInfo, QueryResult, Register, RegisterEvent, RegisterPage, StorageInfo, Value,
    Version,
};
use serde_json::{Value as Json, json};

pub(crate) fn error(error: &Error) -> Json {
    json!({"error": {
        "kind": error.kind().as_str(),
        "message": error.to_string(),
        "retryable": error.is_retryable(),
        "maybe_applied": error.maybe_applied(),
        "sqlite_code": error.sqlite_code(),
    }})
}

pub(crate) fn plain_error(kind: &str, message: &str) -> Json {
    json!({"error": {
        "kind": kind,
        "message": message,
        "retryable": false,
        "maybe_applied": false,
        "sqlite_code": null,
    }})
}

pub(crate) fn query(result: &QueryResult) -> Json {
    let rows: Vec<Vec<Json>> = result.rows.iter().map(|row| row.iter().map(value).collect()).collect();
    json!({
        "columns": result.columns,
        "types": result.types,
        "rows": rows,
        "count": result.count,
        "rows_affected": result.rows_affected,
        "last_insert_id": result.last_insert_id,
    })
}

fn value(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Integer(integer) => json!(integer),
        Value::Real(real) if real.is_finite() => json!(real),
        Value::Real(real) => json!({"real": if real.is_sign_negative() { "-Infinity" } else { "Infinity" }}),
        Value::Text(text) => json!(text),
        Value::Blob(bytes) => json!({"blob": hex(bytes)}),
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn health(status: &HealthStatus) -> Json {
    let checks: serde_json::Map<String, Json> = status
        .checks
        .iter()
        .map(|(name, check)| {
            let check = json!({
                "status": check.status.as_str(),
                "message": check.message,
                "took_us": microseconds(check.took),
                "next_step": check.next_step,
            });
            (name.clone(), check)
        })
        .collect();
    json!({
        "status": status.status.as_str(),
        "checks": checks,
        "last_updated_unix_ms": unix_ms(status.last_updated),
        "response_time_us": microseconds(status.response_time),
    })
}

pub(crate) fn peers(peers: &[PeerInfo]) -> Json {
    let peers: Vec<Json> = peers
        .iter()
        .map(|peer| {
            json!({
                "id": peer.id,
                "node_id": peer.node_id,
                "addresses": peer.addresses,
                "connected": peer.connected,
                "last_seen_unix_ms": peer.last_seen.map(unix_ms),
                "services": peer.services,
                "version": peer.version,
                "zone": peer.zone,
                "round_trip_us": peer.round_trip.map(microseconds),
            })
        })
        .collect();
    json!({ "peers": peers })
}

pub(crate) fn status(status: &NetworkStatus) -> Json {
    json!({
        "node_id": status.node_id,
        "member_id": status.member_id,
        "cluster_id": status.cluster_id,
        "version": status.version,
        "zone": status.zone,
        "epoch": status.epoch,
        "connected": status.connected,
        "peer_count": status.peer_count,
        "database_size": status.database_size,
        "disk_free_bytes": status.disk_free,
        "uptime_seconds": status.uptime.as_secs(),
        "listen_addresses": status.listen_addresses,
        "groups": status.groups.iter().map(group).collect::<Vec<_>>(),
        "warnings": status.warnings,
        "storage": status.storage.as_ref().map(storage_info),
    })
}

fn storage_info(storage: &StorageInfo) -> Json {
    json!({
        "layout_version": storage.layout_version,
        "phase": storage.phase,
        "nodes": storage.nodes,
        "nodes_copied": storage.nodes_copied,
        "partitions": storage.partitions,
        "partitions_to_copy": storage.partitions_to_copy,
        "bytes": storage.bytes,
        "hinted_bytes": storage.hinted_bytes,
        "relaxed_namespaces": storage.relaxed_namespaces,
    })
}

fn group(group: &GroupInfo) -> Json {
    json!({
        "group": group.group,
        "name": group.name,
        "role": group.role,
        "leader": group.leader,
        "term": group.term,
        "last_log_index": group.last_log_index,
        "applied_index": group.applied_index,
        "voters": group.voters,
        "learners": group.learners,
    })
}

pub(crate) fn peer_id(node: &ConnectedNode) -> Json {
    json!({"peer_id": node.peer_id, "address": node.address})
}

pub(crate) fn members(members: &Members) -> Json {
    let list: Vec<Json> = members
        .members
        .iter()
        .map(|member| {
            json!({
                "node_id": member.node_id,
                "peer_id": member.peer_id,
                "state": member.state.as_str(),
                "voter": member.voter,
                "leader": member.leader,
                "connected": member.connected,
                "zone": member.zone,
                "version": member.version,
                "addresses": member.addresses,
            })
        })
        .collect();
    json!({"cluster_id": members.cluster_id, "epoch": members.epoch, "members": list})
}

pub(crate) fn database(database: &DatabaseInfo) -> Json {
    json!({
        "name": database.name,
        "group": database.group,
        "replicas": database.replicas,
        "leader": database.leader,
    })
}

/// The clock in its two parts: many readers of JSON keep only 53 bits of a number.
pub(crate) fn version(version: Version) -> Json {
    json!({"unix_ms": version.clock >> 16, "counter": version.clock & 0xffff, "node": version.node})
}

pub(crate) fn entry(entry: &Entry, with_value: bool) -> Json {
    let mut object = json!({
        "key": entry.key,
        "version": version(entry.version),
        "expires_unix_ms": entry.expires_at.map(unix_ms),
    });
    if with_value {
        object["value"] = json!(std::str::from_utf8(&entry.value).ok());
        object["value_base64"] = json!(BASE64.encode(&entry.value));
        object["bytes"] = json!(entry.value.len());
    }
    object
}

pub(crate) fn register(register: &Register) -> Json {
    json!({
        "key": bytes(&register.key),
        "value": bytes(&register.value),
        "version": register.version,
        "lease": register.lease.map(|lease| lease.0),
    })
}

pub(crate) fn registers(page: &RegisterPage) -> Json {
    json!({
        "registers": page.registers.iter().map(register).collect::<Vec<_>>(),
        "next": page.next.as_deref().map(bytes),
        "revision": page.revision,
    })
}

pub(crate) fn leases(page: &LeasePage) -> Json {
    let lease = |LeaseInfo { id, ttl, left, keys }: &LeaseInfo| {
        let keys: Vec<Json> = keys.iter().map(|key| bytes(key)).collect();
        json!({"lease": id.0, "ttl_ms": milliseconds(*ttl), "left_ms": milliseconds(*left), "keys": keys})
    };
    let leases: Vec<Json> = page.leases.iter().map(lease).collect();
    json!({"leases": leases, "next": page.next.map(|next| next.0)})
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn conflict(conflict: &Conflict) -> Json {
    json!({"conflict": {"version": conflict.version, "value": conflict.value.as_deref().map(bytes)}})
}

pub(crate) fn watch_event(event: &RegisterEvent) -> Json {
    match event {
        RegisterEvent::Put(put) => {
            let mut told = register(put);
            told["event"] = json!("put");
            told
        }
        RegisterEvent::Deleted { key, version } => {
            json!({"event": "deleted", "key": bytes(key), "version": version})
        }
        RegisterEvent::Lagged { revision } => json!({"event": "lagged", "revision": revision}),
    }
}

/// Text where bytes are text.
fn bytes(bytes: &[u8]) -> Json {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({"blob": hex(bytes)}),
    }
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, UNIX_EPOCH};

    use debros_sdk::{
        Conflict, ConnectedNode, DatabaseInfo, Entry, Health, HealthCheck, HealthStatus, LeaseId, LeaseInfo,
        LeasePage, Member, MemberState, Members, NetworkStatus, PeerInfo, QueryResult, Register,
        RegisterEvent, RegisterPage, StorageInfo, Value, Version,
    };

    fn same(found: &serde_json::Value, golden: &str) {
        assert_eq!(*found, serde_json::from_str::<serde_json::Value>(golden).unwrap());
    }

    #[test]
    fn a_query_result_keeps_its_shape() {
        let result = QueryResult {
            columns: vec!["a".into(), "b".into()],
            types: vec!["integer".into(), String::new()],
            rows: vec![
                vec![1.into(), Value::Null],
                vec![Value::Real(f64::INFINITY), Value::from(&[0u8, 255])],
                vec![0.5.into(), "x".into()],
            ],
            count: 3,
            rows_affected: 0,
            last_insert_id: 0,
        };
        let golden = concat!(
            r#"{"columns":["a","b"],"count":3,"last_insert_id":0,"rows":[[1,null],"#,
            r#"[{"real":"Infinity"},{"blob":"00ff"}],[0.5,"x"]],"rows_affected":0,"types":["integer",""]}"#
        );
        same(&super::query(&result), golden);
    }

    #[test]
    fn a_stored_entry_keeps_its_shape() {
        let entry = Entry {
            key: "k".into(),
            value: "hé".into(),
            version: Version { clock: (1 << 16) + 7, node: 2 },
            expires_at: Some(UNIX_EPOCH + Duration::from_millis(5)),
        };
        let golden = concat!(
            r#"{"bytes":3,"expires_unix_ms":5,"key":"k","value":"hé","value_base64":"aMOp","#,
            r#""version":{"unix_ms":1,"counter":7,"node":2}}"#
        );
        same(&super::entry(&entry, true), golden);
        let bare = Entry { value: vec![255].into(), expires_at: None, ..entry };
        let golden = r#"{"expires_unix_ms":null,"key":"k","version":{"unix_ms":1,"counter":7,"node":2}}"#;
        same(&super::entry(&bare, false), golden);
        assert!(super::entry(&bare, true)["value"].is_null());
    }

    #[test]
    fn health_keeps_its_shape() {
        let check = HealthCheck {
            status: Health::Healthy,
            message: "answered".into(),
            took: Duration::from_micros(1500),
            next_step: String::new(),
        };
        let status = HealthStatus {
            status: Health::Degraded,
            checks: BTreeMap::from([("database".to_owned(), check)]),
            last_updated: UNIX_EPOCH + Duration::from_millis(7),
            response_time: Duration::from_micros(1500),
        };
        let golden = concat!(
            r#"{"checks":{"database":{"message":"answered","next_step":"","status":"healthy","took_us":1500}},"#,
            r#""last_updated_unix_ms":7,"response_time_us":1500,"status":"degraded"}"#
        );
        same(&super::health(&status), golden);
    }

    #[test]
    fn peers_and_status_keep_their_shape() {
        let peer = PeerInfo {
            id: "12D3".into(),
            addresses: vec!["/ip4/10.0.0.1/tcp/4001".into()],
            connected: true,
            last_seen: Some(UNIX_EPOCH + Duration::from_millis(9)),
            services: vec!["database".into()],
            version: "0.1.0".into(),
            zone: "a".into(),
            node_id: 2,
            round_trip: None,
        };
        let golden = concat!(
            r#"{"peers":[{"addresses":["/ip4/10.0.0.1/tcp/4001"],"connected":true,"id":"12D3","#,
            r#""last_seen_unix_ms":9,"node_id":2,"round_trip_us":null,"services":["database"],"#,
            r#""version":"0.1.0","zone":"a"}]}"#
        );
        same(&super::peers(&[peer]), golden);
        let status = NetworkStatus {
            node_id: "12D3".into(),
            connected: false,
            peer_count: 0,
            database_size: 4096,
            uptime: Duration::from_secs(3),
            member_id: 1,
            cluster_id: "00".into(),
            version: "0.1.0".into(),
            zone: String::new(),
            epoch: 5,
            listen_addresses: vec![],
            groups: vec![],
            warnings: vec!["degraded: under-replicated".into()],
            storage: Some(StorageInfo {
                layout_version: 2,
                phase: "write-both".into(),
                nodes: 4,
                nodes_copied: 1,
                partitions: 768,
                partitions_to_copy: 3,
                bytes: 8192,
                hinted_bytes: 0,
                relaxed_namespaces: vec!["cache".into()],
            }),
            activity: vec![],
            disk_free: 1024,
            belongs_to: String::new(),
            begins_anew: false,
        };
        let golden = concat!(
            r#"{"cluster_id":"00","connected":false,"database_size":4096,"disk_free_bytes":1024,"epoch":5,"groups":[],"#,
            r#""listen_addresses":[],"member_id":1,"node_id":"12D3","peer_count":0,"#,
            r#""storage":{"bytes":8192,"hinted_bytes":0,"layout_version":2,"nodes":4,"nodes_copied":1,"#,
            r#""partitions":768,"partitions_to_copy":3,"phase":"write-both","relaxed_namespaces":["cache"]},"#,
            r#""uptime_seconds":3,"#,
            r#""version":"0.1.0","warnings":["degraded: under-replicated"],"zone":""}"#
        );
        same(&super::status(&status), golden);
    }

    #[test]
    fn leases_keep_their_shape() {
        let (ttl, left) = (Duration::from_secs(10), Duration::from_millis(2_500));
        let lease = LeaseInfo { id: LeaseId(7), ttl, left, keys: vec!["a".into(), vec![0xff].into()] };
        let page = LeasePage { leases: vec![lease], next: None };
        let golden = concat!(
            r#"{"leases":[{"keys":["a",{"blob":"ff"}],"lease":7,"left_ms":2500,"ttl_ms":10000}],"#,
            r#""next":null}"#
        );
        same(&super::leases(&page), golden);
    }

    #[test]
    fn registers_keep_their_shape() {
        let register =
            Register { key: "a".into(), value: vec![0xff].into(), version: 7, lease: Some(LeaseId(3)) };
        let golden = r#"{"key":"a","lease":3,"value":{"blob":"ff"},"version":7}"#;
        same(&super::register(&register), golden);
        let golden = r#"{"event":"put","key":"a","lease":3,"value":{"blob":"ff"},"version":7}"#;
        same(&super::watch_event(&RegisterEvent::Put(register)), golden);
        let deleted = RegisterEvent::Deleted { key: "a".into(), version: 9 };
        same(&super::watch_event(&deleted), r#"{"event":"deleted","key":"a","version":9}"#);
        same(
            &super::watch_event(&RegisterEvent::Lagged { revision: 9 }),
            r#"{"event":"lagged","revision":9}"#,
        );
        let page = RegisterPage { registers: vec![], next: Some("b".into()), revision: 8 };
        same(&super::registers(&page), r#"{"next":"b","registers":[],"revision":8}"#);
        let conflict = Conflict { version: 0, value: None };
        same(&super::conflict(&conflict), r#"{"conflict":{"value":null,"version":0}}"#);
    }

    #[test]
    fn members_databases_and_ids_keep_their_shape() {
        let member = Member {
            node_id: 1,
            peer_id: "12D3".into(),
            addresses: vec![],
            zone: String::new(),
            state: MemberState::Active,
            voter: true,
            leader: true,
            connected: true,
            version: "0.1.0".into(),
        };
        let members = Members { cluster_id: "00".into(), epoch: 4, members: vec![member] };
        let golden = concat!(
            r#"{"cluster_id":"00","epoch":4,"members":[{"addresses":[],"connected":true,"leader":true,"#,
            r#""node_id":1,"peer_id":"12D3","state":"active","version":"0.1.0","voter":true,"zone":""}]}"#
        );
        same(&super::members(&members), golden);
        let database = DatabaseInfo { name: "orders".into(), group: 9, replicas: vec![1, 2, 3], leader: 2 };
        let golden = r#"{"group":9,"leader":2,"name":"orders","replicas":[1,2,3]}"#;
        same(&super::database(&database), golden);
        let node = ConnectedNode { peer_id: "12D3".into(), address: "/ip4/127.0.0.1/tcp/4001".into() };
        let golden = r#"{"address":"/ip4/127.0.0.1/tcp/4001","peer_id":"12D3"}"#;
        same(&super::peer_id(&node), golden);
        let golden = r#"{"error":{"kind":"local","maybe_applied":false,"message":"m","retryable":false,"sqlite_code":null}}"#;
        same(&super::plain_error("local", "m"), golden);
    }
}

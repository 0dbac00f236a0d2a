//! Results as tables for people. Whatever comes from a database or a peer is made harmless for a
//! terminal before it is shown.

use std::time::{Duration, SystemTime};

use comfy_table::{ContentArrangement, Table, presets};
use debros_sdk::{
    Conflict, Cursor, DatabaseInfo, Entry, LeaseInfo, LeasePage, Members, NetworkStatus, PeerInfo,
    QueryResult, RegisterEvent, RegisterPage, StorageInfo, Value,
};

use crate::json;

/// A blob longer than this is shown by its beginning and its length.
const BLOB_SHOWN_BYTES: usize = 32;
/// A stored text longer than this is shown by its beginning and its length.
const TEXT_SHOWN_CHARS: usize = 60;

pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|cell| harmless(cell)));
    table
}

/// Text without control characters, which could move the cursor or hide what is shown.
pub(crate) fn harmless(text: &str) -> String {
    let escape =
        |c: char| if c.is_control() && c != '\n' { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

/// Lines of at most so many characters, where words allow it.
pub(crate) fn broken(text: &str, chars: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    // A word that is longer than a line is an address: it is broken where the line ends.
    let words = text.split_whitespace().flat_map(|word| {
        let letters: Vec<char> = word.chars().collect();
        letters.chunks(chars.max(1)).map(|part| part.iter().collect::<String>()).collect::<Vec<_>>()
    });
    for word in words {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= chars => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(word),
        }
    }
    lines
}

pub(crate) fn query(result: &QueryResult) -> String {
    if result.columns.is_empty() {
        let rows = plural(result.rows_affected, "row");
        return match result.last_insert_id {
            0 => format!("{rows} affected"),
            id => format!("{rows} affected, last insert id {id}"),
        };
    }
    let header: Vec<&str> = result.columns.iter().map(String::as_str).collect();
    let mut shown = table(&header);
    for row in &result.rows {
        shown.add_row(row.iter().map(cell));
    }
    format!("{shown}\n{}", plural(result.count as u64, "row"))
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Integer(integer) => integer.to_string(),
        Value::Real(real) => format!("{real:?}"),
        Value::Text(text) => harmless(text),
        Value::Blob(bytes) => blob(bytes),
    }
}

fn blob(bytes: &[u8]) -> String {
    if bytes.len() > BLOB_SHOWN_BYTES {
        return format!("x'{}…' ({} bytes)", json::hex(&bytes[..BLOB_SHOWN_BYTES]), bytes.len());
    }
    format!("x'{}'", json::hex(bytes))
}

/// A stored value: as text where it is text, by its beginning where it is long.
pub(crate) fn bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().count() > TEXT_SHOWN_CHARS => {
            let shown: String = text.chars().take(TEXT_SHOWN_CHARS).collect();
            format!("{}… ({} bytes)", harmless(&shown).replace('\n', "\\n"), bytes.len())
        }
        Ok(text) => harmless(text).replace('\n', "\\n"),
        Err(_) => blob(bytes),
    }
}

pub(crate) fn entries(entries: &[Entry], with_values: bool, cursor: Option<&Cursor>) -> String {
    let header: &[&str] =
        if with_values { &["key", "written", "expires", "value"] } else { &["key", "written", "expires"] };
    let mut shown = table(header);
    for entry in entries {
        let written = SystemTime::UNIX_EPOCH + Duration::from_millis(entry.version.clock >> 16);
        let expires = entry.expires_at.map_or_else(|| "never".to_owned(), until);
        let mut row = vec![key(&entry.key), ago(written), expires];
        row.extend(with_values.then(|| bytes(&entry.value)));
        shown.add_row(row);
    }
    let more = cursor.map_or_else(String::new, |cursor| {
        format!("; there may be more: --after '{}'", key(cursor.as_str()))
    });
    format!("{shown}\n{}{more}", plural(entries.len() as u64, "key"))
}

/// A key on one line.
pub(crate) fn key(key: &str) -> String {
    harmless(key).replace('\n', "\\n")
}

fn until(time: SystemTime) -> String {
    match time.duration_since(SystemTime::now()) {
        Ok(left) => format!("in {}", whole_seconds(left)),
        Err(_) => "now".to_owned(),
    }
}

pub(crate) fn registers(page: &RegisterPage) -> String {
    let mut shown = table(&["key", "value", "version", "lease"]);
    for register in &page.registers {
        let lease = register.lease.map_or_else(String::new, |lease| lease.to_string());
        shown.add_row([
            register_bytes(&register.key),
            bytes(&register.value),
            register.version.to_string(),
            lease,
        ]);
    }
    let count = plural(page.registers.len() as u64, "key");
    match &page.next {
        Some(next) => format!("{shown}\n{count}; more with --after {}", register_bytes(next)),
        None => format!("{shown}\n{count}"),
    }
}

pub(crate) fn leases(page: &LeasePage) -> String {
    let mut shown = table(&["lease", "ttl", "left", "keys"]);
    for LeaseInfo { id, ttl, left, keys } in &page.leases {
        // One on a line; keys with line breaks of their own stay on theirs.
        let keys: Vec<String> = keys.iter().map(|key| register_bytes(key).replace('\n', "\\n")).collect();
        shown.add_row([id.to_string(), duration(*ttl), whole_seconds(*left), keys.join("\n")]);
    }
    let count = plural(page.leases.len() as u64, "lease");
    match page.next {
        Some(next) => format!("{shown}\n{count}; more with --after {next}"),
        None => format!("{shown}\n{count}"),
    }
}

pub(crate) fn conflict(conflict: &Conflict) -> String {
    match (conflict.version, &conflict.value) {
        (0, _) => "not done: there is no such key".to_owned(),
        (version, Some(value)) => format!("not done: the key has version {version}: {}", bytes(value)),
        (version, None) => format!("not done: the key has version {version}"),
    }
}

pub(crate) fn watch_event(event: &RegisterEvent) -> String {
    match event {
        RegisterEvent::Put(register) => {
            format!(
                "{} = {} (version {})",
                register_bytes(&register.key),
                bytes(&register.value),
                register.version
            )
        }
        RegisterEvent::Deleted { key, version } => {
            format!("{} is gone (version {version})", register_bytes(key))
        }
        RegisterEvent::Lagged { revision } => {
            format!("changes up to revision {revision} were missed: list the keys again")
        }
    }
}

/// All of a register's key or value: text where it is text.
pub(crate) fn register_bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => harmless(text),
        Err(_) => cell(&Value::from(bytes)),
    }
}

pub(crate) fn plural(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

pub(crate) fn peers(peers: &[PeerInfo]) -> String {
    let mut shown = table(&["peer", "node", "connected", "last seen", "rtt", "zone", "version", "address"]);
    for peer in peers {
        shown.add_row([
            harmless(&peer.id),
            node_id(peer.node_id),
            yes_no(peer.connected),
            peer.last_seen.map_or_else(|| "never".to_owned(), ago),
            peer.round_trip.map_or_else(String::new, duration),
            harmless(&peer.zone),
            harmless(&peer.version),
            harmless(peer.addresses.first().map_or("", String::as_str)),
        ]);
    }
    format!("{shown}\n{}", plural(peers.len() as u64, "peer"))
}

pub(crate) fn status(status: &NetworkStatus) -> String {
    let mut shown = table(&["node", &status.node_id]);
    let mut add = |name: &str, value: String| {
        shown.add_row([name.to_owned(), harmless(&value)]);
    };
    add("member", node_id(status.member_id));
    let cluster = if status.cluster_id.is_empty() { "none joined yet" } else { &status.cluster_id };
    add("cluster", cluster.to_owned());
    add("version", status.version.clone());
    add("zone", status.zone.clone());
    add("epoch", status.epoch.to_string());
    add("connected peers", status.peer_count.to_string());
    add("database size", format!("{} bytes", status.database_size));
    for (name, value) in status.storage.iter().flat_map(storage_rows) {
        add(name, value);
    }
    add("uptime", whole_seconds(status.uptime));
    add("listens on", status.listen_addresses.join("\n"));
    for warning in &status.warnings {
        add("warning", warning.clone());
    }
    let mut groups =
        table(&["group", "name", "role", "leader", "term", "last log", "applied", "voters", "learners"]);
    for group in &status.groups {
        groups.add_row([
            group.group.to_string(),
            harmless(&group.name),
            harmless(&group.role),
            node_id(group.leader),
            group.term.to_string(),
            group.last_log_index.to_string(),
            group.applied_index.to_string(),
            numbers(&group.voters),
            numbers(&group.learners),
        ]);
    }
    format!("{shown}\n{groups}")
}

/// The storage on a node; what is not the usual has a row only when it is so.
fn storage_rows(storage: &StorageInfo) -> Vec<(&'static str, String)> {
    let mut rows =
        vec![("storage size", format!("{} bytes", storage.bytes)), ("storage layout", layout(storage))];
    if storage.hinted_bytes > 0 {
        rows.push(("kept for absent replicas", format!("{} bytes", storage.hinted_bytes)));
    }
    if !storage.relaxed_namespaces.is_empty() {
        let names = storage.relaxed_namespaces.join(", ");
        let given_up = "writes there are lost if a quorum of replicas loses power at once";
        rows.push(("relaxed namespaces", format!("{names}\n{given_up}")));
    }
    rows
}

/// Where the storage's layout stands, and how far a change of it is.
fn layout(storage: &StorageInfo) -> String {
    let StorageInfo { layout_version, nodes, nodes_copied, partitions, partitions_to_copy, .. } = storage;
    match (storage.phase.as_str(), *layout_version) {
        (_, 0) => "none yet".to_owned(),
        ("stable", _) => format!("version {layout_version} over {nodes} nodes, {partitions} partitions here"),
        ("write-both", _) => format!(
            "version {layout_version}: changing, {nodes_copied} of {nodes} nodes have copied their share, \
             {partitions_to_copy} partitions to copy here"
        ),
        (phase, _) => format!("version {layout_version}: changing, {}", harmless(phase)),
    }
}

pub(crate) fn members(members: &Members) -> String {
    let mut shown = table(&["node", "peer", "state", "meta role", "connected", "zone", "version", "address"]);
    for member in &members.members {
        let role = match (member.leader, member.voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        shown.add_row([
            member.node_id.to_string(),
            harmless(&member.peer_id),
            member.state.as_str().to_owned(),
            role.to_owned(),
            yes_no(member.connected),
            harmless(&member.zone),
            harmless(&member.version),
            harmless(member.addresses.first().map_or("", String::as_str)),
        ]);
    }
    format!("{shown}\ncluster {}, epoch {}", harmless(&members.cluster_id), members.epoch)
}

pub(crate) fn databases(databases: &[DatabaseInfo]) -> String {
    let mut shown = table(&["database", "group", "replicas", "leader"]);
    for database in databases {
        shown.add_row([
            harmless(&database.name),
            database.group.to_string(),
            numbers(&database.replicas),
            node_id(database.leader),
        ]);
    }
    format!("{shown}\n{}", plural(databases.len() as u64, "database"))
}

fn node_id(node_id: u64) -> String {
    if node_id == 0 { "-".to_owned() } else { node_id.to_string() }
}

fn numbers(numbers: &[u64]) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

pub(crate) fn ago(time: SystemTime) -> String {
    let since = SystemTime::now().duration_since(time).unwrap_or_default();
    if since.as_secs() == 0 { "now".to_owned() } else { format!("{} ago", whole_seconds(since)) }
}

/// A duration that is known to the second.
fn whole_seconds(duration: Duration) -> String {
    match duration.as_secs() {
        0 => "0 s".to_owned(),
        seconds => self::duration(Duration::from_secs(seconds)),
    }
}

/// A duration in the two units that matter.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{:.1} ms", duration.as_secs_f64() * 1000.0),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use debros_sdk::{
        Conflict, Cursor, Entry, LeaseId, LeaseInfo, LeasePage, QueryResult, Register, RegisterEvent,
        RegisterPage, StorageInfo, Value, Version,
    };

    #[test]
    fn stored_values_are_shown_on_one_line_and_not_too_long() {
        assert_eq!(super::bytes(b"a\nb\x1b"), "a\\nb\\u{1b}");
        assert_eq!(super::bytes(&[255, 0]), "x'ff00'");
        assert_eq!(super::bytes("é".repeat(100).as_bytes()), format!("{}… (200 bytes)", "é".repeat(60)));
        let entry = Entry {
            key: "k\n".into(),
            value: "v".into(),
            version: Version { clock: 1, node: 1 },
            expires_at: None,
        };
        let shown = super::entries(&[entry], true, Some(&Cursor::after("k")));
        assert!(
            shown.contains("k\\n") && shown.ends_with("1 key; there may be more: --after 'k'"),
            "{shown}"
        );
    }

    #[test]
    fn relaxed_namespaces_are_shown_with_what_they_give_up() {
        let names = |storage: &StorageInfo| {
            super::storage_rows(storage).into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        let mut storage = StorageInfo::default();
        assert_eq!(names(&storage), ["storage size", "storage layout"]);
        storage.relaxed_namespaces = vec!["app".into(), "cache".into()];
        let golden = "app, cache\nwrites there are lost if a quorum of replicas loses power at once";
        assert_eq!(super::storage_rows(&storage).last(), Some(&("relaxed namespaces", golden.to_owned())));
    }

    #[test]
    fn rows_are_a_table_and_changes_a_sentence() {
        let result = QueryResult {
            columns: vec!["id".into(), "name".into()],
            rows: vec![vec![1.into(), "Ada\u{1b}[2J".into()], vec![Value::Null, Value::from(&[1u8])]],
            count: 2,
            ..QueryResult::default()
        };
        let golden = "\
┌──────┬──────────────┐
│ id   ┆ name         │
╞══════╪══════════════╡
│ 1    ┆ Ada\\u{1b}[2J │
│ NULL ┆ x'01'        │
└──────┴──────────────┘
2 rows";
        let shown = super::query(&result);
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
        assert_eq!(shown, golden);
        let changed = QueryResult { rows_affected: 1, last_insert_id: 7, ..QueryResult::default() };
        assert_eq!(super::query(&changed), "1 row affected, last insert id 7");
    }

    #[test]
    fn registers_are_a_table_and_changes_a_line() {
        let register =
            Register { key: "a\u{1b}".into(), value: vec![0xff].into(), version: 7, lease: Some(LeaseId(3)) };
        let page = RegisterPage { registers: vec![register.clone()], next: Some("a".into()), revision: 8 };
        let golden = "\
┌─────────┬───────┬─────────┬───────┐
│ key     ┆ value ┆ version ┆ lease │
╞═════════╪═══════╪═════════╪═══════╡
│ a\\u{1b} ┆ x'ff' ┆ 7       ┆ 3     │
└─────────┴───────┴─────────┴───────┘
1 key; more with --after a";
        assert_eq!(super::registers(&page), golden);
        assert_eq!(super::watch_event(&RegisterEvent::Put(register)), "a\\u{1b} = x'ff' (version 7)");
        let conflict = Conflict { version: 7, value: Some("b".into()) };
        assert_eq!(super::conflict(&conflict), "not done: the key has version 7: b");
    }

    #[test]
    fn leases_are_a_table_with_a_line_for_each_key() {
        let lease = LeaseInfo {
            id: LeaseId(7),
            ttl: Duration::from_secs(90),
            left: Duration::from_millis(2_600),
            keys: vec!["a\nb".into(), vec![0xff].into()],
        };
        let idle = LeaseInfo { id: LeaseId(8), keys: vec![], ..lease.clone() };
        let page = LeasePage { leases: vec![lease, idle], next: Some(LeaseId(8)) };
        let golden = "\
┌───────┬────────────┬──────┬───────┐
│ lease ┆ ttl        ┆ left ┆ keys  │
╞═══════╪════════════╪══════╪═══════╡
│ 7     ┆ 1 min 30 s ┆ 2 s  ┆ a\\nb  │
│       ┆            ┆      ┆ x'ff' │
│ 8     ┆ 1 min 30 s ┆ 2 s  ┆       │
└───────┴────────────┴──────┴───────┘
2 leases; more with --after 8";
        assert_eq!(super::leases(&page), golden);
    }

    #[test]
    fn durations_are_told_in_the_units_that_matter() {
        assert_eq!(super::duration(Duration::from_micros(1234)), "1.2 ms");
        assert_eq!(super::duration(Duration::from_secs(59)), "59 s");
        assert_eq!(super::duration(Duration::from_secs(3725)), "1 h 2 min");
        assert_eq!(super::duration(Duration::from_secs(90_000)), "1 d 1 h");
    }
}

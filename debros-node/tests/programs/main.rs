//! The programs as people start them: `debros-node` and `debros` as processes, with the files of
//! `configs/` as they are written.

mod dev;
mod faults;
mod logs;
mod process;
mod pubsub;
mod traces;

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use process::{Node, debros, get, ready, run, run_with, workspace};
use tokio::sync::RwLock;

/// Thirty nodes need the machine for themselves; every other test shares it.
static MACHINE: RwLock<()> = RwLock::const_new(());
/// A dev build on two busy cores needs a tenth of it.
const DEADLINE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Every port that the two files name.
const PORTS: [u16; 6] = [4001, 5001, 9001, 4002, 5002, 9002];

async fn eventually(what: &str, mut look: impl AsyncFnMut() -> Result<(), String>) {
    let started = Instant::now();
    while let Err(reason) = look().await {
        assert!(started.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}: {reason}");
        tokio::time::sleep(LOOK_EVERY).await; // poll: the condition of the caller
    }
}

fn config(name: &str) -> PathBuf {
    workspace().join("configs").join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_configurations_form_a_cluster_as_they_are_written() {
    let _beside_others = MACHINE.read().await;
    for port in PORTS {
        if let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            panic!(
                "port {port}, which the example configurations name, is taken ({error}): stop what listens there"
            );
        }
    }
    // Their data folders are relative to where the node is started.
    let folder = tempfile::tempdir().unwrap();
    let mut first =
        Node::start(folder.path(), "bootstrap", &["--config", config("bootstrap.yaml").to_str().unwrap()]);
    let mut second = Node::start(folder.path(), "node", &["--config", config("node.yaml").to_str().unwrap()]);
    for (node, admin) in [(&mut first, 9001), (&mut second, 9002)] {
        ready(node, admin, DEADLINE).await;
    }
    let addresses = ["/ip4/127.0.0.1/tcp/4001", "/ip4/127.0.0.1/tcp/4002"];
    for address in addresses {
        eventually("both are members", async || {
            let (code, out, told) = debros(&["-b", address, "-f", "json", "cluster", "members"]).await;
            let found: serde_json::Value =
                serde_json::from_str(&out).map_err(|error| format!("{error}: {told}"))?;
            let members = found["members"].as_array().map_or(0, Vec::len);
            if (code, members) == (Some(0), 2) { Ok(()) } else { Err(format!("{code:?} {out} {told}")) }
        })
        .await;
        for (arguments, word) in [
            (["peers", "-f", "table"].as_slice(), "12D3KooW"),
            (&["status"], "meta"),
            (&["query", "SELECT 1"], "1"),
            (&["health"], "degraded"),
            (&["peer-id"], "12D3KooW"),
        ] {
            let (code, out, told) = debros(&[["-b", address].as_slice(), arguments].concat()).await;
            assert_eq!(code, Some(0), "debros {arguments:?}: {out}{told}");
            assert!(out.contains(word), "debros {arguments:?}: {out}{told}");
        }
    }
    // Written at one, read at the other, and found without being told where a node is.
    for (arguments, expected) in [
        (["-b", addresses[1], "query", "CREATE TABLE t (a TEXT)"].as_slice(), ""),
        (&["-b", addresses[1], "query", "INSERT INTO t VALUES (?)", "hello"], ""),
        (&["-b", addresses[0], "query", "SELECT a FROM t"], "hello"),
        (&["query", "SELECT a FROM t"], "hello"),
    ] {
        let (code, out, told) = debros(arguments).await;
        assert_eq!(code, Some(0), "debros {arguments:?}: {out}{told}");
        assert!(out.contains(expected), "debros {arguments:?}: {out}");
    }
    registers_are_reached_from_the_command_line(addresses).await;
    let (code, _, told) = debros(&["-b", addresses[0], "query", "ATTACH 'x' AS y"]).await;
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("next: no node runs such a statement"), "{told}");
    #[cfg(target_os = "linux")]
    the_process_is_measured(9001).await;
    the_connected_node_leaves(addresses[1]).await;
    for kept in ["data/bootstrap/identity.key", "data/node/identity.key"] {
        assert!(folder.path().join(kept).is_file(), "{kept}");
    }
    for node in [second, first] {
        assert_eq!(node.terminate(DEADLINE).await, Some(0), "SIGTERM ends a node cleanly");
    }
}

/// Set at one node, seen at the other; what is not done ends with 1.
async fn registers_are_reached_from_the_command_line(addresses: [&str; 2]) {
    let [here, there] = addresses.map(|address| ["-b", address, "-f", "json", "registers"]);
    let run = async |at: [&str; 5], arguments: &[&str], expected: i32| -> serde_json::Value {
        let (code, out, told) = debros(&[at.as_slice(), arguments].concat()).await;
        assert_eq!(code, Some(expected), "debros registers {arguments:?}: {out}{told}");
        serde_json::from_str(out.lines().next().unwrap_or_default()).expect("JSON")
    };
    assert!(run(there, &["get", "job"], 1).await["register"].is_null());
    let taken = run(here, &["cas", "job", "0", "taken"], 0).await["version"].clone();
    let conflict = run(there, &["cas", "job", "0", "mine"], 1).await;
    assert_eq!((&conflict["conflict"]["version"], &conflict["conflict"]["value"]), (&taken, &"taken".into()));
    assert_eq!(run(there, &["get", "job"], 0).await["register"]["value"], "taken");
    run(here, &["put", "sum", "-5"], 0).await;
    assert_eq!(run(there, &["increment", "sum", "-2"], 0).await["value"], -7);
    let page = run(here, &["list"], 0).await;
    assert_eq!(
        (page["registers"].as_array().map(Vec::len), &page["next"]),
        (Some(2), &serde_json::Value::Null)
    );
    assert_eq!(run(there, &["delete", "job", "--if-version", &taken.to_string()], 0).await["version"], taken);
    let revision = page["revision"].to_string();
    let event = run(here, &["watch", "jo", "--after", &revision, "--count", "1"], 0).await;
    assert_eq!((&event["event"], &event["key"]), (&"deleted".into(), &"job".into()));
}

#[cfg(target_os = "linux")]
async fn the_process_is_measured(admin: u16) {
    let text = get(admin, "/metrics").await.unwrap();
    let value = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} is missing in {text}"))
    };
    assert!(value("process_resident_memory_bytes") > (1 << 20) as f64);
    // In whole seconds, so it may be none yet.
    value("process_cpu_seconds_total");
    assert!(value("process_open_fds") > 3.0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let age = now - value("process_start_time_seconds");
    assert!((-2.0..2.0 * DEADLINE.as_secs_f64()).contains(&age), "{age}");
    assert!(value("process_threads") >= 2.0 && value("debros_tokio_workers") >= 1.0);
    assert!(
        text.contains(&format!("debros_build_info{{version=\"{}\"", env!("CARGO_PKG_VERSION"))),
        "{text}"
    );
    assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1, "{text}");
}

/// Without an id the node that was named leaves, and the answer says which it was.
async fn the_connected_node_leaves(address: &str) {
    let (_, out, told) = debros(&["-b", address, "-f", "json", "status"]).await;
    let status: serde_json::Value = serde_json::from_str(&out).expect(&told);
    let (code, out, told) = debros(&["-b", address, "-f", "json", "cluster", "leave"]).await;
    assert_eq!(code, Some(0), "{out}{told}");
    let left: serde_json::Value = serde_json::from_str(&out).expect(&told);
    assert!(status["member_id"].is_u64(), "{status}");
    assert_eq!(left["node_id"], status["member_id"], "{told}");
    assert!(told.contains(status["node_id"].as_str().unwrap()), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_not_joined_says_who_it_is() {
    let _beside_others = MACHINE.read().await;
    let folder = tempfile::tempdir().unwrap();
    let listen = ["--listen", "/ip4/127.0.0.1/tcp/0", "--http-port", "0", "--admin-port", "0"];
    let node = Node::start(folder.path(), "alone", &listen);
    eventually("it listens", async || node.said("HTTP API on").then_some(()).ok_or_else(|| node.log())).await;
    let log = node.log();
    let address = log.lines().find_map(|line| line.split_once("listening on ")).expect("an address").1;
    let (address, peer) = address.trim().split_once("/p2p/").expect("a peer id");
    let (code, out, told) = debros(&["-b", address, "peer-id"]).await;
    assert_eq!((code, out.trim()), (Some(0), peer), "{told}");
    let (code, _, told) = debros(&["-b", address, "cluster", "leave"]).await;
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("is not a member of a cluster yet"), "{told}");
    assert_eq!(node.terminate(DEADLINE).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_logs_its_name_and_what_its_configuration_lacks() {
    let _beside_others = MACHINE.read().await;
    for format in ["text", "json"] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node.yaml");
        let text = format!(
            "node: {{ id: alpha, listen_addresses: [/ip4/127.0.0.1/tcp/0] }}\nadmin: {{ port: 0 }}\n\
             database: {{ rqlite_port: 0, rqlite_raft_port: 7001, replication_factor: 2 }}\n\
             logging: {{ format: {format} }}\n"
        );
        std::fs::write(&file, text).unwrap();
        let node = Node::start(folder.path(), "alpha", &["--begin", "--config", file.to_str().unwrap()]);
        eventually("it is a member", async || {
            node.said("member of the cluster").then_some(()).ok_or_else(|| node.log())
        })
        .await;
        let log = node.log();
        for warning in ["`database.rqlite_raft_port` has no effect", "2 replicas survive no more failures"] {
            assert_eq!(log.matches(warning).count(), 1, "{warning}: {log}");
        }
        // With --begin it is no longer true that this node waits for others.
        assert!(!log.contains("knows nobody to join"), "{log}");
        for line in log.lines() {
            let named = match format {
                "json" => serde_json::from_str::<serde_json::Value>(line).expect(line)["node"] == "alpha",
                _ => line.split_whitespace().nth(1) == Some("alpha"),
            };
            assert!(named, "{line}");
        }
        assert_eq!(node.terminate(DEADLINE).await, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_can_be_checked_and_printed() {
    let _beside_others = MACHINE.read().await;
    for name in ["bootstrap.yaml", "node.yaml"] {
        let path = config(name);
        let path = path.to_str().unwrap();
        let (code, out, told) = run(&["config", "validate", "--config", path]).await;
        assert_eq!(code, Some(0), "{told}");
        assert!(out.ends_with("the configuration is valid\n"), "{out}");
        assert!(out.contains("warning: admission is open"), "{out}");
        let (code, printed, told) = run(&["config", "print", "--config", path]).await;
        assert_eq!(code, Some(0), "{told}");
        // What is printed is a configuration, and the same one.
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy.yaml");
        std::fs::write(&copy, &printed).unwrap();
        let (_, again, _) = run(&["config", "print", "--config", copy.to_str().unwrap()]).await;
        assert_eq!(again, printed);
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.yaml");
    std::fs::write(
        &file,
        "database: { replication_facter: 3 }\nnode: { listen_addresses: [\"127.0.0.1:1\"] }\n",
    )
    .unwrap();
    let (code, _, told) = run(&["config", "validate", "--config", file.to_str().unwrap()]).await;
    assert_eq!(code, Some(1));
    for word in ["did you mean `replication_factor`?", "line 2", "a multiaddr begins with `/`"] {
        assert!(told.contains(word), "{word:?} is missing in: {told}");
    }
    let (code, _, told) = run_with(("DEBROS_NODE_DATA_DIR", "/data"), &["config", "print"]).await;
    assert_eq!(code, Some(1));
    assert!(told.contains("two underscores behind the section: DEBROS_NODE__DATA_DIR"), "{told}");
    let (code, _, told) = run(&["--config", "/nonexistent/node.yaml"]).await;
    assert_eq!(code, Some(1));
    assert!(told.contains("cannot read the configuration file /nonexistent/node.yaml"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_start_says_why_and_ends_with_1() {
    let _beside_others = MACHINE.read().await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let start = |http: &str| -> Vec<String> {
        let listen = "/ip4/127.0.0.1/tcp/0";
        [
            "--begin",
            "--data-dir",
            data.to_str().unwrap(),
            "--listen",
            listen,
            "--admin-port",
            "0",
            "--http-port",
            http,
        ]
        .map(str::to_owned)
        .to_vec()
    };
    let arguments = start(&port);
    let (code, _, told) = run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert_eq!(code, Some(1));
    let wanted =
        format!("127.0.0.1:{port} is taken by another program: stop it, or set database.rqlite_port");
    assert!(told.contains(&wanted), "{told}");

    // The same folder, twice at a time; and a node that was killed leaves it free.
    let arguments = start("0");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let running = Node::start(folder.path(), "first", &arguments);
    eventually("the first one runs", async || {
        running.said("member of the cluster").then_some(()).ok_or_else(|| running.log())
    })
    .await;
    let (code, _, told) = run(&arguments).await;
    assert_eq!(code, Some(1));
    assert!(told.contains("is in use by another node: stop it"), "{told}");
    running.kill().await;
    let again = Node::start(folder.path(), "again", &arguments);
    eventually("it starts again", async || {
        again.said("member of the cluster").then_some(()).ok_or_else(|| again.log())
    })
    .await;
    assert_eq!(again.terminate(DEADLINE).await, Some(0));
    for kept in ["database", "storage"] {
        assert!(data.join(kept).is_dir(), "{kept} is elsewhere");
    }
}

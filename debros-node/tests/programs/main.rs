//! The programs as people start them: `debros-node` and `debros` as processes, with the files of
//! `configs/` as they are written.

mod process;

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use process::{Node, debros, ready, run, workspace};

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
    for kept in ["data/bootstrap/identity.key", "data/node/identity.key"] {
        assert!(folder.path().join(kept).is_file(), "{kept}");
    }
    for node in [second, first] {
        assert_eq!(node.terminate(DEADLINE).await, Some(0), "SIGTERM ends a node cleanly");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_in_one_process_comes_and_goes() {
    let (code, out, told) = run(&["dev", "--nodes", "3", "--once", "--port", "0", "--http-port", "0"]).await;
    assert_eq!(code, Some(0), "{out}{told}");
    assert!(out.contains("3 members, fully connected after"), "{out}");
    assert_eq!(out.matches("/p2p/12D3KooW").count(), 3, "{out}");
    assert_eq!(out.matches("HTTP http://127.0.0.1:").count(), 3, "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_in_one_process_keeps_its_data_in_a_given_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    for _ in 0..2 {
        let arguments =
            ["dev", "--nodes", "1", "--once", "--port", "0", "--http-port", "0", "--data-dir", path];
        let (code, out, told) = run(&arguments).await;
        assert_eq!(code, Some(0), "{out}{told}");
    }
    assert!(folder.path().join("node-1/member.json").is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_can_be_checked_and_printed() {
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
    let (code, _, told) = run(&["--config", "/nonexistent/node.yaml"]).await;
    assert_eq!(code, Some(1));
    assert!(told.contains("cannot read the configuration file /nonexistent/node.yaml"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_start_says_why_and_ends_with_1() {
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
}

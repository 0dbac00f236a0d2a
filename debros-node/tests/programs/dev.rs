//! `debros-node dev`: a cluster in one process, up to thirty nodes, and what it refuses.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::process::{Node, debros, run, run_with};
use crate::{DEADLINE, MACHINE, eventually};

/// Free ports everywhere, so that tests may run beside each other.
const FREE_PORTS: [&str; 4] = ["--port", "0", "--http-port", "0"];
/// Promised for thirty nodes on one machine, from the first start to the last connection.
const FORMED_MAX: Duration = Duration::from_secs(30);

fn dev<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["dev"], more, &FREE_PORTS].concat()
}

/// The folder that the program said it would use.
fn folder_of(log: &str) -> &Path {
    let line = log.lines().find_map(|line| line.split_once(" nodes under ")).expect("the first line");
    Path::new(line.1.trim())
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_come_and_go() {
    let _beside_others = MACHINE.read().await;
    let (code, out, told) = run(&dev(&["--nodes", "3", "--once"])).await;
    assert_eq!(code, Some(0), "{out}{told}");
    assert!(out.contains("3 members, fully connected after"), "{out}");
    assert_eq!(out.matches("/p2p/12D3KooW").count(), 3, "{out}");
    assert_eq!(out.matches("HTTP http://127.0.0.1:").count(), 3, "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_nodes_know_and_reach_each_other_in_time() {
    let _alone = MACHINE.write().await;
    const NODES: usize = 30;
    let place = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let cluster = Node::start(place.path(), "thirty", &dev(&["--nodes", "30"]));
    let progress =
        ["starting 30 nodes", "30 nodes are up", "30 members, fully connected after", "try: debros"];
    for words in progress {
        eventually(words, async || cluster.said(words).then_some(()).ok_or_else(|| cluster.log())).await;
        println!("{words}: {:.1} s", started.elapsed().as_secs_f64());
    }
    let log = cluster.log();
    let (_, after) = log.split_once("fully connected after ").expect("the time");
    let formed: f64 = after.split(' ').next().and_then(|seconds| seconds.parse().ok()).expect("seconds");
    assert!(formed < FORMED_MAX.as_secs_f64(), "{formed} s");

    // The program's word, checked from outside at one node.
    let address = log.lines().find_map(|line| line.strip_prefix("node 30  ")).expect("the last node");
    let (_, out, told) = debros(&["-b", address, "-f", "json", "cluster", "members"]).await;
    let members: serde_json::Value = serde_json::from_str(&out).expect(&told);
    let members = members["members"].as_array().expect("members");
    assert_eq!(members.len(), NODES, "{out}");
    let others = members.iter().filter(|member| member["connected"] == true).count();
    assert!(others + 1 >= NODES, "{out}");

    let folder = folder_of(&log).to_owned();
    let asked = Instant::now();
    assert_eq!(cluster.terminate(DEADLINE).await, Some(0), "SIGTERM ends it cleanly");
    println!("stopped: {:.1} s", asked.elapsed().as_secs_f64());
    assert!(!folder.exists(), "{} is left behind", folder.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_forming_is_stopped_cleanly() {
    let _beside_others = MACHINE.read().await;
    let place = tempfile::tempdir().unwrap();
    let cluster = Node::start(place.path(), "forming", &dev(&["--nodes", "20"]));
    eventually("it begins", async || {
        cluster.said("starting 20 nodes").then_some(()).ok_or_else(|| cluster.log())
    })
    .await;
    let folder = folder_of(&cluster.log()).to_owned();
    let log = place.path().join("forming.log");
    assert_eq!(cluster.terminate(DEADLINE).await, Some(0));
    let log = std::fs::read_to_string(log).unwrap();
    assert!(!log.contains("fully connected"), "it was stopped too late to prove anything: {log}");
    assert!(!folder.exists(), "{} is left behind: {log}", folder.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_folder_keeps_the_data_of_all_its_nodes() {
    let _beside_others = MACHINE.read().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    for _ in 0..2 {
        let (code, out, told) = run(&dev(&["--nodes", "2", "--once", "--data-dir", path])).await;
        assert_eq!(code, Some(0), "{out}{told}");
    }
    for node in ["node-1", "node-2"] {
        assert!(folder.path().join(node).join("member.json").is_file(), "{node}");
    }
    // The missing one would be waited for without end.
    let (code, _, told) = run(&dev(&["--nodes", "1", "--once", "--data-dir", path])).await;
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("has a cluster of 2 nodes: start all with --nodes 2"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_work_is_refused() {
    let _beside_others = MACHINE.read().await;
    let (code, _, told) = run(&["dev", "--nodes", "3", "--port", "65534"]).await;
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("--port 65534 leaves no port for node 3: choose at most 65533"), "{told}");
    let (code, _, told) = run_with(("LOG_LEVEL", "banana"), &dev(&["--nodes", "1", "--once"])).await;
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("LOG_LEVEL") && told.contains("`banana`"), "{told}");
}

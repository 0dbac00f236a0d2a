//! Troubles of whole processes: a follower that stands still, a disk that fills, a leader that is killed. Each turns
//! exactly the checks that it should at the nodes that run, and they clear afterwards.
//!
//! The disk is a small file system of one node's own, mounted in a mount namespace in which that node alone lives.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::process::{Node, get, ready};
use crate::{DEADLINE, MACHINE, eventually};

const NODES: usize = 3;
/// The place of the node with a disk of its own.
const ON_SMALL_DISK: usize = 2;
/// Holds what a node writes at its start, and the reserve on top of it.
const SMALL_DISK: &str = "640m";
/// What is left of it when it counts as full: less than the reserve of 256 MiB.
const LEFT_BYTES: u64 = 160 << 20;

struct Place {
    node: Option<Node>,
    config: PathBuf,
    admin: u16,
}

struct Nodes {
    folder: tempfile::TempDir,
    places: Vec<Place>,
}

/// Ports that nobody has now.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("it is bound").port())
}

impl Nodes {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (listen, http, admin) = (free_ports::<NODES>(), free_ports::<NODES>(), free_ports::<NODES>());
        let mut nodes = Self { folder, places: Vec::new() };
        for place in 0..NODES {
            let config = nodes.folder.path().join(format!("node-{place}.yaml"));
            let text = configuration(place, listen, http[place], admin[place]);
            std::fs::write(&config, text).expect("a file");
            nodes.places.push(Place { node: None, config, admin: admin[place] });
            nodes.launch(place).await;
        }
        nodes
    }

    async fn launch(&mut self, place: usize) {
        let (name, folder) = (format!("node-{place}"), self.folder.path().to_owned());
        let config = self.places[place].config.display().to_string();
        let mut node = if place == ON_SMALL_DISK {
            let disk = folder.join(&name);
            std::fs::create_dir_all(&disk).expect("a folder");
            Node::start_on_small_disk(&folder, &name, &disk, SMALL_DISK, &["--config", &config])
        } else {
            Node::start(&folder, &name, &["--config", &config])
        };
        ready(&mut node, self.places[place].admin, DEADLINE).await;
        self.places[place].node = Some(node);
    }

    fn running(&self, place: usize) -> &Node {
        self.places[place].node.as_ref().expect("the node runs")
    }

    /// What a node answers at a path of its admin listener.
    async fn asked(&self, place: usize, path: &str) -> Result<Value, String> {
        let answer = get(self.places[place].admin, path).await.map_err(|error| error.to_string())?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        serde_json::from_str(body).map_err(|error| format!("{error}: {answer}"))
    }

    /// Waits until exactly these checks are not well at these nodes, as `PLACE CHECK`.
    async fn only(&self, asked: &[usize], checks: &[&str]) {
        let expected: BTreeSet<String> = asked
            .iter()
            .flat_map(|place| checks.iter().map(move |check| format!("{place} {check}")))
            .collect();
        eventually("exactly the expected checks are not well", async || {
            let (mut found, mut told) = (BTreeSet::new(), Vec::new());
            for place in asked {
                let health = self.asked(*place, "/healthz").await?;
                for check in health["checks"].as_array().into_iter().flatten() {
                    if check["status"] != "ok" {
                        found.insert(format!("{place} {}", check["name"].as_str().unwrap_or_default()));
                        told.push(check.to_string());
                    }
                }
            }
            if found == expected {
                Ok(())
            } else {
                Err(format!("{found:?} instead of {expected:?}: {told:?}"))
            }
        })
        .await;
    }

    /// The places of the nodes that lead no group, and of those that do.
    async fn roles(&self) -> (Vec<usize>, Vec<usize>) {
        let mut roles = (Vec::new(), Vec::new());
        for place in 0..NODES {
            let status = self.asked(place, "/status").await.expect("a status");
            let groups = status["groups"].as_array().cloned().unwrap_or_default();
            let leads = groups.iter().any(|group| group["role"] == "leader");
            if leads { roles.1.push(place) } else { roles.0.push(place) }
        }
        roles
    }
}

fn configuration(place: usize, listen: [u16; NODES], http: u16, admin: u16) -> String {
    let (kind, peers) = match place {
        0 => ("bootstrap", String::new()),
        _ => ("node", format!("/ip4/127.0.0.1/tcp/{}", listen[0])),
    };
    format!(
        "node: {{ type: {kind}, data_dir: ./node-{place}, listen_addresses: [/ip4/127.0.0.1/tcp/{}] }}\n\
         discovery: {{ bootstrap_peers: [{peers}] }}\n\
         database: {{ rqlite_port: {http} }}\n\
         admin: {{ port: {admin}, probe_interval: 500ms }}\n",
        listen[place]
    )
}

/// All places but this one.
fn others(place: usize) -> Vec<usize> {
    (0..NODES).filter(|other| *other != place).collect()
}

/// Leaves so much of the file system under `folder`; gives the file that takes the rest.
fn fill(folder: &Path) -> PathBuf {
    let file = folder.join("filling");
    let handle = std::fs::File::create(&file).expect("a file on the small disk");
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the descriptor is open, and the buffer is as large as the call expects.
    assert_eq!(unsafe { libc::fstatvfs(handle.as_raw_fd(), stat.as_mut_ptr()) }, 0);
    // SAFETY: the call succeeded, so it has filled the buffer.
    let stat = unsafe { stat.assume_init() };
    let taken = (stat.f_bavail * stat.f_frsize).saturating_sub(LEFT_BYTES);
    // SAFETY: the descriptor is open for writing.
    let allocated = unsafe { libc::posix_fallocate(handle.as_raw_fd(), 0, taken.cast_signed()) };
    assert_eq!(allocated, 0, "the small disk takes {taken} bytes");
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn each_trouble_turns_its_own_checks_and_they_clear() {
    let _beside_others = MACHINE.read().await;
    let all: Vec<usize> = (0..NODES).collect();
    let mut nodes = Nodes::start().await;
    nodes.only(&all, &[]).await;

    // A follower that stands still.
    let (followers, _) = nodes.roles().await;
    let still = *followers.first().expect("three nodes, two groups: one at least only follows");
    nodes.running(still).signal(libc::SIGSTOP);
    nodes.only(&others(still), &["peers", "quorum"]).await;
    nodes.running(still).signal(libc::SIGCONT);
    nodes.only(&all, &[]).await;

    // A disk that fills: users' writes are refused, so the probes' are.
    let filling = fill(&nodes.running(ON_SMALL_DISK).seen_from_outside(&nodes.folder.path().join("node-2")));
    nodes.only(&all, &["disk", "probe database", "probe storage"]).await;
    std::fs::remove_file(filling).expect("the file can be removed");
    nodes.only(&all, &[]).await;

    // A node that is killed: one that leads, but the one whose disk would go with it.
    let (_, leaders) = nodes.roles().await;
    let killed = leaders.into_iter().find(|place| *place != ON_SMALL_DISK).unwrap_or_default();
    nodes.places[killed].node.take().expect("it runs").kill().await;
    nodes.only(&others(killed), &["peers", "quorum"]).await;
    nodes.launch(killed).await;
    nodes.only(&all, &[]).await;
}

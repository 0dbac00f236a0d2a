//! Peers that are admitted but are not members: they hold up no writes and speak in no group.

use std::sync::Arc;

use debros_net::discovery::{Discovery, DiscoveryConfig};
use debros_net::{ClusterSecret, Host, HostConfig, Keypair, Lane, Network, PeerId, grpc};
use debros_node::service::Principal;
use debros_proto::{NodeId, v1};
use debros_sdk::{Client, Database, ErrorKind, params};
use prost::Message;
use tonic::transport::Channel;
use v1::membership_client::MembershipClient;
use v1::meta_command::Operation;
use v1::raft_client::RaftClient;

use crate::support::{Cluster, address_of, eventually, expect, holds, table, write};

const SECRET: &[u8] = b"41be8a90cc7d5f3e6b1d20f7e8a9c435";
/// How the peer without disk space is recognised.
const NARROW: &str = "narrow";

/// A peer of node 0 that has no disk space left.
struct Narrow {
    host: Arc<Host>,
    discovery: Discovery,
    node: PeerId,
}

impl Narrow {
    async fn start(cluster: &Cluster) -> Self {
        let listen = vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()];
        let (host, _) = Host::start(HostConfig::node(Keypair::generate_ed25519(), listen)).await.unwrap();
        let address = address_of(cluster.node(0)).parse().unwrap();
        let node = host.connect(&address).await.unwrap();
        let peer_id = host.local_peer().to_string();
        let status = move || v1::NodeStatus {
            peer_id: peer_id.clone(),
            version: NARROW.into(),
            disk_low: true,
            ..Default::default()
        };
        let config = DiscoveryConfig::new(vec![address], Arc::new(status));
        let discovery = Discovery::start(host.clone(), config);
        let narrow = Self { host, discovery, node };
        narrow.heard_by(cluster).await;
        narrow
    }

    async fn heard_by(&self, cluster: &Cluster) {
        let service = cluster.node(0).node.cluster_service();
        let request = v1::PeersRequest { header: header("app") };
        eventually("the node hears that the peer has no space", async || {
            let peers = service.peers(&Principal::Http, &request).map_err(|failure| failure.to_string())?;
            let heard = peers.peers.iter().filter(|peer| peer.version == NARROW && peer.connected);
            expect(heard.count(), &1)
        })
        .await;
    }

    fn membership(&self) -> MembershipClient<Channel> {
        MembershipClient::new(grpc::channel(self.host.clone(), self.node, Lane::Client))
    }

    /// Becomes a member that can hold no database.
    async fn join(&self) -> u64 {
        let request = v1::JoinRequest {
            header: header("debros"),
            peer_id: self.host.local_peer().to_string(),
            incarnation: "a log".into(),
            services: vec!["none".into()],
            ..Default::default()
        };
        self.membership().join(request).await.unwrap().into_inner().node_id
    }

    async fn removed(&self, node_id: u64) {
        let state = v1::MemberState::Removed as i32;
        let operation = Operation::SetNodeState(v1::MetaSetNodeState { node_id, state });
        let command = v1::MetaCommand { operation: Some(operation), ..Default::default() };
        let request =
            v1::ProposeRequest { header: header("debros"), command: command.encode_to_vec().into() };
        self.membership().propose(request).await.unwrap();
    }

    async fn shutdown(self) {
        self.discovery.shutdown().await;
        self.host.shutdown().await;
    }
}

fn header(namespace: &str) -> Option<v1::RequestHeader> {
    Some(v1::RequestHeader { namespace: namespace.into(), ..Default::default() })
}

async fn one_more(client: &Client) -> Result<(), ErrorKind> {
    let insert = "INSERT INTO written SELECT count(*) FROM written";
    client.database().execute(insert, params![]).await.map(|_| ()).map_err(|error| error.kind())
}

async fn refused(client: &Client) {
    eventually("writes are refused", async || expect(one_more(client).await, &Err(ErrorKind::DiskFull)))
        .await;
}

async fn accepted(client: &Client) {
    eventually("writes go on", async || one_more(client).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_member_in_reach_without_disk_space_stops_writes() {
    let cluster = Cluster::of(1).await;
    let client = cluster.client(0, "app").await;
    table(&client).await;
    let narrow = Narrow::start(&cluster).await;
    for _ in 0..50 {
        assert_eq!(one_more(&client).await, Ok(()), "it is no member");
    }
    let id = narrow.join().await;
    refused(&client).await;
    narrow.removed(id).await;
    accepted(&client).await;
    narrow.heard_by(&cluster).await;
    // A member once more, which dies.
    narrow.join().await;
    refused(&client).await;
    narrow.shutdown().await;
    accepted(&client).await;
    client.close().await;
    cluster.shutdown().await;
}

/// Forges every request of Raft to one replica, as this node.
struct Forger {
    raft: RaftClient<Channel>,
    route: v1::Route,
}

impl Forger {
    fn vote(&self, committed: bool) -> Option<v1::Vote> {
        Some(v1::Vote { term: 1_000_000, node: self.route.from, committed })
    }

    fn append(&self, single: bool) -> v1::AppendFrame {
        let log_id = v1::LogId { term: 1_000_000, leader: self.route.from, index: 1 };
        let payload = Some(v1::entry::Payload::Blank(v1::Blank {}));
        v1::AppendFrame {
            route: Some(self.route.clone()),
            session: 1 + u64::from(single),
            vote: self.vote(true),
            previous: None,
            entries: vec![v1::Entry { log_id: Some(log_id), payload }],
            leader_commit: Some(log_id),
            single,
            ..Default::default()
        }
    }

    async fn refused(mut self) {
        let refusals = [self.append(false), self.append(true)];
        let (count, frames) = (refusals.len(), tokio_stream::iter(refusals));
        let mut replies = self.raft.append(frames).await.unwrap().into_inner();
        for _ in 0..count {
            let reply = replies.message().await.unwrap().expect("an answer to each frame");
            match reply.result {
                Some(v1::append_reply::Result::Refused(refusal)) => not_this(Some(refusal)),
                other => panic!("an append was taken: {other:?}"),
            }
        }
        for (pre_vote, leadership_transfer) in [(true, false), (false, false), (false, true)] {
            let request = v1::VoteRequest {
                route: Some(self.route.clone()),
                vote: self.vote(false),
                last_log_id: Some(v1::LogId { term: 999_999, leader: self.route.from, index: 1_000_000 }),
                pre_vote,
                leadership_transfer,
            };
            let reply = self.raft.vote(request).await.unwrap().into_inner();
            assert!(!reply.granted);
            not_this(reply.refused);
        }
    }
}

fn not_this(refusal: Option<v1::Refusal>) {
    let refusal = refusal.expect("a refusal");
    assert_eq!(refusal.reason(), v1::RefusalReason::NotThisReplica, "{}", refusal.message);
    assert!(refusal.message.contains("is not known here as node"), "{}", refusal.message);
}

/// Term and end of the log of every group on the node at a place, as (group, term, last index).
fn logs(cluster: &Cluster, place: usize) -> Vec<(u64, u64, u64)> {
    let status = cluster.node(place).node.cluster_service().node_status();
    status.groups.iter().map(|group| (group.group, group.term, group.last_log_index)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_speaks_in_no_group() {
    let cluster = Cluster::closed(2, SECRET).await;
    let client = cluster.client(0, "app").await;
    table(&client).await;
    write(&client, 1).await;
    let settled = eventually("both nodes replicate map and database", async || {
        let found = [logs(&cluster, 0), logs(&cluster, 1)];
        if found[0].len() == 2 && found[0] == found[1] { Ok(found) } else { Err(format!("{found:?}")) }
    })
    .await;
    let secret = Some(ClusterSecret::from_bytes(SECRET).unwrap());
    let config = HostConfig { secret, ..HostConfig::client(Keypair::generate_ed25519()) };
    let (host, _) = Host::start(config).await.unwrap();
    let cluster_id = cluster.node(0).node.joined().await.id().to_string();
    for (place, groups) in settled.iter().enumerate() {
        let address = address_of(cluster.node(place)).parse().unwrap();
        let peer = host.connect(&address).await.unwrap();
        let to = cluster.id(place).await;
        for &(group, ..) in groups {
            for from in [999, 1, 2] {
                let route = v1::Route { group, from, to, cluster_id: cluster_id.clone() };
                let raft = RaftClient::new(grpc::channel(host.clone(), peer, Lane::Raft));
                Forger { raft, route }.refused().await;
            }
        }
    }
    for (place, before) in settled.iter().enumerate() {
        for (before, after) in before.iter().zip(logs(&cluster, place)) {
            assert_eq!((before.0, before.1), (after.0, after.1), "a term changed");
            assert!(before.2 <= after.2, "a log was cut: {before:?}, now {after:?}");
        }
    }
    let leader = cluster.node(0).node.joined().await.meta().status().leader;
    assert_eq!(leader, Some(NodeId(1)), "nobody was deposed");
    write(&client, 2).await;
    for place in 0..2 {
        let reader = cluster.client(place, "app").await;
        holds(&reader, &[1, 2]).await;
        reader.close().await;
    }
    client.close().await;
    host.shutdown().await;
    cluster.shutdown().await;
}

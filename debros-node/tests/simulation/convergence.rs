//! After every fault has ended: waits until the cluster is whole again, and gives what it holds.
//!
//! Whole means: a client's write and linearizable read succeed, every node is in the same epoch, each
//! is a voter of the database's group and has applied the same entry, and each holds the same rows.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use debros_net::grpc::Channels;
use debros_net::simulated::{SimulatedNetwork, multiaddr};
use debros_net::{Lane, Network};
use debros_proto::v1;
use debros_proto::v1::database_client::DatabaseClient;
use debros_sdk::{Database, params};
use tokio::time::{sleep, timeout};

use crate::checker::State;
use crate::clients::{APPLICATION, connect};
use crate::machine::{Board, client_keypair, keypair, socket};

/// A cluster that is not whole after this much quiet time never will be.
const WHOLE_WITHIN: Duration = Duration::from_secs(60);
/// Pause between looks.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// One node's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The numbers of the two clients of this module, beside those at work.
const OBSERVER: usize = 1000;

/// The state that all replicas agree on, or why there is none.
pub(crate) type Verdict = Rc<RefCell<Result<State, String>>>;

/// A verdict before anything was looked at.
pub(crate) fn undecided() -> Verdict {
    Rc::new(RefCell::new(Err("nothing was looked at".to_owned())))
}

/// Looks until the cluster is whole or time is up.
pub(crate) async fn observe(nodes: usize, board: Board, verdict: Verdict) -> turmoil::Result {
    let deadline = tokio::time::Instant::now() + WHOLE_WITHIN;
    let observer = match timeout(WHOLE_WITHIN, Observer::start(nodes, board)).await {
        Ok(observer) => observer?,
        Err(_) => {
            *verdict.borrow_mut() = Err("no node let a client in".to_owned());
            return Ok(());
        }
    };
    while tokio::time::Instant::now() < deadline {
        let looked = observer.look().await;
        let whole = looked.is_ok();
        *verdict.borrow_mut() = looked;
        if whole {
            break;
        }
        sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

struct Observer {
    nodes: usize,
    board: Board,
    client: debros_sdk::Client,
    channels: Channels,
}

impl Observer {
    async fn start(nodes: usize, board: Board) -> Result<Self, Box<dyn std::error::Error>> {
        let (network, _incoming) =
            SimulatedNetwork::start(client_keypair(OBSERVER), None, &[] as &[Lane]).await?;
        for node in 0..nodes {
            network.learn(keypair(node).public().to_peer_id(), &[multiaddr(socket(node))]);
        }
        let client = connect(OBSERVER + 1, nodes).await?;
        let network: Arc<dyn Network> = network;
        Ok(Self { nodes, board, client, channels: Channels::new(network) })
    }

    async fn look(&self) -> Result<State, String> {
        self.members()?;
        let database = self.client.database();
        let written = database.execute("UPDATE counter SET n = n WHERE id = 0", params![]).await;
        written.map_err(|error| format!("no write succeeds: {error}"))?;
        let read = database.query("SELECT n FROM counter WHERE id = 0", params![]).await;
        read.map_err(|error| format!("no read succeeds: {error}"))?;
        let mut states = Vec::new();
        for node in 0..self.nodes {
            states.push(
                self.state_of(node).await.map_err(|error| format!("node {node} does not answer: {error}"))?,
            );
        }
        let (_, first) = states.swap_remove(0);
        for (other, (_, state)) in states.into_iter().enumerate() {
            if state != first {
                return Err(format!("replicas differ: {}", difference(&first, &state, other + 1)));
            }
        }
        self.members()?;
        Ok(first)
    }

    /// Every node belongs, and knows the same.
    fn members(&self) -> Result<(), String> {
        let mut epochs = BTreeSet::new();
        let mut applied = BTreeSet::new();
        let mut nodes = BTreeSet::new();
        let mut voters = BTreeSet::new();
        for node in 0..self.nodes {
            let shown = self.board.shown(node).ok_or_else(|| format!("node {node} shows nothing"))?;
            let name = format!("{APPLICATION}/default");
            let group = shown.groups.iter().find(|group| group.name == name);
            let group = group.ok_or_else(|| format!("node {node} has no replica"))?;
            epochs.insert(shown.epoch);
            nodes.insert(shown.node_id);
            applied.insert(group.applied_index);
            voters.insert(group.voters.clone());
        }
        if epochs.len() != 1 {
            return Err(format!("the nodes are in epochs {epochs:?}"));
        }
        if voters != BTreeSet::from([nodes.iter().copied().collect::<Vec<u64>>()]) {
            return Err(format!("nodes {nodes:?} have voters {voters:?}"));
        }
        if applied.len() != 1 {
            return Err(format!("the replicas have applied up to {applied:?}"));
        }
        Ok(())
    }

    /// What one replica holds, whoever leads.
    async fn state_of(&self, node: usize) -> Result<(u64, State), String> {
        const TABLES: [&str; 5] = [
            "SELECT write FROM item ORDER BY write",
            "SELECT write FROM journal ORDER BY place",
            "SELECT n FROM counter ORDER BY id",
            "SELECT value, version FROM register ORDER BY id",
            "SELECT n FROM pair ORDER BY id",
        ];
        let peer = keypair(node).public().to_peer_id();
        let mut client = DatabaseClient::new(self.channels.get(peer, Lane::Client));
        let header = v1::RequestHeader { namespace: APPLICATION.to_owned(), ..Default::default() };
        let request = v1::QueryRequest {
            header: Some(header),
            statements: TABLES
                .map(|sql| v1::Statement { sql: sql.to_owned(), ..Default::default() })
                .to_vec(),
            consistency: v1::Consistency::None as i32,
            ..Default::default()
        };
        let answer = timeout(ANSWER_TIMEOUT, client.query(request)).await;
        let answer = answer.map_err(|_| "no answer")?.map_err(|status| status.to_string())?.into_inner();
        let mut tables = answer.results.iter().map(integers).collect::<Result<Vec<_>, _>>()?.into_iter();
        let mut table = || tables.next().ok_or("too few results");
        let state = State {
            items: table()?,
            journal: table()?,
            counters: table()?,
            registers: table()?.chunks(2).map(|row| (row[0], row[1])).collect(),
            pair: table()?,
        };
        Ok((answer.applied_index, state))
    }
}

fn integers(result: &v1::StatementResult) -> Result<Vec<i64>, String> {
    let rows = match &result.outcome {
        Some(v1::statement_result::Outcome::Rows(rows)) => rows,
        other => return Err(format!("{other:?}")),
    };
    let values = rows.rows.iter().flat_map(|row| &row.values);
    Ok(values
        .filter_map(|value| match value.kind {
            Some(v1::value::Kind::Integer(integer)) => Some(integer),
            _ => None,
        })
        .collect())
}

fn difference(one: &State, other: &State, node: usize) -> String {
    let missing = |from: &[i64], of: &[i64]| {
        let of: BTreeSet<i64> = of.iter().copied().collect();
        from.iter().filter(|write| !of.contains(write)).take(5).copied().collect::<Vec<_>>()
    };
    format!(
        "node {node} lacks {:?} and {:?} of node 0, node 0 lacks {:?} and {:?} of it; \
         counters {:?} {:?}, registers {:?} {:?}",
        missing(&one.items, &other.items),
        missing(&one.journal, &other.journal),
        missing(&other.items, &one.items),
        missing(&other.journal, &one.journal),
        one.counters,
        other.counters,
        one.registers,
        other.registers
    )
}

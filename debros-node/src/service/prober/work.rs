//! One probe of each kind, and what a node does for the probe of another.

use std::time::Duration;

use debros_net::Lane;
use debros_net::grpc::open_error;
use debros_proto::{ErrorCode, Failure, NodeId, limits, v1};
use rand::seq::SliceRandom;
use tokio::time::{Instant, timeout_at};
use v1::membership_client::MembershipClient;
use v1::storage_request::Operation;
use v1::storage_response::Result as Outcome;
use v1::value::Kind;

use super::Inner;
use super::listener::header;
use crate::cluster::Cluster;
use crate::service::authorise::Principal;

/// Nodes that are asked to help: one that is just going away is no failure of what is probed.
const HELPERS_MAX: usize = 2;
/// One row for each node that there ever was.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS canary (node INTEGER PRIMARY KEY, number INTEGER NOT NULL)";
/// A write that found no leader is tried again after this, as a client does.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// The node that helped, if another one was in reach; or why the probe failed.
pub(super) type ProbeOutcome = Result<Option<NodeId>, String>;

impl Inner {
    /// Puts a value, and has another node get it.
    pub(super) async fn probe_storage(&self, number: u64, deadline: Instant) -> ProbeOutcome {
        let cluster = self.cluster()?;
        let put = Operation::Put(v1::StoragePut {
            key: key(cluster.node()),
            value: number.to_le_bytes().to_vec().into(),
            ttl_ms: limits::CANARY_LIFE.as_millis() as u64,
        });
        let written = self.storage(put, deadline).await;
        written.map_err(|failure| format!("the write failed: {failure}"))?;
        self.read_back(&cluster, v1::CanaryTask::ReadStorage, number, deadline).await
    }

    /// Writes a row, and has another node read it.
    pub(super) async fn probe_database(&self, number: u64, deadline: Instant) -> ProbeOutcome {
        let cluster = self.cluster()?;
        while let Err(failure) = self.write_row(number, deadline).await {
            let again = matches!(
                failure.code,
                ErrorCode::Unavailable
                    | ErrorCode::NotLeader
                    | ErrorCode::NotReady
                    | ErrorCode::UnknownOutcome
            );
            if !again || Instant::now() + AGAIN_AFTER >= deadline {
                return Err(format!("the write failed: {failure}"));
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        self.read_back(&cluster, v1::CanaryTask::ReadDatabase, number, deadline).await
    }

    /// Has another node publish, and listens.
    pub(super) async fn probe_pubsub(&self, number: u64, deadline: Instant) -> ProbeOutcome {
        let cluster = self.cluster()?;
        self.listener.check().map_err(|failure| failure.to_string())?;
        let helpers = self.helpers(&cluster);
        let mut last = "nobody published".to_owned();
        for (index, helper) in helpers.iter().enumerate() {
            let share = share(deadline, helpers.len() - index);
            let asked = async {
                self.ask(&cluster, *helper, v1::CanaryTask::Publish, number, share).await?;
                self.listener.heard(number).await;
                Ok::<_, Failure>(())
            };
            match timeout_at(share, asked).await {
                Ok(Ok(())) => return Ok(other(&cluster, *helper)),
                Ok(Err(failure)) => last = format!("node {helper} could not publish: {failure}"),
                Err(_) => last = format!("what node {helper} published did not arrive"),
            }
        }
        Err(last)
    }

    /// Has another node read what was written. Two may be asked where the first does not answer.
    async fn read_back(
        &self,
        cluster: &Cluster,
        task: v1::CanaryTask,
        number: u64,
        deadline: Instant,
    ) -> ProbeOutcome {
        let helpers = self.helpers(cluster);
        let mut last = "nobody read it back".to_owned();
        for (index, helper) in helpers.iter().enumerate() {
            let share = share(deadline, helpers.len() - index);
            match timeout_at(share, self.ask(cluster, *helper, task, number, share)).await {
                Ok(Ok(found)) if found == number => return Ok(other(cluster, *helper)),
                Ok(Ok(_)) => {
                    return Err(format!("node {helper} reads something older than what was acknowledged"));
                }
                Ok(Err(failure)) => last = format!("node {helper} could not read it back: {failure}"),
                Err(_) => last = format!("node {helper} did not answer in time"),
            }
        }
        Err(last)
    }

    /// Members in reach in a new order each time, a few; this node where there is no other.
    fn helpers(&self, cluster: &Cluster) -> Vec<NodeId> {
        let (map, network) = (cluster.map(), self.parts.channels.network());
        let others = map.members().filter(|node| node.id != cluster.node());
        let in_reach =
            others.filter(|node| node.peer_id.parse().is_ok_and(|peer| network.is_connected(peer)));
        let mut helpers: Vec<NodeId> = in_reach.map(|node| node.id).collect();
        helpers.shuffle(&mut rand::rng());
        helpers.truncate(HELPERS_MAX);
        if helpers.is_empty() {
            helpers.push(cluster.node());
        }
        helpers
    }

    async fn ask(
        &self,
        cluster: &Cluster,
        helper: NodeId,
        task: v1::CanaryTask,
        number: u64,
        deadline: Instant,
    ) -> Result<u64, Failure> {
        if helper == cluster.node() {
            return self.answer(helper, task, number, deadline).await;
        }
        let gone = || Failure::new(ErrorCode::Unavailable, "it is no member any more");
        let peer = cluster.peer_of(helper).ok_or_else(gone)?;
        let mut client = MembershipClient::new(self.parts.channels.get(peer, Lane::Client));
        let header = v1::RequestHeader { timeout_ms: left_ms(deadline), ..cluster.node_header() };
        let request = v1::CanaryRequest { header: Some(header), task: task as i32, number };
        let answer = client.canary(request).await.map_err(|status| match open_error(&status) {
            Some(error) => Failure::new(ErrorCode::Unavailable, error.to_string()),
            None => Failure::from_status(&status),
        })?;
        Ok(answer.into_inner().number)
    }

    /// This node's half of a probe of the member `of`.
    pub(super) async fn answer(
        &self,
        of: NodeId,
        task: v1::CanaryTask,
        number: u64,
        deadline: Instant,
    ) -> Result<u64, Failure> {
        match task {
            v1::CanaryTask::ReadStorage => self.read_value(of, deadline).await,
            v1::CanaryTask::ReadDatabase => self.read_row(of, deadline).await,
            v1::CanaryTask::Publish => self.listener.publish(of, number).map(|()| number),
            v1::CanaryTask::Unspecified => Err(Failure::invalid("a task that this version does not know")),
        }
    }

    async fn storage(&self, operation: Operation, deadline: Instant) -> Result<Outcome, Failure> {
        let header = Some(header(left_ms(deadline)));
        let request = v1::StorageRequest { header, operation: Some(operation), ..Default::default() };
        let answer = self.parts.storage.operate(&self.principal(), request).await?;
        answer.result.ok_or_else(|| Failure::new(ErrorCode::Internal, "the storage gave no result"))
    }

    async fn read_value(&self, of: NodeId, deadline: Instant) -> Result<u64, Failure> {
        let get = Operation::Get(v1::StorageGet { key: key(of), without_value: false });
        let Outcome::Found(v1::StorageFound { entry: Some(entry) }) = self.storage(get, deadline).await?
        else {
            return Ok(0);
        };
        Ok(entry.value[..].try_into().map_or(0, u64::from_le_bytes))
    }

    /// Makes the canary's database with its table, where there is none.
    pub(super) async fn make_table(&self, deadline: Instant) -> Result<(), Failure> {
        self.execute(vec![statement(TABLE, &[])], deadline).await
    }

    /// Sets this node's row, and makes the table where there is none.
    async fn write_row(&self, number: u64, deadline: Instant) -> Result<(), Failure> {
        let node = self.parts.cluster.get()?.node();
        let row = "INSERT INTO canary (node, number) VALUES (?, ?) \
                   ON CONFLICT (node) DO UPDATE SET number = excluded.number";
        self.execute(vec![statement(TABLE, &[]), statement(row, &[node.0, number])], deadline).await
    }

    async fn execute(&self, statements: Vec<v1::Statement>, deadline: Instant) -> Result<(), Failure> {
        let header = Some(header(left_ms(deadline)));
        let request = v1::ExecuteRequest { header, statements, transaction: true, ..Default::default() };
        let answer = self.parts.databases.execute(&self.principal(), request).await?;
        answer.results.iter().try_for_each(sql_error)
    }

    async fn read_row(&self, of: NodeId, deadline: Instant) -> Result<u64, Failure> {
        let request = v1::QueryRequest {
            header: Some(header(left_ms(deadline))),
            statements: vec![statement("SELECT number FROM canary WHERE node = ?", &[of.0])],
            consistency: v1::Consistency::Linearizable as i32,
            ..Default::default()
        };
        let answer = self.parts.databases.query(&self.principal(), request).await?;
        answer.results.iter().try_for_each(sql_error)?;
        let rows = answer.results.into_iter().find_map(|result| match result.outcome {
            Some(v1::statement_result::Outcome::Rows(rows)) => Some(rows.rows),
            _ => None,
        });
        let value = rows.into_iter().flatten().flat_map(|row| row.values).next();
        match value.and_then(|value| value.kind) {
            Some(Kind::Integer(number)) => Ok(u64::try_from(number).unwrap_or(0)),
            _ => Ok(0),
        }
    }

    fn cluster(&self) -> Result<Cluster, String> {
        self.parts.cluster.get().map_err(|failure| failure.message)
    }

    fn principal(&self) -> Principal {
        Principal::Node(self.parts.channels.network().local_peer())
    }
}

/// The key of a node.
fn key(node: NodeId) -> String {
    format!("node/{node}")
}

fn statement(sql: &str, numbers: &[u64]) -> v1::Statement {
    let positional =
        numbers.iter().map(|number| v1::Value { kind: Some(Kind::Integer(number.cast_signed())) }).collect();
    v1::Statement { sql: sql.to_owned(), positional, named: Vec::new() }
}

fn sql_error(result: &v1::StatementResult) -> Result<(), Failure> {
    match &result.outcome {
        Some(v1::statement_result::Outcome::Error(error)) => {
            Err(Failure::new(ErrorCode::Sql, error.message.clone()))
        }
        _ => Ok(()),
    }
}

/// Where the time that is left is to serve so many helpers, the end of the next one's part.
fn share(deadline: Instant, helpers: usize) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now) / u32::try_from(helpers).unwrap_or(1).max(1)
}

fn left_ms(deadline: Instant) -> u32 {
    let left = deadline.saturating_duration_since(Instant::now()).as_millis();
    u32::try_from(left).unwrap_or(u32::MAX).max(1)
}

/// The node that helped, unless it is this one.
fn other(cluster: &Cluster, helper: NodeId) -> Option<NodeId> {
    (helper != cluster.node()).then_some(helper)
}

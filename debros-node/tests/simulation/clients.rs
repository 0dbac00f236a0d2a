//! The clients of scenario `sql`: applications that use the SDK, unchanged, over the simulated
//! network, each waiting for an answer before it asks again.

use std::sync::Arc;
use std::time::Duration;

use debros_net::Lane;
use debros_net::simulated::{SimulatedNetwork, multiaddr};
use debros_sdk::{
    Client, Consistency, Database, Error, ErrorKind, QueryResult, ReadOptions, RemoteDatabase, Statement,
    params,
};

use crate::dice::Dice;
use crate::history::{History, Operation, Outcome, Request};
use crate::machine::{client_keypair, socket};

/// The namespace of the application.
pub(crate) const APPLICATION: &str = "simulation";
/// Counters and registers: few, so that clients meet.
pub(crate) const CELLS: i64 = 4;
/// One operation with all its retries, by client: shorter than most faults, so that outcomes become
/// unknown, and unequal, so that some have found the new leader while others still ask the old one.
const OPERATION_TIMEOUTS: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_millis(1000), Duration::from_millis(2500)];
/// Distinguishes the numbers of the clients' writes.
const WRITES_PER_CLIENT: i64 = 1_000_000;

/// The tables.
pub(crate) const TABLES: [&str; 5] = [
    "CREATE TABLE IF NOT EXISTS item (write INTEGER PRIMARY KEY, filler TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS journal (place INTEGER PRIMARY KEY AUTOINCREMENT, write INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS counter (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS register (id INTEGER PRIMARY KEY, value INTEGER NOT NULL, version INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS pair (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)",
];

/// An SDK client in the machine that calls this.
pub(crate) async fn connect(number: usize, nodes: usize) -> Result<Client, Error> {
    connect_as(APPLICATION, number, nodes).await
}

/// The same for another application.
pub(crate) async fn connect_as(application: &str, number: usize, nodes: usize) -> Result<Client, Error> {
    let (network, _incoming) = SimulatedNetwork::start(client_keypair(number), None, &[] as &[Lane])
        .await
        .expect("a network that listens nowhere always starts");
    let network: Arc<dyn debros_sdk::transport::Network> = network;
    Client::builder(application)
        .bootstrap_peers((0..nodes).map(|node| multiaddr(socket(node)).to_string()))
        .network(network)
        .connect_timeout(Duration::from_secs(2))
        .attempts(60)
        .retry_delay(Duration::from_millis(500))
        .operation_timeout(OPERATION_TIMEOUTS[number % OPERATION_TIMEOUTS.len()])
        .connect()
        .await
}

/// Makes the tables and their rows, however often it takes.
pub(crate) async fn set_up(database: &RemoteDatabase) {
    let mut statements: Vec<String> = TABLES.map(str::to_owned).to_vec();
    for id in 0..CELLS {
        statements.push(format!("INSERT OR IGNORE INTO counter VALUES ({id}, 0)"));
        statements.push(format!("INSERT OR IGNORE INTO register VALUES ({id}, 0, 0)"));
    }
    statements.push("INSERT OR IGNORE INTO pair VALUES (1, 0), (2, 0)".to_owned());
    for sql in statements {
        while let Err(error) = database.execute(&sql, params![]).await {
            assert!(error.is_retryable(), "setting up: {sql}: {error}");
        }
    }
}

/// A client at work until `end`.
pub(crate) struct Worker {
    pub(crate) number: usize,
    pub(crate) nodes: usize,
    pub(crate) end: Duration,
    pub(crate) dice: Dice,
    pub(crate) history: History,
}

pub(crate) fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

impl Worker {
    /// Works, then goes.
    pub(crate) async fn run(mut self) -> turmoil::Result {
        let client = connect(self.number, self.nodes).await?;
        let database = client.database();
        let mut write = self.number as i64 * WRITES_PER_CLIENT;
        while now() < self.end {
            write += 1;
            let request = self.draw(write);
            let began = now();
            let outcome = carry_out(&database, &request).await;
            let ended = now();
            self.history.answered(Operation { client: self.number, began, ended, request, outcome });
            let pause = self.dice.milliseconds(1, 30);
            tokio::time::sleep(pause).await;
        }
        client.close().await;
        Ok(())
    }

    fn draw(&mut self, write: i64) -> Request {
        let cell = self.dice.below(CELLS as u64) as i64;
        match self.dice.below(16) {
            0..3 => Request::Insert { write },
            3..6 => Request::Append { write },
            6..8 => Request::Increment { write, counter: cell },
            8..10 => Request::Set { write, register: cell },
            10 => Request::Pair { write },
            11..13 => Request::Count { counter: cell },
            13..15 => Request::Get { register: cell },
            _ => Request::Halves { stale: self.dice.once_in(2) },
        }
    }
}

async fn carry_out(database: &RemoteDatabase, request: &Request) -> Outcome {
    let done = match *request {
        Request::Insert { write } => {
            let filler = "x".repeat((write % 7 * 40) as usize);
            let inserted = database.execute("INSERT INTO item VALUES (?, ?)", params![write, filler]).await;
            inserted.map(|_| Vec::new())
        }
        Request::Append { write } => {
            let appended = database.execute("INSERT INTO journal (write) VALUES (?)", params![write]).await;
            appended.map(|_| Vec::new())
        }
        Request::Increment { counter, .. } => {
            let added = database.execute("UPDATE counter SET n = n + 1 WHERE id = ?", params![counter]).await;
            added.map(|_| Vec::new())
        }
        Request::Set { write, register } => {
            let sql = "UPDATE register SET value = ?, version = version + 1 WHERE id = ? RETURNING version";
            database.query(sql, params![write, register]).await.map(numbers)
        }
        Request::Pair { .. } => {
            let halves = [1, 2].map(|id| Statement::new("UPDATE pair SET n = n + 1 WHERE id = ?", (id,)));
            database.transaction(halves.to_vec()).await.map(|_| Vec::new())
        }
        Request::Count { counter } => {
            database.query("SELECT n FROM counter WHERE id = ?", params![counter]).await.map(numbers)
        }
        Request::Get { register } => {
            let sql = "SELECT value, version FROM register WHERE id = ?";
            database.query(sql, params![register]).await.map(numbers)
        }
        Request::Halves { stale } => {
            let freshness = if stale { Consistency::None } else { Consistency::Linearizable };
            let options = ReadOptions::consistency(freshness);
            database.query_with("SELECT n FROM pair ORDER BY id", params![], options).await.map(numbers)
        }
        Request::Register { .. } => unreachable!("scenario `sql` asks for no registers"),
    };
    match done {
        Ok(numbers) => Outcome::Done(numbers),
        Err(error) => not_done(&error),
    }
}

fn numbers(result: QueryResult) -> Vec<i64> {
    result.rows.iter().flatten().filter_map(debros_sdk::Value::as_i64).collect()
}

pub(crate) fn not_done(error: &Error) -> Outcome {
    let text = format!("{}: {error}", error.kind());
    let explained = matches!(
        error.kind(),
        ErrorKind::Unreachable
            | ErrorKind::Unavailable
            | ErrorKind::Busy
            | ErrorKind::UnknownOutcome
            | ErrorKind::DeadlineExceeded
            | ErrorKind::NotReady
    );
    match (explained, error.maybe_applied()) {
        (false, _) => Outcome::Broken(text),
        (true, true) => Outcome::Unknown(text),
        (true, false) => Outcome::Refused(text),
    }
}

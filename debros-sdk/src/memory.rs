//! The same interfaces without a cluster: a database in this process's memory, for an application's
//! own tests and for trying things out. It runs the very code that a node runs to apply statements,
//! so what is refused there is refused here. Nothing is kept, nothing is replicated, and every
//! consistency is linearizable, because there is one copy.
//!
//! SQLite in memory never waits for a disk: statements run where they are called. The storage is
//! `storage`, a map; pub/sub is `pubsub`, mailboxes.

mod storage;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use debros_proto::{DatabaseName, ErrorCode, limits, v1};
use debros_sqlite::{
    Batch, BatchEntry, EntryEnvironment, EntryOutcome, ErrorClass, Fault, Operation, Options, SqlError,
    Stamp, StatementOutcome, Write, Writer,
};
use tokio::time::Instant;

mod pubsub;
mod registers;

use crate::address;
use crate::classify::{Access, access};
use crate::database::{Database, ReadOptions};
use crate::error::{Error, ErrorKind};
use crate::network_info::{Health, HealthCheck, HealthStatus, NetworkInfo, NetworkStatus, PeerInfo};
use crate::result::{ExecuteResult, QueryResult};
use crate::schema::{self, SchemaInfo};
use crate::statement::{Parameters, Statement, too_large};
use crate::value::Value;
use registers::Remembered;

pub use pubsub::MemoryPubSub;
pub use registers::MemoryRegisters;
pub use storage::MemoryStorage;

/// The one node that there is, where a node has a number.
const MEMORY_NODE_ID: u64 = 1;

/// A database in memory; clones share it. It goes with its last clone.
#[derive(Clone)]
pub struct MemoryDatabase {
    name: DatabaseName,
    state: Arc<Mutex<State>>,
}

struct State {
    writer: Writer,
    index: u64,
    remembered: Remembered,
    begun: Instant,
}

/// The one clock of a database in memory.
const CLOCK: u64 = 1;

impl State {
    /// Applies one operation as the next entry.
    fn apply(&mut self, operation: Operation) -> Result<EntryOutcome, Error> {
        self.index += 1;
        let index = self.index;
        let stamp = Stamp { clock: CLOCK, clock_ms: self.clock_ms(), ..Stamp::default() };
        let entry = BatchEntry { index, environment: environment(), stamp, operation };
        let batch = Batch { entries: &[entry], applied_index: index, bookkeeping: &[] };
        let mut applied = self.writer.apply_batch(batch, &|_| Vec::new()).map_err(broken)?;
        let applied = applied.pop().expect("one entry gives one outcome");
        self.remembered.record(index, applied.changes);
        Ok(applied.outcome)
    }

    /// What its clock reads.
    fn clock_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// How long until a lease is due; `None` while there is none.
    fn lease_due_in(&mut self) -> Result<Option<Duration>, Error> {
        let due = self.writer.next_lease_due_ms().map_err(broken)?;
        let now_ms = self.lease_now_ms();
        Ok(due.map(|due| Duration::from_millis(due.saturating_sub(now_ms))))
    }

    /// The time by which leases go.
    fn lease_now_ms(&self) -> u64 {
        let time = self.writer.lease_time();
        time.now_ms + time.since(CLOCK, self.clock_ms()).unwrap_or(0)
    }
}

impl MemoryDatabase {
    /// An empty database with the default name.
    ///
    /// # Errors
    /// `Internal` when there is no memory.
    pub fn new() -> Result<Self, Error> {
        Self::named(DatabaseName::DEFAULT)
    }

    /// An empty database with this name.
    ///
    /// # Errors
    /// `InvalidArgument` when the name breaks the grammar, `Internal` when there is no memory.
    pub fn named(name: &str) -> Result<Self, Error> {
        let name = DatabaseName::new(name)?;
        let writer = Writer::in_memory(Options::default()).map_err(broken)?;
        let state = State { writer, index: 0, remembered: Remembered::default(), begun: Instant::now() };
        Ok(Self { name, state: Arc::new(Mutex::new(state)) })
    }

    /// The registers that live in this database.
    pub fn registers(&self) -> MemoryRegisters {
        MemoryRegisters::of(self)
    }

    fn read(&self, statements: Vec<v1::Statement>, timeout: Duration) -> Result<Vec<QueryResult>, Error> {
        let statements: Vec<_> = statements.into_iter().map(to_sqlite).collect();
        let deadline = Instant::now() + timeout;
        let expired = move || Instant::now() >= deadline;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let outcomes = state.writer.query(&statements, &environment(), &expired).map_err(broken)?;
        outcomes.into_iter().map(to_result).collect()
    }

    fn write(
        &self,
        statements: Vec<v1::Statement>,
        transaction: bool,
        return_rows: bool,
    ) -> Result<Vec<QueryResult>, Error> {
        let statements: Vec<_> = statements.into_iter().map(to_sqlite).collect();
        let several = statements.len() > 1;
        let operation = Operation::Write(Write { statements, transaction, return_rows, session: None });
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = state.apply(operation)?;
        drop(state);
        match outcome {
            EntryOutcome::Executed(outcomes) => outcomes.into_iter().map(to_result).collect(),
            EntryOutcome::RolledBack { statement, error } => {
                let error = Error::from_sql(to_wire(error));
                Err(if several { error.at_statement(statement) } else { error })
            }
            other => unreachable!("a write without a session is executed or rolled back, not {other:?}"),
        }
    }
}

#[async_trait]
impl Database for MemoryDatabase {
    fn name(&self) -> &str {
        self.name.as_str()
    }

    async fn query_with(
        &self,
        sql: &str,
        parameters: Parameters,
        options: ReadOptions,
    ) -> Result<QueryResult, Error> {
        let statement = Statement::new(sql, parameters).into_wire()?;
        let mut results = match access(sql) {
            Access::Read => {
                self.read(vec![statement], options.timeout.unwrap_or(limits::REQUEST_TIMEOUT_DEFAULT))?
            }
            Access::Write => self.write(vec![statement], false, true)?,
        };
        Ok(results.remove(0))
    }

    async fn execute(&self, sql: &str, parameters: Parameters) -> Result<ExecuteResult, Error> {
        let statement = Statement::new(sql, parameters).into_wire()?;
        let result = self.write(vec![statement], false, false)?.remove(0);
        Ok(ExecuteResult { rows_affected: result.rows_affected, last_insert_id: result.last_insert_id })
    }

    async fn transaction(&self, statements: Vec<Statement>) -> Result<Vec<QueryResult>, Error> {
        if statements.is_empty() {
            return Ok(Vec::new());
        }
        if statements.len() > limits::STATEMENTS_MAX {
            return Err(too_large("STATEMENTS_MAX", limits::STATEMENTS_MAX, statements.len()));
        }
        let checked = statements
            .into_iter()
            .enumerate()
            .map(|(index, statement)| statement.into_wire().map_err(|error| error.at_statement(index)));
        self.write(checked.collect::<Result<_, _>>()?, true, true)
    }

    async fn get_schema(&self) -> Result<SchemaInfo, Error> {
        let tables = self.query(schema::TABLES, Parameters::default()).await?.rows_as::<String>()?;
        let statements = tables.iter().map(|table| Statement::from(schema::columns_of(table)?).into_wire());
        let statements = statements.collect::<Result<Vec<_>, Error>>()?;
        let columns = self.read(statements, limits::REQUEST_TIMEOUT_DEFAULT)?;
        schema::assemble(tables, &columns)
    }
}

/// The network of an application that has none: no peers, always healthy.
#[derive(Clone, Debug)]
pub struct MemoryNetwork {
    started: Instant,
}

impl Default for MemoryNetwork {
    fn default() -> Self {
        Self { started: Instant::now() }
    }
}

impl MemoryNetwork {
    /// A network of nobody.
    pub fn new() -> Self {
        Self::default()
    }
}

/// Stands for a node id where there is no node.
const MEMORY_NODE: &str = "memory";

#[async_trait]
impl NetworkInfo for MemoryNetwork {
    async fn get_peers(&self) -> Result<Vec<PeerInfo>, Error> {
        Ok(Vec::new())
    }

    async fn get_status(&self) -> Result<NetworkStatus, Error> {
        Ok(NetworkStatus {
            node_id: MEMORY_NODE.to_owned(),
            connected: false,
            peer_count: 0,
            database_size: 0,
            uptime: self.started.elapsed(),
            member_id: 0,
            cluster_id: String::new(),
            version: debros_proto::VERSION.to_owned(),
            zone: String::new(),
            epoch: 0,
            listen_addresses: Vec::new(),
            groups: Vec::new(),
            storage: None,
            activity: Vec::new(),
            disk_free: 0,
            belongs_to: String::new(),
            begins_anew: false,
            warnings: vec!["in memory: nothing is kept or replicated".to_owned()],
        })
    }

    async fn connect_to_peer(&self, address: &str) -> Result<String, Error> {
        address::parse(address)?;
        Err(Error::new(ErrorKind::Unreachable, "there are no peers in memory; connect a Client to a cluster"))
    }

    async fn disconnect_from_peer(&self, peer_id: &str) -> Result<(), Error> {
        address::parse_peer_id(peer_id)?;
        Err(Error::new(
            ErrorKind::NotFound,
            format!("{peer_id} is not connected: there are no peers in memory"),
        ))
    }

    async fn health(&self) -> Result<HealthStatus, Error> {
        let message = "in memory".to_owned();
        let check =
            HealthCheck { status: Health::Healthy, message, took: Duration::ZERO, next_step: String::new() };
        Ok(HealthStatus {
            status: Health::Healthy,
            checks: BTreeMap::from([("database".to_owned(), check)]),
            last_updated: SystemTime::now(),
            response_time: Duration::ZERO,
        })
    }
}

fn environment() -> EntryEnvironment {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    EntryEnvironment {
        unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        seed: rand::random(),
        step_budget: limits::WRITE_STEPS_MAX,
    }
}

/// Out of memory, or a bug: never something a statement did.
fn broken(fault: Fault) -> Error {
    Error::new(ErrorKind::Internal, fault.to_string()).with_source(fault)
}

fn to_sqlite(statement: v1::Statement) -> debros_sqlite::Statement {
    let v1::Statement { sql, positional, named } = statement;
    let parameters = if named.is_empty() {
        debros_sqlite::Parameters::Positional(positional.into_iter().map(to_value).collect())
    } else {
        let named = named.into_iter().map(|named| (named.name, to_value(named.value.unwrap_or_default())));
        debros_sqlite::Parameters::Named(named.collect())
    };
    debros_sqlite::Statement { sql, parameters }
}

fn to_value(value: v1::Value) -> debros_sqlite::Value {
    match Value::from_wire(value) {
        Value::Null => debros_sqlite::Value::Null,
        Value::Integer(integer) => debros_sqlite::Value::Integer(integer),
        Value::Real(real) => debros_sqlite::Value::Real(real),
        Value::Text(text) => debros_sqlite::Value::Text(text),
        Value::Blob(bytes) => debros_sqlite::Value::Blob(bytes.into()),
    }
}

fn from_value(value: debros_sqlite::Value) -> Value {
    match value {
        debros_sqlite::Value::Null => Value::Null,
        debros_sqlite::Value::Integer(integer) => Value::Integer(integer),
        debros_sqlite::Value::Real(real) => Value::Real(real),
        debros_sqlite::Value::Text(text) => Value::Text(text),
        debros_sqlite::Value::Blob(bytes) => Value::Blob(bytes.into()),
    }
}

fn to_result(outcome: StatementOutcome) -> Result<QueryResult, Error> {
    match outcome {
        StatementOutcome::Rows(debros_sqlite::Rows { columns, types, rows }) => {
            let rows: Vec<Vec<Value>> =
                rows.into_iter().map(|row| row.into_iter().map(from_value).collect()).collect();
            Ok(QueryResult { columns, types, count: rows.len(), rows, ..QueryResult::default() })
        }
        StatementOutcome::Counts { last_insert_id, rows_affected } => {
            Ok(QueryResult { rows_affected, last_insert_id, ..QueryResult::default() })
        }
        StatementOutcome::Error(error) => Err(Error::from_sql(to_wire(error))),
    }
}

/// As a node sends it, so that both implementations give the same error.
fn to_wire(error: SqlError) -> v1::SqlError {
    let code = match error.class {
        ErrorClass::Statement | ErrorClass::Constraint => ErrorCode::Sql,
        ErrorClass::Denied => ErrorCode::PermissionDenied,
        ErrorClass::Parameters | ErrorClass::NotReadOnly => ErrorCode::InvalidArgument,
        ErrorClass::BudgetExceeded => ErrorCode::BudgetExceeded,
        ErrorClass::LimitExceeded => ErrorCode::LimitExceeded,
    };
    v1::SqlError { message: error.message, sqlite_code: error.sqlite_code, code: code as i32 }
}

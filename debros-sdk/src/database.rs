//! The SQL database as an application sees it: the trait, its options, and the implementation that
//! asks a cluster. Checks what can be checked without a node, picks the door (read or write), and
//! turns answers into results. Retrying and sessions are `call` and `writer`.

use std::time::Duration;

use async_trait::async_trait;
use debros_proto::{DatabaseName, limits, v1};
use prost::Message;

use crate::call::{Failed, Plan, Target};
use crate::classify::{Access, access, starts_with};
use crate::client::Client;
use crate::error::Error;
use crate::result::{self, ExecuteResult, QueryResult};
use crate::rpc;
use crate::schema::{self, SchemaInfo};
use crate::statement::{Parameters, Statement, too_large};

/// How fresh a read has to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Consistency {
    /// Whatever the answering node holds, however old; see [`ReadOptions::freshness`].
    None,
    /// The leader's state, without confirming that it still leads.
    Weak,
    /// Sees every write that was acknowledged before the read began.
    #[default]
    Linearizable,
    /// The read itself goes through the log.
    Strong,
    /// `None` on a learner, `Weak` on a voter.
    Auto,
}

/// Options of one read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Overrides the client's consistency.
    pub consistency: Option<Consistency>,
    /// With [`Consistency::None`]: refuse when the replica has not heard from a leader for longer.
    pub freshness: Option<Duration>,
    /// Overrides the client's operation timeout.
    pub timeout: Option<Duration>,
}

impl ReadOptions {
    /// Reads at this consistency.
    pub fn consistency(consistency: Consistency) -> Self {
        Self { consistency: Some(consistency), ..Self::default() }
    }

    /// A stale read that is refused when the replica lags by more than this.
    pub fn stale(freshness: Duration) -> Self {
        Self { consistency: Some(Consistency::None), freshness: Some(freshness), ..Self::default() }
    }
}

/// A SQL database. Writes are applied exactly once, however often they had to be sent; a write whose
/// outcome nobody knows fails with [`Error::maybe_applied`].
#[async_trait]
pub trait Database: Send + Sync {
    /// The database's name.
    fn name(&self) -> &str;

    /// Runs one statement of any kind. A read is answered at `options`' consistency; a write goes
    /// through the log, and rows of a RETURNING clause come back.
    async fn query_with(
        &self,
        sql: &str,
        parameters: Parameters,
        options: ReadOptions,
    ) -> Result<QueryResult, Error>;

    /// Runs one statement of any kind, reads at the client's consistency.
    async fn query(&self, sql: &str, parameters: Parameters) -> Result<QueryResult, Error> {
        self.query_with(sql, parameters, ReadOptions::default()).await
    }

    /// Runs one statement that writes, and says what it changed.
    async fn execute(&self, sql: &str, parameters: Parameters) -> Result<ExecuteResult, Error>;

    /// Runs all statements or none, in order; gives each one's rows or counts.
    async fn transaction(&self, statements: Vec<Statement>) -> Result<Vec<QueryResult>, Error>;

    /// Creates a table from its `CREATE TABLE` statement.
    async fn create_table(&self, schema: &str) -> Result<(), Error> {
        if !starts_with(schema, &["CREATE", "TABLE"]) && !starts_with(schema, &["CREATE", "VIRTUAL", "TABLE"])
        {
            return Err(Error::invalid(
                "create_table takes a CREATE TABLE statement, such as `CREATE TABLE t (id INTEGER PRIMARY KEY)`",
            ));
        }
        self.execute(schema, Parameters::default()).await.map(drop)
    }

    /// Drops a table if it exists.
    async fn drop_table(&self, name: &str) -> Result<(), Error> {
        let sql = format!("DROP TABLE IF EXISTS {}", schema::quoted(name)?);
        self.execute(&sql, Parameters::default()).await.map(drop)
    }

    /// Tables and their columns, in the order of their names and definitions.
    async fn get_schema(&self) -> Result<SchemaInfo, Error>;
}

/// A database of a cluster. Clones share the write sessions.
#[derive(Clone)]
pub struct RemoteDatabase {
    client: Client,
    name: DatabaseName,
}

impl RemoteDatabase {
    pub(crate) fn new(client: Client, name: DatabaseName) -> Self {
        Self { client, name }
    }

    async fn read(
        &self,
        statements: Vec<v1::Statement>,
        options: ReadOptions,
    ) -> Result<Vec<QueryResult>, Error> {
        let shared = self.client.shared();
        let expected = statements.len();
        let consistency = options.consistency.unwrap_or(shared.settings().consistency);
        let request = v1::QueryRequest {
            header: None,
            database: self.name.to_string(),
            statements,
            consistency: wire_consistency(consistency) as i32,
            freshness_ms: options.freshness.map_or(0, milliseconds),
        };
        check_size(&request)?;
        let target = match consistency {
            Consistency::None => Target::Any,
            _ => Target::Leader(self.name.to_string()),
        };
        let plan = Plan { target, deadline: shared.deadline(options.timeout), repeatable: true };
        let answer = shared.call(&plan, &request, rpc::query).await.map_err(Failed::into_read_error)?;
        shared.learn_leader(self.name.as_str(), answer.value.leader.as_ref());
        if answer.rough {
            shared.ask_for_refresh();
        }
        result::all(answer.value.results, expected)
    }

    async fn write(
        &self,
        statements: Vec<v1::Statement>,
        transaction: bool,
        return_rows: bool,
        timeout: Option<Duration>,
    ) -> Result<Vec<v1::StatementResult>, Error> {
        let shared = self.client.shared();
        let request = v1::ExecuteRequest {
            header: None,
            database: self.name.to_string(),
            statements,
            transaction,
            session: None,
            return_rows,
        };
        check_size(&request)?;
        let response =
            shared.writer(&self.name).write(shared, request, shared.deadline(timeout), rpc::execute).await?;
        Ok(response.results)
    }
}

#[async_trait]
impl Database for RemoteDatabase {
    fn name(&self) -> &str {
        self.name.as_str()
    }

    async fn query_with(
        &self,
        sql: &str,
        parameters: Parameters,
        options: ReadOptions,
    ) -> Result<QueryResult, Error> {
        self.client.shared().check_open()?;
        let statement = Statement::new(sql, parameters).into_wire()?;
        match access(sql) {
            Access::Read => Ok(self.read(vec![statement], options).await?.remove(0)),
            Access::Write => result::one(self.write(vec![statement], false, true, options.timeout).await?),
        }
    }

    async fn execute(&self, sql: &str, parameters: Parameters) -> Result<ExecuteResult, Error> {
        self.client.shared().check_open()?;
        let statement = Statement::new(sql, parameters).into_wire()?;
        let result = result::one(self.write(vec![statement], false, false, None).await?)?;
        Ok(ExecuteResult { rows_affected: result.rows_affected, last_insert_id: result.last_insert_id })
    }

    async fn transaction(&self, statements: Vec<Statement>) -> Result<Vec<QueryResult>, Error> {
        self.client.shared().check_open()?;
        if statements.is_empty() {
            return Ok(Vec::new());
        }
        if statements.len() > limits::STATEMENTS_MAX {
            return Err(too_large("STATEMENTS_MAX", limits::STATEMENTS_MAX, statements.len()));
        }
        let expected = statements.len();
        let mut wire = Vec::with_capacity(expected);
        for (index, statement) in statements.into_iter().enumerate() {
            wire.push(statement.into_wire().map_err(|error| error.at_statement(index))?);
        }
        result::all(self.write(wire, true, true, None).await?, expected)
    }

    async fn get_schema(&self) -> Result<SchemaInfo, Error> {
        let tables = self.query(schema::TABLES, Parameters::default()).await?.rows_as::<String>()?;
        let statements: Vec<v1::Statement> = tables
            .iter()
            .map(|table| Statement::from(schema::columns_of(table)?).into_wire())
            .collect::<Result<_, Error>>()?;
        if statements.is_empty() {
            return Ok(SchemaInfo::default());
        }
        let columns = self.read(statements, ReadOptions::default()).await?;
        schema::assemble(tables, &columns)
    }
}

fn wire_consistency(consistency: Consistency) -> v1::Consistency {
    match consistency {
        Consistency::None => v1::Consistency::None,
        Consistency::Weak => v1::Consistency::Weak,
        Consistency::Linearizable => v1::Consistency::Linearizable,
        Consistency::Strong => v1::Consistency::Strong,
        Consistency::Auto => v1::Consistency::Auto,
    }
}

fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX).max(1)
}

fn check_size(request: &impl Message) -> Result<(), Error> {
    let bytes = request.encoded_len();
    if bytes > limits::REQUEST_BYTES_MAX {
        return Err(too_large("REQUEST_BYTES_MAX", limits::REQUEST_BYTES_MAX, bytes));
    }
    Ok(())
}

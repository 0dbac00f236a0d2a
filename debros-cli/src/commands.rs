//! What each command does: one call of the SDK, one printed result. A new command is a variant in
//! `arguments`, an arm here, and a shape in `json` and `table`.

use std::io::Write;

use clap::CommandFactory;
use debros_sdk::{
    ConnectedNode, CreateOptions, Database, Error, Health, LogLevel, NetworkInfo, ReadOptions,
    RemoteDatabase, check,
};
use serde_json::{Value as Json, json};

use crate::arguments::pubsub::PubSubCommand;
use crate::arguments::storage::StorageCommand;
use crate::arguments::{
    Arguments, ClusterCommand, Command, DatabaseCommand, DatabaseOptions, Global, NodeCommand, Query,
    ShellOptions,
};
use crate::connection::{self, Connection};
use crate::failure::{Exit, Failure};
use crate::format::Format;
use crate::{health, json, parameter, pubsub, registers, shell, storage, table, top};

/// Runs the command.
pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { global, command } = arguments;
    let command = match command {
        Command::Completions { shell } => return completions(shell),
        Command::Storage(command) => return run_storage(&global, command).await,
        Command::PubSub(command) => return run_pubsub(&global, command).await,
        other => other,
    };
    // Mistakes that need no node are told before one is looked for.
    let parameters = match &command {
        Command::Query(query) => Some(parse_parameters(query)?),
        _ => None,
    };
    if let Command::Registers(command) = &command {
        registers::check(command)?;
    }
    check_names(&command)?;
    let connection = connection::establish(&global).await?;
    let outcome = match command {
        Command::Health { verbose } => health(&global, &connection, verbose).await,
        Command::Top { once } => top::run(&global, &connection, once).await,
        Command::Peers => peers(&global, &connection).await,
        Command::Status => status(&global, &connection).await,
        Command::PeerId => {
            let told =
                |node: &ConnectedNode| print(global.format, || node.peer_id.clone(), || json::peer_id(node));
            connection.node().and_then(told)
        }
        Command::Connect { multiaddr } => connect(&global, &connection, &multiaddr).await,
        Command::Query(query) => {
            run_query(&global, &connection, &query, parameters.unwrap_or_default()).await
        }
        Command::Shell(options) => shell::run(&global, &connection, &options.options).await,
        Command::Cluster(command) => cluster(&global, &connection, command).await,
        Command::Node(command) => node(&global, &connection, command).await,
        Command::Database(command) => database(&global, &connection, command).await,
        Command::Registers(command) => registers::run(&global, &connection, command).await,
        Command::Completions { .. } | Command::Storage(_) | Command::PubSub(_) => {
            unreachable!("answered above")
        }
    };
    connection.client.close().await;
    outcome
}

async fn run_storage(global: &Global, command: StorageCommand) -> Result<(), Failure> {
    let task = storage::prepare(command)?;
    let connection = connection::establish(global).await?;
    let outcome = storage::run(global, &connection.client.storage(), task).await;
    connection.client.close().await;
    outcome
}

async fn run_pubsub(global: &Global, command: PubSubCommand) -> Result<(), Failure> {
    let task = pubsub::prepare(command)?;
    let connection = connection::establish(global).await?;
    let outcome = pubsub::run(global, &connection, task).await;
    connection.client.close().await;
    outcome
}

/// Prints a result in the asked form. A reader that went away ends the output, not the command.
pub(crate) fn print(
    format: Format,
    for_people: impl FnOnce() -> String,
    for_programs: impl FnOnce() -> Json,
) -> Result<(), Failure> {
    let text = match format {
        Format::Table => for_people(),
        Format::Json => for_programs().to_string(),
    };
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Local { message: format!("cannot write the result: {error}") })
        }
        _ => Ok(()),
    }
}

pub(crate) fn failed(action: &str) -> impl FnOnce(Error) -> Failure + '_ {
    move |error| Failure::operation(action, error)
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "debros", &mut script);
    print(Format::Table, || String::from_utf8_lossy(&script).into_owned(), || Json::Null)
}

fn parse_parameters(query: &Query) -> Result<debros_sdk::Parameters, Failure> {
    parameter::parse_all(&query.parameters)
        .map_err(|bad| Failure::usage(bad.0, "`debros help query` shows how parameters are written"))
}

fn check_names(command: &Command) -> Result<(), Failure> {
    let checked = match command {
        Command::Connect { multiaddr } => check::multiaddr(multiaddr),
        Command::Database(DatabaseCommand::Create { name, .. } | DatabaseCommand::Drop { name, .. }) => {
            check::database_name(name)
        }
        Command::Query(Query { options, .. }) | Command::Shell(ShellOptions { options }) => {
            options.database.as_deref().map_or(Ok(()), check::database_name)
        }
        _ => Ok(()),
    };
    checked.map_err(|error| Failure::usage(error.to_string(), "correct it; `debros help` has examples"))
}

/// The database that a command speaks of.
pub(crate) fn chosen_database(
    connection: &Connection,
    options: &DatabaseOptions,
) -> Result<RemoteDatabase, Failure> {
    match &options.database {
        None => Ok(connection.client.database()),
        Some(name) => connection
            .client
            .database_named(name)
            .map_err(|error| Failure::usage(error.to_string(), "`debros database list` shows the databases")),
    }
}

async fn run_query(
    global: &Global,
    connection: &Connection,
    query: &Query,
    parameters: debros_sdk::Parameters,
) -> Result<(), Failure> {
    let database = chosen_database(connection, &query.options)?;
    let options = ReadOptions::consistency(query.options.consistency.into());
    let result =
        database.query_with(&query.sql, parameters, options).await.map_err(failed("run the statement"))?;
    print(global.format, || table::query(&result), || json::query(&result))
}

async fn health(global: &Global, connection: &Connection, verbose: bool) -> Result<(), Failure> {
    let status = connection.client.network().health().await.map_err(failed("probe the cluster"))?;
    // Without them nodes are named by their peer ids.
    let members = connection.client.cluster().members().await.map(|known| known.members).unwrap_or_default();
    let report = health::Report::new(&status, &members);
    let for_people = || if verbose { report.in_full() } else { report.in_short() };
    print(global.format, for_people, || json::health(&status))?;
    if status.status == Health::Unhealthy { Err(Failure::Told(Exit::Unhealthy)) } else { Ok(()) }
}

async fn peers(global: &Global, connection: &Connection) -> Result<(), Failure> {
    let peers = connection.client.network().get_peers().await.map_err(failed("list the peers"))?;
    print(global.format, || table::peers(&peers), || json::peers(&peers))
}

async fn status(global: &Global, connection: &Connection) -> Result<(), Failure> {
    let status = connection.client.network().get_status().await.map_err(failed("read the status"))?;
    print(global.format, || table::status(&status), || json::status(&status))
}

async fn connect(global: &Global, connection: &Connection, multiaddr: &str) -> Result<(), Failure> {
    let network = connection.client.network();
    let node = connection.node()?;
    let peer_id = network.connect_to_peer(multiaddr).await.map_err(failed("connect to that peer"))?;
    print(
        global.format,
        || format!("{} is connected to {peer_id}", node.peer_id),
        || json!({ "peer_id": peer_id }),
    )
}

async fn cluster(global: &Global, connection: &Connection, command: ClusterCommand) -> Result<(), Failure> {
    let cluster = connection.client.cluster();
    match command {
        ClusterCommand::Members => {
            let members = cluster.members().await.map_err(failed("list the members"))?;
            print(global.format, || table::members(&members), || json::members(&members))
        }
        ClusterCommand::Leave { node_id } => {
            let node_id = match node_id {
                Some(node_id) => node_id,
                None => connected_member(connection).await?,
            };
            let epoch = cluster.leave(Some(node_id)).await.map_err(failed("let the member leave"))?;
            print(
                global.format,
                || format!("node {node_id} has left as of epoch {epoch}; it can be stopped now"),
                || json!({"node_id": node_id, "epoch": epoch}),
            )
        }
        ClusterCommand::Init => {
            let id = cluster.initialise().await.map_err(failed("initialise a cluster"))?;
            print(global.format, || format!("initialised cluster {id}"), || json!({"cluster_id": id}))
        }
    }
}

async fn node(global: &Global, connection: &Connection, command: NodeCommand) -> Result<(), Failure> {
    let NodeCommand::LogLevel { level } = command;
    let action = if level.is_some() { "change what the node logs" } else { "read what the node logs" };
    let found = connection.client.cluster().log_level(level.as_deref()).await.map_err(failed(action))?;
    let LogLevel { level: now, before } = &found;
    let for_people = || if level.is_some() { format!("{now} (was {before})") } else { now.clone() };
    print(global.format, for_people, || json!({"level": now, "before": before}))
}

/// The member that the connected node is. Told before it leaves, so that nobody wonders which it was.
async fn connected_member(connection: &Connection) -> Result<u64, Failure> {
    let node = connection.node()?;
    let status = connection.client.network().get_status().await.map_err(failed("read the node's id"))?;
    if status.node_id != node.peer_id {
        let message = format!(
            "the connected node {} does not answer any more; name the member that is to leave",
            node.peer_id
        );
        return Err(Failure::Local { message });
    }
    if status.member_id == 0 {
        return Err(Failure::Local {
            message: format!("the connected node {} is not a member of a cluster yet", node.peer_id),
        });
    }
    eprintln!("the connected node {} is node {}", node.peer_id, status.member_id);
    Ok(status.member_id)
}

async fn database(global: &Global, connection: &Connection, command: DatabaseCommand) -> Result<(), Failure> {
    let client = &connection.client;
    match command {
        DatabaseCommand::Create { name, replication_factor, if_not_exists } => {
            let options = CreateOptions { replication_factor, if_not_exists };
            let created =
                client.create_database(&name, options).await.map_err(failed("create the database"))?;
            print(global.format, || format!("database {name} is there"), || json::database(&created))
        }
        DatabaseCommand::Drop { name, if_exists } => {
            client.drop_database(&name, if_exists).await.map_err(failed("drop the database"))?;
            print(global.format, || format!("database {name} is dropped"), || json!({"dropped": name}))
        }
        DatabaseCommand::List => {
            let databases = client.list_databases().await.map_err(failed("list the databases"))?;
            let list = || json!({"databases": databases.iter().map(json::database).collect::<Vec<_>>()});
            print(global.format, || table::databases(&databases), list)
        }
    }
}

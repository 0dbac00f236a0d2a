//! The command line: what may be written and what it means. Knows no cluster.

pub(crate) mod pubsub;
pub(crate) mod storage;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use debros_sdk::{Consistency, OPERATION_TIMEOUT_MAX};

use crate::arguments::pubsub::PubSubCommand;
use crate::arguments::storage::StorageCommand;
use crate::format::Format;

const EXAMPLES: &str = "\
Examples:
  debros health                                  is the cluster well?
  debros top                                     what happens in it, each second
  debros query 'CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)'
  debros query 'INSERT INTO t (name) VALUES (?)' Ada
  debros query 'SELECT * FROM t WHERE id = ?' 1 --format json
  debros shell < setup.sql                       run a file of statements
  debros storage put greeting hello              keys and values, without SQL
  debros pubsub subscribe 'rooms.*' 10s          live messages
  debros -b /dns4/node-0.example/tcp/4001 peers  ask a node elsewhere

Without -b, a node is looked for on this machine: 127.0.0.1, TCP ports 4001 to 4005.

Exit codes:
  0  done (for `health`: healthy or degraded)
  1  the operation failed and changed nothing; or what was asked for is not there
  2  the command line is wrong
  3  no node could be reached, or none let this client in
  4  the cluster is unhealthy
  5  the outcome of a write is unknown: read before writing again

With --format json a command prints one JSON object on stdout, an error as
  {\"error\": {\"kind\", \"message\", \"retryable\", \"maybe_applied\"}}
Messages for people go to stderr.";

/// SQL, storage and live messages that survive their nodes: use and look after a debros cluster
#[derive(Debug, Parser)]
#[command(name = "debros", version, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Arguments {
    /// Reads the command line and the environment; a mistake ends the process with clap's message.
    pub(crate) fn read() -> Self {
        let matches = without_empty_variables(Self::command()).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

/// A variable that is set and empty says as much as one that is not set.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |arg: &Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| if is_empty(&arg) { arg.env(None) } else { arg })
        .mut_subcommands(without_empty_variables)
}

/// Options that may stand anywhere on the line.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Multiaddr of a node to begin with; may be given more than once, or with commas
    #[arg(
        short,
        long,
        global = true,
        env = "DEBROS_BOOTSTRAP",
        value_name = "MULTIADDR",
        value_delimiter = ','
    )]
    pub(crate) bootstrap: Vec<String>,

    /// How to print results
    #[arg(short, long, global = true, env = "DEBROS_FORMAT", value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,

    /// How long to wait: to connect, and for each operation; like 500ms, 10s, 2m
    #[arg(short, long, global = true, env = "DEBROS_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub(crate) timeout: Duration,

    /// The application's namespace
    #[arg(short, long, global = true, env = "DEBROS_NAMESPACE", default_value = "default")]
    pub(crate) namespace: String,

    /// File with the cluster secret, where the cluster asks for one
    #[arg(long, global = true, env = "DEBROS_CLUSTER_SECRET_FILE", value_name = "FILE")]
    pub(crate) cluster_secret_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Probe the nodes and the database; exit code 4 when unhealthy
    #[command(after_help = "JSON: {\"status\", \"response_time_us\", \"last_updated_unix_ms\", \
                            \"checks\": {NAME: {\"status\", \"message\", \"took_us\", \"next_step\"}}}\n\
                            docs/health.md explains the checks.")]
    Health {
        /// Show every check of every node, and what to do about those that are not well
        #[arg(short, long)]
        verbose: bool,
    },
    /// Watch the cluster: nodes, leaders, rates, what is wrong
    #[command(after_help = TOP_HELP)]
    Top {
        /// Print one frame and end; what happens anyway where standard output is no terminal
        #[arg(long)]
        once: bool,
    },
    /// List the peers of the connected node
    #[command(after_help = "JSON: {\"peers\": [{\"id\", \"node_id\", \"addresses\", \"connected\", \
                            \"last_seen_unix_ms\", \"services\", \"version\", \"zone\", \"round_trip_us\"}]}")]
    Peers,
    /// Show the connected node's status and its Raft groups
    #[command(
        after_help = "JSON: {\"node_id\", \"member_id\", \"cluster_id\", \"version\", \"zone\", \"epoch\", \
                            \"connected\", \"peer_count\", \"database_size\", \"disk_free_bytes\", \"uptime_seconds\", \
                            \"listen_addresses\", \"groups\": [..], \"warnings\"}"
    )]
    Status,
    /// Print the connected node's PeerId
    #[command(
        after_help = "JSON: {\"peer_id\", \"address\"}\nUse it to pin a bootstrap address: MULTIADDR/p2p/PEERID"
    )]
    PeerId,
    /// Have the connected node connect to the peer at a multiaddr
    #[command(after_help = "JSON: {\"peer_id\"}\nExample: debros connect /ip4/10.0.0.7/tcp/4001")]
    Connect {
        /// Where the peer is
        multiaddr: String,
    },
    /// Run one SQL statement, with bound parameters
    #[command(after_help = QUERY_HELP)]
    Query(Query),
    /// Open a SQL prompt with history; reads statements from a pipe, too
    #[command(after_help = SHELL_HELP)]
    Shell(ShellOptions),
    /// Keys and values of the namespace
    #[command(subcommand)]
    Storage(StorageCommand),
    /// Live messages between the clients of the namespace
    #[command(subcommand, name = "pubsub")]
    PubSub(PubSubCommand),
    /// Members of the cluster
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// The connected node itself
    #[command(subcommand)]
    Node(NodeCommand),
    /// Databases of the namespace
    #[command(subcommand)]
    Database(DatabaseCommand),
    /// Linearizable keys: read, set, compare and set, watch
    #[command(subcommand)]
    Registers(RegistersCommand),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example: debros completions bash > ~/.local/share/bash-completion/completions/debros"
    )]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

const TOP_HELP: &str = "\
Keys: q quits, s sorts by the next column, r reverses, ? explains the columns.
Rates are of the last second. Colours go with NO_COLOR=1.

JSON, one frame: {\"cluster_id\", \"epoch\", \"nodes\": [{\"node_id\", \"state\", \"last_seen_unix_ms\",
  \"leads_meta\", \"groups_led\", \"database\": {\"per_second\", \"p50_us\", \"p99_us\"}, \"storage\",
  \"pubsub\": {\"published_per_second\", \"delivered_per_second\"}, \"failed_per_second\",
  \"disk_free_bytes\"}], \"groups\": [{\"name\", \"leader\", \"term\", \"voters\", \"lag_entries\"}],
  \"alarms\": [{\"check\", \"status\", \"nodes\", \"message\", \"next_step\"}]}

Examples:
  debros top
  debros top --once
  debros top -f json | jq .alarms";

const QUERY_HELP: &str = "\
Parameters fill the ? of the statement in order. Each is read as
  42  -1  2.5e3      a number            true  false   1 or 0
  null               NULL                x'00ff'       a blob in hexadecimal
  'text'  \"text\"     text, whatever it looks like
  anything else      text as it stands
  :name=VALUE        a named parameter, for :name in the statement; all of them or none
What starts with a dash and is no number goes behind `--`.

JSON: {\"columns\", \"types\", \"rows\": [[..]], \"count\", \"rows_affected\", \"last_insert_id\"}
A blob is {\"blob\": \"HEX\"}; a number that JSON cannot write is {\"real\": \"Infinity\"}.

Examples:
  debros query 'SELECT name FROM t WHERE id = ?' 7
  debros query 'INSERT INTO t (name) VALUES (:name) RETURNING id' :name=Ada
  debros query 'SELECT count(*) FROM t' --consistency none";

const SHELL_HELP: &str = "\
A statement ends with `;` and may take several lines. `.help` lists the prompt's own commands.
From a pipe the first statement that fails ends the run, with its exit code.

Examples:
  debros shell
  debros shell -d orders < schema.sql
  echo 'SELECT 1;' | debros shell --format json     one JSON object a statement";

/// Which database, and how fresh reads are.
#[derive(Debug, Args)]
pub(crate) struct DatabaseOptions {
    /// The database; the namespace's default one unless named
    #[arg(short, long, env = "DEBROS_DATABASE", value_name = "NAME")]
    pub(crate) database: Option<String>,

    /// How fresh reads are
    #[arg(short, long, value_enum, default_value_t = ReadConsistency::Linearizable)]
    pub(crate) consistency: ReadConsistency,
}

#[derive(Debug, Args)]
pub(crate) struct Query {
    /// The SQL statement
    pub(crate) sql: String,
    /// What is bound to it
    #[arg(allow_negative_numbers = true)]
    pub(crate) parameters: Vec<String>,
    #[command(flatten)]
    pub(crate) options: DatabaseOptions,
}

#[derive(Debug, Args)]
pub(crate) struct ShellOptions {
    #[command(flatten)]
    pub(crate) options: DatabaseOptions,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// List the members
    #[command(
        after_help = "JSON: {\"cluster_id\", \"epoch\", \"members\": [{\"node_id\", \"peer_id\", \"state\", \
                            \"voter\", \"leader\", \"connected\", \"zone\", \"version\", \"addresses\"}]}"
    )]
    Members,
    /// Let a member leave; its replicas move away first
    #[command(after_help = "JSON: {\"node_id\", \"epoch\"}\nWait for the answer before the node is stopped.")]
    Leave {
        /// The member's node id, as `cluster members` lists it; the connected node unless given
        node_id: Option<u64>,
    },
    /// Initialise a new cluster at the connected node, once
    #[command(after_help = "JSON: {\"cluster_id\"}\nRefused where a cluster exists already.")]
    Init,
}

const LOG_LEVEL_HELP: &str = "\
JSON: {\"level\", \"before\"}

Examples:
  debros node log-level                               what the connected node logs
  debros node log-level info,debros_node::raft=debug  more of one module
  debros -b /ip4/10.0.0.7/tcp/4001 node log-level warn";

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Show what the node logs, or change it until the node is started again
    #[command(after_help = LOG_LEVEL_HELP)]
    LogLevel {
        /// error, warn, info, debug or trace, or a list of target=level with commas
        level: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DatabaseCommand {
    /// Create a database
    #[command(after_help = "JSON: {\"name\", \"group\", \"replicas\", \"leader\"}")]
    Create {
        /// Its name: lower-case letters, digits, `-`, `_`, `.`
        name: String,
        /// Replicas; the cluster's default unless given
        #[arg(long)]
        replication_factor: Option<u32>,
        /// Succeed when it is there already
        #[arg(long)]
        if_not_exists: bool,
    },
    /// Drop a database with all that is in it
    #[command(after_help = "JSON: {\"dropped\"}")]
    Drop {
        /// Its name
        name: String,
        /// Succeed when there is none
        #[arg(long)]
        if_exists: bool,
    },
    /// List the databases of the namespace
    #[command(after_help = "JSON: {\"databases\": [{\"name\", \"group\", \"replicas\", \"leader\"}]}")]
    List,
}

const KEYS_HELP: &str = "\
Keys and values are text as it stands, or bytes in hexadecimal like x'00ff'.";

#[derive(Debug, Subcommand)]
#[command(after_help = KEYS_HELP)]
pub(crate) enum RegistersCommand {
    /// Print the value of a key; exit code 1 when there is none
    #[command(
        after_help = "JSON: {\"register\": {\"key\", \"value\", \"version\", \"lease\"}}, or null in its place"
    )]
    Get {
        /// The key
        key: String,
    },
    /// Set a key, whatever it was
    #[command(after_help = "JSON: {\"version\"}")]
    Put {
        /// The key
        key: String,
        /// Its new value
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
    /// Set a key if it has this version still; exit code 1 when it has another
    #[command(
        after_help = "JSON: {\"version\"}, or {\"conflict\": {\"version\", \"value\"}}: what there is instead\n\
                      Example: debros registers cas jobs/7 0 taken      only if nobody has it"
    )]
    Cas {
        /// The key
        key: String,
        /// The version it must have; 0: it must not be there
        version: u64,
        /// Its new value
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
    /// Delete a key
    #[command(
        after_help = "JSON: {\"version\"}: the one it had, or null; or {\"conflict\": {\"version\", \"value\"}}"
    )]
    Delete {
        /// The key
        key: String,
        /// Only if it has this version still; exit code 1 when it has another
        #[arg(long = "if-version", value_name = "VERSION")]
        version: Option<u64>,
    },
    /// Add to a decimal number; a key that is not there counts as 0
    #[command(after_help = "JSON: {\"value\", \"version\"}")]
    Increment {
        /// The key
        key: String,
        /// What to add
        #[arg(default_value_t = 1, allow_negative_numbers = true)]
        delta: i64,
    },
    /// List keys in the order of their bytes
    #[command(
        after_help = "JSON: {\"registers\": [{\"key\", \"value\", \"version\", \"lease\"}], \"next\", \"revision\"}\n\
                      `next` goes into --after for the next page, `revision` into `watch --after`."
    )]
    List {
        /// What the keys begin with, taken literally
        #[arg(default_value = "")]
        prefix: String,
        /// Keys of one page
        #[arg(long, value_name = "NUMBER")]
        limit: Option<u32>,
        /// Keys behind this one
        #[arg(long, value_name = "KEY")]
        after: Option<String>,
    },
    /// List leases in the order of their numbers, with the keys that go with them
    #[command(
        after_help = "JSON: {\"leases\": [{\"lease\", \"ttl_ms\", \"left_ms\", \"keys\"}], \"next\"}\n\
                      `next` goes into --after for the next page."
    )]
    Leases {
        /// Leases of one page
        #[arg(long, value_name = "NUMBER")]
        limit: Option<u32>,
        /// Leases behind this one
        #[arg(long, value_name = "LEASE")]
        after: Option<u64>,
    },
    /// Tell of changes until it is interrupted
    #[command(
        after_help = "JSON, one object a line: {\"event\": \"put\", \"key\", \"value\", \"version\", \"lease\"},\n\
                      {\"event\": \"deleted\", \"key\", \"version\"}, {\"event\": \"lagged\", \"revision\"}"
    )]
    Watch {
        /// What the keys begin with, taken literally
        #[arg(default_value = "")]
        prefix: String,
        /// Changes after this revision; from now on unless given
        #[arg(long, value_name = "REVISION")]
        after: Option<u64>,
        /// End after so many changes
        #[arg(long, value_name = "NUMBER")]
        count: Option<u64>,
    },
}

/// How fresh a read has to be, as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReadConsistency {
    /// Whatever the node holds, however old
    None,
    /// The leader's state, without confirming that it still leads
    Weak,
    /// Sees every write acknowledged before
    Linearizable,
    /// Through the log, like a write
    Strong,
    /// None on a learner, weak on a voter
    Auto,
}

impl From<ReadConsistency> for Consistency {
    fn from(consistency: ReadConsistency) -> Self {
        match consistency {
            ReadConsistency::None => Self::None,
            ReadConsistency::Weak => Self::Weak,
            ReadConsistency::Linearizable => Self::Linearizable,
            ReadConsistency::Strong => Self::Strong,
            ReadConsistency::Auto => Self::Auto,
        }
    }
}

/// Reads `500ms`, `10s`, `2m`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds_per_unit = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        _ => return Err("use a number with ms, s or m, such as 500ms or 10s".to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| "use a number with ms, s or m, such as 10s".to_owned())?;
    match Duration::try_from_secs_f64(number * seconds_per_unit) {
        Ok(Duration::ZERO) => Err("it must be more than nothing".to_owned()),
        Ok(duration) if duration <= OPERATION_TIMEOUT_MAX => Ok(duration),
        Ok(_) | Err(_) => {
            Err(format!("no operation may take longer than {} s", OPERATION_TIMEOUT_MAX.as_secs()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::{CommandFactory, Parser};

    use super::{Arguments, Command, duration};

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn global_options_may_stand_anywhere() {
        let lines = [
            "debros -b /ip4/1.2.3.4/tcp/1,/ip4/1.2.3.5/tcp/1 -f json query X -1 y",
            "debros query X -1 y -b /ip4/1.2.3.4/tcp/1 -b /ip4/1.2.3.5/tcp/1 --format json",
        ];
        for line in lines {
            let arguments = Arguments::parse_from(line.split(' '));
            assert_eq!(arguments.global.bootstrap.len(), 2, "{line}");
            let Command::Query(query) = arguments.command else { panic!("{line}") };
            assert_eq!(query.parameters, ["-1", "y"], "{line}");
        }
    }

    #[test]
    fn a_duration_has_a_unit_or_means_seconds() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for wrong in ["", "s", "0s", "1h", "-1s", "1.2.3s", "10m", "300.1"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}

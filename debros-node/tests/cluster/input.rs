//! Mistakes in what is asked: each is told, names what to do, changes nothing, and the next request
//! is answered.

use debros_proto::limits;
use debros_sdk::{Client, Database, Error, ErrorKind, Parameters, Statement, Value, params};

use crate::support::{Cluster, get, holds, table, write};

/// The error has this kind and these words, and the data is as it was.
fn told(outcome: Result<impl std::fmt::Debug, Error>, kind: ErrorKind, words: &str) {
    let error = outcome.expect_err(words);
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(words), "{words:?} is missing in: {error}");
    assert!(!error.maybe_applied(), "{error}");
    assert!(!error.is_retryable(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_sql_are_told_and_change_nothing() {
    let cluster = Cluster::of(2).await;
    for index in 0..2 {
        // Through the leader and through a node that forwards.
        let client = cluster.client(index, &format!("app-{index}")).await;
        table(&client).await;
        write(&client, 1).await;
        malformed(&client).await;
        parameters(&client).await;
        beyond_limits(&client).await;
        forbidden(&client).await;
        write(&client, 2).await;
        holds(&client, &[1, 2]).await;
        client.close().await;
    }
    over_http(&cluster).await;
    cluster.shutdown().await;
}

async fn malformed(client: &Client) {
    let database = client.database();
    let cases = [
        ("SELEC 1", "near \"SELEC\": syntax error"),
        ("SELECT * FROM nowhere", "no such table: nowhere"),
        ("SELECT absent FROM written", "no such column: absent"),
        ("INSERT INTO written (n) VALUES ('one'", "incomplete input"),
        ("INSERT INTO written (n) VALUES (1)", "UNIQUE constraint failed: written.n"),
        ("CREATE TABLE written (n)", "table written already exists"),
    ];
    for (sql, words) in cases {
        told(database.query(sql, params![]).await, ErrorKind::Sql, words);
        told(database.execute(sql, params![]).await.map(drop), ErrorKind::Sql, words);
    }
}

async fn parameters(client: &Client) {
    let database = client.database();
    let read = "SELECT n FROM written WHERE n = ? OR n = ?";
    for given in [params![], params![1], params![1, 2, 3]] {
        let count = match &given {
            Parameters::Positional(values) => values.len(),
            Parameters::Named(values) => values.len(),
        };
        let words = format!("the statement has 2 parameters, but {count} were given");
        told(database.query(read, given.clone()).await, ErrorKind::InvalidArgument, &words);
        let write = "UPDATE written SET n = ? WHERE n = ?";
        told(database.execute(write, given).await, ErrorKind::InvalidArgument, &words);
    }
    let named = "SELECT :a";
    let words = "parameter a of the statement was not given";
    told(database.query(named, params! { "b" => 1 }).await, ErrorKind::InvalidArgument, words);
    let words = "parameter b was given, but the statement has none of that name";
    told(database.query(named, params! { "a" => 1, "b" => 1 }).await, ErrorKind::InvalidArgument, words);
}

async fn beyond_limits(client: &Client) {
    let database = client.database();
    let long = format!("SELECT 1 {}", " ".repeat(limits::STATEMENT_BYTES_MAX));
    told(
        database.query(&long, params![]).await,
        ErrorKind::LimitExceeded,
        "STATEMENT_BYTES_MAX is at most 1048576",
    );
    let many = vec![Statement::new("DELETE FROM written", ()); limits::STATEMENTS_MAX + 1];
    told(database.transaction(many).await, ErrorKind::LimitExceeded, "STATEMENTS_MAX is at most 10000");
    let huge = Value::from(vec![0u8; limits::VALUE_BYTES_MAX + 1]);
    let insert = "INSERT INTO written (n) VALUES (length(?))";
    told(
        database.execute(insert, params![huge]).await,
        ErrorKind::LimitExceeded,
        "VALUE_BYTES_MAX is at most 8388608",
    );
    let wide = Value::from(vec![0u8; limits::VALUE_BYTES_MAX]);
    let statements = vec![Statement::new(insert, [wide]); 3];
    told(
        database.transaction(statements).await,
        ErrorKind::LimitExceeded,
        "REQUEST_BYTES_MAX is at most 16777216",
    );
    let values = vec![Value::Null; limits::PARAMETERS_MAX + 1];
    let outcome = database.query("SELECT 1", Parameters::Positional(values)).await;
    told(outcome, ErrorKind::LimitExceeded, "PARAMETERS_MAX is at most 32766");
}

async fn forbidden(client: &Client) {
    let database = client.database();
    let denied = ErrorKind::PermissionDenied;
    let cases = [
        ("ATTACH DATABASE '/etc/passwd' AS a", "other database files are out of reach"),
        ("BEGIN", "BEGIN, COMMIT, ROLLBACK and SAVEPOINT are refused"),
        ("CREATE TEMP TABLE t (a)", "temporary objects are refused"),
        ("PRAGMA journal_mode = DELETE", "PRAGMA"),
        ("INSERT INTO written SELECT load_extension('x')", "load_extension"),
    ];
    for (sql, words) in cases {
        told(database.execute(sql, params![]).await, denied, words);
    }
    // The classifier of the SDK goes by the first word; the node has the last word.
    let hidden = "EXPLAIN QUERY PLAN SELECT 1";
    database.query(hidden, params![]).await.expect("an explanation is a read");
    told(
        database.create_table("DROP TABLE written").await,
        ErrorKind::InvalidArgument,
        "create_table takes a CREATE TABLE statement",
    );
    told(client.database_named("No Good").map(drop), ErrorKind::InvalidArgument, "");
    told(client.network_connect("127.0.0.1").await, ErrorKind::InvalidArgument, "is not a multiaddr");
}

/// Asks a node to connect to an address; shorter to write in a list of mistakes.
trait Connects {
    async fn network_connect(&self, address: &str) -> Result<String, Error>;
}

impl Connects for Client {
    async fn network_connect(&self, address: &str) -> Result<String, Error> {
        use debros_sdk::NetworkInfo;
        self.network().connect_to_peer(address).await
    }
}

/// A write sent as a query is refused with advice, whoever sends it.
async fn over_http(cluster: &Cluster) {
    use debros_node::service::Principal;
    use debros_proto::v1;
    let request = v1::QueryRequest {
        header: Some(v1::RequestHeader { namespace: "app-0".into(), ..Default::default() }),
        statements: vec![v1::Statement { sql: "DELETE FROM written".into(), ..Default::default() }],
        ..Default::default()
    };
    for consistency in [v1::Consistency::None, v1::Consistency::Linearizable, v1::Consistency::Strong] {
        let request = v1::QueryRequest { consistency: consistency as i32, ..request.clone() };
        let answer = cluster.node(0).node.databases().query(&Principal::Http, request).await;
        let answer = answer.expect("a statement's error is its result");
        let words = format!("{:?}", answer.results);
        assert!(words.contains("execute"), "{consistency:?}: {words}");
    }
    let http = cluster.node(1).http;
    let answer = get(http, "/db/query?namespace=app-0&q=DELETE%20FROM%20written").await;
    assert!(answer.body.contains("error") && answer.body.contains("execute"), "{}", answer.body);
    let client = cluster.client(0, "app-0").await;
    holds(&client, &[1, 2]).await;
    client.close().await;
}

//! What every implementation of the SDK's interfaces does alike. Run it against an empty database
//! or storage; it panics where the implementation differs, and leaves its tables and keys behind.

mod storage;

mod locks;
mod pubsub;
mod registers;

use crate::database::{Database, ReadOptions};
use crate::error::ErrorKind;
use crate::params;
use crate::statement::{Parameters, Statement};
use crate::value::Value;

pub use locks::locks;
pub use pubsub::pubsub;
pub use registers::registers;
pub use storage::storage;

/// Holds a [`Database`] to its contract.
///
/// # Panics
/// Where the contract is broken.
pub async fn database(database: &dyn Database) {
    values(database).await;
    writes(database).await;
    transactions(database).await;
    schema(database).await;
    mistakes(database).await;
}

async fn values(database: &dyn Database) {
    database
        .create_table("CREATE TABLE conformance_value (id INTEGER PRIMARY KEY, v)")
        .await
        .expect("a table");
    let values = [
        Value::Null,
        Value::Integer(i64::MIN),
        Value::Integer(i64::MAX),
        Value::Real(-0.5),
        Value::Text("naïve ' \" \u{1F600}".into()),
        Value::Text(String::new()),
        Value::from(&[0u8, 255]),
    ];
    for value in &values {
        let inserted = database.execute("INSERT INTO conformance_value (v) VALUES (?)", params![value]).await;
        assert_eq!(inserted.expect("an insert").rows_affected, 1);
    }
    let result =
        database.query("SELECT v FROM conformance_value ORDER BY id", params![]).await.expect("rows");
    assert_eq!(result.rows_as::<Value>().expect("values"), values);
    assert_eq!((result.count, result.columns), (values.len(), vec!["v".to_owned()]));
    let named = database.query("SELECT :a + :b AS sum", params! { "a" => 2, "b" => 3 }).await.expect("a sum");
    assert_eq!(named.first_as::<i64>().expect("a number"), Some(5));
}

async fn writes(database: &dyn Database) {
    database
        .create_table("CREATE TABLE conformance_write (id INTEGER PRIMARY KEY, n)")
        .await
        .expect("a table");
    let first = database.execute("INSERT INTO conformance_write (n) VALUES (1), (2)", params![]).await;
    let first = first.expect("an insert");
    assert_eq!((first.rows_affected, first.last_insert_id), (2, 2));
    let returning = "UPDATE conformance_write SET n = n + 1 RETURNING n";
    let returned = database.query(returning, params![]).await.expect("rows of a write");
    assert_eq!(returned.rows_as::<i64>().expect("numbers"), [2, 3]);
    let with = "WITH more(n) AS (VALUES (7)) INSERT INTO conformance_write (n) SELECT n FROM more";
    assert_eq!(database.query(with, params![]).await.expect("a write").rows_affected, 1);
    let read = database.query_with(
        "SELECT count(*) FROM conformance_write",
        Parameters::default(),
        ReadOptions::default(),
    );
    assert_eq!(read.await.expect("a count").first_as::<i64>().expect("a number"), Some(3));
}

async fn transactions(database: &dyn Database) {
    database.create_table("CREATE TABLE conformance_unique (n UNIQUE)").await.expect("a table");
    let insert = |n: i64| Statement::new("INSERT INTO conformance_unique VALUES (?)", (n,));
    let done =
        database.transaction(vec![insert(1), Statement::from("SELECT n FROM conformance_unique")]).await;
    let done = done.expect("a transaction");
    assert_eq!((done[0].rows_affected, done[1].first_as::<i64>().expect("a number")), (1, Some(1)));
    let failed = database.transaction(vec![insert(2), insert(1), insert(3)]).await.expect_err("not unique");
    assert_eq!(failed.kind(), ErrorKind::Sql);
    assert!(!failed.maybe_applied());
    assert_eq!(failed.statement(), Some(1), "{failed}");
    assert!(failed.to_string().contains("statement 2"), "{failed}");
    let failed = database.transaction(vec![insert(1), insert(2)]).await.expect_err("not unique");
    assert_eq!((failed.kind(), failed.statement()), (ErrorKind::Sql, Some(0)), "{failed}");
    let count = database.query("SELECT count(*) FROM conformance_unique", params![]).await.expect("a count");
    assert_eq!(count.first_as::<i64>().expect("a number"), Some(1), "all statements or none");
    assert!(database.transaction(Vec::new()).await.expect("nothing to do").is_empty());
}

async fn schema(database: &dyn Database) {
    let create =
        "CREATE TABLE conformance_schema (id INTEGER PRIMARY KEY, name TEXT NOT NULL DEFAULT 'x', free)";
    database.create_table(create).await.expect("a table");
    let schema = database.get_schema().await.expect("a schema");
    assert!(schema.tables.iter().all(|table| !table.name.starts_with("_debros")), "{schema:?}");
    let table = schema.tables.iter().find(|table| table.name == "conformance_schema").expect("the table");
    let [id, name, free] = table.columns.as_slice() else { panic!("three columns: {table:?}") };
    assert!(id.primary_key && !id.nullable && id.data_type == "INTEGER");
    assert!(!name.nullable && name.default_value.as_deref() == Some("'x'"));
    assert!(free.nullable && free.data_type.is_empty() && !free.primary_key);
    database.drop_table("conformance_schema").await.expect("dropped");
    database.drop_table("conformance_schema").await.expect("dropped before");
    let schema = database.get_schema().await.expect("a schema");
    assert!(schema.tables.iter().all(|table| table.name != "conformance_schema"));
}

async fn mistakes(database: &dyn Database) {
    let cases = [
        ("SELEC 1", params![], ErrorKind::Sql),
        ("SELECT * FROM conformance_nowhere", params![], ErrorKind::Sql),
        ("INSERT INTO conformance_nowhere VALUES (1)", params![], ErrorKind::Sql),
        ("SELECT ?1 + ?2", params![1], ErrorKind::InvalidArgument),
        ("BEGIN", params![], ErrorKind::PermissionDenied),
        ("ATTACH 'x' AS y", params![], ErrorKind::PermissionDenied),
        ("", params![], ErrorKind::InvalidArgument),
    ];
    for (sql, parameters, kind) in cases {
        let error = database.query(sql, parameters).await.expect_err(sql);
        assert_eq!((error.kind(), error.maybe_applied()), (kind, false), "{sql}: {error}");
    }
    let error = database.create_table("DROP TABLE conformance_write").await.expect_err("no CREATE TABLE");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

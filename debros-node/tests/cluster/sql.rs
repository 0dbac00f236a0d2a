//! SQL through the SDK, at whichever node: what was written through one is read at every other.

use std::collections::BTreeSet;

use debros_node::service::Principal;
use debros_proto::v1;
use debros_sdk::{
    Client, Consistency, CreateOptions, Database, ErrorKind, ReadOptions, Statement, Value, params,
};

use crate::support::{Cluster, eventually, expect};

#[tokio::test(flavor = "multi_thread")]
async fn sql_works_alike_through_every_node() {
    let cluster = Cluster::of(3).await;
    let mut clients = Vec::new();
    for index in 0..3 {
        clients.push(cluster.client(index, "app").await);
    }
    written_here_read_there(&clients).await;
    every_type_comes_back(&clients).await;
    transactions_are_atomic(&clients).await;
    stale_reads_are_asked_for(&clients).await;
    databases_come_and_go(&clients).await;
    namespaces_do_not_meet(&cluster, &clients[0]).await;
    a_repeated_write_is_applied_once(&cluster).await;
    for (index, client) in clients.iter().enumerate() {
        // The contract that every implementation of the SDK's interface keeps, at every node.
        let name = format!("conformance-{index}");
        client.create_database(&name, CreateOptions::default()).await.unwrap();
        debros_sdk::conformance::database(&client.database_named(&name).unwrap()).await;
    }
    for client in clients {
        client.close().await;
    }
    cluster.shutdown().await;
}

async fn written_here_read_there(clients: &[Client]) {
    clients[0]
        .database()
        .create_table("CREATE TABLE ships (id INTEGER PRIMARY KEY, name TEXT)")
        .await
        .unwrap();
    for round in 0..10 {
        for (index, writer) in clients.iter().enumerate() {
            let name = format!("ship {round} of {index}");
            let insert = "INSERT INTO ships (name) VALUES (?) RETURNING id";
            let rows = writer.database().query(insert, params![&name]).await.unwrap();
            let id = rows.first_as::<i64>().unwrap().expect("the new row's id");
            for reader in clients {
                // Linearizable is the default: an acknowledged write is seen at once, everywhere.
                let found = reader.database().query("SELECT name FROM ships WHERE id = ?", params![id]).await;
                assert_eq!(found.unwrap().first_as::<String>().unwrap().as_ref(), Some(&name));
            }
        }
    }
    for consistency in [Consistency::Weak, Consistency::Strong, Consistency::Linearizable] {
        for reader in clients {
            let options = ReadOptions::consistency(consistency);
            let counted =
                reader.database().query_with("SELECT count(*) FROM ships", params![], options).await;
            assert_eq!(counted.unwrap().first_as::<i64>().unwrap(), Some(30), "{consistency:?}");
            // Every consistency reads whatever can be read.
            let columns = reader.database().query_with("PRAGMA table_info(ships)", params![], options).await;
            assert_ne!(columns.unwrap().count, 0, "{consistency:?}");
        }
    }
}

async fn every_type_comes_back(clients: &[Client]) {
    let values = [
        Value::Null,
        Value::Integer(i64::MIN),
        Value::Integer(i64::MAX),
        Value::Real(1.5e300),
        Value::Text("naïve \u{1F600} '\"\0 end".into()),
        Value::Text(String::new()),
        Value::from(vec![0u8, 255, 7]),
        Value::from(Vec::<u8>::new()),
        Value::from(vec![7u8; 1 << 20]),
    ];
    clients[1].database().create_table("CREATE TABLE typed (id INTEGER PRIMARY KEY, v)").await.unwrap();
    for value in &values {
        let insert = "INSERT INTO typed (v) VALUES (:value)";
        clients[2].database().execute(insert, params! { "value" => value }).await.unwrap();
    }
    let rows = clients[0].database().query("SELECT v FROM typed ORDER BY id", params![]).await.unwrap();
    assert_eq!(rows.rows_as::<Value>().unwrap(), values);
    let schema = clients[0].database().get_schema().await.unwrap();
    let names: BTreeSet<&str> = schema.tables.iter().map(|table| table.name.as_str()).collect();
    assert!(names.is_superset(&BTreeSet::from(["ships", "typed"])), "{names:?}");
}

async fn transactions_are_atomic(clients: &[Client]) {
    let database = clients[2].database();
    database
        .create_table("CREATE TABLE account (name TEXT PRIMARY KEY, coins INTEGER CHECK (coins >= 0))")
        .await
        .unwrap();
    database.execute("INSERT INTO account VALUES ('a', 10), ('b', 0)", params![]).await.unwrap();
    let pay = |coins: i64| {
        vec![
            Statement::new("UPDATE account SET coins = coins + ? WHERE name = 'b'", params![coins]),
            Statement::new("UPDATE account SET coins = coins - ? WHERE name = 'a'", params![coins]),
        ]
    };
    let refused = database.transaction(pay(11)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Sql, "{refused}");
    assert!(
        refused.to_string().contains("statement 2") && refused.to_string().contains("CHECK"),
        "{refused}"
    );
    assert!(!refused.maybe_applied());
    database.transaction(pay(4)).await.unwrap();
    let read = "SELECT coins FROM account ORDER BY name";
    let coins = clients[0].database().query(read, params![]).await.unwrap().rows_as::<i64>().unwrap();
    assert_eq!(coins, [6, 4]);
}

async fn stale_reads_are_asked_for(clients: &[Client]) {
    for reader in clients {
        let stale = ReadOptions::consistency(Consistency::None);
        eventually("a stale read catches up by itself", async || {
            let read = reader.database().query_with("SELECT count(*) FROM ships", params![], stale).await;
            expect(
                read.and_then(|rows| rows.first_as::<i64>()).map_err(|error| error.to_string())?,
                &Some(30),
            )
        })
        .await;
        let fresh = ReadOptions::stale(std::time::Duration::from_secs(5));
        let read = reader.database().query_with("SELECT count(*) FROM ships", params![], fresh).await;
        assert_eq!(read.unwrap().first_as::<i64>().unwrap(), Some(30));
    }
}

async fn databases_come_and_go(clients: &[Client]) {
    let created = clients[1].create_database("orders", CreateOptions::default()).await.unwrap();
    assert_eq!((created.name.as_str(), created.replicas.len()), ("orders", 3));
    let again = clients[2].create_database("orders", CreateOptions::default()).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists, "{again}");
    let not_minding = CreateOptions { if_not_exists: true, ..Default::default() };
    assert_eq!(clients[2].create_database("orders", not_minding).await.unwrap().group, created.group);
    let single = CreateOptions { replication_factor: Some(1), ..Default::default() };
    assert_eq!(clients[0].create_database("single", single).await.unwrap().replicas.len(), 1);
    for (index, client) in clients.iter().enumerate() {
        for name in ["orders", "single"] {
            let database = client.database_named(name).unwrap();
            let table = format!("CREATE TABLE of_{index} (id INTEGER PRIMARY KEY)");
            database.create_table(&table).await.unwrap();
            let insert = format!("INSERT INTO of_{index} VALUES (?)");
            assert_eq!(database.execute(&insert, params![7]).await.unwrap().last_insert_id, 7);
        }
        let other = client.database().query("SELECT * FROM of_0", params![]).await.unwrap_err();
        assert!(other.to_string().contains("no such table: of_0"), "{other}");
    }
    let names =
        |databases: Vec<debros_sdk::DatabaseInfo>| databases.into_iter().map(|found| found.name).collect();
    let listed: BTreeSet<String> = names(clients[2].list_databases().await.unwrap());
    assert_eq!(listed, ["default", "orders", "single"].map(String::from).into());
    clients[0].drop_database("orders", false).await.unwrap();
    for client in clients {
        let gone = client.database_named("orders").unwrap().query("SELECT 1", params![]).await.unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound, "{gone}");
        assert_eq!(gone.to_string(), "there is no database orders in namespace app: create it first");
        let write = client.database_named("never").unwrap().execute("CREATE TABLE t (a)", params![]).await;
        let write = write.unwrap_err();
        assert_eq!((write.kind(), write.maybe_applied()), (ErrorKind::NotFound, false), "{write}");
    }
    assert_eq!(clients[0].drop_database("orders", false).await.unwrap_err().kind(), ErrorKind::NotFound);
    clients[0].drop_database("orders", true).await.unwrap();
    // The name is free again, and what was in it is gone.
    clients[1].create_database("orders", CreateOptions::default()).await.unwrap();
    assert!(clients[1].database_named("orders").unwrap().get_schema().await.unwrap().tables.is_empty());
}

async fn namespaces_do_not_meet(cluster: &Cluster, app: &Client) {
    let other = cluster.client(1, "other-app").await;
    other.database().create_table("CREATE TABLE ships (label TEXT)").await.unwrap();
    other.database().execute("INSERT INTO ships VALUES ('theirs')", params![]).await.unwrap();
    let theirs = other.database().query("SELECT * FROM ships", params![]).await.unwrap();
    assert_eq!((theirs.columns, theirs.count), (vec!["label".to_owned()], 1));
    let ours = app.database().query("SELECT count(*) FROM ships", params![]).await.unwrap();
    assert_eq!(ours.first_as::<i64>().unwrap(), Some(30));
    assert_eq!(
        other.list_databases().await.unwrap().len(),
        1,
        "the other application's databases stay unseen"
    );
    let system = cluster.builder([0], "debros").connect().await.unwrap();
    let refused = system.database().query("SELECT 1", params![]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    assert_eq!(refused.to_string(), "namespace debros belongs to the platform: use one of your own");
    system.close().await;
    other.close().await;
}

/// The very same request twice, at two nodes, as a client sends it that did not hear the answer.
async fn a_repeated_write_is_applied_once(cluster: &Cluster) {
    let header = Some(v1::RequestHeader { namespace: "app".into(), ..Default::default() });
    let open = v1::OpenSessionRequest { header: header.clone(), ..Default::default() };
    let session = cluster.node(0).node.databases().open_session(&Principal::Http, open).await.unwrap();
    let statement = v1::Statement {
        sql: "INSERT INTO ships (name) VALUES ('once') RETURNING id".into(),
        ..Default::default()
    };
    let request = v1::ExecuteRequest {
        header,
        statements: vec![statement],
        session: Some(v1::WriteSession { id: session.id, sequence: 1, acknowledged: 1 }),
        return_rows: true,
        ..Default::default()
    };
    let mut answers = Vec::new();
    for index in 0..3 {
        let databases = cluster.node(index).node.databases();
        answers.push(databases.execute(&Principal::Http, request.clone()).await.unwrap().results);
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0], answers[2]);
    let client = cluster.client(0, "app").await;
    let count = client.database().query("SELECT count(*) FROM ships WHERE name = 'once'", params![]).await;
    assert_eq!(count.unwrap().first_as::<i64>().unwrap(), Some(1));
    client.close().await;
}

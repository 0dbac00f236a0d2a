//! The quickstart of the crate's documentation as a program. It asks the nodes named in
//! `DEBROS_BOOTSTRAP` (comma-separated multiaddrs; by default the first node on this machine), leaves
//! nothing behind, and prints what it read.
//!
//! Run it with `cargo run -p debros-sdk --example quickstart`.

use debros_sdk::{Client, Database, Error, NetworkInfo, Statement, params};
use serde::Deserialize;

#[derive(Deserialize)]
struct Ship {
    id: i64,
    name: String,
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let bootstrap =
        std::env::var("DEBROS_BOOTSTRAP").unwrap_or_else(|_| "/ip4/127.0.0.1/tcp/4001".to_owned());
    let mut builder = Client::builder("quickstart").bootstrap_peers(bootstrap.split(','));
    if let Some(file) = std::env::var_os("DEBROS_CLUSTER_SECRET_FILE") {
        builder = builder.cluster_secret_file(file);
    }
    let client = builder.connect().await?;
    let database = client.database();

    database.drop_table("ships").await?;
    database.create_table("CREATE TABLE ships (id INTEGER PRIMARY KEY, name TEXT NOT NULL)").await?;
    database.execute("INSERT INTO ships (name) VALUES (?)", params!["Beagle"]).await?;
    database
        .transaction(vec![
            Statement::new("UPDATE ships SET name = upper(name) WHERE id = ?", (1,)),
            Statement::new("INSERT INTO ships (name) VALUES (:name)", params! { "name" => "Fram" }),
        ])
        .await?;

    let result = database.query("SELECT id, name FROM ships ORDER BY id", params![]).await?;
    for ship in result.rows_as::<Ship>()? {
        println!("{} {}", ship.id, ship.name);
    }
    for table in database.get_schema().await?.tables {
        let columns: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
        println!("table {} has {}", table.name, columns.join(", "));
    }
    println!("the cluster is {}", client.network().health().await?.status);
    database.drop_table("ships").await?;
    client.close().await;
    Ok(())
}

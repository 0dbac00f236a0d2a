//! What keeps a node from starting: each has an error that says what to do, nothing is left running,
//! and nothing on disk is changed.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;

use debros_config::Config;
use debros_node::launch::launch;

use crate::support::{Cluster, address_of, configuration, whole};

/// The start fails with these words; afterwards the same folder and ports can be used.
async fn refused(config: &Config, words: &[&str]) {
    let error = match launch(config).await {
        Ok(_) => panic!("the node started; expected {words:?}"),
        Err(error) => whole(&error),
    };
    for word in words {
        assert!(error.contains(word), "{word:?} is missing in: {error}");
    }
}

async fn starts(config: &Config) {
    let node = launch(config).await.unwrap_or_else(|error| panic!("{}", whole(&error)));
    node.shutdown().await;
}

fn taken() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named_with_its_key() {
    let cluster = Cluster::empty().await;
    let config = || configuration(&cluster.folder().join("node"), &[]);
    let (listener, port) = taken();

    let mut peer = config();
    peer.node.listen_addresses = vec![format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()];
    refused(
        &peer,
        &[&format!("the port of /ip4/127.0.0.1/tcp/{port} is taken"), "choose another listen address"],
    )
    .await;
    let mut http = config();
    http.database.rqlite_port = port;
    refused(&http, &[&format!("127.0.0.1:{port} is taken by another program"), "database.rqlite_port"]).await;
    let mut admin = config();
    admin.admin.port = port;
    refused(&admin, &[&format!("127.0.0.1:{port} is taken by another program"), "admin.port"]).await;
    drop(listener);
    // Nothing of the three attempts went on running: the folder is free, and so are their ports.
    for config in [&peer, &http, &admin] {
        starts(config).await;
    }

    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let mut quic = config();
    quic.node.listen_addresses = vec![format!("/ip4/127.0.0.1/udp/{port}/quic-v1").parse().unwrap()];
    refused(&quic, &[&format!("the port of /ip4/127.0.0.1/udp/{port}/quic-v1 is taken")]).await;
    drop(socket);
    starts(&quic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_serves_one_node() {
    let cluster = Cluster::of(1).await;
    let folder = cluster.folder().join("node-0");
    let second = configuration(&folder, &[]);
    refused(
        &second,
        &["is in use by another node: stop it, or give this one another node.data_dir", "node-0"],
    )
    .await;
    // The first one is none the worse for it.
    let client = cluster.client(0, "app").await;
    crate::support::table(&client).await;
    client.close().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_data_folder_is_named() {
    let cluster = Cluster::empty().await;
    let file = cluster.folder().join("a-file");
    std::fs::write(&file, "in the way").unwrap();
    let below = configuration(&file.join("data"), &[]);
    refused(&below, &["a-file/data cannot be used: check node.data_dir and its permissions"]).await;
    let mut database = configuration(&cluster.folder().join("node"), &[]);
    database.database.data_dir = Some(file.join("database"));
    refused(&database, &["a-file/database"]).await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "in the way");
    database.database.data_dir = None;
    starts(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_storage_is_kept_where_the_configuration_says_and_serves_one_node() {
    let cluster = Cluster::empty().await;
    let (folder, storage) = (cluster.folder().join("node"), cluster.folder().join("elsewhere"));
    let mut config = configuration(&folder, &[]);
    config.storage.data_dir = Some(storage.clone());
    config.storage.relaxed_namespaces = vec!["cache".to_owned()];
    let node = launch(&config).await.unwrap_or_else(|error| panic!("{}", whole(&error)));
    assert!(storage.join("data.mdb").exists());
    assert!(!folder.join("storage").exists());
    // Whoever looks at the node sees what it gives up.
    crate::support::eventually("the status names the relaxed namespaces", async || {
        let body = crate::support::get(node.admin, "/status").await.body;
        let told = body.contains(r#""relaxed_namespaces":["cache"]"#);
        if told { Ok(()) } else { Err(body) }
    })
    .await;

    let mut second = configuration(&cluster.folder().join("second"), &[]);
    second.storage.data_dir = Some(storage.clone());
    let words = "elsewhere is in use by another node: stop it, or give this one another storage.data_dir";
    refused(&second, &[words]).await;
    node.shutdown().await;

    std::fs::write(cluster.folder().join("a-file"), "in the way").unwrap();
    second.storage.data_dir = Some(cluster.folder().join("a-file/storage"));
    refused(&second, &["a-file/storage cannot be used: check storage.data_dir and its permissions"]).await;
}

/// Damages one file, expects a refusal, repairs it and starts.
async fn damaged(config: &Config, file: &Path, words: &[&str]) {
    let good = std::fs::read(file).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 0x55;
    std::fs::write(file, &bad).unwrap();
    refused(config, words).await;
    assert_eq!(std::fs::read(file).unwrap(), bad, "a damaged file stays as it is");
    std::fs::write(file, &good).unwrap();
    starts(config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_stops_the_start_and_nothing_is_made_up_in_its_place() {
    let cluster = Cluster::empty().await;
    let folder = cluster.folder().join("node");
    let config = configuration(&folder, &[]);
    let node = launch(&config).await.unwrap();
    let (peer, id) = (node.node.peer_id(), node.node.joined().await.id());
    node.shutdown().await;
    damaged(
        &config,
        &folder.join("identity.key"),
        &[
            "identity.key is corrupt",
            "restore it from a backup; only to become a different node, move it away and start again",
        ],
    )
    .await;
    let member = folder.join("member.json");
    damaged(&config, &member, &["member.json is damaged"]).await;

    let away = folder.join("member.json.away");
    std::fs::rename(&member, &away).unwrap();
    let node = launch(&config).await.unwrap();
    let failure = node.failed().await;
    let cause = std::error::Error::source(&failure).expect("a cause").to_string();
    assert!(cause.contains("holds a Raft log but no member.json"), "{cause}");
    node.shutdown().await;
    std::fs::rename(&away, &member).unwrap();
    let node = launch(&config).await.unwrap();
    assert_eq!((node.node.peer_id(), node.node.joined().await.id()), (peer, id));
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_others_can_read_and_a_weak_secret_stop_the_start() {
    use std::os::unix::fs::PermissionsExt;
    let cluster = Cluster::empty().await;
    let folder = cluster.folder().join("node");
    let mut config = configuration(&folder, &[]);
    starts(&config).await;
    let key = folder.join("identity.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    refused(&config, &["may be read by others (mode 644): run `chmod 600` on it"]).await;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();

    let secret = cluster.folder().join("secret");
    config.security.cluster_secret_file = Some(secret.clone());
    refused(&config, &["cannot read the cluster secret", "secret"]).await;
    std::fs::write(&secret, "password").unwrap();
    refused(&config, &["the cluster secret is too weak", "openssl rand"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_bootstrap_address_is_told_and_does_no_harm() {
    let mut cluster = Cluster::of(1).await;
    let index = cluster.add().await;
    cluster.formed().await;
    let (first, second) = (address_of(cluster.node(0)), cluster.node(index).node.peer_id());
    let wrong = format!("{first}/p2p/{second}");
    let error = debros_sdk::Client::builder("app").bootstrap_peers([&wrong]).connect().await.unwrap_err();
    assert_eq!(error.kind(), debros_sdk::ErrorKind::InvalidArgument, "{error}");
    let expected = format!("belongs to peer {}, not to {second}", cluster.node(0).node.peer_id());
    assert!(error.to_string().contains(&expected), "{error}");

    // A node that pins the wrong peer there does not join, and does with the right one.
    let mut config = configuration(&cluster.folder().join("third"), &[wrong]);
    let third = launch(&config).await.unwrap();
    let health = crate::support::get(third.admin, "/readyz").await;
    assert_eq!(health.status, 503);
    assert!(health.body.contains("this node has not joined a cluster yet"), "{}", health.body);
    third.shutdown().await;
    config.discovery.bootstrap_peers =
        vec![format!("{first}/p2p/{}", cluster.node(0).node.peer_id()).parse().unwrap()];
    let third = launch(&config).await.unwrap();
    tokio::time::timeout(crate::support::DEADLINE, third.node.joined()).await.unwrap();
    third.shutdown().await;

    for malformed in ["127.0.0.1:4001", "/ip4/127.0.0.1", "/ip4/300.1.1.1/tcp/1", "/ip4/127.0.0.1/tcp/99999"]
    {
        let error =
            debros_sdk::Client::builder("app").bootstrap_peers([malformed]).connect().await.unwrap_err();
        assert_eq!(error.kind(), debros_sdk::ErrorKind::InvalidArgument, "{malformed}: {error}");
        assert!(error.to_string().contains("tcp/4001"), "an example: {error}");
        let yaml = format!("discovery: {{ bootstrap_peers: [\"{malformed}\"] }}");
        let error = Config::from_yaml(&yaml).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("bootstrap_peers"), "{error}");
    }
    cluster.shutdown().await;
}

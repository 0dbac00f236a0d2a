//! The cluster secret: who has it not, be it a node or a client, gets nowhere and is told why.

use debros_node::launch::launch;
use debros_node::service::Principal;
use debros_proto::v1;
use debros_sdk::{Client, ErrorKind};

use crate::support::{Cluster, address_of, configuration, get, table, write};

const SECRET: &[u8] = b"7c1f0b5d9e3a48266b8d4f2a1e907c55";
const OTHER: &[u8] = b"0d93be41a7f2586c3314e9b07d65fa28";

#[tokio::test(flavor = "multi_thread")]
async fn only_those_who_know_the_secret_are_let_in() {
    let cluster = Cluster::closed(2, SECRET).await;
    let client = cluster.client(1, "app").await;
    table(&client).await;
    write(&client, 1).await;

    let member = address_of(cluster.node(0));
    let builder = || Client::builder("app").bootstrap_peers([&member]).attempts(1);
    let without = builder().connect().await.unwrap_err();
    assert_eq!(without.kind(), ErrorKind::WrongCluster, "{without}");
    assert!(without.to_string().contains("asks for the cluster secret"), "{without}");
    let wrong = builder().cluster_secret(OTHER).connect().await.unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::WrongCluster, "{wrong}");
    assert!(wrong.to_string().contains("has another cluster secret"), "{wrong}");
    assert!(!wrong.is_retryable());
    let right = builder().cluster_secret([SECRET, b"\n"].concat()).connect().await.unwrap();
    write(&right, 2).await;
    right.close().await;

    let other_secret = cluster.folder().join("other-secret");
    std::fs::write(&other_secret, OTHER).unwrap();
    for (name, file, reason) in [
        ("without", None, "asks for the cluster secret: set security.cluster_secret_file to its file"),
        (
            "wrong",
            Some(other_secret),
            "has another cluster secret: give both the same security.cluster_secret_file",
        ),
    ] {
        let mut config = configuration(&cluster.folder().join(name), std::slice::from_ref(&member));
        config.security.cluster_secret_file = file;
        let stranger = launch(&config).await.unwrap();
        let request = v1::ConnectPeerRequest {
            header: Some(v1::RequestHeader { namespace: "app".into(), ..Default::default() }),
            address: member.clone(),
        };
        let refused = stranger.node.cluster_service().connect(&Principal::Http, &request).await.unwrap_err();
        assert!(refused.message.contains(reason), "{refused}");
        let ready = get(stranger.admin, "/readyz").await;
        assert_eq!(ready.status, 503);
        assert!(ready.body.contains("has not joined a cluster yet"), "{}", ready.body);
        assert_eq!(stranger.node.connected_peers(), 0);
        stranger.shutdown().await;
    }
    let members = client.cluster().members().await.unwrap().members;
    assert_eq!(members.len(), 2, "no stranger became a member: {members:?}");
    write(&client, 3).await;
    client.close().await;
    cluster.shutdown().await;
}

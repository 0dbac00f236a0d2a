//! Bytes that mean nothing, clients that break off and clients that stop reading: the node serves on.

use std::net::SocketAddr;
use std::time::Duration;

use debros_sdk::{Database, params};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{Cluster, DEADLINE, get, holds, table, write};

/// More connections than a careless client opens, each with other bytes.
const CONNECTIONS: u64 = 48;

/// Random bytes that are the same in every run.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Sends bytes and waits until the other side has had enough of them, or breaks off.
async fn send(address: SocketAddr, bytes: &[u8], break_off: bool) {
    let mut stream = TcpStream::connect(address).await.expect("the listener accepts");
    // It may close at any byte.
    let _ = stream.write_all(bytes).await;
    if break_off {
        return;
    }
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("the node closes in time");
}

fn messages() -> Vec<Vec<u8>> {
    let mut messages: Vec<Vec<u8>> = (0..CONNECTIONS).map(|seed| noise(seed, 1 << (seed % 15))).collect();
    messages.push(b"\x13/multistream/1.0.0\n\x07/noise\n".to_vec());
    messages.push([b"\x13/multistream/1.0.0\n\x07/noise\n".as_slice(), &noise(1, 4096)].concat());
    messages.push(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff".to_vec());
    messages.push(b"GET / HTTP/1.1\r\n\r\n".to_vec());
    messages.push(
        b"POST /db/execute HTTP/1.1\r\nhost: a\r\ncontent-length: 18446744073709551615\r\n\r\n[".to_vec(),
    );
    messages
        .push(b"POST /db/execute HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_vec());
    messages.push(b"POST /db/execute HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nnot json!".to_vec());
    messages.push(b"POST /db/execute HTTP/1.1\r\nhost: a\r\ncontent-length: 500\r\n\r\n[\"INSERT".to_vec());
    messages
        .push([b"GET /db/query?q=".as_slice(), &[b'a'; 300_000], b" HTTP/1.1\r\nhost: a\r\n\r\n"].concat());
    messages
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_does_no_harm() {
    let cluster = Cluster::of(1).await;
    let client = cluster.client(0, "app").await;
    table(&client).await;
    write(&client, 1).await;
    let node = cluster.node(0);
    let peer = crate::support::address_of(node);
    let peer: SocketAddr = format!("127.0.0.1:{}", peer.rsplit('/').next().unwrap()).parse().unwrap();
    for address in [node.http, node.admin, peer] {
        let sent = messages().into_iter().enumerate().map(|(index, bytes)| {
            // Half of them do not even wait.
            async move { send(address, &bytes, index % 2 == 0).await }
        });
        futures::future::join_all(sent).await;
    }
    assert_eq!(get(node.admin, "/livez").await.status, 200);
    assert_eq!(get(node.admin, "/readyz").await.status, 200);
    write(&client, 2).await;
    holds(&client, &[1, 2]).await;
    // Whoever comes next is served as ever.
    let another = cluster.client(0, "app").await;
    write(&another, 3).await;
    another.close().await;
    client.close().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_holds_up_nobody() {
    let cluster = Cluster::of(1).await;
    let client = cluster.client(0, "app").await;
    table(&client).await;
    let node = cluster.node(0);
    let mut stalled = Vec::new();
    for _ in 0..16 {
        let mut stream = TcpStream::connect(node.http).await.unwrap();
        // 16 MiB each: far more than the buffers in between take.
        let sql = "SELECT%20hex(randomblob(4194304)),hex(randomblob(4194304))";
        let request = format!(
            "GET /db/query?level=none&q={sql} HTTP/1.1\r\nhost: a\r\nx-debros-namespace: app\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut first = [0; 12];
        timeout(DEADLINE, stream.read_exact(&mut first)).await.unwrap().unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        stalled.push(stream);
    }
    for number in 1..=20 {
        timeout(Duration::from_secs(10), write(&client, number)).await.expect("writes go on");
        let read = client.database().query("SELECT max(n) FROM written", params![]).await.unwrap();
        assert_eq!(read.first_as::<i64>().unwrap(), Some(number));
    }
    let health = get(node.admin, "/healthz").await;
    assert_eq!(health.status, 200, "{}", health.body);
    drop(stalled);
    client.close().await;
    cluster.shutdown().await;
}

//! A collector of traces that keeps none: it takes OTLP over HTTP/1.1, counts and says yes. It knows nothing of what is in a request; that
//! traces are right is shown by the node's own tests.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// An exporter's request is far smaller.
const REQUEST_BYTES_MAX: usize = 64 << 20;
const ACCEPTED: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";

/// What came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exports {
    pub(super) requests: u64,
    pub(super) bytes: u64,
}

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    bytes: AtomicU64,
}

/// A running collector on loopback; it ends when it is dropped.
pub(super) struct Collector {
    port: u16,
    counts: Arc<Counts>,
    accepting: AbortHandle,
}

impl Collector {
    pub(super) async fn start() -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no free port on loopback")?;
        let port = listener.local_addr()?.port();
        let counts = Arc::new(Counts::default());
        let accepting = tokio::spawn(accept(listener, counts.clone())).abort_handle();
        Ok(Self { port, counts, accepting })
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(super) fn exports(&self) -> Exports {
        let Counts { requests, bytes } = &*self.counts;
        Exports { requests: requests.load(Ordering::Relaxed), bytes: bytes.load(Ordering::Relaxed) }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Exporters are few, one a node, and keep their connections.
async fn accept(listener: TcpListener, counts: Arc<Counts>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream, counts.clone()));
    }
}

/// Answers one request after the other, until the exporter goes or sends what is no request.
async fn serve(stream: TcpStream, counts: Arc<Counts>) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut body = Vec::new();
    loop {
        let bytes = body_bytes(&mut stream).await?;
        body.resize(bytes, 0);
        stream.read_exact(&mut body).await?;
        counts.requests.fetch_add(1, Ordering::Relaxed);
        counts.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        stream.write_all(ACCEPTED).await?;
    }
}

/// Reads the head of a request; gives the length of its body.
async fn body_bytes(stream: &mut BufReader<TcpStream>) -> Result<usize> {
    let mut length = None;
    loop {
        let mut line = String::new();
        ensure!(stream.read_line(&mut line).await? > 0, "the connection ended");
        let line = line.trim_end();
        if line.is_empty() {
            let length = length.context("a request without a content-length")?;
            ensure!(length <= REQUEST_BYTES_MAX, "a request of {length} bytes");
            return Ok(length);
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = Some(value.trim().parse()?);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::{ACCEPTED, Collector};

    #[tokio::test]
    async fn requests_on_one_connection_are_answered_and_counted() {
        let collector = Collector::start().await.unwrap();
        let address = collector.endpoint().strip_prefix("http://").unwrap().to_owned();
        let mut stream = TcpStream::connect(address).await.unwrap();
        for _ in 0..2 {
            stream.write_all(b"POST /v1/traces HTTP/1.1\r\nContent-Length: 5\r\n\r\nspans").await.unwrap();
            let mut answer = vec![0; ACCEPTED.len()];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, ACCEPTED);
        }
        let exports = collector.exports();
        assert_eq!((exports.requests, exports.bytes), (2, 10));
    }
}

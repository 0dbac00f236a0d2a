//! The works of the SQL benchmark on etcd. A row is a key; a transaction of rows is one etcd transaction.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Result, bail};
use async_trait::async_trait;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

use super::{READ_ROWS, SqlSystem, TRANSACTION_ROWS, VALUE_BYTES, Work};
use crate::bench::etcd::wire::kv_client::KvClient;
use crate::bench::etcd::wire::{PutRequest, RangeRequest, RequestOp, TxnRequest, request_op};
use crate::bench::etcd::{self, Etcd, LOOK_EVERY, PATIENCE, READY_WITHIN};
use crate::bench::load::Session;
use crate::bench::turns::Does;

/// Each insert writes a new key, as each insert into a table is a new row.
static NEXT_KEY: AtomicU64 = AtomicU64::new(0);

/// Starts a cluster and writes what reads read.
pub(super) async fn start(program: &Path) -> Result<Etcd> {
    let etcd = etcd::start(program).await?;
    let mut client = KvClient::new(etcd.channels().swap_remove(0));
    for row in 0..READ_ROWS {
        client.put(PutRequest { key: read_key(row).into(), value: value() }).await?;
    }
    Ok(etcd)
}

fn read_key(row: u32) -> String {
    format!("read/{row}")
}

fn value() -> tonic::codegen::Bytes {
    vec![b'x'; VALUE_BYTES].into()
}

#[async_trait]
impl Does<Work> for Etcd {
    async fn sessions(&mut self, work: Work, clients: usize) -> Result<Vec<Box<dyn Session>>> {
        let channels = self.leader_channels(clients).await?;
        let client = |channel| Box::new(Client::new(work, [channel])) as Box<dyn Session>;
        Ok(channels.into_iter().map(client).collect())
    }
}

#[async_trait]
impl SqlSystem for Etcd {
    async fn steadfast_writer(&mut self) -> Result<Box<dyn Session>> {
        Ok(Box::new(Client::new(Work::Outage, self.channels())))
    }

    async fn kill_leader(&mut self) -> Result<()> {
        Etcd::kill_leader(self).await
    }

    async fn restore(&mut self) -> Result<()> {
        Etcd::restore(self).await
    }
}

/// One client of etcd, with the members it may ask.
struct Client {
    work: Work,
    clients: Vec<KvClient<Channel>>,
}

impl Client {
    fn new(work: Work, channels: impl IntoIterator<Item = Channel>) -> Self {
        Self { work, clients: channels.into_iter().map(KvClient::new).collect() }
    }

    /// Asks one member after the other until one has written.
    async fn put_somewhere(&mut self) -> Result<()> {
        let put = put();
        let start = Instant::now();
        while start.elapsed() < READY_WITHIN {
            let answer = timeout(PATIENCE, self.clients[0].put(put.clone())).await;
            if matches!(answer, Ok(Ok(_))) {
                return Ok(());
            }
            self.clients.rotate_left(1);
            if answer.is_ok() {
                sleep(LOOK_EVERY).await;
            }
        }
        bail!("etcd accepts no write for {READY_WITHIN:?}")
    }

    async fn read(&mut self, serializable: bool) -> Result<()> {
        let key = read_key(rand::random_range(0..READ_ROWS)).into();
        let range = RangeRequest { key, serializable, ..RangeRequest::default() };
        let found = self.clients[0].range(range).await?.into_inner();
        if found.count != 1 {
            bail!("etcd does not know a key that was written");
        }
        Ok(())
    }

    async fn transaction(&mut self) -> Result<()> {
        let put = |_| RequestOp { request: Some(request_op::Request::RequestPut(put())) };
        let success = (0..TRANSACTION_ROWS).map(put).collect();
        let done = self.clients[0].txn(TxnRequest { success }).await?.into_inner();
        if !done.succeeded {
            bail!("etcd refused a transaction without a condition");
        }
        Ok(())
    }
}

fn put() -> PutRequest {
    let key = NEXT_KEY.fetch_add(1, Ordering::Relaxed);
    PutRequest { key: format!("insert/{key:016}").into(), value: value() }
}

#[async_trait]
impl Session for Client {
    async fn once(&mut self) -> Result<()> {
        match self.work {
            Work::Insert => {
                self.clients[0].put(put()).await?;
                Ok(())
            }
            Work::LinearizableRead => self.read(false).await,
            Work::StaleRead => self.read(true).await,
            Work::InsertTx100 => self.transaction().await,
            Work::Outage => self.put_somewhere().await,
        }
    }
}

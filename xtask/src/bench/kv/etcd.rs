//! The works of the key-value benchmark on etcd. It syncs every put, so it has no relaxed one; a read of the asked member's
//! own state stands for R = 1, a linearizable one for R = 2, and listings are linearizable. It keeps every version of a key.

use std::path::Path;

use anyhow::{Result, bail};
use async_trait::async_trait;
use tonic::transport::Channel;

use super::{KEYS, KvSystem, LISTED_KEYS, Work, key, random_key, random_prefix, value};
use crate::bench::etcd::wire::kv_client::KvClient;
use crate::bench::etcd::wire::{PutRequest, RangeRequest, RequestOp, TxnRequest, request_op};
use crate::bench::etcd::{self, Etcd};
use crate::bench::load::Session;
use crate::bench::turns::Does;

/// Starts a cluster and writes all keys, a hundred in a transaction.
pub(super) async fn start(program: &Path) -> Result<Etcd> {
    let etcd = etcd::start(program).await?;
    let mut client = KvClient::new(etcd.channels().swap_remove(0));
    for first in (0..KEYS).step_by(LISTED_KEYS as usize) {
        let put = |number| PutRequest { key: key(number).into(), value: value() };
        let put = |number| RequestOp { request: Some(request_op::Request::RequestPut(put(number))) };
        let success = (first..first + LISTED_KEYS).map(put).collect();
        client.txn(TxnRequest { success }).await?;
    }
    Ok(etcd)
}

impl KvSystem for Etcd {
    fn has(&self, work: Work) -> bool {
        work != Work::PutRelaxed
    }
}

#[async_trait]
impl Does<Work> for Etcd {
    async fn sessions(&mut self, work: Work, clients: usize) -> Result<Vec<Box<dyn Session>>> {
        let channels = self.leader_channels(clients).await?;
        let client = |channel| Box::new(Asking { work, client: KvClient::new(channel) }) as Box<dyn Session>;
        Ok(channels.into_iter().map(client).collect())
    }
}

/// One client.
struct Asking {
    work: Work,
    client: KvClient<Channel>,
}

impl Asking {
    async fn range(&mut self, range: RangeRequest, expected: u32) -> Result<()> {
        let found = self.client.range(range).await?.into_inner().kvs.len();
        if found != expected as usize {
            bail!("etcd gave {found} keys instead of {expected}");
        }
        Ok(())
    }
}

#[async_trait]
impl Session for Asking {
    async fn once(&mut self) -> Result<()> {
        match self.work {
            Work::PutFsync => {
                self.client.put(PutRequest { key: random_key().into(), value: value() }).await?;
                Ok(())
            }
            Work::PutRelaxed => bail!("etcd has no put without a sync"),
            Work::GetR1 | Work::GetR2 => {
                let (key, serializable) = (random_key().into(), self.work == Work::GetR1);
                self.range(RangeRequest { key, serializable, ..RangeRequest::default() }, 1).await
            }
            Work::List100 => {
                let prefix = random_prefix().into_bytes();
                let range_end = behind(&prefix).into();
                let range = RangeRequest { key: prefix.into(), range_end, ..RangeRequest::default() };
                self.range(range, LISTED_KEYS).await
            }
        }
    }
}

/// The first key behind all those with a prefix, whose last byte is not the greatest.
fn behind(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

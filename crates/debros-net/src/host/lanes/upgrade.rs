//! What is spoken on a new stream: one protocol per lane, two that announce a connection's role,
//! and one byte by which the other side accepts.
//!
//! Invariant: the accepting side has a place in the lane's queue before it accepts, so a stream that
//! was handed out on one side always arrives on the other.

use std::future::Future;
use std::io;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{AsyncReadExt, AsyncWriteExt, FutureExt};
use libp2p::core::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::{PeerId, Stream, StreamProtocol};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{QUEUE_WAIT, Role};
use crate::host::carrier;
use crate::lane::Lane;
use crate::stats::{Counters, add};
use crate::stream::{ByteStream, IncomingSenders, IncomingStream};

const ACCEPTED: u8 = 1;
const BUSY: u8 = 0;

fn lane_protocol(lane: Lane) -> StreamProtocol {
    StreamProtocol::new(match lane {
        Lane::Raft => "/debros/lane/raft/1",
        Lane::Kv => "/debros/lane/kv/1",
        Lane::Pubsub => "/debros/lane/pubsub/1",
        Lane::Client => "/debros/lane/client/1",
        Lane::Bulk => "/debros/lane/bulk/1",
    })
}

fn role_protocol(role: Role) -> StreamProtocol {
    StreamProtocol::new(match role {
        Role::Main => "/debros/role/main/1",
        Role::Bulk => "/debros/role/bulk/1",
    })
}

/// What this side accepts on one connection.
#[derive(Clone)]
pub(in crate::host) struct Accept {
    pub(super) peer: PeerId,
    pub(super) queues: IncomingSenders,
    pub(super) room: Arc<Semaphore>,
    pub(super) counters: Arc<Counters>,
}

/// A stream that the other side opened.
pub(in crate::host) enum Accepted {
    /// It announces what the connection is for.
    Role(Role, Stream),
    /// It is in its lane's queue already.
    Queued,
}

impl UpgradeInfo for Accept {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        let lanes = Lane::ALL.into_iter().filter(|lane| self.queues.accepts(*lane)).map(lane_protocol);
        lanes.chain(Role::ALL.map(role_protocol)).collect::<Vec<_>>().into_iter()
    }
}

impl InboundUpgrade<Stream> for Accept {
    type Output = Accepted;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Accepted>>;

    fn upgrade_inbound(self, mut stream: Stream, protocol: StreamProtocol) -> Self::Future {
        async move {
            if let Some(role) = Role::ALL.into_iter().find(|role| role_protocol(*role) == protocol) {
                answer(&mut stream, ACCEPTED).await?;
                return Ok(Accepted::Role(role, stream));
            }
            let lane = Lane::ALL
                .into_iter()
                .find(|lane| lane_protocol(*lane) == protocol)
                .ok_or(io::ErrorKind::Unsupported)?;
            self.queue(lane, stream).await
        }
        .boxed()
    }
}

impl Accept {
    async fn queue(self, lane: Lane, mut stream: Stream) -> io::Result<Accepted> {
        let sender = self.queues.sender(lane).ok_or(io::ErrorKind::Unsupported)?.clone();
        let place = tokio::time::timeout(QUEUE_WAIT, sender.reserve_owned()).await;
        match (self.room.try_acquire_owned(), place) {
            (Ok(room), Ok(Ok(place))) => {
                answer(&mut stream, ACCEPTED).await?;
                add(&self.counters.streams_accepted);
                let stream = ByteStream::new(self.peer, lane, carrier::Counted::new(stream, room));
                place.send(IncomingStream { peer: self.peer, lane, stream });
                Ok(Accepted::Queued)
            }
            _ => {
                add(&self.counters.streams_refused);
                answer(&mut stream, BUSY).await?;
                stream.close().await?;
                Err(io::ErrorKind::WouldBlock.into())
            }
        }
    }
}

async fn answer(stream: &mut Stream, verdict: u8) -> io::Result<()> {
    stream.write_all(&[verdict]).await?;
    stream.flush().await
}

/// A stream that this side opens.
pub(in crate::host) struct Propose(StreamProtocol);

impl Propose {
    pub(super) fn lane(lane: Lane) -> Self {
        Self(lane_protocol(lane))
    }

    pub(super) fn role(role: Role) -> Self {
        Self(role_protocol(role))
    }
}

impl UpgradeInfo for Propose {
    type Info = StreamProtocol;
    type InfoIter = std::iter::Once<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(self.0.clone())
    }
}

impl OutboundUpgrade<Stream> for Propose {
    type Output = Stream;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Stream>>;

    fn upgrade_outbound(self, mut stream: Stream, _: StreamProtocol) -> Self::Future {
        accepted(async move {
            let mut verdict = [BUSY];
            stream.read_exact(&mut verdict).await?;
            Ok((verdict[0], stream))
        })
        .boxed()
    }
}

async fn accepted(answer: impl Future<Output = io::Result<(u8, Stream)>>) -> io::Result<Stream> {
    match answer.await? {
        (ACCEPTED, stream) => Ok(stream),
        _ => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// What the opening side counts its streams with.
pub(super) fn counted(peer: PeerId, lane: Lane, stream: Stream, room: OwnedSemaphorePermit) -> ByteStream {
    ByteStream::new(peer, lane, carrier::Counted::new(stream, room))
}

//! The byte stream that the seam hands out, and the queue in which incoming ones arrive.
//!
//! A [`ByteStream`] knows who is on the other side, so that a gRPC service finds the caller's
//! [`PeerIdentity`] in the extensions of its request. It does not know what carries it.
//!
//! Invariants: the queue of each lane is bounded and its own, so one lane that is not served never
//! holds up another; whoever fills the queue reserves a place before the other side is told that its
//! stream was accepted. Small writes are coalesced: nothing is sure to leave before a flush, and a flush
//! lets everything else that is ready write first.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;
use libp2p::PeerId;
use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};
use tokio::sync::mpsc;
use tonic::transport::server::Connected;

use crate::lane::Lane;

/// Streams of one lane that wait to be taken by their server; past it the opener is told `Busy`.
/// A burst of opens at a start is one stream per peer and lane.
pub const INCOMING_QUEUE_STREAMS: usize = 256;

/// Bytes gathered before they are handed to the transport. A write to a multiplexed and encrypted
/// stream costs a frame and a cipher call however small it is, and HTTP/2 writes a frame's nine byte
/// head apart from its body.
const WRITE_BUFFER_BYTES: usize = 16 << 10;

/// What can carry a [`ByteStream`].
pub trait Carrier: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Carrier for T {}

/// Who is on the other side of a stream: proved by the transport, never claimed by a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// The peer.
    pub peer: PeerId,
    /// The lane of the stream.
    pub lane: Lane,
}

/// An authenticated, encrypted, ordered stream of bytes to one peer.
pub struct ByteStream {
    identity: PeerIdentity,
    carrier: BufWriter<Box<dyn Carrier>>,
    flush: Flush,
}

/// Where a flush stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    /// None was asked for since the last one.
    Idle,
    /// It comes behind whatever the reactor has ready: a request's head and body leave together, and so
    /// do answers to requests that came together. A packet costs more than anything in it.
    Yielded,
    /// Under way.
    Begun,
}

impl ByteStream {
    /// Wraps what carries the bytes. The caller vouches for `peer`.
    pub fn new(peer: PeerId, lane: Lane, carrier: impl Carrier) -> Self {
        let carrier = BufWriter::with_capacity(WRITE_BUFFER_BYTES, Box::new(carrier) as Box<dyn Carrier>);
        Self { identity: PeerIdentity { peer, lane }, carrier, flush: Flush::Idle }
    }

    /// Who is on the other side.
    pub fn identity(&self) -> PeerIdentity {
        self.identity
    }
}

impl fmt::Debug for ByteStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ByteStream").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.carrier).poll_read(context, buffer)
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.carrier).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.flush == Flush::Idle && !self.carrier.buffer().is_empty() {
            self.flush = Flush::Yielded;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.flush = Flush::Begun;
        let flushed = ready!(Pin::new(&mut self.carrier).poll_flush(context));
        self.flush = Flush::Idle;
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.carrier).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.carrier).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        // The buffer takes slices whatever carries it.
        true
    }
}

impl Connected for ByteStream {
    type ConnectInfo = PeerIdentity;

    fn connect_info(&self) -> PeerIdentity {
        self.identity
    }
}

/// A stream that a peer opened to this node.
#[derive(Debug)]
pub struct IncomingStream {
    /// Who opened it.
    pub peer: PeerId,
    /// On which lane.
    pub lane: Lane,
    /// The bytes.
    pub stream: ByteStream,
}

/// The streams that peers open to this node, a bounded queue per accepted lane.
///
/// As a [`Stream`] it yields those of every lane that was not taken apart with
/// [`IncomingStreams::take`]; it ends when the network is shut down.
#[derive(Debug)]
pub struct IncomingStreams {
    lanes: [Option<mpsc::Receiver<IncomingStream>>; Lane::ALL.len()],
    /// Where the next look starts, so that a busy lane does not starve the others.
    next: usize,
}

/// The other end of [`IncomingStreams`]: one sender per accepted lane.
#[derive(Clone, Debug)]
pub struct IncomingSenders {
    lanes: [Option<mpsc::Sender<IncomingStream>>; Lane::ALL.len()],
}

impl IncomingSenders {
    /// Whether streams of that lane are accepted.
    pub fn accepts(&self, lane: Lane) -> bool {
        self.lanes[lane.index()].is_some()
    }

    /// The queue of that lane; `None` when it is not accepted.
    pub fn sender(&self, lane: Lane) -> Option<&mpsc::Sender<IncomingStream>> {
        self.lanes[lane.index()].as_ref()
    }
}

impl IncomingStreams {
    /// Both ends, for the accepted lanes.
    pub fn channel(accepted: &[Lane]) -> (IncomingSenders, IncomingStreams) {
        let mut senders = IncomingSenders { lanes: Default::default() };
        let mut streams = IncomingStreams { lanes: Default::default(), next: 0 };
        for lane in accepted {
            let (sender, receiver) = mpsc::channel(INCOMING_QUEUE_STREAMS);
            senders.lanes[lane.index()] = Some(sender);
            streams.lanes[lane.index()] = Some(receiver);
        }
        (senders, streams)
    }

    /// The queue of these lanes apart from the rest, so that they get a server of their own. Lanes
    /// that are not accepted, or were taken before, stay empty.
    #[must_use]
    pub fn take(&mut self, lanes: &[Lane]) -> IncomingStreams {
        let mut taken = IncomingStreams { lanes: Default::default(), next: 0 };
        for lane in lanes {
            taken.lanes[lane.index()] = self.lanes[lane.index()].take();
        }
        taken
    }

    /// The next stream of any lane; `None` after the network was shut down.
    pub async fn next(&mut self) -> Option<IncomingStream> {
        futures::StreamExt::next(self).await
    }
}

impl Stream for IncomingStreams {
    type Item = IncomingStream;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<IncomingStream>> {
        let count = self.lanes.len();
        let first = self.next;
        let mut open = false;
        for index in (first..first + count).map(|index| index % count) {
            let Some(receiver) = self.lanes[index].as_mut() else { continue };
            match receiver.poll_recv(context) {
                Poll::Ready(Some(stream)) => {
                    self.next = (index + 1) % count;
                    return Poll::Ready(Some(stream));
                }
                Poll::Ready(None) => self.lanes[index] = None,
                Poll::Pending => open = true,
            }
        }
        if open { Poll::Pending } else { Poll::Ready(None) }
    }
}

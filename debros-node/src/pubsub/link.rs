//! The two ends of a link between nodes: what opens a stream to each other node and feeds it from the router,
//! and what serves the streams that others open.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use debros_net::{Lane, PeerId};
use debros_proto::{NodeId, limits, v1};
use futures::Stream;
use futures::task::AtomicWaker;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use v1::routing_client::RoutingClient;
use v1::routing_server::RoutingServer;

use super::inbound::{Broken, TakenFrame};
use super::outbound::Next;
use super::pressure::Pressure;
use super::{PubSubSlot, Shared};

/// A link that broke is opened again after this time, and ever longer up to the second one.
const RETRY_AFTER: Duration = Duration::from_millis(100);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(1);
/// Replies of a link that wait.
const REPLIES_MAX: usize = 1024;
/// Frames are built without a pause for others up to here.
const TURNS_MAX: usize = 16;

/// Keeps a stream open to a node until the token is cancelled.
pub(super) async fn run(shared: Arc<Shared>, node: NodeId, peer: PeerId, gone: CancellationToken) {
    let mut pause = RETRY_AFTER;
    loop {
        // 0 is for none.
        let stream = rand::random::<u64>().max(1);
        shared.router().open_link(node, stream);
        let linked = async {
            let worked = follow(&shared, node, peer, stream).await;
            shared.router().close_link(node, stream);
            pause = if worked { RETRY_AFTER } else { RETRY_AFTER_MAX.min(pause * 2) };
            tokio::time::sleep(pause).await;
        };
        tokio::select! {
            () = shared.stop.cancelled() => break,
            () = gone.cancelled() => break,
            () = linked => {}
        }
    }
}

/// One stream, until it breaks; says whether it ever stood.
async fn follow(shared: &Arc<Shared>, node: NodeId, peer: PeerId, stream: u64) -> bool {
    let waker = shared.router().peers.get(&node).map(|peer| peer.out.waker.clone());
    let Some(waker) = waker else { return false };
    let frames = Frames { shared: shared.clone(), node, stream, waker };
    let mut client = RoutingClient::new(shared.channels.get(peer, Lane::Pubsub))
        .max_decoding_message_size(limits::PUBSUB_FRAME_BYTES_MAX)
        .max_encoding_message_size(limits::PUBSUB_FRAME_BYTES_MAX);
    let mut replies = match client.link(frames).await {
        Ok(replies) => replies.into_inner(),
        Err(status) => {
            tracing::debug!(%node, reason = status.message(), "no link for messages to a node");
            return false;
        }
    };
    loop {
        match replies.message().await {
            Ok(Some(reply)) => shared.router().take_reply(node, stream, reply),
            Ok(None) => return true,
            Err(status) => {
                tracing::debug!(%node, reason = status.message(), "the link for messages to a node broke");
                return true;
            }
        }
    }
}

/// The frames of one stream, as the connection has room for them.
struct Frames {
    shared: Arc<Shared>,
    node: NodeId,
    stream: u64,
    waker: Arc<AtomicWaker>,
}

impl Stream for Frames {
    type Item = v1::LinkFrame;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<v1::LinkFrame>> {
        self.waker.register(context.waker());
        for _ in 0..TURNS_MAX {
            // The lock is given back between two turns.
            let next = self.shared.router().next_frame(self.node, self.stream);
            match next {
                Next::Frame(frame) => return Poll::Ready(Some(*frame)),
                Next::Again => {}
                Next::Wait => return Poll::Pending,
                Next::End => return Poll::Ready(None),
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// The service for nodes.
pub struct RoutingService {
    slot: PubSubSlot,
}

impl RoutingService {
    /// To be mounted on the lane `pubsub`.
    pub fn server(slot: PubSubSlot) -> RoutingServer<Self> {
        RoutingServer::new(Self { slot })
            .max_decoding_message_size(limits::PUBSUB_FRAME_BYTES_MAX)
            .max_encoding_message_size(limits::PUBSUB_FRAME_BYTES_MAX)
    }
}

/// Replies to a link. The link is not served any more once they are dropped.
pub struct Replies {
    replies: ReceiverStream<v1::LinkReply>,
    _ends: tokio_util::sync::DropGuard,
}

impl Stream for Replies {
    type Item = Result<v1::LinkReply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.replies).poll_next(context).map(|reply| reply.map(Ok))
    }
}

#[tonic::async_trait]
impl v1::routing_server::Routing for RoutingService {
    type LinkStream = Replies;

    async fn link(
        &self,
        request: Request<Streaming<v1::LinkFrame>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let shared = self.slot.get()?.shared;
        let caller = debros_net::grpc::caller(&request).map(|identity| identity.peer);
        let node = caller.and_then(|caller| {
            let router = shared.router();
            router.peers.iter().find(|(_, peer)| peer.peer == caller).map(|(node, _)| *node)
        });
        let Some(node) = node else {
            return Err(Status::permission_denied("only nodes of this cluster ask this of one another"));
        };
        let (sender, receiver) = mpsc::channel(REPLIES_MAX);
        let ended = CancellationToken::new();
        let replies = Replies { replies: ReceiverStream::new(receiver), _ends: ended.clone().drop_guard() };
        let tracker = shared.tracker.clone();
        tracker.spawn(async move {
            let frames = request.into_inner();
            tokio::select! {
                () = shared.stop.cancelled() => {}
                () = ended.cancelled() => {}
                served = serve(&shared, node, frames, sender) => if let Err(error) = served {
                    tracing::debug!(%node, %error, "a link for messages of a node ends");
                },
            }
        });
        Ok(Response::new(replies))
    }
}

/// Ends what belongs to a stream when it is not served any more.
struct Served<'s> {
    shared: &'s Shared,
    node: NodeId,
    stream: u64,
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        self.shared.router().lose_link(self.node, self.stream);
    }
}

async fn serve(
    shared: &Shared,
    node: NodeId,
    mut frames: Streaming<v1::LinkFrame>,
    replies: mpsc::Sender<v1::LinkReply>,
) -> Result<(), Broken> {
    let first = frames.message().await.ok().flatten();
    let hello = first.and_then(|frame| frame.hello).ok_or(Broken::NoHello)?;
    let stream = shared.router().accept_link(node, hello, replies)?;
    let _served = Served { shared, node, stream };
    let mut pressure = Pressure::default();
    loop {
        let mut next = tokio::select! {
            frame = frames.message() => match frame {
                Ok(Some(frame)) => Some(frame),
                Ok(None) | Err(_) => return Ok(()),
            },
            Some(namespace) = pressure.eased() => {
                shared.router().tell_pressure(node, stream, &namespace, false);
                continue;
            }
        };
        while let Some(frame) = next {
            let TakenFrame { pressed, rest } = shared.router().take_frame(node, stream, frame)?;
            for (namespace, queue) in pressed {
                if pressure.add(&namespace, queue) {
                    shared.router().tell_pressure(node, stream, &namespace, true);
                }
            }
            if rest.is_some() {
                // Others have their turn at the router.
                tokio::task::yield_now().await;
            }
            next = rest;
        }
    }
}

//! One Append stream to each peer, shared by all groups.
//!
//! ```text
//! session (one leader, one replica) --frames--> outbox --> gRPC stream --> peer
//! session <--replies-- its own queue <--dispatch (never awaits)-- gRPC stream
//! question (one frame, one reply): the same way, with a place for its reply instead of a queue
//! ```
//!
//! A session has credit for [`limits::SESSION_FRAMES_MAX`] unanswered frames and a queue of that
//! size, so dispatching a reply always finds room. When the stream breaks, every session and question on
//! it ends with an error and openraft starts a new one.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};

use debros_net::grpc::Channels;
use debros_net::{Lane, PeerId};
use debros_proto::{limits, v1};
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use v1::raft_client::RaftClient;

/// All streams of a node to its peers.
#[derive(Clone)]
pub(super) struct Links {
    channels: Channels,
    tracker: TaskTracker,
    links: Arc<Mutex<HashMap<PeerId, Arc<Link>>>>,
}

impl Links {
    /// No stream is opened before a session needs it.
    pub(super) fn new(channels: Channels, tracker: TaskTracker) -> Self {
        Self { channels, tracker, links: Arc::default() }
    }

    /// The gRPC client for single requests to a peer.
    pub(super) fn client(&self, peer: PeerId, lane: Lane) -> RaftClient<tonic::transport::Channel> {
        RaftClient::new(self.channels.get(peer, lane))
            .max_decoding_message_size(limits::APPEND_FRAME_BYTES_MAX)
            .max_encoding_message_size(limits::APPEND_FRAME_BYTES_MAX)
    }

    /// Starts a session with a peer.
    pub(super) fn session(&self, peer: PeerId) -> Session {
        let link = self.link(peer);
        let (queue, replies) = mpsc::channel(limits::SESSION_FRAMES_MAX);
        let (id, outbox) = link.register(self, peer, Asker::Session(queue));
        Session { id, link, outbox, replies }
    }

    /// Sends one frame outside of any session and gives its reply.
    pub(super) async fn ask(
        &self,
        peer: PeerId,
        mut frame: v1::AppendFrame,
    ) -> Result<v1::AppendReply, StreamBroke> {
        let link = self.link(peer);
        let (place, reply) = oneshot::channel();
        let (id, outbox) = link.register(self, peer, Asker::Question(place));
        let _question = Question { id, link: &link };
        frame.session = id;
        frame.single = true;
        let room = outbox.reserve().await.map_err(|_| StreamBroke)?;
        frame.closed_sessions = link.take_closed();
        room.send(frame);
        reply.await.map_err(|_| StreamBroke)
    }

    /// Frames that wait for the peer with most of them.
    pub(super) fn fullest_outbox(&self) -> usize {
        let links = self.links.lock().expect("not poisoned");
        links.values().map(|link| link.waiting()).max().unwrap_or(0)
    }

    fn link(&self, peer: PeerId) -> Arc<Link> {
        let mut links = self.links.lock().expect("not poisoned");
        links.entry(peer).or_default().clone()
    }
}

#[derive(Default)]
struct Link {
    live: Mutex<Option<Live>>,
    last_id: AtomicU64,
}

/// The part of a link that lives as long as one gRPC stream.
struct Live {
    outbox: mpsc::Sender<v1::AppendFrame>,
    askers: HashMap<u64, Asker>,
    /// Ended sessions of which the peer is to be told with the next frame.
    closed: Vec<u64>,
}

/// Where replies go.
enum Asker {
    Session(mpsc::Sender<v1::AppendReply>),
    /// The peer ends it with its reply.
    Question(oneshot::Sender<v1::AppendReply>),
}

impl Link {
    /// Gives the id under which replies come, and where frames go.
    fn register(
        self: &Arc<Self>,
        links: &Links,
        peer: PeerId,
        asker: Asker,
    ) -> (u64, mpsc::Sender<v1::AppendFrame>) {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let mut live = self.live.lock().expect("not poisoned");
        let live = live.get_or_insert_with(|| {
            let (outbox, frames) = mpsc::channel(limits::PEER_OUTBOX_FRAMES);
            let client = links.client(peer, Lane::Raft);
            links.tracker.spawn(run_stream(Arc::downgrade(self), client, frames));
            Live { outbox, askers: HashMap::new(), closed: Vec::new() }
        });
        live.askers.insert(id, asker);
        (id, live.outbox.clone())
    }

    fn waiting(&self) -> usize {
        let live = self.live.lock().expect("not poisoned");
        live.as_ref().map_or(0, |live| live.outbox.max_capacity() - live.outbox.capacity())
    }

    fn take_closed(&self) -> Vec<u64> {
        self.live
            .lock()
            .expect("not poisoned")
            .as_mut()
            .map(|live| std::mem::take(&mut live.closed))
            .unwrap_or_default()
    }

    fn forget(&self, question: u64) {
        if let Some(live) = self.live.lock().expect("not poisoned").as_mut() {
            live.askers.remove(&question);
        }
    }

    fn close(&self, session: u64) {
        let mut live = self.live.lock().expect("not poisoned");
        let Some(live) = live.as_mut() else { return };
        if live.askers.remove(&session).is_none() {
            return;
        }
        live.closed.push(session);
        // Told at once when there is room; otherwise with the next frame of any session.
        if let Ok(place) = live.outbox.try_reserve() {
            let closed_sessions = std::mem::take(&mut live.closed);
            place.send(v1::AppendFrame { closed_sessions, ..Default::default() });
        }
    }

    fn dispatch(&self, reply: v1::AppendReply) {
        let mut live = self.live.lock().expect("not poisoned");
        let Some(live) = live.as_mut() else { return };
        let expected = match live.askers.get(&reply.session) {
            None => return,
            Some(Asker::Session(queue)) => queue.try_send(reply).is_ok(),
            Some(Asker::Question(_)) => live.answer(reply),
        };
        if !expected {
            tracing::debug!("an append reply came without a frame that asked for it");
        }
    }
}

impl Live {
    /// Answers a question, which nobody may wait for any more.
    fn answer(&mut self, reply: v1::AppendReply) -> bool {
        match self.askers.remove(&reply.session) {
            Some(Asker::Question(place)) => place.send(reply).is_ok(),
            _ => false,
        }
    }
}

async fn run_stream(
    link: Weak<Link>,
    mut client: RaftClient<tonic::transport::Channel>,
    frames: mpsc::Receiver<v1::AppendFrame>,
) {
    let end = match client.append(ReceiverStream::new(frames)).await {
        Ok(replies) => {
            let mut replies = replies.into_inner();
            loop {
                match replies.message().await {
                    Ok(Some(reply)) => match link.upgrade() {
                        Some(link) => link.dispatch(reply),
                        None => return,
                    },
                    Ok(None) => break "closed by the peer".to_owned(),
                    Err(status) => break status.message().to_owned(),
                }
            }
        }
        Err(status) => status.message().to_owned(),
    };
    tracing::debug!(end, "append stream ended");
    // Dropping them ends every session and question on this stream.
    if let Some(link) = link.upgrade() {
        link.live.lock().expect("not poisoned").take();
    }
}

/// One run of appends to one replica.
pub(super) struct Session {
    id: u64,
    link: Arc<Link>,
    outbox: mpsc::Sender<v1::AppendFrame>,
    replies: mpsc::Receiver<v1::AppendReply>,
}

/// One frame that waits for its reply, or is given up.
struct Question<'a> {
    id: u64,
    link: &'a Link,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.link.forget(self.id);
    }
}

/// The stream under a session broke.
#[derive(Debug, thiserror::Error)]
#[error("the append stream to the peer broke")]
pub(super) struct StreamBroke;

impl Session {
    /// Sends what `frames` gives and yields the replies, until `frames` ends and all is answered.
    pub(super) fn run(
        self,
        frames: impl Stream<Item = v1::AppendFrame> + Send + Unpin + 'static,
    ) -> SessionReplies {
        let credit = Arc::new(Semaphore::new(limits::SESSION_FRAMES_MAX));
        let sent = Arc::new(AtomicU64::new(0));
        let pump =
            pump(self.id, self.link.clone(), self.outbox.clone(), frames, credit.clone(), sent.clone())
                .boxed();
        SessionReplies { session: self, pump: Some(pump), credit, sent, answered: 0 }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.link.close(self.id);
    }
}

async fn pump(
    id: u64,
    link: Arc<Link>,
    outbox: mpsc::Sender<v1::AppendFrame>,
    mut frames: impl Stream<Item = v1::AppendFrame> + Send + Unpin,
    credit: Arc<Semaphore>,
    sent: Arc<AtomicU64>,
) {
    loop {
        let Ok(permit) = credit.acquire().await else { return };
        permit.forget();
        let Some(mut frame) = frames.next().await else { return };
        frame.session = id;
        let Ok(place) = outbox.reserve().await else { return };
        frame.closed_sessions = link.take_closed();
        sent.fetch_add(1, Ordering::Relaxed);
        place.send(frame);
    }
}

/// The replies of a session; polling it also sends.
///
/// The sending half is driven from here and not by a task of its own: openraft's source of frames
/// must not be read any more once this stream is dropped.
pub(super) struct SessionReplies {
    session: Session,
    pump: Option<BoxFuture<'static, ()>>,
    credit: Arc<Semaphore>,
    sent: Arc<AtomicU64>,
    answered: u64,
}

impl Stream for SessionReplies {
    type Item = Result<v1::AppendReply, StreamBroke>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(pump) = &mut self.pump
            && pump.as_mut().poll(context).is_ready()
        {
            self.pump = None;
        }
        match self.session.replies.poll_recv(context) {
            Poll::Ready(Some(reply)) => {
                self.answered += 1;
                self.credit.add_permits(1);
                Poll::Ready(Some(Ok(reply)))
            }
            Poll::Ready(None) => Poll::Ready(Some(Err(StreamBroke))),
            Poll::Pending if self.pump.is_none() && self.answered == self.sent.load(Ordering::Relaxed) => {
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

//! Many small calls on one gRPC stream, in both directions.
//!
//! ```text
//! Calls::ask --> outbox --> CallFrames (packs what waits) --> gRPC stream --> Answers --> handler
//! Calls::ask <-- its own oneshot <-- pending <-- gRPC stream <-- Answers (packs what is ready)
//! ```
//!
//! A gRPC call of its own costs some 15 us of CPU on each side; a message on a kept stream, shared with
//! whatever else waits, a fraction of that. Knows neither what the calls say nor who serves them.
//!
//! Invariants: what reads a stream never waits for anything but the stream; the calls under way on one
//! are at most [`limits::STREAM_CALLS_MAX`]; a call whose stream broke ends with [`CallError::Broken`],
//! and one that never left with [`CallError::NotSent`].

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};

use debros_proto::calls::{Frame, Numbered};
use debros_proto::limits;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, Stream, StreamExt};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;
use tonic::{Response, Status, Streaming};

use crate::grpc::open_error;

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The stream could not be opened: the call never left.
    #[error("the peer cannot be reached: {}", .0.message())]
    NotSent(Status),
    /// The stream broke with the call under way: whether it took effect is not known.
    #[error("the connection broke with the call under way: {}", .0.message())]
    Broken(Status),
}

type Outcome<A> = Result<A, CallError>;

/// Opens the stream of one peer.
type Open<Q, R> =
    dyn Fn(CallFrames<Q>) -> BoxFuture<'static, Result<Response<Streaming<R>>, Status>> + Send + Sync;

/// The calls to one peer. Opens its stream at the first call, and again at the first one after it broke.
pub struct Calls<Q: Frame, R: Frame> {
    open: Arc<Open<Q, R>>,
    tracker: TaskTracker,
    link: Arc<Link<Q::Item, R::Item>>,
}

impl<Q: Frame, R: Frame> Clone for Calls<Q, R> {
    fn clone(&self) -> Self {
        Self { open: self.open.clone(), tracker: self.tracker.clone(), link: self.link.clone() }
    }
}

struct Link<C, A> {
    live: Mutex<Option<Live<C, A>>>,
    next_number: AtomicU64,
    under_way: AtomicUsize,
}

/// The part that lives as long as one stream.
struct Live<C, A> {
    outbox: mpsc::Sender<C>,
    pending: Arc<Pending<A>>,
}

struct Pending<A> {
    waiting: Mutex<HashMap<u64, oneshot::Sender<Outcome<A>>>>,
}

impl<A> Pending<A> {
    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Outcome<A>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, error: &CallError) {
        for (_, waiter) in std::mem::take(&mut *self.waiting()) {
            let _ = waiter.send(Err(error.clone()));
        }
    }
}

/// A call under way; forgotten when its asker has gone.
struct UnderWay<'p, A> {
    count: &'p AtomicUsize,
    pending: &'p Pending<A>,
    number: u64,
    answered: bool,
}

impl<A> Drop for UnderWay<'_, A> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        if !self.answered {
            self.pending.waiting().remove(&self.number);
        }
    }
}

impl<Q: Frame, R: Frame> Calls<Q, R> {
    /// Calls over the streams that `open` opens; their tasks run in `tracker`.
    pub fn new<F>(tracker: TaskTracker, open: impl Fn(CallFrames<Q>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Response<Streaming<R>>, Status>> + Send + 'static,
    {
        let open: Arc<Open<Q, R>> = Arc::new(move |frames| Box::pin(open(frames)));
        let (live, next_number, under_way) = (Mutex::new(None), AtomicU64::new(1), AtomicUsize::new(0));
        Self { open, tracker, link: Arc::new(Link { live, next_number, under_way }) }
    }

    /// How many calls wait for their replies.
    pub fn under_way(&self) -> usize {
        self.link.under_way.load(Ordering::Relaxed)
    }

    /// Sends one call and gives its reply. Ends a call that is dropped as far as this side is concerned.
    ///
    /// # Errors
    /// [`CallError`]; it says whether the call may have taken effect.
    pub async fn ask(&self, mut call: Q::Item) -> Outcome<R::Item> {
        let number = self.link.next_number.fetch_add(1, Ordering::Relaxed);
        call.set_number(number);
        let (waiter, answer) = oneshot::channel();
        let (outbox, pending) = self.register(number, waiter);
        let count = &self.link.under_way;
        count.fetch_add(1, Ordering::Relaxed);
        let mut under_way = UnderWay { count, pending: &pending, number, answered: false };
        // A stream that has just ended drops its receiver after it has ended its pending calls.
        if outbox.send(call).await.is_err() {
            return Err(CallError::NotSent(Status::unavailable("the stream has ended")));
        }
        let answer = answer.await;
        under_way.answered = true;
        answer.unwrap_or_else(|_| Err(CallError::Broken(Status::unavailable("the stream has ended"))))
    }

    fn register(
        &self,
        number: u64,
        waiter: oneshot::Sender<Outcome<R::Item>>,
    ) -> (mpsc::Sender<Q::Item>, Arc<Pending<R::Item>>) {
        let mut live = self.link.live.lock().unwrap_or_else(PoisonError::into_inner);
        let live = live.get_or_insert_with(|| self.start());
        live.pending.waiting().insert(number, waiter);
        (live.outbox.clone(), live.pending.clone())
    }

    fn start(&self) -> Live<Q::Item, R::Item> {
        let (outbox, receiver) = mpsc::channel(limits::STREAM_CALLS_MAX);
        let pending = Arc::new(Pending { waiting: Mutex::default() });
        let opened = (self.open)(CallFrames::new(receiver));
        let ends = End { link: Arc::downgrade(&self.link), pending: pending.clone() };
        self.tracker.spawn(async move {
            let error = run::<R>(opened, &ends.pending).await;
            ends.end(&error);
        });
        Live { outbox, pending }
    }
}

/// Ends what belongs to one stream, and nothing of its successor.
struct End<C, A> {
    link: Weak<Link<C, A>>,
    pending: Arc<Pending<A>>,
}

impl<C, A> End<C, A> {
    fn end(self, error: &CallError) {
        if let Some(link) = self.link.upgrade() {
            let mut live = link.live.lock().unwrap_or_else(PoisonError::into_inner);
            live.take_if(|live| Arc::ptr_eq(&live.pending, &self.pending));
        }
        self.pending.end(error);
    }
}

async fn run<R: Frame>(
    opened: BoxFuture<'static, Result<Response<Streaming<R>>, Status>>,
    pending: &Pending<R::Item>,
) -> CallError {
    let mut replies = match opened.await {
        Ok(replies) => replies.into_inner(),
        // Calls travel before the peer answers: only a stream that was never opened carried none.
        Err(status) if open_error(&status).is_some() => return CallError::NotSent(status),
        Err(status) => return CallError::Broken(status),
    };
    loop {
        match replies.message().await {
            Ok(Some(frame)) => {
                let mut waiting = pending.waiting();
                for reply in frame.unpack() {
                    if let Some(waiter) = waiting.remove(&reply.number()) {
                        let _ = waiter.send(Ok(reply));
                    }
                }
            }
            Ok(None) => return CallError::Broken(Status::unavailable("closed by the peer")),
            Err(status) => return CallError::Broken(status),
        }
    }
}

/// The outgoing half: packs the calls that wait into one message.
pub struct CallFrames<Q: Frame> {
    calls: mpsc::Receiver<Q::Item>,
    waiting: Vec<Q::Item>,
}

impl<Q: Frame> CallFrames<Q> {
    fn new(calls: mpsc::Receiver<Q::Item>) -> Self {
        Self { calls, waiting: Vec::new() }
    }
}

// Nothing in it is pinned.
impl<Q: Frame> Unpin for CallFrames<Q> {}

impl<Q: Frame> Stream for CallFrames<Q> {
    type Item = Q;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Q>> {
        let Self { calls, waiting } = &mut *self;
        if waiting.is_empty() {
            match calls.poll_recv_many(context, waiting, limits::CALLS_PER_FRAME_MAX) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(0) => return Poll::Ready(None),
                Poll::Ready(_) => {}
            }
        }
        Poll::Ready(Some(pack(waiting)))
    }
}

/// Packs the first items, as many as fit one message, and leaves the others.
fn pack<F: Frame>(waiting: &mut Vec<F::Item>) -> F {
    let mut bytes = 0;
    let fits = |item: &&F::Item| {
        bytes += item.encoded_len();
        bytes <= limits::CALLS_FRAME_BYTES
    };
    let count = waiting.iter().take(limits::CALLS_PER_FRAME_MAX).take_while(fits).count();
    let rest = waiting.split_off(count.max(1));
    F::pack(std::mem::replace(waiting, rest))
}

/// The answering half: hands each message's calls to a handler and packs the replies that are ready. One
/// task drives all of it, the one that sends the replies.
pub struct Answers<Q: Frame, R: Frame, H, F> {
    calls: Streaming<Q>,
    /// The peer sends no more calls, or none is taken any more.
    ended: bool,
    /// When no more calls are taken.
    stop: BoxFuture<'static, ()>,
    handler: H,
    under_way: FuturesUnordered<F>,
    calls_under_way: usize,
    ready: Vec<R::Item>,
}

impl<Q, R, H, F> Answers<Q, R, H, F>
where
    Q: Frame,
    R: Frame,
    H: FnMut(Vec<Q::Item>, &FuturesUnordered<F>),
    F: Future<Output = Vec<R::Item>>,
{
    /// Answers the calls of a stream. `handler` gets the calls of one message and adds the work on them;
    /// each piece of work gives the replies to one or more calls, every call getting one.
    pub fn new(calls: Streaming<Q>, handler: H) -> Self {
        let (under_way, stop) = (FuturesUnordered::new(), Box::pin(std::future::pending()));
        Self { calls, ended: false, stop, handler, under_way, calls_under_way: 0, ready: Vec::new() }
    }

    /// Takes no more calls once `stop` is ready; those under way are still answered, and then the stream ends.
    #[must_use]
    pub fn until(self, stop: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { stop: Box::pin(stop), ..self }
    }

    /// Takes in what has arrived. Past the limit nothing is read: the stream's own flow control then
    /// holds the sender back.
    fn take_calls(&mut self, context: &mut Context<'_>) -> Result<(), Status> {
        // One that has ended must not be asked again.
        self.ended = self.ended || self.stop.poll_unpin(context).is_ready();
        while !self.ended && self.calls_under_way < limits::STREAM_CALLS_MAX {
            match self.calls.poll_next_unpin(context) {
                Poll::Ready(Some(frame)) => {
                    let calls = frame?.unpack();
                    self.calls_under_way += calls.len();
                    (self.handler)(calls, &self.under_way);
                }
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => break,
            }
        }
        Ok(())
    }
}

// Futures are pinned inside `FuturesUnordered`; nothing else is.
impl<Q: Frame, R: Frame, H, F> Unpin for Answers<Q, R, H, F> {}

impl<Q, R, H, F> Stream for Answers<Q, R, H, F>
where
    Q: Frame,
    R: Frame,
    H: FnMut(Vec<Q::Item>, &FuturesUnordered<F>),
    F: Future<Output = Vec<R::Item>>,
{
    type Item = Result<R, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ready.is_empty() {
            if let Err(status) = this.take_calls(context) {
                return Poll::Ready(Some(Err(status)));
            }
            while this.ready.len() < limits::CALLS_PER_FRAME_MAX {
                match this.under_way.poll_next_unpin(context) {
                    Poll::Ready(Some(replies)) => this.ready.extend(replies),
                    Poll::Ready(None) | Poll::Pending => break,
                }
            }
        }
        if this.ready.is_empty() {
            return if this.ended && this.under_way.is_empty() { Poll::Ready(None) } else { Poll::Pending };
        }
        let before = this.ready.len();
        let frame = pack(&mut this.ready);
        this.calls_under_way = this.calls_under_way.saturating_sub(before - this.ready.len());
        Poll::Ready(Some(Ok(frame)))
    }
}

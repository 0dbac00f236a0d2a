//! A subscription as an application holds it, and the mailbox behind it.
//!
//! ```text
//! session or memory --> Mailbox (bounded by credit) --> Subscription, at the application's pace
//!          ^------------------ credit for what was taken -------+
//! ```
//!
//! The mailbox holds runs of packed messages as they came; they are unpacked where the application takes them.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use debros_proto::packed::{RUN_HEAD, RunHead};
use futures::stream::Stream;
use futures::task::AtomicWaker;

use crate::client::Client;
use crate::error::Error;
use crate::pubsub::message::{Mapping, Messages, SubscriptionBatch, SubscriptionEvent};
use crate::pubsub::replies::Waiting;

/// Where a subscription's messages come from.
pub(crate) trait Source: Send + Sync {
    /// The application has taken so many bytes.
    fn consumed(&self, subscription: u64, bytes: u64);
    /// The subscription is not needed any more.
    fn unsubscribe(&self, subscription: u64);
}

/// What waits for the application.
pub(crate) struct Mailbox {
    credit: u64,
    state: Mutex<State>,
    waker: AtomicWaker,
    /// Nobody takes anything out: it is handed on as it comes.
    answers: Option<Arc<Waiting>>,
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    /// Bytes in `items`.
    waiting: u64,
    /// Taken by the application, and not given back as credit yet.
    consumed: u64,
    end: Option<Option<Error>>,
}

enum Item {
    Messages(RunHead, Bytes),
    Lagged(Option<u64>),
}

/// What the application takes, and the credit to return for it.
struct Taken {
    item: Option<Result<Item, Error>>,
    credit: Option<u64>,
}

/// What a run costs of the credit.
fn cost(messages: &Bytes) -> u64 {
    (RUN_HEAD + messages.len()) as u64
}

impl Mailbox {
    /// An empty one, in which so many bytes may wait.
    pub(crate) fn new(credit: u64) -> Arc<Self> {
        Arc::new(Self { credit, state: Mutex::default(), waker: AtomicWaker::new(), answers: None })
    }

    /// One for answers to those who wait for them.
    pub(crate) fn of_answers(credit: u64, waiting: Arc<Waiting>) -> Arc<Self> {
        let (state, waker, answers) = (Mutex::default(), AtomicWaker::new(), Some(waiting));
        Arc::new(Self { credit, state, waker, answers })
    }

    /// Whether it is of the client's own, and no concern of the application.
    pub(crate) fn is_of_answers(&self) -> bool {
        self.answers.is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds messages. Gives the credit to return for what is not left for the application to take.
    pub(crate) fn push(&self, head: &RunHead, messages: Bytes) -> Option<u64> {
        if let Some(waiting) = &self.answers {
            let credit = self.skip(&messages);
            waiting.answer(head, messages);
            return credit;
        }
        let mut state = self.state();
        if state.end.is_none() {
            state.waiting += cost(&messages);
            state.items.push_back(Item::Messages(*head, messages));
            drop(state);
            self.waker.wake();
        }
        None
    }

    /// Notes that messages were missed.
    pub(crate) fn lag(&self, missed: Option<u64>) {
        let mut state = self.state();
        // Who waits for an answer that was missed hears of it by its own deadline.
        if state.end.is_some() || self.answers.is_some() {
            return;
        }
        match state.items.back_mut() {
            Some(Item::Lagged(known)) => {
                *known = known.zip(missed).map(|(one, other)| one.saturating_add(other))
            }
            _ => state.items.push_back(Item::Lagged(missed)),
        }
        drop(state);
        self.waker.wake();
    }

    /// Messages came that the application is not given: they count as taken. Gives the credit to return.
    pub(crate) fn skip(&self, messages: &Bytes) -> Option<u64> {
        self.state().consume(cost(messages), self.credit)
    }

    /// Nothing comes any more; what waits can still be taken.
    pub(crate) fn end(&self, error: Option<Error>) {
        if let Some(waiting) = &self.answers {
            waiting.end(error.as_ref());
        }
        self.state().end.get_or_insert(error);
        self.waker.wake();
    }

    fn has_ended(&self) -> bool {
        self.state().end.is_some()
    }

    /// The credit of a subscription that begins again somewhere.
    pub(crate) fn begin_again(&self) -> u64 {
        let mut state = self.state();
        state.consumed = 0;
        self.credit.saturating_sub(state.waiting)
    }

    /// Drops the oldest messages while more than so many bytes wait, and says that they were missed. For who
    /// fills it without credit.
    #[cfg(feature = "memory")]
    pub(crate) fn drop_beyond(&self, bytes: u64) {
        let mut state = self.state();
        let mut missed = 0_u64;
        while state.waiting > bytes
            && let Some(oldest) = state.items.pop_front()
        {
            match oldest {
                Item::Messages(head, messages) => {
                    state.waiting -= cost(&messages);
                    missed += u64::from(head.count);
                }
                Item::Lagged(known) => missed += known.unwrap_or_default(),
            }
        }
        if missed > 0 {
            state.items.push_front(Item::Lagged(Some(missed)));
        }
    }

    /// Bytes that wait.
    #[cfg(feature = "memory")]
    pub(crate) fn waiting(&self) -> u64 {
        self.state().waiting
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<Taken> {
        let mut state = self.state();
        if state.items.is_empty() && state.end.is_none() {
            self.waker.register(context.waker());
            return Poll::Pending;
        }
        match state.items.pop_front() {
            Some(Item::Messages(head, messages)) => {
                let bytes = cost(&messages);
                state.waiting -= bytes;
                let credit = state.consume(bytes, self.credit);
                Poll::Ready(Taken { item: Some(Ok(Item::Messages(head, messages))), credit })
            }
            Some(lagged) => Poll::Ready(Taken { item: Some(Ok(lagged)), credit: None }),
            None => {
                let end = state.end.as_mut().and_then(Option::take);
                Poll::Ready(Taken { item: end.map(Err), credit: None })
            }
        }
    }
}

impl State {
    /// Credit is returned in quarters, so that it costs nothing.
    fn consume(&mut self, bytes: u64, credit: u64) -> Option<u64> {
        self.consumed += bytes;
        (self.consumed >= credit / 4).then(|| std::mem::take(&mut self.consumed))
    }
}

/// Messages of a topic or pattern, as a stream. Dropping it unsubscribes. It outlives its node: the client
/// goes on at another one, behind what was delivered.
///
/// It ends when the client is closed or [`PubSub::unsubscribe`](crate::PubSub::unsubscribe) ends it, and after an
/// error other than of one message (`Corrupt`, `UnknownKey`, `Decode`).
#[must_use = "a subscription ends when it is dropped"]
pub struct Subscription {
    number: u64,
    pattern: String,
    mailbox: Arc<Mailbox>,
    source: Arc<dyn Source>,
    current: Option<Messages>,
    mapping: Option<Mapping>,
    /// Keeps the client open.
    _client: Option<Client>,
}

impl Subscription {
    pub(crate) fn new(
        number: u64,
        pattern: &str,
        mailbox: Arc<Mailbox>,
        source: Arc<dyn Source>,
        client: Option<Client>,
    ) -> Self {
        let pattern = pattern.to_owned();
        Self { number, pattern, mailbox, source, current: None, mapping: None, _client: client }
    }

    /// The same with other messages; an error stands in the place of a message.
    pub(crate) fn map(mut self, mapping: Mapping) -> Self {
        self.mapping = Some(match self.mapping.take() {
            Some(below) => Arc::new(move |message| mapping(below(message)?)),
            None => mapping,
        });
        self
    }

    /// What is subscribed to.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// What comes next. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<SubscriptionEvent, Error>> {
        std::future::poll_fn(|context| self.poll_event(context)).await
    }

    /// The messages that came together and come next: cheaper than one at a time. Nothing is lost when the
    /// future is dropped.
    pub async fn next_batch(&mut self) -> Option<Result<SubscriptionBatch, Error>> {
        std::future::poll_fn(|context| self.poll_batch(context)).await
    }

    /// Ends the subscription, as dropping it does.
    pub fn unsubscribe(self) {}

    /// Whether nothing comes any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.mailbox.has_ended()
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<SubscriptionEvent, Error>>> {
        loop {
            if let Some(messages) = &mut self.current {
                if let Some(message) = messages.next() {
                    return Poll::Ready(Some(message.map(SubscriptionEvent::Message)));
                }
                self.current = None;
            }
            match ready!(self.poll_batch(context)) {
                Some(Ok(SubscriptionBatch::Messages(messages))) => self.current = Some(messages),
                Some(Ok(SubscriptionBatch::Lagged { missed })) => {
                    return Poll::Ready(Some(Ok(SubscriptionEvent::Lagged { missed })));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }

    fn poll_batch(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<SubscriptionBatch, Error>>> {
        if let Some(rest) = self.current.take().filter(|rest| rest.len() > 0) {
            return Poll::Ready(Some(Ok(SubscriptionBatch::Messages(rest))));
        }
        let Taken { item, credit } = ready!(self.mailbox.poll(context));
        if let Some(bytes) = credit {
            self.source.consumed(self.number, bytes);
        }
        Poll::Ready(item.map(|item| {
            Ok(match item? {
                Item::Messages(head, packed) => {
                    SubscriptionBatch::Messages(Messages::new(&head, packed, self.mapping.clone()))
                }
                Item::Lagged(missed) => SubscriptionBatch::Lagged { missed },
            })
        }))
    }
}

impl Stream for Subscription {
    type Item = Result<SubscriptionEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_event(context)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.source.unsubscribe(self.number);
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("pattern", &self.pattern).finish_non_exhaustive()
    }
}

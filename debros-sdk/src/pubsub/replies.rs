//! Answers to requests: one subscription for all of a client's. Whatever comes is handed at once to whoever waits for
//! it, by the one that brings it, so that no request depends on another: neither on its answer nor on its being
//! polled. What comes too late is dropped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use debros_proto::Failure;
use debros_proto::packed::RunHead;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::batch::Outgoing;
use super::message::{Message, Messages};
use super::settling::Settling;
use super::subscription::{Mailbox, Subscription};
use super::{Acknowledge, PubSub};
use crate::error::{Error, ErrorKind};

/// The topics of answers begin with this.
const REPLIES_PREFIX: &str = "_replies";
/// Bytes of answers that a node may send before it hears that they were taken.
const REPLIES_CREDIT_BYTES: u64 = 2 << 20;

/// See the module.
#[derive(Default)]
pub(crate) struct Replies {
    /// Drawn at the first use.
    prefix: OnceLock<String>,
    inbox: Mutex<Option<Inbox>>,
    waiting: Arc<Waiting>,
}

/// The subscription to answers.
pub(crate) struct Inbox {
    pub(crate) subscription: Subscription,
    /// It stands when this is settled.
    pub(crate) begun: Arc<Settling<()>>,
}

/// Requests without an answer.
#[derive(Default)]
pub(crate) struct Waiting(Mutex<Requests>);

#[derive(Default)]
struct Requests {
    last: u64,
    open: BTreeMap<u64, oneshot::Sender<Answer>>,
}

type Answer = Result<Message, Error>;

impl Waiting {
    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands answers to those who wait for them.
    pub(crate) fn answer(&self, head: &RunHead, messages: Bytes) {
        for message in Messages::new(head, messages, None) {
            let Ok(message) = message else { continue };
            let number = message.topic().rsplit('.').next().and_then(|number| number.parse().ok());
            let asked = number.and_then(|number: u64| self.requests().open.remove(&number));
            if let Some(asked) = asked {
                // Who gave up meanwhile has no need of it.
                let _ = asked.send(Ok(message));
            }
        }
    }

    /// No answers come any more: whoever waits for one hears so. Requests may have been carried out.
    pub(crate) fn end(&self, cause: Option<&Error>) {
        for asked in std::mem::take(&mut self.requests().open).into_values() {
            let error = match cause.filter(|cause| cause.kind() != ErrorKind::Closed) {
                None => Error::closed(),
                Some(cause) => {
                    let message = format!("the answer will not come, for its subscription ended: {cause}");
                    Error::new(ErrorKind::UnknownOutcome, message)
                }
            };
            let _ = asked.send(Err(error));
        }
    }
}

impl Replies {
    fn prefix(&self) -> &str {
        self.prefix.get_or_init(|| format!("{REPLIES_PREFIX}.{:016x}", rand::random::<u64>()))
    }

    /// Publishes a request and waits for the first answer. `open` subscribes to a pattern, if nobody has, and what
    /// comes goes into that mailbox.
    pub(crate) async fn request<P: PubSub + ?Sized>(
        &self,
        pubsub: &P,
        open: impl FnOnce(&str, Arc<Mailbox>) -> Result<Inbox, Error> + Send,
        message: Outgoing<'_>,
        timeout: Duration,
    ) -> Answer {
        if message.reply.is_some() {
            return Err(Error::invalid(
                "a request has a reply topic of its own; publish a message with another one",
            ));
        }
        message.check()?;
        let begun = self.open(open)?;
        let deadline = Instant::now() + timeout;
        match timeout_at(deadline, begun.settled()).await {
            Ok(begun) => begun.as_ref().map_err(Failure::clone)?,
            Err(_) => {
                let message = "no node has answered before the deadline; see `debros health`";
                return Err(Error::new(ErrorKind::DeadlineExceeded, message));
            }
        };
        let asking = async {
            let (number, answer) = self.expect();
            let reply = format!("{}.{number}", self.prefix());
            let _forget = Forget { replies: self, number };
            let told = pubsub.publish_with(message.with_reply(&reply), Acknowledge::Routed).await?;
            if told == Some(0) {
                let message = format!("nobody is subscribed to {:?}", message.topic);
                return Err(Error::new(ErrorKind::NoResponders, message));
            }
            answer.await.unwrap_or_else(|_| Err(Error::closed()))
        };
        timeout_at(deadline, asking).await.unwrap_or_else(|_| {
            let message = format!("nobody answered the request to {:?} within {timeout:?}", message.topic);
            Err(Error::new(ErrorKind::DeadlineExceeded, message))
        })
    }

    /// Opens the inbox, unless it is. Waits for nothing, so that who asks first and is not polled holds up nobody.
    fn open(
        &self,
        open: impl FnOnce(&str, Arc<Mailbox>) -> Result<Inbox, Error>,
    ) -> Result<Arc<Settling<()>>, Error> {
        let mut inbox = self.inbox();
        if let Some(open) = inbox.as_ref().filter(|inbox| !inbox.subscription.has_ended()) {
            return Ok(open.begun.clone());
        }
        // The former one ends first.
        *inbox = None;
        let mailbox = Mailbox::of_answers(REPLIES_CREDIT_BYTES, self.waiting.clone());
        let opened = open(&format!("{}.*", self.prefix()), mailbox)?;
        let begun = opened.begun.clone();
        *inbox = Some(opened);
        Ok(begun)
    }

    fn inbox(&self) -> MutexGuard<'_, Option<Inbox>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self) -> (u64, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        let mut requests = self.waiting.requests();
        requests.last += 1;
        let number = requests.last;
        requests.open.insert(number, sender);
        (number, receiver)
    }

    /// Ends the subscription.
    pub(crate) fn close(&self) {
        drop(self.inbox().take());
        self.waiting.end(None);
    }
}

/// Forgets a request that is not waited for any more.
struct Forget<'r> {
    replies: &'r Replies,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.replies.waiting.requests().open.remove(&self.number);
    }
}

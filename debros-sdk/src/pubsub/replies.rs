//! Answers to requests: one subscription for all of a client's, and whoever waits reads it for everybody. No task:
//! while nobody waits nobody reads, and the subscription's buffer is the bound of what comes too late.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::batch::Outgoing;
use super::message::Message;
use super::subscription::Subscription;
use super::{Acknowledge, PubSub};
use crate::error::{Error, ErrorKind};

/// The topics of answers begin with this.
const REPLIES_PREFIX: &str = "_replies";

type Answer = Result<Message, Error>;

/// See the module.
#[derive(Default)]
pub(crate) struct Replies {
    /// Drawn at the first use.
    prefix: OnceLock<String>,
    waiting: Mutex<Waiting>,
    inbox: tokio::sync::Mutex<Option<Subscription>>,
}

#[derive(Default)]
struct Waiting {
    last: u64,
    requests: BTreeMap<u64, oneshot::Sender<Answer>>,
}

impl Replies {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn prefix(&self) -> &str {
        self.prefix.get_or_init(|| format!("{REPLIES_PREFIX}.{:016x}", rand::random::<u64>()))
    }

    /// What is to be subscribed to.
    pub(crate) fn pattern(&self) -> String {
        format!("{}.*", self.prefix())
    }

    /// Publishes a request and waits for the first answer. `open` subscribes to [`Self::pattern`], if nobody has.
    pub(crate) async fn request<P: PubSub + ?Sized>(
        &self,
        pubsub: &P,
        open: impl Future<Output = Result<Subscription, Error>> + Send,
        message: Outgoing<'_>,
        timeout: Duration,
    ) -> Answer {
        if message.reply.is_some() {
            return Err(Error::invalid(
                "a request has a reply topic of its own; publish a message with another one",
            ));
        }
        message.check()?;
        let asking = async {
            {
                let mut inbox = self.inbox.lock().await;
                if inbox.is_none() {
                    *inbox = Some(open.await?);
                }
            }
            let (number, answer) = self.expect();
            let reply = format!("{}.{number}", self.prefix());
            let _forget = Forget { replies: self, number };
            let told = pubsub.publish_with(message.with_reply(&reply), Acknowledge::Routed).await?;
            if told == Some(0) {
                let message = format!("nobody is subscribed to {:?}", message.topic);
                return Err(Error::new(ErrorKind::NoResponders, message));
            }
            self.answer(answer).await
        };
        timeout_at(Instant::now() + timeout, asking).await.unwrap_or_else(|_| {
            let message = format!("nobody answered the request to {:?} within {timeout:?}", message.topic);
            Err(Error::new(ErrorKind::DeadlineExceeded, message))
        })
    }

    fn expect(&self) -> (u64, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting();
        waiting.last += 1;
        let number = waiting.last;
        waiting.requests.insert(number, sender);
        (number, receiver)
    }

    /// Waits for one's own answer, and hands on the others' as long as it has the inbox.
    async fn answer(&self, mut answer: oneshot::Receiver<Answer>) -> Answer {
        let mut inbox = tokio::select! {
            biased;
            answer = &mut answer => return answer.unwrap_or_else(|_| Err(Error::closed())),
            inbox = self.inbox.lock() => inbox,
        };
        loop {
            let Some(subscription) = &mut *inbox else { return Err(Error::closed()) };
            tokio::select! {
                biased;
                answer = &mut answer => return answer.unwrap_or_else(|_| Err(Error::closed())),
                message = subscription.next_message() => match message {
                    Some(Ok(message)) => self.hand_over(message),
                    Some(Err(error)) => {
                        *inbox = None;
                        return Err(error);
                    }
                    None => {
                        *inbox = None;
                        return Err(Error::closed());
                    }
                },
            }
        }
    }

    fn hand_over(&self, message: Message) {
        let number = message.topic().rsplit('.').next().and_then(|number| number.parse().ok());
        let asked = number.and_then(|number: u64| self.waiting().requests.remove(&number));
        if let Some(asked) = asked {
            // Who gave up meanwhile has no need of it.
            let _ = asked.send(Ok(message));
        }
    }

    /// Ends the subscription.
    pub(crate) fn close(&self) {
        // Whoever holds it sees its end and drops it.
        if let Ok(mut inbox) = self.inbox.try_lock() {
            *inbox = None;
        }
    }
}

/// Forgets a request that is not waited for any more.
struct Forget<'r> {
    replies: &'r Replies,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.replies.waiting().requests.remove(&self.number);
    }
}

//! Pub/sub as an application sees it: the trait, its options and its answers. Says what is promised; who
//! keeps the promise is `remote` (a cluster) and `memory` (this process).
//!
//! ```text
//! publish --> publishing (packs, numbers, remembers) --+                +--> mailbox --> Subscription
//!                                                      +--> session <---+
//! subscribe, enter ------------------------------------+   (one stream) +--> PresenceWatch
//! ```
//!
//! Invariant: what a subscription was not given and should have been is told by
//! [`SubscriptionEvent::Lagged`], never passed over in silence.

mod attachment;
pub(crate) mod batch;
pub(crate) mod encrypted;
pub(crate) mod extension;
pub(crate) mod handler;
pub(crate) mod message;
pub(crate) mod presence;
mod publishing;
pub(crate) mod remote;
pub(crate) mod replies;
pub(crate) mod session;
pub(crate) mod settling;
pub(crate) mod subscription;
mod subscriptions;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use debros_proto::limits;
use debros_topics::{InvalidTopic, check_pattern, check_topic};

use crate::error::Error;
use crate::pubsub::batch::{MessageBatch, Outgoing};
use crate::pubsub::message::Message;
use crate::pubsub::presence::{Member, Presence, PresenceWatch};
use crate::pubsub::subscription::Subscription;
use crate::statement::too_large;

/// The payload of one message.
pub const MESSAGE_BYTES_MAX: usize = limits::MESSAGE_BYTES_MAX;

/// When a publish is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Acknowledge {
    /// The node has taken it in, and it is on its way to every interested node.
    #[default]
    Accepted,
    /// The same, and the answer tells to how many nodes it goes.
    Routed,
    /// Every interested node in reach has it, and the answer tells how many these are.
    Received,
}

/// What becomes of a subscription whose application takes messages more slowly than they come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// The oldest messages are dropped, and [`SubscriptionEvent::Lagged`] says how many.
    ///
    /// [`SubscriptionEvent::Lagged`]: crate::SubscriptionEvent::Lagged
    #[default]
    DropOldest,
    /// The subscription ends with `LimitExceeded`.
    Disconnect,
}

/// Options of a subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// The queue group: each message goes to one member of it.
    pub group: Option<String>,
    /// What becomes of it when it is too slow.
    pub overflow: Overflow,
    /// Bytes of messages that may wait in this process; 2 MiB unless given. A node keeps 16 MiB more.
    pub buffer_bytes: Option<u64>,
}

impl SubscribeOptions {
    /// A member of a queue group.
    pub fn group(group: impl Into<String>) -> Self {
        Self { group: Some(group.into()), ..Self::default() }
    }
}

/// What is subscribed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// The topic or pattern.
    pub pattern: String,
    /// The queue group.
    pub group: Option<String>,
    /// How many subscriptions there are.
    pub subscriptions: u32,
    /// On how many nodes.
    pub nodes: u32,
}

/// Live messages between the clients of a namespace, whichever nodes they are attached to.
///
/// A topic is text of levels split by `.`; in a pattern the level `*` stands for one level and the level `>`,
/// which comes last, for one or more. Every other character is literal. A payload is bytes, up to
/// [`MESSAGE_BYTES_MAX`].
///
/// A subscription gets the messages of one publisher in the order of their publishing, each one once, also when
/// its node or the publisher's dies and the clients go on at other nodes. What could not be delivered is
/// reported ([`SubscriptionEvent::Lagged`](crate::SubscriptionEvent::Lagged)). Members of a queue group get
/// each message at most once. Nothing is stored: who was not subscribed gets nothing.
///
/// Publishing from several tasks is cheap: what waits travels together. A single task that wants to be fast
/// publishes batches.
#[async_trait]
pub trait PubSub: Send + Sync {
    /// Whose topics these are.
    fn namespace(&self) -> &str;

    /// Publishes messages in their order. Gives of each one to how many nodes it goes, where that was asked for:
    /// `None` when the connection broke meanwhile, and the answer with it. Empty for [`Acknowledge::Accepted`].
    ///
    /// # Errors
    /// Whatever an unavailable cluster gives; when nobody knows whether the messages were published,
    /// [`Error::maybe_applied`] says so.
    async fn publish_batch_with(
        &self,
        batch: MessageBatch,
        acknowledge: Acknowledge,
    ) -> Result<Vec<Option<u32>>, Error>;

    /// Subscribes to a topic or a pattern. From when this returns on, every message that is published on any
    /// node in reach is delivered or reported as missed. Dropping the subscription ends it.
    ///
    /// # Errors
    /// `InvalidArgument` for a pattern that is none, `LimitExceeded` for too many subscriptions; whatever an
    /// unavailable cluster gives.
    async fn subscribe_with(&self, pattern: &str, options: SubscribeOptions) -> Result<Subscription, Error>;

    /// Ends all subscriptions of this client to exactly this topic or pattern, and says how many there were.
    ///
    /// # Errors
    /// `Closed`.
    async fn unsubscribe(&self, pattern: &str) -> Result<usize, Error>;

    /// Publishes a message with a reply topic of its own, and waits for the first answer.
    ///
    /// # Errors
    /// `NoResponders` when nobody is subscribed to the topic, `DeadlineExceeded` when nobody answers in time;
    /// else as [`PubSub::publish_with`].
    async fn request_with(&self, message: Outgoing<'_>, timeout: Duration) -> Result<Message, Error>;

    /// What this client is subscribed to, in the order of the patterns.
    ///
    /// # Errors
    /// `Closed`.
    async fn list_topics(&self) -> Result<Vec<TopicInfo>, Error>;

    /// What is subscribed to in the whole cluster, in this namespace.
    ///
    /// # Errors
    /// Whatever an unavailable cluster gives.
    async fn cluster_topics(&self) -> Result<Vec<TopicInfo>, Error>;

    /// Says that somebody is here, until the answer is dropped.
    ///
    /// # Errors
    /// `InvalidArgument` for a topic that is none, `LimitExceeded` for a long name or much data; whatever an
    /// unavailable cluster gives.
    async fn enter(&self, topic: &str, member: &str, data: Bytes) -> Result<Presence, Error>;

    /// Who is here, in the topics that the pattern matches.
    ///
    /// # Errors
    /// As [`PubSub::subscribe_with`].
    async fn present(&self, pattern: &str) -> Result<Vec<Member>, Error>;

    /// Tells who enters and leaves; begins with those who are here.
    ///
    /// # Errors
    /// As [`PubSub::subscribe_with`].
    async fn watch_presence(&self, pattern: &str) -> Result<PresenceWatch, Error>;

    /// Publishes one message; see [`PubSub::publish_batch_with`] for the answer.
    ///
    /// # Errors
    /// `InvalidArgument` for a topic that is none or is a pattern, `LimitExceeded` for what is too large; else as
    /// [`PubSub::publish_batch_with`].
    async fn publish_with(
        &self,
        message: Outgoing<'_>,
        acknowledge: Acknowledge,
    ) -> Result<Option<u32>, Error> {
        let mut batch = MessageBatch::new();
        batch.push_message(&message)?;
        Ok(self.publish_batch_with(batch, acknowledge).await?.pop().flatten())
    }

    /// Publishes a message. It is on its way to every interested node when this returns.
    async fn publish(&self, topic: &str, payload: &[u8]) -> Result<(), Error> {
        self.publish_with(Outgoing::new(topic, payload), Acknowledge::Accepted).await.map(drop)
    }

    /// Publishes messages in their order. They are on their way when this returns.
    async fn publish_batch(&self, batch: MessageBatch) -> Result<(), Error> {
        self.publish_batch_with(batch, Acknowledge::Accepted).await.map(drop)
    }

    /// Publishes a message, and returns when every interested node in reach has it: how many these are. `None`
    /// when the connection broke meanwhile, and all have it nevertheless.
    async fn publish_acked(&self, topic: &str, payload: &[u8]) -> Result<Option<u32>, Error> {
        self.publish_with(Outgoing::new(topic, payload), Acknowledge::Received).await
    }

    /// Subscribes to a topic or a pattern as usual.
    async fn subscribe(&self, pattern: &str) -> Result<Subscription, Error> {
        self.subscribe_with(pattern, SubscribeOptions::default()).await
    }

    /// Publishes a payload as a request, and waits for the first answer.
    async fn request(&self, topic: &str, payload: &[u8], timeout: Duration) -> Result<Message, Error> {
        self.request_with(Outgoing::new(topic, payload), timeout).await
    }
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        #[async_trait]
        impl<P: PubSub + ?Sized> PubSub for $pointer {
            fn namespace(&self) -> &str {
                (**self).namespace()
            }
            async fn publish_batch_with(
                &self,
                batch: MessageBatch,
                acknowledge: Acknowledge,
            ) -> Result<Vec<Option<u32>>, Error> {
                (**self).publish_batch_with(batch, acknowledge).await
            }
            async fn subscribe_with(
                &self,
                pattern: &str,
                options: SubscribeOptions,
            ) -> Result<Subscription, Error> {
                (**self).subscribe_with(pattern, options).await
            }
            async fn unsubscribe(&self, pattern: &str) -> Result<usize, Error> {
                (**self).unsubscribe(pattern).await
            }
            async fn request_with(&self, message: Outgoing<'_>, timeout: Duration) -> Result<Message, Error> {
                (**self).request_with(message, timeout).await
            }
            async fn list_topics(&self) -> Result<Vec<TopicInfo>, Error> {
                (**self).list_topics().await
            }
            async fn cluster_topics(&self) -> Result<Vec<TopicInfo>, Error> {
                (**self).cluster_topics().await
            }
            async fn enter(&self, topic: &str, member: &str, data: Bytes) -> Result<Presence, Error> {
                (**self).enter(topic, member, data).await
            }
            async fn present(&self, pattern: &str) -> Result<Vec<Member>, Error> {
                (**self).present(pattern).await
            }
            async fn watch_presence(&self, pattern: &str) -> Result<PresenceWatch, Error> {
                (**self).watch_presence(pattern).await
            }
            async fn publish_with(
                &self,
                message: Outgoing<'_>,
                acknowledge: Acknowledge,
            ) -> Result<Option<u32>, Error> {
                (**self).publish_with(message, acknowledge).await
            }
        }
    )*};
}

forward!(&P, Arc<P>, Box<P>);

/// A topic that can be published to.
pub(crate) fn topic(topic: &str) -> Result<(), Error> {
    check_topic(topic).map_err(invalid)
}

/// A topic or pattern that can be subscribed to.
pub(crate) fn pattern(pattern: &str) -> Result<(), Error> {
    check_pattern(pattern).map_err(invalid)
}

/// A queue group's name.
pub(crate) fn group(group: Option<&str>) -> Result<(), Error> {
    match group {
        Some("") => Err(Error::invalid("a queue group's name has at least one character")),
        Some(group) => within("GROUP_BYTES_MAX", limits::GROUP_BYTES_MAX, group.len()),
        None => Ok(()),
    }
}

/// Who enters a topic.
pub(crate) fn member(topic: &str, member: &str, data: &Bytes) -> Result<(), Error> {
    self::topic(topic)?;
    within("PRESENCE_MEMBER_BYTES_MAX", limits::PRESENCE_MEMBER_BYTES_MAX, member.len())?;
    within("PRESENCE_DATA_BYTES_MAX", limits::PRESENCE_DATA_BYTES_MAX, data.len())
}

fn within(name: &str, max: usize, found: usize) -> Result<(), Error> {
    if found > max { Err(too_large(name, max, found)) } else { Ok(()) }
}

fn invalid(error: InvalidTopic) -> Error {
    match error {
        InvalidTopic::Bytes { found } => too_large("TOPIC_BYTES_MAX", limits::TOPIC_BYTES_MAX, found),
        InvalidTopic::Levels { found } => too_large("TOPIC_LEVELS_MAX", limits::TOPIC_LEVELS_MAX, found),
        other => Error::invalid(other.to_string()).with_source(other),
    }
}

//! Pub/sub of a cluster. Checks what can be told without a node, hands it to the client's session and waits for
//! what comes of it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use debros_proto::{Failure, v1};
use tokio::time::{Instant, timeout_at};

use super::batch::{MessageBatch, Outgoing, Part};
use super::message::Message;
use super::presence::{Member, Presence, PresenceWatch, Settlings};
use super::replies::Inbox;
use super::session::{Beginning, Session};
use super::settling::Settling;
use super::subscription::Subscription;
use super::{Acknowledge, PubSub, SubscribeOptions, TopicInfo, attachment};
use crate::call::Failed;
use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::otel;
use crate::pubsub;
use crate::rpc;

/// Pub/sub in a client's namespace. Clones are cheap; all of one client share one session, and are one
/// publisher.
#[derive(Clone)]
pub struct RemotePubSub {
    client: Client,
}

impl RemotePubSub {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// The client's session; it is kept attached from the first use on.
    fn session(&self) -> Result<&Arc<Session>, Error> {
        let shared = self.client.shared_handle();
        shared.check_open()?;
        let session = shared.pubsub();
        if session.start() {
            self.client.spawn(attachment::run(Arc::clone(shared), Arc::clone(session)));
        }
        Ok(session)
    }

    async fn send_parts(&self, parts: Vec<Part>, mode: v1::PublishMode) -> Result<Vec<Option<u32>>, Error> {
        let deadline = self.client.shared().deadline(None);
        let session = self.session()?;
        let mut tickets = Vec::new();
        for part in parts {
            match session.room(part.packed.len(), deadline).await {
                Ok(()) => tickets.push(session.publish_part(part, mode)?),
                Err(error) if tickets.is_empty() => return Err(error),
                // The first parts may be on their way.
                Err(error) => return Err(unknown(error.to_string())),
            }
        }
        let mut counts = Vec::new();
        for ticket in tickets {
            counts.append(&mut settled(ticket.settled(mode), deadline).await?);
        }
        Ok(counts)
    }

    async fn send_one(&self, message: Outgoing<'_>, mode: v1::PublishMode) -> Result<Option<u32>, Error> {
        let deadline = self.client.shared().deadline(None);
        let session = self.session()?;
        let traced = otel::headers(&message);
        let message = Outgoing { headers: traced.as_ref().or(message.headers), ..message };
        session.room(message.encoded_len(), deadline).await?;
        let ticket = session.publish(&message, mode)?;
        Ok(settled(ticket.settled(mode), deadline).await?.pop().flatten())
    }
}

impl RemotePubSub {
    fn published<T>(&self, outcome: &Result<T, Error>, started: Instant) {
        let error = outcome.as_ref().err().map(Error::kind);
        self.client.shared().metrics().publish.ended(error, 1, started.elapsed());
    }

    async fn publish_parts(
        &self,
        batch: MessageBatch,
        acknowledge: Acknowledge,
    ) -> Result<Vec<Option<u32>>, Error> {
        let publish = self.send_parts(batch.into_parts(), mode_of(acknowledge));
        otel::publishing("", self.namespace(), publish).await
    }

    async fn publish_one(
        &self,
        message: Outgoing<'_>,
        acknowledge: Acknowledge,
    ) -> Result<Option<u32>, Error> {
        message.check()?;
        let publish = self.send_one(message, mode_of(acknowledge));
        otel::publishing(message.topic, self.namespace(), publish).await
    }
}

impl fmt::Debug for RemotePubSub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemotePubSub").field("namespace", &self.namespace()).finish_non_exhaustive()
    }
}

#[async_trait]
impl PubSub for RemotePubSub {
    fn namespace(&self) -> &str {
        self.client.namespace()
    }

    async fn publish_batch_with(
        &self,
        batch: MessageBatch,
        acknowledge: Acknowledge,
    ) -> Result<Vec<Option<u32>>, Error> {
        let started = Instant::now();
        let published = self.publish_parts(batch, acknowledge).await;
        self.published(&published, started);
        published
    }

    async fn publish_with(
        &self,
        message: Outgoing<'_>,
        acknowledge: Acknowledge,
    ) -> Result<Option<u32>, Error> {
        let started = Instant::now();
        let published = self.publish_one(message, acknowledge).await;
        self.published(&published, started);
        published
    }

    async fn subscribe_with(&self, pattern: &str, options: SubscribeOptions) -> Result<Subscription, Error> {
        pubsub::pattern(pattern)?;
        pubsub::group(options.group.as_deref())?;
        let deadline = self.client.shared().deadline(None);
        let session = self.session()?;
        let Beginning { number, told_in, begun } = session.subscribe(pattern, options)?;
        let client = Some(self.client.clone());
        // Ends with this future, if that is dropped.
        let subscription = Subscription::new(number, pattern, told_in, Arc::clone(session) as _, client);
        stands(&begun, deadline).await?;
        Ok(subscription)
    }

    async fn unsubscribe(&self, pattern: &str) -> Result<usize, Error> {
        self.session()?.unsubscribe_all(pattern)
    }

    async fn request_with(&self, message: Outgoing<'_>, timeout: Duration) -> Result<Message, Error> {
        let session = self.session()?;
        let open = |pattern: &str, mailbox| {
            let begun = session.subscribe_into(pattern, SubscribeOptions::default(), mailbox)?;
            let Beginning { number, told_in, begun } = begun;
            // The session holds it, and must not keep the client open.
            let subscription = Subscription::new(number, pattern, told_in, Arc::clone(session) as _, None);
            Ok(Inbox { subscription, begun })
        };
        session.replies.request(self, open, message, timeout).await
    }

    async fn list_topics(&self) -> Result<Vec<TopicInfo>, Error> {
        Ok(self.session()?.topics())
    }

    async fn cluster_topics(&self) -> Result<Vec<TopicInfo>, Error> {
        let shared = self.client.shared();
        shared.check_open()?;
        let (mut topics, mut request) = (Vec::new(), v1::TopicsRequest::default());
        loop {
            let answer = shared.call(&shared.plan_any(), &request, rpc::topics).await;
            let v1::TopicsResponse { topics: page, more } = answer.map_err(Failed::into_read_error)?.value;
            let last = page.last().map(|last| (last.pattern.clone(), last.group.clone()));
            topics.extend(page.into_iter().map(TopicInfo::from));
            match last {
                Some(last) if more => (request.after_pattern, request.after_group) = last,
                _ => return Ok(topics),
            }
        }
    }

    async fn enter(&self, topic: &str, member: &str, data: Bytes) -> Result<Presence, Error> {
        pubsub::member(topic, member, &data)?;
        let deadline = self.client.shared().deadline(None);
        let session = self.session()?;
        let (number, Settlings { begun, over }) = session.enter(topic, member, data)?;
        let presence = Presence::new(number, Arc::clone(session) as _, over, Some(self.client.clone()));
        stands(&begun, deadline).await?;
        Ok(presence)
    }

    async fn present(&self, pattern: &str) -> Result<Vec<Member>, Error> {
        pubsub::pattern(pattern)?;
        let shared = self.client.shared();
        shared.check_open()?;
        let request = v1::PresentRequest { header: None, pattern: pattern.to_owned() };
        let answer = shared.call(&shared.plan_any(), &request, rpc::present).await;
        let members = answer.map_err(Failed::into_read_error)?.value.members;
        Ok(members.into_iter().map(Member::from).collect())
    }

    async fn watch_presence(&self, pattern: &str) -> Result<PresenceWatch, Error> {
        pubsub::pattern(pattern)?;
        let deadline = self.client.shared().deadline(None);
        let session = self.session()?;
        let Beginning { number, told_in, begun } = session.watch_presence(pattern)?;
        let watch = PresenceWatch::new(number, told_in, Arc::clone(session) as _, Some(self.client.clone()));
        stands(&begun, deadline).await?;
        Ok(watch)
    }
}

/// Waits for the answer to what publishes nothing.
async fn stands(settling: &Settling<()>, deadline: Instant) -> Result<(), Error> {
    match timeout_at(deadline, settling.settled()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(failure)) => Err(failure.clone().into()),
        Err(_) => {
            let message = "no node has answered before the deadline; see `debros health`";
            Err(Error::new(ErrorKind::DeadlineExceeded, message))
        }
    }
}

/// Waits for the answer to what publishes something.
async fn settled<T>(answer: impl Future<Output = Result<T, Failure>>, deadline: Instant) -> Result<T, Error> {
    match timeout_at(deadline, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(unknown("no node has acknowledged it before the deadline")),
    }
}

fn unknown(cause: impl fmt::Display) -> Error {
    let message = format!("the messages may or may not have been published: {cause}");
    Error::new(ErrorKind::UnknownOutcome, message)
}

fn mode_of(acknowledge: Acknowledge) -> v1::PublishMode {
    match acknowledge {
        Acknowledge::Accepted => v1::PublishMode::Accepted,
        Acknowledge::Routed => v1::PublishMode::Routed,
        Acknowledge::Received => v1::PublishMode::Received,
    }
}

impl From<v1::TopicStatus> for TopicInfo {
    fn from(status: v1::TopicStatus) -> Self {
        let v1::TopicStatus { pattern, group, subscriptions, nodes } = status;
        Self { pattern, group: (!group.is_empty()).then_some(group), subscriptions, nodes }
    }
}

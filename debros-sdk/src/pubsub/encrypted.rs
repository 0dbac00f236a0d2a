//! Pub/sub whose payloads are encrypted before they leave the application. Topics, headers, sizes, times and who is
//! present stay readable: nodes route by topics.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use debros_proto::packed::MessageRef;

use super::batch::{MessageBatch, Outgoing};
use super::message::{Headers, Mapping, Message};
use super::presence::{Member, Presence, PresenceWatch};
use super::subscription::Subscription;
use super::{Acknowledge, PubSub, SubscribeOptions, TopicInfo};
use crate::error::Error;
use crate::storage::keyring::{Keyring, Sealed};

/// A [`PubSub`] with encrypted payloads, from [`PubSubExt::encrypted`](crate::PubSubExt::encrypted).
///
/// A payload that does not open is an error in the place of its message, and the subscription goes on: `UnknownKey`
/// when the keyring lacks the key it was encrypted with, `Corrupt` when it was changed, came from another topic,
/// or was never encrypted. A message that was published once opens when somebody publishes it again to the same
/// topic. Answers to requests are encrypted, too.
#[derive(Debug)]
pub struct EncryptedPubSub<P> {
    pubsub: P,
    keys: Arc<Keyring>,
}

impl<P: PubSub> EncryptedPubSub<P> {
    pub(crate) fn new(pubsub: P, keys: Keyring) -> Self {
        Self { pubsub, keys: Arc::new(keys) }
    }

    fn seal(&self, topic: &str, payload: &[u8]) -> Result<Bytes, Error> {
        self.keys.seal_as(Sealed::Message, self.namespace(), topic, payload)
    }

    fn opening(&self) -> Mapping {
        let (keys, namespace) = (Arc::clone(&self.keys), self.namespace().to_owned());
        Arc::new(move |message: Message| {
            let payload = keys.open_as(Sealed::Message, &namespace, message.topic(), message.payload())?;
            Ok(message.with_payload(&payload))
        })
    }
}

#[async_trait]
impl<P: PubSub> PubSub for EncryptedPubSub<P> {
    fn namespace(&self) -> &str {
        self.pubsub.namespace()
    }

    async fn publish_batch_with(
        &self,
        batch: MessageBatch,
        acknowledge: Acknowledge,
    ) -> Result<Vec<Option<u32>>, Error> {
        let mut sealed = MessageBatch::new();
        for part in batch.into_parts() {
            let mut rest = &part.packed[..];
            while !rest.is_empty() {
                let message = MessageRef::first(rest).expect("it was packed here");
                let text = |bytes| std::str::from_utf8(bytes).expect("it was text when it was packed");
                let (topic, reply) = (text(message.topic), text(message.reply));
                let payload = self.seal(topic, message.payload)?;
                let headers = Headers::of(message.headers);
                sealed.push_message(&Outgoing {
                    topic,
                    payload: &payload,
                    reply: (!reply.is_empty()).then_some(reply),
                    headers: Some(&headers),
                })?;
                rest = &rest[message.encoded_len..];
            }
        }
        self.pubsub.publish_batch_with(sealed, acknowledge).await
    }

    async fn publish_with(
        &self,
        message: Outgoing<'_>,
        acknowledge: Acknowledge,
    ) -> Result<Option<u32>, Error> {
        message.check()?;
        let payload = self.seal(message.topic, message.payload)?;
        self.pubsub.publish_with(Outgoing { payload: &payload, ..message }, acknowledge).await
    }

    async fn subscribe_with(&self, pattern: &str, options: SubscribeOptions) -> Result<Subscription, Error> {
        Ok(self.pubsub.subscribe_with(pattern, options).await?.map(self.opening()))
    }

    async fn unsubscribe(&self, pattern: &str) -> Result<usize, Error> {
        self.pubsub.unsubscribe(pattern).await
    }

    async fn request_with(&self, message: Outgoing<'_>, timeout: Duration) -> Result<Message, Error> {
        message.check()?;
        let payload = self.seal(message.topic, message.payload)?;
        let answer = self.pubsub.request_with(Outgoing { payload: &payload, ..message }, timeout).await?;
        self.opening()(answer)
    }

    async fn list_topics(&self) -> Result<Vec<TopicInfo>, Error> {
        self.pubsub.list_topics().await
    }

    async fn cluster_topics(&self) -> Result<Vec<TopicInfo>, Error> {
        self.pubsub.cluster_topics().await
    }

    async fn enter(&self, topic: &str, member: &str, data: Bytes) -> Result<Presence, Error> {
        self.pubsub.enter(topic, member, data).await
    }

    async fn present(&self, pattern: &str) -> Result<Vec<Member>, Error> {
        self.pubsub.present(pattern).await
    }

    async fn watch_presence(&self, pattern: &str) -> Result<PresenceWatch, Error> {
        self.pubsub.watch_presence(pattern).await
    }
}

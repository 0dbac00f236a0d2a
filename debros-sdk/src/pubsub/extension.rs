//! What every pub/sub can do besides: JSON payloads, handlers, answers, encryption. Built on the trait alone.

use std::fmt::Display;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::encrypted::EncryptedPubSub;
use super::handler::HandledSubscription;
use super::message::Message;
use super::{PubSub, SubscribeOptions};
use crate::error::{Error, ErrorKind};
use crate::storage::keyring::Keyring;

/// More that every [`PubSub`] can do.
#[async_trait]
pub trait PubSubExt: PubSub {
    /// Publishes a value as JSON.
    ///
    /// # Errors
    /// `InvalidArgument` when the value cannot be JSON; else as [`PubSub::publish_with`].
    async fn publish_json<T: Serialize + Sync + ?Sized>(&self, topic: &str, value: &T) -> Result<(), Error> {
        self.publish(topic, &to_json(value)?).await
    }

    /// Publishes a value as JSON, and returns when every interested node in reach has it.
    ///
    /// # Errors
    /// As [`PubSubExt::publish_json`].
    async fn publish_json_acked<T: Serialize + Sync + ?Sized>(
        &self,
        topic: &str,
        value: &T,
    ) -> Result<Option<u32>, Error> {
        self.publish_acked(topic, &to_json(value)?).await
    }

    /// Asks with a value as JSON, and reads the answer as JSON; [`Message::json`] reads it for who answers.
    ///
    /// # Errors
    /// `Decode` when the answer is of another shape; else as [`PubSub::request_with`].
    async fn request_json<T: Serialize + Sync + ?Sized, A: DeserializeOwned>(
        &self,
        topic: &str,
        value: &T,
        timeout: Duration,
    ) -> Result<A, Error> {
        self.request(topic, &to_json(value)?, timeout).await?.json()
    }

    /// Answers a request.
    ///
    /// # Errors
    /// `InvalidArgument` when no answer is expected; else as [`PubSub::publish_with`].
    async fn respond(&self, request: &Message, payload: &[u8]) -> Result<(), Error> {
        let Some(reply) = request.reply() else {
            return Err(Error::invalid("nobody expects an answer to this message: it has no reply topic"));
        };
        self.publish(reply, payload).await
    }

    /// Subscribes with a function for every message, one at a time. An error of its is counted and logged, and
    /// stops nothing.
    ///
    /// # Errors
    /// As [`PubSub::subscribe_with`].
    async fn subscribe_handler<F, H, E>(
        &self,
        pattern: &str,
        handler: F,
    ) -> Result<HandledSubscription, Error>
    where
        F: FnMut(Message) -> H + Send + 'static,
        H: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let subscription = self.subscribe_with(pattern, SubscribeOptions::default()).await?;
        Ok(HandledSubscription::new(subscription, handler))
    }

    /// The same pub/sub with payloads that nobody without the keys can read or change unnoticed.
    fn encrypted(self, keys: Keyring) -> EncryptedPubSub<Self>
    where
        Self: Sized,
    {
        EncryptedPubSub::new(self, keys)
    }
}

impl<P: PubSub + ?Sized> PubSubExt for P {}

fn to_json<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| {
        Error::invalid(format!("the value cannot be written as JSON: {error}")).with_source(error)
    })
}

impl Message {
    /// Reads the payload as JSON.
    ///
    /// # Errors
    /// `Decode` when it is of another shape.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(self.payload()).map_err(|error| {
            let message = format!("a message of {:?} is not JSON of that shape: {error}", self.topic());
            Error::new(ErrorKind::Decode, message).with_source(error)
        })
    }
}

//! This project under measurement: three node processes of the release build, asked through the SDK.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use bytes::Bytes;
use debros_sdk::{
    Client, MessageBatch, PubSub, PubSubExt, Subscription, SubscriptionBatch, SubscriptionEvent,
};

use super::{Member, Messaging, NODES, Receiver};
use crate::bench::{Build, System};
use crate::cluster::Cluster;
use crate::membership;

const APPLICATION: &str = "bench";
/// A request is answered within a millisecond or so.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// Starts a cluster on an empty folder.
pub(in crate::bench) async fn start(build: &Build) -> Result<Debros> {
    Ok(Debros { name: build.name, cluster: build.cluster(NODES, |_| ()).await? })
}

/// A cluster of node processes.
pub(in crate::bench) struct Debros {
    name: &'static str,
    cluster: Cluster,
}

impl Debros {
    /// The nodes.
    pub(in crate::bench) fn cluster(&self) -> &Cluster {
        &self.cluster
    }
}

#[async_trait]
impl System for Debros {
    fn name(&self) -> &'static str {
        self.name
    }

    fn pids(&self) -> Vec<u32> {
        self.cluster.pids()
    }

    async fn stop(self: Box<Self>) -> Result<()> {
        self.cluster.stop().await
    }
}

#[async_trait]
impl Messaging for Debros {
    async fn connect(&mut self, node: usize) -> Result<Arc<dyn Member>> {
        Ok(Arc::new(Connected { client: membership::client_at(&self.cluster, node, APPLICATION).await? }))
    }
}

/// A client of the SDK.
struct Connected {
    client: Client,
}

#[async_trait]
impl Member for Connected {
    async fn publish(&self, topics: &[String], payload: &Bytes) -> Result<()> {
        let mut batch = MessageBatch::new();
        for topic in topics {
            batch.push(topic, payload)?;
        }
        Ok(self.client.pubsub().publish_batch(batch).await?)
    }

    async fn subscribe(&self, pattern: &str) -> Result<Box<dyn Receiver>> {
        Ok(Box::new(self.client.pubsub().subscribe(pattern).await?))
    }

    async fn request(&self, topic: &str) -> Result<()> {
        self.client.pubsub().request(topic, b"?", ANSWERED_WITHIN).await?;
        Ok(())
    }

    async fn respond(&self, topic: &str) -> Result<()> {
        let answering = self.client.pubsub();
        let mut requests = answering.subscribe(topic).await?;
        tokio::spawn(async move {
            while let Some(Ok(event)) = requests.next().await {
                if let SubscriptionEvent::Message(request) = event
                    && answering.respond(&request, b"!").await.is_err()
                {
                    return;
                }
            }
        });
        Ok(())
    }
}

#[async_trait]
impl Receiver for Subscription {
    async fn receive(&mut self, each: &mut (dyn for<'p> FnMut(&'p [u8]) + Send)) -> Result<()> {
        match self.next_batch().await.context("the subscription ended")?? {
            SubscriptionBatch::Messages(messages) => {
                for message in messages {
                    each(message?.payload());
                }
                Ok(())
            }
            lagged => bail!("a subscriber that reads all the time got {lagged:?}"),
        }
    }
}

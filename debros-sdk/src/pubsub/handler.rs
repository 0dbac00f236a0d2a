//! The handler form of a subscription: a function for every message, instead of a stream. What a handler says
//! went wrong is counted and logged, and stops nothing; a panic neither.

use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt;
use tokio::task::JoinSet;
use tracing::Instrument;
use tracing::instrument::WithSubscriber;

use super::message::{Message, SubscriptionEvent};
use super::subscription::Subscription;
use crate::otel;

/// A subscription that a handler takes the messages of, one at a time and in order. Dropping it unsubscribes, also
/// in the midst of a message.
#[must_use = "a subscription ends when it is dropped"]
#[derive(Debug)]
pub struct HandledSubscription {
    pattern: String,
    counts: Arc<Counts>,
    /// Its one task ends with it.
    tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Counts {
    handled: AtomicU64,
    failed: AtomicU64,
    lagged: AtomicU64,
}

impl HandledSubscription {
    pub(crate) fn new<F, H, E>(subscription: Subscription, handler: F) -> Self
    where
        F: FnMut(Message) -> H + Send + 'static,
        H: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let pattern = subscription.pattern().to_owned();
        let counts = Arc::<Counts>::default();
        let mut tasks = JoinSet::new();
        // What handlers log goes where the application's log went when it subscribed.
        tasks.spawn(handle(subscription, handler, Arc::clone(&counts)).with_current_subscriber());
        Self { pattern, counts, tasks }
    }

    /// What is subscribed to.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Messages that the handler has taken, also those that it failed with.
    pub fn handled(&self) -> u64 {
        self.counts.handled.load(Ordering::Relaxed)
    }

    /// Messages that the handler failed with, by an error or a panic, or that could not be read.
    pub fn failed(&self) -> u64 {
        self.counts.failed.load(Ordering::Relaxed)
    }

    /// How often messages were missed.
    pub fn lagged(&self) -> u64 {
        self.counts.lagged.load(Ordering::Relaxed)
    }

    /// Waits until the subscription has ended: with the client, or by
    /// [`PubSub::unsubscribe`](crate::PubSub::unsubscribe).
    pub async fn ended(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }

    /// Ends the subscription, as dropping it does.
    pub fn unsubscribe(self) {}
}

async fn handle<F, H, E>(mut subscription: Subscription, mut handler: F, counts: Arc<Counts>)
where
    F: FnMut(Message) -> H + Send + 'static,
    H: Future<Output = Result<(), E>> + Send + 'static,
    E: Display + Send + 'static,
{
    let count = |count: &AtomicU64| count.fetch_add(1, Ordering::Relaxed);
    while let Some(event) = subscription.next().await {
        match event {
            Ok(SubscriptionEvent::Message(message)) => {
                let span = otel::handling(&message);
                // The handler is called again after a panic, as a server's is: what it shares is its own concern.
                let handled = async { span.in_scope(|| handler(message)).await };
                let handled = AssertUnwindSafe(handled).catch_unwind().instrument(span.clone()).await;
                count(&counts.handled);
                let error = match handled {
                    Ok(Ok(())) => continue,
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "it panicked".to_owned(),
                };
                count(&counts.failed);
                tracing::warn!(pattern = subscription.pattern(), error, "a handler failed with a message");
            }
            Ok(SubscriptionEvent::Lagged { missed }) => {
                count(&counts.lagged);
                tracing::warn!(pattern = subscription.pattern(), missed, "messages were missed");
            }
            Err(error) => {
                count(&counts.failed);
                tracing::warn!(pattern = subscription.pattern(), %error, "a subscription has trouble");
            }
        }
    }
}

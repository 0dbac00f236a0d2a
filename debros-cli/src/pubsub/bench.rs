//! `debros pubsub bench`: one publisher and one subscriber, as fast as it goes and then one message at a time.
//! Measures what a person sees from here; the project's own benchmark is elsewhere.

use std::time::{Duration, Instant};

use debros_sdk::{Error, MessageBatch, PubSub, Subscription, SubscriptionBatch};
use futures::StreamExt;
use serde_json::{Value as Json, json};

use crate::arguments::pubsub::Bench;

/// Messages that are published together, and batches under way: what keeps a connection busy.
const BATCH_MESSAGES: u64 = 400;
const BATCHES_UNDER_WAY: usize = 16;
/// Messages that are published one at a time.
const SINGLE_MESSAGES: usize = 1000;

/// What was measured.
pub(super) struct Measured {
    messages: u64,
    bytes: u32,
    took: Duration,
    missed: u64,
    p50: Duration,
    p99: Duration,
}

/// Measures.
pub(super) async fn run(
    publisher: &dyn PubSub,
    subscriber: &dyn PubSub,
    bench: &Bench,
) -> Result<Measured, Error> {
    let Bench { messages, bytes, to: _ } = *bench;
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let topic = format!("_bench.{}.{}", std::process::id(), since.as_nanos());
    let mut subscription = subscriber.subscribe(&topic).await?;
    let payload = vec![b'x'; bytes as usize];
    let started = Instant::now();
    let (published, missed) =
        tokio::join!(publish(publisher, &topic, &payload, messages), take(&mut subscription, messages));
    published?;
    let missed = missed?;
    let took = started.elapsed();
    let mut latencies = Vec::with_capacity(SINGLE_MESSAGES);
    for _ in 0..SINGLE_MESSAGES {
        let started = Instant::now();
        let (published, taken) =
            tokio::join!(publisher.publish(&topic, &payload), take(&mut subscription, 1));
        published?;
        taken?;
        latencies.push(started.elapsed());
    }
    latencies.sort_unstable();
    let (p50, p99) = (latencies[SINGLE_MESSAGES / 2], latencies[SINGLE_MESSAGES * 99 / 100]);
    Ok(Measured { messages, bytes, took, missed, p50, p99 })
}

async fn publish(publisher: &dyn PubSub, topic: &str, payload: &[u8], messages: u64) -> Result<(), Error> {
    let batches = (0..messages).step_by(BATCH_MESSAGES as usize).map(|from| async move {
        let mut batch = MessageBatch::new();
        for _ in from..messages.min(from + BATCH_MESSAGES) {
            batch.push(topic, payload)?;
        }
        publisher.publish_batch(batch).await
    });
    let mut published = futures::stream::iter(batches).buffered(BATCHES_UNDER_WAY);
    while let Some(result) = published.next().await {
        result?;
    }
    Ok(())
}

/// Takes messages until so many have come or were missed; says how many were missed.
async fn take(subscription: &mut Subscription, messages: u64) -> Result<u64, Error> {
    let (mut seen, mut missed) = (0, 0);
    while seen + missed < messages {
        match subscription.next_batch().await {
            Some(Ok(SubscriptionBatch::Messages(batch))) => {
                for message in batch {
                    message?;
                    seen += 1;
                }
            }
            Some(Ok(SubscriptionBatch::Lagged { missed: more })) => missed += more.unwrap_or_default(),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error),
            None => break,
        }
    }
    Ok(missed)
}

impl Measured {
    fn per_second(&self) -> f64 {
        (self.messages - self.missed.min(self.messages)) as f64 / self.took.as_secs_f64()
    }

    fn megabytes_per_second(&self) -> f64 {
        self.per_second() * f64::from(self.bytes) / 1e6
    }

    pub(super) fn for_people(&self) -> String {
        let missed = if self.missed > 0 { format!(", {} missed", self.missed) } else { String::new() };
        format!(
            "{} messages of {} bytes in {:.2} s: {:.0} a second, {:.1} MB/s{missed}\n\
             one at a time: p50 {} us, p99 {} us from publish to delivery",
            self.messages,
            self.bytes,
            self.took.as_secs_f64(),
            self.per_second(),
            self.megabytes_per_second(),
            self.p50.as_micros(),
            self.p99.as_micros(),
        )
    }

    pub(super) fn for_programs(&self) -> Json {
        json!({
            "messages": self.messages,
            "bytes": self.bytes,
            "missed": self.missed,
            "seconds": self.took.as_secs_f64(),
            "messages_per_second": self.per_second(),
            "megabytes_per_second": self.megabytes_per_second(),
            "latency_p50_us": self.p50.as_micros() as u64,
            "latency_p99_us": self.p99.as_micros() as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use debros_sdk::memory::MemoryPubSub;

    use super::run;
    use crate::arguments::pubsub::Bench;

    #[tokio::test]
    async fn all_messages_are_counted() {
        let pubsub = MemoryPubSub::new();
        let measured = run(&pubsub, &pubsub, &Bench { messages: 1001, bytes: 10, to: None }).await.unwrap();
        assert_eq!((measured.messages, measured.missed), (1001, 0));
        assert!(measured.for_people().starts_with("1001 messages of 10 bytes"));
        assert!(measured.for_programs()["messages_per_second"].as_f64().unwrap() > 0.0);
    }
}

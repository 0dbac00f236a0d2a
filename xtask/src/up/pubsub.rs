//! The act of pub/sub: what is published at one node is read at another, a request is answered. And its part in the act after
//! it: a subscriber whose node is killed goes on at another one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use debros_sdk::{Client, Message, PubSub, PubSubExt, Subscription, SubscriptionEvent};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::voice::in_words;
use super::{APPLICATION, Stage};
use crate::membership;

/// Apart from the rest, so that nothing is published there at the node that is killed.
const LISTENING: &str = "demo-live";
const TOPIC: &str = "ships.1.position";
const POSITIONS: [&str; 3] = ["54.8 S 68.3 W", "55.9 S 67.3 W", "57.0 S 66.1 W"];
/// A message takes well under a millisecond; this is for a machine at its limit.
const HEARD_WITHIN: Duration = Duration::from_secs(10);
/// A killed node is noticed and replaced in a second or two.
const GOES_ON_WITHIN: Duration = Duration::from_secs(30);
/// Heard before the kill.
const WARM_UP: u64 = 20;

/// Plays the act.
pub(super) async fn play(stage: &mut Stage) -> Result<()> {
    let voice = &stage.voice;
    voice.headline("Live messages");
    let nodes = stage.cluster.nodes();
    let (first, last) = (nodes[0].name(), nodes[nodes.len() - 1].name());
    let publisher = membership::client_at(&stage.cluster, 0, APPLICATION).await?;
    let subscriber = membership::client_at(&stage.cluster, nodes.len() - 1, APPLICATION).await?;
    let mut heard = subscriber.pubsub().subscribe("ships.*.position").await.context("cannot subscribe")?;
    for position in POSITIONS {
        let started = Instant::now();
        publisher.pubsub().publish(TOPIC, position.as_bytes()).await.context("cannot publish")?;
        let message = next(&mut heard, HEARD_WITHIN).await?;
        ensure!(message.payload() == position.as_bytes(), "{message:?} instead of {position}");
        let took = started.elapsed().as_micros();
        voice.line(&format!(
            "publish {TOPIC} {position}  -- through {first}, heard at {last} {took} us later"
        ));
    }
    let answering = subscriber.pubsub();
    let answer = move |request: Message| {
        let answering = answering.clone();
        async move { answering.respond(&request, b"all well").await }
    };
    let _answerer =
        subscriber.pubsub().subscribe_handler("ships.1.ask", answer).await.context("cannot subscribe")?;
    let started = Instant::now();
    let answer = publisher.pubsub().request("ships.1.ask", b"how are you?", HEARD_WITHIN).await;
    let answer = answer.context("no answer")?;
    ensure!(answer.payload() == b"all well", "{answer:?}");
    voice.line(&format!("request ships.1.ask: all well, {} us later", started.elapsed().as_micros()));
    publisher.close().await;
    subscriber.close().await;
    Ok(())
}

async fn next(subscription: &mut Subscription, within: Duration) -> Result<Message> {
    let event = timeout(within, subscription.next()).await.context("nothing is heard")?;
    match event.context("the subscription ended")?? {
        SubscriptionEvent::Message(message) => Ok(message),
        other => anyhow::bail!("{other:?} instead of a message"),
    }
}

/// A subscriber at one node, and a publisher at another that publishes until it is told to stop.
pub(super) struct Listening {
    listener: Listener,
    stop: oneshot::Sender<()>,
    publishing: JoinHandle<Result<u64>>,
}

/// A subscriber that expects number after number.
struct Listener {
    client: Client,
    subscription: Subscription,
    heard: u64,
}

impl Listening {
    /// Listens at the node that will be killed.
    pub(super) async fn at(stage: &Stage, index: usize) -> Result<Self> {
        let elsewhere = (index + 1) % stage.cluster.nodes().len();
        let publisher = membership::client_at(&stage.cluster, elsewhere, LISTENING).await?;
        let subscriber = membership::client_at(&stage.cluster, index, LISTENING).await?;
        let subscription = subscriber.pubsub().subscribe(TOPIC).await.context("cannot subscribe")?;
        let (stop, stopped) = oneshot::channel();
        let publishing = tokio::spawn(publish(publisher, stopped));
        let mut listener = Listener { client: subscriber, subscription, heard: 0 };
        listener.hear_up_to(WARM_UP).await?;
        Ok(Self { listener, stop, publishing })
    }

    /// Its node was killed: everything that was published meanwhile comes, once and in order.
    pub(super) async fn goes_on(self, stage: &Stage, name: &str) -> Result<()> {
        let Self { mut listener, stop, publishing } = self;
        // A publisher that has failed says so below.
        let _ = stop.send(());
        let published = publishing.await.context("the publisher ended")??;
        let started = Instant::now();
        listener.hear_up_to(published).await?;
        stage.voice.point(&format!(
            "a subscriber of {name} went on at another node: {published} messages, none missed, none twice; the last {} later",
            in_words(started.elapsed())
        ));
        listener.client.close().await;
        Ok(())
    }
}

impl Listener {
    async fn hear_up_to(&mut self, last: u64) -> Result<()> {
        while self.heard < last {
            let message = next(&mut self.subscription, GOES_ON_WITHIN).await?;
            let number: u64 = String::from_utf8_lossy(message.payload()).parse()?;
            ensure!(number == self.heard + 1, "message {number} comes after {}", self.heard);
            self.heard = number;
        }
        Ok(())
    }
}

async fn publish(publisher: Client, mut stopped: oneshot::Receiver<()>) -> Result<u64> {
    let pubsub = publisher.pubsub();
    let mut number = 0;
    while stopped.try_recv().is_err() {
        number += 1;
        pubsub.publish_acked(TOPIC, number.to_string().as_bytes()).await.context("cannot publish")?;
    }
    publisher.close().await;
    Ok(number)
}

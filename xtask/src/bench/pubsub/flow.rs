//! Messages that flow from publishers to subscribers: as fast as they can, or at a pace. Decides what is under way at most, and
//! when everything has arrived.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{BURST, Figure, Member, Messaging, NODES, Receiver, Stream, TASKS_PER_PUBLISHER, micros};
use crate::bench::load::cpu_seconds;

/// Deliveries under way at most.
const UNDER_WAY_MAX: u64 = 32_768;
/// What was published is delivered within this.
const DELIVERED_WITHIN: Duration = Duration::from_secs(20);
/// The part of a measurement that is not counted, at its beginning.
const WARM_UP: f64 = 0.15;
/// The bytes of a message whose latency is measured.
const PACED_BYTES: usize = 128;
/// Latencies that wait to be taken down.
const LATENCIES_WAITING_MAX: usize = 4096;

/// How much is to be delivered, and was.
#[derive(Default)]
struct Flow {
    expected: AtomicU64,
    delivered: AtomicU64,
    arrived: Notify,
}

impl Flow {
    fn under_way(&self) -> u64 {
        let delivered = self.delivered.load(Ordering::Acquire);
        self.expected.load(Ordering::Acquire).saturating_sub(delivered)
    }

    /// Waits until at most so much is under way.
    async fn at_most(&self, under_way: u64) {
        loop {
            let arrived = self.arrived.notified();
            if self.under_way() <= under_way {
                return;
            }
            arrived.await;
        }
    }

    fn arrived(&self, count: u64) {
        self.delivered.fetch_add(count, Ordering::AcqRel);
        self.arrived.notify_waiters();
    }
}

/// Lets a stream flow, and counts what arrives.
pub(super) async fn stream(
    system: &mut dyn Messaging,
    stream: Stream,
    duration: Duration,
    pids: &[u32],
) -> Result<Figure> {
    let flow = Arc::new(Flow::default());
    let mut receiving = JoinSet::new();
    let mut members = Vec::new();
    for publisher in 0..stream.publishers {
        for subscriber in 0..stream.subscribers {
            let member = system.connect((publisher + 1 + subscriber) % NODES).await?;
            for topic in 0..stream.topics {
                let receiver = member.subscribe(&pattern(publisher, topic, stream.wildcard)).await?;
                receiving.spawn(receive(receiver, flow.clone()));
            }
            members.push(member);
        }
    }
    let end = Instant::now() + duration.mul_f64(1.0 + WARM_UP);
    let mut publishing = JoinSet::new();
    for publisher in 0..stream.publishers {
        let member = system.connect(publisher % NODES).await?;
        for _ in 0..TASKS_PER_PUBLISHER {
            publishing.spawn(publish(member.clone(), publisher, stream, flow.clone(), end));
        }
    }
    tokio::time::sleep_until((end - duration).into()).await;
    let (began, before) = (Instant::now(), flow.delivered.load(Ordering::Acquire));
    let cpu = cpu_seconds(pids)?;
    tokio::select! {
        () = tokio::time::sleep_until(end.into()) => {}
        Some(failed) = receiving.join_next() => { failed??; }
    }
    let count = flow.delivered.load(Ordering::Acquire) - before;
    let figure = Figure {
        count,
        seconds: began.elapsed().as_secs_f64(),
        cpu_seconds: cpu_seconds(pids)? - cpu,
        latencies_us: Vec::new(),
    };
    while let Some(published) = publishing.join_next().await {
        published??;
    }
    if timeout(DELIVERED_WITHIN, flow.at_most(0)).await.is_err() {
        bail!("{} of {} messages were lost", flow.under_way(), flow.expected.load(Ordering::Acquire));
    }
    Ok(figure)
}

fn topic(publisher: usize, topic: usize) -> String {
    format!("bench.{publisher}.{topic}.x")
}

fn pattern(publisher: usize, topic: usize, wildcard: bool) -> String {
    if wildcard { format!("bench.{publisher}.{topic}.*") } else { self::topic(publisher, topic) }
}

async fn receive(mut receiver: Box<dyn Receiver>, flow: Arc<Flow>) -> Result<()> {
    loop {
        let mut count = 0;
        receiver.receive(&mut |_| count += 1).await?;
        flow.arrived(count);
    }
}

async fn publish(
    member: Arc<dyn Member>,
    publisher: usize,
    stream: Stream,
    flow: Arc<Flow>,
    end: Instant,
) -> Result<()> {
    let topics: Vec<String> = (0..stream.topics).map(|number| topic(publisher, number)).collect();
    let mut turn = topics.iter().cycle().cloned();
    let payload = Bytes::from(vec![b'x'; stream.bytes]);
    // Where all messages have one topic, one burst is like another.
    let mut burst: Vec<String> = turn.by_ref().take(BURST).collect();
    while Instant::now() < end {
        flow.at_most(UNDER_WAY_MAX).await;
        flow.expected.fetch_add((BURST * stream.subscribers) as u64, Ordering::AcqRel);
        member.publish(&burst, &payload).await?;
        if topics.len() > 1 {
            burst = turn.by_ref().take(BURST).collect();
        }
    }
    // Whoever has published stays until all of it has arrived.
    flow.at_most(0).await;
    Ok(())
}

/// Publishes at a pace, and takes how long each message took.
pub(super) async fn paced(
    system: &mut dyn Messaging,
    pace: Duration,
    duration: Duration,
    pids: &[u32],
) -> Result<Figure> {
    const TOPIC: &str = "bench.paced";
    let (publisher, subscriber) = (system.connect(0).await?, system.connect(1).await?);
    let mut receiver = subscriber.subscribe(TOPIC).await?;
    let epoch = Instant::now();
    let (took, mut taken) = mpsc::channel::<u32>(LATENCIES_WAITING_MAX);
    let receiving = tokio::spawn(async move {
        loop {
            let mut came = Vec::new();
            let each = &mut |payload: &[u8]| came.extend(payload.first_chunk::<8>().copied());
            receiver.receive(each).await?;
            for sent in came {
                let sent = Duration::from_nanos(u64::from_be_bytes(sent));
                if took.send(micros(epoch.elapsed().saturating_sub(sent))).await.is_err() {
                    return Ok::<(), anyhow::Error>(());
                }
            }
        }
    });
    let mut ticks = interval(pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut figure = Figure::default();
    let topics = [TOPIC.to_owned()];
    let (began, cpu) = (Instant::now(), cpu_seconds(pids)?);
    let mut published = 0_u64;
    while began.elapsed() < duration {
        ticks.tick().await;
        let mut payload = vec![b'x'; PACED_BYTES];
        let sent = u64::try_from(epoch.elapsed().as_nanos()).context("a benchmark ends within centuries")?;
        payload[..8].copy_from_slice(&sent.to_be_bytes());
        publisher.publish(&topics, &Bytes::from(payload)).await?;
        published += 1;
        while let Ok(latency) = taken.try_recv() {
            figure.latencies_us.push(latency);
        }
    }
    figure.seconds = began.elapsed().as_secs_f64();
    figure.cpu_seconds = cpu_seconds(pids)? - cpu;
    while (figure.latencies_us.len() as u64) < published {
        let latency = timeout(DELIVERED_WITHIN, taken.recv()).await.ok().flatten();
        figure.latencies_us.push(latency.context("a message was lost")?);
    }
    figure.count = published;
    drop(taken);
    receiving.abort();
    Ok(figure)
}

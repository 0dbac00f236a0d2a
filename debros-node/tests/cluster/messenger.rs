//! A client of pub/sub that speaks the wire as it is, for tests of the nodes: it keeps positions and numbers
//! where a test can see them, and does nothing by itself.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use debros_net::{Host, HostConfig, Keypair, Lane, Network, PeerId, grpc};
use debros_proto::packed::{self, Messages, Runs};
use debros_proto::{Failure, v1};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use v1::pub_sub_client::PubSubClient;
use v1::session_call::Call;
use v1::session_event::Event;

use crate::support::{Cluster, DEADLINE, address_of};

/// Credit of subscriptions that are not about credit.
pub(crate) const PLENTY: u64 = 64 << 20;

/// A message as it was delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivered {
    pub(crate) subscription: u64,
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    pub(crate) reply: String,
    pub(crate) publisher: u64,
    pub(crate) number: u64,
}

/// What a subscription was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Message(Delivered),
    Lagged(u64, Option<u64>),
}

/// A client with one session.
pub(crate) struct Messenger {
    host: Arc<Host>,
    publisher: u64,
    application: String,
    calls: mpsc::Sender<v1::SessionCall>,
    events: tonic::Streaming<v1::SessionEvent>,
    /// As its node said.
    pub(crate) attached: v1::Attached,
    node: PeerId,
    next: u64,
    heard: VecDeque<Heard>,
    kept: VecDeque<Event>,
    /// Bytes of runs that came and were not given back as credit.
    consumed: u64,
    /// By subscription and origin.
    positions: BTreeMap<u64, BTreeMap<u64, v1::Position>>,
}

impl Messenger {
    /// Attaches to the node of a place.
    pub(crate) async fn at(cluster: &Cluster, index: usize, application: &str) -> Self {
        let (host, _) = Host::start(HostConfig::client(Keypair::generate_ed25519())).await.expect("a host");
        let publisher = u64::from_le_bytes(host.local_peer().to_bytes()[10..18].try_into().expect("8 bytes"));
        let (node, calls, events, attached) =
            attach(&host, cluster, index, application, publisher).await.expect("the node lets the client in");
        Self {
            host,
            publisher,
            application: application.to_owned(),
            calls,
            events,
            attached,
            node,
            next: 1,
            heard: VecDeque::new(),
            kept: VecDeque::new(),
            consumed: 0,
            positions: BTreeMap::new(),
        }
    }

    /// Begins a new session at another node; keeps numbers and positions.
    pub(crate) async fn move_to(&mut self, cluster: &Cluster, index: usize) {
        let attached = attach(&self.host, cluster, index, &self.application, self.publisher).await;
        (self.node, self.calls, self.events, self.attached) = attached.expect("the node lets the client in");
        self.kept.clear();
    }

    /// A second client of the same kind.
    pub(crate) fn stub(&self) -> PubSubClient<tonic::transport::Channel> {
        PubSubClient::new(grpc::channel(self.host.clone(), self.node, Lane::Client))
    }

    pub(crate) async fn call(&self, call: Call) {
        self.calls.send(v1::SessionCall { call: Some(call) }).await.expect("the session goes on");
    }

    /// The next event of a kind; deliveries are kept for [`Self::hear`].
    pub(crate) async fn event<T>(&mut self, what: &str, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
        let kept = self.kept.iter().enumerate().find_map(|(at, event)| Some((at, wanted(event)?)));
        if let Some((at, found)) = kept {
            self.kept.remove(at);
            return found;
        }
        loop {
            let event = timeout(DEADLINE, self.events.message()).await;
            let event = event.unwrap_or_else(|_| panic!("{what}: nothing came in time"));
            let event =
                event.unwrap_or_else(|status| panic!("{what}: {status:?}")).expect("the session goes on");
            let event = event.event.expect("an event of this version");
            if let Some(found) = wanted(&event) {
                return found;
            }
            self.keep(event);
        }
    }

    fn keep(&mut self, event: Event) {
        match event {
            Event::Deliveries(deliveries) => self.keep_deliveries(deliveries),
            Event::Positions(v1::Positions { positions, except, gone }) => {
                for (subscription, known) in &mut self.positions {
                    if !except.contains(subscription) {
                        known.extend(positions.iter().map(|position| (position.origin, *position)));
                        known.retain(|origin, _| !gone.contains(origin));
                    }
                }
            }
            other => self.kept.push_back(other),
        }
    }

    fn keep_deliveries(&mut self, deliveries: v1::Deliveries) {
        let v1::Deliveries { subscription, lagged, runs } = deliveries;
        self.consumed += runs.len() as u64;
        if let Some(v1::Lagged { missed }) = lagged {
            self.heard.push_back(Heard::Lagged(subscription, missed));
        }
        for run in Runs::new(runs).map(|run| run.expect("sound")) {
            let head = run.head;
            for (index, message) in (0..).zip(Messages::new(run.messages)) {
                let packed::Message { topic, reply, headers: _, payload } = message.expect("sound");
                self.heard.push_back(Heard::Message(Delivered {
                    subscription,
                    topic: String::from_utf8(topic.to_vec()).expect("text"),
                    payload,
                    reply: String::from_utf8(reply.to_vec()).expect("text"),
                    publisher: head.publisher,
                    number: head.first + index,
                }));
            }
            let sequence = head.sequence + u64::from(head.count) - 1;
            let position = v1::Position { origin: head.origin, incarnation: head.incarnation, sequence };
            self.positions.entry(subscription).or_default().insert(head.origin, position);
        }
    }

    /// Takes in what comes until the session ends.
    pub(crate) async fn drain(&mut self) {
        while let Ok(Some(event)) = timeout(DEADLINE, self.events.message()).await.expect("an end in time") {
            self.keep(event.event.expect("an event of this version"));
        }
    }

    /// What was delivered and not heard yet.
    pub(crate) fn heard(&mut self) -> Vec<Heard> {
        self.heard.drain(..).collect()
    }

    /// What was delivered next.
    pub(crate) async fn hear(&mut self) -> Heard {
        while self.heard.is_empty() {
            let deliveries = self.event("a delivery", |event| match event {
                Event::Deliveries(deliveries) => Some(deliveries.clone()),
                _ => None,
            });
            let deliveries = deliveries.await;
            self.keep_deliveries(deliveries);
        }
        self.heard.pop_front().expect("checked")
    }

    /// Gives back what a subscription's deliveries have used of its credit.
    pub(crate) async fn give_back(&mut self, subscription: u64) {
        let bytes = std::mem::take(&mut self.consumed);
        self.call(Call::Credit(v1::Credit { subscription, bytes })).await;
    }

    /// The next message; a notice that some were missed is a failure.
    pub(crate) async fn message(&mut self) -> Delivered {
        match self.hear().await {
            Heard::Message(delivered) => delivered,
            lagged @ Heard::Lagged(..) => panic!("{lagged:?} instead of a message"),
        }
    }

    /// The payloads of so many messages.
    pub(crate) async fn payloads(&mut self, count: usize) -> Vec<String> {
        let mut payloads = Vec::new();
        while payloads.len() < count {
            payloads.push(String::from_utf8(self.message().await.payload.to_vec()).expect("text"));
        }
        payloads
    }

    /// Subscribes; the other nodes know of it.
    pub(crate) async fn subscribe(&mut self, subscription: u64, pattern: &str) -> v1::Subscribed {
        self.subscribe_as(v1::Subscribe {
            subscription,
            pattern: pattern.to_owned(),
            credit_bytes: PLENTY,
            ..Default::default()
        })
        .await
        .expect("the subscription is admitted")
    }

    /// The same, as the test wants it.
    pub(crate) async fn subscribe_as(&mut self, subscribe: v1::Subscribe) -> Result<v1::Subscribed, Failure> {
        let number = subscribe.subscription;
        self.call(Call::Subscribe(subscribe)).await;
        let subscribed = self
            .event("subscribed", |event| match event {
                Event::Subscribed(subscribed) if subscribed.subscription == number => {
                    Some(Ok(subscribed.clone()))
                }
                Event::Failure(failure) => Some(Err(failure_of(failure))),
                _ => None,
            })
            .await?;
        let known = self.positions.entry(number).or_default();
        for position in &subscribed.positions {
            known.entry(position.origin).or_insert(*position);
        }
        Ok(subscribed)
    }

    /// Goes on with a subscription at the node that it is attached to now.
    pub(crate) async fn resume(&mut self, subscription: u64, pattern: &str) {
        let positions = self.positions.get(&subscription).into_iter().flat_map(BTreeMap::values).copied();
        let subscribe = v1::Subscribe {
            subscription,
            pattern: pattern.to_owned(),
            credit_bytes: PLENTY,
            resume: true,
            positions: positions.collect(),
            ..Default::default()
        };
        self.subscribe_as(subscribe).await.expect("the subscription is admitted");
    }

    /// Publishes messages as one batch, and gives the number of the first.
    pub(crate) async fn publish(&mut self, mode: v1::PublishMode, messages: &[(&str, &str)]) -> u64 {
        let first = self.next;
        self.next += messages.len() as u64;
        self.send(first, mode, false, pack(messages)).await;
        first
    }

    /// Sends a batch under these numbers.
    pub(crate) async fn send(&self, first: u64, mode: v1::PublishMode, again: bool, messages: Bytes) {
        self.call(Call::Publish(v1::Publish { first, mode: mode as i32, again, messages })).await;
    }

    /// Waits until a number is acknowledged.
    pub(crate) async fn published(&mut self, last: u64) -> Result<Vec<u32>, Failure> {
        self.event("published", |event| match event {
            Event::Published(published) if published.last >= last => Some(Ok(published.nodes.clone())),
            Event::Failure(failure) => Some(Err(failure_of(failure))),
            _ => None,
        })
        .await
    }

    /// Publishes one message and waits until all interested nodes have it; gives their number.
    pub(crate) async fn publish_received(&mut self, topic: &str, payload: &str) -> u32 {
        let number = self.publish(v1::PublishMode::Received, &[(topic, payload)]).await;
        self.published(number).await.expect("it is received")[0]
    }
}

type Attachment = (PeerId, mpsc::Sender<v1::SessionCall>, tonic::Streaming<v1::SessionEvent>, v1::Attached);

async fn attach(
    host: &Arc<Host>,
    cluster: &Cluster,
    index: usize,
    application: &str,
    publisher: u64,
) -> Result<Attachment, tonic::Status> {
    let address = address_of(cluster.node(index)).parse().expect("an address");
    let node = host.connect(&address).await.expect("the node is there");
    let (calls, receiver) = mpsc::channel(64);
    let header = Some(v1::RequestHeader { namespace: application.to_owned(), ..Default::default() });
    let attach = Call::Attach(v1::Attach { header, publisher });
    calls.send(v1::SessionCall { call: Some(attach) }).await.expect("there is room");
    let mut client = PubSubClient::new(grpc::channel(host.clone(), node, Lane::Client))
        .max_decoding_message_size(debros_proto::limits::PUBSUB_FRAME_BYTES_MAX)
        .max_encoding_message_size(debros_proto::limits::PUBSUB_FRAME_BYTES_MAX);
    let mut events = client.session(ReceiverStream::new(receiver)).await?.into_inner();
    match events.message().await?.and_then(|event| event.event) {
        Some(Event::Attached(attached)) => Ok((node, calls, events, attached)),
        other => panic!("{other:?} instead of attached"),
    }
}

fn failure_of(failure: &v1::SessionFailure) -> Failure {
    Failure::from_call(failure.failure.clone().unwrap_or_default())
}

/// Messages in the encoding of the wire.
pub(crate) fn pack(messages: &[(&str, &str)]) -> Bytes {
    let mut packed = BytesMut::new();
    for (topic, payload) in messages {
        packed::put_message(&mut packed, topic.as_bytes(), b"", b"", payload.as_bytes())
            .expect("small enough");
    }
    packed.freeze()
}

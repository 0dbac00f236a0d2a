//! Pub/sub: live messages between clients on any nodes, in the order of each publisher and without silent loss.
//!
//! ```text
//! client --> session --> router: plan, ring --> link to each interested node --> router there --> queue --> client
//!                          |  (interest, routes)                                      |
//!                          +--> queues of this node's own subscriptions               +--> acknowledgements back
//! ```
//!
//! The node that a publisher is attached to is the origin of its messages. It knows what every other node is
//! interested in (`interest`), keeps the messages of the last moments in one ring, and each link reads that ring
//! from where its destination stands (`outbound`, docs/adr/0008). What comes out of order, twice or not at all is
//! told by numbers: the origin's and the publisher's (`debros_proto::coverage`).
//!
//! Knows namespaces but not who may use them, and the other nodes but not who decides which there are.

mod inbound;
mod interest;
mod link;
mod metrics;
mod outbound;
mod outlet;
mod peer;
mod presence;
mod pressure;
mod publish;
mod queue;
mod ring;
mod router;
mod session;
mod space;
mod subscriptions;
#[cfg(test)]
mod tests;
mod traces;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use debros_net::PeerId;
use debros_net::grpc::Channels;
use debros_proto::{ErrorCode, Failure, NodeId, limits, v1};
use debros_topics::Pattern;
use futures::Stream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use v1::session_event::Event;

use crate::slot::Slot;
use crate::trace::Tracer;
use router::Router;
use session::Session;

pub use link::{Replies, RoutingService};
pub use metrics::{PubSubMetrics, PubSubOperations, bound_pubsub};
pub use outlet::Events;

/// Heartbeats of links, positions for clients, and tidying.
const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// A node that has just started takes in messages once it knows what the others are interested in, or after this time.
const SETTLE_PATIENCE: Duration = Duration::from_secs(2);
/// How often it looks.
const SETTLE_INTERVAL: Duration = Duration::from_millis(10);
/// The last messages reach the other nodes within this time when the node stops.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(1);

/// How much the engine remembers.
#[derive(Clone, Copy, Debug)]
pub struct PubSubOptions {
    /// See [`limits::RING_BYTES_MAX`].
    pub ring_bytes: usize,
    /// See [`limits::RING_LIFE`].
    pub ring_life: Duration,
    /// See [`limits::SUBSCRIPTION_QUEUE_BYTES`].
    pub queue_bytes: usize,
}

impl Default for PubSubOptions {
    fn default() -> Self {
        Self {
            ring_bytes: limits::RING_BYTES_MAX,
            ring_life: limits::RING_LIFE,
            queue_bytes: limits::SUBSCRIPTION_QUEUE_BYTES,
        }
    }
}

/// What the engine is made of.
pub struct PubSubParts {
    /// This node.
    pub node: NodeId,
    /// The cluster's identity.
    pub cluster_id: String,
    /// The way to other nodes.
    pub channels: Channels,
    /// Where its tasks run.
    pub tracker: TaskTracker,
    /// What it counts.
    pub metrics: PubSubMetrics,
    /// Records what becomes of messages that their publishers trace.
    pub tracer: Tracer,
    /// How much it remembers.
    pub options: PubSubOptions,
    /// When sessions of clients end.
    pub stop_sessions: CancellationToken,
    /// When to stop.
    pub stop: CancellationToken,
}

/// Pub/sub of a member. Cheap to clone.
#[derive(Clone)]
pub struct PubSub {
    shared: Arc<Shared>,
}

/// What all tasks share.
struct Shared {
    router: Mutex<Router>,
    channels: Channels,
    tracker: TaskTracker,
    metrics: PubSubMetrics,
    /// The tasks of links, by node.
    links: Mutex<BTreeMap<NodeId, CancellationToken>>,
    settled: watch::Sender<bool>,
    stop_sessions: CancellationToken,
    stop: CancellationToken,
}

impl Shared {
    fn router(&self) -> MutexGuard<'_, Router> {
        self.router.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the node knows what the others are interested in.
    async fn settled(&self) {
        let mut settled = self.settled.subscribe();
        // An engine that has stopped has no sessions that could wait.
        let _ = settled.wait_for(|settled| *settled).await;
    }
}

/// A client that is let in.
pub struct Client {
    /// Its namespace.
    pub namespace: String,
    /// Who it is.
    pub peer: PeerId,
    /// Its publisher.
    pub publisher: u64,
}

impl PubSub {
    /// Starts the engine.
    pub fn start(parts: PubSubParts) -> Self {
        let PubSubParts {
            node,
            cluster_id,
            channels,
            tracker,
            metrics,
            tracer,
            options,
            stop_sessions,
            stop,
        } = parts;
        // 0 is for none.
        let incarnation = rand::random::<u64>().max(1);
        let mut router = Router::new(node, incarnation, cluster_id, metrics.clone(), options);
        router.tracer = tracer;
        let shared = Arc::new(Shared {
            router: Mutex::new(router),
            channels,
            tracker: tracker.clone(),
            metrics,
            links: Mutex::default(),
            settled: watch::Sender::new(false),
            stop_sessions,
            stop,
        });
        tracker.spawn(tick(shared.clone()));
        tracker.spawn(settle(shared.clone()));
        Self { shared }
    }

    /// Sets who the members of the cluster are.
    pub fn set_members(&self, members: &BTreeMap<NodeId, PeerId>) {
        let shared = &self.shared;
        let new = shared.router().set_members(members);
        let mut links = shared.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|node, gone| {
            let stays = members.contains_key(node) && !new.iter().any(|(new, _)| new == node);
            if !stays {
                gone.cancel();
            }
            stays
        });
        for (node, peer) in new {
            let gone = CancellationToken::new();
            links.insert(node, gone.clone());
            shared.tracker.spawn(link::run(shared.clone(), node, peer, gone));
        }
    }

    /// Begins a session, which carries out these calls.
    ///
    /// # Errors
    /// `BUSY` past [`limits::SESSIONS_PER_NODE_MAX`], `INVALID_ARGUMENT` without a publisher.
    pub fn attach(
        &self,
        client: Client,
        calls: impl Stream<Item = Result<v1::SessionCall, Status>> + Send + 'static,
    ) -> Result<Events, Failure> {
        let Client { namespace, peer, publisher } = client;
        if publisher == 0 {
            return Err(Failure::invalid("a session has a publisher, which is not 0"));
        }
        let shared = self.shared.clone();
        if shared.stop_sessions.is_cancelled() {
            return Err(Failure::new(ErrorCode::ShuttingDown, "the node is shutting down"));
        }
        let mut router = shared.router();
        let (number, outlet) = router.attach(&namespace, peer)?;
        let attached = v1::Attached {
            node_id: router.node.0,
            incarnation: router.incarnation,
            publish_window_bytes: limits::PUBLISH_WINDOW_BYTES,
        };
        drop(router);
        outlet.tell(Event::Attached(attached));
        let events = Events::new(outlet.clone());
        let namespace = namespace.as_str().into();
        let session = Session { shared: shared.clone(), number, namespace, publisher, outlet };
        shared.tracker.spawn(session.run(calls));
        Ok(events)
    }

    /// What is subscribed to in a namespace; by one client at this node, or by all in the cluster.
    pub fn topics(&self, namespace: &str, of: Option<PeerId>) -> Vec<v1::TopicStatus> {
        self.shared.router().topics(namespace, of)
    }

    /// Who is here, by topic, member, node and entry.
    pub fn present(&self, namespace: &str, pattern: &Pattern) -> Vec<Arc<v1::PresentMember>> {
        let mut members = self.shared.router().present(namespace);
        // Others have the router meanwhile.
        members.retain(|member| pattern.matches_text(&member.topic));
        presence::in_order(members)
    }

    /// Tells the other nodes that nothing more is published here, once they have everything.
    pub async fn say_goodbye(&self) {
        {
            let mut router = self.shared.router();
            router.stopping = true;
            router.wake_links();
        }
        let deadline = Instant::now() + GOODBYE_PATIENCE;
        while Instant::now() < deadline {
            let missing =
                self.shared.router().peers.values().any(|peer| peer.out.stands && !peer.out.said_goodbye);
            if !missing {
                // What was handed to the connection leaves it with the next turn of the reactor.
                tokio::time::sleep(SETTLE_INTERVAL).await;
                return;
            }
            tokio::time::sleep(SETTLE_INTERVAL).await;
        }
    }
}

async fn tick(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(TICK_INTERVAL) => shared.router().tick(),
        }
    }
}

/// Waits until every other member has told its interest; those that cannot be reached are not waited for long.
async fn settle(shared: Arc<Shared>) {
    let deadline = Instant::now() + SETTLE_PATIENCE;
    while Instant::now() < deadline {
        let ready = {
            let router = shared.router();
            router.has_members && router.peers.values().all(|peer| peer.back.version > 0)
        };
        if ready {
            break;
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(SETTLE_INTERVAL) => {}
        }
    }
    shared.settled.send_replace(true);
}

/// Pub/sub of this node, once it is a member.
pub type PubSubSlot = Slot<PubSub>;

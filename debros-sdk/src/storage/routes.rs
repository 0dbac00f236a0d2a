//! Which node a storage operation goes to, and the one stream to each node on which all of them
//! travel. It learns the layout at the first use and after that from the client's refresh task; what
//! it does not know costs a hop and nothing else, because any node coordinates any operation.
//!
//! ```text
//! RemoteStorage --> Routes::replicas (layout) --> call (whom, when again) --> Calls of that node --> lane
//! ```
//!
//! Invariant: the clock kept here never falls, so what this client has seen it never unsees.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use debros_net::calls::{CallError, Calls};
use debros_net::grpc::Channels;
use debros_net::{Lane, PeerId};
use debros_proto::layout::{Layout, partition_of};
use debros_proto::{ErrorCode, Failure, NodeId, v1};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;
use tonic::Status;

use crate::call::{Plan, Target};
use crate::otel;
use crate::refresh::REFRESH_TIMEOUT;
use crate::rpc;
use crate::shared::Shared;

/// Of a key's replicas a client asks the one that it prefers, until so many of its calls are under way there;
/// then the next one. Calls that travel together cost less, here and at the node, than calls that are spread.
const SPREAD_AT: usize = 64;
/// A replica whose round trip is longer than the shortest one by this much is asked after the near ones:
/// another zone of a region is some 2 ms away.
const FAR: Duration = Duration::from_millis(5);

type NodeCalls = Calls<v1::StorageCalls, v1::StorageReplies>;

/// What a client knows of the storage's nodes.
pub(crate) struct Routes {
    channels: Channels,
    links: Mutex<HashMap<PeerId, NodeCalls>>,
    /// The tasks that read the streams; each ends with its stream.
    tasks: TaskTracker,
    map: Mutex<Option<Arc<Map>>>,
    first_use: OnceCell<()>,
    /// Makes every client prefer other nodes.
    seed: u64,
    /// The highest clock seen: the next write is stamped above it, the next read not below it.
    clock: AtomicU64,
}

/// A layout, by peers.
struct Map {
    layout: Layout,
    nodes: HashMap<NodeId, Node>,
}

/// A node that holds keys.
struct Node {
    peer: PeerId,
    calls: NodeCalls,
    far: bool,
    /// The lower, the sooner this client asks it.
    rank: u64,
}

impl Routes {
    pub(crate) fn new(channels: Channels) -> Self {
        Self {
            channels,
            links: Mutex::default(),
            tasks: TaskTracker::new(),
            map: Mutex::default(),
            first_use: OnceCell::new(),
            seed: rand::random(),
            clock: AtomicU64::new(0),
        }
    }

    fn links(&self) -> MutexGuard<'_, HashMap<PeerId, NodeCalls>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn map(&self) -> MutexGuard<'_, Option<Arc<Map>>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the application has asked for the storage at all.
    pub(crate) fn is_in_use(&self) -> bool {
        self.first_use.initialized()
    }

    pub(crate) fn clock(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    pub(crate) fn saw_clock(&self, clock: u64) {
        self.clock.fetch_max(clock, Ordering::Relaxed);
    }

    /// The nodes that hold this key, the best to ask first; nobody while no layout is known.
    pub(crate) async fn replicas(&self, shared: &Shared, key: &str, deadline: Instant) -> Vec<PeerId> {
        if !self.is_in_use() {
            // At most half of the operation's time: it can do without.
            let now = Instant::now();
            let within = now + (deadline.saturating_duration_since(now) / 2).min(REFRESH_TIMEOUT);
            let _ = timeout_at(within, self.first_use.get_or_init(|| refresh(shared, within))).await;
        }
        let Some(map) = self.map().clone() else { return Vec::new() };
        let partition = partition_of(shared.namespace().as_str(), key);
        let nodes = map.layout.readers().nodes_of(partition);
        let mut replicas: Vec<&Node> = nodes.iter().filter_map(|node| map.nodes.get(node)).collect();
        let network = self.channels.network();
        replicas.sort_by_cached_key(|node| {
            let turns = node.calls.under_way() / SPREAD_AT;
            (!network.is_connected(node.peer), node.far, turns, node.rank)
        });
        replicas.into_iter().map(|node| node.peer).collect()
    }

    /// Makes one attempt at a node.
    pub(crate) fn ask(
        &self,
        peer: PeerId,
        request: v1::StorageRequest,
    ) -> impl Future<Output = Result<v1::StorageResponse, Status>> + Send + 'static {
        let calls = self.calls(peer);
        async move {
            let call = v1::StorageCall { id: 0, request: Some(request), trace: otel::context() };
            let reply = calls.ask(call).await.map_err(status_of)?;
            match reply.outcome {
                Some(v1::storage_reply::Outcome::Response(response)) => Ok(response),
                Some(v1::storage_reply::Outcome::Failure(failure)) => Err(Failure::from_call(failure).into()),
                None => {
                    let message = "the node sent a reply of another version; upgrade the client";
                    Err(Failure::new(ErrorCode::Internal, message).maybe_applied().into())
                }
            }
        }
    }

    fn calls(&self, peer: PeerId) -> NodeCalls {
        let open = || {
            let channels = self.channels.clone();
            Calls::new(self.tasks.clone(), move |frames| {
                rpc::operate(channels.get(peer, Lane::Client), frames)
            })
        };
        self.links().entry(peer).or_insert_with(open).clone()
    }

    /// Takes in a layout, unless a newer one is known.
    fn learn(&self, layout: Layout, peers: HashMap<NodeId, PeerId>) {
        let far = self.far(peers.values());
        let node = |(node, peer)| {
            let (calls, far) = (self.calls(peer), far.contains(&peer));
            (node, Node { peer, calls, far, rank: self.rank(peer) })
        };
        let nodes = peers.into_iter().map(node).collect();
        let mut map = self.map();
        if map.as_ref().is_none_or(|known| known.layout.version() <= layout.version()) {
            *map = Some(Arc::new(Map { layout, nodes }));
        }
    }

    fn rank(&self, peer: PeerId) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.seed, peer).hash(&mut hasher);
        hasher.finish()
    }

    fn far<'p>(&self, peers: impl Iterator<Item = &'p PeerId>) -> HashSet<PeerId> {
        let peers: HashSet<PeerId> = peers.copied().collect();
        let known = self.channels.network().peers().into_iter().filter(|known| peers.contains(&known.peer));
        let trips: Vec<(PeerId, Duration)> =
            known.filter_map(|known| Some((known.peer, known.round_trip?))).collect();
        let near = trips.iter().map(|(_, trip)| *trip + FAR).min().unwrap_or_default();
        trips.into_iter().filter(|(_, trip)| *trip > near).map(|(peer, _)| peer).collect()
    }

    /// Drops the streams to nodes that are gone.
    fn retain(&self, known: &BTreeSet<PeerId>) {
        self.links().retain(|peer, _| known.contains(peer));
    }

    /// Ends the streams; calls under way end when their callers give up.
    pub(crate) fn close(&self) {
        self.tasks.close();
        self.links().clear();
    }
}

/// Learns the layout anew. What cannot be learnt stays as it was.
pub(crate) async fn refresh(shared: &Shared, deadline: Instant) {
    let plan = Plan { target: Target::Any, deadline, repeatable: true };
    let answer = match shared.call(&plan, &v1::LayoutRequest::default(), rpc::layout).await {
        Ok(answer) => answer.value,
        Err(failed) => {
            tracing::debug!(reason = %failed.failure, "cannot refresh the storage's layout");
            return;
        }
    };
    let routes = shared.storage();
    let known = shared.nodes().all().into_iter().collect();
    routes.retain(&known);
    let Some(wire) = answer.layout else { return };
    let current = routes.map().clone();
    let layout = match &current {
        Some(current) if *current.layout.wire() == wire => current.layout.clone(),
        // Computing it anew takes milliseconds where there are many nodes.
        _ => match Layout::new(wire) {
            Some(layout) => layout,
            None => return,
        },
    };
    let node_ids = layout.writers().flat_map(|placement| placement.peers());
    let peers = node_ids.filter_map(|(node, peer_id)| Some((*node, shared.learn(peer_id, &[])?))).collect();
    routes.learn(layout, peers);
}

/// What `call` makes of a stream's error: a request that certainly never left, or one that may have
/// taken effect. The calls of a stream travel before it is accepted, so only a connection that was never
/// made, and a refusal in the node's own words, are certain.
fn status_of(error: CallError) -> Status {
    match error {
        CallError::NotSent(status) => status,
        CallError::Broken(status) => Status::unavailable(status.message().to_owned()),
    }
}

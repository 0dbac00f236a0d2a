//! The layouts that this node knows: the newest it has heard of, and the one it has adopted, under which it
//! coordinates and answers. [`super::transition`] leads from one to the other.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use debros_net::PeerId;
use debros_proto::layout::Layout;
use debros_proto::{ErrorCode, Failure, NodeId, v1};
use tokio::sync::watch;
use tokio::time::Instant;

/// An adopted layout, with what this node needs to act under it.
#[derive(Debug)]
pub(super) struct View {
    layout: Layout,
    peers: BTreeMap<NodeId, PeerId>,
    /// When it was adopted, by this node's clock.
    adopted_unix_ms: u64,
}

impl Deref for View {
    type Target = Layout;

    fn deref(&self) -> &Layout {
        &self.layout
    }
}

impl View {
    fn new(layout: Layout, adopted_unix_ms: u64) -> Self {
        let peers = layout.writers().flat_map(|placement| placement.peers());
        let peers = peers.filter_map(|(node, peer)| Some((*node, peer.parse().ok()?))).collect();
        Self { layout, peers, adopted_unix_ms }
    }

    /// The peer of a node in any set.
    pub(super) fn peer(&self, node: NodeId) -> Option<PeerId> {
        self.peers.get(&node).copied()
    }

    /// The nodes of all sets and their peers.
    pub(super) fn peers(&self) -> &BTreeMap<NodeId, PeerId> {
        &self.peers
    }

    /// When it was adopted, in milliseconds since the Unix epoch by this node's clock.
    pub(super) fn adopted_unix_ms(&self) -> u64 {
        self.adopted_unix_ms
    }

    /// Every node that a write of the partition goes to.
    pub(super) fn writers_of(&self, partition: u16) -> Vec<NodeId> {
        let mut nodes = Vec::with_capacity(8);
        for node in self.layout.writers().flat_map(|placement| placement.nodes_of(partition)) {
            if !nodes.contains(node) {
                nodes.push(*node);
            }
        }
        nodes
    }
}

/// The layouts of a node. Cheap to clone.
#[derive(Clone)]
pub(super) struct Layouts {
    known: watch::Sender<Option<Arc<v1::StorageLayout>>>,
    adopted: watch::Sender<Option<Arc<View>>>,
}

impl Layouts {
    /// None known yet.
    pub(super) fn new() -> Self {
        Self { known: watch::Sender::new(None), adopted: watch::Sender::new(None) }
    }

    /// Takes note of the layout in this node's own cluster map, and of how far the nodes are with it.
    pub(super) fn update(&self, layout: v1::StorageLayout) {
        self.take(layout, |known, layout| known.version <= layout.version && known != layout);
    }

    /// Takes note of a newer layout that another node has adopted.
    pub(super) fn learn(&self, layout: v1::StorageLayout) {
        self.take(layout, |known, layout| known.version < layout.version);
    }

    fn take(
        &self,
        layout: v1::StorageLayout,
        is_news: impl Fn(&v1::StorageLayout, &v1::StorageLayout) -> bool,
    ) {
        self.known.send_if_modified(|known| {
            let news = known.as_ref().is_none_or(|known| is_news(known, &layout));
            if news {
                *known = Some(Arc::new(layout));
            }
            news
        });
    }

    /// What is known, as it changes.
    pub(super) fn watch_known(&self) -> watch::Receiver<Option<Arc<v1::StorageLayout>>> {
        self.known.subscribe()
    }

    /// Acts under this layout from now on.
    pub(super) fn set_adopted(&self, layout: Layout, unix_ms: u64) {
        self.adopted.send_replace(Some(Arc::new(View::new(layout, unix_ms))));
    }

    /// The layout under which this node acts.
    pub(super) fn adopted(&self) -> Option<Arc<View>> {
        self.adopted.borrow().clone()
    }

    /// What is adopted, as it changes.
    pub(super) fn watch_adopted(&self) -> watch::Receiver<Option<Arc<View>>> {
        self.adopted.subscribe()
    }

    /// The layout under which to carry out a request.
    ///
    /// # Errors
    /// `NOT_READY` before there is one.
    pub(super) fn current(&self) -> Result<Arc<View>, Failure> {
        self.adopted().ok_or_else(|| {
            Failure::new(ErrorCode::NotReady, "the storage is not laid out yet: retry in a moment")
        })
    }

    /// Waits until a layout newer than `version` is adopted; says whether it was in time.
    pub(super) async fn newer_than(&self, version: u64, deadline: Instant) -> bool {
        let mut adopted = self.watch_adopted();
        let newer = adopted.wait_for(|view| view.as_ref().is_some_and(|view| view.version() > version));
        matches!(tokio::time::timeout_at(deadline, newer).await, Ok(Ok(_)))
    }
}

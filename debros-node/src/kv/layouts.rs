//! The layouts that this node knows: the newest it has heard of, and the one it has adopted, under which it
//! coordinates and answers. [`super::transition`] leads from one to the other.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use debros_net::PeerId;
use debros_proto::layout::{Layout, Phase, majority};
use debros_proto::{ErrorCode, Failure, NodeId, v1};
use tokio::sync::watch;
use tokio::time::Instant;

/// An adopted layout, with what this node needs to act under it.
#[derive(Debug)]
pub(super) struct View {
    layout: Layout,
    peers: BTreeMap<NodeId, PeerId>,
}

impl Deref for View {
    type Target = Layout;

    fn deref(&self) -> &Layout {
        &self.layout
    }
}

impl View {
    fn new(layout: Layout) -> Self {
        let peers = layout.writers().flat_map(|placement| placement.peers());
        let peers = peers.filter_map(|(node, peer)| Some((*node, peer.parse().ok()?))).collect();
        Self { layout, peers }
    }

    /// The peer of a node in any set.
    pub(super) fn peer(&self, node: NodeId) -> Option<PeerId> {
        self.peers.get(&node).copied()
    }

    /// The nodes of all sets and their peers.
    pub(super) fn peers(&self) -> &BTreeMap<NodeId, PeerId> {
        &self.peers
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
    pub(super) fn set_adopted(&self, layout: Layout) {
        self.adopted.send_replace(Some(Arc::new(View::new(layout))));
    }

    /// Whether it is known that no quorum of a partition's old set answers reads of the earlier layout any more.
    pub(super) fn old_reads_refused(&self, view: &View, partition: u16) -> bool {
        let known = self.known.borrow();
        let Some(known) = known.as_ref().filter(|known| known.version == view.version()) else {
            return false;
        };
        if view.phase() != Phase::ReadNext {
            return false;
        }
        let old = view.current();
        let refuses = |node: &&NodeId| {
            let told = known.progress.iter().find(|told| told.node_id == node.0);
            told.is_some_and(|told| told.acknowledged == view.version())
        };
        let refusing = old.nodes_of(partition).iter().filter(refuses).count();
        refusing > old.replicas() - majority(old.replicas())
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

#[cfg(test)]
mod tests {
    use debros_proto::layout::{Layout, Phase};
    use debros_proto::v1;

    use super::{Layouts, View};

    fn set(nodes: &[u64]) -> v1::LayoutSet {
        let node = |id: &u64| v1::LayoutNode { node_id: *id, ..Default::default() };
        v1::LayoutSet { replicas: 3, nodes: nodes.iter().map(node).collect() }
    }

    #[test]
    fn old_reads_are_over_once_no_quorum_of_the_old_set_may_answer_them() {
        let layouts = Layouts::new();
        let mut layout = v1::StorageLayout {
            version: 5,
            phase: Phase::ReadNext as i32,
            current: Some(set(&[1, 2, 3])),
            next: Some(set(&[3, 4, 5])),
            progress: Vec::new(),
        };
        let view = View::new(Layout::new(layout.clone()).unwrap());
        layouts.update(layout.clone());
        for (node_id, acknowledged, over) in [(4, 5, false), (1, 5, false), (2, 4, false), (3, 5, true)] {
            layout.progress.push(v1::LayoutProgress { node_id, acknowledged, copied: 0 });
            layouts.update(layout.clone());
            assert_eq!(layouts.old_reads_refused(&view, 7), over, "after node {node_id}");
        }
    }
}

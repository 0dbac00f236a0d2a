//! The layout of the key-value storage in the cluster map: how a change of it begins and what moves it
//! on. Pure functions; a node's part in a change is `kv::transition`.
//!
//! ```text
//! STABLE --change--> WRITE_BOTH --every node of the next set has copied--> READ_NEXT
//!   ^                                                                          |
//!   +---- of every partition, N-R+1 nodes of the old set refuse older reads ---+
//! ```
//!
//! Invariants: a version is never given twice; a change that has been read from is carried through; a
//! phase ends only on what nodes have said durably, never by time.

use std::collections::BTreeSet;

use debros_proto::layout::{PARTITIONS, Phase, Placement, majority};
use debros_proto::{ErrorCode, NodeId, v1};

type Refusal = (ErrorCode, String);

/// The layout after the beginning of a change to `next`. `seen` is the version that the proposer knew.
pub(super) fn change(
    layout: Option<&v1::StorageLayout>,
    operation: v1::MetaChangeLayout,
) -> Result<v1::StorageLayout, Refusal> {
    let v1::MetaChangeLayout { next, seen } = operation;
    let next = next.filter(|set| set.replicas > 0 && !set.nodes.is_empty()).ok_or_else(|| {
        (ErrorCode::InvalidArgument, "a layout has at least one node and one replica".to_owned())
    })?;
    let Some(layout) = layout else {
        return Ok(stable(1, next));
    };
    if seen != layout.version {
        let message = format!("the layout is at version {} by now, not at {seen}", layout.version);
        return Err((ErrorCode::StaleEpoch, message));
    }
    if layout.phase() == Phase::ReadNext {
        return Err((ErrorCode::Busy, "the next layout is read from already: its change goes on".to_owned()));
    }
    let version = layout.version + 1;
    let current = layout.current.clone().unwrap_or_default();
    if next == current {
        return Ok(stable(version, current));
    }
    Ok(v1::StorageLayout {
        version,
        phase: Phase::WriteBoth as i32,
        current: Some(current),
        next: Some(next),
        progress: Vec::new(),
    })
}

fn stable(version: u64, current: v1::LayoutSet) -> v1::StorageLayout {
    v1::StorageLayout { version, phase: Phase::Stable as i32, current: Some(current), ..Default::default() }
}

/// The layout after a node has told how far it is; `None` when that changes nothing.
pub(super) fn progress(layout: &v1::StorageLayout, told: v1::LayoutProgress) -> Option<v1::StorageLayout> {
    let mut layout = layout.clone();
    let known = match layout.progress.iter().position(|known| known.node_id == told.node_id) {
        Some(place) => &mut layout.progress[place],
        None => {
            layout.progress.push(v1::LayoutProgress { node_id: told.node_id, ..Default::default() });
            layout.progress.last_mut().expect("just added")
        }
    };
    let before = *known;
    known.acknowledged = known.acknowledged.max(told.acknowledged);
    known.copied = known.copied.max(told.copied);
    if *known == before {
        return None;
    }
    Some(advanced(layout))
}

/// Moves a change on when what its phase waits for has come.
fn advanced(layout: v1::StorageLayout) -> v1::StorageLayout {
    let version = layout.version;
    match layout.phase() {
        Phase::WriteBoth if everything_copied(&layout) => v1::StorageLayout {
            version: version + 1,
            phase: Phase::ReadNext as i32,
            progress: Vec::new(),
            ..layout
        },
        Phase::ReadNext if nobody_reads_the_old(&layout) => {
            stable(version + 1, layout.next.unwrap_or_default())
        }
        _ => layout,
    }
}

fn everything_copied(layout: &v1::StorageLayout) -> bool {
    let copied = |node: &v1::LayoutNode| {
        layout.progress.iter().any(|told| told.node_id == node.node_id && told.copied == layout.version)
    };
    layout.next.as_ref().is_some_and(|next| next.nodes.iter().all(copied))
}

/// Whether any R nodes of the old set include one that refuses.
fn nobody_reads_the_old(layout: &v1::StorageLayout) -> bool {
    let Some(set) = &layout.current else { return false };
    let told = layout.progress.iter().filter(|told| told.acknowledged == layout.version);
    let refusing: BTreeSet<NodeId> = told.map(|told| NodeId(told.node_id)).collect();
    let replicas = (set.replicas as usize).min(set.nodes.len());
    let needed = replicas - majority(replicas) + 1;
    // The table is not cheap, and every node tells.
    if refusing.len() < needed {
        return false;
    }
    let old = Placement::new(set);
    let refuse = |partition| old.nodes_of(partition).iter().filter(|node| refusing.contains(node)).count();
    (0..PARTITIONS).all(|partition| refuse(partition) >= needed)
}

#[cfg(test)]
mod tests {
    use debros_proto::layout::Phase;
    use debros_proto::{ErrorCode, v1};

    use super::{change, progress};

    fn set(nodes: &[u64]) -> v1::LayoutSet {
        let node = |id: &u64| v1::LayoutNode { node_id: *id, ..Default::default() };
        v1::LayoutSet { replicas: 3, nodes: nodes.iter().map(node).collect() }
    }

    fn to(nodes: &[u64], seen: u64) -> v1::MetaChangeLayout {
        v1::MetaChangeLayout { next: Some(set(nodes)), seen }
    }

    fn told(node_id: u64, acknowledged: u64, copied: u64) -> v1::LayoutProgress {
        v1::LayoutProgress { node_id, acknowledged, copied }
    }

    #[test]
    fn a_change_goes_through_its_phases_on_what_nodes_have_said() {
        let layout = change(None, to(&[1, 2, 3], 0)).unwrap();
        assert_eq!((layout.version, layout.phase()), (1, Phase::Stable));
        let mut layout = change(Some(&layout), to(&[1, 2, 3, 4], 1)).unwrap();
        assert_eq!((layout.version, layout.phase()), (2, Phase::WriteBoth));
        for node in 1..=4 {
            assert_eq!(layout.phase(), Phase::WriteBoth, "before node {node} has copied");
            layout = progress(&layout, told(node, 2, 2)).unwrap();
        }
        assert_eq!((layout.version, layout.phase()), (3, Phase::ReadNext));
        layout = progress(&layout, told(4, 3, 0)).unwrap();
        layout = progress(&layout, told(1, 3, 0)).unwrap();
        assert_eq!(layout.phase(), Phase::ReadNext, "nodes 2 and 3 may still answer old readers");
        layout = progress(&layout, told(3, 3, 0)).unwrap();
        assert_eq!((layout.version, layout.phase(), layout.next), (4, Phase::Stable, None));
        assert_eq!(layout.current, Some(set(&[1, 2, 3, 4])));
    }

    #[test]
    fn what_was_said_of_an_earlier_version_counts_for_nothing() {
        let first = change(None, to(&[1], 0)).unwrap();
        let layout = change(Some(&first), to(&[1, 2], 1)).unwrap();
        let layout = progress(&layout, told(1, 1, 1)).unwrap();
        let layout = progress(&layout, told(2, 2, 2)).unwrap();
        assert_eq!(layout.phase(), Phase::WriteBoth);
        assert_eq!(progress(&layout, told(2, 2, 2)), None);
    }

    #[test]
    fn a_change_that_was_not_read_from_may_be_replaced_and_none_other() {
        let first = change(None, to(&[1], 0)).unwrap();
        let wider = change(Some(&first), to(&[1, 2], 1)).unwrap();
        assert_eq!(change(Some(&wider), to(&[1, 2, 3], 1)).unwrap_err().0, ErrorCode::StaleEpoch);
        let back = change(Some(&wider), to(&[1], 2)).unwrap();
        assert_eq!((back.version, back.phase(), &back.current), (3, Phase::Stable, &first.current));
        let wider = progress(&progress(&wider, told(1, 2, 2)).unwrap(), told(2, 2, 2)).unwrap();
        assert_eq!(change(Some(&wider), to(&[1], 3)).unwrap_err().0, ErrorCode::Busy);
        assert_eq!(change(Some(&first), to(&[], 1)).unwrap_err().0, ErrorCode::InvalidArgument);
    }
}

//! After every fault has ended: waits until the storage is whole again.
//!
//! Whole means: all nodes act under one settled layout, which has exactly the nodes that are there, and of
//! every partition all nodes that hold it have the same root.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use debros_proto::layout::{PARTITIONS, Phase, Placement};
use debros_proto::{NodeId, v1};
use tokio::time::sleep;

use crate::machine::{Board, Engine};

/// A storage that is not whole after this much quiet time never will be.
const WHOLE_WITHIN: Duration = Duration::from_secs(60);
/// Pause between looks.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The version of the layout that all agree on, or why there is none.
pub(crate) type Verdict = Rc<RefCell<Result<u64, String>>>;

/// Looks until the storage on these machines is whole or time is up.
pub(crate) async fn observe(machines: Vec<usize>, board: Board, verdict: Verdict) -> turmoil::Result {
    board.ask_for_roots();
    let deadline = tokio::time::Instant::now() + WHOLE_WITHIN;
    while tokio::time::Instant::now() < deadline {
        let looked = look(&machines, &board);
        let whole = looked.is_ok();
        *verdict.borrow_mut() = looked;
        if whole {
            break;
        }
        sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

fn look(machines: &[usize], board: &Board) -> Result<u64, String> {
    let mut engines: BTreeMap<NodeId, Engine> = BTreeMap::new();
    for machine in machines {
        let shown = board.shown(*machine).ok_or_else(|| format!("node {machine} shows nothing"))?;
        let engine = board.engine(*machine).ok_or_else(|| format!("node {machine} has no storage"))?;
        engines.insert(NodeId(shown.node_id), engine);
    }
    let layout = agreed(engines.values().map(|engine| &engine.layout))?;
    let set = layout.current.clone().unwrap_or_default();
    let laid_out: BTreeSet<NodeId> = set.nodes.iter().map(|node| NodeId(node.node_id)).collect();
    let there: BTreeSet<NodeId> = engines.keys().copied().collect();
    if layout.phase() != Phase::Stable || laid_out != there {
        return Err(format!("the nodes are {there:?}, the layout is {layout:?}"));
    }
    let placement = Placement::new(&set);
    for partition in 0..PARTITIONS {
        let holders = placement.nodes_of(partition);
        let roots = holders.iter().map(|node| engines[node].roots.get(usize::from(partition)).cloned());
        let roots: Vec<Option<Option<Vec<u8>>>> = roots.collect();
        let missing = roots.iter().any(|root| !matches!(root, Some(Some(_))));
        if missing || roots.iter().any(|root| *root != roots[0]) {
            return Err(format!("partition {partition} differs at its nodes {holders:?}: {roots:?}"));
        }
    }
    Ok(layout.version)
}

fn agreed<'l>(layouts: impl Iterator<Item = &'l v1::StorageLayout>) -> Result<v1::StorageLayout, String> {
    let versions: BTreeMap<u64, &v1::StorageLayout> =
        layouts.map(|layout| (layout.version, layout)).collect();
    match versions.first_key_value() {
        Some((_, layout)) if versions.len() == 1 => Ok((*layout).clone()),
        _ => Err(format!("the nodes act under the layouts {:?}", versions.keys())),
    }
}

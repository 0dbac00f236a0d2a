//! Many whole nodes that know one address, until each is a member and knows all the others.

use std::time::Duration;

use debros_node::pubsub::PubSubOptions;

use crate::hooks;
use crate::machine::{StorageTuning, Tuning};
use crate::world::World;

const SEED: u64 = 1;
/// What users were promised.
const FULL_WITHIN: Duration = Duration::from_secs(30);
/// How often it is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Runs that many nodes; fails when full membership takes too long.
pub(crate) fn run(nodes: usize) -> Result<(), String> {
    hooks::seed_randomness(SEED);
    let started = hooks::wall_clock();
    // Ten thousand links are costly: longer steps, and a look at everything now and then.
    let tuning = Tuning {
        bootstrap_nodes: 1,
        durable_after_entries: 50_000,
        kept_entries: 10_000,
        show_interval: LOOK_INTERVAL,
        step: Duration::from_millis(5),
        may_die: false,
        acknowledge_before_fsync: false,
        storage: StorageTuning::default(),
        pubsub: PubSubOptions::default(),
    };
    let mut look_at = Duration::ZERO;
    let mut world = World::new(SEED, nodes, tuning);
    while world.elapsed() < FULL_WITHIN {
        world.step()?;
        if world.elapsed() < look_at {
            continue;
        }
        look_at = world.elapsed() + LOOK_INTERVAL;
        if (0..nodes).all(|node| is_full(&world, node, nodes)) {
            println!(
                "{nodes} nodes: full membership after {:.1} simulated seconds, {:.1} real ones",
                world.elapsed().as_secs_f64(),
                (hooks::wall_clock() - started).as_secs_f64()
            );
            return Ok(());
        }
    }
    let full = (0..nodes).filter(|node| is_full(&world, *node, nodes)).count();
    Err(format!("only {full} of {nodes} nodes know all others after {FULL_WITHIN:?}"))
}

/// Connected to every other node, and with all of them in its map.
fn is_full(world: &World, node: usize, nodes: usize) -> bool {
    let members = |group: &debros_proto::v1::GroupStatus| group.voters.len() + group.learners.len();
    world.board().shown(node).is_some_and(|shown| {
        let meta = shown.groups.iter().find(|group| group.group == 0);
        shown.connected_peers as usize == nodes - 1 && meta.is_some_and(|meta| members(meta) == nodes)
    })
}

//! What an operation of the storage costs in clusters of different sizes: applications grow in number with the
//! nodes, each does the same, and the CPU time of all nodes, the clients, the simulated network and the real flushes
//! together is taken with and without them.

use std::cell::Cell;
use std::ops::AddAssign;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use debros_node::pubsub::PubSubOptions;

use bytes::Bytes;
use debros_sdk::Storage;
use futures::future::join_all;
use tokio::sync::watch;

use crate::clients::connect_as;
use crate::dice::Dice;
use crate::hooks;
use crate::machine::{StorageTuning, Tuning};
use crate::world::World;

const SEED: u64 = 1;
/// Nodes for each application, which has one client.
const NODES_PER_CLIENT: usize = 3;
/// What a client has under way: one operation, which shares nothing with another on its way, or so many that the
/// frames between any two nodes are full, however many nodes they are spread over.
const LOADS: [Load; 2] =
    [Load { under_way: 1, turn_milliseconds: 10_000 }, Load { under_way: 4096, turn_milliseconds: 250 }];
/// The clients that [`connect_as`] lets wait the longest.
const CLIENT_STEP: usize = 3;
const KEYS: u64 = 2000;
const VALUE_BYTES: usize = 256;
/// All nodes are members, and the storage lies on all of them, within this.
const FORMED_WITHIN: Duration = Duration::from_secs(120);
/// What is measured, each with work and without.
const TURNS: usize = 2;
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What is done, and for how long at a time.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Operations of one client.
    pub(crate) under_way: usize,
    /// Simulated time. Where operations are few, long enough for several rounds of what nodes do by themselves.
    pub(crate) turn_milliseconds: u64,
}

/// What the clients share with whoever measures.
#[derive(Clone, Default)]
struct Progress {
    works: watch::Sender<bool>,
    done: Rc<Cell<u64>>,
    under_way: Rc<Cell<usize>>,
    ready: Rc<Cell<usize>>,
}

/// What a stretch of simulated time took.
#[derive(Clone, Copy, Default)]
struct Cost {
    cpu: Duration,
    simulated: Duration,
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.cpu += other.cpu;
        self.simulated += other.simulated;
    }
}

/// Runs the sizes after one another, each in a process of its own, and prints what an operation costs.
pub(crate) fn compare(sizes: &[usize]) -> Result<(), String> {
    println!(
        "{:>16} {:>6} {:>12} {:>14} {:>8}",
        "under way, each", "nodes", "operations", "cpu us per op", "ratio"
    );
    for load in LOADS {
        let mut first = None;
        for &nodes in sizes {
            let [operations, cost] = measure(nodes, load)?;
            let ratio = format!("x{:.2}", cost / *first.get_or_insert(cost));
            let under_way = load.under_way;
            println!("{under_way:>16} {nodes:>6} {operations:>12} {cost:>14.1} {ratio:>8}");
        }
    }
    Ok(())
}

/// Runs one size and load in a process of its own; gives the operations and the microseconds of CPU for one.
fn measure(nodes: usize, load: Load) -> Result<[f64; 2], String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let [nodes, under_way, turn] =
        [nodes as u64, load.under_way as u64, load.turn_milliseconds].map(|number| number.to_string());
    let arguments = ["scale-one", "--nodes", &nodes, "--under-way", &under_way, "--turn-milliseconds", &turn];
    let output = Command::new(&program).args(arguments).output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let failed = |_| format!("{nodes} nodes: {text}{}", String::from_utf8_lossy(&output.stderr));
    words.try_into().map_err(failed)
}

/// Measures one size on this thread; prints the operations and the microseconds of CPU for one.
pub(crate) fn run(nodes: usize, load: Load) -> Result<(), String> {
    hooks::seed_randomness(SEED);
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
    let mut world = World::new(SEED, nodes, tuning);
    let progress = Progress::default();
    until(&mut world, FORMED_WITHIN, |world| (0..nodes).all(|node| is_laid_out(world, node, nodes)))?;
    let clients = nodes.div_ceil(NODES_PER_CLIENT);
    for client in 0..clients {
        world.client(&format!("load-{client}"), work(client, nodes, load.under_way, progress.clone()));
    }
    until(&mut world, FORMED_WITHIN, |_| progress.ready.get() == clients)?;
    let turn = Duration::from_millis(load.turn_milliseconds);
    // Connections are opened, and trees counted, before anything is measured.
    busy_turn(&mut world, &progress, turn)?;
    progress.done.set(0);
    let (mut idle, mut busy) = (Cost::default(), Cost::default());
    for _ in 0..TURNS {
        idle += passed(&mut world, turn)?;
        busy += busy_turn(&mut world, &progress, turn)?;
    }
    let done = progress.done.get();
    // What the nodes do by themselves goes on while clients work.
    let by_themselves = idle.cpu.as_secs_f64() * busy.simulated.as_secs_f64() / idle.simulated.as_secs_f64();
    let cost = (busy.cpu.as_secs_f64() - by_themselves) * 1e6 / done.max(1) as f64;
    println!("{done} {cost:.1}");
    Ok(())
}

fn until(world: &mut World, within: Duration, done: impl Fn(&World) -> bool) -> Result<(), String> {
    let end = world.elapsed() + within;
    let mut look_at = Duration::ZERO;
    while world.elapsed() < end {
        world.step()?;
        if world.elapsed() >= look_at {
            look_at = world.elapsed() + LOOK_INTERVAL;
            if done(world) {
                return Ok(());
            }
        }
    }
    Err(format!("not within {within:?}"))
}

/// The storage's layout is settled, and has all nodes.
fn is_laid_out(world: &World, node: usize, nodes: usize) -> bool {
    let storage = world.board().shown(node).and_then(|shown| shown.storage);
    storage.is_some_and(|storage| storage.phase == "stable" && storage.nodes as usize == nodes)
}

/// Lets simulated time pass; tells the CPU time of this thread, which is that of everything.
fn passed(world: &mut World, time: Duration) -> Result<Cost, String> {
    measured(world, |world, elapsed| world.elapsed() >= elapsed + time)
}

/// Lets the clients work for so long, and come to the end of what they began.
fn busy_turn(world: &mut World, progress: &Progress, time: Duration) -> Result<Cost, String> {
    progress.works.send_replace(true);
    let mut cost = passed(world, time)?;
    progress.works.send_replace(false);
    cost += measured(world, |_, _| progress.under_way.get() == 0)?;
    Ok(cost)
}

fn measured(world: &mut World, done: impl Fn(&World, Duration) -> bool) -> Result<Cost, String> {
    let (elapsed, began) = (world.elapsed(), hooks::thread_cpu_time());
    while !done(world, elapsed) {
        world.step()?;
    }
    Ok(Cost { cpu: hooks::thread_cpu_time() - began, simulated: world.elapsed() - elapsed })
}

async fn work(client: usize, nodes: usize, under_way: usize, progress: Progress) -> turmoil::Result {
    let application = format!("load-{client}");
    let connected = connect_as(&application, client * CLIENT_STEP + CLIENT_STEP - 1, nodes).await?;
    let storage = connected.storage();
    progress.ready.set(progress.ready.get() + 1);
    let value = Bytes::from(vec![b'x'; VALUE_BYTES]);
    let one = |number: usize| {
        let (storage, progress, value) = (&storage, &progress, &value);
        let mut dice = Dice::new(SEED, (client * under_way + number) as u64);
        async move {
            let mut works = progress.works.subscribe();
            loop {
                if works.wait_for(|works| *works).await.is_err() {
                    return;
                }
                progress.under_way.set(progress.under_way.get() + 1);
                let key = format!("key-{}", dice.below(KEYS));
                let outcome = match dice.below(2) {
                    0 => storage.put(&key, value.clone()).await.map(drop),
                    _ => storage.get(&key).await.map(drop),
                };
                outcome.unwrap_or_else(|error| panic!("{key}: {error}"));
                progress.under_way.set(progress.under_way.get() - 1);
                progress.done.set(progress.done.get() + 1);
            }
        }
    };
    join_all((0..under_way).map(one)).await;
    Ok(())
}

//! What an operation of the storage costs in clusters of different sizes: applications grow in number with the
//! nodes, each does the same, and the CPU time of all nodes, the clients, the simulated network and the real flushes
//! together is taken with and without them.

use std::cell::Cell;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use debros_node::pubsub::PubSubOptions;

use bytes::Bytes;
use debros_sdk::Storage;
use futures::future::join_all;
use tokio::time::sleep;

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
const LOADS: [usize; 2] = [1, 512];
/// The clients that [`connect_as`] lets wait the longest.
const CLIENT_STEP: usize = 3;
const KEYS: u64 = 2000;
const VALUE_BYTES: usize = 256;
/// All nodes are members, and the storage lies on all of them, within this.
const FORMED_WITHIN: Duration = Duration::from_secs(120);
/// What is measured, each with work and without: long enough for several rounds of what nodes do by themselves.
const TURN: Duration = Duration::from_secs(10);
const TURNS: usize = 2;
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What the clients share with whoever measures.
#[derive(Clone, Default)]
struct Load {
    works: Rc<Cell<bool>>,
    done: Rc<Cell<u64>>,
    ready: Rc<Cell<usize>>,
}

/// Runs the sizes after one another, each in a process of its own, and prints what an operation costs.
pub(crate) fn compare(sizes: &[usize]) -> Result<(), String> {
    println!(
        "{:>16} {:>6} {:>12} {:>14} {:>8}",
        "under way, each", "nodes", "operations", "cpu us per op", "ratio"
    );
    for under_way in LOADS {
        let mut first = None;
        for &nodes in sizes {
            let [operations, cost] = measure(nodes, under_way)?;
            let ratio = format!("x{:.2}", cost / *first.get_or_insert(cost));
            println!("{under_way:>16} {nodes:>6} {operations:>12} {cost:>14.1} {ratio:>8}");
        }
    }
    Ok(())
}

/// Runs one size and load in a process of its own; gives the operations and the microseconds of CPU for one.
fn measure(nodes: usize, under_way: usize) -> Result<[f64; 2], String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let (nodes, under_way) = (nodes.to_string(), under_way.to_string());
    let arguments = ["scale-one", "--nodes", &nodes, "--under-way", &under_way];
    let output = Command::new(&program).args(arguments).output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let failed = |_| format!("{nodes} nodes: {text}{}", String::from_utf8_lossy(&output.stderr));
    words.try_into().map_err(failed)
}

/// Measures one size on this thread; prints the operations and the microseconds of CPU for one.
pub(crate) fn run(nodes: usize, under_way: usize) -> Result<(), String> {
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
    let load = Load::default();
    until(&mut world, FORMED_WITHIN, |world| (0..nodes).all(|node| is_laid_out(world, node, nodes)))?;
    let clients = nodes.div_ceil(NODES_PER_CLIENT);
    for client in 0..clients {
        world.client(&format!("load-{client}"), work(client, nodes, under_way, load.clone()));
    }
    until(&mut world, FORMED_WITHIN, |_| load.ready.get() == clients)?;
    // Connections are opened, and trees counted, before anything is measured.
    turn(&mut world, &load, true)?;
    let (mut idle, mut busy) = (Duration::ZERO, Duration::ZERO);
    load.done.set(0);
    for _ in 0..TURNS {
        idle += turn(&mut world, &load, false)?;
        busy += turn(&mut world, &load, true)?;
    }
    let done = load.done.get();
    let cost = busy.saturating_sub(idle).as_secs_f64() * 1e6 / done.max(1) as f64;
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

/// Lets simulated time pass; gives the CPU time of this thread, which is that of everything.
fn turn(world: &mut World, load: &Load, works: bool) -> Result<Duration, String> {
    load.works.set(works);
    let (end, began) = (world.elapsed() + TURN, hooks::thread_cpu_time());
    while world.elapsed() < end {
        world.step()?;
    }
    Ok(hooks::thread_cpu_time() - began)
}

async fn work(client: usize, nodes: usize, under_way: usize, load: Load) -> turmoil::Result {
    let application = format!("load-{client}");
    let connected = connect_as(&application, client * CLIENT_STEP + CLIENT_STEP - 1, nodes).await?;
    let storage = connected.storage();
    load.ready.set(load.ready.get() + 1);
    let value = Bytes::from(vec![b'x'; VALUE_BYTES]);
    let one = |number: usize| {
        let (storage, load, value) = (&storage, &load, &value);
        let mut dice = Dice::new(SEED, (client * under_way + number) as u64);
        async move {
            loop {
                if !load.works.get() {
                    sleep(LOOK_INTERVAL).await;
                    continue;
                }
                let key = format!("key-{}", dice.below(KEYS));
                let outcome = match dice.below(2) {
                    0 => storage.put(&key, value.clone()).await.map(drop),
                    _ => storage.get(&key).await.map(drop),
                };
                outcome.unwrap_or_else(|error| panic!("{key}: {error}"));
                load.done.set(load.done.get() + 1);
            }
        }
    };
    join_all((0..under_way).map(one)).await;
    Ok(())
}

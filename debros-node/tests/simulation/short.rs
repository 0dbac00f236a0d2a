//! The short run of the test command: every recorded seed, a few more, one seed twice, and thirty
//! nodes that find each other.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::batch::{self, Batch};
use crate::sql::Scenario;
use crate::{kv, linearizability, pubsub};

/// How long the clients of the short run work.
const WORK: Duration = Duration::from_secs(15);
/// Seeds of the short run.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=8;
/// Seeds of the short run of registers.
const REGISTER_SEEDS: std::ops::RangeInclusive<u64> = 1..=3;
/// Seeds of the short run of the storage.
const STORAGE_SEEDS: std::ops::RangeInclusive<u64> = 1..=4;
/// Seeds of the short run of pub/sub: one of each kind.
const PUBSUB_SEEDS: std::ops::RangeInclusive<u64> = 1..=3;
/// Nodes of the short run.
const NODES: usize = 30;

type Check = fn() -> Result<(), String>;
const CHECKS: [(&str, Check); 15] = [
    ("recorded_seeds_pass", recorded_seeds_pass),
    ("seeds_pass", seeds_pass),
    ("known_histories_are_told_apart", linearizability::known_histories_are_told_apart),
    ("recorded_seeds_of_registers_pass", recorded_seeds_of_registers_pass),
    ("seeds_of_registers_pass", seeds_of_registers_pass),
    ("a_seed_gives_the_same_history_twice", a_seed_gives_the_same_history_twice),
    ("known_histories_of_kv_are_told_apart", kv::known_histories_are_told_apart),
    ("recorded_seeds_of_kv_pass", recorded_seeds_of_kv_pass),
    ("seeds_of_kv_pass", seeds_of_kv_pass),
    ("a_seed_of_kv_gives_the_same_history_twice", a_seed_of_kv_gives_the_same_history_twice),
    ("known_histories_of_pubsub_are_told_apart", pubsub::known_histories_are_told_apart),
    ("recorded_seeds_of_pubsub_pass", recorded_seeds_of_pubsub_pass),
    ("seeds_of_pubsub_pass", seeds_of_pubsub_pass),
    ("a_seed_of_pubsub_gives_the_same_history_twice", a_seed_of_pubsub_gives_the_same_history_twice),
    ("thirty_nodes_find_each_other", thirty_nodes_find_each_other),
];

/// Runs the checks whose names contain the filter that `cargo test` was given.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    if arguments.iter().any(|argument| argument == "--list") {
        CHECKS.iter().for_each(|(name, _)| println!("{name}: test"));
        return Ok(());
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let asked = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(*filter));
    let mut failed = Vec::new();
    for (name, check) in CHECKS.iter().filter(|(name, _)| asked(name)) {
        match check() {
            Ok(()) => println!("test {name} ... ok"),
            Err(message) => {
                println!("test {name} ... FAILED\n{message}");
                failed.push(*name);
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", "))) }
}

fn batch(scenario: Scenario, seeds: Vec<u64>, work: Duration) -> Batch {
    Batch { scenario, seeds, work, planted: None, histories: None }
}

fn recorded_pass(scenario: Scenario) -> Result<(), String> {
    let mut seeds: BTreeMap<Duration, Vec<u64>> = BTreeMap::new();
    for recorded in batch::corpus(scenario)? {
        seeds.entry(recorded.work).or_default().push(recorded.seed);
    }
    seeds.into_iter().try_for_each(|(work, seeds)| batch::all_must_pass(&batch(scenario, seeds, work)))
}

fn recorded_seeds_pass() -> Result<(), String> {
    recorded_pass(Scenario::Sql)
}

fn seeds_pass() -> Result<(), String> {
    batch::all_must_pass(&batch(Scenario::Sql, SEEDS.collect(), WORK))
}

fn recorded_seeds_of_registers_pass() -> Result<(), String> {
    recorded_pass(Scenario::Registers)
}

fn seeds_of_registers_pass() -> Result<(), String> {
    batch::all_must_pass(&batch(Scenario::Registers, REGISTER_SEEDS.collect(), WORK))
}

fn recorded_seeds_of_kv_pass() -> Result<(), String> {
    recorded_pass(Scenario::Kv)
}

fn seeds_of_kv_pass() -> Result<(), String> {
    batch::all_must_pass(&batch(Scenario::Kv, STORAGE_SEEDS.collect(), WORK))
}

fn a_seed_gives_the_same_history_twice() -> Result<(), String> {
    same_history_twice(Scenario::Sql)
}

fn a_seed_of_kv_gives_the_same_history_twice() -> Result<(), String> {
    same_history_twice(Scenario::Kv)
}

fn recorded_seeds_of_pubsub_pass() -> Result<(), String> {
    recorded_pass(Scenario::Pubsub)
}

fn seeds_of_pubsub_pass() -> Result<(), String> {
    batch::all_must_pass(&batch(Scenario::Pubsub, PUBSUB_SEEDS.collect(), WORK))
}

fn a_seed_of_pubsub_gives_the_same_history_twice() -> Result<(), String> {
    same_history_twice(Scenario::Pubsub)
}

fn same_history_twice(scenario: Scenario) -> Result<(), String> {
    let mut lines = Vec::new();
    batch::run(&batch(scenario, vec![*SEEDS.start(); 2], WORK), |ended| {
        // Everything but the real time it took.
        lines.push(ended.line.split(" wall ").next().unwrap_or_default().to_owned());
        true
    })?;
    if lines.len() == 2 && lines[0] == lines[1] { Ok(()) } else { Err(lines.join("\n")) }
}

fn thirty_nodes_find_each_other() -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = std::process::Command::new(program).args(["mesh", "--nodes", &NODES.to_string()]).output();
    let output = output.map_err(|error| error.to_string())?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

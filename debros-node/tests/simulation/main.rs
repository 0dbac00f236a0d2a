//! Whole nodes in simulated time, under faults drawn from a seed.
//!
//! ```text
//! cargo test -p debros-node --test simulation            the short run
//! cargo xtask sim sql --seeds N [--start S] [--secs T]   the long one; also `registers`, `kv`, `pubsub`
//! ```
//!
//! The production parts run unchanged: nodes, SDK clients, gRPC, Raft, the log store, SQLite; but the clients of pub/sub are the
//! scenario's own, which keep what a checker must see, and the SDK's are tried over killed processes
//! (`tests/programs/pubsub.rs`). What is simulated is below them: network (turmoil), time, randomness ([`hooks`]) and disks ([`disk`]). Each
//! seed runs in a process of its own, because hash seeds and task ids are a process's, and gives the
//! same history each time. A test target and no crate: it interposes libc, which must stay out of
//! every other binary.

mod batch;
mod checker;
mod clients;
mod command;
mod convergence;
mod dice;
mod disk;
mod faults;
mod history;
mod hooks;
mod kv;
mod linearizability;
mod loss;
mod machine;
mod mesh;
mod planted;
mod pubsub;
mod registers;
mod report;
mod scale;
mod short;
mod sql;
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    command::run(&std::env::args().skip(1).collect::<Vec<_>>())
}

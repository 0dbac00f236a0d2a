//! The debros node as a library: one composition root and the engines it composes.

pub mod blocking;
pub mod clock;
pub mod cluster;
pub mod command;
pub mod dev;
pub mod http;
pub mod kv;
pub mod launch;
pub mod logging;
pub mod metrics;
pub mod node;
pub mod planted;
pub mod pubsub;
pub mod raft;
pub mod rpc;
pub mod service;
pub mod slot;
pub mod sql;
pub mod trace;

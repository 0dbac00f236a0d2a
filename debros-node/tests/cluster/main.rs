//! Whole nodes on loopback, asked through the SDK: what users are promised, tried on the real thing.
//!
//! Every test starts its own cluster on free ports in a temporary folder ([`support::Cluster`]); at
//! most two clusters run at a time. Nothing sleeps: tests wait for what they expect, with a deadline.

mod admission;
mod collector;
mod formation;
mod garbage;
mod health;
mod input;
mod intruders;
mod leadership;
mod leaving;
mod membership;
mod messenger;
mod metrics;
mod probes;
mod pubsub;
mod pubsub_clients;
mod pubsub_failures;
mod quarantine;
mod registers;
mod restart;
mod sql;
mod start;
mod storage;
mod support;
mod traces;

//! What replicas rely on, proved through the public interface with real databases.
//!
//! Each trap in SQLite that would make replicas diverge, lose data or stop has a test here that
//! fails when the trap is walked into.

mod durability;
mod environment;
mod equal_replicas;
mod reading;
mod registers;
mod replica;
mod rollback;
mod sandbox;
mod sessions;

//! The operator of debros: it turns a `DebrosCluster` into a running cluster and keeps it one.
//!
//! For each resource the same five stages run, a file each: [`dereference`] reads what there is, in Kubernetes and
//! through the SDK at the nodes; [`validate`] refuses what cannot be meant; [`decide`] says what to do next, a pure
//! function over what was seen, and [`build`] what objects there must be, another one; [`apply`] writes by
//! server-side apply and carries the one step out; [`status`] says what came of it. [`reconcile`] is their
//! composition, [`controller`] runs it for every resource that changed.
//!
//! Invariants:
//! - **No step costs a quorum** that the cluster's replicas could keep: whoever is stopped is stopped alone, after every
//!   Raft group and KV partition was found whole without it.
//! - **A cluster is initialised once**: only when no node, no claim and no record knows of one.
//! - **What is disruptive is decided twice**, the second time over objects read from the API server and not from a
//!   cache, and is carried out under the uid and the version that were read.
//! - **What is not ours is not touched**: ownership is the uid of the resource, never a name.
//! - Nothing is remembered between two runs but what can be read again: the operator may end at any call.

pub mod apply;
pub mod build;
pub mod caches;
pub mod command;
pub mod controller;
pub mod crd;
pub mod decide;
pub mod dereference;
pub mod identity;
pub mod lease;
pub mod metrics;
pub mod names;
pub mod nodes;
pub mod observed;
pub mod quantity;
pub mod reconcile;
pub mod snapshot;
pub mod status;
pub mod validate;

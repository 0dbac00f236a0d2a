//! The operator against a real API server and etcd, without kubelets: every rule's message as `kubectl apply` shows it,
//! and the crash sweep, in which the operator is ended after each single call in turn.
//!
//! It needs an API server, and says that it does nothing without one. `KUBECONFIG` is not asked, which may name a cluster
//! that people use:
//!
//! `cargo xtask k8s operator` makes an API server, runs this on it and removes it again. By hand:
//!
//! ```sh
//! cargo xtask k8s up --control-plane-only --name operator
//! export DEBROS_TEST_KUBECONFIG=$(cargo xtask k8s status --name operator --json | jq -r .kubeconfig)
//! cargo test -p operator --test kubernetes -- --test-threads=1 --nocapture
//! ```
//!
//! It calls `kubectl` and `helm`; `KUBECTL` and `HELM` name others than those on the PATH.

#[allow(dead_code, reason = "each test program uses its part of it")]
#[path = "../support/mod.rs"]
mod support;

mod kubelet;
mod lives;
mod many;
mod messages;
mod rights;
mod scene;
mod sweep;

/// The variable that names the API server to test on.
const KUBECONFIG: &str = "DEBROS_TEST_KUBECONFIG";
/// The variable that says how much is tried: `full`, as without it, or `short`.
const EXTENT: &str = "DEBROS_TEST_EXTENT";

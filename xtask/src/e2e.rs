//! `cargo xtask e2e`: the images on a real Kubernetes, under a load that remembers every acknowledged write. [`stage`] knows the load and the table of what each
//! step cost it; what is done to the cluster is a module of its own.

mod load;
mod operated;
mod plain;
mod stage;

use anyhow::Result;
use clap::Subcommand;

/// What is proven on a real Kubernetes.
#[derive(Subcommand)]
pub(crate) enum EndToEnd {
    /// The operator and a cluster by the README's two lines on the local cluster, and then all that is done to clusters, under load.
    K8s(operated::OperatedOptions),
    /// Three nodes as a plain StatefulSet on the local cluster: a pod deleted, a machine frozen, all pods at once, under load.
    Plain(plain::PlainOptions),
    /// The load: runs in a pod.
    #[command(hide = true)]
    Load(load::LoadOptions),
}

/// Runs one of them.
pub(crate) fn run(command: &EndToEnd) -> Result<()> {
    match command {
        EndToEnd::K8s(options) => operated::run(options),
        EndToEnd::Plain(options) => plain::run(options),
        EndToEnd::Load(options) => load::run(options),
    }
}

//! `cargo xtask k8s operator`: the operator's tests against a real API server and etcd that are made for them and removed again. The
//! kubelets are stand-ins, so no root is needed.

use anyhow::Result;
use clap::Args;

use super::control_plane::{Extent, programs_needed};
use super::layout::Layout;
use super::state::State;
use super::tools::{self, Program, Tools};
use super::{down, up};
use crate::steps::{cargo, run as run_command, step};

/// The API server's name among the clusters of this machine.
const NAME: &str = "operator-tests";

/// Options of `k8s operator`.
#[derive(Args)]
pub(crate) struct OperatorOptions {
    /// End the operator at some of its calls only, and keep ten clusters instead of a hundred.
    #[arg(long)]
    short: bool,
    /// Only tests whose name contains this: `messages`, `sweep`, `many`.
    filter: Option<String>,
}

/// Every rule's message through `kubectl apply`, the crash sweep, and many clusters in one operator.
pub(crate) fn run(options: &OperatorOptions) -> Result<()> {
    let layout = Layout::new(NAME)?;
    if let Some(state) = State::read(&layout)? {
        step("remove what an earlier run left", || down::remove(&layout, &state))?;
    }
    up::api_only(&layout, false)?;
    let tried = step("the operator on a real API server", || tests(&layout, options));
    let removed = step("remove the API server", || down::run(&layout));
    tried.and(removed)
}

/// A short run for the test command, where the programs have been built. To build them takes minutes and gigabytes, which whoever runs
/// the tests of a database has not asked for: it says what is skipped then, and how to have it.
pub(crate) fn try_shortly() -> Result<()> {
    if !tools::all_built(&programs()) {
        println!(
            "\n==> skipped: the operator on a real API server, with its crash sweep, since no API server has been built on this machine; \
             `cargo xtask k8s operator` builds one, with Go, and runs all of it"
        );
        return Ok(());
    }
    run(&OperatorOptions { short: true, filter: None })
}

fn programs() -> Vec<Program> {
    [programs_needed(Extent::ApiOnly), &[Program::Kubectl, Program::Helm]].concat()
}

fn tests(layout: &Layout, options: &OperatorOptions) -> Result<()> {
    // The same selection as that of all tests, or cargo would build every dependency twice.
    let mut tests = cargo(&["test", "--workspace", "--test", "kubernetes", "--"]);
    tests.args(&options.filter).args(["--test-threads=1", "--nocapture"]);
    tests.env("DEBROS_TEST_KUBECONFIG", layout.kubeconfig());
    tests.env("DEBROS_TEST_EXTENT", if options.short { "short" } else { "full" });
    let tools = Tools::new();
    tests.env("KUBECTL", tools.built(Program::Kubectl)?).env("HELM", tools.built(Program::Helm)?);
    run_command(tests)
}

//! `cargo xtask ci` and `cargo xtask test`. `ci` is exactly what CI runs: the quick checks first, the tests
//! last, so that their closing lines end the output. `test` does its own set-up and says what it does.

use std::process::Command;

use anyhow::Result;

use crate::steps::{cargo, run, step};
use crate::{generate, k8s, observe, rqlite_client, tidy, up};

/// Everything that must hold before a change lands.
pub(crate) fn ci() -> Result<()> {
    step("fmt", || run(cargo(&["fmt", "--all", "--", "--check"])))?;
    step("tidy", tidy::run)?;
    step("gen --check", || generate::run(true))?;
    step("clippy", || {
        run(cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"]))
    })?;
    step("docs", || {
        let mut doc = cargo(&["doc", "--workspace", "--no-deps"]);
        // A module's own page speaks to who reads its source, and may name its private parts.
        doc.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links");
        run(doc)
    })?;
    test()
}

/// Every test there is: those with node processes first (an rqlite client that is not ours, the demonstration, a Prometheus), then cargo's.
pub(crate) fn test() -> Result<()> {
    // The same selection as the tests', or cargo would build every dependency twice.
    step("build", || run(in_one_go(cargo(&["build", "--workspace", "--bins", "--tests"]))))?;
    let python = step("rqlite client: set up", rqlite_client::set_up)?;
    step("rqlite client: pyrqlite against every node", || rqlite_client::check(&python))?;
    step("demonstration", up::test)?;
    observe::test()?;
    k8s::try_operator()?;
    step("tests", || run(in_one_go(cargo(&["test", "--workspace"]))))
}

/// On a fresh machine nothing is built twice, so what incremental builds keep is only written.
fn in_one_go(mut command: Command) -> Command {
    if std::env::var_os("CI").is_some() {
        command.env("CARGO_INCREMENTAL", "0");
    }
    command
}

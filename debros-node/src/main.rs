//! The node's binary: parses the command line and runs it.

use std::process::ExitCode;

use clap::Parser;
use debros_node::command::{Arguments, run};
use debros_node::metrics::recording;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Several libraries bring a provider each; TLS uses this one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    recording::obey_signals();
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("debros-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! `debros-operator`: reads its command line and hands over.

use std::process::ExitCode;

use clap::Parser;
use operator::command::{self, Arguments};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("debros-operator: TLS was set up twice");
        return ExitCode::FAILURE;
    }
    command::main(arguments).await
}

//! `debros`: a cluster from the command line, built only on the public SDK. Parses, runs one
//! command, and turns its outcome into an exit code; everything else is in the modules.

mod arguments;
mod commands;
mod connection;
mod failure;
mod format;
mod health;
mod json;
mod parameter;
mod pubsub;
mod registers;
mod shell;
mod storage;
mod table;
mod top;

use std::process::ExitCode;

use crate::arguments::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::read();
    let format = arguments.global.format;
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(commands::run(arguments));
    // A line that is still being read must not keep the process.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(format),
    }
}

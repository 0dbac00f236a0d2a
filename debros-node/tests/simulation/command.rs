//! The command line of the harness. With the arguments that `cargo test` gives to every test binary it
//! is the short run; the rest is for `cargo xtask sim` and for the processes that it starts itself.

use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use crate::batch::{self, Batch};
use crate::planted::Bug;
use crate::sql::{Options, Scenario};
use crate::{mesh, scale, short, sql};

/// How long the clients work in a run of the long form.
const WORK_DEFAULT: Duration = Duration::from_secs(30);
/// What a planted bug has to be caught within.
const PLANTED_SEEDS: u64 = 500;
/// The clusters whose costs are compared.
const SCALE_NODES: [usize; 4] = [3, 12, 48, 100];
/// Nodes and their TLS, gRPC and SQLite run on one thread, unoptimised.
const STACK_BYTES: usize = 64 << 20;
/// A run that takes longer in real time hangs: it is ended by a signal.
const WALL_SECONDS_MAX: u32 = 600;

const USAGE: &str = "\
usage: simulation sql|registers|kv|pubsub [--seeds N] [--start S] [--secs T] [--planted BUG] [--histories FOLDER]
       simulation planted [--seeds N] [--start S] [--secs T] [--planted BUG] [--scenario NAME]
       simulation mesh [--nodes N]
       simulation scale                                    what an operation costs, by the size of the cluster
       simulation                                          the short run";

/// Does what the arguments say.
pub(crate) fn run(arguments: &[String]) -> ExitCode {
    let outcome = match arguments.first().map(String::as_str) {
        Some(name) if let Some(scenario) = Scenario::named(name) => {
            batch(scenario, &arguments[1..]).and_then(|batch| batch::all_must_pass(&batch))
        }
        Some("planted") => planted(&arguments[1..]),
        Some("mesh") => {
            option(&arguments[1..], "--nodes", 100).and_then(|nodes| alone(move || mesh::run(nodes)))
        }
        Some("scale") => scale::compare(&SCALE_NODES),
        Some("scale-one") => scale_one(&arguments[1..]),
        Some("one") => one(&arguments[1..]),
        _ => short::run(arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn option<T: FromStr>(arguments: &[String], name: &str, default: T) -> Result<T, String> {
    let Some(place) = arguments.iter().position(|argument| argument == name) else { return Ok(default) };
    let value = arguments.get(place + 1).and_then(|text| text.parse().ok());
    value.ok_or_else(|| format!("{name} takes a value\n{USAGE}"))
}

fn scale_one(arguments: &[String]) -> Result<(), String> {
    let nodes = option(arguments, "--nodes", 3)?;
    let under_way = option(arguments, "--under-way", 1)?;
    let turn_milliseconds = option(arguments, "--turn-milliseconds", 10_000)?;
    alone(move || scale::run(nodes, scale::Load { under_way, turn_milliseconds }))
}

fn bug(arguments: &[String]) -> Result<Option<Bug>, String> {
    let name: String = option(arguments, "--planted", String::new())?;
    if name.is_empty() {
        return Ok(None);
    }
    let bug = Bug::named(&name).ok_or_else(|| {
        format!("there is no bug {name}, but there are: {}", Bug::ALL.map(Bug::name).join(", "))
    })?;
    if !cfg!(feature = "planted-bugs") {
        return Err("this build has no bugs to plant: build with --features planted-bugs".to_owned());
    }
    Ok(Some(bug))
}

fn scenario(arguments: &[String]) -> Result<Scenario, String> {
    named_scenario(arguments).map(Option::unwrap_or_default)
}

fn named_scenario(arguments: &[String]) -> Result<Option<Scenario>, String> {
    let name: String = option(arguments, "--scenario", String::new())?;
    if name.is_empty() {
        return Ok(None);
    }
    Scenario::named(&name).map(Some).ok_or_else(|| format!("there is no scenario {name}\n{USAGE}"))
}

fn batch(scenario: Scenario, arguments: &[String]) -> Result<Batch, String> {
    let start = option(arguments, "--start", 1)?;
    let seeds = option(arguments, "--seeds", 20)?;
    let histories: String = option(arguments, "--histories", String::new())?;
    Ok(Batch {
        scenario,
        seeds: (start..start + seeds).collect(),
        work: Duration::from_secs(option(arguments, "--secs", WORK_DEFAULT.as_secs())?),
        planted: bug(arguments)?,
        histories: (!histories.is_empty()).then(|| histories.into()),
    })
}

/// Each bug must be caught.
fn planted(arguments: &[String]) -> Result<(), String> {
    let start = option(arguments, "--start", 1)?;
    let seeds = option(arguments, "--seeds", PLANTED_SEEDS)?;
    let work = Duration::from_secs(option(arguments, "--secs", WORK_DEFAULT.as_secs())?);
    let only = named_scenario(arguments)?;
    let catches = |bug: &Bug| only.is_none_or(|scenario| bug.is_caught_by(scenario));
    let bugs =
        bug(arguments)?.map_or_else(|| Bug::ALL.into_iter().filter(catches).collect(), |bug| vec![bug]);
    let mut missed = Vec::new();
    for bug in bugs {
        let seeds = (start..start + seeds).collect();
        let scenario = only.unwrap_or(bug.scenario());
        let batch = Batch { scenario, seeds, work, planted: Some(bug), histories: None };
        match batch::first_failure(&batch)? {
            Some(line) => println!("{}: caught by {line}", bug.name()),
            None => missed.push(bug.name()),
        }
    }
    if missed.is_empty() {
        Ok(())
    } else {
        Err(format!("not caught within {seeds} seeds: {}", missed.join(", ")))
    }
}

/// One seed, in this process.
fn one(arguments: &[String]) -> Result<(), String> {
    let seed = arguments.first().and_then(|text| text.parse().ok()).ok_or(USAGE)?;
    let work = Duration::from_secs(option(arguments, "--secs", WORK_DEFAULT.as_secs())?);
    let (scenario, planted) = (scenario(arguments)?, bug(arguments)?);
    let history: String = option(arguments, "--history", String::new())?;
    alone(move || {
        let report = sql::run(Options { scenario, seed, work, planted });
        if !history.is_empty() {
            std::fs::write(&history, &report.history).map_err(|error| format!("{history}: {error}"))?;
        }
        println!("{report}");
        if report.verdict.is_ok() { Ok(()) } else { Err(String::new()) }
    })
}

/// Runs a simulation on a thread of its own, whose randomness nothing has drawn from yet.
fn alone(work: impl FnOnce() -> Result<(), String> + Send + 'static) -> Result<(), String> {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "off".to_owned());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    // SAFETY: it only asks for a signal, whose default is to end the process.
    unsafe { libc::alarm(WALL_SECONDS_MAX) };
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(work);
    let thread = thread.map_err(|error| format!("no thread for the simulation: {error}"))?;
    thread.join().unwrap_or_else(|_| Err("the simulation panicked".to_owned()))
}

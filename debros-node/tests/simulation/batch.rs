//! Many seeds, each in a process of its own, a few at a time; the lines are told in the seeds' order.

use std::collections::BTreeMap;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::planted::Bug;
use crate::sql::Scenario;

/// Seeds that once failed, one a line, so that every later run tries them first: a file per scenario.
const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");
/// Of what a process that failed wrote to standard error.
const ERROR_LINES_TOLD: usize = 12;
/// Finished runs that wait to be told.
const FINISHED_MAX: usize = 64;

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// What the clients ask for.
    pub(crate) scenario: Scenario,
    /// In this order.
    pub(crate) seeds: Vec<u64>,
    /// How long the clients work in each.
    pub(crate) work: Duration,
    /// The bug that was planted.
    pub(crate) planted: Option<Bug>,
    /// Where each seed's history is written.
    pub(crate) histories: Option<PathBuf>,
}

/// How one seed ended.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    /// The seed.
    pub(crate) seed: u64,
    /// Nothing was wrong.
    pub(crate) passed: bool,
    /// What its process said.
    pub(crate) line: String,
}

/// A seed of the corpus and how long its clients work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    /// The seed.
    pub(crate) seed: u64,
    /// How long.
    pub(crate) work: Duration,
}

fn corpus_file(scenario: Scenario) -> String {
    format!("{CORPUS}/{}.txt", scenario.name())
}

/// The recorded seeds.
pub(crate) fn corpus(scenario: Scenario) -> Result<Vec<Recorded>, String> {
    let file = corpus_file(scenario);
    let text = std::fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or("").trim());
    lines
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (seed, seconds) = line.split_once(' ').ok_or_else(|| format!("{file}: {line}"))?;
            let number =
                |text: &str| text.trim().parse::<u64>().map_err(|error| format!("{file}: {line}: {error}"));
            Ok(Recorded { seed: number(seed)?, work: Duration::from_secs(number(seconds)?) })
        })
        .collect()
}

fn record(scenario: Scenario, seed: u64, work: Duration) -> Result<(), String> {
    let (file, recorded) = (corpus_file(scenario), corpus(scenario)?);
    if recorded.contains(&Recorded { seed, work }) {
        return Ok(());
    }
    let mut text = std::fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
    text.push_str(&format!("{seed} {}\n", work.as_secs()));
    std::fs::write(&file, text).map_err(|error| format!("{file}: {error}"))
}

/// Runs all and tells of each; failing seeds join the corpus.
pub(crate) fn all_must_pass(batch: &Batch) -> Result<(), String> {
    let mut failed = Vec::new();
    run(batch, |ended| {
        println!("{}", ended.line);
        if !ended.passed {
            println!("  repeat it with: {}", repeat(ended.seed, batch));
            failed.push(ended.seed);
        }
        true
    })?;
    println!("{} of {} seeds passed", batch.seeds.len() - failed.len(), batch.seeds.len());
    if failed.is_empty() {
        return Ok(());
    }
    if batch.planted.is_none() {
        failed.iter().try_for_each(|seed| record(batch.scenario, *seed, batch.work))?;
    }
    Err(format!("failed: {failed:?}"))
}

/// Runs until one fails, and gives its line.
pub(crate) fn first_failure(batch: &Batch) -> Result<Option<String>, String> {
    let mut found = None;
    run(batch, |ended| {
        if !ended.passed && found.is_none() {
            found = Some(ended.line);
        }
        found.is_none()
    })?;
    Ok(found)
}

fn repeat(seed: u64, batch: &Batch) -> String {
    let planted = batch.planted.map(|bug| format!(" --planted {}", bug.name())).unwrap_or_default();
    let (name, secs) = (batch.scenario.name(), batch.work.as_secs());
    format!("cargo xtask sim {name} --seeds 1 --start {seed} --secs {secs}{planted}")
}

/// Runs the seeds and gives each end, in order, to `tell`, until that says to stop.
pub(crate) fn run(batch: &Batch, mut tell: impl FnMut(Ended) -> bool) -> Result<(), String> {
    let program =
        std::env::current_exe().map_err(|error| format!("this program cannot be found: {error}"))?;
    if let Some(folder) = &batch.histories {
        std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, finished) = mpsc::sync_channel::<(usize, Ended)>(FINISHED_MAX);
    let sender = Mutex::new(sender);
    let processes = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..processes {
            let sender = sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
            let (next, stop, program) = (&next, &stop, &program);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(seed) = batch.seeds.get(place) else { return };
                    if sender.send((place, one(program, *seed, batch))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let (mut early, mut place) = (BTreeMap::new(), 0);
        for (at, ended) in finished {
            early.insert(at, ended);
            while let Some(ended) = early.remove(&place) {
                place += 1;
                if !stop.load(Ordering::Relaxed) && !tell(ended) {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
    });
    Ok(())
}

/// Runs one seed in a process of its own.
pub(crate) fn one(program: &Path, seed: u64, batch: &Batch) -> Ended {
    let mut command = Command::new(program);
    command.args(["one", &seed.to_string(), "--secs", &batch.work.as_secs().to_string()]);
    command.args(["--scenario", batch.scenario.name()]);
    if let Some(bug) = batch.planted {
        command.args(["--planted", bug.name()]);
    }
    if let Some(folder) = &batch.histories {
        command.arg("--history").arg(folder.join(format!("{seed}.txt")));
    }
    // SAFETY: between fork and exec only this one system call is made. It fixes where things lie in
    // memory, for whatever hashes addresses.
    unsafe {
        command.pre_exec(|| {
            libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong);
            Ok(())
        });
    }
    match command.output() {
        Ok(output) => ended(seed, &output),
        Err(error) => Ended { seed, passed: false, line: format!("seed {seed}: no process: {error}") },
    }
}

fn ended(seed: u64, output: &Output) -> Ended {
    let said = String::from_utf8_lossy(&output.stdout);
    let mut line = said.lines().next_back().unwrap_or_default().to_owned();
    if line.is_empty() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let told: Vec<&str> = errors.lines().take(ERROR_LINES_TOLD).collect();
        let how = match output.status.signal() {
            Some(signal) => format!("ended by signal {signal}"),
            None => "gave no verdict".to_owned(),
        };
        line = format!("seed {seed}: FAILED: {how}: {}", told.join("\n    "));
    }
    Ended { seed, passed: output.status.success(), line }
}

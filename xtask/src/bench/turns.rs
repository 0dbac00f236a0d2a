//! One figure of every system, taken in turns. It decides how a figure is put together; it knows neither what the works are
//! nor how a system does them.

use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;

use super::System;
use super::form::Row;
use super::load::{Measurement, Session, drive};

/// Each figure is the sum of so many turns, in which the systems alternate.
const TURNS: u32 = 2;

/// What the clients of a benchmark do over and over.
pub(super) trait Work: Copy + Send + 'static {
    /// The benchmark that it belongs to.
    const BENCH: &'static str;
    /// As results name it.
    fn name(self) -> &'static str;
}

/// A system that does the works of a benchmark.
#[async_trait]
pub(super) trait Does<W: Work>: System {
    /// That many clients, each of which does the work.
    async fn sessions(&mut self, work: W, clients: usize) -> Result<Vec<Box<dyn Session>>>;
}

/// The same work on every system, alternately.
pub(super) async fn in_turns<W: Work, S: Does<W> + ?Sized>(
    systems: &mut [&mut S],
    work: W,
    clients: usize,
    duration: Duration,
) -> Result<Vec<Row>> {
    let mut sums = systems.iter().map(|_| Measurement::empty()).collect::<Result<Vec<_>>>()?;
    for turn in 1..=TURNS {
        for (system, sum) in systems.iter_mut().zip(&mut sums) {
            let name = system.name();
            eprintln!("{}, {clients} clients, turn {turn} of {TURNS}: {name}", work.name());
            let sessions = system.sessions(work, clients).await?;
            let measured = drive(sessions, duration / TURNS, &system.pids()).await;
            sum.add(
                &measured
                    .with_context(|| format!("{} with {clients} clients on {name} failed", work.name()))?,
            )?;
        }
    }
    Ok(systems.iter().zip(&sums).map(|(system, sum)| row(work, system.name(), clients, sum)).collect())
}

fn row<W: Work>(work: W, system: &str, clients: usize, measured: &Measurement) -> Row {
    Row {
        bench: W::BENCH,
        work: work.name(),
        system: system.to_owned(),
        clients,
        ops_per_s: Some(measured.ops_per_s()),
        p50_us: Some(measured.latency_us(0.5)),
        p99_us: Some(measured.latency_us(0.99)),
        cpu_us_per_op: Some(measured.cpu_us_per_op()),
    }
}

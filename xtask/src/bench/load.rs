//! Load on a system: a number of clients, each one operation at a time, for a stated time. It decides what is counted and
//! what is not; it does not know what an operation is.
//!
//! Operations that began in the warm-up are not counted. A failed operation ends the measurement: a figure over failures
//! would mean nothing.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use async_trait::async_trait;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

/// Latencies are kept to three digits.
const LATENCY_DIGITS: u8 = 3;
/// The part of a measurement that is not counted, at its beginning.
const WARM_UP: f64 = 0.15;

/// One client, which does one operation at a time.
#[async_trait]
pub(crate) trait Session: Send {
    /// Does the operation once.
    async fn once(&mut self) -> Result<()>;
}

/// What was measured.
pub(crate) struct Measurement {
    latencies_us: Histogram<u64>,
    seconds: f64,
    cpu_seconds: f64,
}

impl Measurement {
    /// Nothing measured yet.
    pub(crate) fn empty() -> Result<Self> {
        Ok(Self { latencies_us: Histogram::new(LATENCY_DIGITS)?, seconds: 0.0, cpu_seconds: 0.0 })
    }

    /// Adds another measurement of the same thing.
    pub(crate) fn add(&mut self, other: &Self) -> Result<()> {
        self.latencies_us.add(&other.latencies_us)?;
        self.seconds += other.seconds;
        self.cpu_seconds += other.cpu_seconds;
        Ok(())
    }

    /// Operations a second.
    pub(crate) fn ops_per_s(&self) -> f64 {
        self.operations() / self.seconds
    }

    /// CPU time of the servers for one operation.
    pub(crate) fn cpu_us_per_op(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.operations().max(1.0)
    }

    /// The latency below which this part of all operations stayed.
    #[expect(clippy::cast_precision_loss, reason = "microseconds are far below 2^52")]
    pub(crate) fn latency_us(&self, quantile: f64) -> f64 {
        self.latencies_us.value_at_quantile(quantile) as f64
    }

    #[expect(clippy::cast_precision_loss, reason = "a count is far below 2^52")]
    fn operations(&self) -> f64 {
        self.latencies_us.len() as f64
    }
}

/// Lets every session do its operation over and over for `duration`, and takes the servers' CPU time meanwhile.
pub(crate) async fn drive(
    sessions: Vec<Box<dyn Session>>,
    duration: Duration,
    servers: &[u32],
) -> Result<Measurement> {
    let begin = Instant::now() + duration.mul_f64(WARM_UP);
    let end = begin + duration;
    let mut clients = JoinSet::new();
    for session in sessions {
        clients.spawn(client(session, begin, end));
    }
    let (mut cpu_begin, mut cpu_end) = (None, None);
    let mut latencies_us = Histogram::new(LATENCY_DIGITS)?;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(begin.into()), if cpu_begin.is_none() => cpu_begin = Some(cpu_seconds(servers)?),
            () = tokio::time::sleep_until(end.into()), if cpu_end.is_none() => cpu_end = Some(cpu_seconds(servers)?),
            done = clients.join_next() => match done {
                Some(done) => latencies_us.add(done??)?,
                None => break,
            },
        }
    }
    let cpu_begin = cpu_begin.context("the clients ended before anything was measured")?;
    // Timers are coarser than clients: the last of them may be done before the timer of the end.
    let cpu_end = match cpu_end {
        Some(seconds) => seconds,
        None => cpu_seconds(servers)?,
    };
    Ok(Measurement { latencies_us, seconds: duration.as_secs_f64(), cpu_seconds: cpu_end - cpu_begin })
}

async fn client(mut session: Box<dyn Session>, begin: Instant, end: Instant) -> Result<Histogram<u64>> {
    let mut latencies_us = Histogram::new(LATENCY_DIGITS)?;
    loop {
        let start = Instant::now();
        if start >= end {
            return Ok(latencies_us);
        }
        session.once().await?;
        let done = Instant::now();
        // What is still under way at the end belongs to no second that was measured.
        if start >= begin && done <= end {
            latencies_us.record(u64::try_from((done - start).as_micros()).unwrap_or(u64::MAX).max(1))?;
        }
    }
}

/// CPU time that processes have used, in user and in kernel mode.
pub(crate) fn cpu_seconds(pids: &[u32]) -> Result<f64> {
    // SAFETY: sysconf only reads a constant of the system.
    let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let ticks = pids.iter().map(|pid| cpu_ticks(*pid)).sum::<Result<u32>>()?;
    Ok(f64::from(ticks) / f64::from(i32::try_from(ticks_per_second)?))
}

fn cpu_ticks(pid: u32) -> Result<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is gone, or this system has no /proc"))?;
    ticks_of(&stat).with_context(|| format!("cannot read the CPU time of process {pid}"))
}

/// Fields 14 and 15 of `/proc/<pid>/stat` (proc(5)); the second may hold blanks, so count behind its bracket.
fn ticks_of(stat: &str) -> Option<u32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user = fields.next()?.parse::<u32>().ok()?;
    let system = fields.next()?.parse::<u32>().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anyhow::{Result, bail};
    use async_trait::async_trait;

    use super::{Session, cpu_seconds, drive, ticks_of};

    struct Counter(u32);

    #[async_trait]
    impl Session for Counter {
        async fn once(&mut self) -> Result<()> {
            self.0 += 1;
            if self.0 > 1_000_000 {
                bail!("the millionth fails");
            }
            tokio::task::yield_now().await;
            Ok(())
        }
    }

    /// Works without a pause, so that its CPU time is many ticks.
    struct Busy;

    #[async_trait]
    impl Session for Busy {
        async fn once(&mut self) -> Result<()> {
            let sum = (0..2_000_u64).fold(0, |sum, number| std::hint::black_box(sum ^ number));
            std::hint::black_box(sum);
            tokio::task::yield_now().await;
            Ok(())
        }
    }

    #[test]
    fn cpu_time_is_read_behind_a_name_with_blanks_and_brackets() {
        let stat = "7 (a (b) c) S 1 1 1 0 -1 4194304 1 2 3 4 250 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks_of(stat), Some(300));
        assert_eq!(ticks_of("7 (a) S 1"), None);
    }

    #[tokio::test]
    async fn operations_are_counted_with_the_cpu_time_they_took() {
        let sessions: Vec<Box<dyn Session>> = vec![Box::new(Counter(0)), Box::new(Counter(0))];
        let measured = drive(sessions, Duration::from_millis(50), &[std::process::id()]).await.unwrap();
        assert!(measured.ops_per_s() > 0.0);
        assert!(measured.latency_us(0.5) >= 1.0 && measured.latency_us(0.99) >= measured.latency_us(0.5));
        assert!(cpu_seconds(&[std::process::id()]).unwrap() >= 0.0);
    }

    /// One client ends at the very moment the measurement does: its CPU time must be read all the same.
    #[tokio::test]
    async fn the_cpu_time_of_a_single_client_is_not_lost() {
        for _ in 0..5 {
            let sessions: Vec<Box<dyn Session>> = vec![Box::new(Busy)];
            let measured = drive(sessions, Duration::from_millis(200), &[std::process::id()]).await.unwrap();
            assert!(measured.cpu_us_per_op() > 0.0, "a busy process used no CPU time");
        }
    }

    #[tokio::test]
    async fn a_failed_operation_ends_the_measurement() {
        let sessions: Vec<Box<dyn Session>> = vec![Box::new(Counter(1_000_000))];
        let failed = drive(sessions, Duration::from_secs(60), &[]).await.err().unwrap();
        assert_eq!(failed.to_string(), "the millionth fails");
    }
}

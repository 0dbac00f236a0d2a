//! The process under the names that Prometheus's own clients use, read from `/proc` at each scrape.
//! Where there is no `/proc`, which is everywhere but on Linux, there are no such metrics.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

#[derive(Debug)]
pub(super) struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: Option<i64>| {
            let Some(value) = value else { return Ok(()) };
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)
        };
        gauge("process_resident_memory_bytes", "Memory of the process in RAM", resident_bytes())?;
        gauge("process_open_fds", "Open file descriptors", open_descriptors())?;
        let times = Times::read();
        let started = times.as_ref().and_then(|times| Some(boot_unix_seconds()? + times.started as i64));
        gauge("process_start_time_seconds", "When the process started, in Unix time", started)?;
        if let Some(times) = times {
            let counter = ConstCounter::new(times.cpu);
            let help = "Processor time, user and system";
            let metric =
                encoder.encode_descriptor("process_cpu_seconds", help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}

fn resident_bytes() -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = kibibytes.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

fn open_descriptors() -> Option<i64> {
    // One of them is open only to read the folder.
    i64::try_from(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1)).ok()
}

fn boot_unix_seconds() -> Option<i64> {
    let system = fs::read_to_string("/proc/stat").ok()?;
    system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// Times of the process, in seconds.
struct Times {
    cpu: f64,
    /// After the machine has booted.
    started: f64,
}

impl Times {
    fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?, ticks_per_second()?)
    }

    /// Reads proc_pid_stat(5): fields 14, 15 and 22, counted from 1.
    fn parse(stat: &str, ticks_per_second: f64) -> Option<Self> {
        // The program's name, field 2, may contain blanks and parentheses.
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let seconds =
            |field: usize| Some(fields.get(field - 3)?.parse::<u64>().ok()? as f64 / ticks_per_second);
        Some(Self { cpu: seconds(14)? + seconds(15)?, started: seconds(22)? })
    }
}

fn ticks_per_second() -> Option<f64> {
    // SAFETY: asks for a constant of the system; touches no memory of ours.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    (ticks > 0).then_some(ticks as f64)
}

#[cfg(test)]
mod tests {
    use super::Times;

    #[test]
    fn a_program_with_any_name_has_its_times() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 5 6 20 0 9 0 12345 1 2 3";
        let times = Times::parse(stat, 100.0).unwrap();
        assert_eq!((times.cpu, times.started), (2.0, 123.45));
        assert!(Times::parse("7 (a) S 1", 100.0).is_none());
    }
}

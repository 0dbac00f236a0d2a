//! Processes that outlive the command that started them: who they are, whether they still run, and their end. It does not know what they do.
//!
//! Invariant: a process is known by its pid *and* the time at which it started, so one that merely got a dead one's pid is never touched.

use std::fs;
use std::time::Duration;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::wait;

/// A killed process is gone as soon as the kernel has taken down what it held.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// A process that was started here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Clock ticks from the machine's start to the process'.
    started: u64,
}

impl Process {
    /// The process that has this pid now.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let Some(stat) = stat(pid) else { bail!("no process {pid}: it ended at once") };
        Ok(Self { pid, started: stat.started })
    }

    /// True while it runs; one that has ended and was not waited for runs no more.
    pub(crate) fn runs(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.started == self.started && !stat.ended)
    }

    /// SIGKILL; returns when it is gone.
    pub(crate) fn kill(&self) -> Result<()> {
        if self.runs() {
            // SAFETY: kill reads no memory of ours; the process is the one that was recorded, by its start.
            unsafe { libc::kill(self.pid.cast_signed(), libc::SIGKILL) };
        }
        wait::until(&format!("the end of process {}", self.pid), GONE_WITHIN, || Ok(!self.runs()))
    }
}

struct Stat {
    ended: bool,
    started: u64,
}

/// What `/proc/PID/stat` says (proc(5)): the third field is the state, the 22nd the start.
fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold anything.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some(Stat { ended: matches!(state, "Z" | "X"), started })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::Process;

    #[test]
    fn a_process_is_known_until_it_ends_and_its_pid_alone_is_not_enough() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        assert!(process.runs());
        let other = Process { started: process.started + 1, ..process.clone() };
        assert!(!other.runs());
        other.kill().unwrap();
        assert!(process.runs(), "another process of that pid was killed");
        process.kill().unwrap();
        assert!(!process.runs());
        child.wait().unwrap();
        assert!(Process::of(child.id()).is_err());
    }
}

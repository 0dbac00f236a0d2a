//! A server program as a child process: its command line, its log, and how it starts and ends. It does not know
//! what the program serves.
//!
//! Invariants: only processes started here are ever signalled; none outlives its [`Server`].

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// A graceful stop has its own deadline inside the program, which is shorter.
const STOPPED_WITHIN: Duration = Duration::from_secs(20);
/// Lines of a log that an error shows.
const LOG_LINES_SHOWN: usize = 15;

/// A program that serves, running or not.
pub(crate) struct Server {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    log_file: PathBuf,
    child: Option<Child>,
}

impl Server {
    /// Describes a server; starts nothing. What it prints is appended to `log_file`.
    pub(crate) fn new(name: String, program: PathBuf, arguments: Vec<OsString>, log_file: PathBuf) -> Self {
        Self { name, program, arguments, log_file, child: None }
    }

    /// What people call it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The process id while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Starts the process; it may not be ready yet.
    pub(crate) fn start(&mut self) -> Result<()> {
        let log = fs::File::options().create(true).append(true).open(&self.log_file)?;
        let mut command = Command::new(&self.program);
        ends_with_this_program(&mut command);
        let child = command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for this program, which then stops its servers in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// How the process ended, if it did by itself.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// The end of its log, for an error message.
    pub(crate) fn log_end(&self) -> String {
        let log = fs::read_to_string(&self.log_file).unwrap_or_default();
        let lines = log.lines().collect::<Vec<_>>();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        format!("the end of {}:\n  {}", self.log_file.display(), shown.join("\n  "))
    }

    /// SIGKILL, with no chance to tidy up; returns when the process is gone.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { bail!("{} does not run", self.name) };
        child.kill().await.with_context(|| format!("cannot kill {}", self.name))
    }

    /// Asks the process to end (SIGTERM); [`Server::stopped`] waits for it.
    pub(crate) fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Sends a signal, if the process runs.
    pub(crate) fn signal(&self, signal: i32) {
        if let Some(pid) = self.pid() {
            // SAFETY: the pid is that of a child which has not been waited for, so it cannot be anyone else's.
            unsafe { libc::kill(pid.cast_signed(), signal) };
        }
    }

    /// Waits until the process has ended; kills it when it takes too long.
    pub(crate) async fn stopped(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        if timeout(STOPPED_WITHIN, child.wait()).await.is_err() {
            let name = &self.name;
            eprintln!("{name} did not stop within {STOPPED_WITHIN:?}, so it is killed; {}", self.log_end());
            child.kill().await?;
        }
        Ok(())
    }
}

/// Has the system kill the child when this program dies without being able to: no server is left behind.
#[cfg(target_os = "linux")]
fn ends_with_this_program(command: &mut Command) {
    let die_with_parent = || {
        // SAFETY: prctl is a plain system call, which is allowed between fork and exec, and reads no memory of ours.
        match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure only makes a system call: it takes no lock and allocates nothing.
    unsafe { command.pre_exec(die_with_parent) };
}

/// Elsewhere a server goes when its [`Server`] is dropped, which a killed program does not do.
#[cfg(not(target_os = "linux"))]
fn ends_with_this_program(_: &mut Command) {}

#[cfg(test)]
mod tests {
    use super::Server;

    fn server(folder: &std::path::Path, script: &str) -> Server {
        let arguments = vec!["-c".into(), script.into()];
        Server::new("the test".into(), "sh".into(), arguments, folder.join("log"))
    }

    #[tokio::test]
    async fn a_server_that_runs_can_be_killed_and_one_that_does_not_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut server = server(folder.path(), "exec tail -f /dev/null");
        server.start().unwrap();
        assert!(server.pid().is_some());
        assert!(server.ended().is_none());
        server.kill().await.unwrap();
        assert_eq!(server.pid(), None);
        assert_eq!(server.kill().await.unwrap_err().to_string(), "the test does not run");
    }

    #[tokio::test]
    async fn a_server_that_is_asked_to_stop_ends_and_its_log_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut server = server(folder.path(), "echo ready; exec tail -f /dev/null");
        server.start().unwrap();
        server.terminate();
        server.stopped().await.unwrap();
        assert_eq!(server.pid(), None);
        server.start().unwrap();
        while !server.log_end().contains("ready") {
            tokio::task::yield_now().await;
        }
        server.kill().await.unwrap();
    }
}

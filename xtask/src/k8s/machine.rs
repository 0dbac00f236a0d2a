//! A machine of a cluster: one process that is the first of namespaces of its own (network, mounts, processes, name), and the programs that
//! it starts and starts again when they end, as an init does. It does not know what the programs are.
//!
//! Two processes make one machine. The outer one is started by `cargo xtask k8s up`, makes the namespaces and lives in them; the inner one is the
//! first of the process namespace, so everything on the machine, a container's processes included, dies with it, and its mounts and
//! interfaces with them. The inner one is killed when the outer one dies. Nothing on the machine can outlive these two, which is why
//! `down` needs no more than their pids. A machine without namespaces is only the outer process, on this host's loopback.
//!
//! Programs start when the first line comes in on standard input: until then the network can be laid.

mod inside;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::process::Process;
pub(crate) use inside::{first, outer};

/// The hidden subcommands that are the two processes of a machine.
const OUTER: &str = "machine";
const FIRST: &str = "machine-first";
/// What the outer process says when the inner one is there; its pid follows.
const MADE: &str = "made ";
/// Behind standard input, output and errors.
const FIRST_INHERITED: libc::c_uint = 3;
/// What is said to the inner process.
const GO: &str = "go\n";

/// A program of a machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ProgramSpec {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<String>,
}

/// A folder of the machine's own that stands in place of one of this host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// A folder of this host; `None` is one in memory.
    pub(crate) from: Option<PathBuf>,
    pub(crate) at: PathBuf,
}

/// The namespaces of a machine, and where in this host's tree it stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Isolation {
    pub(crate) mounts: Vec<Mount>,
    /// Files to which a process writes its pid to be in the machine's control groups.
    pub(crate) cgroup_procs: Vec<PathBuf>,
}

/// A machine as it should be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) name: String,
    /// Logs of its programs.
    pub(crate) logs: PathBuf,
    /// `None`: on this host's loopback.
    pub(crate) isolation: Option<Isolation>,
    pub(crate) programs: Vec<ProgramSpec>,
}

/// A machine that was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) logs: PathBuf,
    outer: Process,
    /// The first process of the machine's process namespace, where it has one.
    inner: Option<Process>,
}

/// A machine whose programs do not run yet.
pub(crate) struct Prepared {
    pub(crate) machine: Machine,
    go: ChildStdin,
}

/// The program that runs, also when a build has put another one in its place.
fn this_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("xtask");
    command
}

impl Machine {
    /// Makes its namespaces. Its programs are started by [`Prepared::go`].
    pub(crate) fn prepare(spec: &Spec, folder: &Path) -> Result<Prepared> {
        fs::create_dir_all(&spec.logs).with_context(|| format!("cannot create {}", spec.logs.display()))?;
        let file = folder.join(format!("{}.json", spec.name));
        fs::write(&file, serde_json::to_vec_pretty(spec)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        let log_file = spec.logs.join("machine.log");
        let log = fs::File::options().create(true).append(true).open(&log_file)?;
        let mut command = this_program();
        command.args(["k8s", OUTER]).arg(&file).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        in_its_own_session(&mut command);
        let mut child = command.spawn().with_context(|| format!("cannot start machine {}", spec.name))?;
        let (Some(go), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("machine {} has no pipes", spec.name);
        };
        let mut answer = String::new();
        BufReader::new(answers).read_line(&mut answer)?;
        let Some(inner) = answer.trim_end().strip_prefix(MADE) else {
            let log = fs::read_to_string(&log_file).unwrap_or_default();
            bail!(
                "machine {} was not made: {}",
                spec.name,
                log.lines().next_back().unwrap_or("it said nothing")
            );
        };
        let outer = Process::of(child.id())?;
        let inner = inner.parse::<u32>().ok().map(Process::of).transpose()?;
        let machine = Machine { name: spec.name.clone(), logs: spec.logs.clone(), outer, inner };
        Ok(Prepared { machine, go })
    }

    /// True while it is there.
    pub(crate) fn runs(&self) -> bool {
        self.outer.runs()
    }

    /// Ends it, with all that runs on it.
    pub(crate) fn kill(&self) -> Result<()> {
        self.outer.kill()?;
        self.inner.as_ref().map_or(Ok(()), Process::kill)
    }

    /// A process that is in all its namespaces, for `nsenter --target`.
    pub(crate) fn pid(&self) -> u32 {
        self.inner.as_ref().unwrap_or(&self.outer).pid
    }

    /// The last lines of a program's log.
    pub(crate) fn log_end(&self, program: &str, lines: usize) -> String {
        let file = self.logs.join(format!("{program}.log"));
        let text = fs::read_to_string(&file).unwrap_or_default();
        let all = text.lines().collect::<Vec<_>>();
        let shown = &all[all.len().saturating_sub(lines)..];
        format!("the end of {}:\n  {}", file.display(), shown.join("\n  "))
    }
}

impl Prepared {
    /// Starts the programs.
    pub(crate) fn go(mut self) -> Result<Machine> {
        let name = &self.machine.name;
        self.go.write_all(GO.as_bytes()).with_context(|| format!("machine {name} has ended"))?;
        Ok(self.machine)
    }
}

/// Ctrl-C and the end of the terminal are not for it, and what whoever called `up` had open is not its to hold: a lock that was held while `up` ran would
/// be held for as long as the cluster runs.
fn in_its_own_session(command: &mut Command) {
    let new_session = || {
        // SAFETY: close_range is a plain system call, which is allowed between fork and exec; nothing is closed before exec. Linux before 5.11 knows
        // no such flag, and then inherited files merely stay open.
        unsafe {
            libc::close_range(FIRST_INHERITED, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed())
        };
        // SAFETY: setsid is a plain system call, too.
        match unsafe { libc::setsid() } {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: the closure only makes system calls: it takes no lock and allocates nothing.
    unsafe { command.pre_exec(new_session) };
}

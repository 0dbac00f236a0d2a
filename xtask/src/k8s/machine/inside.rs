//! The two processes of a machine, from the inside: what each does until the machine ends.
//!
//! The first process reaps whatever ends on the machine, as an init must, and starts a program of its own that ended again after a pause.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::io::{BufRead as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::ptr;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{FIRST, GO, Isolation, MADE, Mount, ProgramSpec, Spec};
use crate::k8s::wait::pause;

/// Programs that end at once are not started more often than this.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Where programs look for other programs; what the user has on the PATH is not theirs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The outer process: makes the namespaces, starts the inner process, and ends when that does.
pub(crate) fn outer(file: &Path) -> Result<()> {
    let spec = read(file)?;
    let Some(isolation) = &spec.isolation else {
        say("no process namespace")?;
        return supervise(&spec);
    };
    for procs in &isolation.cgroup_procs {
        fs::write(procs, "0").with_context(|| format!("cannot enter {}", procs.display()))?;
    }
    unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWPID)?;
    // Mounts of the machine do not reach this host; among each other its own ones propagate, as kubelet expects.
    mount(None, Path::new("/"), None, libc::MS_REC | libc::MS_PRIVATE)?;
    mount(None, Path::new("/"), None, libc::MS_REC | libc::MS_SHARED)?;
    let Isolation { mounts, cgroup_procs: _ } = isolation;
    for one in mounts {
        mounted(one)?;
    }
    let mut command = super::this_program();
    command.args(["k8s", FIRST]).arg(file).stdin(Stdio::inherit()).stdout(Stdio::null());
    dies_with_its_parent(&mut command);
    let mut child = command.spawn().context("cannot start the first process")?;
    say(&child.id().to_string())?;
    let status = child.wait()?;
    bail!("the first process of {} ended with {status}", spec.name)
}

/// The inner process, the first of its process namespace.
pub(crate) fn first(file: &Path) -> Result<()> {
    let spec = read(file)?;
    let proc_file_system = CString::new("proc")?;
    mount(Some(&proc_file_system), Path::new("/proc"), Some(&proc_file_system), 0)?;
    set_name(&spec.name)?;
    supervise(&spec)
}

fn read(file: &Path) -> Result<Spec> {
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no machine", file.display()))
}

/// Tells who prepared the machine that it is made.
fn say(inner: &str) -> Result<()> {
    let mut output = std::io::stdout();
    writeln!(output, "{MADE}{inner}")?;
    Ok(output.flush()?)
}

/// Starts the programs on the word to go, and keeps them running.
fn supervise(spec: &Spec) -> Result<()> {
    let mut word = String::new();
    std::io::stdin().lock().read_line(&mut word)?;
    if word != GO {
        bail!("{} was given up before its programs were started", spec.name);
    }
    let mut running = HashMap::new();
    for program in &spec.programs {
        running.insert(start(program, spec)?, program);
    }
    loop {
        let (pid, status) = reap()?;
        let Some(program) = running.remove(&pid) else { continue };
        eprintln!("{} ended ({}), it is started again", program.name, ending(status));
        pause(AGAIN_AFTER);
        running.insert(start(program, spec)?, program);
    }
}

fn start(program: &ProgramSpec, spec: &Spec) -> Result<u32> {
    let log = spec.logs.join(format!("{}.log", program.name));
    let log = fs::File::options().create(true).append(true).open(log)?;
    let mut command = Command::new(&program.path);
    command.args(&program.arguments).env_clear().env("PATH", PATH).env("HOME", "/");
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
    dies_with_its_parent(&mut command);
    let child = command.spawn().with_context(|| format!("cannot start {}", program.path.display()))?;
    // Not waited for as a child: `reap` waits for whatever ends.
    Ok(child.id())
}

/// The next process that ended, of our own or left to us.
fn reap() -> Result<(u32, i32)> {
    let mut status = 0;
    loop {
        // SAFETY: waitpid writes into the given integer, which lives until it returns.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, 0) };
        if pid > 0 {
            return Ok((pid.cast_unsigned(), status));
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error).context("nothing runs on this machine any more");
        }
    }
}

fn ending(status: i32) -> String {
    if libc::WIFSIGNALED(status) {
        return format!("signal {}", libc::WTERMSIG(status));
    }
    format!("exit code {}", libc::WEXITSTATUS(status))
}

fn unshare(flags: libc::c_int) -> Result<()> {
    // SAFETY: unshare takes flags and reads no memory of ours; this process has one thread.
    if unsafe { libc::unshare(flags) } != 0 {
        return Err(std::io::Error::last_os_error()).context("cannot make namespaces");
    }
    Ok(())
}

/// The machine's own folder in place of this host's.
fn mounted(one: &Mount) -> Result<()> {
    let Some(from) = &one.from else {
        let memory = CString::new("tmpfs")?;
        return mount(Some(&memory), &one.at, Some(&memory), 0);
    };
    mount(Some(&CString::new(from.as_os_str().as_bytes())?), &one.at, None, libc::MS_BIND)?;
    // A bind mount of a shared tree is shared with what it came from, which is this machine's own.
    mount(None, &one.at, None, libc::MS_SHARED)
}

fn mount(from: Option<&CString>, at: &Path, kind: Option<&CString>, flags: libc::c_ulong) -> Result<()> {
    let target = CString::new(at.as_os_str().as_bytes())?;
    let or_null = |text: Option<&CString>| text.map_or(ptr::null(), |text| text.as_ptr());
    // SAFETY: every pointer is null or a string that ends with a zero and lives until mount returns.
    let outcome = unsafe { libc::mount(or_null(from), target.as_ptr(), or_null(kind), flags, ptr::null()) };
    if outcome != 0 {
        return Err(std::io::Error::last_os_error())
            .with_context(|| format!("cannot mount {}", at.display()));
    }
    Ok(())
}

fn set_name(name: &str) -> Result<()> {
    // SAFETY: sethostname reads so many bytes of the name, which lives until it returns.
    if unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) } != 0 {
        return Err(std::io::Error::last_os_error()).context("cannot name the machine");
    }
    Ok(())
}

/// No program outlives its machine, whatever ends that.
fn dies_with_its_parent(command: &mut Command) {
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

//! Programs as child processes: started, watched, asked to stop and killed. None outlives its test.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

const NODE: &str = env!("CARGO_BIN_EXE_debros-node");
/// No command takes as long.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

/// The folder of the workspace.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace").to_owned()
}

/// A command without anything of the environment that the programs read.
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("DEBROS_") || text.starts_with("OTEL_") || name == "LOG_LEVEL" {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn output(mut command: Command) -> (Option<i32>, String, String) {
    let output = timeout(COMMAND_TIMEOUT, command.output()).await;
    let output = output.expect("the command ends in time").expect("the command starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Runs `debros-node` to its end: exit code, standard output, standard error.
pub(crate) async fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = command(Path::new(NODE));
    command.args(arguments);
    output(command).await
}

/// Runs `debros-node` to its end with a variable of the environment set.
pub(crate) async fn run_with(
    (name, value): (&str, &str),
    arguments: &[&str],
) -> (Option<i32>, String, String) {
    let mut command = command(Path::new(NODE));
    command.env(name, value).args(arguments);
    output(command).await
}

/// Runs `debros` to its end. It is of another package: `cargo test --workspace` has built it, and
/// alone this test builds it.
pub(crate) async fn debros(arguments: &[&str]) -> (Option<i32>, String, String) {
    let program = Path::new(NODE).with_file_name("debros");
    if !program.is_file() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--package", "debros-cli"]).current_dir(workspace());
        assert!(build.status().await.expect("cargo starts").success(), "debros cannot be built");
    }
    let mut command = command(&program);
    command.args(arguments);
    output(command).await
}

/// A node that runs.
pub(crate) struct Node {
    child: Child,
    log: PathBuf,
}

impl Node {
    /// Starts a node in a folder; what it says goes to `<name>.log` there.
    pub(crate) fn start(folder: &Path, name: &str, arguments: &[&str]) -> Self {
        let mut command = command(Path::new(NODE));
        command.args(arguments);
        Self::spawn(folder, name, command)
    }

    /// The same with a variable of the environment set.
    pub(crate) fn start_with(
        (variable, value): (&str, &str),
        folder: &Path,
        name: &str,
        arguments: &[&str],
    ) -> Self {
        let mut command = command(Path::new(NODE));
        command.env(variable, value).args(arguments);
        Self::spawn(folder, name, command)
    }

    /// The same with a file system of its own of so many bytes at `disk`, which nobody else sees.
    pub(crate) fn start_on_small_disk(
        folder: &Path,
        name: &str,
        disk: &Path,
        bytes: &str,
        arguments: &[&str],
    ) -> Self {
        let mount = format!("mount -t tmpfs -o size={bytes} tmpfs \"$0\" && exec \"$@\"");
        let mut command = command(Path::new("unshare"));
        command.args(["--map-root-user", "--mount", "sh", "-c", &mount]).arg(disk).arg(NODE).args(arguments);
        Self::spawn(folder, name, command)
    }

    fn spawn(folder: &Path, name: &str, mut command: Command) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = std::fs::File::create(&log).expect("a log file");
        command.current_dir(folder).stdout(file.try_clone().expect("a handle")).stderr(file);
        Self { child: command.spawn().expect("the node starts"), log }
    }

    /// What it has said.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it has said this.
    pub(crate) fn said(&self, words: &str) -> bool {
        self.log().contains(words)
    }

    /// A path as the node sees it, from here.
    pub(crate) fn seen_from_outside(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.pid()));
        root.join(path.strip_prefix("/").expect("an absolute path"))
    }

    fn pid(&self) -> i32 {
        self.child.id().expect("the node runs").cast_signed()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: the pid is that of a child which has not been waited for, so it is nobody else's.
        unsafe { libc::kill(self.pid(), signal) };
    }

    /// SIGKILL; returns when the process is gone.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("the process can be killed");
    }

    /// SIGTERM; gives the exit code.
    pub(crate) async fn terminate(mut self, deadline: Duration) -> Option<i32> {
        self.signal(libc::SIGTERM);
        let ended = timeout(deadline, self.child.wait()).await;
        ended.unwrap_or_else(|_| panic!("did not stop in time: {}", self.log())).expect("a status").code()
    }
}

/// Waits until the node's own probe says that it is ready.
pub(crate) async fn ready(node: &mut Node, admin: u16, deadline: Duration) {
    let started = Instant::now();
    loop {
        if let Some(status) = node.child.try_wait().expect("the process can be watched") {
            panic!("the node ended with {status}: {}", node.log());
        }
        if get(admin, "/readyz").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            return;
        }
        assert!(started.elapsed() < deadline, "not ready in time: {}", node.log());
        tokio::time::sleep(Duration::from_millis(50)).await; // poll: whether the process is ready
    }
}

/// GET on loopback: head and body of the answer.
pub(crate) async fn get(port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

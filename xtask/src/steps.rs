//! Running other programs as named, timed steps. A step's output goes straight to the terminal, so
//! that what cargo says is seen as cargo says it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The folder of the workspace.
pub(crate) fn workspace_root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The folder that cargo builds into; honours `CARGO_TARGET_DIR`.
pub(crate) fn target_folder() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => workspace_root().join(folder),
        None => workspace_root().join("target"),
    }
}

/// What cargo tells a program that it runs about itself. Build scripts that look at these would take a cargo called from
/// here for a change, and build what is built again.
const TOLD_BY_CARGO: [&str; 3] = ["CARGO_PKG_", "CARGO_MANIFEST_", "OUT_DIR"];

/// The cargo that runs this command, working in the workspace as one called from a shell.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(workspace_root());
    let told = |name: &str| TOLD_BY_CARGO.iter().any(|prefix| name.starts_with(prefix));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(told)) {
        command.env_remove(name);
    }
    command
}

/// Announces a step, does it and says how long it took.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("\n==> {name}");
    let start = Instant::now();
    let outcome = work().with_context(|| format!("step `{name}` failed"))?;
    eprintln!("<== {name}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(outcome)
}

/// Runs a program to its end; an exit code other than 0 is an error that names the command line.
pub(crate) fn run(mut command: Command) -> Result<()> {
    let line = command_line(&command);
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` ended with {status}; what it printed above says why");
    }
    Ok(())
}

/// The command as a person would type it.
fn command_line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut line = program.file_name().unwrap_or(command.get_program()).to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::run;

    #[test]
    fn a_failing_program_is_named_with_its_arguments() {
        let mut command = Command::new("false");
        command.arg("--loudly");
        let error = run(command).unwrap_err().to_string();
        assert!(error.contains("`false --loudly` ended with"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(Command::new("no-such-program-here")).unwrap_err().to_string();
        assert!(error.contains("cannot start `no-such-program-here`"), "{error}");
    }
}

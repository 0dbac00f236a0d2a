//! What is asked of `kubectl`: the cluster's pods and its secret.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Why it was not done.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A program cannot be started.
    Start {
        /// Which.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// kubectl said no.
    Refused(String),
    /// The secret cannot be read or kept.
    Secret(String),
    /// No pod could be reached.
    NoPod,
}

impl Failure {
    pub(crate) fn kubectl(source: io::Error) -> Self {
        Self::Start { program: "kubectl".into(), source }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Start { program, source } => {
                write!(f, "cannot start `{}`: {source}; is it on the PATH?", program.display())
            }
            Self::Refused(said) => f.write_str(said),
            Self::Secret(why) => write!(f, "the cluster secret cannot be used: {why}"),
            Self::NoPod => f.write_str(
                "no pod of the cluster runs; `kubectl get dbc` says what is wrong, and what to do",
            ),
        }
    }
}

/// kubectl, for one namespace.
pub(crate) struct Kubectl {
    options: Vec<String>,
}

/// What selects the pods of a cluster.
pub(crate) fn selector(cluster: &str) -> String {
    format!("app.kubernetes.io/name=debros,app.kubernetes.io/instance={cluster}")
}

impl Kubectl {
    /// For this namespace and context, or those that the kubeconfig names.
    pub(crate) fn new(namespace: Option<String>, context: Option<String>) -> Self {
        let option = |name: &str, value: Option<String>| value.map(|value| format!("--{name}={value}"));
        let options = [option("namespace", namespace), option("context", context)];
        Self { options: options.into_iter().flatten().collect() }
    }

    /// kubectl with these arguments.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.args(arguments).args(&self.options);
        command
    }

    /// Runs it for the user to see.
    pub(crate) fn show(&self, arguments: &[&str]) -> Result<(), Failure> {
        let status = self.command(arguments).status().map_err(Failure::kubectl)?;
        if status.success() {
            Ok(())
        } else {
            Err(Failure::Refused("kubectl failed, as it says above".to_owned()))
        }
    }

    /// Runs it and gives what it prints.
    fn read(&self, arguments: &[&str]) -> Result<String, Failure> {
        let output = self.command(arguments).stdin(Stdio::null()).output().map_err(Failure::kubectl)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::Refused(said.trim().trim_start_matches("error: ").to_owned()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The cluster's pods that run, as `pod/NAME`.
    pub(crate) fn pods(&self, cluster: &str) -> Result<Vec<String>, Failure> {
        let selector = selector(cluster);
        let running = "--field-selector=status.phase=Running";
        let pods = self.read(&["get", "pods", "--selector", &selector, running, "--output=name"])?;
        Ok(pods.lines().map(str::to_owned).collect())
    }

    /// The cluster secret; `None` where there is none.
    pub(crate) fn secret(&self, cluster: &str) -> Result<Option<SecretFile>, Failure> {
        let fields = "jsonpath={.spec.admission.mode}/{.spec.admission.secretName}";
        let admission = self.read(&["get", "debrosclusters.debros.network", cluster, "--output", fields])?;
        let (mode, name) = admission.split_once('/').unwrap_or((&admission, ""));
        if mode == "Open" {
            return Ok(None);
        }
        let name = if name.is_empty() { format!("{cluster}-cluster-secret") } else { name.to_owned() };
        let encoded = self.read(&["get", "secret", &name, "--output=jsonpath={.data.secret}"])?;
        let bytes = STANDARD.decode(&encoded).map_err(|error| Failure::Secret(error.to_string()))?;
        if bytes.is_empty() {
            return Err(Failure::Secret(format!("the Secret {name} has no key `secret`")));
        }
        SecretFile::write(&bytes).map(Some).map_err(|error| Failure::Secret(error.to_string()))
    }
}

/// The secret where only this user reads it, as long as this lives.
pub(crate) struct SecretFile {
    folder: PathBuf,
    path: PathBuf,
}

impl SecretFile {
    fn write(bytes: &[u8]) -> io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("kubectl-debros-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        let path = folder.join("secret");
        let file = Self { folder, path };
        let mut written = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file.path)?;
        io::Write::write_all(&mut written, bytes)?;
        Ok(file)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::SecretFile;

    #[test]
    fn the_secret_is_gone_when_nobody_needs_it() {
        let file = SecretFile::write(b"a secret").expect("it is written");
        let path = file.path().to_owned();
        assert_eq!(std::fs::read(&path).expect("it is there"), b"a secret");
        drop(file);
        assert!(!path.exists());
    }
}

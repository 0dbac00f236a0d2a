//! What runs in a cluster before anything else does: DNS and dynamic volumes. The objects are data in `xtask/k8s/addons.yaml`.

use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use super::access::Access;
use super::layout::{DNS_ADDRESS, DOMAIN};
use super::{images, node};
use crate::steps::run;

const OBJECTS: &str = include_str!("../../k8s/addons.yaml");
/// They are ready in 15 s on two cores; this is for a machine at its limit.
const READY_WITHIN: &str = "--timeout=120s";
/// Namespace and name of what must be ready.
const DEPLOYMENTS: &[(&str, &str)] =
    &[("kube-system", "coredns"), ("local-path-storage", "local-path-provisioner")];

/// Applies the objects; returns before they are ready.
pub(crate) fn apply(access: &Access, nodes: u8) -> Result<()> {
    let mut command = access.kubectl()?;
    command.args(["apply", "--server-side", "--filename=-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let mut input = child.stdin.take().context("kubectl has no input")?;
    input.write_all(objects(nodes).as_bytes())?;
    drop(input);
    let status = child.wait()?;
    if !status.success() {
        bail!("`kubectl apply` of DNS and volumes ended with {status}; what it printed above says why");
    }
    Ok(())
}

/// Waits until they are.
pub(crate) fn ready(access: &Access) -> Result<()> {
    for (namespace, name) in DEPLOYMENTS {
        let mut command = access.kubectl()?;
        command.args(["rollout", "status", READY_WITHIN, "--namespace", namespace]);
        command.arg(format!("deployment/{name}"));
        run(command)?;
    }
    Ok(())
}

fn objects(nodes: u8) -> String {
    let values = [
        ("@DOMAIN@", DOMAIN.to_owned()),
        ("@DNS_REPLICAS@", nodes.saturating_sub(1).max(1).to_string()),
        ("@DNS_ADDRESS@", DNS_ADDRESS.to_string()),
        ("@DNS_IMAGE@", images::DNS.to_owned()),
        ("@VOLUMES_IMAGE@", images::VOLUMES.to_owned()),
        ("@SHELL_IMAGE@", images::SHELL.to_owned()),
        ("@VOLUMES_FOLDER@", node::VOLUMES.to_owned()),
    ];
    values.iter().fold(OBJECTS.to_owned(), |text, (word, value)| text.replace(word, value))
}

#[cfg(test)]
mod tests {
    use super::objects;

    #[test]
    fn every_word_is_put_in() {
        let text = objects(3);
        let left =
            text.lines().filter(|line| line.contains('@') && !line.starts_with('#')).collect::<Vec<_>>();
        assert!(left.is_empty(), "{left:?}");
        assert!(text.contains("replicas: 2\n"));
        assert!(objects(1).contains("replicas: 1\n"));
    }
}

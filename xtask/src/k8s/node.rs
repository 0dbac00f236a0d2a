//! A node: containerd, kubelet and kube-proxy on a machine of its own, with their configuration. The machine has this host's files, and in place of the
//! folders that these programs write to, folders of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::certificates::AUTHORITY;
use super::images::PAUSE;
use super::layout::{DNS_ADDRESS, DOMAIN, Layout, NodeNumber, REGION, node_folder};
use super::machine::{Isolation, Machine, Mount, ProgramSpec, Spec};
use super::namespaces::{Inside, within};
use super::tools::{Program, Tools};
use super::{cgroups, packages, wait};

/// The folders of this host that each node has of its own, and what they are called in the node's folder. `/run` is in memory.
pub(crate) const OWN_FOLDERS: &[(&str, &str)] = &[
    ("/var/lib/containerd", "containerd"),
    ("/var/lib/kubelet", "kubelet"),
    ("/var/lib/cni", "cni"),
    ("/var/log/pods", "pod-logs"),
    ("/var/log/containers", "container-logs"),
    (VOLUMES, "volumes"),
];
const RUN: &str = "/run";
/// Where volumes are on a node.
pub(crate) const VOLUMES: &str = "/var/lib/debros-volumes";
const CONTAINERD_READY_WITHIN: Duration = Duration::from_secs(30);
const LOG_LINES_SHOWN: usize = 15;
/// The files of a node's configuration.
const CONTAINERD_FILE: &str = "containerd.toml";
const KUBELET_FILE: &str = "kubelet.json";
const PROXY_FILE: &str = "proxy.json";
const RESOLV_FILE: &str = "resolv.conf";
const NETWORK_FOLDER: &str = "network";

/// The folders that must be there to mount at.
pub(crate) fn mount_points() -> impl Iterator<Item = &'static str> {
    OWN_FOLDERS.iter().map(|(at, _)| *at)
}

/// The folders of this host that a node does not see.
pub(crate) fn hidden() -> Vec<&'static str> {
    mount_points().chain([RUN]).collect()
}

/// Writes a node's files and says what its machine is.
pub(crate) fn spec(layout: &Layout, tools: &Tools, node: NodeNumber, groups: &[PathBuf]) -> Result<Spec> {
    let folder = node_folder(layout, node);
    let mut mounts = vec![Mount { from: None, at: RUN.into() }];
    for (at, name) in OWN_FOLDERS {
        let from = folder.join(name);
        fs::create_dir_all(&from).with_context(|| format!("cannot create {}", from.display()))?;
        mounts.push(Mount { from: Some(from), at: at.into() });
    }
    write_configuration(layout, node, &folder)?;
    let isolation = Isolation { mounts, cgroup_procs: cgroups::procs(groups) };
    Ok(Spec {
        name: node.name(),
        logs: layout.logs(&node.name()),
        isolation: Some(isolation),
        programs: programs(layout, tools, node, &folder)?,
    })
}

fn programs(layout: &Layout, tools: &Tools, node: NodeNumber, folder: &Path) -> Result<Vec<ProgramSpec>> {
    let config = |name: &str| format!("--config={}", folder.join(name).display());
    let spec = |name: &str, path: PathBuf, arguments: Vec<String>| ProgramSpec {
        name: name.to_owned(),
        path,
        arguments,
    };
    let containerd = packages::find("containerd").context("containerd is not installed")?;
    let zone = node.zone();
    Ok(vec![
        spec("containerd", containerd, vec![config(CONTAINERD_FILE)]),
        spec(
            Program::Kubelet.name(),
            tools.built(Program::Kubelet)?,
            vec![
                config(KUBELET_FILE),
                format!("--kubeconfig={}", layout.pki().join(format!("{}.conf", node.name())).display()),
                format!("--node-ip={}", node.address()),
                format!("--hostname-override={}", node.name()),
                format!(
                    "--node-labels=topology.kubernetes.io/zone={zone},topology.kubernetes.io/region={REGION}"
                ),
            ],
        ),
        spec(Program::KubeProxy.name(), tools.built(Program::KubeProxy)?, vec![config(PROXY_FILE)]),
    ])
}

fn write_configuration(layout: &Layout, node: NodeNumber, folder: &Path) -> Result<()> {
    let network = folder.join(NETWORK_FOLDER);
    fs::create_dir_all(&network).with_context(|| format!("cannot create {}", network.display()))?;
    let plugins = packages::network_plugins().context("the network plugins are not installed")?;
    let files = [
        (folder.join(CONTAINERD_FILE), containerd(plugins, &network)),
        (folder.join(KUBELET_FILE), kubelet(layout, node, folder)),
        (folder.join(PROXY_FILE), proxy(layout, node)),
        // Pods that ask for the node's resolver get none: no name leads out.
        (folder.join(RESOLV_FILE), String::new()),
        (network.join("10-pods.conflist"), pod_network(node)),
    ];
    for (file, text) in files {
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

fn containerd(plugins: &str, network: &Path) -> String {
    // A machine may have no right to lower its own badness for the out-of-memory killer; then sandboxes need the restriction.
    format!(
        r#"version = 2

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{}"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#,
        network.display()
    )
}

fn pod_network(node: NodeNumber) -> String {
    let value = json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "pods",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": node.pod_subnet()}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    format!("{value:#}\n")
}

fn kubelet(layout: &Layout, node: NodeNumber, folder: &Path) -> String {
    let pki = |name: &str| layout.pki().join(name).display().to_string();
    let value = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": pki(AUTHORITY)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": pki(&format!("{}.crt", node.name())),
        "tlsPrivateKeyFile": pki(&format!("{}.key", node.name())),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", layout.cgroup(&node.name())),
        // Machines with cgroup v1 are still about.
        "failCgroupV1": false,
        "failSwapOn": false,
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": DOMAIN,
        "resolvConf": folder.join(RESOLV_FILE),
        // Images come from this machine alone: one that was collected would be gone.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi"},
    });
    format!("{value:#}\n")
}

fn proxy(layout: &Layout, node: NodeNumber) -> String {
    let value = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": layout.pki().join("proxy.conf")},
        "mode": "iptables",
        "hostnameOverride": node.name(),
        // These are of the whole machine, and not a node's to set.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    });
    format!("{value:#}\n")
}

/// containerd's own client, on the node.
fn ctr(machine: &Machine) -> Result<Command> {
    let program = packages::find("ctr").context("ctr is not installed: it comes with containerd")?;
    let mut command = within(machine, Inside::NetworkAndFiles, program)?;
    command.args(["--namespace", "k8s.io"]);
    Ok(command)
}

/// Waits until containerd answers.
pub(crate) fn ready(machine: &Machine) -> Result<()> {
    let waited = wait::until("containerd", CONTAINERD_READY_WITHIN, || {
        if !machine.runs() {
            bail!("{} has ended; {}", machine.name, machine.log_end("machine", LOG_LINES_SHOWN));
        }
        let mut command = ctr(machine)?;
        command.arg("version").stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command.status()?.success())
    });
    waited.map_err(|error| error.context(machine.log_end("containerd", LOG_LINES_SHOWN)))
}

/// Has containerd take an image's tar.
pub(crate) fn import(machine: &Machine, image: &Path) -> Result<()> {
    let mut command = ctr(machine)?;
    command.args(["images", "import"]).arg(image);
    let output = command.output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} does not take {}: {}", machine.name, image.display(), said.trim());
    }
    Ok(())
}

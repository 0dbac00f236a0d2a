//! The control plane's programs and their command lines: etcd, kube-apiserver, and where wanted the controller manager and the scheduler. It
//! stands on a machine of its own, or on this host's loopback for tests that need nothing but a real API server.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, bail};

use super::access::Access;
use super::certificates::{AUTHORITY, TOKEN_KEY, TOKEN_PUBLIC_KEY};
use super::layout::{API_PORT, CONTROL_PLANE_ADDRESS, SERVICE_SUBNET};
use super::machine::{Machine, ProgramSpec};
use super::tools::{Program, Tools};
use super::wait;
use crate::cluster::free_ports;

/// The machine's name.
pub(crate) const MACHINE: &str = "control-plane";
/// It is ready in 5 s on two cores; this is for a machine at its limit.
const READY_WITHIN: Duration = Duration::from_secs(90);
const LOG_LINES_SHOWN: usize = 15;
/// Pods leave a node that is gone sooner than in five minutes, which is for clusters with bad networks: tests wait for it.
const TOLERATION_SECONDS: u32 = 30;

/// Where the API server and etcd listen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) address: Ipv4Addr,
    pub(crate) api_port: u16,
    etcd_ports: [u16; 2],
}

impl Place {
    /// On a machine of its own nobody else has its ports.
    pub(crate) fn of_its_own() -> Self {
        Self { address: CONTROL_PLANE_ADDRESS, api_port: API_PORT, etcd_ports: [2379, 2380] }
    }

    /// On loopback, at ports that nobody has.
    pub(crate) fn loopback() -> Result<Self> {
        let [api_port, client, peer] = free_ports(3)?[..] else { bail!("no three free ports on loopback") };
        Ok(Self { address: Ipv4Addr::LOCALHOST, api_port, etcd_ports: [client, peer] })
    }
}

/// Which programs there are beside etcd and the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    ApiOnly,
    WithControllers,
    /// The scheduler, too: there are nodes.
    Whole,
}

/// What must be built for it.
pub(crate) fn programs_needed(extent: Extent) -> &'static [Program] {
    const ALL: &[Program] = &[
        Program::Etcd,
        Program::KubeApiserver,
        Program::Kubectl,
        Program::KubeControllerManager,
        Program::KubeScheduler,
    ];
    match extent {
        // All are built from one module at once.
        Extent::ApiOnly | Extent::WithControllers => &ALL[..4],
        Extent::Whole => ALL,
    }
}

/// The programs in the order in which they start.
pub(crate) fn programs(
    tools: &Tools,
    folder: &Path,
    pki: &Path,
    place: Place,
    extent: Extent,
) -> Result<Vec<ProgramSpec>> {
    let spec = |program: Program, arguments: Vec<String>| -> Result<ProgramSpec> {
        Ok(ProgramSpec { name: program.name().to_owned(), path: tools.built(program)?, arguments })
    };
    let mut all = vec![
        spec(Program::Etcd, etcd(&folder.join("etcd"), place))?,
        spec(Program::KubeApiserver, api_server(pki, place))?,
    ];
    if extent != Extent::ApiOnly {
        all.push(spec(Program::KubeControllerManager, controller_manager(pki))?);
    }
    if extent == Extent::Whole {
        all.push(spec(Program::KubeScheduler, scheduler(pki))?);
    }
    Ok(all)
}

fn etcd(data: &Path, place: Place) -> Vec<String> {
    let [client, peer] = place.etcd_ports.map(|port| format!("http://127.0.0.1:{port}"));
    vec![
        option("data-dir", data.display()),
        option("listen-client-urls", &client),
        option("advertise-client-urls", &client),
        option("listen-peer-urls", &peer),
        option("initial-advertise-peer-urls", &peer),
        option("initial-cluster", format!("default={peer}")),
        option("log-level", "warn"),
        // The cluster goes with its folder; nobody waits for the disk.
        "--unsafe-no-fsync".to_owned(),
    ]
}

fn api_server(pki: &Path, place: Place) -> Vec<String> {
    let file = |name: &str| pki.join(name).display().to_string();
    vec![
        option("etcd-servers", format!("http://127.0.0.1:{}", place.etcd_ports[0])),
        option("bind-address", place.address),
        option("advertise-address", place.address),
        option("secure-port", place.api_port),
        option("service-cluster-ip-range", SERVICE_SUBNET),
        option("tls-cert-file", file("apiserver.crt")),
        option("tls-private-key-file", file("apiserver.key")),
        option("client-ca-file", file(AUTHORITY)),
        option("authorization-mode", "Node,RBAC"),
        option("enable-admission-plugins", "NodeRestriction"),
        option("default-not-ready-toleration-seconds", TOLERATION_SECONDS),
        option("default-unreachable-toleration-seconds", TOLERATION_SECONDS),
        option("service-account-issuer", "https://kubernetes.default.svc"),
        option("service-account-key-file", file(TOKEN_PUBLIC_KEY)),
        option("service-account-signing-key-file", file(TOKEN_KEY)),
        option("kubelet-client-certificate", file("admin.crt")),
        option("kubelet-client-key", file("admin.key")),
        // By default it looks up the name of a node, which no DNS knows.
        option("kubelet-preferred-address-types", "InternalIP"),
        "--allow-privileged".to_owned(),
    ]
}

fn controller_manager(pki: &Path) -> Vec<String> {
    let file = |name: &str| pki.join(name).display().to_string();
    vec![
        option("kubeconfig", file("controller-manager.conf")),
        option("leader-elect", false),
        option("bind-address", Ipv4Addr::LOCALHOST),
        // On this host's loopback its port might be taken, and nobody asks it anything.
        option("secure-port", 0),
        option("root-ca-file", file(AUTHORITY)),
        option("service-account-private-key-file", file(TOKEN_KEY)),
        "--use-service-account-credentials".to_owned(),
    ]
}

fn scheduler(pki: &Path) -> Vec<String> {
    let kubeconfig = pki.join("scheduler.conf");
    vec![
        option("kubeconfig", kubeconfig.display()),
        option("leader-elect", false),
        option("bind-address", Ipv4Addr::LOCALHOST),
    ]
}

fn option(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

/// Waits until the API server says that it is ready.
pub(crate) fn ready(machine: &Machine, access: &Access) -> Result<()> {
    let waited = wait::until("the API server", READY_WITHIN, || {
        if !machine.runs() {
            bail!("the control plane has ended; {}", machine.log_end("machine", LOG_LINES_SHOWN));
        }
        let mut command = access.kubectl()?;
        command.args(["get", "--raw", "/readyz"]).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command.status()?.success())
    });
    waited.map_err(|error| error.context(machine.log_end("kube-apiserver", LOG_LINES_SHOWN)))
}

/// Folders that the programs need.
pub(crate) fn folders(folder: &Path) -> Vec<PathBuf> {
    vec![folder.join("etcd")]
}

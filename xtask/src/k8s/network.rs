//! The network between machines: a bridge on the control plane's, a cable to each node's, and routes to the pods of each node. All of it is inside
//! the machines' network namespaces and goes with them: nothing of it is on this host, and nothing leads out of it.

use anyhow::{Context, Result, bail};

use super::layout::{CONTROL_PLANE_ADDRESS, NodeNumber};
use super::machine::Machine;
use super::namespaces::{Inside, within};

const BRIDGE: &str = "nodes";
/// A node's end of its cable.
const CABLE: &str = "eth0";

/// The control plane's side.
pub(crate) fn bridge(control_plane: &Machine) -> Result<()> {
    ip(control_plane, "link set lo up")?;
    ip(control_plane, &format!("link add {BRIDGE} type bridge"))?;
    ip(control_plane, &format!("addr add {CONTROL_PLANE_ADDRESS}/24 dev {BRIDGE}"))?;
    ip(control_plane, &format!("link set {BRIDGE} up"))?;
    // Kubernetes' programs want a way to everywhere, of which nothing comes.
    ip(control_plane, &format!("route add default dev {BRIDGE}"))
}

/// A node's cable to the bridge, and the ways to its pods and to those of the others.
pub(crate) fn connect(control_plane: &Machine, node: NodeNumber, machine: &Machine, nodes: u8) -> Result<()> {
    let (port, address) = (node.name(), node.address());
    let pid = machine.pid();
    ip(control_plane, &format!("link add {port} type veth peer name {CABLE} netns {pid}"))?;
    ip(control_plane, &format!("link set {port} master {BRIDGE} up"))?;
    ip(control_plane, &format!("route add {} via {address}", node.pod_subnet()))?;
    ip(machine, "link set lo up")?;
    ip(machine, &format!("addr add {address}/24 dev {CABLE}"))?;
    ip(machine, &format!("link set {CABLE} up"))?;
    ip(machine, &format!("route add default via {CONTROL_PLANE_ADDRESS}"))?;
    for other in NodeNumber::all(nodes).filter(|other| *other != node) {
        ip(machine, &format!("route add {} via {}", other.pod_subnet(), other.address()))?;
    }
    forward(machine)
}

/// Pulls a node's cable, or plugs it in again.
pub(crate) fn plug(control_plane: &Machine, node: NodeNumber, plugged: bool) -> Result<()> {
    let state = if plugged { "up" } else { "down" };
    ip(control_plane, &format!("link set {} {state}", node.name()))
}

/// Lets a node pass on what is for its pods. `/proc/sys/net` is that of the namespace of who writes.
fn forward(machine: &Machine) -> Result<()> {
    let mut command = within(machine, Inside::Network, "sh")?;
    command.args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
    let output = command.output()?;
    if !output.status.success() {
        bail!("{} cannot forward: {}", machine.name, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn ip(machine: &Machine, arguments: &str) -> Result<()> {
    let mut command = within(machine, Inside::Network, "ip")?;
    let output =
        command.args(arguments.split(' ')).output().context("cannot start `ip`: install iproute2")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`ip {arguments}` on {} failed: {}", machine.name, said.trim());
    }
    Ok(())
}

//! Ports of this machine that lead to pods: one `kubectl port-forward` each, which ends with this program.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use crate::kubectl::{Failure, Kubectl};

/// Where nodes listen for peers and clients.
const P2P_PORT: u16 = 4001;
/// Nodes that are reached directly; the others answer through them.
const FORWARDS_MAX: usize = 16;

/// Open ports.
pub(crate) struct Forwards(Vec<Forward>);

struct Forward {
    child: Child,
    port: u16,
}

impl Forwards {
    /// Opens a port for each of these pods; those that do not run are left out.
    pub(crate) fn open(kubectl: &Kubectl, pods: &[String]) -> Result<Self, Failure> {
        let mut open = Vec::new();
        for pod in pods.iter().take(FORWARDS_MAX) {
            if let Some(forward) = forward(kubectl, pod)? {
                open.push(forward);
            }
        }
        if open.is_empty() {
            return Err(Failure::NoPod);
        }
        Ok(Self(open))
    }

    /// Multiaddrs of this machine that lead there.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.0.iter().map(|forward| format!("/ip4/127.0.0.1/tcp/{}", forward.port)).collect()
    }
}

fn forward(kubectl: &Kubectl, pod: &str) -> Result<Option<Forward>, Failure> {
    let port = format!(":{P2P_PORT}");
    let mut command = kubectl.command(&["port-forward", "--address=127.0.0.1", pod, &port]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = child.map_err(Failure::kubectl)?;
    let Some(output) = child.stdout.take() else { return Ok(None) };
    let mut line = String::new();
    // It says where it listens once it does, and nothing when it ends.
    let read = BufReader::new(output).read_line(&mut line);
    let mut forward = Forward { child, port: 0 };
    match read.ok().and_then(|_| port_of(&line)) {
        Some(port) => {
            forward.port = port;
            Ok(Some(forward))
        }
        None => Ok(None),
    }
}

/// The port in `Forwarding from 127.0.0.1:40123 -> 4001`.
fn port_of(line: &str) -> Option<u16> {
    let (address, _) = line.strip_prefix("Forwarding from ")?.split_once(" -> ")?;
    address.rsplit_once(':')?.1.parse().ok()
}

impl Drop for Forward {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::port_of;

    #[test]
    fn the_port_is_read_from_what_kubectl_says() {
        assert_eq!(port_of("Forwarding from 127.0.0.1:40123 -> 4001\n"), Some(40123));
        for other in ["", "error: pod not found", "Forwarding from 127.0.0.1:x -> 4001"] {
            assert_eq!(port_of(other), None, "{other}");
        }
    }
}

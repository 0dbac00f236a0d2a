//! Names and addresses of a cluster, and where its files are. It makes nothing.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::steps::target_folder;

/// What a cluster is called where nobody said otherwise.
pub(crate) const DEFAULT_NAME: &str = "debros";
/// A name becomes part of host names and control groups.
const NAME_BYTES_MAX: usize = 24;
/// Each node has a pod subnet of its own in 10.244.0.0/16, and three are what a cluster with zones needs.
pub(crate) const NODES_MAX: u8 = 9;

/// The address of the API server among the nodes.
pub(crate) const CONTROL_PLANE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub(crate) const API_PORT: u16 = 6443;
pub(crate) const SERVICE_SUBNET: &str = "10.96.0.0/16";
/// The first address of the services' subnet is always the API server's.
pub(crate) const API_SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
pub(crate) const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
pub(crate) const DOMAIN: &str = "cluster.local";
pub(crate) const REGION: &str = "local";

/// Where a cluster's files are.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
}

impl Layout {
    /// A cluster of this clone.
    pub(crate) fn new(name: &str) -> Result<Self> {
        check_name(name)?;
        Ok(Self { name: name.to_owned(), folder: target_folder().join("k8s").join(name) })
    }

    /// Certificates and the files by which programs reach the API server.
    pub(crate) fn pki(&self) -> PathBuf {
        self.folder.join("pki")
    }

    /// What a person reaches the cluster with.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.pki().join("admin.conf")
    }

    pub(crate) fn state_file(&self) -> PathBuf {
        self.folder.join("state.json")
    }

    pub(crate) fn logs(&self, machine: &str) -> PathBuf {
        self.folder.join("logs").join(machine)
    }

    /// The name of a machine's control group, unlike that of any other cluster's.
    pub(crate) fn cgroup(&self, machine: &str) -> String {
        format!("{}-{machine}", self.name)
    }
}

fn check_name(name: &str) -> Result<()> {
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len());
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !fits || !plain || name.starts_with('-') || name.ends_with('-') {
        bail!(
            "a cluster's name has 1 to {NAME_BYTES_MAX} of a-z, 0-9 and `-`, which is neither first nor last: `{name}` does not"
        );
    }
    Ok(())
}

/// A node by its number, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeNumber(pub(crate) u8);

impl NodeNumber {
    /// As many as a cluster has.
    pub(crate) fn all(nodes: u8) -> impl Iterator<Item = Self> {
        (1..=nodes).map(Self)
    }

    pub(crate) fn name(self) -> String {
        format!("node-{}", self.0)
    }

    /// Every node is a zone of its own.
    pub(crate) fn zone(self) -> String {
        format!("zone-{}", self.0)
    }

    pub(crate) fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, 10 + self.0)
    }

    pub(crate) fn pod_subnet(self) -> String {
        format!("10.244.{}.0/24", self.0)
    }
}

/// What a folder of this host is on a node.
pub(crate) fn node_folder(layout: &Layout, node: NodeNumber) -> PathBuf {
    layout.folder.join(node.name())
}

/// An error where a folder would be hidden by what a node mounts.
pub(crate) fn check_not_hidden(folder: &Path, hidden: &[&str]) -> Result<()> {
    if let Some(above) = hidden.iter().find(|above| folder.starts_with(above)) {
        bail!("{} is below {above}, which nodes have of their own: use a clone elsewhere", folder.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Layout, NODES_MAX, NodeNumber, check_not_hidden};

    #[test]
    fn a_name_that_could_not_be_a_host_name_is_refused_with_what_it_may_be() {
        for name in ["", "-a", "a-", "A", "a b", "a/b", "a123456789012345678901234"] {
            let error = Layout::new(name).unwrap_err().to_string();
            assert!(error.contains("1 to 24 of a-z"), "{error}");
        }
        assert!(Layout::new("debros-2").is_ok());
    }

    #[test]
    fn nodes_have_addresses_and_subnets_of_their_own() {
        let nodes = NodeNumber::all(NODES_MAX).collect::<Vec<_>>();
        let unique = |text: fn(NodeNumber) -> String| {
            nodes.iter().map(|node| text(*node)).collect::<std::collections::BTreeSet<_>>().len()
        };
        assert_eq!(unique(|node| node.address().to_string()), usize::from(NODES_MAX));
        assert_eq!(unique(NodeNumber::pod_subnet), usize::from(NODES_MAX));
        assert_eq!(unique(NodeNumber::zone), usize::from(NODES_MAX));
    }

    #[test]
    fn a_clone_below_what_nodes_mount_is_refused() {
        assert!(check_not_hidden(Path::new("/run/clone/target"), &["/run"]).is_err());
        assert!(check_not_hidden(Path::new("/running/target"), &["/run"]).is_ok());
    }
}

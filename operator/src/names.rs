//! What the objects of a cluster are called and how they are labelled. Names are made here and nowhere else; that an
//! object has one of them never says that it is ours.

use std::collections::BTreeMap;
use std::fmt;

/// Who writes, for server-side apply.
pub const FIELD_MANAGER: &str = "debros-operator";
/// The port of other nodes and SDK clients, TCP and UDP.
pub const P2P_PORT: u16 = 4001;
/// The port of the HTTP API.
pub const HTTP_PORT: u16 = 5001;
/// The port of health checks and metrics.
pub const ADMIN_PORT: u16 = 9001;
/// The only container of a pod.
pub const CONTAINER: &str = "debros-node";
/// The claim of a pod's volume, to which Kubernetes adds the pod's name.
pub const CLAIM: &str = "data";
/// The key of the cluster secret.
pub const SECRET_KEY: &str = "secret";

/// The label of whoever manages an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The label of the cluster's name.
pub const INSTANCE: &str = "app.kubernetes.io/instance";
/// The label of the set.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// The label of the program.
pub const NAME: &str = "app.kubernetes.io/name";
/// The label with the revision that a pod was made from.
pub const REVISION: &str = "debros.network/revision";
/// The annotation with the hash of what was applied.
pub const APPLIED: &str = "debros.network/applied";
/// The annotation of the cluster's record with the id of the cluster.
pub const CLUSTER_ID: &str = "debros.network/cluster-id";

/// One of the two sets of a cluster's nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The first nodes.
    Bootstrap,
    /// The further ones.
    Peer,
}

impl Role {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Bootstrap, Self::Peer];

    /// As it stands in names and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap",
            Self::Peer => "peer",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something for each set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BySet<T> {
    /// For the first nodes.
    pub bootstrap: T,
    /// For the further ones.
    pub peer: T,
}

impl<T> BySet<T> {
    /// Made for each.
    pub fn make(mut make: impl FnMut(Role) -> T) -> Self {
        Self { bootstrap: make(Role::Bootstrap), peer: make(Role::Peer) }
    }

    /// That of one set.
    pub fn of(&self, role: Role) -> &T {
        match role {
            Role::Bootstrap => &self.bootstrap,
            Role::Peer => &self.peer,
        }
    }

    /// That of one set, to change it.
    pub fn of_mut(&mut self, role: Role) -> &mut T {
        match role {
            Role::Bootstrap => &mut self.bootstrap,
            Role::Peer => &mut self.peer,
        }
    }
}

/// The names of a cluster's objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// The resource's name.
    pub cluster: &'a str,
}

impl Names<'_> {
    /// The StatefulSet, its headless Service, and the beginning of its pods.
    pub fn set(&self, role: Role) -> String {
        format!("{}-{role}", self.cluster)
    }

    /// A pod.
    pub fn pod(&self, role: Role, ordinal: i32) -> String {
        format!("{}-{role}-{ordinal}", self.cluster)
    }

    /// A pod's claim.
    pub fn claim(&self, role: Role, ordinal: i32) -> String {
        format!("{CLAIM}-{}", self.pod(role, ordinal))
    }

    /// The Service of clients.
    pub fn client_service(&self) -> String {
        self.cluster.to_owned()
    }

    /// The configuration of a revision.
    pub fn config(&self, role: Role, revision: &str) -> String {
        format!("{}-{role}-{revision}", self.cluster)
    }

    /// What is known of the cluster, apart from the status.
    pub fn record(&self) -> String {
        format!("{}-record", self.cluster)
    }

    /// The cluster secret that the operator makes.
    pub fn secret(&self) -> String {
        format!("{}-cluster-secret", self.cluster)
    }

    /// The ServiceAccount of the pods.
    pub fn account(&self) -> String {
        format!("{}-node", self.cluster)
    }

    /// The budget of disruptions.
    pub fn budget(&self) -> String {
        self.cluster.to_owned()
    }

    /// The NetworkPolicy.
    pub fn policy(&self) -> String {
        self.cluster.to_owned()
    }

    /// Where a pod's node is found.
    pub fn address(&self, role: Role, ordinal: i32) -> String {
        let (pod, service, namespace) = (self.pod(role, ordinal), self.set(role), self.namespace);
        format!("/dns4/{pod}.{service}.{namespace}.svc/tcp/{P2P_PORT}")
    }

    /// The ordinal of a pod of a set, by its name.
    pub fn ordinal(&self, role: Role, pod: &str) -> Option<i32> {
        let digits = pod.strip_prefix(&self.set(role))?.strip_prefix('-')?;
        let ordinal = digits.parse::<i32>().ok().filter(|ordinal| *ordinal >= 0)?;
        // `+1` and `01` are names of nobody.
        (digits == ordinal.to_string()).then_some(ordinal)
    }

    /// The set and the ordinal of a pod, by its name.
    pub fn parse_pod(&self, pod: &str) -> Option<(Role, i32)> {
        Role::ALL.into_iter().find_map(|role| Some((role, self.ordinal(role, pod)?)))
    }

    /// What selects all pods of the cluster.
    pub fn selector(&self) -> BTreeMap<String, String> {
        let labels = [(NAME, "debros"), (INSTANCE, self.cluster)];
        labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    /// What selects the pods of a set.
    pub fn set_selector(&self, role: Role) -> BTreeMap<String, String> {
        let mut labels = self.selector();
        labels.insert(COMPONENT.to_owned(), role.as_str().to_owned());
        labels
    }

    /// The labels of every object.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.selector();
        labels.insert(MANAGED_BY.to_owned(), FIELD_MANAGER.to_owned());
        labels
    }

    /// The labels of an object of a set.
    pub fn set_labels(&self, role: Role) -> BTreeMap<String, String> {
        let mut labels = self.labels();
        labels.insert(COMPONENT.to_owned(), role.as_str().to_owned());
        labels
    }
}

/// Labels as a query.
pub fn query(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::{Names, Role};

    const NAMES: Names<'_> = Names { namespace: "shop", cluster: "orders" };

    #[test]
    fn a_pod_is_found_by_the_name_of_its_set() {
        assert_eq!(NAMES.address(Role::Peer, 2), "/dns4/orders-peer-2.orders-peer.shop.svc/tcp/4001");
        assert_eq!(NAMES.parse_pod("orders-bootstrap-12"), Some((Role::Bootstrap, 12)));
    }

    #[test]
    fn names_of_others_are_no_pods() {
        for other in [
            "orders-peer",
            "orders-peer-",
            "orders-peer-01",
            "orders-peer--1",
            "orders-peer-x",
            "my-orders-peer-1",
        ] {
            assert_eq!(NAMES.parse_pod(other), None, "{other}");
        }
    }
}

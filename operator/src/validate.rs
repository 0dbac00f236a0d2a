//! Refuses what cannot be meant, before anything is changed: what the schema and its rules cannot see because it needs
//! the node's own reader, or because the resource was made before they were.

use debros_config::Interval;

use crate::build::config::ConfigProblem;
use crate::build::{self, Plan};
use crate::crd::DebrosCluster;
use crate::crd::rules::NAME_BYTES_MAX;
use crate::decide::{Version, Wanted};
use crate::names::{BySet, COMPONENT, INSTANCE, MANAGED_BY, NAME, REVISION};
use crate::quantity;

/// Labels that are the operator's.
const OWN_LABELS: [&str; 5] = [NAME, INSTANCE, COMPONENT, MANAGED_BY, REVISION];

/// A resource that cannot be meant, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// The name does not fit.
    #[error("the name has more than {NAME_BYTES_MAX} characters: make the cluster under a shorter one")]
    Name,
    /// The number of bootstrap nodes.
    #[error("spec.bootstrap.replicas is {0}: it must be 1, 3 or 5")]
    Bootstrap(i32),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigProblem),
    /// A size of volumes.
    #[error("{field}.size {size:?} is no size: write one such as 10Gi")]
    Size {
        /// Which.
        field: &'static str,
        /// As written.
        size: String,
    },
    /// The delay.
    #[error("spec.nodeLossDelay {0:?} is no duration: write one such as 5m")]
    Delay(String),
    /// A label that the operator sets.
    #[error("{field}.labels must not set {label}, which the operator sets: remove it")]
    Label {
        /// Which set.
        field: &'static str,
        /// Which label.
        label: String,
    },
}

/// What the resource asks for, once it was found valid.
#[derive(Clone, Debug, PartialEq)]
pub struct Valid {
    /// What follows from it.
    pub plan: Plan,
    /// What steps depend on.
    pub wanted: Wanted,
}

/// Judges a resource.
///
/// # Errors
/// [`Invalid`].
pub fn validate(cluster: &DebrosCluster, cluster_id: Option<&str>) -> Result<Valid, Invalid> {
    let spec = &cluster.spec;
    if cluster.metadata.name.as_ref().is_some_and(|name| name.len() > NAME_BYTES_MAX) {
        return Err(Invalid::Name);
    }
    if ![1, 3, 5].contains(&spec.bootstrap.replicas) {
        return Err(Invalid::Bootstrap(spec.bootstrap.replicas));
    }
    spec.node_loss_delay.parse::<Interval>().map_err(|_| Invalid::Delay(spec.node_loss_delay.clone()))?;
    for (field, set) in [("spec.bootstrap", &spec.bootstrap), ("spec.peers", &spec.peers)] {
        if quantity::bytes(&set.storage.size).is_none_or(|bytes| bytes == 0) {
            return Err(Invalid::Size { field, size: set.storage.size.clone() });
        }
        if let Some(label) = set.labels.keys().find(|label| OWN_LABELS.contains(&label.as_str())) {
            return Err(Invalid::Label { field, label: label.clone() });
        }
    }
    let plan = build::plan(cluster, cluster_id)?;
    let wanted = Wanted {
        replicas: BySet { bootstrap: spec.bootstrap.replicas, peer: spec.peers.replicas },
        revisions: plan.revisions.clone(),
        replication_factor: usize::from(spec.replication_factor),
        paused: spec.paused,
        version: Version::of_image(&spec.image),
    };
    Ok(Valid { plan, wanted })
}

//! Whether the cluster exists, and how it comes to be: once.
//!
//! It is initialised only where nobody knows of one: it is not written down; every node that could know of one, because
//! there is a volume behind its claim, answers and says that it belongs nowhere; and no claim is older than the
//! resource. Whatever is lost of that knowledge (a deleted status, a resource restored from a backup), the volumes
//! still have it, and the cluster is found again instead.

use std::collections::BTreeSet;

use super::{Answer, Blocked, Step, Wanted};
use crate::names::Role;
use crate::observed::{Observed, PodId};

/// The node that is asked to initialise, always the same one: it refuses the second time.
const FIRST: PodId = PodId { role: Role::Bootstrap, ordinal: 0 };

pub(super) fn ask(_: &Wanted, observed: &Observed) -> Answer {
    if observed.recorded.is_some() {
        return Answer::Pass;
    }
    // One that is ending may be of a former resource of this name.
    let staying = observed.answering().filter(|(pod, _)| !pod.terminating);
    let belong = staying.filter_map(|(_, node)| node.belongs_to.clone());
    let clusters: BTreeSet<String> = belong.collect();
    let mut clusters = clusters.into_iter();
    match (clusters.next(), clusters.next()) {
        (Some(only), None) => {
            let progress = format!("cluster {only} was found on its nodes");
            return Answer::Do(Step::Record(only), progress);
        }
        (Some(one), Some(other)) => {
            return Answer::Block(Blocked::cluster(format!(
                "the volumes belong to two clusters, {one} and {other}: delete the claims of the one that is not \
                 wanted, and their pods"
            )));
        }
        (None, _) => {}
    }
    initialise(observed)
}

fn initialise(observed: &Observed) -> Answer {
    if let Some(claim) = observed.spare_claims.iter().find(|claim| claim.bound) {
        return Answer::Block(Blocked::cluster(format!(
            "not initialised: the claim {} may hold an earlier cluster and has no pod; scale the set up so that it is \
             used, or delete the claim",
            claim.name
        )));
    }
    for pod in &observed.pods {
        if pod.claim.earlier && pod.node.is_some() {
            return Answer::Block(Blocked::pod(
                pod.id,
                "not initialised: its claim is older than this resource, and its node knows of no cluster; delete the \
                 claim and the pod to begin a new cluster",
            ));
        }
        if pod.claim.bound && pod.node.is_none() {
            return Answer::Wait(format!(
                "{} is starting, and then says whether it knows of a cluster",
                pod.name
            ));
        }
    }
    match observed.pod(FIRST) {
        Some(pod) if pod.node.is_some() && !pod.terminating => {
            Answer::Do(Step::Initialise(FIRST), format!("the cluster is initialised at {}", pod.name))
        }
        Some(pod) => Answer::Wait(format!("{} is starting", pod.name)),
        None => Answer::Wait("the first pod is being made".to_owned()),
    }
}

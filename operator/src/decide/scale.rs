//! How many nodes there are. More is a number in a StatefulSet. Fewer goes one by one: the last pod's member hands over
//! and leaves, that is verified, and only then the StatefulSet asks for one pod less.

use super::gate::whole_without;
use super::roll::restart;
use super::{Answer, Blocked, Step, Wanted};
use crate::names::Role;
use crate::observed::{Observed, Pod, PodId, State};

/// Replicas that a set's StatefulSet is to have now.
pub(super) fn replicas(wanted: &Wanted, observed: &Observed, role: Role) -> i32 {
    let wanted_here = *wanted.replicas.of(role);
    let Some(current) = *observed.sets.of(role) else { return wanted_here.max(floor(observed, role)) };
    if wanted_here >= current {
        return wanted_here;
    }
    // Somebody may have asked the StatefulSet for more than there ever were.
    let last = PodId { role, ordinal: current - 1 };
    if is_out(observed, last) { current - 1 } else { current }
}

/// What a StatefulSet that is not there must ask for, so that making it ends no pod and leaves no member behind.
pub(super) fn floor(observed: &Observed, role: Role) -> i32 {
    let pods = observed.pods.iter().map(|pod| pod.id);
    let known =
        observed.known.iter().filter(|(_, peer)| observed.present().any(|member| member.peer_id == *peer));
    let all = pods.chain(known.map(|(pod, _)| *pod)).filter(|id| id.role == role);
    all.map(|id| id.ordinal + 1).max().unwrap_or(0)
}

/// Whether a pod that is wanted runs somebody who has left: the volume of a former member, or one that was to go and is
/// asked for again. Nobody counts on it, and it joins as another one once it is started again.
pub(super) fn begin_anew(wanted: &Wanted, observed: &Observed) -> Answer {
    let left = |pod: &&Pod| {
        let is_left = pod.node.as_ref().is_some_and(|node| node.begins_anew);
        is_left && !pod.terminating && pod.id.ordinal < *wanted.replicas.of(pod.id.role)
    };
    match observed.pods.iter().filter(left).find(|pod| is_out(observed, pod.id)) {
        Some(pod) => {
            let progress = format!("{} has left the cluster and joins it anew", pod.name);
            Answer::Do(restart(pod, false), progress)
        }
        None => Answer::Pass,
    }
}

pub(super) fn ask(wanted: &Wanted, observed: &Observed) -> Answer {
    // Peers first: bootstrap nodes are whom the others find the cluster by.
    for role in [Role::Peer, Role::Bootstrap] {
        let (wanted_here, current) = (*wanted.replicas.of(role), observed.sets.of(role).unwrap_or_default());
        if wanted_here >= current {
            continue;
        }
        let last = PodId { role, ordinal: current - 1 };
        if is_out(observed, last) {
            return Answer::Wait(format!("{role}-{} has left, and its pod goes", last.ordinal));
        }
        return leave(wanted, observed, last);
    }
    Answer::Pass
}

fn leave(wanted: &Wanted, observed: &Observed, last: PodId) -> Answer {
    let name = format!("{}-{}", last.role, last.ordinal);
    let Some(peer) = observed.peer_in(last) else {
        return Answer::Wait(format!("{name} is to go, and does not say yet who it is"));
    };
    if observed.members.is_none() {
        return Answer::Wait(format!("{name} is to go, and no member answers"));
    }
    let Some(member) = observed.member(peer) else {
        return Answer::Wait(format!("{name} is to go"));
    };
    let node_id = member.node_id;
    let again = Answer::Do(
        Step::TakeOut { node_id, pod: Some(last) },
        format!("{name} hands over what it holds and leaves the cluster"),
    );
    if member.state != State::Active {
        return again;
    }
    if let Some(reason) = too_few(wanted, observed, node_id) {
        return Answer::Block(Blocked::pod(last, reason));
    }
    match whole_without(observed, last) {
        Ok(()) => again,
        Err(waiting) => {
            Answer::Wait(format!("{name} leaves once the cluster is whole without it: {waiting}"))
        }
    }
}

/// Why the cluster could not keep what it holds with one member less.
fn too_few(wanted: &Wanted, observed: &Observed, without: u64) -> Option<String> {
    let active = observed.present().filter(|member| member.state == State::Active).count();
    let left = active.saturating_sub(1);
    if active >= wanted.replication_factor && left < wanted.replication_factor {
        return Some(format!(
            "it stays: {left} nodes would be left for {} replicas; ask for more nodes, or lower spec.replicationFactor \
             first",
            wanted.replication_factor
        ));
    }
    let groups = observed.answering().flat_map(|(_, node)| &node.groups);
    let databases = groups.filter(|group| group.name != "meta" && group.voters.contains(&without));
    let wide = databases.filter(|group| group.voters.len() > left).max_by_key(|group| group.voters.len())?;
    Some(format!(
        "it stays: the database {} has {} replicas, and {left} nodes would be left; ask for more nodes, or drop it first",
        wide.name,
        wide.voters.len()
    ))
}

/// Whether nothing counts on a pod any more: its member is out, and in nobody's group; or it never was one.
fn is_out(observed: &Observed, id: PodId) -> bool {
    let Some(peer) = observed.peer_in(id) else { return never_was(observed, id) };
    if observed.recorded.is_none() {
        // As long as no cluster is known, only who says so itself belongs nowhere.
        let node = observed.pod(id).and_then(|pod| pod.node.as_ref());
        return node.is_some_and(|node| node.belongs_to.is_none());
    }
    if observed.members.is_none() {
        return false;
    }
    match observed.member(peer) {
        // It waits to be let in, and is told to go instead.
        None => true,
        Some(member) if member.state == State::Removed => {
            let counts = |voters: &std::collections::BTreeSet<u64>| voters.contains(&member.node_id);
            let others = observed.answering().filter(|(_, node)| node.node_id != Some(member.node_id));
            others.flat_map(|(_, node)| &node.groups).all(|group| !counts(&group.voters))
        }
        Some(_) => false,
    }
}

/// Whether a pod of which nobody knows who it is was never a member.
fn never_was(observed: &Observed, id: PodId) -> bool {
    let Some(pod) = observed.pod(id) else {
        // Behind a claim that is left there may be a member whose pod is only away.
        return !observed.spare_claims.iter().any(|claim| claim.id == id && claim.bound);
    };
    // One that runs may be joining and is asked; one that never came up is none of the members if these are all others.
    let is_another = |peer: &str| {
        observed.answering().any(|(_, node)| node.peer_id == peer)
            || observed.known.iter().any(|(_, known)| known == peer)
    };
    let all_are_others = || observed.present().all(|member| is_another(&member.peer_id));
    !pod.claim.bound || (!pod.running && observed.members.is_some() && all_are_others())
}

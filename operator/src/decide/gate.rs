//! Whether a node may be missed: the one place that judges quorums.
//!
//! A node may be missed when everything that it takes part in is whole without it: each of its Raft groups has all its
//! other voters, connected, answering and current, and a leader; the storage's layout is settled, copied by everybody,
//! and nobody keeps writes for somebody who was away. With one or two nodes nothing is whole without one of them: then
//! what counts is that all the others are well, since there is nothing more to be had.

use std::collections::BTreeMap;

use crate::observed::{Group, Observed, PodId, State};

/// A replica that lacks no more entries than this counts as current. It is what the nodes' own check `replicas` takes,
/// and more than what is written between the answers of two nodes.
pub const CURRENT_LAG_MAX: u64 = 1000;
/// With fewer members there is no quorum to be kept without one of them.
const REDUNDANT_MEMBERS_MIN: usize = 3;

/// Whether the cluster is whole without this pod: why not, if it is not.
pub(super) fn whole_without(observed: &Observed, pod: PodId) -> Result<(), String> {
    calm_without(observed, pod)?;
    let node_id = observed.member_in(pod);
    members_are_well(observed, node_id)?;
    groups_are_whole(observed, node_id)?;
    storage_is_whole(observed)
}

/// Whether everything is whole, with everybody there.
pub fn whole(observed: &Observed) -> Result<(), String> {
    if observed.members.is_none() {
        return Err("no member answers".to_owned());
    }
    if let Some(pod) = observed.pods.iter().find(|pod| !pod.serves()) {
        return Err(format!("{} does not serve", pod.name));
    }
    members_are_well(observed, None)?;
    groups_are_whole(observed, None)?;
    storage_is_whole(observed)
}

/// Pods that may be evicted at a time. More than one would have to be known not to share a group or a key; none while
/// anything is not whole, or where nothing would be without one of them.
pub fn budget(observed: &Observed) -> i32 {
    let members = observed.present().filter(|member| member.state == State::Active).count();
    i32::from(members >= REDUNDANT_MEMBERS_MIN && whole(observed).is_ok())
}

/// Whether a replica of this member is behind its group.
pub fn is_behind(observed: &Observed, node_id: u64) -> bool {
    let ends = ends(observed);
    let groups = observed.node(node_id).map(|node| node.groups.as_slice()).unwrap_or_default();
    groups.iter().any(|group| is_lagging(group, &ends))
}

/// Every other pod is there, and Kubernetes and its node say that it serves.
fn calm_without(observed: &Observed, pod: PodId) -> Result<(), String> {
    for (role, wanted) in [
        (crate::names::Role::Bootstrap, observed.sets.bootstrap),
        (crate::names::Role::Peer, observed.sets.peer),
    ] {
        for ordinal in 0..wanted.unwrap_or_default() {
            let id = PodId { role, ordinal };
            if id == pod {
                continue;
            }
            match observed.pod(id) {
                Some(other) if other.serves() => {}
                Some(other) => return Err(format!("{} does not serve", other.name)),
                None => return Err(format!("{role}-{ordinal} is not there")),
            }
        }
    }
    match observed.pods.iter().find(|other| other.id != pod && other.terminating) {
        Some(other) => Err(format!("{} is ending", other.name)),
        None => Ok(()),
    }
}

/// Every other member is connected and answers for itself.
fn members_are_well(observed: &Observed, without: Option<u64>) -> Result<(), String> {
    if observed.members.is_none() {
        return Err("no member answers".to_owned());
    }
    for member in observed.present().filter(|member| Some(member.node_id) != without) {
        if !member.connected {
            return Err(format!("member {} is out of reach", member.node_id));
        }
        if member.state == State::Leaving {
            return Err(format!("member {} is handing over what it holds", member.node_id));
        }
        let is_pod = observed.answering().any(|(_, node)| node.peer_id == member.peer_id);
        // Somebody else's node may be a member, and connected is all that can be known of it.
        if is_pod && observed.node(member.node_id).is_none() {
            return Err(format!("member {} has not joined anew yet", member.node_id));
        }
    }
    Ok(())
}

/// Every group has its other voters, current, and a leader.
fn groups_are_whole(observed: &Observed, without: Option<u64>) -> Result<(), String> {
    let ends = ends(observed);
    let active = observed.present().filter(|member| member.state == State::Active).count();
    let redundant = active >= REDUNDANT_MEMBERS_MIN;
    for (_, node) in observed.answering() {
        for group in &node.groups {
            if group.leader == 0 {
                return Err(format!("{} has no leader", group.name));
            }
            // Only replicas of the group itself know who votes now.
            let Some(own) = node.node_id.filter(|id| group.voters.contains(id)) else { continue };
            if redundant && group.voters.len() < REDUNDANT_MEMBERS_MIN && !observed.warnings.is_empty() {
                return Err(format!("{} is being given replicas", group.name));
            }
            for voter in group.voters.iter().filter(|voter| Some(**voter) != without && **voter != own) {
                let replica =
                    observed.node(*voter).and_then(|node| node.groups.iter().find(|of| of.id == group.id));
                let gone = observed.present().all(|member| member.node_id != *voter);
                if gone || (replica.is_none() && is_ours(observed, *voter)) {
                    return Err(format!("{} lacks its replica at member {voter}", group.name));
                }
            }
            if Some(own) != without && is_lagging(group, &ends) {
                return Err(format!("{} is behind at member {own}", group.name));
            }
        }
    }
    Ok(())
}

/// Whether a member runs in one of the pods.
fn is_ours(observed: &Observed, node_id: u64) -> bool {
    let peer =
        observed.present().find(|member| member.node_id == node_id).map(|member| member.peer_id.as_str());
    let known = |peer: &str| observed.known.iter().any(|(_, known)| known == peer);
    peer.is_some_and(|peer| known(peer) || observed.answering().any(|(_, node)| node.peer_id == peer))
}

fn storage_is_whole(observed: &Observed) -> Result<(), String> {
    let members = observed.answering().filter(|(_, node)| node.node_id.is_some());
    let shares: Vec<_> = members.map(|(pod, node)| (pod, node.storage.as_ref())).collect();
    let layout = shares.iter().filter_map(|(_, share)| share.map(|share| share.layout)).max();
    for (pod, share) in shares {
        let Some(share) = share else { return Err(format!("{} does not serve the storage yet", pod.name)) };
        if Some(share.layout) != layout || !share.stable {
            return Err("the storage is being laid out anew".to_owned());
        }
        if share.to_copy > 0 {
            return Err(format!("{} copies its share of the storage", pod.name));
        }
        if share.hints {
            return Err(format!("{} still delivers writes to replicas that were absent", pod.name));
        }
    }
    Ok(())
}

/// The furthest entry of each group that anybody has.
fn ends(observed: &Observed) -> BTreeMap<u64, u64> {
    let mut ends = BTreeMap::new();
    for group in observed.answering().flat_map(|(_, node)| &node.groups) {
        let end = ends.entry(group.id).or_default();
        *end = group.last.max(*end);
    }
    ends
}

fn is_lagging(group: &Group, ends: &BTreeMap<u64, u64>) -> bool {
    let end = ends.get(&group.id).copied().unwrap_or_default();
    end.saturating_sub(group.applied.min(group.last)) > CURRENT_LAG_MAX
}

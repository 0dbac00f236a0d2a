//! Members whose volume is gone: their pod came back as somebody else, or is gone for good. They are taken out once
//! whoever replaces them is a member and current, so that no group ever counts on fewer than it did.

use super::gate::is_behind;
use super::{Answer, Step, Wanted};
use crate::names::Role;
use crate::observed::{Member, Observed, PodId, State};

pub(super) fn ask(wanted: &Wanted, observed: &Observed) -> Answer {
    let mut gone: Vec<&Member> = observed.present().filter(|member| is_gone(observed, member)).collect();
    // One that was told may wait for another that is gone, too: as long as that counts, it is too many to be missed.
    gone.sort_by_key(|member| member.state == State::Leaving);
    for member in gone {
        if !everybody_can_be_told_apart(wanted, observed, member) {
            continue;
        }
        let pod = observed.known.iter().find(|(_, peer)| *peer == member.peer_id).map(|(pod, _)| *pod);
        if let Some(waiting) = not_replaced_yet(wanted, observed, pod) {
            return Answer::Wait(format!(
                "member {} is gone with its volume; it is taken out once {waiting}",
                member.node_id
            ));
        }
        let progress = format!("member {} is gone with its volume and is taken out", member.node_id);
        return Answer::Do(Step::TakeOut { node_id: member.node_id, pod: None }, progress);
    }
    Answer::Pass
}

/// Nobody of ours is this member, and nobody is connected to it.
fn is_gone(observed: &Observed, member: &Member) -> bool {
    !member.connected && observed.answering().all(|(_, node)| node.peer_id != member.peer_id)
}

/// A member without a pod may be one whose pod does not answer now. It is not, when its pod answers as somebody else,
/// or when every pod that there should be answers.
fn everybody_can_be_told_apart(wanted: &Wanted, observed: &Observed, member: &Member) -> bool {
    let known = observed.known.iter().find(|(_, peer)| *peer == member.peer_id).map(|(pod, _)| *pod);
    let its_pod = known.and_then(|pod| observed.pod(pod));
    if its_pod.is_some_and(|pod| pod.node.is_some()) {
        return true;
    }
    // Its pod is there, or will be there again with the same volume.
    let comes_back = known.is_some_and(|pod| pod.ordinal < expected(wanted, observed, pod.role));
    let all_answer = Role::ALL.into_iter().all(|role| {
        (0..expected(wanted, observed, role))
            .all(|ordinal| observed.pod(PodId { role, ordinal }).is_some_and(|pod| pod.serves()))
    });
    !comes_back && all_answer && observed.pods.iter().all(|pod| pod.serves())
}

fn expected(wanted: &Wanted, observed: &Observed, role: Role) -> i32 {
    let set = observed.sets.of(role).unwrap_or_default();
    set.max(*wanted.replicas.of(role))
}

/// What is waited for before the member is taken out.
fn not_replaced_yet(wanted: &Wanted, observed: &Observed, pod: Option<PodId>) -> Option<String> {
    let replacements = observed.pods.iter().filter(|other| match pod {
        Some(pod) => other.id == pod,
        None => other.id.ordinal < *wanted.replicas.of(other.id.role),
    });
    for replacement in replacements {
        let name = &replacement.name;
        let Some(node) = &replacement.node else { return Some(format!("{name} answers")) };
        let joined = observed.present().find(|member| member.peer_id == node.peer_id);
        match joined.and(node.node_id) {
            None => return Some(format!("{name} has joined")),
            Some(node_id) if is_behind(observed, node_id) => return Some(format!("{name} has caught up")),
            Some(_) => {}
        }
    }
    None
}

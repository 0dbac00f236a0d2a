//! Another image or another configuration reaches the pods one by one: followers first, each after everything was
//! found whole without it, its leaderships handed over before. The first that does not come back stops it.
//!
//! A pod that is down costs nothing to begin anew, so one of a revision that is not wanted any more goes first: that is
//! how a mended image gets past a broken one.

use super::gate::whole_without;
use super::{Answer, Blocked, Step, Wanted, version};
use crate::observed::{Observed, Pod};

/// Whether a pod is down that would begin anew in another revision: also where there is no cluster yet, which the first
/// revision may be the reason for.
pub(super) fn mend(wanted: &Wanted, observed: &Observed) -> Answer {
    let stale = |pod: &&Pod| pod.revision != *wanted.revisions.of(pod.id.role) && !pod.terminating;
    match observed.pods.iter().filter(stale).find(|pod| is_down(observed, pod)) {
        Some(down) => {
            let progress = format!("{} is down and begins anew in the wanted revision", down.name);
            Answer::Do(restart(down, false), progress)
        }
        None => Answer::Pass,
    }
}

pub(super) fn ask(wanted: &Wanted, observed: &Observed) -> Answer {
    let stale = |pod: &&Pod| pod.revision != *wanted.revisions.of(pod.id.role);
    let mut waiting: Vec<&Pod> = observed.pods.iter().filter(stale).filter(|pod| !pod.terminating).collect();
    if waiting.is_empty() {
        return Answer::Pass;
    }
    let running = observed.answering().filter_map(|(_, node)| node.version.parse().ok());
    if let Some(reason) = version::refused(wanted.version, running) {
        return Answer::Block(Blocked::cluster(reason));
    }
    if let Some(pod) = observed.pods.iter().find(|pod| !stale(pod) && !pod.serves()) {
        return Answer::Wait(format!(
            "the roll waits for {}, which runs the new revision and does not serve yet; {} pods still run the former one",
            pod.name,
            waiting.len()
        ));
    }
    // Whoever leads most goes last: every leadership moves once, and not from one that is about to go.
    waiting.sort_by_key(|pod| (leads_meta(pod), led(pod), std::cmp::Reverse((pod.id.role, pod.id.ordinal))));
    let next = waiting[0];
    match whole_without(observed, next.id) {
        Ok(()) => {
            let progress = format!("{} begins anew in the new revision; {} to go", next.name, waiting.len());
            Answer::Do(restart(next, true), progress)
        }
        Err(why) => {
            Answer::Wait(format!("{} begins anew once the cluster is whole without it: {why}", next.name))
        }
    }
}

pub(super) fn restart(pod: &Pod, hand_over: bool) -> Step {
    Step::Restart {
        pod: pod.id,
        uid: pod.uid.clone(),
        resource_version: pod.resource_version.clone(),
        hand_over,
    }
}

/// Nobody misses it: it has no container that runs, or none that anybody hears of.
fn is_down(observed: &Observed, pod: &Pod) -> bool {
    if pod.node.is_some() || pod.ready {
        return false;
    }
    if !pod.running {
        return true;
    }
    // It runs and does not answer, perhaps only to us: what counts is what the members say.
    let known = observed.known.iter().find(|(id, _)| *id == pod.id).map(|(_, peer)| peer);
    match (known, &observed.members) {
        (Some(peer), Some(_)) => observed.member(peer).is_none_or(|member| !member.connected),
        (None, Some(_)) => true,
        (_, None) => false,
    }
}

fn led(pod: &Pod) -> usize {
    pod.node.iter().flat_map(|node| &node.groups).filter(|group| group.leads).count()
}

fn leads_meta(pod: &Pod) -> bool {
    pod.node.iter().flat_map(|node| &node.groups).any(|group| group.leads && group.name == "meta")
}

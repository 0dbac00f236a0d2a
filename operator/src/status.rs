//! Says what came of it. A pure function of what was seen and decided, and of the status before: a condition's time
//! changes when the condition does, and everything else only with its cause, so that a cluster at rest is not written.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use crate::build;
use crate::crd::{DebrosCluster, DebrosClusterStatus, Member, SetStatus};
use crate::decide::{Blocked, Decision, Wanted, is_behind, whole};
use crate::names::{Role, query};
use crate::observed::{Observed, PodId, State};

/// A condition's message is read in a terminal.
const MESSAGE_CHARACTERS_MAX: usize = 1000;

/// What of a reconciliation goes into the status.
#[derive(Clone, Debug)]
pub struct Outcome<'a> {
    /// What was seen.
    pub observed: &'a Observed,
    /// What is wanted; `None` when the resource is not valid.
    pub wanted: Option<&'a Wanted>,
    /// What was decided; `None` when the resource is not valid.
    pub decision: Option<&'a Decision>,
    /// The id of the cluster.
    pub cluster_id: Option<String>,
    /// What went wrong, with the next step: what is not valid, what is somebody else's, what was refused.
    pub problems: Vec<String>,
}

/// The status.
pub fn status(cluster: &DebrosCluster, outcome: &Outcome<'_>, now: Timestamp) -> DebrosClusterStatus {
    let before = cluster.status.clone().unwrap_or_default();
    let (observed, names) = (outcome.observed, build::names(cluster));
    let target = outcome.wanted.map(|wanted| {
        let (bootstrap, peer) = (&wanted.revisions.bootstrap, &wanted.revisions.peer);
        build::hash(&[bootstrap, peer])
    });
    let all_there = outcome.wanted.is_some_and(|wanted| {
        let current = |role: Role| observed.pods.iter().filter(move |pod| pod.id.role == role);
        Role::ALL.into_iter().all(|role| current(role).all(|pod| pod.revision == *wanted.revisions.of(role)))
            && !observed.pods.is_empty()
    });
    let members = members(cluster, outcome);
    let ready = members.iter().filter(|member| member.ready && !member.pod.is_empty()).count();
    let total = cluster.spec.bootstrap.replicas + cluster.spec.peers.replicas;
    let set = |role: Role| {
        let pods = || observed.pods.iter().filter(move |pod| pod.id.role == role);
        SetStatus { replicas: count(pods().count()), ready: count(pods().filter(|pod| pod.ready).count()) }
    };
    DebrosClusterStatus {
        observed_generation: cluster.metadata.generation,
        message: message(outcome),
        summary: format!("{ready}/{total}"),
        cluster_id: outcome.cluster_id.clone().or_else(|| before.cluster_id.clone()),
        current_revision: if all_there { target.clone() } else { before.current_revision.clone() },
        target_revision: target.or_else(|| before.target_revision.clone()),
        selector: query(&names.set_selector(Role::Peer)),
        bootstrap: set(Role::Bootstrap),
        peers: set(Role::Peer),
        members,
        conditions: conditions(cluster, outcome, &before, now),
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// What matters most, in one line.
fn message(outcome: &Outcome<'_>) -> String {
    let blocked = outcome.decision.iter().flat_map(|decision| &decision.blocked).map(told);
    let progress = outcome.decision.and_then(|decision| decision.progress.clone());
    let mut all = outcome.problems.iter().cloned().chain(blocked).chain(progress);
    shorten(all.next().unwrap_or_else(|| "everything is as it should be".to_owned()))
}

fn told(blocked: &Blocked) -> String {
    match blocked.pod {
        Some(PodId { role, ordinal }) => format!("{role}-{ordinal}: {}", blocked.reason),
        None => blocked.reason.clone(),
    }
}

fn shorten(text: String) -> String {
    match text.char_indices().nth(MESSAGE_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Every pod, and every member that has none.
fn members(cluster: &DebrosCluster, outcome: &Outcome<'_>) -> Vec<Member> {
    let (observed, names) = (outcome.observed, build::names(cluster));
    let before = cluster.status.iter().flat_map(|status| &status.members);
    let before: Vec<&Member> = before.collect();
    let blocked = |id: PodId| {
        let of_pod = outcome.decision?.blocked.iter().find(|blocked| blocked.pod == Some(id))?;
        Some(shorten(of_pod.reason.clone()))
    };
    let mut members: Vec<Member> = Vec::new();
    for pod in &observed.pods {
        let known = before.iter().find(|member| member.pod == pod.name);
        let mut member = Member {
            pod: pod.name.clone(),
            set: pod.id.role.to_string(),
            revision: pod.revision.clone(),
            ready: pod.serves(),
            blocked_reason: blocked(pod.id),
            ..Member::default()
        };
        match (&pod.node, known) {
            (Some(node), _) => {
                member.peer_id = node.peer_id.clone();
                member.node_id = node.node_id;
                member.version = node.version.clone();
                member.zone = node.zone.clone();
                let of_node = observed.present().find(|known| known.peer_id == node.peer_id);
                member.role = of_node.map(|known| role_of(known.voter)).unwrap_or_default();
                let behind = node.node_id.map(|id| is_behind(observed, id));
                member.lag = behind
                    .map(|behind| if behind { "behind" } else { "current" }.to_owned())
                    .unwrap_or_default();
            }
            // Who it was when it last answered: that is how a lost volume is told from a slow start.
            (None, Some(known)) => {
                member.peer_id = known.peer_id.clone();
                member.node_id = known.node_id;
                member.version = known.version.clone();
                member.zone = known.zone.clone();
            }
            (None, None) => {}
        }
        members.push(member);
    }
    // A pod that is away for a moment keeps its identity, too.
    let mut kept: Vec<Member> = Vec::new();
    for known in &before {
        let wanted = names.parse_pod(&known.pod).is_some_and(|(role, ordinal)| {
            ordinal < observed.sets.of(role).unwrap_or_default().max(replicas(cluster, role))
        });
        let still_member =
            observed.members.is_none() || observed.present().any(|member| member.peer_id == known.peer_id);
        let listed = members.iter().any(|member| member.pod == known.pod);
        if !known.pod.is_empty() && !listed && !known.peer_id.is_empty() && (wanted || still_member) {
            kept.push(Member {
                ready: false,
                blocked_reason: names
                    .parse_pod(&known.pod)
                    .and_then(|(role, ordinal)| blocked(PodId { role, ordinal })),
                ..(*known).clone()
            });
        }
    }
    members.extend(kept);
    let strangers =
        observed.present().filter(|present| members.iter().all(|member| member.peer_id != present.peer_id));
    let strangers = strangers.map(|present| Member {
        peer_id: present.peer_id.clone(),
        node_id: Some(present.node_id),
        role: role_of(present.voter),
        ready: present.connected && present.state == State::Active,
        ..Member::default()
    });
    let strangers: Vec<Member> = strangers.collect();
    members.extend(strangers);
    members
}

fn role_of(voter: bool) -> String {
    if voter { "voter" } else { "learner" }.to_owned()
}

fn replicas(cluster: &DebrosCluster, role: Role) -> i32 {
    match role {
        Role::Bootstrap => cluster.spec.bootstrap.replicas,
        Role::Peer => cluster.spec.peers.replicas,
    }
}

/// A verdict: whether, a word, a sentence.
type Verdict = (bool, &'static str, String);

fn conditions(
    cluster: &DebrosCluster,
    outcome: &Outcome<'_>,
    before: &DebrosClusterStatus,
    now: Timestamp,
) -> Vec<Condition> {
    let verdicts: [(&str, Verdict); 5] = [
        ("Available", available(outcome)),
        ("Progressing", progressing(outcome)),
        ("Degraded", degraded(cluster, outcome)),
        ("QuorumHealthy", quorum_healthy(outcome)),
        ("Reconciled", reconciled(outcome)),
    ];
    let condition = |(name, (holds, reason, message)): (&str, Verdict)| {
        let status = if holds { "True" } else { "False" };
        let same = before.conditions.iter().find(|known| known.type_ == name && known.status == status);
        Condition {
            type_: name.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: shorten(message),
            observed_generation: cluster.metadata.generation,
            last_transition_time: same.map_or(Time(now), |known| known.last_transition_time.clone()),
        }
    };
    verdicts.map(condition).into()
}

/// Clients are served: the cluster exists, its own group has a leader, and a node is ready.
fn available(outcome: &Outcome<'_>) -> Verdict {
    let observed = outcome.observed;
    let serving = observed.pods.iter().filter(|pod| pod.serves()).count();
    if outcome.cluster_id.is_none() {
        return (false, "NotInitialised", "the cluster is not initialised yet".to_owned());
    }
    let meta = observed.answering().flat_map(|(_, node)| &node.groups).filter(|group| group.name == "meta");
    let led = meta.into_iter().any(|group| group.leader != 0);
    match (serving, led) {
        (0, _) => (false, "NoNodeReady", "no node is ready; see the members".to_owned()),
        (_, false) => {
            (false, "NoLeader", "the nodes have no leader: a majority of the voters must run".to_owned())
        }
        (_, true) => (true, "Serving", "clients are served".to_owned()),
    }
}

fn progressing(outcome: &Outcome<'_>) -> Verdict {
    match outcome.decision.and_then(|decision| decision.progress.clone()) {
        Some(progress) => (true, "Working", progress),
        None => (false, "AtRest", "nothing is being changed".to_owned()),
    }
}

/// Something is missing that was asked for.
fn degraded(cluster: &DebrosCluster, outcome: &Outcome<'_>) -> Verdict {
    let observed = outcome.observed;
    let blocked = outcome.decision.iter().flat_map(|decision| &decision.blocked);
    if let Some(blocked) = blocked.into_iter().find(|blocked| !blocked.reason.starts_with("paused")) {
        return (true, "Blocked", told(blocked));
    }
    let wanted = cluster.spec.bootstrap.replicas + cluster.spec.peers.replicas;
    if wanted < i32::from(cluster.spec.replication_factor) {
        let message = format!(
            "{wanted} nodes keep no {} replicas: ask for more nodes, or lower spec.replicationFactor",
            cluster.spec.replication_factor
        );
        return (true, "TooFewNodes", message);
    }
    if let Some(warning) = observed.warnings.first() {
        return (true, "UnderReplicated", warning.clone());
    }
    if outcome.cluster_id.is_some()
        && let Some(pod) = observed.pods.iter().find(|pod| !pod.serves())
    {
        return (true, "NodeNotReady", format!("{} does not serve", pod.name));
    }
    (false, "Whole", "every node serves".to_owned())
}

/// One node more could fail.
fn quorum_healthy(outcome: &Outcome<'_>) -> Verdict {
    match whole(outcome.observed) {
        Ok(()) => (true, "Whole", "every group and every partition is whole".to_owned()),
        Err(why) => (false, "NotWhole", why),
    }
}

/// The resource was understood, and what it asks for was written.
fn reconciled(outcome: &Outcome<'_>) -> Verdict {
    match outcome.problems.first() {
        None => (
            true,
            "Reconciled",
            "the resource was understood, and its objects are as they should be".to_owned(),
        ),
        Some(problem) if outcome.wanted.is_none() => (false, "Invalid", problem.clone()),
        Some(problem) => (false, "Refused", problem.clone()),
    }
}

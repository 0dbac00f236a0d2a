//! What to do next: a pure function of what is wanted and what was seen. One step at a time, and only one that leaves
//! every quorum that the cluster could keep.
//!
//! The order of the questions is the order of what matters: is somebody down whom another revision would help
//! (`roll::mend`); does the cluster exist (`start`); is somebody asked for again who has left (`scale::begin_anew`); are
//! there members whose volume is gone (`replaced`); is somebody to be rolled (`roll`); are there to be fewer (`scale`). Whether a node may be missed is asked in one place (`gate`).
//!
//! It never asks what it did before: whatever it wants is what it sees not to be so.

mod gate;
mod replaced;
mod roll;
mod scale;
mod start;
mod version;

pub use gate::{CURRENT_LAG_MAX, budget, is_behind, whole};
pub use version::Version;

use crate::names::{BySet, Role};
use crate::observed::{Observed, PodId};

/// What the resource asks for, as far as steps depend on it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// Nodes of each set.
    pub replicas: BySet<i32>,
    /// The revision of each set's pods.
    pub revisions: BySet<String>,
    /// Replicas of a new database and of every key.
    pub replication_factor: usize,
    /// Nothing is to be changed.
    pub paused: bool,
    /// The version that the image's tag names.
    pub version: Option<Version>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Replicas that the StatefulSets are to have now.
    pub replicas: BySet<i32>,
    /// The one step.
    pub step: Step,
    /// What is under way, or is waited for.
    pub progress: Option<String>,
    /// What does not get on, and the next step of whoever can help.
    pub blocked: Vec<Blocked>,
}

impl Decision {
    /// Whether a pod goes or a node is missed by it: then it is decided twice.
    pub fn is_disruptive(&self, observed: &Observed) -> bool {
        let ends_a_pod =
            |role| observed.sets.of(role).is_some_and(|current| *self.replicas.of(role) < current);
        self.step.is_disruptive() || Role::ALL.into_iter().any(ends_a_pod)
    }
}

/// A step.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Step {
    /// Nothing.
    #[default]
    None,
    /// The cluster is initialised at this pod's node, which is asked to.
    Initialise(PodId),
    /// Nodes belong to this cluster: it is written down.
    Record(String),
    /// A member leaves. A pod that is alive hands over first; whoever is gone is taken out.
    TakeOut {
        /// The member.
        node_id: u64,
        /// Its pod, if it has one.
        pod: Option<PodId>,
    },
    /// A pod is ended, and comes back in the wanted revision.
    Restart {
        /// Which.
        pod: PodId,
        /// As it was seen.
        uid: String,
        /// As it was seen.
        resource_version: String,
        /// Its node hands over its leaderships first.
        hand_over: bool,
    },
}

impl Step {
    /// Whether a node is missed by it.
    fn is_disruptive(&self) -> bool {
        matches!(self, Self::TakeOut { .. } | Self::Restart { .. } | Self::Initialise(_))
    }
}

/// Something that does not get on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The pod, if it is about one.
    pub pod: Option<PodId>,
    /// Why, and the next step.
    pub reason: String,
}

impl Blocked {
    fn pod(pod: PodId, reason: impl Into<String>) -> Self {
        Self { pod: Some(pod), reason: reason.into() }
    }

    fn cluster(reason: impl Into<String>) -> Self {
        Self { pod: None, reason: reason.into() }
    }
}

/// What one question came to.
enum Answer {
    /// Nothing to do here: the next question.
    Pass,
    /// This, and no further question.
    Do(Step, String),
    /// Something is under way, and nothing else is begun.
    Wait(String),
    /// It does not get on, and nothing else is begun.
    Block(Blocked),
}

/// Decides.
pub fn decide(wanted: &Wanted, observed: &Observed) -> Decision {
    let mut decision = Decision {
        replicas: BySet::make(|role| scale::replicas(wanted, observed, role)),
        step: Step::None,
        progress: None,
        blocked: troubles(observed),
    };
    if wanted.paused {
        decision.replicas =
            BySet::make(|role| observed.sets.of(role).unwrap_or_else(|| scale::floor(observed, role)));
        decision
            .blocked
            .push(Blocked::cluster("paused: nothing is changed; set spec.paused to false to go on"));
        return decision;
    }
    for question in [roll::mend, start::ask, scale::begin_anew, replaced::ask, roll::ask, scale::ask] {
        match question(wanted, observed) {
            Answer::Pass => {}
            Answer::Do(step, progress) => {
                decision.step = step;
                decision.progress = Some(progress);
                return decision;
            }
            Answer::Wait(progress) => {
                decision.progress = Some(progress);
                return decision;
            }
            Answer::Block(blocked) => {
                decision.blocked.push(blocked);
                return decision;
            }
        }
    }
    decision.progress = missing(&decision.replicas, observed);
    decision
}

/// Pods that Kubernetes does not get on with, and nodes that are not let in.
fn troubles(observed: &Observed) -> Vec<Blocked> {
    let mut blocked = Vec::new();
    for pod in &observed.pods {
        if let Some(trouble) = &pod.trouble {
            blocked.push(Blocked::pod(pod.id, trouble.clone()));
        }
        let belongs_to = pod.node.as_ref().and_then(|node| node.belongs_to.as_ref());
        if let (Some(recorded), Some(other)) = (&observed.recorded, belongs_to)
            && recorded != other
        {
            let reason = format!(
                "its volume belongs to cluster {other}, and this is {recorded}: if nothing on it is needed, delete its \
                 claim and the pod, and it joins anew"
            );
            blocked.push(Blocked::pod(pod.id, reason));
        }
    }
    blocked
}

/// What is waited for when nothing is to be done.
fn missing(replicas: &BySet<i32>, observed: &Observed) -> Option<String> {
    for role in Role::ALL {
        for ordinal in 0..*replicas.of(role) {
            let id = PodId { role, ordinal };
            let joined = |peer: &str| observed.member(peer).is_some();
            let Some(pod) = observed.pod(id) else { return Some(format!("{role}-{ordinal} is being made")) };
            if !pod.serves() {
                return Some(format!("{} is starting", pod.name));
            }
            if pod.node.as_ref().is_some_and(|node| !joined(&node.peer_id)) {
                return Some(format!("{} is joining", pod.name));
            }
        }
    }
    None
}

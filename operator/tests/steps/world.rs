//! Kubernetes around the cluster in memory: StatefulSets that make and end pods, pods that take their time, and an
//! operator that looks, decides and does. Each step is judged as it is taken.

use std::collections::BTreeMap;

use operator::decide::{Decision, Step, Wanted, decide};
use operator::names::{BySet, Role};
use operator::observed::{Claim, Observed, Pod, PodId, SpareClaim, State};

use crate::support::Cluster;

/// A pod takes so long to start.
const STARTS_WITHIN: u32 = 3;
/// And so long to end.
const ENDS_WITHIN: u32 = 2;
const TICKS_MAX: usize = 600;

/// Something that happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// The resource asks for another number of nodes.
    Scale(Role, i32),
    /// The resource asks for another revision, which may not work.
    Roll { works: bool },
    /// Somebody ends a pod.
    End(PodId),
    /// A volume is lost, with its pod.
    LoseVolume(PodId),
    /// The status is lost.
    LoseStatus,
    /// Somebody edits a StatefulSet's replicas; only upwards, or pods go that nobody let leave.
    EditSet(Role, i32),
    /// Somebody deletes a StatefulSet, and its pods with it.
    DeleteSet(Role),
}

struct KubePod {
    uid: u32,
    revision: u32,
    starts_in: u32,
    ends_in: Option<u32>,
}

/// All of it.
pub(crate) struct World {
    /// The nodes.
    pub(crate) cluster: Cluster,
    /// What was written down.
    pub(crate) recorded: Option<String>,
    /// Every step that was taken.
    pub(crate) steps: Vec<Step>,
    /// Claims are older than the resource.
    pub(crate) earlier_claims: bool,
    /// A claim without a pod.
    pub(crate) spare: Option<PodId>,
    /// The resource's replication factor.
    pub(crate) replication_factor: usize,
    /// The resource is paused.
    pub(crate) paused: bool,
    wanted: BySet<i32>,
    revision: u32,
    works: BTreeMap<u32, bool>,
    sets: BySet<Option<i32>>,
    pods: BTreeMap<PodId, KubePod>,
    known: Vec<(PodId, String)>,
    minted: u32,
    last: Option<Decision>,
}

impl World {
    /// A resource that asks for these nodes; the cluster will have these databases.
    pub(crate) fn new(wanted: BySet<i32>, databases: &[usize]) -> Self {
        Self {
            cluster: Cluster::with_databases(databases),
            recorded: None,
            steps: Vec::new(),
            earlier_claims: false,
            spare: None,
            replication_factor: 3,
            paused: false,
            wanted,
            revision: 1,
            works: BTreeMap::from([(1, true)]),
            sets: BySet::default(),
            pods: BTreeMap::new(),
            known: Vec::new(),
            minted: 0,
            last: None,
        }
    }

    /// Something happens. What would be a fault beyond what three replicas bear does not.
    pub(crate) fn happen(&mut self, event: Event) {
        match event {
            Event::Scale(role, replicas) => *self.wanted.of_mut(role) = replicas,
            Event::Roll { works } => {
                self.revision += 1;
                self.works.insert(self.revision, works);
            }
            Event::End(pod) => self.end(pod),
            Event::LoseVolume(pod)
                if self.cluster.is_whole()
                    && self.cluster.can_miss(pod)
                    && self.pods_down() == 0
                    && self.is_at_rest() =>
            {
                if self.pods.remove(&pod).is_some() {
                    self.cluster.lose_volume(pod);
                }
            }
            Event::LoseVolume(_) => {}
            Event::LoseStatus => self.known.clear(),
            Event::EditSet(role, more) => {
                if let Some(replicas) = self.sets.of_mut(role) {
                    *replicas += more;
                }
            }
            Event::DeleteSet(role) => {
                *self.sets.of_mut(role) = None;
                let pods: Vec<PodId> = self.pods.keys().copied().filter(|pod| pod.role == role).collect();
                pods.into_iter().for_each(|pod| self.end(pod));
            }
        }
    }

    /// Nobody leaves and nobody is being replaced.
    fn is_at_rest(&self) -> bool {
        let answers = self.cluster.answers();
        answers.members.is_some_and(|members| members.iter().all(|member| member.state != State::Leaving))
    }

    fn end(&mut self, pod: PodId) {
        if let Some(there) = self.pods.get_mut(&pod)
            && there.ends_in.is_none()
        {
            there.ends_in = Some(ENDS_WITHIN);
            self.cluster.stop(pod);
        }
    }

    /// Kubernetes works, the nodes work, and the operator looks once.
    pub(crate) fn tick(&mut self) {
        self.kubernetes();
        self.cluster.tick();
        let observed = self.observe();
        let decision = decide(&self.wanted(), &observed);
        for role in Role::ALL {
            *self.sets.of_mut(role) = Some(*decision.replicas.of(role));
        }
        self.take(&decision.step);
        self.write_status(&observed);
        self.last = Some(decision);
    }

    /// Until what is wanted is there.
    pub(crate) fn settle(&mut self) {
        for _ in 0..TICKS_MAX {
            self.tick();
            if self.is_reached() {
                return;
            }
        }
        panic!("not reached: {}", self.tell());
    }

    fn kubernetes(&mut self) {
        for role in Role::ALL {
            let replicas = self.sets.of(role).unwrap_or_default();
            let surplus: Vec<PodId> =
                self.pods.keys().copied().filter(|pod| pod.role == role && pod.ordinal >= replicas).collect();
            if self.sets.of(role).is_some() {
                for pod in surplus {
                    self.end(pod);
                }
            }
            for ordinal in 0..replicas {
                let revision = self.revision;
                let minted = &mut self.minted;
                self.pods.entry(PodId { role, ordinal }).or_insert_with(|| {
                    *minted += 1;
                    KubePod { uid: *minted, revision, starts_in: STARTS_WITHIN, ends_in: None }
                });
            }
        }
        let mut gone = Vec::new();
        for (id, pod) in &mut self.pods {
            if let Some(ends_in) = &mut pod.ends_in {
                *ends_in -= 1;
                if *ends_in == 0 {
                    gone.push(*id);
                }
            } else if pod.starts_in > 0 {
                pod.starts_in -= 1;
                if pod.starts_in == 0 && self.works[&pod.revision] {
                    self.cluster.start(*id);
                } else if pod.starts_in == 0 {
                    pod.starts_in = 1;
                }
            }
        }
        for id in gone {
            self.pods.remove(&id);
            // Volumes go with members that left: the policy is Delete.
            if self.sets.of(id.role).is_some_and(|replicas| id.ordinal >= replicas) {
                self.cluster.volumes.remove(&id);
            }
        }
    }

    fn take(&mut self, step: &Step) {
        let before = self.cluster.without_quorum();
        match step {
            Step::None => return,
            Step::Record(id) => self.recorded = Some(id.clone()),
            Step::Initialise(pod) => self.recorded = self.cluster.initialise(*pod).ok(),
            Step::TakeOut { node_id, .. } => {
                let _ = self.cluster.leave(*node_id);
            }
            Step::Restart { pod, uid, hand_over, .. } => {
                assert_eq!(self.pods[pod].uid.to_string(), *uid);
                if *hand_over {
                    self.cluster.hand_over(*pod);
                }
                self.end(*pod);
            }
        }
        self.steps.push(step.clone());
        let after = self.cluster.without_quorum();
        let lost: Vec<_> = after.iter().filter(|group| !before.contains(group)).collect();
        assert!(lost.is_empty(), "{step:?} cost the quorum of {lost:?}");
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            replicas: self.wanted,
            revisions: BySet::make(|_| self.revision.to_string()),
            replication_factor: self.replication_factor,
            paused: self.paused,
            version: None,
        }
    }

    fn observe(&self) -> Observed {
        let mut answers = self.cluster.answers();
        let pods = self.pods.iter().map(|(id, pod)| {
            let node = answers.nodes.remove(id);
            let serves = node.as_ref().is_some_and(|node| {
                node.node_id.is_some() && node.groups.iter().all(|group| group.leader != 0)
            });
            Pod {
                id: *id,
                name: format!("c-{}-{}", id.role, id.ordinal),
                uid: pod.uid.to_string(),
                resource_version: String::new(),
                ready: serves && pod.ends_in.is_none(),
                running: node.is_some(),
                terminating: pod.ends_in.is_some(),
                revision: pod.revision.to_string(),
                claim: Claim { bound: self.cluster.volumes.contains_key(id), earlier: self.earlier_claims },
                trouble: (!self.works[&pod.revision]).then(|| "its image cannot be pulled".to_owned()),
                node,
            }
        });
        let pods = pods.collect();
        let spare = self.spare.map(|id| SpareClaim {
            name: format!("data-c-{}-{}", id.role, id.ordinal),
            id,
            bound: true,
        });
        Observed {
            recorded: self.recorded.clone(),
            sets: self.sets,
            pods,
            spare_claims: spare.into_iter().collect(),
            members: answers.members,
            known: self.known.clone(),
            warnings: Vec::new(),
        }
    }

    /// As the status does it: who a pod was when it was last heard.
    fn write_status(&mut self, observed: &Observed) {
        for (pod, node) in observed.answering() {
            self.known.retain(|(id, _)| *id != pod.id);
            self.known.push((pod.id, node.peer_id.clone()));
        }
        let members = observed.members.as_ref();
        let (sets, wanted) = (self.sets, self.wanted);
        self.known.retain(|(id, peer)| {
            let expected = sets.of(id.role).unwrap_or_default().max(*wanted.of(id.role));
            id.ordinal < expected
                || members.is_none_or(|all| {
                    all.iter().any(|member| member.peer_id == *peer && member.state != State::Removed)
                })
        });
    }

    /// Whether everything is as it is wanted.
    pub(crate) fn is_reached(&self) -> bool {
        let counts = Role::ALL.into_iter().all(|role| {
            *self.sets.of(role) == Some(*self.wanted.of(role))
                && self.pods.keys().filter(|pod| pod.role == role).count() == *self.wanted.of(role) as usize
        });
        let total = (self.wanted.bootstrap + self.wanted.peer) as usize;
        counts
            && self.pods.values().all(|pod| pod.revision == self.revision && pod.ends_in.is_none())
            && self.cluster.running.len() == total
            && self.cluster.active() == total
            && self.is_at_rest()
            && self.cluster.is_whole()
            && self.recorded == self.cluster.id
            && self
                .last
                .as_ref()
                .is_some_and(|decision| decision.step == Step::None && decision.progress.is_none())
    }

    /// Pods that should serve and do not.
    pub(crate) fn pods_down(&self) -> usize {
        self.pods.keys().filter(|pod| !self.cluster.running.contains(pod)).count()
    }

    /// The pod whose node leads the cluster's own group.
    pub(crate) fn meta_leader(&self) -> Option<PodId> {
        let answers = self.cluster.answers();
        let leads =
            |pod: &&PodId| answers.nodes[pod].groups.iter().any(|group| group.leads && group.name == "meta");
        self.cluster.running.iter().find(leads).copied()
    }

    /// What the last look came to.
    pub(crate) fn tell(&self) -> String {
        let decision = self.last.as_ref().map(|decision| format!("{decision:?}")).unwrap_or_default();
        let pods = self.pods.iter().map(|(id, pod)| format!("{}-{} r{}", id.role, id.ordinal, pod.revision));
        let pods: Vec<_> = pods.collect();
        format!(
            "{decision}\npods {pods:?}\nrunning {:?}\nmembers {:?}\nwanted {:?} revision {}",
            self.cluster.running,
            self.cluster.answers().members,
            self.wanted,
            self.revision
        )
    }
}

//! A cluster of debros in memory, as far as an operator can tell it from a real one: identities that live on volumes,
//! members that join, leave and hand over, Raft groups whose voters are replaced one by one and catch up. Time is
//! ticks. It keeps its own account of what must never happen.

use std::collections::{BTreeMap, BTreeSet};

use operator::nodes::Answers;
use operator::observed::{Group, Member, Node, PodId, State, Storage};

/// What a replica catches up in a tick.
const CATCH_UP: u64 = 4_000;
/// What is written in a tick.
const WRITTEN: u64 = 50;
/// What a group begins with: more than one tick's worth.
const BEGINS_WITH: u64 = 9_000;

/// A node's volume: its identity, and what it vouches for.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    /// The identity.
    pub(crate) peer_id: String,
    /// The cluster.
    pub(crate) belongs_to: Option<String>,
    /// Its number there.
    pub(crate) node_id: Option<u64>,
}

/// A Raft group.
#[derive(Clone, Debug)]
pub(crate) struct Replicated {
    id: u64,
    name: String,
    replicas: usize,
    voters: BTreeSet<u64>,
    learners: BTreeSet<u64>,
    leader: u64,
    length: u64,
    applied: BTreeMap<u64, u64>,
}

/// The cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cluster {
    /// How often it was initialised.
    pub(crate) initialised: u32,
    /// Its id.
    pub(crate) id: Option<String>,
    /// Volumes by pod; a volume outlives its pod.
    pub(crate) volumes: BTreeMap<PodId, Volume>,
    /// Pods whose node runs.
    pub(crate) running: BTreeSet<PodId>,
    members: Vec<(u64, String, State)>,
    groups: Vec<Replicated>,
    minted: u64,
    version: String,
}

impl Cluster {
    /// A cluster that will have these databases, by their replicas.
    pub(crate) fn with_databases(replicas: &[usize]) -> Self {
        let group = |id: u64, name: String, replicas: usize| Replicated {
            id,
            name,
            replicas,
            voters: BTreeSet::new(),
            learners: BTreeSet::new(),
            leader: 0,
            length: 0,
            applied: BTreeMap::new(),
        };
        let databases =
            replicas.iter().zip(1..).map(|(replicas, id)| group(id, format!("app/db{id}"), *replicas));
        let groups = std::iter::once(group(0, "meta".to_owned(), 0)).chain(databases).collect();
        Self { groups, version: "0.1.0".to_owned(), ..Self::default() }
    }

    /// A node begins on a pod's volume; on a new one it is somebody new.
    pub(crate) fn start(&mut self, pod: PodId) {
        // Who has left begins anew beside what it was.
        let left = self.volumes.get(&pod).is_some_and(|volume| self.has_left(volume));
        if left || !self.volumes.contains_key(&pod) {
            self.minted += 1;
            let peer_id = format!("peer-{}", self.minted);
            self.volumes.insert(pod, Volume { peer_id, belongs_to: None, node_id: None });
        }
        self.running.insert(pod);
    }

    fn has_left(&self, volume: &Volume) -> bool {
        let of_volume = |member: &&(u64, String, State)| Some(member.0) == volume.node_id;
        self.members.iter().find(of_volume).is_some_and(|(.., state)| *state == State::Removed)
    }

    /// A node ends, having handed over what it leads if anybody can take it.
    pub(crate) fn stop(&mut self, pod: PodId) {
        self.running.remove(&pod);
        self.elect();
    }

    /// Everything of a pod is lost.
    pub(crate) fn lose_volume(&mut self, pod: PodId) {
        self.stop(pod);
        self.volumes.remove(&pod);
    }

    /// A node is asked to initialise.
    pub(crate) fn initialise(&mut self, pod: PodId) -> Result<String, String> {
        let volume = self.volumes.get_mut(&pod).filter(|_| self.running.contains(&pod)).ok_or("no answer")?;
        if let Some(id) = &volume.belongs_to {
            return Err(format!("it belongs to {id}"));
        }
        self.initialised += 1;
        let id = format!("{:032x}", self.initialised);
        volume.belongs_to = Some(id.clone());
        volume.node_id = Some(1);
        self.members = vec![(1, volume.peer_id.clone(), State::Active)];
        self.id = Some(id.clone());
        for group in &mut self.groups {
            group.voters = BTreeSet::from([1]);
            group.length = BEGINS_WITH;
            group.applied = BTreeMap::from([(1, BEGINS_WITH)]);
            group.leader = 1;
        }
        Ok(id)
    }

    /// A member is asked to leave. `true` when it is out.
    pub(crate) fn leave(&mut self, node_id: u64) -> Result<bool, String> {
        if !self.has_quorum(&self.groups[0]) {
            return Err("the cluster map has no quorum".to_owned());
        }
        let active = self.members.iter().filter(|(_, _, state)| *state == State::Active).count();
        let member =
            self.members.iter_mut().find(|(id, ..)| *id == node_id).ok_or("there is no such member")?;
        match member.2 {
            State::Removed => return Ok(true),
            State::Active if active <= 1 => return Err("the last node cannot leave".to_owned()),
            State::Active | State::Leaving => member.2 = State::Leaving,
        }
        Ok(false)
    }

    /// A node hands over what it leads.
    pub(crate) fn hand_over(&mut self, pod: PodId) {
        let Some(node_id) = self.node_id(pod) else { return };
        for group in self.groups.iter_mut().filter(|group| group.leader == node_id) {
            let others = group.voters.iter().copied().filter(|voter| *voter != node_id);
            let current = others.filter(|voter| group.applied.get(voter) == Some(&group.length));
            if let Some(successor) = current.max() {
                group.leader = successor;
            }
        }
        self.elect();
    }

    /// Time passes.
    pub(crate) fn tick(&mut self) {
        self.write();
        self.elect();
        self.admit();
        self.place();
        self.elect();
    }

    fn node_id(&self, pod: PodId) -> Option<u64> {
        self.volumes.get(&pod)?.node_id
    }

    fn alive(&self) -> BTreeSet<u64> {
        self.running.iter().filter_map(|pod| self.node_id(*pod)).collect()
    }

    fn has_quorum(&self, group: &Replicated) -> bool {
        let alive = self.alive();
        group.voters.intersection(&alive).count() * 2 > group.voters.len()
    }

    /// Groups of three voters or more that have no quorum: what no step of an operator may bring about.
    pub(crate) fn without_quorum(&self) -> Vec<String> {
        let redundant = self.groups.iter().filter(|group| group.voters.len() >= 3);
        redundant.filter(|group| !self.has_quorum(group)).map(|group| group.name.clone()).collect()
    }

    /// Whether everything has a quorum without this pod, whatever becomes of its volume.
    pub(crate) fn can_miss(&self, pod: PodId) -> bool {
        let mut others = self.alive();
        if let Some(node_id) = self.node_id(pod) {
            others.remove(&node_id);
        }
        self.groups.iter().all(|group| group.voters.intersection(&others).count() * 2 > group.voters.len())
    }

    /// Whether everything has a quorum and every replica is current.
    pub(crate) fn is_whole(&self) -> bool {
        let alive = self.alive();
        self.groups.iter().all(|group| {
            self.has_quorum(group)
                && (group.id == 0 || group.learners.is_empty())
                && group.voters.iter().all(|voter| {
                    alive.contains(voter)
                        && group.applied.get(voter).is_some_and(|at| at + 1000 >= group.length)
                })
        })
    }

    fn write(&mut self) {
        let alive = self.alive();
        let quorums: Vec<bool> = self.groups.iter().map(|group| self.has_quorum(group)).collect();
        for (group, quorum) in self.groups.iter_mut().zip(quorums) {
            if !quorum || group.leader == 0 {
                continue;
            }
            group.length += WRITTEN;
            let members: Vec<u64> = group.voters.union(&group.learners).copied().collect();
            for member in members.into_iter().filter(|member| alive.contains(member)) {
                let applied = group.applied.entry(member).or_default();
                *applied = (*applied + CATCH_UP).min(group.length);
            }
        }
    }

    fn elect(&mut self) {
        let alive = self.alive();
        let quorums: Vec<bool> = self.groups.iter().map(|group| self.has_quorum(group)).collect();
        for (group, quorum) in self.groups.iter_mut().zip(quorums) {
            if group.leader != 0
                && alive.contains(&group.leader)
                && group.voters.contains(&group.leader)
                && quorum
            {
                continue;
            }
            let candidates = group.voters.intersection(&alive).copied();
            let best = candidates.max_by_key(|voter| group.applied.get(voter).copied().unwrap_or_default());
            group.leader = best.filter(|_| quorum).unwrap_or_default();
        }
    }

    /// Nodes that run and belong nowhere join.
    fn admit(&mut self) {
        let Some(id) = self.id.clone().filter(|_| self.has_quorum(&self.groups[0])) else { return };
        for pod in self.running.clone() {
            let Some(volume) = self.volumes.get_mut(&pod).filter(|volume| volume.belongs_to.is_none()) else {
                continue;
            };
            let node_id = self.members.iter().map(|(id, ..)| *id).max().unwrap_or_default() + 1;
            self.members.push((node_id, volume.peer_id.clone(), State::Active));
            volume.belongs_to = Some(id.clone());
            volume.node_id = Some(node_id);
        }
    }

    /// Groups get the members they should have, one change at a time, and only where they have a quorum.
    fn place(&mut self) {
        if !self.has_quorum(&self.groups[0]) {
            return;
        }
        let alive = self.alive();
        let active: BTreeSet<u64> =
            self.members.iter().filter(|(_, _, state)| *state == State::Active).map(|(id, ..)| *id).collect();
        let quorums: Vec<bool> = self.groups.iter().map(|group| self.has_quorum(group)).collect();
        for (group, quorum) in self.groups.iter_mut().zip(quorums) {
            if quorum {
                place_one(group, &active, &alive);
            }
        }
        for (node_id, _, state) in &mut self.members {
            let held = self
                .groups
                .iter()
                .any(|group| group.voters.contains(&*node_id) || group.learners.contains(&*node_id));
            if *state == State::Leaving && !held {
                *state = State::Removed;
            }
        }
    }

    /// What the nodes of these pods say, and the one that leads of the members.
    pub(crate) fn answers(&self) -> Answers {
        let mut answers = Answers::default();
        for pod in &self.running {
            answers.nodes.insert(*pod, self.node(*pod));
        }
        let alive = self.alive();
        let connected: BTreeSet<&str> =
            self.running.iter().map(|pod| self.volumes[pod].peer_id.as_str()).collect();
        if self.groups[0].leader != 0 && alive.contains(&self.groups[0].leader) {
            let member = |(node_id, peer_id, state): &(u64, String, State)| Member {
                node_id: *node_id,
                peer_id: peer_id.clone(),
                state: *state,
                voter: self.groups[0].voters.contains(node_id),
                connected: connected.contains(peer_id.as_str()),
            };
            let present = self.members.iter().filter(|(.., state)| *state != State::Removed);
            answers.members = Some(present.map(member).collect());
        }
        answers
    }

    fn node(&self, pod: PodId) -> Node {
        let volume = &self.volumes[&pod];
        let node_id = volume.node_id;
        let of_node = |group: &&Replicated| {
            node_id.is_some_and(|id| group.voters.contains(&id) || group.learners.contains(&id))
        };
        let group = |group: &Replicated| Group {
            id: group.id,
            name: group.name.clone(),
            leader: group.leader,
            leads: Some(group.leader) == node_id,
            last: group.applied.get(&node_id.unwrap_or_default()).copied().unwrap_or_default(),
            applied: group.applied.get(&node_id.unwrap_or_default()).copied().unwrap_or_default(),
            voters: group.voters.clone(),
            learners: group.learners.clone(),
        };
        Node {
            peer_id: volume.peer_id.clone(),
            node_id,
            belongs_to: volume.belongs_to.clone(),
            begins_anew: self.has_left(volume),
            version: self.version.clone(),
            zone: String::new(),
            groups: self.groups.iter().filter(of_node).map(group).collect(),
            storage: node_id.map(|_| Storage { layout: 1, stable: true, to_copy: 0, hints: false }),
        }
    }

    /// Members that take part.
    pub(crate) fn active(&self) -> usize {
        self.members.iter().filter(|(_, _, state)| *state == State::Active).count()
    }
}

/// One change of one group.
fn place_one(group: &mut Replicated, active: &BTreeSet<u64>, alive: &BTreeSet<u64>) {
    let wanted = match group.id {
        0 => match active.len() {
            0..=2 => 1,
            3 | 4 => 3,
            _ => 5,
        },
        _ => group.replicas.min(active.len()),
    };
    let staying: BTreeSet<u64> = group.voters.intersection(active).copied().collect();
    // Every node follows the cluster's map.
    if group.id == 0 {
        group.learners = active.difference(&group.voters).copied().collect();
    }
    let ready = group.learners.iter().copied().find(|learner| {
        let current = group.applied.get(learner).is_some_and(|at| *at >= group.length);
        current && alive.contains(learner) && staying.len() < wanted
    });
    if let Some(ready) = ready {
        group.learners.remove(&ready);
        group.voters.insert(ready);
        return;
    }
    if group.id != 0 && staying.len() + group.learners.len() < wanted {
        let known = |id: &u64| group.voters.contains(id) || group.learners.contains(id);
        let next = active.intersection(alive).copied().find(|id| !known(id));
        if let Some(next) = next {
            group.learners.insert(next);
            group.applied.insert(next, 0);
        }
    }
    let too_many = staying.len() > wanted;
    let leaving = group.voters.difference(active).copied().next().filter(|_| staying.len() >= wanted);
    let surplus = group.voters.iter().rev().copied().find(|voter| too_many && *voter != group.leader);
    if let Some(gone) = leaving.or(surplus) {
        group.voters.remove(&gone);
        group.applied.remove(&gone);
        if group.leader == gone {
            group.leader = 0;
        }
    }
    group.learners.retain(|learner| active.contains(learner));
}

//! Brings a group's Raft membership, step by step, to what the cluster map asks for.
//!
//! [`next_step`] is a pure function of what is and what should be; the leader takes one step at a
//! time and looks again. It never shrinks the voters before their replacements have caught up.

use std::collections::{BTreeMap, BTreeSet};

use debros_net::PeerId;
use debros_proto::NodeId;

use super::group::{Group, MembershipError, Role, Status};

/// A new replica votes once it lacks no more than this many entries.
const CAUGHT_UP_ENTRIES: u64 = 1000;

/// Who should be in a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Who should vote.
    pub voters: BTreeMap<NodeId, PeerId>,
    /// Who should follow without a vote.
    pub learners: BTreeMap<NodeId, PeerId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    AddLearner(NodeId, PeerId),
    SetVoters(BTreeSet<NodeId>),
    RemoveLearners(BTreeSet<NodeId>),
    /// The leader is to go: another voter takes over first.
    Transfer(NodeId),
}

/// The next thing to do; `None` when all is as it should be, or must first catch up.
pub(super) fn next_step(status: &Status, this: NodeId, desired: &Desired) -> Option<Step> {
    if status.role != Role::Leader || desired.voters.is_empty() {
        return None;
    }
    let present = |node: &NodeId| status.voters.contains(node) || status.learners.contains(node);
    let missing = desired.voters.iter().chain(&desired.learners).find(|(node, _)| !present(node));
    if let Some((node, peer)) = missing {
        return Some(Step::AddLearner(*node, *peer));
    }
    let wanted: BTreeSet<NodeId> = desired.voters.keys().copied().collect();
    let heir = || wanted.iter().find(|node| status.voters.contains(node)).filter(|_| !wanted.contains(&this));
    if wanted != status.voters || status.joint {
        let ready = |node: &NodeId| {
            *node == this
                || status.voters.contains(node)
                || status.lag.get(node).is_some_and(|lag| *lag <= CAUGHT_UP_ENTRIES)
        };
        if !wanted.iter().all(ready) {
            return None;
        }
        if let Some(next) = heir() {
            return Some(Step::Transfer(*next));
        }
        return Some(Step::SetVoters(wanted));
    }
    // Whoever had a vote before the last change may still have been elected before that was committed.
    if let Some(next) = heir() {
        return Some(Step::Transfer(*next));
    }
    let superfluous: BTreeSet<NodeId> =
        status.learners.iter().filter(|node| !desired.learners.contains_key(node)).copied().collect();
    (!superfluous.is_empty()).then_some(Step::RemoveLearners(superfluous))
}

impl Group {
    /// Takes the next step towards `desired`, if this replica leads and there is one. Gives whether
    /// the one after it may follow at once.
    ///
    /// # Errors
    /// When the step was refused; the next call looks again.
    pub async fn align(&self, desired: &Desired) -> Result<bool, MembershipError> {
        let Some(step) = next_step(&self.status(), self.node(), desired) else { return Ok(false) };
        tracing::info!(group = %self.id(), ?step, "changing the members of a group");
        match step {
            Step::AddLearner(node, peer) => self.add_learner(node, peer).await?,
            Step::SetVoters(voters) => self.set_voters(voters, true).await?,
            Step::RemoveLearners(nodes) => self.remove_learners(nodes).await?,
            Step::Transfer(node) => {
                self.transfer_leader(node).await?;
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use debros_net::PeerId;
    use debros_proto::NodeId;

    use super::{Desired, Role, Status, Step, next_step};

    fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn leader(voters: &[u64], learners: &[u64], lag: &[(u64, u64)]) -> Status {
        Status {
            role: Role::Leader,
            term: 1,
            leader: Some(NodeId(1)),
            last_log_index: 5000,
            applied_index: 5000,
            durable_index: 0,
            purged_index: 0,
            voters: ids(voters),
            learners: ids(learners),
            joint: false,
            lag: lag.iter().map(|(node, lag)| (NodeId(*node), *lag)).collect(),
            quorum_answered: None,
        }
    }

    fn desired(voters: &[u64], learners: &[u64]) -> Desired {
        let peers = |ids: &[u64]| -> BTreeMap<NodeId, PeerId> {
            ids.iter().map(|id| (NodeId(*id), PeerId::random())).collect()
        };
        Desired { voters: peers(voters), learners: peers(learners) }
    }

    #[test]
    fn a_new_voter_learns_first_and_votes_when_it_has_caught_up() {
        let wanted = desired(&[1, 2, 3], &[]);
        let step = next_step(&leader(&[1], &[], &[]), NodeId(1), &wanted);
        assert!(matches!(step, Some(Step::AddLearner(NodeId(2), _))));
        let behind = leader(&[1], &[2, 3], &[(2, 0), (3, 4000)]);
        assert_eq!(next_step(&behind, NodeId(1), &wanted), None, "node 3 lacks too much to vote");
        let silent = leader(&[1], &[2, 3], &[(2, 0)]);
        assert_eq!(next_step(&silent, NodeId(1), &wanted), None, "node 3 never answered");
        let ready = leader(&[1], &[2, 3], &[(2, 0), (3, 10)]);
        assert_eq!(next_step(&ready, NodeId(1), &wanted), Some(Step::SetVoters(ids(&[1, 2, 3]))));
    }

    #[test]
    fn a_leader_that_is_to_go_hands_over_first() {
        let wanted = desired(&[2, 3, 4], &[]);
        let status = leader(&[1, 2, 3], &[4], &[(2, 0), (3, 0), (4, 0)]);
        assert_eq!(next_step(&status, NodeId(1), &wanted), Some(Step::Transfer(NodeId(2))));
    }

    #[test]
    fn a_leader_that_was_elected_after_its_vote_was_taken_hands_over_too() {
        let status = leader(&[2, 3, 4], &[1], &[]);
        let step = next_step(&status, NodeId(1), &desired(&[2, 3, 4], &[1]));
        assert_eq!(step, Some(Step::Transfer(NodeId(2))));
    }

    #[test]
    fn who_is_no_longer_wanted_is_removed_last() {
        let status = leader(&[1, 2], &[3, 9], &[]);
        let step = next_step(&status, NodeId(1), &desired(&[1, 2], &[3]));
        assert_eq!(step, Some(Step::RemoveLearners(ids(&[9]))));
    }

    #[test]
    fn only_the_leader_acts_and_never_towards_an_empty_group() {
        let mut status = leader(&[1], &[], &[]);
        assert_eq!(next_step(&status, NodeId(1), &Desired::default()), None);
        status.role = Role::Follower;
        assert_eq!(next_step(&status, NodeId(1), &desired(&[1, 2], &[])), None);
    }
}

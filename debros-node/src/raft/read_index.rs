//! ReadIndex (Raft dissertation, section 6.4): a leader serves reads after a quorum has confirmed that it
//! still leads.
//!
//! openraft's own round is not used: it credits an answer with the sending time of later requests
//! that carried no entries, so an answer from before a read began can confirm that read. Here every round
//! asks anew, and only answers to its own questions count.

use std::collections::BTreeSet;
use std::time::Duration;

use debros_proto::NodeId;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};

use super::group::{Leader, Raft, ReadIndexError};
use super::network::{Confirmation, GroupNetwork};
use super::types::{Membership, Vote};

/// Reads waiting for one confirmation of leadership; past it the answer is "busy".
pub(super) const READS_WAITING_MAX: usize = 4096;
/// A read that finds no quorum within this is refused.
const READ_INDEX_TIMEOUT: Duration = Duration::from_secs(2);

/// A read, waiting to be told the index that it has to see.
pub(super) type Read = oneshot::Sender<Result<u64, ReadIndexError>>;

/// One round confirms every read that waited when it began.
pub(super) async fn confirm_reads(raft: Raft, network: GroupNetwork, mut waiting: mpsc::Receiver<Read>) {
    let mut round = Vec::new();
    while waiting.recv_many(&mut round, READS_WAITING_MAX).await > 0 {
        let confirmed = tokio::time::timeout(READ_INDEX_TIMEOUT, confirm(&raft, &network)).await;
        let result = confirmed.unwrap_or(Err(ReadIndexError::NoQuorum));
        for read in round.drain(..) {
            // Nobody waits any more where the request was given up.
            let _ = read.send(result.clone());
        }
    }
}

/// What the replica itself knows, once the reads of the round are there.
struct Standing {
    vote: Vote,
    /// Every acknowledged write is at or before this index, if this replica leads.
    index: u64,
    membership: Membership,
}

async fn confirm(raft: &Raft, network: &GroupNetwork) -> Result<u64, ReadIndexError> {
    // Asked of the replica's core, not of its published metrics: a vote for another leader counts from the
    // moment it was given.
    let standing = raft.with_raft_state(|state| {
        let vote = *state.vote_ref();
        let committed = state.cluster_committed();
        // A new leader knows what its predecessors acknowledged once an entry of its own is committed.
        let own = committed.filter(|id| id.leader_id == vote.leader_id);
        let index = own.or_else(|| state.log_ids.last());
        let membership = state.membership_state.effective().membership().clone();
        Standing { vote, index: index.map_or(0, |id| id.index), membership }
    });
    let standing = standing.await.map_err(|fatal| ReadIndexError::Stopped(fatal.to_string()))?;
    let Standing { vote, index, membership } = standing;
    if !vote.committed || vote.leader_id.node_id != network.node {
        return Err(ReadIndexError::NotLeader(leader(&vote, &membership)));
    }
    let mut confirmed = BTreeSet::from([network.node]);
    let mut asked: FuturesUnordered<_> = membership
        .voter_ids()
        .filter(|voter| *voter != network.node)
        .filter_map(|voter| Some((voter, membership.get_node(&voter)?)))
        .map(|(voter, replica)| {
            let connection = network.connection(voter, replica);
            async move { (voter, connection.confirm(vote).await) }
        })
        .collect();
    while !has_quorum(&membership, &confirmed) {
        match asked.next().await {
            Some((voter, Confirmation::Follows)) => drop(confirmed.insert(voter)),
            Some((_, Confirmation::FollowsAnother)) => return Err(ReadIndexError::NotLeader(None)),
            Some((_, Confirmation::None)) => {}
            None => return Err(ReadIndexError::NoQuorum),
        }
    }
    Ok(index)
}

/// During a change of members both configurations have to agree.
fn has_quorum(membership: &Membership, confirmed: &BTreeSet<u64>) -> bool {
    let majority = |voters: &BTreeSet<u64>| voters.intersection(confirmed).count() * 2 > voters.len();
    membership.get_joint_config().iter().all(majority)
}

fn leader(vote: &Vote, membership: &Membership) -> Option<Leader> {
    let node = vote.committed.then_some(vote.leader_id.node_id)?;
    let peer = membership.get_node(&node).and_then(|replica| replica.peer_id.parse().ok());
    Some(Leader { node: NodeId(node), peer })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joint_membership_needs_a_majority_of_both() {
        let voters = |nodes: &[u64]| nodes.iter().copied().collect::<BTreeSet<u64>>();
        let joint = Membership::new_with_defaults(vec![voters(&[1, 2, 3]), voters(&[3, 4, 5])], []);
        for (confirmed, enough) in [
            (&[1, 2][..], false),
            (&[1, 3], false),
            (&[1, 3, 4], true),
            (&[1, 2, 4, 5], true),
            (&[3, 4, 5], false),
        ] {
            assert_eq!(has_quorum(&joint, &voters(confirmed)), enough, "{confirmed:?}");
        }
        let alone = Membership::new_with_defaults(vec![voters(&[7])], []);
        assert!(has_quorum(&alone, &voters(&[7])));
    }
}

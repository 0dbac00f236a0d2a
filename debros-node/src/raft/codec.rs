//! Between openraft's types and the wire contract: the one place that knows both. Used by the
//! network and by the log store, so an entry has the same bytes on the wire and on disk.

use std::collections::{BTreeMap, BTreeSet};

use debros_proto::{TraceContext, v1};
use openraft::EntryPayload;
use openraft::vote::RaftLeaderId;

use super::types::{Entry, EntryTrace, LogId, Membership, Replica, Vote};

/// A message that lacks a part it must have, or holds an impossible one.
#[derive(Debug, thiserror::Error)]
#[error("malformed raft message: {0}")]
pub struct Malformed(pub &'static str);

/// Encodes a log id.
pub fn log_id_to_wire(id: &LogId) -> v1::LogId {
    v1::LogId { term: id.leader_id.term, leader: id.leader_id.node_id, index: id.index }
}

/// Decodes a log id.
pub fn log_id_from_wire(id: &v1::LogId) -> LogId {
    LogId::new(openraft::impls::leader_id_adv::LeaderId::new(id.term, id.leader), id.index)
}

/// Encodes a vote.
pub fn vote_to_wire(vote: &Vote) -> v1::Vote {
    v1::Vote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

/// Decodes a vote.
pub fn vote_from_wire(vote: &v1::Vote) -> Vote {
    if vote.committed { Vote::new_committed(vote.term, vote.node) } else { Vote::new(vote.term, vote.node) }
}

/// Encodes voters and learners.
pub fn membership_to_wire(membership: &Membership) -> v1::GroupMembership {
    v1::GroupMembership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|voters| v1::VoterSet { voters: voters.iter().copied().collect() })
            .collect(),
        nodes: membership
            .nodes()
            .map(|(id, replica)| v1::MembershipNode { node_id: *id, peer_id: replica.peer_id.clone() })
            .collect(),
    }
}

/// Decodes voters and learners.
///
/// # Errors
/// [`Malformed`] when a voter has no node, or a joint configuration has an empty part.
pub fn membership_from_wire(membership: v1::GroupMembership) -> Result<Membership, Malformed> {
    let configs: Vec<BTreeSet<u64>> =
        membership.configs.into_iter().map(|set| set.voters.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, Replica> =
        membership.nodes.into_iter().map(|node| (node.node_id, Replica { peer_id: node.peer_id })).collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|_| Malformed("membership"))
}

/// Encodes an entry.
pub fn entry_to_wire(entry: &Entry) -> v1::Entry {
    let payload = match &entry.payload {
        EntryPayload::Blank => v1::entry::Payload::Blank(v1::Blank {}),
        EntryPayload::Normal(command) => v1::entry::Payload::Normal(command.bytes.clone()),
        EntryPayload::Membership(membership) => {
            v1::entry::Payload::Membership(membership_to_wire(membership))
        }
    };
    v1::Entry { log_id: Some(log_id_to_wire(&entry.log_id)), payload: Some(payload) }
}

/// Decodes an entry; a command's bytes are shared with the buffer they came in.
///
/// # Errors
/// [`Malformed`] when the log id or the payload is missing.
pub fn entry_from_wire(entry: v1::Entry) -> Result<Entry, Malformed> {
    let log_id = log_id_from_wire(&entry.log_id.ok_or(Malformed("entry without log id"))?);
    let payload = match entry.payload.ok_or(Malformed("entry without payload"))? {
        v1::entry::Payload::Blank(_) => EntryPayload::Blank,
        v1::entry::Payload::Normal(bytes) => EntryPayload::Normal(bytes.into()),
        v1::entry::Payload::Membership(membership) => {
            EntryPayload::Membership(membership_from_wire(membership)?)
        }
    };
    Ok(Entry { log_id, payload })
}

/// Of entries that are sent, those that sampled requests proposed.
pub fn traces_to_wire(entries: &[Entry]) -> Vec<v1::EntryTrace> {
    let trace = |entry: &Entry| match &entry.payload {
        EntryPayload::Normal(command) => {
            let context = command.trace.as_ref()?.parent.to_wire();
            Some(v1::EntryTrace { index: entry.log_id.index, context: Some(context) })
        }
        _ => None,
    };
    entries.iter().filter_map(trace).collect()
}

/// Says of received entries which sampled requests proposed them.
pub fn set_traces(entries: &mut [Entry], traces: &[v1::EntryTrace]) {
    for v1::EntryTrace { index, context } in traces {
        let entry = entries.iter_mut().find(|entry| entry.log_id.index == *index);
        if let (Some(entry), Some(parent)) = (entry, context.and_then(TraceContext::from_wire))
            && let EntryPayload::Normal(command) = &mut entry.payload
        {
            command.trace = Some(Box::new(EntryTrace { parent, replicated: true }));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use bytes::Bytes;
    use openraft::EntryPayload;

    use super::{
        Entry, LogId, Membership, Replica, Vote, entry_from_wire, entry_to_wire, log_id_from_wire,
        vote_from_wire, vote_to_wire,
    };

    fn log_id() -> LogId {
        log_id_from_wire(&debros_proto::v1::LogId { term: 3, leader: 7, index: 11 })
    }

    #[test]
    fn every_payload_survives_the_wire() {
        let nodes: BTreeMap<u64, Replica> =
            (1..=4).map(|id| (id, Replica { peer_id: format!("peer-{id}") })).collect();
        let joint = Membership::new(vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3])], nodes).unwrap();
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Bytes::from_static(&[0, 255, 1]).into()),
            EntryPayload::Membership(joint),
        ] {
            let entry = Entry { log_id: log_id(), payload };
            assert_eq!(entry_from_wire(entry_to_wire(&entry)).unwrap(), entry);
        }
    }

    #[test]
    fn a_vote_keeps_whether_it_is_committed() {
        for vote in [Vote::new(5, 2), Vote::new_committed(5, 2)] {
            assert_eq!(vote_from_wire(&vote_to_wire(&vote)), vote);
        }
    }

    #[test]
    fn a_membership_with_an_unknown_voter_is_refused() {
        let wire = debros_proto::v1::GroupMembership {
            configs: vec![debros_proto::v1::VoterSet { voters: vec![9] }],
            nodes: vec![],
        };
        assert!(super::membership_from_wire(wire).is_err());
    }
}

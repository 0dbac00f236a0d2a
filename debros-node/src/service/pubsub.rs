//! Sessions of pub/sub and questions about it: authorised in the place where everything is, and handed to the
//! engine.

use debros_proto::{ErrorCode, Failure, HasHeader, limits, v1};
use debros_topics::Pattern;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use prost::Message;
use tonic::Status;

use super::authorise::{Action, Principal, authorise};
use crate::pubsub::{Client, PubSubSlot};

/// What an entry of a list costs beside itself, at most.
const ENTRY_HEAD_BYTES: usize = 8;

/// The service for pub/sub.
#[derive(Clone)]
pub struct Messages {
    pubsub: PubSubSlot,
}

impl Messages {
    /// A service over this node's engine.
    pub fn new(pubsub: PubSubSlot) -> Self {
        Self { pubsub }
    }

    /// Begins a session, which carries out these calls.
    ///
    /// # Errors
    /// A session reads and writes, so its client must be allowed both.
    pub fn attach(
        &self,
        principal: &Principal,
        attach: &v1::Attach,
        calls: impl Stream<Item = Result<v1::SessionCall, Status>> + Send + 'static,
    ) -> Result<BoxStream<'static, Result<v1::SessionEvent, Status>>, Failure> {
        authorise(principal, Action::Read, attach.header())?;
        let authorised = authorise(principal, Action::Write, attach.header())?;
        let (Principal::Peer(peer) | Principal::Node(peer)) = *principal else {
            return Err(Failure::new(ErrorCode::PermissionDenied, "a session belongs to a peer"));
        };
        let namespace = authorised.namespace.as_str().to_owned();
        let client = Client { namespace, peer, publisher: attach.publisher };
        // Whoever is attached goes on at another node.
        Ok(self.pubsub.get()?.attach(client, calls)?.take_until(self.pubsub.clone().refused()).boxed())
    }

    /// What is subscribed to.
    ///
    /// # Errors
    /// `NOT_READY` before the node is a member.
    pub fn topics(
        &self,
        principal: &Principal,
        request: &v1::TopicsRequest,
    ) -> Result<v1::TopicsResponse, Failure> {
        let authorised = authorise(principal, Action::Read, request.header())?;
        let of = match (request.mine, principal) {
            (false, _) => None,
            (true, Principal::Peer(peer) | Principal::Node(peer)) => Some(*peer),
            (true, Principal::Http) => return Ok(v1::TopicsResponse::default()),
        };
        let topics = self.pubsub.get()?.topics(authorised.namespace.as_str(), of);
        Ok(page(topics, &request.after_pattern, &request.after_group, limits::TOPICS_PAGE_BYTES))
    }

    /// Who is here.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a pattern that is none.
    pub fn present(
        &self,
        principal: &Principal,
        request: &v1::PresentRequest,
    ) -> Result<v1::PresentResponse, Failure> {
        let authorised = authorise(principal, Action::Read, request.header())?;
        let pattern = Pattern::new(&request.pattern).map_err(|error| Failure::invalid(error.to_string()))?;
        let members = self.pubsub.get()?.present(authorised.namespace.as_str(), &pattern);
        // What the wire does not take is not copied for it.
        let max = limits::PUBSUB_FRAME_BYTES_MAX;
        let found: usize = members.iter().map(|member| member.encoded_len()).sum();
        if found > max {
            return Err(Failure::limit("PUBSUB_FRAME_BYTES_MAX", max, found));
        }
        let members = members.iter().map(|member| (**member).clone()).collect();
        fitting(v1::PresentResponse { members })
    }
}

/// Those behind one, in order, as far as they fit; at least one.
fn page(topics: Vec<v1::TopicStatus>, pattern: &str, group: &str, bytes_max: usize) -> v1::TopicsResponse {
    let is_behind =
        |topic: &v1::TopicStatus| (topic.pattern.as_str(), topic.group.as_str()) > (pattern, group);
    let mut behind = topics.into_iter().filter(is_behind).peekable();
    let (mut page, mut bytes) = (Vec::new(), 0);
    while let Some(topic) = behind.next_if(|topic| {
        bytes += topic.encoded_len() + ENTRY_HEAD_BYTES;
        page.is_empty() || bytes <= bytes_max
    }) {
        page.push(topic);
    }
    v1::TopicsResponse { topics: page, more: behind.peek().is_some() }
}

/// An answer that the wire takes.
fn fitting<M: Message>(answer: M) -> Result<M, Failure> {
    let (max, found) = (limits::PUBSUB_FRAME_BYTES_MAX, answer.encoded_len());
    if found > max { Err(Failure::limit("PUBSUB_FRAME_BYTES_MAX", max, found)) } else { Ok(answer) }
}

#[cfg(test)]
mod tests {
    use debros_proto::v1;

    use super::page;

    fn topic(pattern: &str, group: &str) -> v1::TopicStatus {
        v1::TopicStatus { pattern: pattern.into(), group: group.into(), subscriptions: 1, nodes: 1 }
    }

    #[test]
    fn pages_give_all_topics_once() {
        let all = vec![
            topic("a", ""),
            topic("a", "g"),
            topic("b", ""),
            topic(&"c".repeat(100), ""),
            topic("d", ""),
        ];
        for bytes_max in [0, 30, 1000] {
            let mut found: Vec<v1::TopicStatus> = Vec::new();
            loop {
                let last = found.last().cloned().unwrap_or_default();
                let v1::TopicsResponse { topics, more } =
                    page(all.clone(), &last.pattern, &last.group, bytes_max);
                assert!(!topics.is_empty());
                found.extend(topics);
                if !more {
                    break;
                }
            }
            assert_eq!(found, all);
        }
    }
}

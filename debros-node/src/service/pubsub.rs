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
        fitting(v1::TopicsResponse { topics })
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
        fitting(v1::PresentResponse { members })
    }
}

/// An answer that the wire takes.
fn fitting<M: Message>(answer: M) -> Result<M, Failure> {
    let (max, found) = (limits::PUBSUB_FRAME_BYTES_MAX, answer.encoded_len());
    if found > max { Err(Failure::limit("PUBSUB_FRAME_BYTES_MAX", max, found)) } else { Ok(answer) }
}

//! One session of a client over the simulated network, in the wire's own words. It does nothing by itself.

use std::sync::Arc;
use std::time::Duration;

use debros_net::simulated::{SimulatedNetwork, multiaddr};
use debros_net::{Lane, Network, grpc};
use debros_proto::{limits, v1};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use v1::pub_sub_client::PubSubClient;
use v1::session_call::Call;
use v1::session_event::Event;

use crate::machine::socket;

/// A node that has not answered after this time is left for another.
const ATTACH_PATIENCE: Duration = Duration::from_secs(2);
/// Calls that wait for the connection; a session with more is given up.
const CALLS_MAX: usize = 4096;

/// An open session.
pub(crate) struct Session {
    calls: mpsc::Sender<v1::SessionCall>,
    events: tonic::Streaming<v1::SessionEvent>,
    /// As its node said.
    pub(crate) attached: v1::Attached,
}

impl Session {
    /// Attaches to a node.
    ///
    /// # Errors
    /// In words: the node is not there, or does not let anybody in.
    pub(crate) async fn attach(
        network: &Arc<SimulatedNetwork>,
        node: usize,
        namespace: &str,
        publisher: u64,
    ) -> Result<Self, String> {
        let attached = timeout(ATTACH_PATIENCE, Self::attach_to(network, node, namespace, publisher)).await;
        attached.unwrap_or_else(|_| Err("no answer".to_owned()))
    }

    async fn attach_to(
        network: &Arc<SimulatedNetwork>,
        node: usize,
        namespace: &str,
        publisher: u64,
    ) -> Result<Self, String> {
        let peer = network.connect(&multiaddr(socket(node))).await.map_err(|error| error.to_string())?;
        let (calls, receiver) = mpsc::channel(CALLS_MAX);
        let header = Some(v1::RequestHeader { namespace: namespace.to_owned(), ..Default::default() });
        let attach = Call::Attach(v1::Attach { header, publisher });
        calls.try_send(v1::SessionCall { call: Some(attach) }).map_err(|error| error.to_string())?;
        let network: Arc<dyn Network> = network.clone();
        let mut client = PubSubClient::new(grpc::channel(network, peer, Lane::Client))
            .max_decoding_message_size(limits::PUBSUB_FRAME_BYTES_MAX)
            .max_encoding_message_size(limits::PUBSUB_FRAME_BYTES_MAX);
        let events = client.session(ReceiverStream::new(receiver)).await;
        let mut events = events.map_err(|status| status.message().to_owned())?.into_inner();
        let first = events.message().await.map_err(|status| status.message().to_owned())?;
        match first.and_then(|event| event.event) {
            Some(Event::Attached(attached)) => Ok(Self { calls, events, attached }),
            other => Err(format!("{other:?} instead of attached")),
        }
    }

    /// Sends a call; false when the session is over.
    #[must_use]
    pub(crate) fn call(&self, call: Call) -> bool {
        self.calls.try_send(v1::SessionCall { call: Some(call) }).is_ok()
    }

    /// The next event; nothing when the session is over. May be dropped and asked again.
    pub(crate) async fn event(&mut self) -> Option<Event> {
        self.events.message().await.ok().flatten()?.event
    }

    /// The process that serves it.
    pub(crate) fn origin(&self) -> (u64, u64) {
        (self.attached.node_id, self.attached.incarnation)
    }
}

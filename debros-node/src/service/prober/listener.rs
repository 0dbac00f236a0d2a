//! The prober's own session of pub/sub: it listens on this node's topic, and publishes on those of others when they
//! ask. One session and one subscription a node, as a client would have.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use debros_proto::names::CANARY_NAMESPACE;
use debros_proto::packed::{MessageRef, Runs, put_message};
use debros_proto::{ErrorCode, Failure, NodeId, v1};
use futures::StreamExt;
use tokio::sync::{mpsc, watch};
use v1::session_call::Call;
use v1::session_event::Event;

use super::ProberParts;
use crate::service::authorise::Principal;

/// Publications that wait for the session: as many nodes as may ask at a time, and credit.
const CALLS_MAX: usize = 256;
/// The subscription's number in its session.
const SUBSCRIPTION: u64 = 1;
/// What the node may send at once: some hundred numbers.
const CREDIT_BYTES: u64 = 64 << 10;
/// A session that ended is begun again after this.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// What the session has, and what was heard in it.
#[derive(Default)]
pub(super) struct Listener {
    session: Mutex<Option<Session>>,
    listens: AtomicBool,
    heard: watch::Sender<u64>,
}

struct Session {
    calls: mpsc::Sender<v1::SessionCall>,
    /// The number of the next message.
    next: u64,
}

impl Listener {
    /// Keeps a session. Never ends.
    pub(super) async fn run(&self, parts: &ProberParts) {
        loop {
            if let Err(failure) = self.listen(parts).await {
                tracing::debug!(%failure, "the prober's session of pub/sub will begin again");
            }
            self.listens.store(false, Ordering::Relaxed);
            *self.session.lock().unwrap_or_else(PoisonError::into_inner) = None;
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    /// One session, until it ends.
    async fn listen(&self, parts: &ProberParts) -> Result<(), Failure> {
        let cluster = parts.cluster.get()?;
        let (calls, mut waiting) = mpsc::channel(CALLS_MAX);
        let taken =
            futures::stream::poll_fn(move |context| waiting.poll_recv(context).map(|call| call.map(Ok)));
        let attach = v1::Attach { header: Some(header(0)), publisher: rand::random_range(1..u64::MAX) };
        let principal = Principal::Node(parts.channels.network().local_peer());
        let mut events = parts.messages.attach(&principal, &attach, taken)?;
        let subscribe = v1::Subscribe {
            subscription: SUBSCRIPTION,
            pattern: topic(cluster.node()),
            credit_bytes: CREDIT_BYTES,
            ..Default::default()
        };
        send(&calls, Call::Subscribe(subscribe))?;
        let session = Session { calls: calls.clone(), next: 1 };
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
        while let Some(event) = events.next().await {
            match event.map_err(|status| Failure::from_status(&status))?.event {
                Some(Event::Subscribed(_)) => self.listens.store(true, Ordering::Relaxed),
                Some(Event::Deliveries(deliveries)) => {
                    let bytes = deliveries.runs.len() as u64;
                    self.hear(deliveries.runs);
                    send(&calls, Call::Credit(v1::Credit { subscription: SUBSCRIPTION, bytes }))?;
                }
                _ => {}
            }
        }
        Err(Failure::new(ErrorCode::Unavailable, "the session ended"))
    }

    fn hear(&self, runs: Bytes) {
        for run in Runs::new(runs).filter_map(Result::ok) {
            if let Ok(message) = MessageRef::first(&run.messages)
                && let Ok(number) = message.payload.try_into().map(u64::from_le_bytes)
            {
                self.heard.send_replace(number);
            }
        }
    }

    /// Publishes a number to a node.
    ///
    /// # Errors
    /// `NOT_READY` while there is no session, `BUSY` when too many ask.
    pub(super) fn publish(&self, to: NodeId, number: u64) -> Result<(), Failure> {
        let mut messages = BytesMut::new();
        let packed = put_message(&mut messages, topic(to).as_bytes(), b"", b"", &number.to_le_bytes());
        packed.map_err(|error| Failure::new(ErrorCode::Internal, error.to_string()))?;
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let session = session.as_mut().ok_or_else(not_listening)?;
        let publish = v1::Publish { first: session.next, messages: messages.freeze(), ..Default::default() };
        send(&session.calls, Call::Publish(publish))?;
        session.next += 1;
        Ok(())
    }

    /// Whether messages can be heard.
    ///
    /// # Errors
    /// `NOT_READY` until the subscription is known to the nodes in reach.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.listens.load(Ordering::Relaxed) { Ok(()) } else { Err(not_listening()) }
    }

    /// Waits until a number is heard.
    pub(super) async fn heard(&self, number: u64) {
        let mut heard = self.heard.subscribe();
        // The sender lives as long as this.
        let _ = heard.wait_for(|last| *last == number).await;
    }
}

/// The header of a request in the canary's namespace.
pub(super) fn header(timeout_ms: u32) -> v1::RequestHeader {
    v1::RequestHeader { namespace: CANARY_NAMESPACE.to_owned(), timeout_ms, ..Default::default() }
}

fn topic(node: NodeId) -> String {
    format!("node.{node}")
}

fn not_listening() -> Failure {
    Failure::new(ErrorCode::NotReady, "the prober has no session of pub/sub yet")
}

fn send(calls: &mpsc::Sender<v1::SessionCall>, call: Call) -> Result<(), Failure> {
    let sent = calls.try_send(v1::SessionCall { call: Some(call) });
    sent.map_err(|_| Failure::new(ErrorCode::Busy, "too many calls wait for the prober's session"))
}

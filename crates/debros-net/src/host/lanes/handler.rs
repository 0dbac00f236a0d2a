//! One connection's part of the lanes: announces or awaits its role, runs its heartbeat, opens
//! streams on it.
//!
//! Decides nothing about connections: it tells [`super::behaviour`] what happened and is told what
//! to open over a channel of its own. Not over the swarm's `NotifyHandler`, which passes through one
//! pending slot that all connections share.
//!
//! Invariant: every [`OpenRequest`] that reaches a handler is answered, by a stream or a reason, or
//! dropped with the connection, which its waiter sees too.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError, SubstreamProtocol};
use libp2p::{PeerId, Stream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Sleep;

use super::heartbeat::{self, Ended};
use super::upgrade::{Accept, Accepted, Propose, counted};
use super::{OpenRequest, ROLE_TIMEOUT, Role, STREAM_TIMEOUT, STREAMS_PER_SIDE_MAX};
use crate::error::OpenError;
use crate::host::address_book::LastHeard;
use crate::lane::Lane;
use crate::stats::{Counters, add};

/// What a handler tells the behaviour.
#[derive(Debug)]
pub(in crate::host) enum HandlerEvent {
    /// The purpose of this connection is known on both sides, whoever dialed it.
    Role(Role),
    /// The peer selected this connection.
    Selected,
    /// This connection is of no use any more.
    Lost(LostReason),
}

/// Why a connection is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::host) enum LostReason {
    /// The heartbeat stopped.
    Silent,
    /// The role stream ended.
    RoleEnded,
    /// It never got a role or was never selected.
    NoRole,
}

/// What the behaviour keeps of a handler.
#[derive(Debug)]
pub(super) struct HandlerHandle {
    pub(super) opens: mpsc::Sender<OpenRequest>,
    pub(super) select: Arc<Notify>,
}

/// What a handler is made of.
pub(super) struct HandlerSetup {
    pub(super) peer: PeerId,
    /// The role to announce, on a connection dialed from here.
    pub(super) announce: Option<Role>,
    /// Whether this side selects among the connections of this pair.
    pub(super) decides: bool,
    pub(super) queues: crate::stream::IncomingSenders,
    pub(super) heard: LastHeard,
    pub(super) counters: Arc<Counters>,
}

/// What an outbound stream was opened for.
pub(in crate::host) enum Purpose {
    /// To announce the connection's role.
    Role,
    /// For whoever asked.
    Lane(OpenRequest, OwnedSemaphorePermit),
}

/// The handler.
pub(in crate::host) struct Handler {
    peer: PeerId,
    decides: bool,
    role: Option<Role>,
    announce: Option<Role>,
    accept: Accept,
    opens: mpsc::Receiver<OpenRequest>,
    room: Arc<Semaphore>,
    select: Arc<Notify>,
    selected: Option<oneshot::Receiver<()>>,
    heartbeat: Option<BoxFuture<'static, Ended>>,
    settling: Option<Pin<Box<Sleep>>>,
    heard: LastHeard,
    events: VecDeque<HandlerEvent>,
    counters: Arc<Counters>,
}

impl Handler {
    pub(super) fn new(setup: HandlerSetup) -> (Self, HandlerHandle) {
        let HandlerSetup { peer, announce, decides, queues, heard, counters } = setup;
        // As many as streams may be open: whatever is above that is refused at once.
        let (sender, opens) = mpsc::channel(STREAMS_PER_SIDE_MAX);
        let select = Arc::new(Notify::new());
        let room = || Arc::new(Semaphore::new(STREAMS_PER_SIDE_MAX));
        let accept = Accept { peer, queues, room: room(), counters: Arc::clone(&counters) };
        let handler = Self {
            peer,
            decides,
            role: announce,
            announce,
            accept,
            opens,
            room: room(),
            select: Arc::clone(&select),
            selected: None,
            heartbeat: None,
            settling: Some(Box::pin(tokio::time::sleep(ROLE_TIMEOUT))),
            heard,
            events: VecDeque::new(),
            counters,
        };
        (handler, HandlerHandle { opens: sender, select })
    }

    fn start_heartbeat(&mut self, mut stream: Stream) {
        // The role alone does not keep a bulk connection open.
        stream.ignore_for_keep_alive();
        let (sender, receiver) = oneshot::channel();
        self.selected = Some(receiver);
        let heartbeat = heartbeat::run(stream, Arc::clone(&self.select), sender, self.heard.clone());
        self.heartbeat = Some(heartbeat.boxed());
        if self.decides {
            // Whoever decides has selected by now, or closes.
            self.settling = None;
        }
    }

    fn lose(&mut self, reason: LostReason) {
        self.heartbeat = None;
        self.settling = None;
        self.selected = None;
        self.events.push_back(HandlerEvent::Lost(reason));
    }

    fn poll_life(&mut self, context: &mut Context<'_>) {
        if let Some(selected) = &mut self.selected
            && let Poll::Ready(outcome) = selected.poll_unpin(context)
        {
            self.selected = None;
            if outcome.is_ok() {
                self.settling = None;
                self.events.push_back(HandlerEvent::Selected);
            }
        }
        if let Some(heartbeat) = &mut self.heartbeat
            && let Poll::Ready(ended) = heartbeat.poll_unpin(context)
        {
            if ended == Ended::Silent {
                add(&self.counters.heartbeats_lost);
            }
            self.lose(match ended {
                Ended::Silent => LostReason::Silent,
                Ended::Closed => LostReason::RoleEnded,
            });
        }
        if let Some(settling) = &mut self.settling
            && settling.poll_unpin(context).is_ready()
        {
            self.lose(LostReason::NoRole);
        }
    }

    fn refuse(&self, request: OpenRequest) {
        add(&self.counters.streams_refused);
        let busy = Err(OpenError::Busy(request.lane));
        // A waiter that is gone needs no answer.
        let _ = request.reply.send(busy);
    }

    fn opened(&mut self, stream: Stream, purpose: Purpose) {
        match purpose {
            Purpose::Role => {
                self.events.extend(self.role.map(HandlerEvent::Role));
                self.start_heartbeat(stream);
            }
            Purpose::Lane(request, room) => {
                add(&self.counters.streams_opened);
                let stream = counted(self.peer, request.lane, stream, room);
                let _ = request.reply.send(Ok(stream));
            }
        }
    }

    fn not_opened(&mut self, error: StreamUpgradeError<io::Error>, purpose: Purpose) {
        match purpose {
            Purpose::Role => self.lose(LostReason::NoRole),
            Purpose::Lane(request, _) => {
                let error = stream_error(&error, request.lane);
                let _ = request.reply.send(Err(error));
            }
        }
    }
}

fn stream_error(error: &StreamUpgradeError<io::Error>, lane: Lane) -> OpenError {
    match error {
        StreamUpgradeError::Timeout => OpenError::Timeout(STREAM_TIMEOUT),
        StreamUpgradeError::NegotiationFailed => OpenError::Unsupported(lane),
        StreamUpgradeError::Apply(error) if error.kind() == io::ErrorKind::WouldBlock => {
            OpenError::Busy(lane)
        }
        StreamUpgradeError::Apply(_) | StreamUpgradeError::Io(_) => OpenError::Closed,
    }
}

type ToSwarm = ConnectionHandlerEvent<Propose, Purpose, HandlerEvent>;

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = HandlerEvent;
    type InboundProtocol = Accept;
    type OutboundProtocol = Propose;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Purpose;

    fn listen_protocol(&self) -> SubstreamProtocol<Accept, ()> {
        SubstreamProtocol::new(self.accept.clone(), ()).with_timeout(STREAM_TIMEOUT)
    }

    fn connection_keep_alive(&self) -> bool {
        self.role == Some(Role::Main)
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ToSwarm> {
        if let Some(role) = self.announce.take() {
            let protocol =
                SubstreamProtocol::new(Propose::role(role), Purpose::Role).with_timeout(STREAM_TIMEOUT);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        self.poll_life(context);
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(event));
        }
        while let Poll::Ready(Some(request)) = self.opens.poll_recv(context) {
            if request.reply.is_closed() {
                continue;
            }
            let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
                self.refuse(request);
                continue;
            };
            let proposal = Propose::lane(request.lane);
            let protocol =
                SubstreamProtocol::new(proposal, Purpose::Lane(request, room)).with_timeout(STREAM_TIMEOUT);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Accept, Propose, (), Purpose>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. }) => {
                match protocol {
                    // A second role on one connection is not for anybody who keeps to the protocol.
                    Accepted::Role(role, stream) if self.role.is_none() => {
                        self.role = Some(role);
                        self.events.push_back(HandlerEvent::Role(role));
                        self.start_heartbeat(stream);
                    }
                    Accepted::Role(..) => self.lose(LostReason::RoleEnded),
                    Accepted::Queued => {}
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) => {
                self.opened(protocol, info);
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                self.not_opened(error, info)
            }
            _ => {}
        }
    }
}

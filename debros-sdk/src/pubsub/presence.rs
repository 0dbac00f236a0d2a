//! Who is here: what an application says of itself and hears of others. Goes on over nodes as subscriptions do:
//! at a new node everybody is told again, and a watch tells only what has changed.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use debros_proto::{Failure, limits, v1};
use futures::stream::Stream;
use futures::task::AtomicWaker;
use v1::session_call::Call;

use super::settling::Settling;
use super::subscription::Source;
use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::statement::too_large;

/// Somebody who is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Where.
    pub topic: String,
    /// Who.
    pub member: String,
    /// What is told beside the name.
    pub data: Bytes,
    /// The node at which it entered.
    pub node: u64,
    /// That node's number for it: together they tell members of one name apart.
    pub entry: u64,
}

impl From<v1::PresentMember> for Member {
    fn from(member: v1::PresentMember) -> Self {
        let v1::PresentMember { topic, member, data, node_id, entry } = member;
        Self { topic, member, data, node: node_id, entry }
    }
}

/// What a watch of presence tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PresenceEvent {
    /// Somebody is here from now on, or was when the watch began. One whose node has died enters again
    /// elsewhere.
    Entered(Member),
    /// Somebody is not here any more.
    Left(Member),
}

/// Where presences and watches live.
pub(crate) trait Lobby: Source {
    /// A presence ends.
    fn leave(&self, presence: u64);
}

impl Lobby for super::session::Session {
    fn leave(&self, presence: u64) {
        Self::leave(self, presence);
    }
}

/// Says that somebody is here, until it is dropped or the client is closed.
#[must_use = "it ends when it is dropped"]
pub struct Presence {
    number: u64,
    lobby: Arc<dyn Lobby>,
    over: Arc<Settling<()>>,
    /// Keeps the client open.
    _client: Option<Client>,
}

impl Presence {
    pub(crate) fn new(
        number: u64,
        lobby: Arc<dyn Lobby>,
        over: Arc<Settling<()>>,
        client: Option<Client>,
    ) -> Self {
        Self { number, lobby, over, _client: client }
    }

    /// Waits until others do not see it any more though it has not left: the client was closed, or went on at a node
    /// that refused it. Gives why.
    pub async fn ended(&self) -> Error {
        match self.over.settled().await {
            Ok(()) => Error::closed(),
            Err(failure) => failure.clone().into(),
        }
    }

    /// Leaves, as dropping it does.
    pub fn leave(self) {}
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.lobby.leave(self.number);
    }
}

impl fmt::Debug for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presence").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Who enters and leaves, as a stream. Ends with an error, or when the client is closed.
#[must_use = "a watch ends when it is dropped"]
pub struct PresenceWatch {
    number: u64,
    board: Arc<Board>,
    lobby: Arc<dyn Lobby>,
    _client: Option<Client>,
}

impl PresenceWatch {
    pub(crate) fn new(number: u64, board: Arc<Board>, lobby: Arc<dyn Lobby>, client: Option<Client>) -> Self {
        Self { number, board, lobby, _client: client }
    }

    /// What comes next. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<PresenceEvent, Error>> {
        std::future::poll_fn(|context| self.board.poll(context)).await
    }
}

impl Stream for PresenceWatch {
    type Item = Result<PresenceEvent, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.board.poll(context)
    }
}

impl Drop for PresenceWatch {
    fn drop(&mut self) {
        self.lobby.unsubscribe(self.number);
    }
}

impl fmt::Debug for PresenceWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PresenceWatch").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Who is known to be here, and what the application was not told yet.
#[derive(Default)]
pub(crate) struct Board {
    state: Mutex<Told>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct Told {
    here: BTreeMap<(u64, u64), Member>,
    events: VecDeque<PresenceEvent>,
    end: Option<Option<Error>>,
}

impl Board {
    fn state(&self) -> MutexGuard<'_, Told> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Exactly these are here.
    pub(crate) fn set(&self, members: impl IntoIterator<Item = Member>) {
        let mut state = self.state();
        let mut before = std::mem::take(&mut state.here);
        for member in members {
            let key = (member.node, member.entry);
            if before.remove(&key).is_none() {
                state.tell(PresenceEvent::Entered(member.clone()));
            }
            state.here.insert(key, member);
        }
        before.into_values().for_each(|gone| state.tell(PresenceEvent::Left(gone)));
        drop(state);
        self.waker.wake();
    }

    /// Somebody enters.
    pub(crate) fn enter(&self, member: Member) {
        let mut state = self.state();
        if state.here.insert((member.node, member.entry), member.clone()).is_none() {
            state.tell(PresenceEvent::Entered(member));
        }
        drop(state);
        self.waker.wake();
    }

    /// Somebody leaves.
    pub(crate) fn leave(&self, member: Member) {
        let mut state = self.state();
        if state.here.remove(&(member.node, member.entry)).is_some() {
            state.tell(PresenceEvent::Left(member));
        }
        drop(state);
        self.waker.wake();
    }

    /// Nothing comes any more.
    pub(crate) fn end(&self, error: Option<Error>) {
        self.state().end.get_or_insert(error);
        self.waker.wake();
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<Option<Result<PresenceEvent, Error>>> {
        let mut state = self.state();
        if let Some(event) = state.events.pop_front() {
            return Poll::Ready(Some(Ok(event)));
        }
        match &mut state.end {
            Some(end) => Poll::Ready(end.take().map(Err)),
            None => {
                self.waker.register(context.waker());
                Poll::Pending
            }
        }
    }
}

impl Told {
    fn tell(&mut self, event: PresenceEvent) {
        if self.events.len() >= limits::PRESENCE_EVENTS_MAX {
            let (name, max) = ("PRESENCE_EVENTS_MAX", limits::PRESENCE_EVENTS_MAX);
            self.end.get_or_insert_with(|| Some(too_large(name, max, max + 1)));
            return;
        }
        self.events.push_back(event);
    }
}

/// What a session says of presence at every node that it is attached to.
#[derive(Default)]
pub(crate) struct Presences {
    entered: BTreeMap<u64, Entering>,
    watches: BTreeMap<u64, Watching>,
}

struct Entering {
    enter: v1::Enter,
    settlings: Settlings,
}

/// When a presence stands, and when it has ended of itself.
#[derive(Clone, Default)]
pub(crate) struct Settlings {
    pub(crate) begun: Arc<Settling<()>>,
    pub(crate) over: Arc<Settling<()>>,
}

struct Watching {
    pattern: String,
    board: Arc<Board>,
    begun: Arc<Settling<()>>,
    /// What the node says next is everybody who is here.
    starts: bool,
}

impl Presences {
    pub(crate) fn entered(&self) -> usize {
        self.entered.len()
    }

    pub(crate) fn watches(&self) -> usize {
        self.watches.len()
    }

    pub(crate) fn enter(&mut self, enter: v1::Enter) -> Settlings {
        let settlings = Settlings::default();
        self.entered.insert(enter.presence, Entering { enter, settlings: settlings.clone() });
        settlings
    }

    pub(crate) fn leave(&mut self, presence: u64) -> bool {
        self.entered.remove(&presence).is_some()
    }

    pub(crate) fn entered_by(&mut self, presence: u64) {
        if let Some(entering) = self.entered.get(&presence) {
            entering.settlings.begun.settle(Ok(()));
        }
    }

    pub(crate) fn refuse(&mut self, presence: u64, failure: Failure) {
        if let Some(Entering { enter, settlings }) = self.entered.remove(&presence) {
            tracing::warn!(topic = enter.topic, member = enter.member, %failure, "a presence was refused");
            settlings.begun.settle(Err(failure.clone()));
            settlings.over.settle(Err(failure));
        }
    }

    pub(crate) fn watch(&mut self, subscription: u64, pattern: String) -> (Arc<Board>, Arc<Settling<()>>) {
        let (board, begun) = (Arc::<Board>::default(), Arc::<Settling<()>>::default());
        let watching = Watching { pattern, board: board.clone(), begun: begun.clone(), starts: true };
        self.watches.insert(subscription, watching);
        (board, begun)
    }

    pub(crate) fn unwatch(&mut self, subscription: u64) -> bool {
        self.watches.remove(&subscription).is_some()
    }

    pub(crate) fn begin(&mut self, subscription: u64) {
        if let Some(watching) = self.watches.get(&subscription) {
            watching.begun.settle(Ok(()));
        }
    }

    pub(crate) fn refuse_watch(&mut self, subscription: u64, failure: Failure) {
        if let Some(watching) = self.watches.remove(&subscription) {
            watching.begun.settle(Err(failure.clone()));
            watching.board.end(Some(failure.into()));
        }
    }

    pub(crate) fn tell(&mut self, events: v1::PresenceEvents) {
        let v1::PresenceEvents { subscription, events } = events;
        let Some(watching) = self.watches.get_mut(&subscription) else { return };
        let named = events.into_iter().filter_map(|event| Some((event.left, Member::from(event.member?))));
        if std::mem::take(&mut watching.starts) {
            watching.board.set(named.filter(|(left, _)| !left).map(|(_, member)| member));
            return;
        }
        for (left, member) in named {
            if left { watching.board.leave(member) } else { watching.board.enter(member) }
        }
    }

    /// What a node is to be told of.
    pub(crate) fn calls(&mut self) -> Vec<Call> {
        let entered = self.entered.values().map(|entering| Call::Enter(entering.enter.clone()));
        let watches = self.watches.iter_mut().map(|(subscription, watching)| {
            watching.starts = true;
            let (subscription, pattern) = (*subscription, watching.pattern.clone());
            Call::WatchPresence(v1::WatchPresence { subscription, pattern })
        });
        entered.chain(watches).collect()
    }

    /// All end.
    pub(crate) fn end(&mut self, failure: &Failure, error: impl Fn() -> Option<Error>) {
        for Entering { enter: _, settlings } in std::mem::take(&mut self.entered).into_values() {
            settlings.begun.settle(Err(failure.clone()));
            let is_closed = error().is_none_or(|error| error.kind() == ErrorKind::Closed);
            settlings.over.settle(if is_closed { Ok(()) } else { Err(failure.clone()) });
        }
        for watching in std::mem::take(&mut self.watches).into_values() {
            watching.begun.settle(Err(failure.clone()));
            watching.board.end(error());
        }
    }
}

#[cfg(test)]
mod tests {
    use debros_proto::{ErrorCode, Failure, v1};
    use futures::FutureExt;

    use super::{Presences, Settlings};
    use crate::error::Error;

    #[test]
    fn a_presence_that_the_next_node_refuses_has_ended_and_says_so() {
        let mut presences = Presences::default();
        let enter = |presence| v1::Enter { presence, topic: "t".to_owned(), ..Default::default() };
        let refused = presences.enter(enter(1));
        let closed = presences.enter(enter(2));
        presences.entered_by(1);
        assert_eq!(refused.begun.settled().now_or_never(), Some(&Ok(())));
        assert_eq!(presences.calls().len(), 2, "the next node is told of both");
        let over = |settlings: &Settlings| settlings.over.settled().now_or_never().cloned();
        assert_eq!(over(&refused), None);
        let failure = Failure::new(ErrorCode::LimitExceeded, "full");
        presences.refuse(1, failure.clone());
        assert_eq!(over(&refused), Some(Err(failure.clone())));
        presences.end(&failure, || Some(Error::closed()));
        assert_eq!(over(&closed), Some(Ok(())));
    }
}

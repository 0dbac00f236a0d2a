//! Who is here: clients enter topics and leave them, at the latest with their session. Each node tells the others
//! of its own as a part of its interest, so every node knows all.

use std::sync::Arc;

use debros_proto::{ErrorCode, Failure, NodeId, limits, v1};
use debros_topics::{Pattern, Topic};
use v1::session_event::Event;

use super::interest::{Interest, Member};
use super::outlet::{Later, Outlet};
use super::router::Router;

/// Members of one event to somebody who begins to watch: however large they are, it fits a frame.
pub(super) const MEMBERS_PER_EVENT: usize = 256;
const _: () = assert!(
    MEMBERS_PER_EVENT
        * (limits::PRESENCE_DATA_BYTES_MAX
            + limits::PRESENCE_MEMBER_BYTES_MAX
            + limits::TOPIC_BYTES_MAX
            + 128)
        <= limits::PUBSUB_FRAME_BYTES_MAX
);

/// A session that watches who enters and leaves.
pub(super) struct Watch {
    pub(super) outlet: Arc<Outlet>,
    pub(super) subscription: u64,
    pub(super) pattern: Pattern,
}

/// Who was here when a watch began, as far as it was not told yet.
pub(super) struct Here {
    subscription: u64,
    pattern: Pattern,
    members: std::vec::IntoIter<Arc<v1::PresentMember>>,
    has_begun: bool,
}

impl Here {
    /// How many members were not looked at yet.
    pub(super) fn left(&self) -> usize {
        self.members.len()
    }

    /// The next event; the first one also says that nobody is here.
    pub(super) fn next_event(&mut self) -> Option<v1::PresenceEvents> {
        let Self { subscription, pattern, members, has_begun } = self;
        let concerned = members.filter(|member| pattern.matches_text(&member.topic));
        let entered = |member: Arc<v1::PresentMember>| v1::PresenceEvent {
            left: false,
            member: Some((*member).clone()),
        };
        let events: Vec<_> = concerned.take(MEMBERS_PER_EVENT).map(entered).collect();
        let is_first = !std::mem::replace(has_begun, true);
        (is_first || !events.is_empty()).then_some(v1::PresenceEvents { subscription: *subscription, events })
    }
}

/// In the order in which a listing gives them.
pub(super) fn in_order(mut members: Vec<Arc<v1::PresentMember>>) -> Vec<Arc<v1::PresentMember>> {
    fn order(it: &v1::PresentMember) -> (&str, &str, u64, u64) {
        (&it.topic, &it.member, it.node_id, it.entry)
    }
    members.sort_by(|one, other| order(one).cmp(&order(other)));
    members
}

impl Router {
    /// Somebody is here from now on.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, `LIMIT_EXCEEDED`, `ALREADY_EXISTS` for a number in use.
    pub(super) fn enter(&mut self, session: u64, enter: v1::Enter) -> Result<(), Failure> {
        let v1::Enter { presence, topic, member, data } = enter;
        Topic::new(&topic).map_err(|error| Failure::invalid(error.to_string()))?;
        let within = |name, max: usize, found: usize| match found > max {
            true => Err(Failure::limit(name, max, found)),
            false => Ok(()),
        };
        within("PRESENCE_MEMBER_BYTES_MAX", limits::PRESENCE_MEMBER_BYTES_MAX, member.len())?;
        within("PRESENCE_DATA_BYTES_MAX", limits::PRESENCE_DATA_BYTES_MAX, data.len())?;
        let in_namespace = self.sessions.get(&session).map_or(0, |of| self.present_count(&of.namespace));
        let max = limits::PRESENCES_PER_NAMESPACE_MAX;
        within("PRESENCES_PER_NAMESPACE_MAX", max, in_namespace + 1)?;
        let in_all: usize = self.interests().map(|interest| interest.present.len()).sum();
        within("PRESENCES_MAX", limits::PRESENCES_MAX, in_all + 1)?;
        let entry = self.number();
        let node_id = self.node.0;
        let of_session = self.sessions.get_mut(&session);
        let of_session =
            of_session.ok_or_else(|| Failure::new(ErrorCode::ShuttingDown, "the session has ended"))?;
        let count = of_session.present.len() + 1;
        within("SUBSCRIPTIONS_PER_SESSION_MAX", limits::SUBSCRIPTIONS_PER_SESSION_MAX, count)?;
        if of_session.present.contains_key(&presence) {
            let message = format!("the session has a presence {presence} already");
            return Err(Failure::new(ErrorCode::AlreadyExists, message));
        }
        of_session.present.insert(presence, entry);
        let namespace = of_session.namespace.clone();
        let member = Arc::new(v1::PresentMember { topic, member, data, node_id, entry });
        self.own.set_present(&namespace, &member, false);
        self.tell_presence(None, Some((namespace, member)));
        self.wake_links();
        Ok(())
    }

    /// Ends a presence of a session by the client's number.
    pub(super) fn leave_by(&mut self, session: u64, presence: u64) {
        let Some(of_session) = self.sessions.get_mut(&session) else { return };
        let namespace = of_session.namespace.clone();
        if let Some(entry) = of_session.present.remove(&presence) {
            self.leave(&namespace, entry);
            self.wake_links();
        }
    }

    pub(super) fn leave(&mut self, namespace: &Arc<str>, entry: u64) {
        let Some((_, member)) = self.own.interest.present.get(&entry).cloned() else { return };
        self.own.set_present(namespace, &member, true);
        self.tell_presence(Some((namespace.clone(), member)), None);
    }

    /// The members of a node that is out of reach are not here any more, as far as anybody can tell.
    pub(super) fn set_absent(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let entries: Vec<u64> = peer.back.interest.present.keys().copied().collect();
        let gone: Vec<Member> =
            entries.into_iter().filter_map(|entry| peer.back.interest.set_present(entry, None)).collect();
        // It tells all of its interest when it is back.
        gone.into_iter().for_each(|member| self.tell_presence(Some(member), None));
    }

    /// What every node of the cluster is interested in.
    fn interests(&self) -> impl Iterator<Item = &Interest> {
        std::iter::once(&self.own.interest).chain(self.peers.values().map(|peer| &peer.back.interest))
    }

    fn present_count(&self, namespace: &str) -> usize {
        self.interests().map(|interest| interest.present_count(namespace)).sum()
    }

    /// Who is here now.
    pub(super) fn present(&self, namespace: &str) -> Vec<Arc<v1::PresentMember>> {
        self.interests().flat_map(|interest| interest.present_in(namespace)).cloned().collect()
    }

    /// Begins a watch, with who is here.
    ///
    /// # Errors
    /// `LIMIT_EXCEEDED`, `ALREADY_EXISTS` for a number in use.
    pub(super) fn watch_presence(
        &mut self,
        session: u64,
        number: u64,
        pattern: Pattern,
    ) -> Result<(), Failure> {
        let of_session = self.sessions.get(&session);
        let of_session =
            of_session.ok_or_else(|| Failure::new(ErrorCode::ShuttingDown, "the session has ended"))?;
        let (outlet, namespace) = (of_session.outlet.clone(), of_session.namespace.clone());
        let in_namespace = self.watches.get(&namespace).into_iter().flatten();
        let of_it = in_namespace.filter(|watch| Arc::ptr_eq(&watch.outlet, &outlet));
        if of_session.queues.contains_key(&number) || of_it.clone().any(|watch| watch.subscription == number)
        {
            let message = format!("the session has a subscription {number} already");
            return Err(Failure::new(ErrorCode::AlreadyExists, message));
        }
        let (max, count) = (limits::PRESENCE_WATCHES_PER_SESSION_MAX, of_it.count() + 1);
        if count > max {
            return Err(Failure::limit("PRESENCE_WATCHES_PER_SESSION_MAX", max, count));
        }
        let members = self.present(&namespace).into_iter();
        let here = Here { subscription: number, pattern: pattern.clone(), members, has_begun: false };
        outlet.tell(Event::Subscribed(v1::Subscribed { subscription: number, ..Default::default() }));
        outlet.tell_later(Later::Here(here));
        let watch = Watch { outlet, subscription: number, pattern };
        self.watches.entry(namespace).or_default().push(watch);
        Ok(())
    }

    /// Ends a watch; says whether there was one.
    pub(super) fn unwatch_presence(&mut self, session: u64, number: u64) -> bool {
        let Some(of_session) = self.sessions.get(&session) else { return false };
        let (namespace, outlet) = (of_session.namespace.clone(), of_session.outlet.clone());
        self.end_watches(&namespace, |watch| {
            watch.subscription == number && Arc::ptr_eq(&watch.outlet, &outlet)
        })
    }

    /// Ends these watches of a namespace; says whether there were any.
    pub(super) fn end_watches(&mut self, namespace: &str, ends: impl Fn(&Watch) -> bool) -> bool {
        let Some(watches) = self.watches.get_mut(namespace) else { return false };
        let before = watches.len();
        watches.retain(|watch| !ends(watch));
        let fewer = watches.len() < before;
        if watches.is_empty() {
            self.watches.remove(namespace);
        }
        fewer
    }

    /// Tells those who watch what became of a presence.
    pub(super) fn tell_presence(&mut self, before: Option<Member>, after: Option<Member>) {
        let left = before.map(|member| (true, member));
        let entered = after.map(|member| (false, member));
        for (left, (namespace, member)) in left.into_iter().chain(entered) {
            let in_namespace = self.watches.get(&namespace).into_iter().flatten();
            for watch in in_namespace.filter(|watch| watch.pattern.matches_text(&member.topic)) {
                if watch.outlet.takes_nothing() {
                    let message = "the client does not take what its presence watch tells";
                    watch.outlet.end(Err(Failure::new(ErrorCode::LimitExceeded, message)));
                    continue;
                }
                let (subscription, member) = (watch.subscription, member.clone());
                watch.outlet.tell_later(Later::Presence { subscription, left, member });
            }
        }
    }
}

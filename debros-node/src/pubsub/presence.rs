//! Who is here: clients enter topics and leave them, at the latest with their session. Each node tells the others
//! of its own as a part of its interest, so every node knows all.

use std::sync::Arc;

use debros_proto::{ErrorCode, Failure, NodeId, limits, v1};
use debros_topics::{Pattern, Topic};
use v1::session_event::Event;

use super::outlet::Outlet;
use super::router::Router;

/// Members of one event to somebody who begins to watch: however large they are, it fits a frame.
const MEMBERS_PER_EVENT: usize = 256;
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
    pub(super) namespace: Arc<str>,
    pub(super) pattern: Pattern,
}

type Member = (Arc<str>, v1::PresentMember);

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
        let member = v1::PresentMember { topic, member, data, node_id, entry };
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

    /// Who is here now, in order.
    pub(super) fn present(&self, namespace: &str, pattern: &Pattern) -> Vec<v1::PresentMember> {
        let others = self.peers.values().map(|peer| &peer.back.interest);
        let all = std::iter::once(&self.own.interest).chain(others);
        let all = all.flat_map(|interest| interest.present.values());
        let here = all.filter(|(of, member)| **of == *namespace && pattern.matches_text(&member.topic));
        let mut here: Vec<v1::PresentMember> = here.map(|(_, member)| member.clone()).collect();
        here.sort_by(|one, other| {
            let order = |it: &v1::PresentMember| (it.topic.clone(), it.member.clone(), it.node_id, it.entry);
            order(one).cmp(&order(other))
        });
        here
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
        let of_it = self.watches.iter().filter(|watch| Arc::ptr_eq(&watch.outlet, &outlet));
        if of_session.queues.contains_key(&number) || of_it.clone().any(|watch| watch.subscription == number)
        {
            let message = format!("the session has a subscription {number} already");
            return Err(Failure::new(ErrorCode::AlreadyExists, message));
        }
        let (max, count) = (limits::PRESENCE_WATCHES_PER_SESSION_MAX, of_it.count() + 1);
        if count > max {
            return Err(Failure::limit("PRESENCE_WATCHES_PER_SESSION_MAX", max, count));
        }
        let here = self.present(&namespace, &pattern);
        outlet.tell(Event::Subscribed(v1::Subscribed { subscription: number, ..Default::default() }));
        let mut members = here.chunks(MEMBERS_PER_EVENT);
        // The first one also says that nobody is here.
        let mut next = Some(members.next().unwrap_or_default());
        while let Some(some) = next {
            let entered =
                |member: &v1::PresentMember| v1::PresenceEvent { left: false, member: Some(member.clone()) };
            let events = some.iter().map(entered).collect();
            outlet.tell(Event::Presence(v1::PresenceEvents { subscription: number, events }));
            next = members.next();
        }
        self.watches.push(Watch { outlet, subscription: number, namespace, pattern });
        Ok(())
    }

    /// Ends a watch; says whether there was one.
    pub(super) fn unwatch_presence(&mut self, session: u64, number: u64) -> bool {
        let Some(of_session) = self.sessions.get(&session) else { return false };
        let before = self.watches.len();
        self.watches
            .retain(|watch| watch.subscription != number || !Arc::ptr_eq(&watch.outlet, &of_session.outlet));
        self.watches.len() < before
    }

    /// Tells those who watch what became of a presence.
    pub(super) fn tell_presence(&mut self, before: Option<Member>, after: Option<Member>) {
        let left = before.map(|member| (true, member));
        let entered = after.map(|member| (false, member));
        for (left, (namespace, member)) in left.into_iter().chain(entered) {
            let concerned = self
                .watches
                .iter()
                .filter(|watch| watch.namespace == namespace && watch.pattern.matches_text(&member.topic));
            for watch in concerned {
                if watch.outlet.is_overdue() {
                    let message = "the client does not take what its presence watch tells";
                    watch.outlet.end(Err(Failure::new(ErrorCode::LimitExceeded, message)));
                    continue;
                }
                let event = v1::PresenceEvent { left, member: Some(member.clone()) };
                let (subscription, events) = (watch.subscription, vec![event]);
                watch.outlet.tell(Event::Presence(v1::PresenceEvents { subscription, events }));
            }
        }
    }
}

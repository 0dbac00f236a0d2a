//! The subscribing half of a session: what is subscribed to, how far each subscription has got, and what of what
//! comes is news to it. Plain data; the session locks it.
//!
//! Invariant: a position never passes a message that did not come, so that another node goes on behind it
//! without a gap.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use debros_proto::coverage::{Coverage, Verdict};
use debros_proto::packed::{MessageRef, Run, RunHead, Runs};
use debros_proto::{Failure, RetryHint, v1};

use super::settling::Settling;
use super::subscription::Mailbox;
use super::{Overflow, TopicInfo};
use crate::error::Error;

/// Publishers whose numbers one subscription remembers. Only what comes twice while clients change their nodes
/// needs them.
const PUBLISHERS_MAX: usize = 4096;
/// Nodes that one subscription is taken to after the one before has refused it: with each all others move, too.
const REFUSALS_MAX: u32 = 8;

/// One subscription.
pub(crate) struct Subscribing {
    pub(crate) pattern: String,
    pub(crate) group: Option<String>,
    pub(crate) overflow: Overflow,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) begun: Arc<Settling<()>>,
    /// It began at some node, so at the next one it goes on.
    has_begun: bool,
    /// It stands at the node that is attached to: what that one says of all subscriptions is said of this one, too.
    is_answered: bool,
    /// Nodes that took it in no more, one after the other.
    refused: u32,
    positions: BTreeMap<u64, v1::Position>,
    publishers: HashMap<u64, (Coverage, u64)>,
    runs: u64,
}

impl Subscribing {
    pub(crate) fn new(
        pattern: &str,
        group: Option<String>,
        overflow: Overflow,
        mailbox: Arc<Mailbox>,
    ) -> Self {
        Self {
            pattern: pattern.to_owned(),
            group,
            overflow,
            mailbox,
            begun: Arc::default(),
            has_begun: false,
            is_answered: false,
            refused: 0,
            positions: BTreeMap::new(),
            publishers: HashMap::new(),
            runs: 0,
        }
    }

    /// What a node is asked for.
    pub(crate) fn call(&mut self, number: u64) -> v1::Subscribe {
        self.is_answered = false;
        let overflow = match self.overflow {
            Overflow::DropOldest => v1::Overflow::DropOldest,
            Overflow::Disconnect => v1::Overflow::Disconnect,
        };
        v1::Subscribe {
            subscription: number,
            pattern: self.pattern.clone(),
            group: self.group.clone().unwrap_or_default(),
            credit_bytes: self.mailbox.begin_again(),
            overflow: overflow as i32,
            resume: self.has_begun,
            positions: self.positions.values().copied().collect(),
        }
    }

    fn begin(&mut self, positions: Vec<v1::Position>, gone: &[u64]) {
        (self.is_answered, self.refused) = (true, 0);
        self.forget(gone);
        // One that goes on is still being given what came before these.
        if !std::mem::replace(&mut self.has_begun, true) {
            for position in positions {
                self.positions.entry(position.origin).or_insert(position);
            }
        }
        self.begun.settle(Ok(()));
    }

    /// Takes in messages. Gives the credit to return for those that are not handed on.
    fn deliver(&mut self, deliveries: v1::Deliveries) -> u64 {
        let v1::Deliveries { subscription: _, lagged, runs } = deliveries;
        if let Some(v1::Lagged { missed }) = lagged {
            self.mailbox.lag(missed);
        }
        let mut credit = 0;
        for run in Runs::new(runs) {
            let Ok(Run { head, messages, .. }) = run else {
                tracing::warn!(pattern = %self.pattern, "a node sent messages that cannot be read");
                self.mailbox.lag(None);
                break;
            };
            if head.count > 0 {
                credit += self.hand_on(&head, messages).unwrap_or_default();
                self.note(&head);
            }
        }
        credit
    }

    fn hand_on(&mut self, head: &RunHead, messages: Bytes) -> Option<u64> {
        // A group's members get what the others do not, and late ones by being given again.
        if self.group.is_some() {
            return self.mailbox.push(head, messages);
        }
        self.forget_publishers(head.publisher);
        let (coverage, used) = self.publishers.entry(head.publisher).or_default();
        *used = self.runs;
        self.runs += 1;
        let last = head.first.saturating_add(u64::from(head.count) - 1);
        let told = coverage.tell(head.base, head.first, last);
        if let [only] = told.parts()
            && only.verdict == Verdict::New
        {
            return self.mailbox.push(head, messages);
        }
        let mut credit = 0;
        for part in told.parts() {
            let (count, index) = ((part.last - part.first + 1) as u32, (part.first - head.first) as u32);
            match part.verdict {
                Verdict::New => match slice(&messages, index, count) {
                    Some(slice) => {
                        let head = RunHead { count, first: part.first, ..*head };
                        credit += self.mailbox.push(&head, slice).unwrap_or_default();
                    }
                    None => self.mailbox.lag(None),
                },
                Verdict::Late => self.mailbox.lag(Some(count.into())),
                Verdict::Repeated => {}
            }
        }
        if told.parts().iter().all(|part| part.verdict != Verdict::New) {
            credit += self.mailbox.skip(&messages).unwrap_or_default();
        }
        Some(credit)
    }

    fn forget_publishers(&mut self, publisher: u64) {
        if self.publishers.len() >= PUBLISHERS_MAX && !self.publishers.contains_key(&publisher) {
            let mut used: Vec<u64> = self.publishers.values().map(|(_, used)| *used).collect();
            let (_, middle, _) = used.select_nth_unstable(PUBLISHERS_MAX / 2);
            let middle = *middle;
            self.publishers.retain(|_, (_, used)| *used > middle);
        }
    }

    fn note(&mut self, head: &RunHead) {
        let sequence = head.sequence + u64::from(head.count) - 1;
        let position = v1::Position { origin: head.origin, incarnation: head.incarnation, sequence };
        self.reach(position);
    }

    /// These origins are no more: what they published was delivered, or reported as missed.
    fn forget(&mut self, gone: &[u64]) {
        self.positions.retain(|origin, _| !gone.contains(origin));
    }

    fn reach(&mut self, position: v1::Position) {
        let known = self.positions.entry(position.origin).or_insert(position);
        if known.incarnation != position.incarnation || known.sequence < position.sequence {
            *known = position;
        }
    }
}

/// The messages from one on.
fn slice(messages: &Bytes, index: u32, count: u32) -> Option<Bytes> {
    let skip = |from: usize, count: u32| {
        (0..count).try_fold(from, |at, _| Some(at + MessageRef::first(messages.get(at..)?).ok()?.encoded_len))
    };
    let from = skip(0, index)?;
    let to = skip(from, count)?;
    Some(messages.slice(from..to))
}

/// All subscriptions of a session, by the client's numbers.
#[derive(Default)]
pub(crate) struct Subscriptions(BTreeMap<u64, Subscribing>);

impl Subscriptions {
    pub(crate) fn add(&mut self, number: u64, subscribing: Subscribing) {
        self.0.insert(number, subscribing);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Forgets one; says whether it was there.
    pub(crate) fn remove(&mut self, number: u64) -> bool {
        self.0.remove(&number).is_some()
    }

    /// What a node is asked for to go on with all of them.
    pub(crate) fn calls(&mut self) -> Vec<v1::Subscribe> {
        self.0.iter_mut().map(|(number, subscribing)| subscribing.call(*number)).collect()
    }

    pub(crate) fn begin(&mut self, subscribed: v1::Subscribed) {
        let v1::Subscribed { subscription, positions, unaware, gone } = subscribed;
        if let Some(subscribing) = self.0.get_mut(&subscription) {
            if unaware > 0 {
                tracing::debug!(unaware, "nodes out of reach do not know of a subscription yet");
            }
            subscribing.begin(positions, &gone);
        }
    }

    /// Takes in messages. Gives the credit to return, and to which subscription.
    pub(crate) fn deliver(&mut self, deliveries: v1::Deliveries) -> Option<(u64, u64)> {
        let number = deliveries.subscription;
        // One that was ended meanwhile is not there.
        let credit = self.0.get_mut(&number)?.deliver(deliveries);
        (credit > 0).then_some((number, credit))
    }

    /// Everything up to these places was delivered, of those that the node knows of when it says so.
    pub(crate) fn reach(&mut self, positions: v1::Positions) {
        let v1::Positions { positions, except, gone } = positions;
        for (number, subscribing) in &mut self.0 {
            if subscribing.is_answered && !except.contains(number) {
                positions.iter().for_each(|position| subscribing.reach(*position));
                subscribing.forget(&gone);
            }
        }
    }

    /// Whether one that a node refuses goes on at another, and not for the first times in vain.
    pub(crate) fn goes_elsewhere(&mut self, number: u64, failure: &Failure) -> bool {
        let Some(subscribing) = self.0.get_mut(&number) else { return false };
        subscribing.refused += 1;
        failure.retry == RetryHint::RetryElsewhere
            && subscribing.has_begun
            && !subscribing.is_answered
            && subscribing.refused <= REFUSALS_MAX
    }

    /// One was refused, or ended by its node.
    pub(crate) fn refuse(&mut self, number: u64, failure: Failure) -> bool {
        let Some(subscribing) = self.0.remove(&number) else { return false };
        subscribing.begun.settle(Err(failure.clone()));
        subscribing.mailbox.end(Some(failure.into()));
        true
    }

    /// All end.
    pub(crate) fn end(&mut self, failure: &Failure, error: impl Fn() -> Option<Error>) {
        for subscribing in std::mem::take(&mut self.0).into_values() {
            subscribing.begun.settle(Err(failure.clone()));
            subscribing.mailbox.end(error());
        }
    }

    /// Those of a pattern end. Gives their numbers.
    pub(crate) fn end_of(&mut self, pattern: &str) -> Vec<u64> {
        let of_it = self.0.extract_if(.., |_, subscribing| subscribing.pattern == pattern);
        let ended = of_it.map(|(number, subscribing)| {
            subscribing.mailbox.end(None);
            number
        });
        ended.collect()
    }

    /// What is subscribed to, by pattern.
    pub(crate) fn topics(&self) -> Vec<TopicInfo> {
        let mut counts: BTreeMap<(&str, Option<&str>), u32> = BTreeMap::new();
        for subscribing in self.0.values().filter(|subscribing| !subscribing.mailbox.is_of_answers()) {
            *counts.entry((&subscribing.pattern, subscribing.group.as_deref())).or_default() += 1;
        }
        let topic = |((pattern, group), subscriptions): ((&str, Option<&str>), u32)| TopicInfo {
            pattern: pattern.to_owned(),
            group: group.map(str::to_owned),
            subscriptions,
            nodes: 1,
        };
        counts.into_iter().map(topic).collect()
    }
}

#[cfg(test)]
mod tests {
    use debros_proto::{ErrorCode, Failure, v1};

    use super::{REFUSALS_MAX, Subscribing, Subscriptions};
    use crate::pubsub::Overflow;
    use crate::pubsub::subscription::Mailbox;

    fn at(origin: u64, sequence: u64) -> v1::Position {
        v1::Position { origin, incarnation: 100 + origin, sequence }
    }

    fn begun(subscriptions: &mut Subscriptions, subscription: u64, positions: &[v1::Position]) {
        let positions = positions.to_vec();
        subscriptions.begin(v1::Subscribed { subscription, positions, ..Default::default() });
    }

    /// Two that stand at a node.
    fn two() -> Subscriptions {
        let mut subscriptions = Subscriptions::default();
        for number in 1..=2 {
            let mailbox = Mailbox::new(1 << 20);
            subscriptions.add(number, Subscribing::new("t", None, Overflow::DropOldest, mailbox));
            begun(&mut subscriptions, number, &[at(1, 5), at(2, 5)]);
        }
        subscriptions
    }

    fn reach(subscriptions: &mut Subscriptions, positions: &[v1::Position], gone: &[u64]) {
        let (positions, gone) = (positions.to_vec(), gone.to_vec());
        subscriptions.reach(v1::Positions { positions, except: Vec::new(), gone });
    }

    fn resumed(subscriptions: &mut Subscriptions) -> Vec<Vec<v1::Position>> {
        subscriptions.calls().into_iter().map(|call| call.positions).collect()
    }

    #[test]
    fn what_a_node_says_of_all_is_not_said_of_those_it_has_not_taken_in() {
        let mut subscriptions = two();
        reach(&mut subscriptions, &[at(1, 7)], &[]);
        assert_eq!(resumed(&mut subscriptions), vec![[at(1, 7), at(2, 5)]; 2]);
        // At the next node one is there, the other still under way, when it speaks.
        begun(&mut subscriptions, 1, &[at(1, 9), at(2, 9)]);
        reach(&mut subscriptions, &[at(1, 9), at(2, 9)], &[]);
        assert_eq!(resumed(&mut subscriptions), [[at(1, 9), at(2, 9)], [at(1, 7), at(2, 5)]]);
    }

    #[test]
    fn an_origin_that_is_gone_is_forgotten() {
        let mut subscriptions = two();
        reach(&mut subscriptions, &[at(1, 7)], &[2]);
        assert_eq!(resumed(&mut subscriptions), [[at(1, 7)], [at(1, 7)]]);
        let gone = v1::Subscribed { subscription: 1, gone: vec![1], ..Default::default() };
        subscriptions.begin(gone);
        assert_eq!(resumed(&mut subscriptions), [vec![], vec![at(1, 7)]]);
    }

    #[test]
    fn what_a_full_node_refuses_goes_on_at_another_but_not_for_ever() {
        let full = Failure::new(ErrorCode::LimitExceeded, "full").elsewhere();
        let mut subscriptions = two();
        assert!(!subscriptions.goes_elsewhere(1, &full), "it stands, and has been ended");
        subscriptions.calls();
        assert!(!subscriptions.goes_elsewhere(1, &Failure::invalid("no")));
        begun(&mut subscriptions, 1, &[]);
        for _ in 0..REFUSALS_MAX {
            subscriptions.calls();
            assert!(subscriptions.goes_elsewhere(1, &full));
        }
        assert!(!subscriptions.goes_elsewhere(1, &full));
        let mailbox = Mailbox::new(1);
        subscriptions.add(3, Subscribing::new("t", None, Overflow::DropOldest, mailbox));
        assert!(!subscriptions.goes_elsewhere(3, &full), "its application is told");
    }
}

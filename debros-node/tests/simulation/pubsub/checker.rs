//! Judges what clients of pub/sub saw. Every message has a number of its publisher, so each subscription is
//! judged by itself: what it heard is in the order of each publisher, once, of its own namespace and pattern; and
//! what was acknowledged while it existed was heard, or a notice said that something was missed.
//!
//! A notice counts for what was sent before it came. Since one origin's messages come in order, it must have come
//! soon after a later message of the same origin at the latest. What no notice without a number can tell of, those that
//! say how many were missed must add up to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use debros_proto::v1;

use super::history::{Heard, Number, Origin, Published, Subscription};

/// A notice may take another way than the messages behind it: an answer to what the node told of its interest.
const NOTICE_LATE_MAX: Duration = Duration::from_secs(6);
/// Of what concerns subscriptions that read on, where no origin dies and no ring overflows.
const DELIVERED_MIN: f64 = 0.995;
/// A ratio of fewer says nothing.
const RATIO_OF_MIN: usize = 200;

/// What was seen in a run.
pub(crate) struct Seen<'s> {
    pub(crate) published: &'s BTreeMap<Number, Published>,
    pub(crate) subscriptions: &'s [Subscription],
    /// No origin died, and no ring was small.
    pub(crate) is_live: bool,
}

/// What became of the messages that concern subscriptions, and what is wrong.
#[derive(Default)]
pub(crate) struct Judgement {
    pub(crate) delivered: usize,
    pub(crate) wrong: Vec<String>,
}

/// See the module.
pub(crate) fn judge(seen: &Seen<'_>) -> Judgement {
    let (mut judgement, mut wanted, mut had) = (Judgement::default(), 0, 0);
    for (place, subscription) in seen.subscriptions.iter().enumerate() {
        let mut judge = Judge::new(place, subscription, seen.published);
        judge.order();
        if subscription.group.is_empty() {
            judge.completeness();
            if !subscription.is_slow {
                (wanted, had) = (wanted + judge.wanted, had + judge.had);
            }
        }
        judgement.delivered += judge.numbers.len();
        judgement.wrong.append(&mut judge.wrong);
    }
    groups(seen, &mut judgement.wrong);
    counts(seen, &mut judgement.wrong);
    if seen.is_live && wanted >= RATIO_OF_MIN && (had as f64) < wanted as f64 * DELIVERED_MIN {
        judgement
            .wrong
            .push(format!("only {had} of {wanted} messages were delivered, though no origin died"));
    }
    judgement
}

/// Whether a pattern matches a topic, level by level.
fn matches(pattern: &str, topic: &str) -> bool {
    let (mut pattern, mut topic) = (pattern.split('.'), topic.split('.'));
    loop {
        match (pattern.next(), topic.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) => return true,
            (Some("*"), Some(_)) => {}
            (Some(level), Some(other)) if level == other => {}
            _ => return false,
        }
    }
}

struct Judge<'s> {
    place: usize,
    subscription: &'s Subscription,
    published: &'s BTreeMap<Number, Published>,
    /// What was heard, and its place in that order.
    numbers: BTreeMap<Number, usize>,
    wanted: usize,
    had: usize,
    wrong: Vec<String>,
}

impl<'s> Judge<'s> {
    fn new(place: usize, subscription: &'s Subscription, published: &'s BTreeMap<Number, Published>) -> Self {
        let (numbers, wrong) = (BTreeMap::new(), Vec::new());
        Self { place, subscription, published, numbers, wanted: 0, had: 0, wrong }
    }

    fn tell(&mut self, what: String) {
        let Subscription { namespace, pattern, group, .. } = self.subscription;
        self.wrong.push(format!("subscription {} to {pattern} {group} in {namespace}: {what}", self.place));
    }

    fn order(&mut self) {
        // A queue group's messages are at-most-once, so one that comes late through a former origin is not dropped;
        // nor is one that a member finds which has come to another node.
        let in_group = !self.subscription.group.is_empty();
        let mut last: BTreeMap<(u64, Option<Origin>), u64> = BTreeMap::new();
        for (at, (when, heard)) in self.subscription.heard.iter().enumerate() {
            let Heard::Message { number, origin, rerouted, namespace, topic } = heard else {
                if in_group && *heard == Heard::Moved {
                    last.clear();
                }
                continue;
            };
            let told = self.published.get(number);
            if told.is_none_or(|told| told.topic != *topic || told.namespace != *namespace) {
                self.tell(format!("{heard:?} was never published"));
                continue;
            }
            if *namespace != self.subscription.namespace {
                self.tell(format!("{number:?} at {when:?} crossed over from {namespace}"));
            }
            if !matches(&self.subscription.pattern, topic) {
                self.tell(format!("{number:?} at {when:?} has another topic, {topic}"));
            }
            let last = last.entry((number.0, in_group.then_some(*origin))).or_default();
            if number.1 <= *last && !rerouted {
                self.tell(format!("{number:?} at {when:?} comes after {last}"));
            }
            *last = number.1.max(*last);
            if self.numbers.insert(*number, at).is_some() {
                self.tell(format!("{number:?} at {when:?} comes once more"));
            }
        }
    }

    fn completeness(&mut self) {
        let subscription = self.subscription;
        let Some(begun) = subscription.begun else { return };
        let mut missed = Vec::new();
        for (number, published) in self.published {
            let Some(acknowledged) = published.acknowledged else { continue };
            let within = published.sent > begun && subscription.ended.is_none_or(|end| acknowledged.at < end);
            let concerns = published.namespace == subscription.namespace
                && matches(&subscription.pattern, &published.topic);
            if !within || !concerns {
                continue;
            }
            self.wanted += 1;
            if self.numbers.contains_key(number) {
                self.had += 1;
            } else if published.is_final {
                self.tell(format!("{number:?} is missing though nothing went wrong any more"));
            } else {
                missed.push((*number, published));
            }
        }
        for (number, published) in &missed {
            if let Some(reason) = self.unexplained(*number, published) {
                self.tell(format!("{number:?}, sent at {:?}, is missing: {reason}", published.sent));
            }
        }
        self.add_up(&missed);
    }

    /// Why no notice tells of a message that was missed.
    fn unexplained(&self, number: Number, published: &Published) -> Option<String> {
        let Some(noticed) = self.notices().map(|(at, _)| at).find(|at| *at >= published.sent) else {
            // One that is dropped by its client takes what waits with it.
            return self.subscription.ended.is_none().then(|| "no notice was given".to_owned()).or_else(
                || {
                    self.next_of_origin(number, published)
                        .map(|at| format!("{at:?} brought more, and no notice"))
                },
            );
        };
        let next = self.next_of_origin(number, published)?;
        (!self.subscription.is_slow && noticed > next + NOTICE_LATE_MAX)
            .then(|| format!("the notice came at {noticed:?}, and more of its origin at {next:?}"))
    }

    /// When something was missed, and how much if that was said.
    fn notices(&self) -> impl Iterator<Item = (Duration, Option<u64>)> {
        self.subscription.heard.iter().filter_map(|(at, heard)| match heard {
            Heard::Lagged(count) => Some((*at, *count)),
            Heard::Message { .. } | Heard::Moved => None,
        })
    }

    /// When something later of the same origin was heard: of the same publisher, or sent by another one after this
    /// was acknowledged.
    fn next_of_origin(&self, number: Number, published: &Published) -> Option<Duration> {
        let acknowledged = published.acknowledged?;
        let is_later = |other: &Number| {
            let sent = self.published.get(other).map(|other| other.sent);
            other.0 == number.0 && other.1 > number.1 || sent.is_some_and(|sent| sent > acknowledged.at)
        };
        let later = self.subscription.heard.iter().filter_map(|(when, heard)| match heard {
            Heard::Message { number, origin, .. } if *origin == acknowledged.by && is_later(number) => {
                Some(*when)
            }
            _ => None,
        });
        later.min()
    }

    /// What no notice without a number can tell of, the others must: together they say enough.
    fn add_up(&mut self, missed: &[(Number, &Published)]) {
        if self.subscription.ended.is_some() {
            return;
        }
        let is_counted = |(number, published): &&(Number, &Published)| {
            let next = self.next_of_origin(*number, published).filter(|_| !self.subscription.is_slow);
            let until = next.map_or(Duration::MAX, |next| next + NOTICE_LATE_MAX);
            let mut within = self.notices().filter(|(at, _)| (published.sent..=until).contains(at));
            within.all(|(_, count)| count.is_some())
        };
        let counted = missed.iter().filter(is_counted).count() as u64;
        let reported: u64 = self.notices().filter_map(|(_, count)| count).sum();
        if reported < counted {
            self.tell(format!("{counted} messages are missing, and the notices say {reported}"));
        }
    }
}

/// A member of each queue group has each message, at most one of them, and at the end one of them.
fn groups(seen: &Seen<'_>, wrong: &mut Vec<String>) {
    let mut members: BTreeMap<(&str, &str, &str), Vec<&Subscription>> = BTreeMap::new();
    for member in seen.subscriptions.iter().filter(|subscription| !subscription.group.is_empty()) {
        let group = (member.namespace.as_str(), member.group.as_str(), member.pattern.as_str());
        members.entry(group).or_default().push(member);
    }
    for ((namespace, group, pattern), members) in members {
        let mut given: BTreeMap<Number, usize> = BTreeMap::new();
        for (_, heard) in members.iter().flat_map(|member| &member.heard) {
            if let Heard::Message { number, .. } = heard {
                *given.entry(*number).or_default() += 1;
            }
        }
        for (number, times) in given.iter().filter(|(_, times)| **times > 1) {
            wrong.push(format!("{number:?} was given to {group} in {namespace} {times} times"));
        }
        let last = members.iter().filter(|member| member.begun.is_some() && member.ended.is_none());
        if last.count() == 0 {
            continue;
        }
        let finals = seen.published.iter().filter(|(_, published)| {
            published.is_final && published.namespace == namespace && matches(pattern, &published.topic)
        });
        for (number, _) in finals.filter(|(number, _)| !given.contains_key(number)) {
            wrong.push(format!("{number:?} was given to nobody of {group} in {namespace}"));
        }
    }
}

/// At the end an acknowledgement tells of all nodes that have subscriptions.
fn counts(seen: &Seen<'_>, wrong: &mut Vec<String>) {
    for (number, published) in seen.published.iter().filter(|(_, published)| published.is_final) {
        let concerned = seen.subscriptions.iter().filter(|subscription| {
            let is_there = subscription.begun.is_some() && subscription.ended.is_none();
            is_there
                && subscription.group.is_empty()
                && subscription.namespace == published.namespace
                && matches(&subscription.pattern, &published.topic)
        });
        let nodes: BTreeSet<u64> = concerned.filter_map(|subscription| subscription.node).collect();
        let told = published.nodes.unwrap_or_default() as usize;
        if published.mode == v1::PublishMode::Received && told < nodes.len() {
            wrong.push(format!("{number:?} was acknowledged for {told} nodes, and {nodes:?} want it"));
        }
    }
}

/// The checker is held to histories whose verdicts are known.
pub(crate) fn known_histories_are_told_apart() -> Result<(), String> {
    use super::history::Acknowledged;
    let at = Duration::from_millis;
    let by = (1, 7);
    let message = |number: u64| Heard::Message {
        number: (5, number),
        origin: by,
        rerouted: false,
        namespace: "one".to_owned(),
        topic: "rooms.1".to_owned(),
    };
    let crossed = Heard::Message {
        number: (6, 1),
        origin: by,
        rerouted: false,
        namespace: "two".to_owned(),
        topic: "rooms.1".to_owned(),
    };
    let published = |namespace: &str, sent: u64| Published {
        namespace: namespace.to_owned(),
        topic: "rooms.1".to_owned(),
        mode: v1::PublishMode::Accepted,
        sent: at(sent),
        acknowledged: Some(Acknowledged { at: at(sent + 5), by }),
        nodes: None,
        is_final: false,
    };
    let of_another = Heard::Message {
        number: (8, 1),
        origin: by,
        rerouted: false,
        namespace: "one".to_owned(),
        topic: "rooms.1".to_owned(),
    };
    // Publisher 8 has one message, through the same origin, after all of publisher 5.
    let messages: BTreeMap<Number, Published> = (1..=4_u64)
        .map(|number| ((5, number), published("one", number * 100)))
        .chain([((6, 1), published("two", 100)), ((8, 1), published("one", 500))])
        .collect();
    let then = |mut heard: Vec<(u64, Heard)>| {
        heard.push((510, of_another.clone()));
        heard
    };
    type Case = (&'static str, Vec<(u64, Heard)>, bool);
    let cases: [Case; 12] = [
        ("all are heard", then((1..=4).map(|number| (number * 110, message(number))).collect()), true),
        ("nothing is heard", vec![], false),
        ("nothing is heard, and that is told", vec![(600, Heard::Lagged(None))], true),
        ("one is missing", then(vec![(110, message(1)), (330, message(3)), (440, message(4))]), false),
        (
            "one is missing, and that is told",
            then(vec![
                (110, message(1)),
                (320, Heard::Lagged(Some(1))),
                (330, message(3)),
                (440, message(4)),
            ]),
            true,
        ),
        (
            "the last of a publisher are missing, and of their origin more came long before that is told",
            vec![
                (110, message(1)),
                (220, message(2)),
                (510, of_another.clone()),
                (9000, Heard::Lagged(None)),
            ],
            false,
        ),
        (
            "more are missing than is told, and much later something may be",
            vec![
                (110, message(1)),
                (420, Heard::Lagged(Some(1))),
                (440, message(4)),
                (510, of_another.clone()),
                (9000, Heard::Lagged(None)),
            ],
            false,
        ),
        (
            "one is missing, and was told of before it was sent",
            then(vec![
                (110, message(1)),
                (150, Heard::Lagged(Some(1))),
                (330, message(3)),
                (440, message(4)),
            ]),
            false,
        ),
        (
            "one is missing, and is told of much too late",
            vec![(110, message(1)), (330, message(3)), (440, message(4)), (9000, Heard::Lagged(None))],
            false,
        ),
        (
            "more are missing than is told",
            vec![(110, message(1)), (420, Heard::Lagged(Some(1))), (440, message(4))],
            false,
        ),
        ("one comes twice", vec![(110, message(1)), (110, message(1)), (600, Heard::Lagged(None))], false),
        ("one comes from elsewhere", vec![(110, crossed), (600, Heard::Lagged(None))], false),
    ];
    let fine = |heard: &[(u64, Heard)]| {
        let heard = heard.iter().map(|(when, heard)| (at(*when), heard.clone())).collect();
        let (namespace, pattern) = ("one".to_owned(), "rooms.*".to_owned());
        let subscription =
            Subscription { namespace, pattern, begun: Some(at(50)), heard, ..Default::default() };
        let seen = Seen { published: &messages, subscriptions: &[subscription], is_live: true };
        judge(&seen).wrong.is_empty()
    };
    let misjudged = cases.iter().filter(|(_, heard, wanted)| fine(heard) != *wanted);
    let misjudged: Vec<&str> = misjudged.map(|(what, ..)| *what).collect();
    if misjudged.is_empty() { Ok(()) } else { Err(format!("misjudged: {}", misjudged.join(", "))) }
}

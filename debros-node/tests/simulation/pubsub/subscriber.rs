//! A subscriber: several subscriptions in one session, which it takes to another node when that ends, with where
//! each had got to; or which it ends and begins anew, as applications come and go.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use debros_net::simulated::SimulatedNetwork;
use debros_proto::coverage::{Coverage, Verdict};
use debros_proto::packed::{Message, Messages, RunHead, Runs};
use debros_proto::{ErrorCode, Failure, v1};
use tokio::time::{sleep, timeout};
use v1::session_call::Call;
use v1::session_event::Event;
use v1::session_failure::About;

use super::Stage;
use super::history::{Heard, Notes, Subscription};
use super::session::Session;
use crate::clients::now;
use crate::dice::Dice;

/// What is subscribed to; most match several topics.
pub(crate) const PATTERNS: [&str; 8] =
    ["rooms.*", "rooms.>", "rooms.1", ">", "halls.a.*", "*", "news", "*.1.chat"];
/// What queue groups work on, and their names.
const GROUPS: [(&str, &str); 2] = [("jobs.*", "workers"), ("jobs.>", "auditors")];
/// Credit of a subscriber that reads on.
const CREDIT_BYTES: u64 = 1 << 20;
/// Credit of one that is slow, and how long it does nothing.
const SLOW_CREDIT_BYTES: u64 = 8 << 10;
const SLOW_MS: (u64, u64) = (300, 3000);
/// Something is changed this often.
const CHANGE_MS: (u64, u64) = (300, 2500);
const AGAIN_AFTER_MS: (u64, u64) = (20, 400);
/// A subscription that is not answered ends the session.
const PATIENCE: Duration = Duration::from_secs(8);

/// See the module.
pub(crate) struct Subscriber {
    /// The client's publisher, which publishes nothing.
    pub(crate) number: u64,
    pub(crate) namespace: String,
    pub(crate) network: Arc<SimulatedNetwork>,
    pub(crate) dice: Dice,
    pub(crate) notes: Notes,
    pub(crate) stage: Rc<Stage>,
    pub(crate) is_slow: bool,
    /// It changes nothing of its own accord.
    pub(crate) is_calm: bool,
    /// Subscriptions of their own, and one of a queue group.
    pub(crate) plain: usize,
    pub(crate) in_group: bool,
}

struct Wanted {
    /// In the notes.
    place: usize,
    pattern: String,
    group: String,
    /// By origin; nothing before it has begun.
    positions: Option<BTreeMap<u64, v1::Position>>,
    told: BTreeMap<u64, Coverage>,
    /// It was resumed at the node where it is, which gives what the ring holds beside what is new.
    resumed: bool,
    answered: bool,
}

struct Work {
    subscriber: Subscriber,
    next: u64,
    wanted: BTreeMap<u64, Wanted>,
}

/// What a client does of its own accord.
enum Change {
    Another,
    Fewer,
    Move,
    Crash,
}

impl Subscriber {
    /// Listens until all is over.
    pub(crate) async fn run(self) {
        let mut work = Work { subscriber: self, next: 1, wanted: BTreeMap::new() };
        work.want_all();
        while !work.subscriber.stage.is_over() {
            let nodes = work.subscriber.stage.nodes();
            let node = *work.subscriber.dice.pick(&nodes);
            let Subscriber { number, namespace, network, notes, .. } = &work.subscriber;
            match Session::attach(network, node, namespace, *number).await {
                Ok(mut session) => work.listen(&mut session).await,
                Err(reason) => notes.note(&format!("{number} not at {node}: {reason}")),
            }
            let pause = work.subscriber.dice.milliseconds(AGAIN_AFTER_MS.0, AGAIN_AFTER_MS.1);
            sleep(pause).await;
        }
    }
}

impl Work {
    fn want_all(&mut self) {
        for _ in 0..self.subscriber.plain {
            let pattern = *self.subscriber.dice.pick(&PATTERNS);
            self.want(pattern, "");
        }
        if self.subscriber.in_group {
            let (pattern, group) = *self.subscriber.dice.pick(&GROUPS);
            self.want(pattern, group);
        }
    }

    fn want(&mut self, pattern: &str, group: &str) -> u64 {
        let Subscriber { namespace, is_slow, notes, .. } = &self.subscriber;
        let (pattern, group) = (pattern.to_owned(), group.to_owned());
        let place = notes.subscribe(Subscription {
            namespace: namespace.clone(),
            pattern: pattern.clone(),
            group: group.clone(),
            is_slow: *is_slow,
            ..Default::default()
        });
        let number = self.next;
        self.next += 1;
        let (told, positions) = (BTreeMap::new(), None);
        let wanted = Wanted { place, pattern, group, positions, told, resumed: false, answered: false };
        self.wanted.insert(number, wanted);
        number
    }

    fn subscribe(&mut self, session: &Session, number: u64) -> bool {
        let Some(wanted) = self.wanted.get_mut(&number) else { return true };
        wanted.answered = false;
        wanted.resumed = wanted.positions.is_some();
        if wanted.resumed {
            self.subscriber.notes.heard(wanted.place, Heard::Moved);
        }
        let positions = wanted.positions.iter().flat_map(BTreeMap::values).copied().collect();
        session.call(Call::Subscribe(v1::Subscribe {
            subscription: number,
            pattern: wanted.pattern.clone(),
            group: wanted.group.clone(),
            credit_bytes: if self.subscriber.is_slow { SLOW_CREDIT_BYTES } else { CREDIT_BYTES },
            overflow: v1::Overflow::DropOldest as i32,
            resume: wanted.resumed,
            positions,
        }))
    }

    async fn listen(&mut self, session: &mut Session) {
        for number in self.wanted.keys().copied().collect::<Vec<_>>() {
            if !self.subscribe(session, number) {
                return;
            }
        }
        let asked = now();
        let mut change_at = now() + self.draw_pause();
        while !self.subscriber.stage.is_over() {
            let left = change_at.saturating_sub(now()).max(Duration::from_millis(1));
            match timeout(left, session.event()).await {
                Ok(None) => return,
                Ok(Some(event)) => {
                    if !self.take(session, event).await {
                        return;
                    }
                }
                Err(_) => {
                    change_at = now() + self.draw_pause();
                    let unanswered = self.wanted.values().any(|wanted| !wanted.answered);
                    if unanswered && now() - asked > PATIENCE {
                        self.subscriber.notes.note("a subscription is not answered");
                        return;
                    }
                    if !self.subscriber.is_calm
                        && !self.subscriber.stage.is_published()
                        && !self.change(session)
                    {
                        return;
                    }
                }
            }
        }
    }

    fn draw_pause(&mut self) -> Duration {
        self.subscriber.dice.milliseconds(CHANGE_MS.0, CHANGE_MS.1)
    }

    /// Does something of its own accord; false when the session ends by it.
    fn change(&mut self, session: &Session) -> bool {
        let change = match self.subscriber.dice.below(8) {
            0..3 => Change::Another,
            3..5 => Change::Fewer,
            5..7 => Change::Move,
            _ => Change::Crash,
        };
        match change {
            Change::Another => {
                let pattern = *self.subscriber.dice.pick(&PATTERNS);
                let number = self.want(pattern, "");
                self.subscribe(session, number)
            }
            Change::Fewer if self.wanted.len() > 1 => {
                let numbers: Vec<u64> = self.wanted.keys().copied().collect();
                let number = *self.subscriber.dice.pick(&numbers);
                if let Some(wanted) = self.wanted.remove(&number) {
                    self.subscriber.notes.ended(wanted.place);
                }
                session.call(Call::Unsubscribe(v1::Unsubscribe { subscription: number }))
            }
            Change::Fewer => true,
            Change::Move => {
                self.subscriber.notes.note(&format!("{} moves", self.subscriber.number));
                false
            }
            Change::Crash => {
                for wanted in std::mem::take(&mut self.wanted).into_values() {
                    self.subscriber.notes.ended(wanted.place);
                }
                self.want_all();
                false
            }
        }
    }

    /// Takes in an event; false when the session is not to go on.
    async fn take(&mut self, session: &Session, event: Event) -> bool {
        match event {
            Event::Subscribed(v1::Subscribed { subscription, positions, unaware: _, gone }) => {
                let Some(wanted) = self.wanted.get_mut(&subscription) else { return true };
                wanted.answered = true;
                // Of one that was resumed they say where the node is, not what was delivered.
                let known = wanted.positions.get_or_insert_with(|| by_origin(&positions).collect());
                known.retain(|origin, _| !gone.contains(origin));
                self.subscriber.notes.begun(wanted.place, session.attached.node_id);
            }
            Event::Deliveries(deliveries) => return self.take_deliveries(session, deliveries).await,
            Event::Positions(v1::Positions { positions, except, gone }) => {
                // The node speaks of those that it has taken in.
                let told = self.wanted.iter_mut();
                let told = told.filter(|(number, wanted)| wanted.answered && !except.contains(number));
                for known in told.filter_map(|(_, wanted)| wanted.positions.as_mut()) {
                    known.extend(by_origin(&positions));
                    known.retain(|origin, _| !gone.contains(origin));
                }
            }
            Event::Failure(v1::SessionFailure { about: Some(About::Subscription(number)), failure }) => {
                let failure = Failure::from_call(failure.unwrap_or_default());
                if failure.code != ErrorCode::ShuttingDown {
                    self.subscriber.notes.wrong(format!("subscription {number} ended by {failure:?}"));
                }
                return false;
            }
            Event::Unsubscribed(_) => {}
            other => self.subscriber.notes.wrong(format!("a subscriber was told {other:?}")),
        }
        true
    }

    async fn take_deliveries(&mut self, session: &Session, deliveries: v1::Deliveries) -> bool {
        let v1::Deliveries { subscription, lagged, runs } = deliveries;
        // What was on its way when it was unsubscribed.
        let Some(wanted) = self.wanted.get_mut(&subscription) else { return true };
        let notes = &self.subscriber.notes;
        if let Some(v1::Lagged { missed }) = lagged {
            notes.heard(wanted.place, Heard::Lagged(missed));
        }
        let bytes = runs.len() as u64;
        for run in Runs::new(runs) {
            match run {
                Ok(run) => wanted.hear(&run.head, Messages::new(run.messages), notes),
                Err(damaged) => notes.wrong(format!("subscription {}: {damaged}", wanted.place)),
            }
        }
        if self.subscriber.is_slow && !self.subscriber.stage.is_published() {
            let pause = self.subscriber.dice.milliseconds(SLOW_MS.0, SLOW_MS.1);
            sleep(pause).await;
        }
        session.call(Call::Credit(v1::Credit { subscription, bytes }))
    }
}

impl Wanted {
    fn hear(&mut self, head: &RunHead, messages: Messages, notes: &Notes) {
        let last = head.first + u64::from(head.count) - 1;
        let messages: Vec<Message> = messages.map_while(Result::ok).collect();
        if messages.len() != head.count as usize {
            notes.wrong(format!(
                "subscription {}: a run of {} messages has {head:?}",
                self.place,
                messages.len()
            ));
            return;
        }
        let origin = (head.origin, head.incarnation);
        if self.group.is_empty() {
            let told = self.told.entry(head.publisher).or_default().tell(head.base, head.first, last);
            for part in told.parts() {
                match part.verdict {
                    Verdict::New => {}
                    // What the ring holds may have come through another origin.
                    Verdict::Late if self.resumed => {
                        let missed = Some(part.last - part.first + 1);
                        notes.heard(self.place, Heard::Lagged(missed));
                        continue;
                    }
                    Verdict::Repeated if self.resumed => continue,
                    verdict => {
                        let number = (head.publisher, part.first);
                        notes.wrong(format!("subscription {}: {number:?} is {verdict:?}", self.place));
                        continue;
                    }
                }
                let from = (part.first - head.first) as usize;
                let to = (part.last - head.first) as usize;
                for (number, message) in (part.first..).zip(&messages[from..=to]) {
                    notes.heard(self.place, heard((head.publisher, number), origin, head, message));
                }
            }
        } else {
            for (number, message) in (head.first..).zip(&messages) {
                notes.heard(self.place, heard((head.publisher, number), origin, head, message));
            }
        }
        let sequence = head.sequence + u64::from(head.count) - 1;
        let position = v1::Position { origin: head.origin, incarnation: head.incarnation, sequence };
        self.positions.get_or_insert_default().insert(head.origin, position);
    }
}

fn heard(number: (u64, u64), origin: (u64, u64), head: &RunHead, message: &Message) -> Heard {
    let payload = String::from_utf8_lossy(&message.payload);
    let mut parts = payload.split(' ');
    let mut part = || parts.next().unwrap_or_default().to_owned();
    let (namespace, publisher, count, topic) = (part(), part(), part(), part());
    let says_so = publisher == number.0.to_string()
        && count == number.1.to_string()
        && topic.as_bytes() == &message.topic[..];
    // A topic of its own tells the checker that the payload belongs to another message.
    let topic = if says_so { topic } else { format!("{topic} with the payload of {publisher} {count}") };
    Heard::Message { number, origin, rerouted: head.rerouted, namespace, topic }
}

fn by_origin(positions: &[v1::Position]) -> impl Iterator<Item = (u64, v1::Position)> + '_ {
    positions.iter().map(|position| (position.origin, *position))
}

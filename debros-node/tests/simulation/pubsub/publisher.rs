//! A publisher: numbers its messages, keeps what was not acknowledged, and sends that again under the same
//! numbers through another node when its session has ended.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use debros_net::simulated::SimulatedNetwork;
use debros_proto::{ErrorCode, Failure, packed, v1};
use tokio::time::{sleep, timeout};
use v1::session_call::Call;
use v1::session_event::Event;
use v1::session_failure::About;

use super::Stage;
use super::history::{Acknowledged, Notes, Published};
use super::session::Session;
use crate::clients::now;
use crate::dice::Dice;

/// Batches that were not acknowledged; more wait.
const OUTSTANDING_MAX: usize = 24;
/// Messages of one batch.
const BATCH_MAX: u64 = 4;
/// Time between two batches.
const PAUSE_MS: (u64, u64) = (5, 160);
/// After a session has ended.
const AGAIN_AFTER_MS: (u64, u64) = (20, 400);
/// It goes to another node of its own accord once in so many batches.
const MOVES_ONCE_IN: u64 = 150;
/// What is larger than this on the way makes rings and queues overflow that are small.
const LARGE_BYTES: usize = 12 << 10;
/// A batch in so many has large messages.
const LARGE_ONCE_IN: u64 = 12;
/// An acknowledgement that takes longer ends the session.
const PATIENCE: Duration = Duration::from_secs(8);

/// The topics of messages; patterns that match some of them are [`super::subscriber::PATTERNS`].
pub(crate) const TOPICS: [&str; 7] =
    ["rooms.1", "rooms.2", "rooms.1.chat", "halls.a.b", "news", "jobs.1", "jobs.2"];

struct Batch {
    first: u64,
    last: u64,
    mode: v1::PublishMode,
    messages: Bytes,
    acknowledged: bool,
}

/// See the module.
pub(crate) struct Publisher {
    pub(crate) number: u64,
    pub(crate) namespace: String,
    pub(crate) network: Arc<SimulatedNetwork>,
    pub(crate) dice: Dice,
    pub(crate) notes: Notes,
    pub(crate) stage: Rc<Stage>,
    /// It goes to other nodes though its own is there.
    pub(crate) moves: bool,
    /// It publishes so many messages to each topic, one by one, and ends.
    pub(crate) only: Option<usize>,
}

struct Work {
    publisher: Publisher,
    next: u64,
    /// What was sent since the oldest batch without an acknowledgement, also what has one: a receiver takes for
    /// told what lies behind the first number of a session.
    outstanding: VecDeque<Batch>,
}

impl Publisher {
    /// Works until the stage says so and all is acknowledged.
    pub(crate) async fn run(self) {
        let mut work = Work { publisher: self, next: 1, outstanding: VecDeque::new() };
        while !work.is_done() && !work.publisher.stage.is_over() {
            let (node, network) = (work.publisher.node(), work.publisher.network.clone());
            let Publisher { number, namespace, .. } = &work.publisher;
            match Session::attach(&network, node, namespace, *number).await {
                Ok(mut session) => work.publish_through(&mut session).await,
                Err(reason) => work.publisher.notes.note(&format!("{number} not at {node}: {reason}")),
            }
            let pause = work.publisher.dice.milliseconds(AGAIN_AFTER_MS.0, AGAIN_AFTER_MS.1);
            sleep(pause).await;
        }
        if !work.is_done() {
            let left = work.outstanding.len();
            let number = work.publisher.number;
            work.publisher.notes.wrong(format!("publisher {number} ends with {left} batches unacknowledged"));
        }
    }

    fn node(&mut self) -> usize {
        let nodes = self.stage.nodes();
        *self.dice.pick(&nodes)
    }
}

impl Work {
    fn is_done(&self) -> bool {
        self.has_published_all() && self.outstanding.is_empty()
    }

    fn has_published_all(&self) -> bool {
        match self.publisher.only {
            Some(each) => self.next > (each * TOPICS.len()) as u64,
            None => self.publisher.stage.is_published(),
        }
    }

    /// Publishes until the session ends, or it is time to go elsewhere.
    async fn publish_through(&mut self, session: &mut Session) {
        for batch in &self.outstanding {
            if !send(session, batch, true) {
                return;
            }
        }
        let mut heard = now();
        loop {
            if self.is_done() || self.publisher.stage.is_over() {
                return;
            }
            if self.outstanding.len() < OUTSTANDING_MAX && !self.has_published_all() {
                let batch = self.draw();
                let sent = send(session, &batch, false);
                self.outstanding.push_back(batch);
                if !sent || self.publisher.moves && self.publisher.dice.once_in(MOVES_ONCE_IN) {
                    return;
                }
            }
            let pause = self.publisher.dice.milliseconds(PAUSE_MS.0, PAUSE_MS.1);
            let until = now() + pause;
            while let Some(left) = until.checked_sub(now()).filter(|left| !left.is_zero()) {
                match timeout(left, session.event()).await {
                    Err(_) => break,
                    Ok(None) => return,
                    Ok(Some(event)) => {
                        if !self.take(session, event) {
                            return;
                        }
                        heard = now();
                    }
                }
            }
            let waits = self.outstanding.iter().any(|batch| !batch.acknowledged);
            if !waits {
                heard = now();
            } else if now() - heard > PATIENCE {
                return;
            }
        }
    }

    fn draw(&mut self) -> Batch {
        let is_final = self.publisher.only.is_some();
        let dice = &mut self.publisher.dice;
        let mode = match dice.below(10) {
            _ if is_final => v1::PublishMode::Received,
            0..6 => v1::PublishMode::Accepted,
            6 => v1::PublishMode::Routed,
            _ => v1::PublishMode::Received,
        };
        let count = if is_final { 1 } else { 1 + dice.below(BATCH_MAX) };
        let filler = if !is_final && dice.once_in(LARGE_ONCE_IN) { LARGE_BYTES } else { 0 };
        let (first, mut messages) = (self.next, BytesMut::new());
        for _ in 0..count {
            let topic = match is_final {
                true => TOPICS[self.next as usize % TOPICS.len()],
                false => *self.publisher.dice.pick(&TOPICS),
            };
            let (namespace, publisher) = (&self.publisher.namespace, self.publisher.number);
            let payload = format!("{namespace} {publisher} {} {topic} {}", self.next, "x".repeat(filler));
            packed::put_message(&mut messages, topic.as_bytes(), b"", b"", payload.as_bytes())
                .expect("small enough");
            let published = Published {
                namespace: namespace.clone(),
                topic: topic.to_owned(),
                mode,
                sent: now(),
                acknowledged: None,
                nodes: None,
                is_final,
            };
            self.publisher.notes.sent((publisher, self.next), published);
            self.next += 1;
        }
        Batch { first, last: self.next - 1, mode, messages: messages.freeze(), acknowledged: false }
    }

    /// Takes in an event; false when the session is not to go on.
    fn take(&mut self, session: &Session, event: Event) -> bool {
        match event {
            Event::Published(published) => self.acknowledge(session, &published),
            Event::Failure(v1::SessionFailure { about: Some(About::Publish(first)), failure }) => {
                let failure = Failure::from_call(failure.unwrap_or_default());
                let explained = matches!(
                    failure.code,
                    ErrorCode::UnknownOutcome | ErrorCode::ShuttingDown | ErrorCode::Busy
                );
                if !explained {
                    let number = self.publisher.number;
                    self.publisher.notes.wrong(format!("publisher {number} from {first}: {failure:?}"));
                }
                return false;
            }
            other => self.publisher.notes.wrong(format!("a publisher was told {other:?}")),
        }
        true
    }

    fn acknowledge(&mut self, session: &Session, published: &v1::Published) {
        let by = Acknowledged { at: now(), by: session.origin() };
        for batch in self.outstanding.iter_mut().filter(|batch| !batch.acknowledged) {
            let accepted = batch.mode == v1::PublishMode::Accepted && batch.last <= published.last;
            if accepted || batch.last == published.last {
                batch.acknowledged = true;
                let nodes: &[u32] = if accepted { &[] } else { &published.nodes };
                let numbers = (batch.first, batch.last);
                self.publisher.notes.acknowledged(self.publisher.number, numbers, by, nodes);
            }
        }
        while self.outstanding.front().is_some_and(|batch| batch.acknowledged) {
            self.outstanding.pop_front();
        }
    }
}

fn send(session: &Session, batch: &Batch, again: bool) -> bool {
    let Batch { first, mode, messages, .. } = batch;
    session.call(Call::Publish(v1::Publish {
        first: *first,
        mode: *mode as i32,
        again,
        messages: messages.clone(),
    }))
}

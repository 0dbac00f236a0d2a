//! The publishing half of a session: packs what waits, numbers it, and remembers it until a node has it. Plain
//! data; the session locks it.
//!
//! ```text
//! add --> tail (grows while nobody takes it) --> waiting --> take --> sent --> acknowledged: forgotten
//!                                                   ^                  |
//!                                                   +--- detached -----+
//! ```
//!
//! Invariants: numbers grow and are used once. Batches leave in the order of their numbers. What is sent again
//! through another node is everything from its first number on, also what was acknowledged: a session's first
//! number says that all that follows went the same way (`debros_proto::coverage`).

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use debros_proto::{ErrorCode, Failure, limits, v1};

use super::batch::{Outgoing, Part};
use super::settling::Settling;
use crate::error::Error;

/// Acknowledged batches that are kept because an earlier one is not, in bytes. Past it the earlier one is not
/// sent again when the session breaks: its outcome is unknown then.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// What a batch's acknowledgement says.
#[derive(Debug)]
pub(crate) struct Counts {
    /// Messages of the batch.
    messages: usize,
    /// To how many nodes each went: of the last ones, when the first had been taken in before.
    nodes: Vec<u32>,
    /// Nobody means nothing of what was sent before: its receivers may be those of the first time.
    again: bool,
}

/// Messages in a batch that will be acknowledged.
#[derive(Debug)]
pub(crate) struct Ticket {
    settling: Arc<Settling<Counts>>,
    from: usize,
    count: usize,
}

impl Ticket {
    /// Waits for the acknowledgement: to how many nodes each message went, where that was asked for.
    pub(crate) async fn settled(&self, acknowledge: v1::PublishMode) -> Result<Vec<Option<u32>>, Failure> {
        let Counts { messages, nodes, again } =
            self.settling.settled().await.as_ref().map_err(Clone::clone)?;
        if acknowledge == v1::PublishMode::Accepted {
            return Ok(Vec::new());
        }
        let unknown = messages.saturating_sub(nodes.len());
        let count = |index: usize| {
            let count = nodes.get(index.checked_sub(unknown)?).copied();
            count.filter(|count| *count > 0 || !again)
        };
        Ok((self.from..self.from + self.count).map(count).collect())
    }
}

/// A batch that is still growing.
struct Tail {
    packed: BytesMut,
    first: u64,
    count: u32,
    mode: v1::PublishMode,
    settling: Arc<Settling<Counts>>,
}

struct Batch {
    packed: Bytes,
    first: u64,
    count: u32,
    mode: v1::PublishMode,
    again: bool,
    acknowledged: bool,
    settling: Arc<Settling<Counts>>,
}

impl Batch {
    fn last(&self) -> u64 {
        self.first + u64::from(self.count) - 1
    }
}

/// What a node's answer settled. Who waits for it is told when the session's lock is free.
#[derive(Default)]
#[must_use]
pub(crate) struct Settled {
    /// Bytes that are not under way any more.
    freed: usize,
    untold: Vec<Arc<Settling<Counts>>>,
}

impl Settled {
    /// Tells those who wait. Gives the bytes that are not under way any more.
    pub(crate) fn tell(self) -> usize {
        self.untold.iter().for_each(|settling| settling.tell());
        self.freed
    }

    fn add(&mut self, batch: &Batch, outcome: Result<Vec<u32>, Failure>) {
        self.freed += batch.packed_len();
        if batch.set(outcome) {
            self.untold.push(batch.settling.clone());
        }
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Publishing {
    /// The last number that was given.
    last: u64,
    tail: Option<Tail>,
    waiting: VecDeque<Batch>,
    sent: VecDeque<Batch>,
    /// Batches that are waited for and not kept, by their last numbers.
    orphans: Vec<(u64, Batch)>,
    /// Up to here batches of mode ACCEPTED are acknowledged.
    accepted: u64,
    /// Bytes of `sent` that are not acknowledged, and how many there may be.
    under_way: usize,
    window: usize,
    /// Bytes of `sent` that are.
    kept: usize,
}

impl Publishing {
    /// Adds a message that was checked.
    ///
    /// # Errors
    /// `LimitExceeded`; nothing was added then.
    pub(crate) fn add(&mut self, message: &Outgoing<'_>, mode: v1::PublishMode) -> Result<Ticket, Error> {
        let length = message.encoded_len();
        if self.tail.as_ref().is_some_and(|tail| !tail.has_room(length, 1, mode)) {
            self.close_tail();
        }
        if let Some(tail) = &mut self.tail {
            message.pack(&mut tail.packed)?;
            let ticket = Ticket { settling: tail.settling.clone(), from: tail.count as usize, count: 1 };
            tail.count += 1;
            self.last += 1;
            return Ok(ticket);
        }
        let mut packed = BytesMut::with_capacity(length);
        message.pack(&mut packed)?;
        Ok(self.begin_tail(packed, 1, mode))
    }

    /// Adds messages that are taken in as a whole.
    pub(crate) fn add_part(&mut self, part: Part, mode: v1::PublishMode) -> Ticket {
        if let Some(tail) = &mut self.tail {
            if tail.has_room(part.packed.len(), part.count, mode) {
                tail.packed.extend_from_slice(&part.packed);
                let (from, count) = (tail.count as usize, part.count as usize);
                tail.count += part.count;
                self.last += u64::from(part.count);
                return Ticket { settling: tail.settling.clone(), from, count };
            }
            self.close_tail();
        }
        let count = part.count;
        self.begin_tail(part.packed, count, mode)
    }

    fn begin_tail(&mut self, packed: BytesMut, count: u32, mode: v1::PublishMode) -> Ticket {
        let settling = Arc::<Settling<Counts>>::default();
        let first = self.last + 1;
        self.last += u64::from(count);
        self.tail = Some(Tail { packed, first, count, mode, settling: settling.clone() });
        Ticket { settling, from: 0, count: count as usize }
    }

    fn close_tail(&mut self) {
        if let Some(Tail { packed, first, count, mode, settling }) = self.tail.take() {
            let packed = packed.freeze();
            let (again, acknowledged) = (false, false);
            self.waiting.push_back(Batch { packed, first, count, mode, again, acknowledged, settling });
        }
    }

    /// A node lets so many bytes be under way.
    pub(crate) fn set_window(&mut self, bytes: u64) {
        self.window = usize::try_from(bytes).unwrap_or(usize::MAX);
    }

    /// Whether something is to be sent, now or once the node lets more be under way.
    pub(crate) fn has_waiting(&self) -> bool {
        self.tail.is_some() || !self.waiting.is_empty()
    }

    /// The next batch to be sent, as far as the node lets any be under way.
    pub(crate) fn take(&mut self) -> Option<v1::Publish> {
        if self.waiting.is_empty() {
            self.close_tail();
        }
        let length = self.waiting.front()?.packed.len();
        if self.under_way > 0 && self.under_way + length > self.window {
            return None;
        }
        let batch = self.waiting.pop_front()?;
        let Batch { packed, first, mode, again, acknowledged, .. } = &batch;
        let publish =
            v1::Publish { first: *first, mode: *mode as i32, again: *again, messages: packed.clone() };
        if *acknowledged {
            self.kept += length;
        } else {
            self.under_way += length;
        }
        self.sent.push_back(batch);
        Some(publish)
    }

    /// Takes in an acknowledgement.
    pub(crate) fn acknowledge(&mut self, published: v1::Published) -> Settled {
        let v1::Published { last, nodes } = published;
        let mut settled = Settled::default();
        let at = self.sent.partition_point(|batch| batch.last() < last);
        let asked = |batch: &Batch| batch.last() == last && batch.mode != v1::PublishMode::Accepted;
        if self.sent.get(at).is_some_and(asked) {
            self.settle(at, Ok(nodes), &mut settled);
        } else if let Some(orphan) = self.orphans.iter().position(|(known, _)| *known == last) {
            self.settle_orphan(orphan, Ok(nodes), &mut settled);
        } else if last > self.accepted {
            let from = self.sent.partition_point(|batch| batch.last() <= self.accepted);
            self.accepted = last;
            for at in from..self.sent.len() {
                if self.sent[at].last() > last {
                    break;
                }
                if self.sent[at].mode == v1::PublishMode::Accepted {
                    self.settle(at, Ok(Vec::new()), &mut settled);
                }
            }
        }
        self.forget();
        settled
    }

    /// A batch was refused, by its first number.
    pub(crate) fn refuse(&mut self, first: u64, failure: Failure) -> Settled {
        let mut settled = Settled::default();
        let at = self.sent.partition_point(|batch| batch.first < first);
        if self.sent.get(at).is_some_and(|batch| batch.first == first) {
            self.settle(at, Err(failure), &mut settled);
        } else if let Some(at) = self.orphans.iter().position(|(_, orphan)| orphan.first == first) {
            self.settle_orphan(at, Err(failure), &mut settled);
        }
        self.forget();
        settled
    }

    /// Settles a sent batch, unless it was settled before.
    fn settle(&mut self, at: usize, outcome: Result<Vec<u32>, Failure>, settled: &mut Settled) {
        let batch = &mut self.sent[at];
        if std::mem::replace(&mut batch.acknowledged, true) {
            return;
        }
        settled.add(batch, outcome);
        self.under_way -= batch.packed.len();
        self.kept += batch.packed.len();
    }

    fn settle_orphan(&mut self, at: usize, outcome: Result<Vec<u32>, Failure>, settled: &mut Settled) {
        let (_, orphan) = self.orphans.swap_remove(at);
        settled.add(&orphan, outcome);
        self.under_way -= orphan.packed_len();
    }

    /// Forgets what need not be sent again.
    fn forget(&mut self) {
        while let Some(oldest) = self.sent.front() {
            if oldest.acknowledged {
                self.kept -= oldest.packed.len();
                self.sent.pop_front();
            } else if self.kept > KEPT_BYTES_MAX {
                let orphan = self.sent.pop_front().expect("it was looked at");
                self.orphans.push((orphan.last(), orphan));
            } else {
                return;
            }
        }
    }

    /// The session has broken: what was sent and may be needed again is to be sent again. Gives the bytes of
    /// batches that were given up.
    pub(crate) fn detached(&mut self) -> usize {
        self.under_way = 0;
        self.kept = 0;
        // What the next node accepts, it accepts of what is sent to it.
        self.accepted = 0;
        while let Some(batch) = self.sent.pop_back() {
            self.waiting.push_front(Batch { again: true, ..batch });
        }
        let mut freed = 0;
        for (_, orphan) in self.orphans.drain(..) {
            freed += orphan.packed_len();
            orphan.settle(Err(unknown("the connection broke before the batch was acknowledged")));
        }
        freed
    }

    /// Nothing is sent any more. Gives the bytes that waited.
    pub(crate) fn give_up(&mut self, failure: &Failure) -> usize {
        let mut freed = self.detached();
        self.close_tail();
        for batch in self.waiting.drain(..).filter(|batch| !batch.acknowledged) {
            freed += batch.packed_len();
            let failure = match batch.again {
                true => unknown(&failure.message),
                false => failure.clone(),
            };
            batch.settle(Err(failure));
        }
        freed
    }
}

impl Tail {
    fn has_room(&self, bytes: usize, count: u32, mode: v1::PublishMode) -> bool {
        self.mode == mode
            && self.packed.len() + bytes <= limits::PUBSUB_FRAME_BYTES
            && (self.count + count) as usize <= limits::PUBLISH_MESSAGES_MAX
    }
}

impl Batch {
    fn packed_len(&self) -> usize {
        self.packed.len()
    }

    fn settle(&self, outcome: Result<Vec<u32>, Failure>) {
        if self.set(outcome) {
            self.settling.tell();
        }
    }

    fn set(&self, outcome: Result<Vec<u32>, Failure>) -> bool {
        let (messages, again) = (self.count as usize, self.again);
        self.settling.set(outcome.map(|nodes| Counts { messages, nodes, again }))
    }
}

fn unknown(cause: &str) -> Failure {
    Failure::new(
        ErrorCode::UnknownOutcome,
        format!("the messages may or may not have been published: {cause}"),
    )
    .maybe_applied()
}

#[cfg(test)]
mod tests {
    use debros_proto::v1::{PublishMode, Published};
    use debros_proto::{ErrorCode, Failure};
    use futures::FutureExt;

    use super::{KEPT_BYTES_MAX, Publishing, Ticket};
    use crate::pubsub::batch::{MessageBatch, Outgoing};

    const ACCEPTED: PublishMode = PublishMode::Accepted;
    const RECEIVED: PublishMode = PublishMode::Received;

    fn with_window(bytes: u64) -> Publishing {
        let mut publishing = Publishing::default();
        publishing.set_window(bytes);
        publishing
    }

    fn add(publishing: &mut Publishing, mode: PublishMode) -> Ticket {
        publishing.add(&Outgoing::new("t", b"payload"), mode).unwrap()
    }

    fn add_large(publishing: &mut Publishing) -> Ticket {
        let mut batch = MessageBatch::new();
        batch.push("t", &vec![0; 1 << 20]).unwrap();
        publishing.add_part(batch.into_parts().remove(0), ACCEPTED)
    }

    /// What is sent now: first numbers, and whether they were sent before.
    fn taken(publishing: &mut Publishing) -> Vec<(u64, bool)> {
        std::iter::from_fn(|| publishing.take()).map(|batch| (batch.first, batch.again)).collect()
    }

    fn outcome(ticket: &Ticket, mode: PublishMode) -> Option<Result<Vec<Option<u32>>, Failure>> {
        ticket.settled(mode).now_or_never()
    }

    #[test]
    fn what_waits_travels_together_and_is_acknowledged_together() {
        let mut publishing = with_window(1 << 20);
        let tickets: Vec<Ticket> = (0..3).map(|_| add(&mut publishing, RECEIVED)).collect();
        let other = add(&mut publishing, ACCEPTED);
        assert_eq!(taken(&mut publishing), [(1, false), (4, false)]);
        let _ = publishing.acknowledge(Published { last: 4, nodes: vec![] });
        assert_eq!(outcome(&other, ACCEPTED), Some(Ok(vec![])));
        assert_eq!(outcome(&tickets[0], RECEIVED), None);
        let freed = publishing.acknowledge(Published { last: 3, nodes: vec![5, 6, 7] }).tell();
        assert!(freed > 0);
        for (ticket, nodes) in tickets.iter().zip(5..) {
            assert_eq!(outcome(ticket, RECEIVED), Some(Ok(vec![Some(nodes)])));
        }
        assert!(publishing.sent.is_empty() && publishing.under_way == 0 && publishing.kept == 0);
    }

    #[test]
    fn another_node_gets_everything_from_the_first_that_was_not_acknowledged() {
        let mut publishing = with_window(1 << 20);
        let settled = add(&mut publishing, ACCEPTED);
        taken(&mut publishing);
        let open = add(&mut publishing, RECEIVED);
        let accepted = add(&mut publishing, ACCEPTED);
        taken(&mut publishing);
        let _ = publishing.acknowledge(Published { last: 3, nodes: vec![] });
        assert!(outcome(&settled, ACCEPTED).is_some() && outcome(&accepted, ACCEPTED).is_some());
        let waiting = add(&mut publishing, ACCEPTED);
        publishing.detached();
        assert_eq!(taken(&mut publishing), [(2, true), (3, true), (4, false)]);
        // The other node knew the message: nobody says how many have it.
        let _ = publishing.acknowledge(Published { last: 2, nodes: vec![] });
        assert_eq!(outcome(&open, RECEIVED), Some(Ok(vec![None])));
        let _ = publishing.acknowledge(Published { last: 4, nodes: vec![] });
        assert_eq!(outcome(&waiting, ACCEPTED), Some(Ok(vec![])));
        assert!(publishing.sent.is_empty() && publishing.under_way == 0 && publishing.kept == 0);
    }

    #[test]
    fn a_node_gets_no_more_than_its_window() {
        let mut publishing = with_window(2 << 20);
        let tickets: Vec<Ticket> = (0..4).map(|_| add_large(&mut publishing)).collect();
        assert_eq!(taken(&mut publishing), [(1, false)], "two and what they are packed in are too much");
        let _ = publishing.acknowledge(Published { last: 1, nodes: vec![] });
        assert_eq!(taken(&mut publishing), [(2, false)]);
        let _ = publishing.refuse(2, Failure::invalid("no"));
        assert_eq!(outcome(&tickets[1], ACCEPTED).unwrap().unwrap_err().code, ErrorCode::InvalidArgument);
        let freed =
            publishing.give_up(&Failure::new(ErrorCode::PermissionDenied, "nobody lets this client in"));
        assert!(freed > 2 << 20);
        assert_eq!(outcome(&tickets[3], ACCEPTED).unwrap().unwrap_err().code, ErrorCode::PermissionDenied);
    }

    #[test]
    fn a_batch_that_holds_up_too_much_is_not_sent_again() {
        let mut publishing = with_window(u64::MAX);
        let stuck = add(&mut publishing, RECEIVED);
        let late = add(&mut publishing, RECEIVED);
        taken(&mut publishing);
        let many = KEPT_BYTES_MAX / (1 << 20) + 1;
        for number in 3..3 + many as u64 {
            add_large(&mut publishing);
            taken(&mut publishing);
            let _ = publishing.acknowledge(Published { last: number, nodes: vec![] });
        }
        assert!(publishing.kept <= KEPT_BYTES_MAX && publishing.sent.is_empty());
        // Both are one batch, which is waited for nevertheless.
        assert!(outcome(&stuck, RECEIVED).is_none() && publishing.under_way > 0);
        publishing.detached();
        assert_eq!(taken(&mut publishing), []);
        for ticket in [stuck, late] {
            let failure = outcome(&ticket, RECEIVED).unwrap().unwrap_err();
            assert_eq!((failure.code, failure.maybe_applied), (ErrorCode::UnknownOutcome, true));
        }
    }
}

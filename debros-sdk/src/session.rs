//! The write sessions of one database, as plain data: which sequence a write gets, and up to where
//! results are acknowledged. It opens nothing and waits for nothing; `writer` does.
//!
//! Invariants: no two writes get the same (session, sequence). The watermark of a session never
//! passes a sequence whose result the application has not got: not one under way, not one whose
//! outcome is unknown. A session with an unknown outcome takes no new writes, so its watermark can
//! stay where it is for ever.

use std::collections::BTreeSet;

use debros_proto::{limits, v1};

/// Sessions of one database: together they have as many writes under way as a node lets wait.
pub(crate) const SESSIONS_PER_DATABASE_MAX: usize = limits::PENDING_WRITES_MAX / limits::SESSION_RESULTS_MAX;

/// The place of one write in its session; every retry of that write carries the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    session: u64,
    sequence: u64,
    acknowledged: u64,
}

impl Ticket {
    pub(crate) fn to_wire(self) -> v1::WriteSession {
        v1::WriteSession { id: self.session, sequence: self.sequence, acknowledged: self.acknowledged }
    }
}

/// How a write ended, as far as its session is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The application has the result, or the write was never sent.
    Settled,
    /// The write may be applied still.
    Unknown,
    /// The node does not know the session any more.
    SessionLost,
}

/// What a writer can do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Write with this.
    Write(Ticket),
    /// Open a session and add it.
    OpenSession,
    /// Wait until a write has ended.
    Wait,
}

/// The sessions of one database.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    live: Vec<Session>,
}

#[derive(Debug)]
struct Session {
    id: u64,
    next: u64,
    under_way: BTreeSet<u64>,
}

impl Session {
    /// Every sequence below this one is acknowledged.
    fn acknowledged(&self) -> u64 {
        self.under_way.first().copied().unwrap_or(self.next)
    }

    /// A node keeps so many results of a session: the window may not be wider.
    fn has_room(&self) -> bool {
        self.next - self.acknowledged() < limits::SESSION_RESULTS_MAX as u64
    }
}

impl Sessions {
    /// Adds a session that a node has just opened.
    pub(crate) fn add(&mut self, id: u64) {
        self.live.push(Session { id, next: 1, under_way: BTreeSet::new() });
    }

    /// Whether a write could begin now.
    pub(crate) fn has_room(&self) -> bool {
        self.live.iter().any(Session::has_room)
    }

    /// Begins a write, or says what is missing.
    pub(crate) fn begin(&mut self) -> Admission {
        let Some(session) = self.live.iter_mut().find(|session| session.has_room()) else {
            let full = self.live.len() >= SESSIONS_PER_DATABASE_MAX;
            return if full { Admission::Wait } else { Admission::OpenSession };
        };
        let sequence = session.next;
        session.next += 1;
        session.under_way.insert(sequence);
        Admission::Write(Ticket { session: session.id, sequence, acknowledged: session.acknowledged() })
    }

    /// Ends a write. A session that is gone already is nobody's concern.
    pub(crate) fn end(&mut self, ticket: Ticket, ending: Ending) {
        let Some(index) = self.live.iter().position(|session| session.id == ticket.session) else { return };
        match ending {
            Ending::Settled => {
                self.live[index].under_way.remove(&ticket.sequence);
            }
            Ending::Unknown | Ending::SessionLost => {
                self.live.swap_remove(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use debros_proto::limits;
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert, proptest};

    use super::{Admission, Ending, SESSIONS_PER_DATABASE_MAX, Sessions, Ticket};

    fn begin(sessions: &mut Sessions) -> Ticket {
        match sessions.begin() {
            Admission::Write(ticket) => ticket,
            other => panic!("expected a ticket, got {other:?}"),
        }
    }

    #[test]
    fn the_watermark_follows_the_lowest_write_under_way() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.begin(), Admission::OpenSession);
        sessions.add(9);
        let (first, second) = (begin(&mut sessions), begin(&mut sessions));
        assert_eq!((first.sequence, first.acknowledged), (1, 1));
        assert_eq!((second.sequence, second.acknowledged), (2, 1));
        sessions.end(second, Ending::Settled);
        assert_eq!(begin(&mut sessions).acknowledged, 1);
        sessions.end(first, Ending::Settled);
        assert_eq!(begin(&mut sessions).acknowledged, 3);
    }

    #[test]
    fn a_session_with_an_unknown_outcome_takes_no_more_writes() {
        let mut sessions = Sessions::default();
        sessions.add(1);
        let ticket = begin(&mut sessions);
        sessions.end(ticket, Ending::Unknown);
        assert_eq!(sessions.begin(), Admission::OpenSession);
        sessions.end(ticket, Ending::Settled);
    }

    #[test]
    fn writes_under_way_are_bounded() {
        let mut sessions = Sessions::default();
        for id in 0..SESSIONS_PER_DATABASE_MAX as u64 {
            assert_eq!(sessions.begin(), Admission::OpenSession);
            sessions.add(id);
            for _ in 0..limits::SESSION_RESULTS_MAX {
                begin(&mut sessions);
            }
        }
        assert_eq!(sessions.begin(), Admission::Wait);
    }

    proptest! {
        #[test]
        fn the_watermark_never_passes_a_result_the_application_lacks(
            steps in vec((0..10u8, any::<proptest::sample::Index>()), 1..600)
        ) {
            let mut sessions = Sessions::default();
            let mut opened = 0;
            let mut under_way: Vec<Ticket> = Vec::new();
            // Of each session, the sequences whose result never reached the application.
            let mut lacking: HashMap<u64, HashSet<u64>> = HashMap::new();
            let mut given = HashSet::new();
            for (step, which) in steps {
                if step < 5 || under_way.is_empty() {
                    match sessions.begin() {
                        Admission::OpenSession => {
                            opened += 1;
                            sessions.add(opened);
                        }
                        Admission::Wait => {}
                        Admission::Write(ticket) => {
                            prop_assert!(given.insert((ticket.session, ticket.sequence)));
                            let lacking = lacking.entry(ticket.session).or_default();
                            lacking.insert(ticket.sequence);
                            prop_assert!(lacking.iter().all(|sequence| *sequence >= ticket.acknowledged));
                            let window = ticket.sequence - ticket.acknowledged;
                            prop_assert!(window < limits::SESSION_RESULTS_MAX as u64);
                            under_way.push(ticket);
                        }
                    }
                    continue;
                }
                let ticket = under_way.swap_remove(which.index(under_way.len()));
                match step {
                    5..=7 => {
                        lacking.get_mut(&ticket.session).unwrap().remove(&ticket.sequence);
                        sessions.end(ticket, Ending::Settled);
                    }
                    8 => sessions.end(ticket, Ending::Unknown),
                    _ => sessions.end(ticket, Ending::SessionLost),
                }
            }
        }
    }
}

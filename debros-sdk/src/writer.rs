//! Writes to one database, exactly once: each write gets a place in a session and keeps it through
//! all its retries, on whichever node they land. Opens sessions as they are needed; the bookkeeping
//! itself is `session`.
//!
//! Invariant: a write whose future is dropped, or whose outcome is unknown, takes its session out of
//! use, unless it was never sent.

use std::sync::{Mutex, MutexGuard, PoisonError};

use debros_proto::{DatabaseName, ErrorCode, Failure, HasHeader, limits, v1};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::call::{Answer, Failed, Plan, Target};
use crate::error::{Error, ErrorKind};
use crate::rpc;
use crate::session::{Admission, Ending, Sessions, Ticket};
use crate::shared::Shared;

/// A session that a node forgot is replaced this often for one write; more means that the node
/// forgets sessions as fast as they are opened.
const SESSIONS_PER_WRITE_MAX: usize = 3;

/// The writing side of one database.
pub(crate) struct Writer {
    database: DatabaseName,
    sessions: Mutex<Sessions>,
    /// Held while a session is opened, so that a burst of first writes opens one.
    opening: tokio::sync::Mutex<()>,
    room: Notify,
}

/// A request that is applied exactly once within a session.
pub(crate) trait InSession: HasHeader + Clone + Send + Sync {
    /// What is answered.
    type Answer: Send;
    /// Its place in a session.
    fn session_mut(&mut self) -> &mut Option<v1::WriteSession>;
    /// Who leads, where the answer says so.
    fn leader(answer: &Self::Answer) -> Option<&v1::LeaderHint>;
}

macro_rules! in_session {
    ($($request:ident -> $answer:ident;)*) => {$(
        impl InSession for v1::$request {
            type Answer = v1::$answer;
            fn session_mut(&mut self) -> &mut Option<v1::WriteSession> {
                &mut self.session
            }
            fn leader(answer: &v1::$answer) -> Option<&v1::LeaderHint> {
                answer.leader.as_ref()
            }
        }
    )*};
}

in_session! {
    ExecuteRequest -> ExecuteResponse;
    RegisterWriteRequest -> RegisterWriteResponse;
}

/// A write under way. Dropped before it is ended, its outcome is unknown.
struct Place<'w> {
    writer: &'w Writer,
    ticket: Ticket,
    ending: Ending,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.writer.sessions().end(self.ticket, self.ending);
        self.writer.room.notify_waiters();
    }
}

impl Writer {
    pub(crate) fn new(database: DatabaseName) -> Self {
        Self {
            database,
            sessions: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            room: Notify::new(),
        }
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies what `request` asks for exactly once, or says that the outcome is unknown; `send` makes one
    /// attempt.
    pub(crate) async fn write<Q, S, F>(
        &self,
        shared: &Shared,
        mut request: Q,
        deadline: Instant,
        send: S,
    ) -> Result<Q::Answer, Error>
    where
        Q: InSession,
        S: Fn(Channel, Q) -> F + Sync,
        F: Future<Output = Result<Response<Q::Answer>, Status>> + Send,
    {
        let plan = self.plan(deadline);
        let mut sessions_lost = 0;
        loop {
            let mut place = self.place(shared, deadline).await?;
            *request.session_mut() = Some(place.ticket.to_wire());
            place.ending = Ending::Unknown;
            match shared.call(&plan, &request, &send).await {
                Ok(Answer { value, rough, .. }) => {
                    place.ending = Ending::Settled;
                    shared.learn_leader(self.database.as_str(), Q::leader(&value));
                    if rough {
                        shared.ask_for_refresh();
                    }
                    return Ok(value);
                }
                Err(Failed { failure, ambiguous: false, .. })
                    if failure.code == ErrorCode::SessionExpired
                        && sessions_lost < SESSIONS_PER_WRITE_MAX =>
                {
                    // The first attempt that reached the log found no session, so nothing was applied.
                    place.ending = Ending::SessionLost;
                    sessions_lost += 1;
                }
                Err(failed) => {
                    let error = failed.into_write_error();
                    if !error.maybe_applied() {
                        place.ending = Ending::Settled;
                    }
                    return Err(error);
                }
            }
        }
    }

    fn plan(&self, deadline: Instant) -> Plan {
        Plan { target: Target::Leader(self.database.to_string()), deadline, repeatable: true }
    }

    /// A place in a session, opening one or waiting for room as needed.
    async fn place(&self, shared: &Shared, deadline: Instant) -> Result<Place<'_>, Error> {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            // Listen before looking, or room made in between is missed.
            room.as_mut().enable();
            let admission = self.sessions().begin();
            match admission {
                Admission::Write(ticket) => {
                    return Ok(Place { writer: self, ticket, ending: Ending::Settled });
                }
                Admission::OpenSession => self.open(shared, deadline).await?,
                Admission::Wait => {
                    if timeout_at(deadline, room).await.is_err() {
                        let message = format!(
                            "{} writes are under way to {}; wait for some of them, or give this one more time",
                            limits::PENDING_WRITES_MAX,
                            self.database
                        );
                        return Err(Error::new(ErrorKind::Busy, message));
                    }
                }
            }
        }
    }

    async fn open(&self, shared: &Shared, deadline: Instant) -> Result<(), Error> {
        let Ok(_opening) = timeout_at(deadline, self.opening.lock()).await else {
            let message = "no write session could be opened before the deadline; see `debros health`";
            return Err(Failure::new(ErrorCode::DeadlineExceeded, message).into());
        };
        // Somebody else may have opened one meanwhile.
        if self.sessions().has_room() {
            return Ok(());
        }
        let request = v1::OpenSessionRequest { header: None, database: self.database.to_string() };
        // A session opened twice is a session that expires unused.
        let answer = shared.call(&self.plan(deadline), &request, rpc::open_session).await;
        let opened = answer.map_err(Failed::into_read_error)?.value;
        self.sessions().add(opened.id);
        self.room.notify_waiters();
        shared.ask_for_refresh();
        Ok(())
    }
}

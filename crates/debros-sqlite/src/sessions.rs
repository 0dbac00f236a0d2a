//! Exactly-once writes: sessions and the results kept for them, in hidden tables.
//!
//! A write carries (session, sequence); its encoded outcome is kept in the transaction that
//! applies it, so a retry gets the first outcome and executes nothing. Sessions expire by log
//! time and are bounded in number; their results are bounded in number and size. All of it
//! follows from the entries alone. What an outcome means is the caller's affair: here it is bytes.
//!
//! Invariant: a sequence at or below a session's `forgotten` mark is never executed, because
//! whether it was executed before can no longer be told.

use crate::connection::Connection;
use crate::prepared::Prepared;
use crate::{Fault, Options, SessionWrite, Value};

const DURING: &str = "keeping write sessions";
/// A session's expiry moves only when it gains this much, so that most writes need not touch it.
const RENEWAL_STEP_MS: u64 = 60_000;
/// Results are forgotten by so many at a time, so that most writes need not touch the session. It decides
/// what a retry gives, so it is the same on every replica.
const FORGET_STEP: u64 = 16;

/// Whether a session's write may be executed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is new.
    Fresh(Standing),
    /// It was executed; these bytes were kept, unless they were too large.
    Repeated(Option<Vec<u8>>),
    /// The session is not known.
    Expired,
    /// The sequence is one whose result is forgotten.
    Forgotten,
}

/// What is known of a live session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    expires_ms: u64,
    lifetime_ms: u64,
    forgotten: u64,
}

/// The statements that keep sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    find: Prepared,
    renew: Prepared,
    keep: Prepared,
    forget: Prepared,
    open: Prepared,
    count: Prepared,
    expired: Prepared,
    oldest: Prepared,
    drop_session: Prepared,
    drop_results: Prepared,
}

fn integer(number: u64) -> Value {
    Value::Integer(i64::try_from(number).unwrap_or(i64::MAX))
}

fn number(row: &Prepared, column: i32) -> u64 {
    u64::try_from(row.column_integer(column)).unwrap_or(0)
}

impl Sessions {
    pub(crate) fn new(connection: &Connection) -> Result<Self, Fault> {
        let prepare = |sql| connection.internal(DURING, sql);
        Ok(Self {
            find: prepare(
                "SELECT s.expires_ms, s.lifetime_ms, s.forgotten, r.sequence IS NOT NULL, r.outcome \
                 FROM _debros_session s LEFT JOIN _debros_result r ON r.session = s.id AND r.sequence = ?2 \
                 WHERE s.id = ?1",
            )?,
            renew: prepare("UPDATE _debros_session SET expires_ms = ?2, forgotten = ?3 WHERE id = ?1")?,
            keep: prepare("INSERT INTO _debros_result VALUES (?1, ?2, ?3)")?,
            forget: prepare("DELETE FROM _debros_result WHERE session = ?1 AND sequence <= ?2")?,
            open: prepare("INSERT INTO _debros_session VALUES (?1, ?2, ?3, 0)")?,
            count: prepare("SELECT count(*) FROM _debros_session")?,
            expired: prepare("SELECT id FROM _debros_session WHERE expires_ms < ?1 ORDER BY expires_ms, id")?,
            oldest: prepare("SELECT id FROM _debros_session ORDER BY expires_ms, id LIMIT ?1")?,
            drop_session: prepare("DELETE FROM _debros_session WHERE id = ?1")?,
            drop_results: prepare("DELETE FROM _debros_result WHERE session = ?1")?,
        })
    }

    /// Opens session `id`, making room first. Returns its lifetime.
    pub(crate) fn open(
        &mut self,
        connection: &Connection,
        id: u64,
        lifetime_ms: u64,
        now_ms: u64,
        options: &Options,
    ) -> Result<u64, Fault> {
        let lifetime_ms = match lifetime_ms {
            0 => options.session_lifetime_max_ms,
            asked => asked.min(options.session_lifetime_max_ms),
        };
        let mut leaving = Vec::new();
        connection.run_internal(DURING, &mut self.expired, &[integer(now_ms)], |row| {
            leaving.push(number(row, 0))
        })?;
        self.drop_all(connection, &leaving)?;
        let mut live = 0;
        connection.run_internal(DURING, &mut self.count, &[], |row| live = number(row, 0))?;
        let excess = (live + 1).saturating_sub(options.sessions_max as u64);
        if excess > 0 {
            leaving.clear();
            connection.run_internal(DURING, &mut self.oldest, &[integer(excess)], |row| {
                leaving.push(number(row, 0))
            })?;
            self.drop_all(connection, &leaving)?;
        }
        let values = [integer(id), integer(now_ms.saturating_add(lifetime_ms)), integer(lifetime_ms)];
        connection.run_internal(DURING, &mut self.open, &values, |_| ())?;
        Ok(lifetime_ms)
    }

    /// Decides whether a write may be executed.
    pub(crate) fn admit(
        &mut self,
        connection: &Connection,
        write: SessionWrite,
        now_ms: u64,
    ) -> Result<Admission, Fault> {
        let mut found = None;
        let values = [integer(write.session), integer(write.sequence)];
        connection.run_internal(DURING, &mut self.find, &values, |row| {
            let standing = Standing {
                expires_ms: number(row, 0),
                lifetime_ms: number(row, 1),
                forgotten: number(row, 2),
            };
            let kept = (row.column_integer(3) != 0).then(|| match row.column_value(4) {
                Value::Blob(bytes) => Some(bytes),
                _ => None,
            });
            found = Some((standing, kept));
        })?;
        let Some((standing, kept)) = found else { return Ok(Admission::Expired) };
        if standing.expires_ms < now_ms {
            self.drop_all(connection, &[write.session])?;
            return Ok(Admission::Expired);
        }
        Ok(match kept {
            Some(bytes) => Admission::Repeated(bytes),
            None if write.sequence <= standing.forgotten => Admission::Forgotten,
            None => Admission::Fresh(standing),
        })
    }

    /// Keeps the outcome of an executed write: `None` keeps only that it was executed. Forgets
    /// what is acknowledged and what is too far behind.
    pub(crate) fn keep(
        &mut self,
        connection: &Connection,
        write: SessionWrite,
        standing: Standing,
        outcome: Option<&[u8]>,
        now_ms: u64,
        options: &Options,
    ) -> Result<(), Fault> {
        let outcome = outcome.map_or(Value::Null, |bytes| Value::Blob(bytes.to_vec()));
        let values = [integer(write.session), integer(write.sequence), outcome];
        connection.run_internal(DURING, &mut self.keep, &values, |_| ())?;
        // A sequence is not forgotten by its own write, whatever the client says it acknowledged.
        let acknowledged = write.acknowledged.min(write.sequence).saturating_sub(1);
        let dispensable = acknowledged.max(write.sequence.saturating_sub(options.session_results_max));
        let forgets = dispensable >= standing.forgotten.saturating_add(FORGET_STEP);
        let forgotten = if forgets { dispensable } else { standing.forgotten };
        let expires_ms = now_ms.saturating_add(standing.lifetime_ms);
        let renews =
            expires_ms >= standing.expires_ms.saturating_add(RENEWAL_STEP_MS.min(standing.lifetime_ms / 16));
        if forgets || renews {
            let values = [integer(write.session), integer(expires_ms), integer(forgotten)];
            connection.run_internal(DURING, &mut self.renew, &values, |_| ())?;
        }
        if forgets {
            let values = [integer(write.session), integer(forgotten)];
            connection.run_internal(DURING, &mut self.forget, &values, |_| ())?;
        }
        Ok(())
    }

    fn drop_all(&mut self, connection: &Connection, sessions: &[u64]) -> Result<(), Fault> {
        for session in sessions {
            connection.run_internal(DURING, &mut self.drop_results, &[integer(*session)], |_| ())?;
            connection.run_internal(DURING, &mut self.drop_session, &[integer(*session)], |_| ())?;
        }
        Ok(())
    }
}

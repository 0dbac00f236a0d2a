//! Election of a leader among the instances of an application: a lock whose holder says who it is, and that
//! others can watch.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Lock, LockGuard, RegisterEvent, RegisterWatch, Registers};
use crate::error::Error;

/// An election by its key. Cheap to clone.
#[derive(Clone)]
pub struct Election(Lock);

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// What the candidate said of itself.
    pub candidate: Bytes,
    /// Grows from leader to leader.
    pub term: u64,
}

/// This candidate leads until it resigns, drops this, or has [lost](Self::lost) it.
pub struct Leadership(LockGuard);

/// Tells who leads whenever that changes.
pub struct Observer {
    election: Election,
    watch: RegisterWatch,
    first: Option<Option<Leader>>,
    /// The term that was told of last.
    term: u64,
}

impl Election {
    /// An election kept in this key; a leader that gives no sign of life for `ttl` is replaced.
    pub fn new(registers: Arc<dyn Registers>, key: impl AsRef<[u8]>, ttl: Duration) -> Self {
        Self(Lock::new(registers, key, ttl))
    }

    /// Waits until this candidate leads.
    ///
    /// # Errors
    /// Whatever the operations give.
    pub async fn campaign(&self, candidate: &[u8]) -> Result<Leadership, Error> {
        self.0.acquire(candidate).await.map(Leadership)
    }

    /// Who leads now.
    ///
    /// # Errors
    /// Whatever the operation gives.
    pub async fn leader(&self) -> Result<Option<Leader>, Error> {
        let found = self.0.registers().get(self.0.key()).await?;
        Ok(found.map(|register| Leader { candidate: register.value, term: register.version }))
    }

    /// Observes who leads, beginning with who does now.
    ///
    /// # Errors
    /// Whatever the operations give.
    pub async fn observe(&self) -> Result<Observer, Error> {
        // The watch first: what changes between the two is not missed.
        let watch = self.0.registers().watch(self.0.key(), None).await?;
        let first = self.leader().await?;
        let term = first.as_ref().map_or(0, |leader| leader.term);
        Ok(Observer { election: self.clone(), watch, first: Some(first), term })
    }
}

impl Leadership {
    /// The term: greater than that of any leader before. See [`LockGuard::token`].
    pub fn term(&self) -> u64 {
        self.0.token()
    }

    /// Whether this candidate leads, as far as is known here.
    pub fn is_held(&self) -> bool {
        self.0.is_held()
    }

    /// Waits until the leadership is lost.
    pub async fn lost(&self) {
        self.0.lost().await;
    }

    /// Makes room for another leader at once.
    ///
    /// # Errors
    /// As [`LockGuard::release`].
    pub async fn resign(self) -> Result<(), Error> {
        self.0.release().await
    }
}

impl Observer {
    /// Who leads now, or next; `Some(Ok(None))` while nobody does. Ends with the client.
    pub async fn next(&mut self) -> Option<Result<Option<Leader>, Error>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        loop {
            match self.watch.next().await? {
                Ok(RegisterEvent::Put(register)) if self.is_news(&register.key, register.version) => {
                    return Some(Ok(Some(Leader { candidate: register.value, term: register.version })));
                }
                Ok(RegisterEvent::Deleted { key, version }) if self.is_news(&key, version) => {
                    return Some(Ok(None));
                }
                Ok(RegisterEvent::Lagged { .. }) => return Some(self.election.leader().await),
                Ok(RegisterEvent::Put(_) | RegisterEvent::Deleted { .. }) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Whether a change is one of the election's, and not older than what was told.
    fn is_news(&mut self, key: &[u8], version: u64) -> bool {
        let news = key == self.election.0.key() && version > self.term;
        if news {
            self.term = version;
        }
        news
    }
}

//! A lock that one holder at a time has, kept by a lease.
//!
//! The lock is a key that its holder has put under a lease and keeps alive; whoever waits watches the key. A
//! holder that dies, or is cut off for longer than the lease lasts, loses the lock. Clocks differ and processes
//! pause, so a holder may learn of its loss late: what it guards should be told the [`LockGuard::token`] with each
//! request, and refuse one that is smaller than the greatest it has seen.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{LeaseId, RegisterEvent, RegisterPutOptions, RegisterWatch, Registers};
use crate::error::{Error, ErrorKind};

/// A lease is kept alive so often in its time: one or two failed attempts lose nothing.
const SIGNS_OF_LIFE: u32 = 3;
/// A holder that could not give one counts itself out by this part of the time before the lease can end: clocks do
/// not run equally fast, and a task is not always woken in time.
const MARGIN: u32 = 8;

/// A lock by its key. Cheap to clone. Whoever waits is served in no particular order.
///
/// ```no_run
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use debros_sdk::{Client, Error, Lock};
///
/// # async fn report(_fencing_token: u64) {}
/// # async fn nightly(client: &Client) -> Result<(), Error> {
/// let lock = Lock::new(Arc::new(client.registers()), "locks/nightly-report", Duration::from_secs(10));
/// let guard = lock.acquire(b"worker-7").await?;
/// tokio::select! {
///     // Whoever takes the report refuses a token that is smaller than one it has seen.
///     () = report(guard.token()) => guard.release().await?,
///     () = guard.lost() => {}
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Lock {
    registers: Arc<dyn Registers>,
    key: Arc<[u8]>,
    ttl: Duration,
}

/// The lock is held until this is released or dropped, or until it is [lost](Self::lost).
pub struct LockGuard {
    token: u64,
    lost: CancellationToken,
    ends: watch::Receiver<Instant>,
    release: DropGuard,
    keeper: JoinHandle<Result<(), Error>>,
}

impl Lock {
    /// A lock kept in this key, lost by a holder that gives no sign of life for `ttl`: 2 seconds to 24 hours.
    pub fn new(registers: Arc<dyn Registers>, key: impl AsRef<[u8]>, ttl: Duration) -> Self {
        Self { registers, key: key.as_ref().into(), ttl }
    }

    /// Takes the lock if nobody has it; `holder` is what others see in the key.
    ///
    /// # Errors
    /// Whatever the operations give. The lock was not taken then, or goes with its lease.
    pub async fn try_acquire(&self, holder: &[u8]) -> Result<Option<LockGuard>, Error> {
        loop {
            if self.registers.get(&self.key).await?.is_some() {
                return Ok(None);
            }
            let begun = Instant::now();
            let lease = self.registers.grant_lease(self.ttl).await?.id;
            let options = RegisterPutOptions::lease(lease);
            match self.registers.compare_and_set_with(&self.key, 0, holder, options).await {
                Ok(Ok(token)) if Instant::now() < begun + lasts(self.ttl) => {
                    return Ok(Some(self.guard(lease, token, begun)));
                }
                // The answer took so long that the lease may have ended.
                Ok(Ok(_)) => self.give_up(lease).await,
                Ok(Err(_)) => {
                    self.give_up(lease).await;
                    return Ok(None);
                }
                // The lease ended first: the cluster was out of reach for that long.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    self.give_up(lease).await;
                    return Err(error);
                }
            }
        }
    }

    /// Takes the lock, waiting as long as others have it. One that is given up (dropped) while its request is
    /// under way may leave the lock taken until its time to live is over.
    ///
    /// # Errors
    /// As [`Self::try_acquire`].
    pub async fn acquire(&self, holder: &[u8]) -> Result<LockGuard, Error> {
        if let Some(guard) = self.try_acquire(holder).await? {
            return Ok(guard);
        }
        // It stands before the next attempt, so no release behind that attempt is missed.
        let mut watch = self.registers.watch(&self.key, None).await?;
        loop {
            if let Some(guard) = self.try_acquire(holder).await? {
                return Ok(guard);
            }
            self.released(&mut watch).await?;
        }
    }

    /// Waits until the key may be gone.
    async fn released(&self, watch: &mut RegisterWatch) -> Result<(), Error> {
        loop {
            match watch.next().await {
                Some(Ok(RegisterEvent::Deleted { key, .. })) if *key == *self.key => return Ok(()),
                Some(Ok(RegisterEvent::Lagged { .. })) => return Ok(()),
                Some(Ok(RegisterEvent::Put(_) | RegisterEvent::Deleted { .. })) => {}
                Some(Err(error)) => return Err(error),
                None => return Err(Error::closed()),
            }
        }
    }

    /// Ends a lease that is of no use; should that fail, it ends by itself.
    async fn give_up(&self, lease: LeaseId) {
        if let Err(error) = self.registers.revoke_lease(lease).await {
            tracing::debug!(%error, %lease, "a lease is left to end by itself");
        }
    }

    pub(super) fn registers(&self) -> &Arc<dyn Registers> {
        &self.registers
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    fn guard(&self, lease: LeaseId, token: u64, begun: Instant) -> LockGuard {
        let (lost, released) = (CancellationToken::new(), CancellationToken::new());
        let (told, ends) = watch::channel(begun + lasts(self.ttl));
        let (registers, key) = (self.registers.clone(), self.key.clone());
        let keeper = Keeper { registers, key, lease, ttl: self.ttl, ends: told };
        let kept = keeper.run(begun, lost.clone(), released.clone());
        // It ends soon after it is told to release the lock, or has lost it.
        LockGuard { token, lost, ends, release: released.drop_guard(), keeper: tokio::spawn(kept) }
    }
}

/// What keeps a lock while it is held, and gives it back.
struct Keeper {
    registers: Arc<dyn Registers>,
    key: Arc<[u8]>,
    lease: LeaseId,
    ttl: Duration,
    /// When the lock counts as lost, unless the lease is kept alive before.
    ends: watch::Sender<Instant>,
}

/// How long a lease is relied upon.
fn lasts(ttl: Duration) -> Duration {
    ttl - ttl / MARGIN
}

impl Keeper {
    async fn run(
        self,
        begun: Instant,
        lost: CancellationToken,
        released: CancellationToken,
    ) -> Result<(), Error> {
        let held = lost.drop_guard();
        tokio::select! {
            biased;
            () = released.cancelled() => {}
            () = self.keep_alive(begun) => return Ok(()),
        }
        drop(held);
        match self.registers.revoke_lease(self.lease).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            revoked => revoked.map(drop),
        }
    }

    /// Returns when the lock is lost: when its lease is said to have ended, or its key was deleted or put by
    /// somebody else, or nobody could be told of life for nearly the lease's whole time, counted from before the
    /// last request that succeeded.
    async fn keep_alive(&self, begun: Instant) {
        let (lease, mut alive) = (self.lease, begun);
        loop {
            let ends = alive + lasts(self.ttl);
            self.ends.send_replace(ends);
            sleep_until(alive + self.ttl / SIGNS_OF_LIFE).await;
            alive = loop {
                let asked = Instant::now();
                match timeout_at(ends, self.registers.keep_alive(lease)).await {
                    Ok(Ok(_)) => break asked,
                    Ok(Err(error)) if error.is_retryable() => {
                        tracing::debug!(%error, %lease, "a lease could not be kept alive yet");
                    }
                    Ok(Err(_)) | Err(_) => return,
                }
            };
            if let Ok(Ok(found)) = timeout_at(ends, self.registers.get(&self.key)).await
                && found.is_none_or(|found| found.lease != Some(lease))
            {
                return;
            }
        }
    }
}

impl LockGuard {
    /// Grows with every holder of the lock: what the lock guards refuses a smaller one than it has seen.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Whether the lock is held, as far as is known here.
    pub fn is_held(&self) -> bool {
        // The task that would tell of the loss may not have run yet.
        !self.lost.is_cancelled() && Instant::now() < *self.ends.borrow()
    }

    /// Waits until the lock is lost.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Releases the lock at once. A lock that is lost already counts as released. Dropping the guard does the
    /// same, without waiting for it.
    ///
    /// # Errors
    /// When the cluster could not be told: the lock goes when its lease ends.
    pub async fn release(self) -> Result<(), Error> {
        let Self { release, keeper, .. } = self;
        drop(release);
        keeper.await.unwrap_or_else(|_| Err(Error::closed()))
    }
}

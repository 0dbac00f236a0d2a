//! Which replica of the operator works: the one that holds a Lease. The other one stands by with filled caches.
//!
//! A holder that is not heard of for the lease's duration, by the watcher's own clock, has lost it; clocks of machines
//! are never compared. A holder that ends gives the lease back, so the other one takes over at once. Two holders at a
//! time cannot be ruled out by any lease. Every write is made under what was read, every disruptive step was decided over what is
//! now, and a pod is ended only while the lease holds for as long as the call may take ([`Hold`]).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// The Lease's name.
pub const NAME: &str = "debros-operator";
/// A holder that was not heard of for so long is taken for dead.
const DURATION: Duration = Duration::from_secs(15);
/// A holder that could not renew for so long stops working: before anybody takes over.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often the holder renews, and the others look.
const INTERVAL: Duration = Duration::from_secs(2);

/// For how long nobody else takes the lease. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Hold(Arc<Mutex<Until>>);

#[derive(Clone, Copy, Debug, Default)]
enum Until {
    /// There is nobody else.
    #[default]
    Forever,
    Then(Instant),
}

impl Hold {
    /// Whether nobody else works for so long.
    pub fn covers(&self, time: Duration) -> bool {
        match *self.0.lock().expect("not poisoned") {
            Until::Forever => true,
            Until::Then(end) => Instant::now() + time < end,
        }
    }

    fn ends(&self, end: Instant) {
        *self.0.lock().expect("not poisoned") = Until::Then(end);
    }
}

/// A replica's claim to a Lease.
pub struct Claim {
    leases: Api<Lease>,
    holder: String,
    seen: Option<(String, i32, Instant)>,
    hold: Hold,
}

impl Claim {
    /// A claim of this replica, under a name that no other has.
    pub fn new(leases: Api<Lease>, holder: String) -> Self {
        let hold = Hold::default();
        hold.ends(Instant::now());
        Self { leases, holder, seen: None, hold }
    }

    /// For how long it holds.
    pub fn hold(&self) -> Hold {
        self.hold.clone()
    }

    /// Waits until this replica holds the lease; `false` when it was stopped before.
    pub async fn acquire(&mut self, stop: &CancellationToken) -> bool {
        loop {
            match self.attempt().await {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "the lease could not be read or taken"),
            }
            if stop.run_until_cancelled(sleep(INTERVAL)).await.is_none() {
                return false;
            }
        }
    }

    /// Renews until the lease is lost, or there is no more work under it.
    pub async fn keep(&mut self, stop: &CancellationToken) {
        let mut renewed = Instant::now();
        while stop.run_until_cancelled(sleep(INTERVAL)).await.is_some() {
            match timeout(RENEW_DEADLINE.saturating_sub(renewed.elapsed()), self.attempt()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => {
                    tracing::warn!("another replica took the lease");
                    return;
                }
                Ok(Err(error)) => tracing::warn!(%error, "the lease could not be renewed"),
                Err(_) => tracing::warn!("the lease could not be renewed in time"),
            }
            if renewed.elapsed() >= RENEW_DEADLINE {
                return;
            }
        }
    }

    /// Gives the lease back, so that nobody has to wait.
    pub async fn release(&self) {
        let released = async {
            let mut lease = self.leases.get(NAME).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.holder) {
                spec.holder_identity = None;
                self.leases.replace(NAME, &PostParams::default(), &lease).await?;
            }
            Ok::<(), kube::Error>(())
        };
        if let Err(error) = released.await {
            tracing::warn!(%error, "the lease could not be given back: the other replica waits until it has expired");
        }
    }

    /// Takes or renews the lease, if it is free or this replica's.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let asked = Instant::now();
        let holds = self.take().await?;
        if holds {
            self.hold.ends(asked + DURATION);
        }
        Ok(holds)
    }

    async fn take(&mut self) -> Result<bool, kube::Error> {
        let Some(lease) = self.leases.get_opt(NAME).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
                spec: Some(self.spec(0, None)),
            };
            return taken(self.leases.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let transitions = spec.lease_transitions.unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if holder != self.holder && !holder.is_empty() && !self.has_expired(&lease) {
            return Ok(false);
        }
        let (transitions, since) = match holder == self.holder {
            true => (transitions, spec.acquire_time),
            false => (transitions + 1, None),
        };
        // Under the version that was read: of two that try at once, one is refused.
        let replacement = Lease { spec: Some(self.spec(transitions, since)), ..lease };
        taken(self.leases.replace(NAME, &PostParams::default(), &replacement).await)
    }

    /// Whether nothing has been heard of the holder for as long as this replica has been watching.
    fn has_expired(&mut self, lease: &Lease) -> bool {
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or_default();
        match &self.seen {
            Some((seen, turn, at)) if *seen == version && *turn == transitions => at.elapsed() >= DURATION,
            _ => {
                self.seen = Some((version, transitions, Instant::now()));
                false
            }
        }
    }

    fn spec(&self, transitions: i32, since: Option<MicroTime>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            lease_transitions: Some(transitions),
            acquire_time: Some(since.unwrap_or_else(|| now.clone())),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }
}

fn taken(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

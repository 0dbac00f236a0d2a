//! Locks and elections over any [`Registers`]. Keys begin with `conformance/`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::registers::{Election, Leader, Lock, Observer, Registers};

/// What is to come comes within this time, on a slow machine too.
const PATIENCE: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(10);

/// Holds locks and elections over these registers to their contract.
///
/// # Panics
/// Where the contract is broken.
pub async fn locks(registers: Arc<dyn Registers>) {
    one_holder_at_a_time(&registers).await;
    a_lost_lease_is_noticed(&registers).await;
    a_lost_key_is_noticed(&registers).await;
    elections(&registers).await;
}

async fn one_holder_at_a_time(registers: &Arc<dyn Registers>) {
    let lock = Lock::new(registers.clone(), "conformance/lock", TTL);
    let first = lock.acquire(b"first").await.expect("the lock");
    assert!(first.is_held());
    assert!(lock.try_acquire(b"second").await.expect("an answer").is_none());
    let waiting = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire(b"second").await }
    });
    let token = first.token();
    first.release().await.expect("released");
    let second = timeout(PATIENCE, waiting).await.expect("in time").expect("no panic").expect("the lock");
    assert!(second.token() > token, "tokens grow from holder to holder");
    let found = registers.get(b"conformance/lock").await.expect("a read").expect("the key");
    assert_eq!((&*found.value, found.version), (&b"second"[..], second.token()));
    // Dropping it releases it as well.
    let token = second.token();
    drop(second);
    let third = timeout(PATIENCE, lock.acquire(b"third")).await.expect("in time").expect("the lock");
    assert!(third.token() > token);
    third.release().await.expect("released");
    assert_eq!(registers.get(b"conformance/lock").await.expect("a read"), None);
}

async fn a_lost_lease_is_noticed(registers: &Arc<dyn Registers>) {
    let lock = Lock::new(registers.clone(), "conformance/lock", TTL);
    let guard = lock.acquire(b"holder").await.expect("the lock");
    let found = registers.get(b"conformance/lock").await.expect("a read").expect("the key");
    registers.revoke_lease(found.lease.expect("a lease")).await.expect("an end");
    timeout(PATIENCE, guard.lost()).await.expect("noticed in time");
    assert!(!guard.is_held());
    guard.release().await.expect("it counts as released");
}

/// Somebody frees the lock by hand.
async fn a_lost_key_is_noticed(registers: &Arc<dyn Registers>) {
    let lock = Lock::new(registers.clone(), "conformance/lock", TTL);
    let guard = lock.acquire(b"holder").await.expect("the lock");
    registers.delete(b"conformance/lock").await.expect("an answer");
    let next = timeout(PATIENCE, lock.acquire(b"next")).await.expect("in time").expect("the lock");
    timeout(PATIENCE, guard.lost()).await.expect("noticed in time");
    assert!(!guard.is_held() && next.is_held());
    next.release().await.expect("released");
    assert_eq!(registers.get(b"conformance/lock").await.expect("a read"), None);
}

async fn elections(registers: &Arc<dyn Registers>) {
    let election = Election::new(registers.clone(), "conformance/election", TTL);
    assert_eq!(election.leader().await.expect("an answer"), None);
    let mut observer = election.observe().await.expect("a watch");
    assert_eq!(next(&mut observer).await, None);
    let first = election.campaign(b"first").await.expect("leads");
    let leader = Leader { candidate: "first".into(), term: first.term() };
    assert_eq!(next(&mut observer).await.as_ref(), Some(&leader));
    assert_eq!(election.leader().await.expect("an answer"), Some(leader));
    let term = first.term();
    first.resign().await.expect("resigned");
    let second = election.campaign(b"second").await.expect("leads");
    assert!(second.term() > term && second.is_held());
    assert_eq!(next(&mut observer).await, None);
    assert_eq!(next(&mut observer).await.map(|leader| leader.term), Some(second.term()));
    second.resign().await.expect("resigned");
}

async fn next(observer: &mut Observer) -> Option<Leader> {
    let told = timeout(PATIENCE, observer.next()).await.expect("an event in time");
    told.expect("the watch goes on").expect("no error")
}

//! A client that grants leases, keeps some alive for a while, and waits for each to end: never before its time by
//! this client's own clock, and at the latest so much after the last fault was healed.

use std::time::Duration;

use debros_proto::limits;
use debros_sdk::{Error, ErrorKind, LeaseId, RegisterPutOptions, Registers, RemoteRegisters};
use tokio::time::sleep;

use super::{Seen, explained};
use crate::clients::{connect, now};
use crate::dice::Dice;
use crate::history::History;

const TTL_MS: (u64, u64) = (2000, 4000);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// In this time a cluster whose faults were healed has a leader again, and that has ended what is due.
const SETTLED_WITHIN: Duration = Duration::from_secs(20);
/// Signs of life of one lease, at most.
const SIGNS_OF_LIFE: u64 = 4;

/// A lease as its holder knows it.
#[derive(Debug)]
struct Lent {
    id: LeaseId,
    ttl: Duration,
    /// When the last sign of life was sent that was certainly taken.
    alive: Duration,
    /// When the last answer to one came that may have been taken.
    latest: Duration,
}

/// Lends until `end`, when faults are healed.
pub(super) async fn lend(
    number: usize,
    nodes: usize,
    end: Duration,
    mut dice: Dice,
    history: History,
    seen: Seen,
) -> turmoil::Result {
    let client = connect(number, nodes).await?;
    let registers = client.registers();
    let mut turn = 0;
    while now() < end {
        turn += 1;
        let key = format!("lease/{turn}");
        match grant(&registers, &key, dice.milliseconds(TTL_MS.0, TTL_MS.1)).await {
            Ok(mut lent) => {
                if keep_alive(&registers, &mut lent, dice.below(SIGNS_OF_LIFE), &seen).await {
                    wait(&registers, &key, &lent, end, &seen).await;
                }
                history.note(now(), &format!("{key} went with {lent:?}"));
            }
            // Its time may have been over before it had its key.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => explained(&seen, &error),
        }
    }
    client.close().await;
    Ok(())
}

async fn grant(registers: &RemoteRegisters, key: &str, ttl: Duration) -> Result<Lent, Error> {
    let alive = now();
    let id = registers.grant_lease(ttl).await?.id;
    let latest = now();
    registers.put_with(key.as_bytes(), b"", RegisterPutOptions::lease(id)).await?;
    Ok(Lent { id, ttl, alive, latest })
}

/// Gives signs of life; says whether the lease may still be there.
async fn keep_alive(registers: &RemoteRegisters, lent: &mut Lent, times: u64, seen: &Seen) -> bool {
    for _ in 0..times {
        sleep(lent.ttl / 3).await;
        let sent = now();
        match registers.keep_alive(lent.id).await {
            Ok(_) => (lent.alive, lent.latest) = (sent, now()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                ended(lent, seen);
                return false;
            }
            Err(error) => {
                lent.latest = now();
                explained(seen, &error);
            }
        }
    }
    true
}

/// Waits until the lease has taken its key with it.
async fn wait(registers: &RemoteRegisters, key: &str, lent: &Lent, healed: Duration, seen: &Seen) {
    let late = lent.latest.max(healed) + lent.ttl + limits::LEASE_CLOCK_INTERVAL + SETTLED_WITHIN;
    loop {
        let began = now();
        match registers.get(key.as_bytes()).await {
            Ok(None) => return ended(lent, seen),
            Ok(Some(_)) if began > late => {
                let wrong = format!("at {began:?} {key} is still there with {lent:?}");
                return seen.0.borrow_mut().wrong.push(wrong);
            }
            Ok(Some(_)) => {}
            Err(error) => explained(seen, &error),
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// The lease has ended by now.
fn ended(lent: &Lent, seen: &Seen) {
    let now = now();
    if now < lent.alive + lent.ttl {
        seen.0.borrow_mut().wrong.push(format!("at {now:?} a lease had ended early: {lent:?}"));
    }
}

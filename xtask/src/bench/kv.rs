//! `bench kv`: what an application asks of a key-value storage. Decides the works and the keys; knows systems only through
//! [`KvSystem`], and asks each only for the works that mean the same there.
//!
//! All keys are there before anything is measured, and puts write over them, so that the number of keys stays.

pub(super) mod debros;
mod etcd;
mod nats;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::turns::{self, Does, in_turns};
use super::{Build, CommonOptions, program};

const CLIENTS: &[u16] = &[1, 8, 64, 256];
const CLIENTS_QUICK: &[u16] = &[1, 64];
/// The bytes of a value.
const VALUE_BYTES: usize = 256;
/// Puts and reads choose one of so many keys, each as likely as the others.
const KEYS: u32 = 10_000;
/// So many keys share a prefix, and are what one listing gives.
const LISTED_KEYS: u32 = 100;

/// Options of `bench kv`.
#[derive(Args)]
pub(crate) struct KvOptions {
    #[command(flatten)]
    common: CommonOptions,
    /// What the clients do.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WORK,..")]
    works: Option<Vec<Work>>,
    /// Measure these systems beside this one, in turns, each at the works that it has.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PEER,..")]
    against: Vec<Peer>,
}

/// A system that is not ours.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// The etcd on the PATH (Debian: etcd-server).
    Etcd,
    /// The nats-server on the PATH (Debian: nats-server), with a bucket of three replicas.
    NatsKv,
}

/// What a client does over and over. W and R are how many of three replicas a put or a read waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum Work {
    /// A value of 256 bytes; acknowledged when a quorum has it on disk.
    PutFsync,
    /// A value of 256 bytes; acknowledged when a quorum has it, on disk some time later.
    PutRelaxed,
    /// One key as one replica knows it: it may miss what was written before.
    #[value(name = "get_r1")]
    GetR1,
    /// One key with all that was acknowledged before.
    #[value(name = "get_r2")]
    GetR2,
    /// The 100 keys of a prefix with their values.
    #[value(name = "list_100")]
    List100,
}

impl turns::Work for Work {
    const BENCH: &'static str = "kv";

    fn name(self) -> &'static str {
        match self {
            Self::PutFsync => "put_fsync",
            Self::PutRelaxed => "put_relaxed",
            Self::GetR1 => "get_r1",
            Self::GetR2 => "get_r2",
            Self::List100 => "list_100",
        }
    }
}

/// A system with keys and values.
trait KvSystem: Does<Work> {
    /// Whether it has something that means the same as this work.
    fn has(&self, work: Work) -> bool;
}

/// Measures and reports.
pub(super) async fn run(options: &KvOptions) -> Result<()> {
    let common = &options.common;
    let mut systems: Vec<Box<dyn KvSystem>> = vec![Box::new(debros::start(&Build::shipped()).await?)];
    systems.extend(peers(&options.against).await?);
    let works = options.works.clone().unwrap_or_else(|| Work::value_variants().to_vec());
    let mut rows = Vec::new();
    for work in works {
        for clients in common.clients(CLIENTS, CLIENTS_QUICK) {
            let able = systems.iter_mut().map(Box::as_mut).filter(|system| system.has(work));
            rows.extend(in_turns(&mut able.collect::<Vec<_>>(), work, clients, common.duration()).await?);
        }
    }
    for system in systems {
        system.stop().await?;
    }
    common.report(&rows)
}

/// Starts those that are installed, with all keys.
async fn peers(asked: &[Peer]) -> Result<Vec<Box<dyn KvSystem>>> {
    let mut systems: Vec<Box<dyn KvSystem>> = Vec::new();
    let again = |place: usize| asked[..place].contains(&asked[place]);
    for (_, peer) in asked.iter().enumerate().filter(|(place, _)| !again(*place)) {
        let (name, package) = match peer {
            Peer::Etcd => ("etcd", "etcd-server"),
            Peer::NatsKv => ("nats-server", "nats-server"),
        };
        let Some(program) = program(name, package) else { continue };
        systems.push(match peer {
            Peer::Etcd => Box::new(etcd::start(&program).await?),
            Peer::NatsKv => Box::new(nats::start(&program).await?),
        });
    }
    Ok(systems)
}

/// The name of a key. Keys with the same hundreds share a prefix.
fn key(number: u32) -> String {
    format!("{}{:02}", prefix(number / LISTED_KEYS), number % LISTED_KEYS)
}

fn prefix(number: u32) -> String {
    format!("bench/{number:03}/")
}

fn random_key() -> String {
    key(rand::random_range(0..KEYS))
}

fn random_prefix() -> String {
    prefix(rand::random_range(0..KEYS / LISTED_KEYS))
}

fn value() -> tonic::codegen::Bytes {
    tonic::codegen::Bytes::from_static(&[b'x'; VALUE_BYTES])
}

#[cfg(test)]
mod tests {
    use super::{KEYS, LISTED_KEYS, key, prefix, random_prefix};

    #[test]
    fn every_prefix_has_as_many_keys_as_a_listing_gives() {
        let keys = (0..KEYS).map(key).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(keys.len(), KEYS as usize);
        for number in 0..KEYS / LISTED_KEYS {
            let prefix = prefix(number);
            let listed = keys.iter().filter(|key| key.starts_with(&prefix)).count();
            assert_eq!(listed, LISTED_KEYS as usize, "{prefix}");
        }
        assert!(keys.contains(&format!("{}00", random_prefix())));
    }
}

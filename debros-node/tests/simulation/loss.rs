//! Links that lose packets, under connections that send them again: what is lost arrives later, and what is
//! behind it on its connection waits for it.
//!
//! The simulated network would lose it for good, and hang the connection. So a link that loses holds everything,
//! and each step what was not lost is let through.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::time::Duration;

use turmoil::{Protocol, Segment, SentRef, Sim};

/// One packet in so many is lost.
const LOST_ONE_IN: u64 = 20;
/// What was lost is sent again at the next multiple of this.
const SENT_AGAIN: Duration = Duration::from_millis(200);

/// The links that lose packets, by the names of their ends.
#[derive(Default)]
pub(crate) struct Loss {
    links: BTreeMap<(String, String), (IpAddr, IpAddr)>,
    /// Links of them on which everything waits.
    paused: BTreeSet<(IpAddr, IpAddr)>,
}

impl Loss {
    /// A link loses packets from now on, or not any more.
    pub(crate) fn set(&mut self, sim: &Sim<'_>, one: &str, other: &str, loses: bool) {
        let link = (one.to_owned(), other.to_owned());
        if loses {
            sim.hold(one, other);
            self.links.insert(link, ends(sim, one, other));
        } else if self.links.remove(&link).is_some() {
            sim.release(one, other);
        }
    }

    /// Everything on this link waits, also what is not lost.
    pub(crate) fn pause(&mut self, sim: &Sim<'_>, one: &str, other: &str) {
        self.paused.insert(ends(sim, one, other));
    }

    /// A link has become sound: if it loses packets, it does so again.
    pub(crate) fn goes_on(&mut self, sim: &Sim<'_>, one: &str, other: &str) {
        let ends = ends(sim, one, other);
        self.paused.remove(&ends);
        if self.links.values().any(|link| *link == ends) {
            sim.hold(one, other);
        }
    }

    /// Lets through what is not lost; now and then what was sent again, too.
    pub(crate) fn pass_on(&self, sim: &Sim<'_>) {
        if self.links.is_empty() {
            return;
        }
        let all = sim.elapsed().as_millis() % SENT_AGAIN.as_millis() == 0;
        let losing: BTreeSet<(IpAddr, IpAddr)> =
            self.links.values().filter(|link| !self.paused.contains(link)).copied().collect();
        sim.links(|links| {
            for link in links.filter(|link| losing.contains(&link.pair())) {
                link.filter(|sent| all || !is_lost(sent)).for_each(SentRef::deliver);
            }
        });
    }
}

/// As the network orders them.
fn ends(sim: &Sim<'_>, one: &str, other: &str) -> (IpAddr, IpAddr) {
    let (one, other) = (sim.lookup(one), sim.lookup(other));
    (one.min(other), one.max(other))
}

/// By what the packet is, so that it stays lost at every look.
fn is_lost(sent: &SentRef<'_>) -> bool {
    let number = match sent.protocol() {
        Protocol::Tcp(Segment::Data(number, _) | Segment::Fin(number)) => *number,
        Protocol::Tcp(Segment::Syn(_) | Segment::Rst) | Protocol::Udp(_) => 0,
    };
    let mut hasher = DefaultHasher::new();
    (sent.pair(), number).hash(&mut hasher);
    hasher.finish().is_multiple_of(LOST_ONE_IN)
}

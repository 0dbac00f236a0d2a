//! Bugs that the simulation plants, one at a time, to see that it catches them.
//!
//! Without the feature `planted-bugs`, which no shipped build has, none can be planted and every
//! question is answered "no" at compile time. Acknowledgements before the flush are options of
//! [`crate::raft::log`] and [`crate::kv::StoreOptions`].

/// A bug that a careless change could bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The log is purged up to what was applied, durable or not.
    PurgePastDurable,
    /// A node whose log was lost goes on under its old node id.
    ForgottenLogVotes,
    /// A leader answers reads without asking whether it still leads.
    StaleRead,
    /// A write's session is ignored.
    RetryAppliedTwice,
    /// Replicas that disagree are left as they are when that is found by a read.
    ReadRepairOff,
    /// A tombstone is forgotten before every replica has it.
    TombstoneDroppedEarly,
    /// A node says that it has copied what it gains without having done so.
    LayoutBeforeCopy,
    /// What is kept for an absent replica counts as if that had it.
    HintCountsTowardsQuorum,
    /// A replica takes writes of a coordinator that knows an older layout.
    OldLayoutAccepted,
    /// A link that broke goes on behind what was sent, whatever of it arrived.
    GapNotAskedFor,
    /// A subscription that comes from another node begins anew.
    CursorIgnored,
    /// A publisher's numbers are taken for new whatever came before.
    RepeatedNumbersTaken,
    /// Interest counts as heeded once it was sent, before the other node has stored it.
    InterestAcknowledgedEarly,
    /// A queue that overflows does not say so.
    LaggedSwallowed,
    /// What a ring is asked for is given whatever its namespace.
    NamespacesNotCompared,
}

pub(crate) use switch::is_planted;
#[cfg(feature = "planted-bugs")]
pub use switch::plant;

#[cfg(not(feature = "planted-bugs"))]
mod switch {
    use super::Bug;

    pub(crate) const fn is_planted(_bug: Bug) -> bool {
        false
    }
}

#[cfg(feature = "planted-bugs")]
mod switch {
    use std::sync::OnceLock;

    use super::Bug;

    static PLANTED: OnceLock<Bug> = OnceLock::new();

    /// Plants a bug in this process, for good; only the first one counts.
    pub fn plant(bug: Bug) {
        let _ = PLANTED.set(bug);
    }

    pub(crate) fn is_planted(bug: Bug) -> bool {
        PLANTED.get() == Some(&bug)
    }
}

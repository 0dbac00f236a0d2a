//! Bugs to plant, so that it shows whether the simulation catches them.

use debros_node::kv::StoreOptions;
use debros_node::raft::log::Options;

use crate::sql::Scenario;

/// A bug that a careless change could bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Entries are acknowledged before they are on disk.
    AcknowledgeBeforeFsync,
    /// The log is purged up to what was applied, durable or not.
    PurgePastDurable,
    /// A node whose log was lost goes on under its old node id.
    ForgottenLogVotes,
    /// A leader answers reads without asking whether it still leads.
    StaleRead,
    /// A write's session is ignored.
    RetryAppliedTwice,
    /// The storage's writes are acknowledged before they are on disk.
    StoreAcknowledgesEarly,
    /// Replicas of a key that disagree are left as they are when that is found by a read.
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

impl Bug {
    /// Every one.
    pub(crate) const ALL: [Bug; 17] = [
        Bug::AcknowledgeBeforeFsync,
        Bug::PurgePastDurable,
        Bug::ForgottenLogVotes,
        Bug::StaleRead,
        Bug::RetryAppliedTwice,
        Bug::StoreAcknowledgesEarly,
        Bug::ReadRepairOff,
        Bug::TombstoneDroppedEarly,
        Bug::LayoutBeforeCopy,
        Bug::HintCountsTowardsQuorum,
        Bug::OldLayoutAccepted,
        Bug::GapNotAskedFor,
        Bug::CursorIgnored,
        Bug::RepeatedNumbersTaken,
        Bug::InterestAcknowledgedEarly,
        Bug::LaggedSwallowed,
        Bug::NamespacesNotCompared,
    ];

    /// The scenario that has to catch it.
    pub(crate) fn scenario(self) -> Scenario {
        match self {
            Self::AcknowledgeBeforeFsync
            | Self::PurgePastDurable
            | Self::ForgottenLogVotes
            | Self::StaleRead
            | Self::RetryAppliedTwice => Scenario::Sql,
            Self::StoreAcknowledgesEarly
            | Self::ReadRepairOff
            | Self::TombstoneDroppedEarly
            | Self::LayoutBeforeCopy
            | Self::HintCountsTowardsQuorum
            | Self::OldLayoutAccepted => Scenario::Kv,
            Self::GapNotAskedFor
            | Self::CursorIgnored
            | Self::RepeatedNumbersTaken
            | Self::InterestAcknowledgedEarly
            | Self::LaggedSwallowed
            | Self::NamespacesNotCompared => Scenario::Pubsub,
        }
    }

    /// Whether that scenario meets it: registers are rows of a replicated database.
    pub(crate) fn is_caught_by(self, scenario: Scenario) -> bool {
        let databases = [Scenario::Sql, Scenario::Registers];
        self.scenario() == scenario || databases.contains(&self.scenario()) && databases.contains(&scenario)
    }

    /// As it is named on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AcknowledgeBeforeFsync => "acknowledge-before-fsync",
            Self::PurgePastDurable => "purge-past-durable",
            Self::ForgottenLogVotes => "forgotten-log-votes",
            Self::StaleRead => "stale-read",
            Self::RetryAppliedTwice => "retry-applied-twice",
            Self::StoreAcknowledgesEarly => "store-acknowledges-early",
            Self::ReadRepairOff => "read-repair-off",
            Self::TombstoneDroppedEarly => "tombstone-dropped-early",
            Self::LayoutBeforeCopy => "layout-before-copy",
            Self::HintCountsTowardsQuorum => "hint-counts-towards-quorum",
            Self::OldLayoutAccepted => "old-layout-accepted",
            Self::GapNotAskedFor => "gap-not-asked-for",
            Self::CursorIgnored => "cursor-ignored",
            Self::RepeatedNumbersTaken => "repeated-numbers-taken",
            Self::InterestAcknowledgedEarly => "interest-acknowledged-early",
            Self::LaggedSwallowed => "lagged-swallowed",
            Self::NamespacesNotCompared => "namespaces-not-compared",
        }
    }

    /// The bug with that name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|bug| bug.name() == name)
    }

    /// Plants it in this process. Two are options of each node's log and store.
    #[cfg(feature = "planted-bugs")]
    pub(crate) fn plant(self) {
        use debros_node::planted::{Bug, plant};
        match self {
            Self::AcknowledgeBeforeFsync | Self::StoreAcknowledgesEarly => {}
            Self::PurgePastDurable => plant(Bug::PurgePastDurable),
            Self::ForgottenLogVotes => plant(Bug::ForgottenLogVotes),
            Self::StaleRead => plant(Bug::StaleRead),
            Self::RetryAppliedTwice => plant(Bug::RetryAppliedTwice),
            Self::ReadRepairOff => plant(Bug::ReadRepairOff),
            Self::TombstoneDroppedEarly => plant(Bug::TombstoneDroppedEarly),
            Self::LayoutBeforeCopy => plant(Bug::LayoutBeforeCopy),
            Self::HintCountsTowardsQuorum => plant(Bug::HintCountsTowardsQuorum),
            Self::OldLayoutAccepted => plant(Bug::OldLayoutAccepted),
            Self::GapNotAskedFor => plant(Bug::GapNotAskedFor),
            Self::CursorIgnored => plant(Bug::CursorIgnored),
            Self::RepeatedNumbersTaken => plant(Bug::RepeatedNumbersTaken),
            Self::InterestAcknowledgedEarly => plant(Bug::InterestAcknowledgedEarly),
            Self::LaggedSwallowed => plant(Bug::LaggedSwallowed),
            Self::NamespacesNotCompared => plant(Bug::NamespacesNotCompared),
        }
    }

    /// The command line refuses to plant anything in this build.
    #[cfg(not(feature = "planted-bugs"))]
    pub(crate) fn plant(self) {
        unreachable!("{self:?} in a build without bugs to plant");
    }
}

/// The options of a node's log, with or without the first bug.
#[cfg(feature = "planted-bugs")]
pub(crate) fn log_options(acknowledge_before_fsync: bool) -> Options {
    Options { acknowledge_before_fsync, ..Options::default() }
}

/// The options of a node's log; there is no bug to plant in this build.
#[cfg(not(feature = "planted-bugs"))]
pub(crate) fn log_options(_acknowledge_before_fsync: bool) -> Options {
    Options::default()
}

/// The options of a node's store, with or without its bug.
#[cfg(feature = "planted-bugs")]
pub(crate) fn store_options(map_bytes: usize, acknowledge_before_fsync: bool) -> StoreOptions {
    StoreOptions { acknowledge_before_fsync, ..StoreOptions::default().with_map_bytes(map_bytes) }
}

/// The options of a node's store; there is no bug to plant in this build.
#[cfg(not(feature = "planted-bugs"))]
pub(crate) fn store_options(map_bytes: usize, _acknowledge_before_fsync: bool) -> StoreOptions {
    StoreOptions::default().with_map_bytes(map_bytes)
}

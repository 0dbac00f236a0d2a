//! Bugs to plant, so that it shows whether the simulation catches them.

use debros_node::raft::log::Options;

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
}

impl Bug {
    /// Every one.
    pub(crate) const ALL: [Bug; 5] = [
        Bug::AcknowledgeBeforeFsync,
        Bug::PurgePastDurable,
        Bug::ForgottenLogVotes,
        Bug::StaleRead,
        Bug::RetryAppliedTwice,
    ];

    /// As it is named on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AcknowledgeBeforeFsync => "acknowledge-before-fsync",
            Self::PurgePastDurable => "purge-past-durable",
            Self::ForgottenLogVotes => "forgotten-log-votes",
            Self::StaleRead => "stale-read",
            Self::RetryAppliedTwice => "retry-applied-twice",
        }
    }

    /// The bug with that name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|bug| bug.name() == name)
    }

    /// Plants it in this process. The first is an option of each node's log.
    #[cfg(feature = "planted-bugs")]
    pub(crate) fn plant(self) {
        use debros_node::planted::{Bug, plant};
        match self {
            Self::AcknowledgeBeforeFsync => {}
            Self::PurgePastDurable => plant(Bug::PurgePastDurable),
            Self::ForgottenLogVotes => plant(Bug::ForgottenLogVotes),
            Self::StaleRead => plant(Bug::StaleRead),
            Self::RetryAppliedTwice => plant(Bug::RetryAppliedTwice),
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
